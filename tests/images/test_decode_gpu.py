"""Decoding on a GPU, with a full decode by Pillow in the GPU's place.

Its pixels are those of the scaled decode, what it should not touch goes to the processor, and one that is wrong or
fails is left.
"""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

import vitembed
from vitembed.errors import BadImage, ConfigError
from vitembed.images.decode_gpu import MAX_FAILURES, NUM_COMPARED, GpuJpegs
from vitembed.images.pool import load_in_processes
from vitembed.images.preprocess import Preprocess
from vitembed.images.source import ImageRef
from vitembed.images.worker import GaveUpError

PREPROCESS = Preprocess(img_size=96, crop_pct=0.9)
NUM_TRIED = 4  # pictures that prepare() decodes


@pytest.fixture
def stand_ins(beside):
    return beside("gpu_stand_ins")


@pytest.fixture(scope="module")
def photo():
    """A real one, at 857 x 571 pixels, which no square divides."""
    return Image.fromarray(load_sample_image("china.jpg")).resize((857, 571))


class Counting:
    def __init__(self, decoder):
        self.decoder, self.calls = decoder, 0

    def __call__(self, data):
        self.calls += 1
        return self.decoder(data)


def difference(one, other):
    return np.abs(one.astype(float) - other).mean()


def believed(decoder):
    """A GPU that has shown what it can."""
    gpu = GpuJpegs(PREPROCESS, "cuda:0", decoder=Counting(decoder))
    gpu.prepare()
    gpu._num_compared, gpu._decoder.calls = NUM_COMPARED, 0
    return gpu


def saved(image, path, **options):
    image.save(path, **options)
    return ImageRef(str(path))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("subsampling", [0, 1, 2, "grey"])
def test_pixels_are_those_of_the_scaled_decode(orientation, subsampling, photo, tmp_path, stand_ins):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = photo.convert("L") if subsampling == "grey" else photo
    options = {} if subsampling == "grey" else {"subsampling": subsampling}
    ref = saved(image, tmp_path / "a.jpg", quality=92, exif=exif, **options)
    gpu = believed(stand_ins.right)
    found = gpu(ref)
    assert gpu._decoder.calls == 1
    scaled = PREPROCESS.load_image(ref)
    assert found.full_size == scaled.full_size == ((857, 571) if orientation < 5 else (571, 857))
    assert difference(found.pixels, scaled.pixels) < 0.5
    exact = Preprocess(img_size=96, crop_pct=0.9, draft=False).load(ref)
    assert difference(found.pixels, exact) < difference(scaled.pixels, exact) + 0.1


def test_what_follows_the_image_does_not_matter_nor_a_thumbnail_in_it(photo, tmp_path, stand_ins):
    thumbnail = io.BytesIO()
    photo.resize((160, 120)).save(thumbnail, "JPEG")
    ref = saved(photo, tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + thumbnail.getvalue())
    path = Path(ref.path)
    path.write_bytes(path.read_bytes() + thumbnail.getvalue() + b"\0" * 100)
    gpu = believed(stand_ins.right)
    assert difference(gpu(ref).pixels, PREPROCESS.load(ref)) < 0.5
    assert gpu._decoder.calls == 1


NOT_FOR_IT = {
    "small": lambda image, path: saved(image.resize((400, 380)), path, format="JPEG"),
    "progressive": lambda image, path: saved(image, path, format="JPEG", progressive=True),
    "CMYK": lambda image, path: saved(image.convert("CMYK"), path, format="JPEG"),
    "RGB": lambda image, path: saved(image, path, format="JPEG", keep_rgb=True),
    "PNG": lambda image, path: saved(image, path, format="PNG"),
}


@pytest.mark.parametrize("kind", NOT_FOR_IT)
def test_what_is_not_for_it_is_the_processors(kind, photo, tmp_path, stand_ins):
    ref = NOT_FOR_IT[kind](photo, tmp_path / "picture")
    gpu = believed(stand_ins.right)
    np.testing.assert_array_equal(gpu(ref).pixels, PREPROCESS.load(ref))
    assert gpu._decoder.calls == 0


def test_an_exact_decode_was_asked_for(photo, tmp_path, stand_ins):
    ref = saved(photo, tmp_path / "a.jpg")
    gpu = GpuJpegs(Preprocess(img_size=96, draft=False), "cuda:0", decoder=Counting(stand_ins.right))
    np.testing.assert_array_equal(gpu(ref).pixels, Preprocess(img_size=96, draft=False).load(ref))
    assert gpu._decoder.calls == 0


def test_damaged_files_are_refused_in_the_same_words(photo, tmp_path, stand_ins):
    ref = saved(photo, tmp_path / "a.jpg", quality=90)
    whole = Path(ref.path).read_bytes()
    gpu = believed(stand_ins.right)
    for name, data in {
        "half": whole[: len(whole) // 2],
        "almost": whole[:-40],
        "no size": whole.replace(b"\xff\xc0\0\x11\x08\x02\x3b", b"\xff\xc0\0\x11\x08\0\0"),
        "head": whole[:300],
        "empty": b"",
        "text": b"no image at all",
    }.items():
        bad = tmp_path / f"{name}.jpg"
        bad.write_bytes(data)
        with pytest.raises(BadImage) as by_gpu:
            gpu(ImageRef(str(bad)))
        with pytest.raises(BadImage) as by_processor:
            PREPROCESS.load(ImageRef(str(bad)))
        assert by_gpu.value.reason == by_processor.value.reason
    # Without its end marker alone it is an image, and the processor's.
    (tmp_path / "endless.jpg").write_bytes(whole[:-2])
    endless = ImageRef(str(tmp_path / "endless.jpg"))
    np.testing.assert_array_equal(gpu(endless).pixels, PREPROCESS.load(endless))
    assert gpu._decoder.calls == 0
    with pytest.raises(BadImage, match="no such file"):
        gpu(ImageRef(str(tmp_path / "gone.jpg")))


def test_a_gpu_that_gives_other_pixels_is_not_begun_with(stand_ins):
    for decoder in (stand_ins.reversed_colours, stand_ins.on_its_side, stand_ins.FailsLater(2)):
        with pytest.raises(GaveUpError) as error:
            GpuJpegs(PREPROCESS, "cuda:0", decoder=decoder).prepare()
        assert "\n" not in str(error.value)


def test_real_images_are_decoded_both_ways_first(photo, tmp_path, stand_ins):
    ref = saved(photo, tmp_path / "a.jpg")
    gpu = GpuJpegs(PREPROCESS, "cuda:0", decoder=stand_ins.WrongLater(NUM_TRIED + 3))
    gpu.prepare()
    for _ in range(3):
        np.testing.assert_array_equal(gpu(ref).pixels, PREPROCESS.load(ref))
    with pytest.raises(GaveUpError, match=r"other pixels than the processor for .*a\.jpg"):
        gpu(ref)


def test_what_it_fails_on_is_the_processors_until_it_always_fails(photo, tmp_path, stand_ins):
    ref = saved(photo, tmp_path / "a.jpg")
    gpu = believed(stand_ins.FailsLater(NUM_TRIED))
    for _ in range(MAX_FAILURES - 1):
        np.testing.assert_array_equal(gpu(ref).pixels, PREPROCESS.load(ref))
    with pytest.raises(GaveUpError, match="CUDA error: an illegal memory access was encountered"):
        gpu(ref)


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
@pytest.mark.parametrize(
    ("stand_in", "said"),
    [
        (lambda module: module.right, None),
        (lambda module: module.reversed_colours, "it gives other pixels than the processor"),
        (lambda module: module.WrongLater(NUM_TRIED + 2), "it gives other pixels than the processor for"),
        (lambda module: module.FailsLater(NUM_TRIED + 2), "CUDA error"),
        (lambda module: module.CrashesLater(2), "ended at its start with status -11"),
        (lambda module: module.CrashesLater(NUM_TRIED + 2), "crashed its decoder (SIGSEGV)"),
        (lambda module: None, ""),  # torchvision's own, which needs a CUDA device
    ],
    ids=["right", "wrong at once", "wrong later", "fails", "crashes at once", "crashes later", "not there"],
)
def test_beside_processors_every_image_comes_in_its_place(stand_in, said, photo, tmp_path, stand_ins, caplog):
    if stand_in(stand_ins) is None and torch.cuda.is_available():
        pytest.skip("there is one")
    refs = []
    for number in range(24):
        image = photo.crop((number, number, 857, 571)) if number % 5 else photo.resize((200, 150))
        refs.append(saved(image, tmp_path / f"{number:02}.jpg"))
    Path(refs[7].path).write_bytes(Path(refs[7].path).read_bytes()[:5_000])
    gpu = GpuJpegs(PREPROCESS, "cuda:0", decoder=stand_in(stand_ins))
    mark = tmp_path / "begin"
    if said is None:
        gpu = stand_ins.Marking(gpu, mark)
    # The processor waits until the GPU has shown what this is about: what it loads, or the line when it is left.
    waits = stand_ins.Waiting(PREPROCESS.load_image, mark)
    handler = logging.Handler()
    handler.emit = lambda record: mark.touch()
    logging.getLogger("vitembed").addHandler(handler)
    try:
        with caplog.at_level(logging.WARNING, logger="vitembed"):
            results = load_in_processes(refs, waits, num_workers=1, look_ahead=len(refs), also=gpu)
            loaded = [result for result, _ in results]
    finally:
        logging.getLogger("vitembed").removeHandler(handler)
    assert [place for place, one in enumerate(loaded) if isinstance(one, BadImage)] == [7]
    for place, one in enumerate(loaded):
        if place != 7:
            exact = PREPROCESS.load_image(refs[place])
            assert one.full_size == exact.full_size
            assert difference(one.pixels, exact.pixels) < 0.5
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == (0 if said is None else 1)
    for line in lines:
        assert line.startswith("JPEG decoding on cuda:0 is of no use here: ")
        assert said in line
        assert "\n" not in line


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_card(photo, tmp_path):
    ref = saved(photo, tmp_path / "a.jpg")
    gpu = GpuJpegs(PREPROCESS, "cuda:0")
    gpu.prepare()
    gpu._num_compared = NUM_COMPARED
    assert difference(gpu(ref).pixels, PREPROCESS.load(ref)) < 1.0


def test_only_a_cuda_device_decodes(tiny_model, tmp_path):
    folder = tiny_model(tmp_path / "model")
    with pytest.raises(ConfigError, match="needs a CUDA device, and this encoder is on cpu"):
        vitembed.load(folder, device="cpu", gpu_decode=True)


def test_torchvision_still_has_the_function():
    script = (
        "from vitembed._torchvision import import_torchvision; import_torchvision()\n"
        "import inspect, torchvision.io as io\n"
        "print(list(inspect.signature(io.decode_jpeg).parameters), io.ImageReadMode.RGB)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "'mode', 'device'" in done.stdout
    assert "RGB" in done.stdout
