"""What a power cut leaves: the old state or the new one, whichever writes had reached the disk.

Every fsync, rename, exchange and unlink of a publish is recorded, and with it what changed since the step before. Then
each moment is taken for the last one: of the changes of folders that no fsync of that folder has made safe any subset
is there, and content that was not fsynced is missing, cut short or zeros (as in ALICE, Pillai et al. 2014, and
CrashMonkey, Mohan et al. 2018). Each such disk is built and read by the code that users would run.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from vitembed import atomic
from vitembed.config import ViTConfig
from vitembed.embeddings import Embeddings
from vitembed.errors import DataError
from vitembed.images.preprocess import Preprocess
from vitembed.model.checkpoint import read_model, save_model
from vitembed.model.encoder import Encoder
from vitembed.model.export.formats import export
from vitembed.model.kept import keep_finished
from vitembed.model.vit import VisionTransformer
from vitembed.pretrain.keep.checkpoint_io import find_checkpoint, read_checkpoint, write_checkpoint
from vitembed.pretrain.keep.run_folder import sweep, write_state
from vitembed.probe.labelling.session import LabelSession
from vitembed.probe.saving import SavedProbe
from vitembed.workspace import Workspace

MOST_LOST = 4
"""Of more changes at once all subsets would be too many: each alone, all but one, none, all."""


@dataclass
class Change:
    """One step in folders that is there or not: entries ``(folder, name)`` and what they then point to."""

    entries: dict[tuple[int, str], int | None]
    safe: bool = False


@dataclass
class Disk:
    """What was written, and how much of it would survive."""

    first: dict[tuple[int, str], int]
    changes: list[Change] = field(default_factory=list)
    content: dict[int, bytes | None] = field(default_factory=dict)
    """By file; None: a folder."""
    durable: dict[int, bytes | None] = field(default_factory=dict)

    def states(self):
        """Each disk that a power cut now may leave, as entries and content."""
        open_ones = [number for number, change in enumerate(self.changes) if not change.safe]
        if len(open_ones) <= MOST_LOST:
            subsets = itertools.chain.from_iterable(
                itertools.combinations(open_ones, num) for num in range(len(open_ones) + 1)
            )
        else:
            one = [(number,) for number in open_ones]
            subsets = [(), tuple(open_ones), *one, *(tuple(set(open_ones) - set(each)) for each in one)]
        unsynced = [file for file, data in self.content.items() if data != self.durable.get(file, b"") and data]
        spoilt = [self.content]
        if unsynced:
            for spoil in (lambda data: None, lambda data: data[: len(data) // 2], lambda data: bytes(len(data))):
                spoilt.append(
                    self.content
                    | {
                        file: self.durable.get(file, b"") if spoil(b"x") is None else spoil(self.content[file])
                        for file in unsynced
                    }
                )
        for kept in subsets:
            entries = dict(self.first)
            for number, change in enumerate(self.changes):
                if change.safe or number in kept:
                    entries.update(change.entries)
            for content in spoilt:
                yield {key: file for key, file in entries.items() if file is not None}, content


class Recorder:
    """Watches a folder while something is published in it."""

    def __init__(self, root: Path, monkeypatch) -> None:
        self.root = root
        self.known: dict[tuple[int, int], int] = {}
        self.numbers = itertools.count(1)
        entries, content = self.scan()
        self.disk = Disk(entries, [], content, dict(content))
        self.entries = entries
        self.moments: list[Disk] = []
        for name in ("rename", "replace", "unlink", "rmdir", "link", "mkdir"):
            monkeypatch.setattr(os, name, self.step(getattr(os, name)))
        monkeypatch.setattr(os, "remove", os.unlink)
        monkeypatch.setattr(os, "fsync", self.fsync(os.fsync))
        monkeypatch.setattr(atomic, "exchange", self.step(atomic.exchange))
        monkeypatch.setattr(shutil, "_use_fd_functions", False)  # with paths rather than descriptors

    def scan(self):
        entries, content = {}, {}
        alive = {}

        def walk(folder: Path, number: int) -> None:
            for entry in os.scandir(folder):
                status = entry.stat(follow_symlinks=False)
                key = (status.st_dev, status.st_ino)
                file = alive[key] = self.known.get(key) or alive.get(key) or next(self.numbers)
                entries[number, entry.name] = file
                is_folder = entry.is_dir(follow_symlinks=False)
                content[file] = None if is_folder else Path(entry.path).read_bytes()
                if is_folder:
                    walk(Path(entry.path), file)

        walk(self.root, 0)
        self.known = alive
        return entries, content

    def look(self, *, together: bool = False) -> None:
        """Record what changed since the last look."""
        entries, content = self.scan()
        keys = {**self.entries, **entries}
        changed = {key: entries.get(key) for key in keys if entries.get(key) != self.entries.get(key)}
        groups = [changed] if together and changed else [{key: file} for key, file in changed.items()]
        self.disk.changes += [Change(group) for group in groups]
        self.entries = entries
        for file, data in content.items():
            if data is None:
                self.disk.durable[file] = None
        self.disk.content |= content
        if groups:
            self.moments.append(copy.deepcopy(self.disk))

    def step(self, function):
        def run(*args, **options):
            self.look()
            result = function(*args, **options)
            self.look(together=True)
            return result

        return run

    def fsync(self, function):
        def run(descriptor):
            self.look()
            self.moments.append(copy.deepcopy(self.disk))
            function(descriptor)
            status = os.fstat(descriptor)
            root = os.stat(self.root)
            key = (status.st_dev, status.st_ino)
            file = 0 if key == (root.st_dev, root.st_ino) else self.known.get(key)
            if file is None:
                return
            self.disk.durable[file] = self.disk.content.get(file)
            for change in self.disk.changes:
                change.safe |= any(folder == file for folder, _ in change.entries)

        return run


def build(entries, content, root: Path) -> None:
    """Put a disk into a folder."""

    def put(folder: Path, number: int) -> None:
        for (parent, name), file in entries.items():
            if parent == number:
                if content[file] is None:
                    (folder / name).mkdir()
                    put(folder / name, file)
                else:
                    (folder / name).write_bytes(content[file])

    root.mkdir()
    put(root, 0)


@pytest.fixture
def fast(request):
    """In memory where there is such a place."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory, prefix="vitembed-cut-") as folder:
        yield Path(folder)


@pytest.fixture
def power_cut(fast):
    """``power_cut(prepare, publish, read)``: read every disk that is left, and give what was read at each moment."""

    def check(prepare, publish, read, *, without_exchange: bool = False):
        root = fast / "disk"
        root.mkdir()
        prepare(root)
        numbers = itertools.count()

        def read_copy():  # reading may mend what it finds
            place = fast / f"copy{next(numbers)}"
            shutil.copytree(root, place, symlinks=True)
            return read(place)

        old = read_copy()
        with pytest.MonkeyPatch.context() as patch:
            if without_exchange:
                patch.setattr(atomic, "exchange", lambda first, second: False)
            recorder = Recorder(root, patch)
            publish(root)
            recorder.look()
        new = read_copy()
        assert new != old
        assert len(recorder.moments) > 3
        seen, last = set(), set()
        for moment in [*recorder.moments, recorder.disk]:
            for entries, content in moment.states():
                key = hash(
                    (tuple(sorted(entries.items())), tuple((file, content[file]) for file in set(entries.values())))
                )
                if key in seen and moment is not recorder.disk:
                    continue
                seen.add(key)
                with tempfile.TemporaryDirectory(dir=fast) as place:
                    build(entries, content, Path(place, "disk"))
                    found = read(Path(place, "disk"))
                assert found in (old, new), f"neither the old nor the new state: {found}"
                if moment is recorder.disk:
                    last.add(found == new)
        assert last == {True}, "what was published is lost although the call had returned"
        return len(seen)

    return check


def vit(seed: int, **fields) -> VisionTransformer:
    torch.manual_seed(seed)
    shape = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 1}
    return VisionTransformer(ViTConfig(**{**shape, **fields})).eval()


def model_in(place: str):
    known = {}

    def read(root: Path):
        found = atomic.standing_folder(root / place)
        if not found.exists():
            return None
        content = tuple((file.name, file.read_bytes()) for file in sorted(found.iterdir()) if file.is_file())
        if content not in known:
            known[content] = read_model(root / place).fingerprint
        return known[content]

    return read


@pytest.mark.parametrize("without_exchange", [False, True], ids=["exchange", "two renames"])
def test_a_model(power_cut, without_exchange):
    fingerprint_in = model_in("models/mine")

    def prepare(root):
        save_model(root / "models" / "mine", vit(0), Preprocess(img_size=16))
        (root / "models" / "mine" / "notes.txt").write_text("by hand")
        (root / "models" / "mine" / "more").mkdir()
        (root / "models" / "mine" / "more" / "a.csv").write_text("1,2")

    def read(root):
        found = atomic.standing_folder(root / "models" / "mine")
        assert (found / "notes.txt").read_text() == "by hand"
        assert (found / "more" / "a.csv").read_text() == "1,2"
        fingerprint = fingerprint_in(root)
        sweep(root / "models" / "mine")  # as the next run does
        assert [entry.name for entry in (root / "models").iterdir()] == ["mine"]
        assert (root / "models" / "mine" / "notes.txt").read_text() == "by hand"
        assert fingerprint_in(root) == fingerprint is not None
        return fingerprint

    power_cut(
        prepare,
        lambda root: save_model(root / "models" / "mine", vit(1), Preprocess(img_size=16)),
        read,
        without_exchange=without_exchange,
    )


def test_the_first_model(power_cut):
    power_cut(
        lambda root: None,
        lambda root: save_model(root / "models" / "mine", vit(1), Preprocess(img_size=16)),
        model_in("models/mine"),
    )


def test_a_finished_model_that_another_replaces(power_cut):
    """It is in its place or kept, at every moment."""

    def publish(root):
        place = Workspace(root)
        with keep_finished(place.model_dir, place):
            save_model(place.model_dir, vit(1), Preprocess(img_size=16))

    def prepare(root):
        save_model(root / ".vitembed" / "model", vit(0), Preprocess(img_size=16))
        finished.append(model_in(".vitembed/model")(root))

    finished = []
    fingerprint_in = model_in(".vitembed/model")

    def read(root):
        kept = [fingerprint_in_kept(root / path) for path in (root / ".vitembed" / "models").glob("[!.]*")]
        found = fingerprint_in(root)
        assert finished[0] in (found, *kept)
        return found

    def fingerprint_in_kept(folder):
        return model_in(folder.name)(folder.parent)

    power_cut(prepare, publish, read)


def test_a_training_state(power_cut):
    def state(step):
        return {"global_step": step, "elapsed_seconds": 1.0, "state_dict": {"weight": torch.full((4,), float(step))}}

    def prepare(root):
        write_checkpoint(state(1), root / "last.ckpt")
        write_checkpoint(state(2), root / "last.ckpt")

    def read(root):
        found = read_checkpoint(find_checkpoint(root))
        assert found["state_dict"]["weight"].tolist() == [found["global_step"]] * 4
        return found["global_step"]

    power_cut(prepare, lambda root: write_checkpoint(state(3), root / "last.ckpt"), read)


def test_the_record_of_a_run(power_cut):
    power_cut(
        lambda root: write_state(root, {"status": "running"}),
        lambda root: write_state(root, {"status": "complete"}),
        lambda root: json.loads((root / "run.json").read_text())["status"],
    )


def test_labels(power_cut):
    def session(root, **options):
        vectors = np.random.default_rng(0).standard_normal((12, 4)).astype(np.float32)
        return LabelSession(
            Embeddings(vectors, [f"{row}.png" for row in range(12)], ""),
            labels_file=root / "labels" / "a.csv",
            **options,
        )

    def prepare(root):
        session(root, classes=["cat", "dog"]).answer([0, 1], ["cat", "dog"])

    power_cut(
        prepare,
        lambda root: session(root).answer([2, 3], ["dog", "cat"]),
        lambda root: [label for label in session(root).labels if label],
    )


@pytest.mark.parametrize(
    ("to", "name"), [("timm", "enc"), ("hf", "enc"), ("timm", "enc.safetensors"), ("onnx", "e.onnx")]
)
def test_an_export(power_cut, to, name):
    def write(seed):
        encoder = Encoder(vit(seed), Preprocess(img_size=16), name="enc")
        return lambda root: export(encoder, to, root / name, force=True)

    def read(root):
        if (root / name).is_dir():
            return {file.name: file.read_bytes() for file in (root / name).iterdir()}
        if name.endswith(".safetensors"):  # its card is text for people, whole but of either
            assert (root / "enc.md").read_text().rstrip().count("fingerprint") == 1
        return (root / name).read_bytes()

    power_cut(write(0), write(1), read)


@pytest.mark.parametrize("suffix", ["npy", "npz", "csv", "parquet", "safetensors"])
def test_vectors(power_cut, suffix):
    def write(seed, num):
        vectors = np.random.default_rng(seed).standard_normal((num, 3)).astype(np.float32)
        found = Embeddings(vectors, [f"{seed}-{row}" for row in range(num)], f"f{seed}", np.arange(num))
        return lambda root: found.save(root / f"v.{suffix}")

    def read(root):
        found = Embeddings.load(root / f"v.{suffix}")
        return found.vectors.tolist(), found.ids, found.fingerprint, found.labels.tolist()

    power_cut(write(0, 3), write(1, 4), read)


@pytest.mark.parametrize("suffix", ["npy", "csv"])
def test_the_first_vectors(power_cut, suffix):
    found = Embeddings(np.ones((2, 3), np.float32), ["a", "b"], "f")

    def read(root):
        return Embeddings.load(root / f"v.{suffix}").ids if (root / f"v.{suffix}").exists() else None

    power_cut(lambda root: None, lambda root: found.save(root / f"v.{suffix}"), read)


def test_a_probe(power_cut):
    def write(seed):
        coef = np.random.default_rng(seed).standard_normal((1, 3))
        probe = SavedProbe(classes=["a", "b"], coef=coef, intercept=np.zeros(1), fingerprint="f", threshold=None)
        return lambda root: probe.save(root / "p.safetensors")

    power_cut(write(0), write(1), lambda root: SavedProbe.load(root / "p.safetensors").coef.tolist())


def test_the_derived_files_of_an_index(power_cut):
    from vitembed.collection.ann.cache_file import CacheFile, CacheKey

    def cache(root):
        return CacheFile(root / "vectors.faiss", CacheKey(collection_id="c", fingerprint="f", dim=3), 1)

    def write(data):
        return lambda root: cache(root).write(lambda file: file.write(data), {})

    def read(root):
        try:
            return cache(root).load(lambda path, size, manifest: path.read_bytes())
        except (DataError, FileNotFoundError):  # found damaged: made again from the catalogue, as ``write`` does
            write(b"new" * 40)(root)
            return read(root)

    power_cut(write(b"old" * 30), write(b"new" * 40), read)


def test_the_image_cache(power_cut):
    from vitembed.images.cache_files import Rows, find_or_build
    from vitembed.images.source import ImageRef

    shade = {"value": 7}

    def rows(start):
        for _ in range(start, 3):
            yield Rows(np.full((1, 4, 4, 3), shade["value"], np.uint8), np.ones(1, np.float32), {})

    def found(root, seed):
        refs = [ImageRef(f"/nowhere/{seed}-{number}.png") for number in range(3)]
        kept = find_or_build(root / "cache", refs, size=4, variant={}, make_rows=rows, progress=None)
        return np.asarray(kept.images).tolist(), kept.aspect.tolist()

    def read(root):
        existing = (root / "cache").is_dir() and any(
            entry.is_dir() and not entry.suffix for entry in (root / "cache").iterdir()
        )
        assert found(root, 1) == ([[[[7] * 3] * 4] * 4] * 3, [1.0] * 3)
        return existing

    power_cut(lambda root: None, lambda root: found(root, 1), read)


def test_the_catalogue_trusts_sqlite_and_asks_it_to_wait_for_the_disk(tmp_path):
    from vitembed.collection.collection import Collection

    with Collection.create(tmp_path / "index", fingerprint="f", dim=3) as collection:
        (level,) = collection._catalog._db.execute("PRAGMA synchronous").fetchone()
    assert level >= 2  # FULL, EXTRA


@pytest.mark.parametrize("lost", ["file", "folder"])
def test_these_tests_see_a_missing_fsync(power_cut, monkeypatch, lost):
    """The same publish without one of its two fsyncs: the states above must contain one that is neither, or lost."""
    monkeypatch.setattr(atomic, "_fsync" if lost == "file" else "fsync_directory", lambda path: None)
    with pytest.raises((AssertionError, ValueError)):
        power_cut(
            lambda root: write_state(root, {"status": "running"}),
            lambda root: write_state(root, {"status": "complete"}),
            lambda root: json.loads((root / "run.json").read_text())["status"],
        )


with contextlib.suppress(ImportError):
    import onnx  # noqa: F401  # imported before anything is recorded
