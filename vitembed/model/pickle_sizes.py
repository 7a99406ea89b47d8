"""What a PyTorch file claims to hold against what is there, found out without running anything in it.

``torch.load`` takes the size of a storage from the pickle and does not compare it with the bytes of the record
(seen in torch 2.13): a hostile file could ask for any amount of memory, or for its neighbour's bytes. So the pickle is
read once with inert stand-ins in place of every class and function it names, only to collect the sizes.

Source: PyTorch's file format, https://docs.pytorch.org/docs/stable/notes/serialization.html.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from vitembed.errors import ModelError, printable

LARGEST_PICKLE = 64 << 20  # bytes; 1,000 tensors take about 100 kB
LARGEST_COUNT = 1_000_000
_MAGIC = 0x1950A86A20F9469CFC6C  # what torch.save put first before there were archives


class _Inert:
    """Stands for any class or function that a pickle names: takes everything, does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Take a list's item."""

    def extend(self, values: Any) -> None:
        """Take a list's items."""

    def add(self, value: Any) -> None:
        """Take a set's item."""


class _Storage:
    """Stands for a storage class, which says how large an element is."""

    def __init__(self, name: str) -> None:
        self.element_size = _ELEMENT_SIZES.get(name, 1)

    def __call__(self, *args: Any) -> None:
        return None

    def __setstate__(self, state: Any) -> None:
        pass


_ELEMENT_SIZES = {
    f"{name}Storage": torch.empty(0, dtype=dtype).element_size()
    for name, dtype in {
        "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
        "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
        "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128,
    }.items()
}  # fmt: skip


class _Bounded:
    """A file of which no more is read than there is, whatever a pickle says about the length of a text."""

    def __init__(self, file: Any, length: int) -> None:
        self.file = file
        self.length = length

    def read(self, num: int) -> bytes:
        """That many bytes."""
        if num > self.length - self.file.tell():
            raise EOFError(f"it claims {num:,} bytes more than there are")
        content: bytes = self.file.read(num)
        return content

    def readline(self) -> bytes:
        """A line, at most a long name."""
        line: bytes = self.file.readline(4096)
        return line


class _Sizes(pickle._Unpickler):  # the one in Python: its memo is a dictionary, which a huge index cannot blow up
    """Collects the size in bytes of each storage that the pickle refers to, and the foreign code that it wants."""

    def __init__(self, file: Any, length: int) -> None:
        super().__init__(_Bounded(file, length))
        self.sizes: dict[str, int] = {}
        self.foreign: list[str] = []

    def find_class(self, module: str, name: str) -> Any:
        """Never the thing itself."""
        if module.split(".")[0] not in ("torch", "collections"):
            self.foreign.append(f"{module}.{name}"[:80])
        if module == "torch" and name.endswith("Storage"):
            return _Storage(name)
        return OrderedDict if (module, name) == ("collections", "OrderedDict") else _Inert

    def persistent_load(self, pid: Any) -> Any:
        """Note a storage: ``("storage", class, key, device, number of elements)``."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[4], int):
            raise pickle.UnpicklingError(f"unknown reference {pid!r:.60}")
        size = pid[4] * getattr(pid[1], "element_size", 1)
        self.sizes[str(pid[2])] = max(size, self.sizes.get(str(pid[2]), 0))
        return None


def check_zip(path: Path) -> list[str]:
    """Whether a PyTorch archive (since 1.6) holds the bytes it claims, undamaged.

    Returns:
        Names of classes and functions of others that it wants to be called.

    Raises:
        ModelError: If a record is missing, packed, damaged (CRC-32) or of another size than claimed.
        zipfile.BadZipFile, pickle.UnpicklingError, ValueError: If it is no such archive.
    """
    name, length = printable(path), path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        if len(records) > LARGEST_COUNT or len({record.filename for record in records}) != len(records):
            raise ModelError(f"{name} is a damaged PyTorch file: its list of records is not sound")
        if any("/code/" in record.filename for record in records):
            raise ModelError(f"{name} is a TorchScript program, which is not run: save its state_dict() as safetensors")
        for record in records:
            if record.compress_type != zipfile.ZIP_STORED or record.file_size > length:
                raise ModelError(
                    f"{name} is no PyTorch file: {record.filename} is packed or larger than the file "
                    f"({record.file_size:,} bytes in {length:,})"
                )
        if sum(record.file_size for record in records) > length:
            raise ModelError(f"{name} is a damaged PyTorch file: its records are longer than the file")
        pickles = [record for record in records if record.filename.endswith("data.pkl")]
        if len(pickles) != 1:
            raise ModelError(f"{name} is a zip file, but no PyTorch file: expected one data.pkl in it")
        if pickles[0].file_size > LARGEST_PICKLE:
            raise ModelError(f"{name} has a pickle of {pickles[0].file_size:,} bytes: expected a state dict")
        if damaged := archive.testzip():
            raise ModelError(f"{name} is damaged at {damaged} (its checksum differs): download or copy it anew")
        root = pickles[0].filename.removesuffix("data.pkl")
        held = {record.filename: record.file_size for record in records}
        with archive.open(pickles[0]) as file:
            reader = _Sizes(file, pickles[0].file_size)
            reader.load()
    for key, size in reader.sizes.items():
        if held.get(f"{root}data/{key}") != size:
            raise ModelError(
                f"{name} claims {size:,} bytes for storage {key}, but holds "
                f"{held.get(f'{root}data/{key}', 0):,}: download or copy it anew"
            )
    return reader.foreign


def check_legacy(path: Path) -> list[str]:
    """Whether a PyTorch file from before archives is long enough for what it claims.

    Returns:
        Names of classes and functions of others that it wants to be called.

    Raises:
        ModelError: If its storages are longer than the file, or if ``torch.save`` did not write it.
        pickle.UnpicklingError, EOFError, ValueError: If it is no such file.
    """
    length = path.stat().st_size
    with path.open("rb") as file:
        if _Sizes(file, length).load() != _MAGIC:
            raise ModelError(
                f"{printable(path)} is a bare pickle, which is not loaded because it could run code: "
                "have its owner save the state dict, best as .safetensors"
            )
        for _ in range(2):  # the protocol, the machine
            _Sizes(file, length).load()
        reader = _Sizes(file, length)
        reader.load()
        _Sizes(file, length).load()  # the storages' keys
        rest = length - file.tell()
    claimed = sum(reader.sizes.values())
    if claimed > rest:
        raise ModelError(f"{printable(path)} is truncated: it claims {claimed:,} bytes of weights and holds {rest:,}")
    return reader.foreign
