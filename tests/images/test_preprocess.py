"""The square that a ViT sees, against Pillow and torchvision, and the record that travels with a model."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from PIL import Image
from torchvision import transforms

from vitembed.errors import BadImage, DataError, ModelError
from vitembed.images.preprocess import Preprocess
from vitembed.images.source import ImageRef


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("height", "width"), [(100, 140), (140, 100), (57, 57), (20, 33), (31, 240), (224, 301)])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875, 0.9])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_crop_is_torchvisions_bit_for_bit(height, width, crop_pct, interpolation):
    image = Image.fromarray(noise(height, width))
    size = 56
    mode = transforms.InterpolationMode(interpolation)
    reference = transforms.Compose([transforms.Resize(math.floor(size / crop_pct), mode), transforms.CenterCrop(size)])
    ours = Preprocess(img_size=size, crop_pct=crop_pct, interpolation=interpolation).apply(image)
    np.testing.assert_array_equal(ours, np.array(reference(image)))


@pytest.mark.parametrize(("height", "width"), [(10, 400), (400, 10), (3, 90), (7, 63)])
def test_crop_of_long_images_is_nearly_torchvisions(height, width):
    image = Image.fromarray(noise(height, width))
    reference = transforms.Compose([transforms.Resize(32), transforms.CenterCrop(32)])
    ours = Preprocess(img_size=32, interpolation="bilinear").apply(image)
    assert np.abs(ours.astype(float) - np.array(reference(image))).mean() < 0.5


@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5000), (5000, 1), (2, 3), (1, 70_000), (224, 224)])
def test_any_size_and_aspect(resize, height, width):
    image = np.full((height, width, 3), (9, 99, 199), np.uint8)
    pixels = Preprocess(resize=resize, background=(9, 99, 199)).apply(image)
    assert pixels.shape == (224, 224, 3)
    assert pixels.dtype == np.uint8
    assert (pixels == (9, 99, 199)).all()


def test_crop_keeps_the_middle():
    image = np.zeros((40, 120, 3), np.uint8)
    image[:, 40:80] = 255
    assert (Preprocess(img_size=40).apply(image) == 255).all()
    assert (Preprocess(img_size=40).apply(image.transpose(1, 0, 2)) == 255).all()


def test_squash_shows_everything():
    image = noise(30, 90)
    expected = Image.fromarray(image).resize((48, 48), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(Preprocess(img_size=48, resize="squash").apply(image), np.array(expected))


@pytest.mark.parametrize(("height", "width", "inner"), [(30, 90, (16, 48)), (90, 30, (48, 16)), (1, 500, (1, 48))])
def test_pad_shows_everything_in_its_aspect(height, width, inner):
    image = noise(height, width)
    pixels = Preprocess(img_size=48, resize="pad", background=(1, 2, 3)).apply(image)
    rows, columns = inner
    top, left = (48 - rows) // 2, (48 - columns) // 2
    expected = Image.fromarray(image).resize((columns, rows), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(pixels[top : top + rows, left : left + columns], np.array(expected))
    outside = np.ones((48, 48), bool)
    outside[top : top + rows, left : left + columns] = False
    assert (pixels[outside] == (1, 2, 3)).all()


def test_downscaling_is_antialiased():
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    pixels = Preprocess(img_size=32).apply(stripes)[4:-4, 4:-4]
    assert np.abs(pixels.astype(float) - 127.5).max() < 3


def test_file_and_memory_give_the_same(tmp_path, photo):
    Image.fromarray(photo).save(tmp_path / "a.png")
    preprocess = Preprocess(img_size=32, crop_pct=0.9)
    from_file = preprocess.load(ImageRef(str(tmp_path / "a.png")))
    np.testing.assert_array_equal(from_file, preprocess.apply(photo))
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(from_file, preprocess.apply(image))
    assert from_file.flags.writeable


@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
def test_scaled_decode_hardly_shows(tmp_path, resize):
    y, x = np.mgrid[0:480, 0:640] / 480
    smooth = np.stack([np.sin(8 * x + 3 * y), np.cos(6 * y - x), np.sin(9 * x * y)], axis=-1) * 90 + 128
    Image.fromarray(smooth.astype(np.uint8)).save(tmp_path / "a.jpg", quality=90)
    ref = ImageRef(str(tmp_path / "a.jpg"))
    fast, full = (Preprocess(img_size=56, resize=resize, draft=draft).load(ref) for draft in (True, False))
    assert np.abs(fast.astype(float) - full).mean() < 0.6


def test_arrays_of_every_shape(photo):
    preprocess = Preprocess(img_size=16, background=(0, 0, 0))
    grey = photo[:, :, 0]
    expected = preprocess.apply(np.repeat(grey[:, :, None], 3, axis=2))
    np.testing.assert_array_equal(preprocess.apply(grey), expected)
    np.testing.assert_array_equal(preprocess.apply(grey[:, :, None]), expected)
    opaque = np.dstack([photo, np.full(grey.shape, 255, np.uint8)])
    np.testing.assert_array_equal(preprocess.apply(opaque), preprocess.apply(photo))
    clear = np.dstack([np.full_like(photo, 9), np.zeros(grey.shape, np.uint8)])
    assert (preprocess.apply(clear) == 0).all()
    np.testing.assert_array_equal(preprocess.apply(photo[::-1, ::-1])[::-1, ::-1], preprocess.apply(photo))


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
    ],
)
def test_arrays_that_are_no_images(wrong):
    with pytest.raises(DataError, match="must be uint8 of shape"):
        Preprocess().apply(wrong)


def test_bad_files_raise_bad_image(tmp_path):
    (tmp_path / "a.jpg").write_text("text")
    with pytest.raises(BadImage, match="not an image"):
        Preprocess().load(ImageRef(str(tmp_path / "a.jpg")))


# The record


def test_round_trip_through_json():
    preprocess = Preprocess(
        img_size=96, resize="pad", crop_pct=0.5, interpolation="lanczos", mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0),
        background=(7, 8, 9), draft=False, in_chans=1,
    )  # fmt: skip
    assert Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict()))) == preprocess


def test_whole_numbers_are_floats_where_floats_belong():
    values = Preprocess().to_dict() | {"crop_pct": 1, "std": [1, 1, 1]}
    preprocess = Preprocess.from_dict(values)
    assert preprocess.canonical() == Preprocess(std=(1.0, 1.0, 1.0)).canonical()


def test_canonical_tells_every_field_apart():
    other = {
        "img_size": 96, "resize": "pad", "crop_pct": 0.5, "interpolation": "lanczos", "mean": (0.1, 0.2, 0.3),
        "std": (0.5, 1.0, 2.0), "background": (7, 8, 9), "draft": False, "in_chans": 1,
        "crop_offset": "floor", "fewer_scans": False, "depth": "12",
        "decode_rules": 1,
    }  # fmt: skip
    assert set(other) == {field.name for field in dataclasses.fields(Preprocess)}
    texts = {Preprocess().canonical()} | {Preprocess(**{name: value}).canonical() for name, value in other.items()}
    assert len(texts) == len(other) + 1
    assert all(json.dumps(json.loads(text), sort_keys=True, separators=(",", ":")) == text for text in texts)


def test_from_dict_names_what_is_wrong():
    good = Preprocess().to_dict()
    with pytest.raises(ModelError, match="unknown key colour"):
        Preprocess.from_dict(good | {"colour": 1})
    with pytest.raises(ModelError, match="missing key img_size, mean"):
        Preprocess.from_dict({key: value for key, value in good.items() if key not in ("mean", "img_size")})
    for wrong in (
        {"img_size": "224"}, {"img_size": 0}, {"img_size": True}, {"resize": "stretch"}, {"interpolation": "nearest"},
        {"crop_pct": 0.0}, {"crop_pct": 1.1}, {"mean": [0.5, 0.5]}, {"std": [0.0, 1.0, 1.0]}, {"std": "abc"},
        {"background": [0, 0, 256]}, {"background": [0.5, 0, 0]}, {"draft": 1}, {"mean": [float("nan"), 0.0, 0.0]},
    ):  # fmt: skip
        with pytest.raises(ModelError, match=next(iter(wrong))):
            Preprocess.from_dict(good | wrong)


LATER = ("crop_offset", "fewer_scans", "depth", "decode_rules")


def test_a_record_from_before_the_later_fields_is_the_same_preprocessing():
    # Its canonical text, which fingerprints are made of, is that of the first release, word for word.
    old = {key: value for key, value in Preprocess().to_dict().items() if key not in LATER}
    then = Preprocess(fewer_scans=False).as_before()  # what such a record was made with
    assert Preprocess.from_dict(old) == then
    assert json.loads(then.canonical()) == old | {"rules": 1}


@pytest.mark.parametrize(("height", "width"), [(100, 143), (57, 70), (203, 100), (56, 61)])
def test_squash_and_crop_is_torchvisions_bit_for_bit(height, width):
    image = Image.fromarray(noise(height, width))
    mode = transforms.InterpolationMode.BICUBIC
    reference = transforms.Compose([transforms.Resize((62, 62), mode), transforms.CenterCrop(56)])
    ours = Preprocess(img_size=56, crop_pct=0.9, resize="squash+crop").apply(image)
    np.testing.assert_array_equal(ours, np.array(reference(image)))


@pytest.mark.parametrize("filter_name", ["box", "hamming"])
def test_other_filters_are_pillows(filter_name):
    image = Image.fromarray(noise(80, 130))
    ours = Preprocess(img_size=32, resize="squash", interpolation=filter_name).apply(image)
    expected = image.resize((32, 32), Image.Resampling[filter_name.upper()])
    np.testing.assert_array_equal(ours, np.array(expected))


def test_odd_margins_go_where_the_source_puts_them():
    image = np.arange(39, dtype=np.uint8)[None, :, None].repeat(32, 0).repeat(3, 2)  # a margin of 7: 3.5 a side
    ours = {name: Preprocess(img_size=32, crop_offset=name).apply(image)[0, 0, 0] for name in ("round", "floor")}
    assert ours == {"round": 4, "floor": 3}


def test_impossible_values_are_refused_together():
    with pytest.raises(ValueError, match=r"img_size is 0.*crop_pct is 2\.0"):
        Preprocess(img_size=0, crop_pct=2.0)
