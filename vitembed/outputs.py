"""Files that a user names to be written: checked before the work, and nothing that is not ours is ever replaced.

The rule, the same for every command and for Python:

- A file that is there is replaced only if it is empty or vitembed wrote it, as one of the same kind (its content says
  so); then whole or not at all, with its mode. Anything else is refused: a picture, a text, a probe where a page goes.
- A link is written through to the file that it names.
- A pipe, a character device, ``/dev/stdout`` and ``/dev/fd/N`` are written to. A disk, a socket, a folder are refused.
"""
# ruff: noqa: PTH109, PTH113, PTH114, PTH115, PTH116, PTH118, PTH120, PTH122
# Paths stay plain strings where links are followed step by step: Path would drop what tells them apart.

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vitembed.atomic import atomic_path
from vitembed.errors import DataError, printable

GENERATOR = '<meta name="generator" content="vitembed">'
"""In the head of every page: what tells our pages from all others."""
_OLD_PAGE = b"--back: #f6f6f4; --card: #fff"  # in the style of every page from before there was ``GENERATOR``
PICTURE_SOFTWARE = ("Software", "vitembed")
"""Text chunk of every PNG that we draw."""
_HEAD_BYTES = 8192
_LARGEST_HEADER = 256 << 20
_DESCRIPTORS = re.compile(r"/dev/fd|/proc/(self|thread-self|\d+)(/task/\d+)?/fd")
_STANDARD = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}


@dataclass(frozen=True)
class Kind:
    """A kind of file that a user may name as an output."""

    what: str
    """In words, with its article."""
    suffixes: tuple[str, ...]
    """Lower case; empty: any that does not claim an image."""
    is_ours: Callable[[Path], bool]
    """Whether a file that is there is one of these; may raise whatever its parsers raise."""


def check_outputs(*outputs: tuple[str | os.PathLike[str] | None, Kind]) -> None:
    """Refuse, before the work, outputs that could not be written or would replace something that is not ours.

    Raises:
        DataError: For the first that is refused, or if two of them are one file.
    """
    seen = dict[str, str]()
    for path, kind in outputs:
        if path is not None:
            check_output(path, kind)
            real, name = os.path.realpath(path), printable(path)
            if real in seen and os.path.isfile(real) | (not os.path.lexists(real)):
                raise DataError(f"{name}: {seen[real]} and {kind.what} cannot be the same file; name two")
            seen[real] = kind.what


def check_output(path: str | os.PathLike[str], kind: Kind) -> None:
    """Refuse a path that cannot be written as this kind.

    Raises:
        DataError: If the suffix is another kind's, it is a folder, there is no folder for it, it is write-protected, or
            it holds something that vitembed did not write as one of this kind.
    """
    name = printable(path)
    target = _resolved(path)
    if not isinstance(target, Path):
        return
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    if kind.suffixes and suffix not in kind.suffixes:
        raise DataError(f"{name}: {kind.what} is expected to have a name that ends in {' or '.join(kind.suffixes)}")
    if not kind.suffixes:
        from vitembed.images.formats import claims_image

        if claims_image(os.fspath(path)):
            raise DataError(f"{name}: this is the name of an image, and {kind.what} is none; choose another")
    folder = target.parent
    if not folder.is_dir():
        raise DataError(f"{name}: cannot write: there is no folder {printable(folder)}")
    if not target.exists():
        if not os.access(folder, os.W_OK | os.X_OK):
            raise DataError(f"{name}: cannot write: nothing can be written to the folder {printable(folder)}")
        return
    if not os.access(target, os.W_OK):
        raise DataError(f"{name} is write-protected: name another file, or allow writing it (chmod u+w)")
    if not is_replaceable(target, kind):
        raise DataError(
            f"{name} {_content(target)}, and {kind.what} would replace it: name another file, or delete this one first"
        )


def is_replaceable(path: Path, kind: Kind) -> bool:
    """Whether a regular file is empty or one that vitembed wrote as this kind."""
    try:
        return path.stat().st_size == 0 or kind.is_ours(path)
    except Exception:  # on foreign bytes the parsers raise whatever comes
        return False


@contextlib.contextmanager
def output_file(path: str | os.PathLike[str], kind: Kind) -> Iterator[Path]:
    """Give a temporary path to write to; its content reaches ``path``, by the rule above, when the block ends well.

    Raises:
        DataError: If ``check_output`` refuses it, or it cannot be written.
    """
    check_output(path, kind)
    target = _resolved(path)
    try:
        if isinstance(target, Path):
            with atomic_path(target) as temp:
                yield temp
            return
        with tempfile.TemporaryDirectory(prefix="vitembed-") as folder:
            temp = Path(folder, "output")
            yield temp
            # A copy of the descriptor shares its place in the file with whoever else writes there.
            descriptor = os.dup(target) if isinstance(target, int) else os.open(target, os.O_WRONLY)
            with temp.open("rb") as source, os.fdopen(descriptor, "wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
    except OSError as error:
        raise DataError(f"{printable(path)}: cannot write: {error.strerror or error}") from error


def page_or_picture(path: str | os.PathLike[str]) -> Kind:
    """What is written to a path that may be either, by its suffix; to a pipe or device without one a page.

    Raises:
        DataError: If the suffix is another.
    """
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    if suffix in PICTURE.suffixes:
        return PICTURE
    if suffix in PAGE.suffixes or is_stream(path):
        return PAGE
    raise DataError(f"{printable(path)}: expected a name that ends in .html or .png")


def write_output(path: str | os.PathLike[str], kind: Kind, data: bytes | str) -> None:
    """Write bytes or UTF-8 text to a file that the user named, by the rule above.

    Raises:
        DataError: If ``check_output`` refuses it, or it cannot be written.
    """
    with output_file(path, kind) as temp:
        temp.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)


def is_stream(path: str | os.PathLike[str]) -> bool:
    """Whether it is written to as it comes, so that nothing can lie beside it: a pipe, a device, a descriptor."""
    return not isinstance(_resolved(path), Path)


def _resolved(path: str | os.PathLike[str]) -> Path | str | int:
    """The regular file to be replaced or made; as text a pipe or device to write to; as a number a descriptor.

    Raises:
        DataError: If it is none of these.
    """
    name = printable(path)
    text = os.fspath(path)
    if "\0" in text:
        raise DataError(f"{name!r}: a file name cannot hold a null byte")
    found = os.path.join(os.getcwd(), text)
    try:
        for _ in range(40):
            folder, last = os.path.split(found.rstrip("/"))
            found = os.path.join(os.path.realpath(folder), last)
            descriptor = _descriptor(found)
            if descriptor is not None:
                os.fstat(descriptor)
                return descriptor
            if not os.path.islink(found):
                break
            found = os.path.join(os.path.dirname(found), os.readlink(found))
        try:
            mode = os.stat(found).st_mode
        except FileNotFoundError:
            return Path(found)
    except OSError as error:
        raise DataError(f"{name}: cannot write: {error.strerror or error}") from error
    if stat.S_ISREG(mode):
        return Path(found)
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        return found
    what = "a folder" if stat.S_ISDIR(mode) else "a disk" if stat.S_ISBLK(mode) else "no file"
    raise DataError(f"{name} is {what}: name a file")


def _descriptor(path: str) -> int | None:
    """Of a path such as ``/dev/stdout``, ``/dev/fd/3`` or ``/proc/self/fd/3``."""
    if os.name == "nt":
        return None
    if path in _STANDARD:
        return _STANDARD[path]
    folder, _, name = path.rpartition("/")
    if not name.isdecimal() or not name.isascii():
        return None
    found = _DESCRIPTORS.fullmatch(folder) or _DESCRIPTORS.fullmatch(os.path.realpath(folder))
    if found is None or ((found[1] or "").isdecimal() and int(found[1]) != os.getpid()):
        return None
    return int(name)


def _content(path: Path) -> str:
    from vitembed.errors import BadImage
    from vitembed.images.formats import sniff

    with contextlib.suppress(BadImage):
        kind = sniff(os.fspath(path))
        if kind is not None:
            return f"is a picture ({kind})"
    return "is there already and was not written by vitembed as such a file"


def _head(path: Path, num: int = _HEAD_BYTES) -> bytes:
    with path.open("rb") as file:
        return file.read(num)


def _is_page(path: Path) -> bool:
    head = _head(path)
    return head[:9].lower() == b"<!doctype" and (GENERATOR.encode() in head or _OLD_PAGE in head)


def _is_picture(path: Path) -> bool:
    head = _head(path, 512)
    return head.startswith(b"\x89PNG\r\n\x1a\n") and b"tEXt" + "\0".join(PICTURE_SOFTWARE).encode() in head


def _is_report(path: Path) -> bool:
    with path.open("rb") as file:
        return {"path", "reason"} <= set(json.loads(file.readline(1 << 20)))


def safetensors_metadata(path: Path) -> dict[str, str]:
    """The texts in the head of a safetensors file; anything may be raised where it is none."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(path.stat().st_size, _LARGEST_HEADER):
            raise ValueError("no safetensors")
        found: dict[str, str] = json.loads(file.read(length)).get("__metadata__") or {}
    return found


def _is_probe(path: Path) -> bool:
    return "vitembed_probe" in safetensors_metadata(path)


def _is_weights(path: Path) -> bool:
    return "made_by" in json.loads(safetensors_metadata(path)["vitembed"])


def _is_card(path: Path) -> bool:
    return b"Exported by vitembed; fingerprint" in _head(path, 1 << 16)


def _is_onnx(path: Path) -> bool:
    return b"\x12\x08vitembed" in _head(path, 64)  # field 2 of ModelProto: its producer


def _is_sheet(path: Path) -> bool:
    return _head(path, 64).startswith(b"path,label,suggested,probability,key")


def _is_labels(path: Path) -> bool:
    return True  # the session has read it and keeps its rows


def is_header(document: object) -> bool:
    """Whether JSON is the header of vectors, as it lies beside npy and csv."""
    return isinstance(document, dict) and {"format", "fingerprint", "checksum"} <= set(document)


def _is_vectors(path: Path) -> bool:
    head = _head(path)
    if head.startswith(b"PK"):
        with zipfile.ZipFile(path) as archive:
            return {"header.npy", "vectors.npy", "ids.npy"} <= set(archive.namelist())
    if head.startswith(b"PAR1"):
        with path.open("rb") as file:
            file.seek(-8, os.SEEK_END)
            length = int.from_bytes(file.read(4), "little")
            file.seek(-8 - length, os.SEEK_END)
            return b"vitembed" in file.read(length)
    if head.startswith(b"\x93NUMPY"):
        return _is_header_file(path.with_name(f"{path.name}.json"))
    if re.match(rb"id,(label,)?v0[,\r\n]", head):
        return _is_header_file(path.with_name(f"{path.name}.json"))
    return is_header(json.loads(safetensors_metadata(path)["vitembed"]))


def _is_header_file(path: Path) -> bool:
    return is_header(json.loads(path.read_bytes()))


PAGE = Kind("a page", (".html", ".htm"), _is_page)
PICTURE = Kind("a picture", (".png",), _is_picture)
REPORT = Kind("a report of skipped images", (".jsonl", ".ndjson", ".json", ".txt", ".log"), _is_report)
PROBE = Kind("a probe", (), _is_probe)
VECTORS = Kind("a vector file", (".npy", ".npz", ".parquet", ".csv", ".safetensors"), _is_vectors)
VECTORS_HEADER = Kind("the header of a vector file", (".json",), _is_header_file)
WEIGHTS = Kind("an export for timm", (".safetensors",), _is_weights)
CARD = Kind("the card of an export", (".md",), _is_card)
ONNX = Kind("an ONNX export", (".onnx",), _is_onnx)
SHEET = Kind("a sheet to label", (".csv",), _is_sheet)
LABELS = Kind("a labels file", (), _is_labels)
