"""The three tools by one interface: how each indexes a folder and searches it, and what its index then holds."""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from side_by_side.measure import Command, Run, run
from side_by_side.weights import RCLIP_MODEL
from vitembed.collection.collection import Collection
from vitembed.embeddings import Embeddings
from vitembed.images.source import FileEntry
from vitembed.workspace import find_workspace

_HERE = Path(__file__).parent


class Failed(Exception):
    """A tool ended with an error; the message is the end of what it said."""


@dataclass(frozen=True)
class Tool:
    """One of them; ``state`` is always a folder of its own for the index."""

    name: str
    weights: Path
    """Where ``weights.py`` wrote."""

    def prepare(self, state: Path) -> None:
        """What comes before the first run, once."""
        state.mkdir(parents=True)

    def index(self, photos: Path, state: Path, query: Path) -> list[Command]:
        """From a folder to something that can be searched, or up to date again; run one after the other.

        Args:
            photos: The folder.
            state: Where the index lies.
            query: An image for the tool that cannot index without a search.
        """
        raise NotImplementedError

    def query(self, image: Path, photos: Path, state: Path) -> Command:
        """The ten nearest of an image."""
        raise NotImplementedError

    def vectors(self, state: Path) -> dict[str, np.ndarray]:
        """What the index holds, by the path of the file; empty if there is none."""
        raise NotImplementedError

    def fill(self, state: Path, names: Sequence[str], vectors: np.ndarray) -> None:
        """Put vectors [n, d] of images that do not exist into an index that ``index`` made, in its own format."""
        raise NotImplementedError

    def known(self, state: Path, entries: Iterable[FileEntry]) -> bool:
        """Make the index believe that it has these files; False if it keeps no such record."""
        raise NotImplementedError

    def indexed(self, photos: Path, state: Path, query: Path) -> Run:
        """Run ``index`` and add its commands up.

        Raises:
            Failed: If one of them ends with an error.
        """
        runs = []
        for command in self.index(photos, state, query):
            runs.append(run(command))
            if runs[-1].status != 0:
                raise Failed(f"{self.name}: {runs[-1].output.strip()}")
        wall, cpu = (sum(values) for values in zip(*((one.wall, one.cpu) for one in runs), strict=True))
        return Run(wall, cpu, max(one.memory for one in runs), 0, "".join(one.output for one in runs))


@dataclass(frozen=True)
class Ours(Tool):
    name: str = "vitembed"
    weights: Path = Path()

    def index(self, photos: Path, state: Path, query: Path) -> list[Command]:
        model = os.fspath(self.weights / "open_clip")
        return [self._command("index", os.fspath(photos), "--model", model, "--workspace", os.fspath(state))]

    def query(self, image: Path, photos: Path, state: Path) -> Command:
        return self._command("search", os.fspath(image), "-k", "10", "--paths", "--workspace", os.fspath(state))

    def vectors(self, state: Path) -> dict[str, np.ndarray]:
        if not (state / ".vitembed" / "index").exists():
            return {}
        with Collection.open(find_workspace(state).index_dir) as collection:
            found = collection.embeddings()
        return dict(zip(found.ids, found.vectors, strict=True))

    def fill(self, state: Path, names: Sequence[str], vectors: np.ndarray) -> None:
        with Collection.open(find_workspace(state).index_dir) as opened:
            fingerprint, dim = opened.fingerprint, opened.dim
        with Collection.create(find_workspace(state).index_dir, fingerprint=fingerprint, dim=dim) as collection:
            collection.update_from(Embeddings(_of_width(vectors, dim), list(names), fingerprint))

    def known(self, state: Path, entries: Iterable[FileEntry]) -> bool:
        from index_unchanged import fill

        with Collection.open(find_workspace(state).index_dir) as opened:
            fingerprint, dim = opened.fingerprint, opened.dim
        with Collection.create(find_workspace(state).index_dir, fingerprint=fingerprint, dim=dim) as collection:
            fill(collection, list(entries), dim)
        return True

    @staticmethod
    def _command(*arguments: str) -> Command:
        return Command([sys.executable, "-m", "vitembed_cli", *arguments])


@dataclass(frozen=True)
class Rclip(Tool):
    """Its one command brings the index up to date and then searches; ``-n`` leaves out the first."""

    name: str = "rclip"
    weights: Path = Path()
    python: Path = Path()

    def prepare(self, state: Path) -> None:
        super().prepare(state)
        for name in (RCLIP_MODEL, "tokenizer"):
            (state / name).symlink_to(self.weights.absolute() / "rclip" / name)

    def index(self, photos: Path, state: Path, query: Path) -> list[Command]:
        return [self._command(query, photos, state)]

    def query(self, image: Path, photos: Path, state: Path) -> Command:
        return self._command(image, photos, state, "-n")

    def vectors(self, state: Path) -> dict[str, np.ndarray]:
        if not (state / "db.sqlite3").exists():
            return {}
        with sqlite3.connect(state / "db.sqlite3") as database:
            rows = database.execute("SELECT filepath, vector FROM images WHERE deleted IS NULL").fetchall()
        return {path: np.frombuffer(vector, np.float32) for path, vector in rows}

    def fill(self, state: Path, names: Sequence[str], vectors: np.ndarray) -> None:
        self._insert(state, [(name, 0.0, 1, vector.tobytes()) for name, vector in zip(names, vectors, strict=True)])

    def known(self, state: Path, entries: Iterable[FileEntry]) -> bool:
        vector = np.full(512, 512**-0.5, np.float32).tobytes()
        stats = ((os.fsdecode(entry.path), Path(os.fsdecode(entry.path)).stat()) for entry in entries)
        self._insert(state, [(path, stat.st_mtime, stat.st_size, vector) for path, stat in stats])
        return True

    @staticmethod
    def _insert(state: Path, rows: Sequence[tuple[str, float, int, bytes]]) -> None:
        with sqlite3.connect(state / "db.sqlite3") as database:
            database.executemany(
                "INSERT INTO images(filepath, modified_at, size, vector, hash) VALUES (?, ?, ?, ?, NULL)", rows
            )
        database.close()

    def _command(self, image: Path, photos: Path, state: Path, *flags: str) -> Command:
        arguments = [self.python.parent / "rclip", "-f", *flags, image.absolute()]
        return Command([*map(os.fspath, arguments)], {"RCLIP_DATADIR": os.fspath(state.absolute())}, photos)


@dataclass(frozen=True)
class ClipRetrieval(Tool):
    """``inference``, then ``index`` (autofaiss); by ``clip_retrieval_run.py``, which says what is replaced."""

    name: str = "clip-retrieval"
    weights: Path = Path()
    python: Path = Path()
    size: str = "base"

    def index(self, photos: Path, state: Path, query: Path) -> list[Command]:
        # It goes on from nothing: what is there is written over, and metadata that is there stops it.
        return [
            Command(["rm", "-rf", os.fspath(state / "embeddings"), os.fspath(state / "index")]),
            self._command("inference", photos, state),
            self._command("index", state),
        ]

    def query(self, image: Path, photos: Path, state: Path) -> Command:
        return self._command("filter", image, state)

    def vectors(self, state: Path) -> dict[str, np.ndarray]:
        import pyarrow.parquet as parquet

        found: dict[str, np.ndarray] = {}
        for file in sorted((state / "embeddings" / "img_emb").glob("*.npy")):
            metadata = state / "embeddings" / "metadata" / file.name.replace("img_emb", "metadata")
            names = parquet.read_table(metadata.with_suffix(".parquet"))["image_path"].to_pylist()
            found |= dict(zip(names, np.load(file).astype(np.float32), strict=True))
        return found

    def fill(self, state: Path, names: Sequence[str], vectors: np.ndarray) -> None:
        import pyarrow as pa
        import pyarrow.parquet as parquet

        np.save(state / "embeddings" / "img_emb" / "img_emb_1.npy", vectors.astype(np.float16))
        table = pa.table({"image_path": list(names)})
        parquet.write_table(table, state / "embeddings" / "metadata" / "metadata_1.parquet")
        run(Command(["rm", "-rf", os.fspath(state / "index")]))
        done = run(self._command("index", state))
        if done.status != 0:
            raise Failed(f"{self.name}: {done.output.strip()[-500:]}")

    def known(self, state: Path, entries: Iterable[FileEntry]) -> bool:
        return False

    def _command(self, command: str, *arguments: Path) -> Command:
        script = os.fspath(_HERE / "clip_retrieval_run.py")
        fixed = [os.fspath(self.python), script, self.size, os.fspath(self.weights), command]
        paths = os.pathsep.join(map(os.fspath, (_HERE.parent, _HERE.parents[1])))
        return Command([*fixed, *map(os.fspath, arguments)], {"PYTHONPATH": paths})


def _of_width(vectors: np.ndarray, dim: int) -> np.ndarray:
    """The same vectors, wider: ours gives the tower's own width, the peers' are projected to 512."""
    return np.pad(vectors, ((0, 0), (0, max(0, dim - vectors.shape[1]))))[:, :dim]
