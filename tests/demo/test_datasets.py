"""Data sets from every layout people have, a clear line when there is no network, and never half a folder."""

import gzip
import json
import struct
import sys
import tarfile
import types
from collections import Counter
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image

from vitembed.demo.datasets import cifar10, fashion_mnist, imagenette, stratified_choice
from vitembed.demo.layouts import FASHION_CLASSES, read_idx
from vitembed.errors import DataError


def idx_bytes(array):
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx_files(folder, *, zipped):
    """20 training and 10 test images, two and one per class; pixel value = position in its split."""
    folder.mkdir(parents=True)
    for prefix, num in (("train", 20), ("t10k", 10)):
        pixels = np.broadcast_to(np.arange(num, dtype=np.uint8)[:, None, None], (num, 28, 28))
        for kind, array in (("images-idx3", pixels), ("labels-idx1", np.arange(num, dtype=np.uint8) % 10)):
            name = folder / f"{prefix}-{kind}-ubyte"
            data = idx_bytes(np.ascontiguousarray(array))
            name.with_name(name.name + ".gz").write_bytes(gzip.compress(data)) if zipped else name.write_bytes(data)
    return folder


def write_class_folders(root, held_out="test", classes=("cat", "dog"), suffix=".jpg"):
    for split in ("train", held_out):
        for number, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (8, 8), (number * 90, i * 20, 5)).save(root / split / name / f"{i}{suffix}", "JPEG")
    return root


def images_below(root):
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.suffix not in ("", ".json"))


def fake_torchvision(monkeypatch, **datasets):
    """Replace torchvision's data sets; those not named fail the test when touched."""
    module = types.ModuleType("vitembed._torchvision")
    module.import_torchvision = lambda: types.SimpleNamespace(datasets=types.SimpleNamespace(**datasets))
    monkeypatch.setitem(sys.modules, "vitembed._torchvision", module)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("inside", [".", "FashionMNIST/raw", "fashion-mnist", "fashion-mnist/FashionMNIST/raw"])
def test_fashion_mnist_from_idx_files(tmp_path, monkeypatch, zipped, inside):
    fake_torchvision(monkeypatch)
    write_idx_files(tmp_path / "root" / inside, zipped=zipped)
    out = fashion_mnist(tmp_path / "out", tmp_path / "root")
    assert out == tmp_path / "out"
    assert len(images_below(out)) == 30
    assert sorted(path.name for path in (out / "train").iterdir()) == sorted(FASHION_CLASSES)
    with Image.open(out / "train" / "ankle-boot" / "00019.png") as image:
        assert (image.size, image.mode, image.getpixel((3, 3))) == ((28, 28), "L", 19)
    with Image.open(out / "test" / "t-shirt" / "00000.png") as image:
        assert image.getpixel((3, 3)) == 0


def test_class_folders_are_copied_byte_for_byte(tmp_path):
    root = write_class_folders(tmp_path / "root")
    (root / "train" / "cat" / ".DS_Store").write_bytes(b"junk")
    out = cifar10(tmp_path / "out", root)
    assert images_below(out) == [
        f"{s}/{c}/{i}.jpg" for s in ("test", "train") for c in ("cat", "dog") for i in range(4)
    ]
    assert (out / "test/dog/2.jpg").read_bytes() == (root / "test/dog/2.jpg").read_bytes()


def test_imagenette_names_its_classes_and_calls_val_test(tmp_path):
    write_class_folders(tmp_path / "r" / "imagenette2-160", "val", ("n01440764", "n02102040"), ".JPEG")
    out = imagenette(tmp_path / "out", tmp_path / "r")
    assert sorted(path.relative_to(out).as_posix() for path in out.glob("*/*")) == [
        "test/english-springer",
        "test/tench",
        "train/english-springer",
        "train/tench",
    ]
    assert len(images_below(out)) == 16


def test_imagenette_from_the_archive_people_fetched_by_hand(tmp_path, monkeypatch):
    write_class_folders(tmp_path / "made" / "imagenette2-160", "val", ("n01440764", "n02102040"), ".JPEG")
    (tmp_path / "root").mkdir()
    with tarfile.open(tmp_path / "root" / "imagenette2-160.tgz", "w:gz") as archive:
        archive.add(tmp_path / "made" / "imagenette2-160", "imagenette2-160")

    def unpack(root, size, download):
        assert (size, download) == ("160px", True)
        with tarfile.open(root / "imagenette2-160.tgz") as archive:
            archive.extractall(root)

    fake_torchvision(monkeypatch, Imagenette=unpack)
    out = imagenette(tmp_path / "out", tmp_path / "root")
    assert len(images_below(out)) == 16
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "out", "root"]
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["imagenette2-160.tgz"]


def cifar_of(train_size, test_size):
    class CIFAR10:
        classes = ("airplane", "automobile")

        def __init__(self, root, train=True, download=False):
            if download:
                (root / "cifar-10-batches-py").mkdir()
            num = train_size if train else test_size
            self.data = np.broadcast_to(np.arange(num, dtype=np.uint8)[:, None, None, None], (num, 32, 32, 3)).copy()
            self.targets = [i % 2 for i in range(num)]

    return CIFAR10


def test_cifar10_is_downloaded_into_a_folder_that_goes_away(tmp_path, monkeypatch):
    fake_torchvision(monkeypatch, CIFAR10=cifar_of(8, 4))
    seen = []
    out = cifar10(tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (12, 12)
    assert list(tmp_path.iterdir()) == [out]
    assert Counter(path.parent.relative_to(out).as_posix() for path in out.rglob("*.png")) == {
        "train/airplane": 4,
        "train/automobile": 4,
        "test/airplane": 2,
        "test/automobile": 2,
    }
    with Image.open(out / "train/automobile/00005.png") as image:
        assert (image.size, image.getpixel((0, 0))) == ((32, 32), (5, 5, 5))


def test_damaged_cifar10_batches_are_named(tmp_path, monkeypatch):
    def refuse(root, train, download):
        raise RuntimeError("Dataset not found or corrupted. You can use download=True to download it")

    fake_torchvision(monkeypatch, CIFAR10=refuse)
    (tmp_path / "root" / "cifar-10-batches-py").mkdir(parents=True)
    with pytest.raises(DataError, match=r"cifar-10-batches-py is damaged"):
        cifar10(tmp_path / "out", tmp_path / "root")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("get", "name", "set_name"),
    [
        (fashion_mnist, "FashionMNIST", "fashion-mnist"),
        (cifar10, "CIFAR10", "cifar10"),
        (imagenette, "Imagenette", "imagenette"),
    ],
)
@pytest.mark.parametrize(
    "error",
    [
        URLError("no host"),
        RuntimeError("Error downloading x:\nTried a, got:\nno host\n"),
        ConnectionResetError("no host"),
    ],
)
def test_offline_is_one_clear_line_and_leaves_nothing(tmp_path, monkeypatch, capsys, get, name, set_name, error):
    def offline(root, *args, **kwargs):
        print("Downloading ...")
        (root / "half.tgz").write_bytes(b"half")
        raise error

    fake_torchvision(monkeypatch, **{name: offline})
    with pytest.raises(DataError) as caught:
        get(tmp_path / "new" / "out")
    message = str(caught.value)
    assert message.startswith(f"could not download {set_name} (")
    assert "no host" in message
    assert "): connect to the network, or pass --data-root with " in message
    assert "\n" not in message
    assert list((tmp_path / "new").iterdir()) == []
    assert capsys.readouterr().out == ""


def test_a_data_root_without_the_set_says_what_may_lie_there(tmp_path):
    with pytest.raises(DataError, match=r"found no cifar10 in .*: expected there cifar-10-batches-py, .*train,test"):
        cifar10(tmp_path / "out", tmp_path)
    with pytest.raises(DataError, match="found no imagenette"):
        imagenette(tmp_path / "out", tmp_path / "absent")


def test_a_subset_keeps_shares_and_is_seeded(tmp_path):
    root = write_idx_files(tmp_path / "root", zipped=True)
    names = {}
    for key, seed in (("a", 0), ("b", 0), ("c", 1)):
        out = fashion_mnist(tmp_path / key, root, max_images=15, seed=seed)
        names[key] = images_below(out)
        counts = Counter(name.split("/")[0] for name in names[key])
        assert counts == {"train": 10, "test": 5}
        assert Counter(name.split("/")[1] for name in names[key] if name.startswith("train")) == Counter(
            FASHION_CLASSES
        )
    assert names["a"] == names["b"] != names["c"]
    with pytest.raises(DataError, match="max_images must be at least 1, got 0"):
        fashion_mnist(tmp_path / "d", root, max_images=0)


def test_an_equal_call_uses_what_is_there_and_another_is_refused(tmp_path):
    root = write_idx_files(tmp_path / "root", zipped=True)
    out = fashion_mnist(tmp_path / "out", root, max_images=10)
    before = (out / "dataset.json").stat().st_mtime_ns
    assert fashion_mnist(out, tmp_path / "gone", max_images=10) == out
    assert (out / "dataset.json").stat().st_mtime_ns == before
    assert json.loads((out / "dataset.json").read_text()) == {"dataset": "fashion-mnist", "max_images": 10, "seed": 0}
    with pytest.raises(DataError, match=r"remove it or choose another folder"):
        fashion_mnist(out, root)
    with pytest.raises(DataError, match=r"is not empty"):
        fashion_mnist(root, root)


def test_an_interrupted_write_leaves_nothing(tmp_path):
    root = write_idx_files(tmp_path / "root", zipped=True)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fashion_mnist(tmp_path / "out", root, progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not an IDX file"),
        (b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", "is not an IDX file of unsigned bytes"),
        (b"\0\0\x08\x03\0\0", "is not an IDX file"),
        (b"\0\0\x08\x01\0\0\0\x05abc", "holds 3 values, its header says 5"),
    ],
)
def test_a_damaged_idx_file_is_named(tmp_path, data, message):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(DataError, match=message):
        read_idx(tmp_path / "x")
    (tmp_path / "x.gz").write_bytes(gzip.compress(b"a" * 1000)[:20])
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(tmp_path / "x.gz")


def test_stratified_choice_against_shares_by_hand():
    groups = ["a"] * 50 + ["b"] * 30 + ["c"] * 20
    for num in (1, 7, 10, 33, 99, 100, 500):
        chosen = stratified_choice(groups, num, np.random.default_rng(0))
        assert chosen == sorted(set(chosen))
        assert len(chosen) == min(num, 100)
        for group, size in Counter(groups).items():
            assert abs(sum(groups[row] == group for row in chosen) - min(num, 100) * size / 100) < 1
    assert stratified_choice(groups, 10, np.random.default_rng(0)) != stratified_choice(
        groups, 10, np.random.default_rng(1)
    )
