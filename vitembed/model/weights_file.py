"""Weights from a file that someone else wrote: nothing in it is run, and no claim in it is believed unchecked.

What a file is, its first bytes say, not its suffix. safetensors cannot hold code. A PyTorch file is a pickle: it is
read with ``weights_only=True`` or not at all, after ``pickle_sizes.py`` has compared every size it claims with the
bytes that are there.
"""

from __future__ import annotations

import json
import pickle
import stat
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vitembed.errors import ModelError, printable
from vitembed.model.pickle_sizes import check_legacy, check_zip

# In the order in which a folder is searched: what can hold no code comes first.
FILE_NAMES = (
    "encoder.safetensors",
    "model.safetensors",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
)
LARGEST_HEADER = 100_000_000  # bytes; the limit that safetensors itself sets
LARGEST_INDEX = 64 << 20
DEEPEST = 16
_ZIP, _PICKLE, _LFS = b"PK\x03\x04", b"\x80", b"version https://git-lfs"


def read_weights(path: Path) -> dict[str, Tensor]:
    """Every tensor in a weights file, under its name; names inside nested dictionaries are joined by dots.

    Args:
        path: A ``.safetensors``, ``.pth``, ``.pt``, ``.bin`` or ``.ckpt`` file, the index of a file in shards
            (``*.index.json``), or a folder with one of ``FILE_NAMES``.

    Returns:
        Dense tensors in main memory. Those of a PyTorch file are views of the mapped file: copy what shall stay.

    Raises:
        ModelError: If there is no such file, if it is damaged or of another kind, or if it wants code to be run.
    """
    path = Path(path)
    if path.is_dir():
        path = weights_file(path)
    weights = _read_index(path) if path.name.endswith(".index.json") else _read_one(path)
    if not weights:
        raise ModelError(f"{printable(path)} holds no tensors: expected the weights of a vision transformer")
    return weights


def weights_file(directory: Path) -> Path:
    """The weights file in a folder.

    Raises:
        ModelError: If there is none of a known name.
    """
    for name in FILE_NAMES:
        if (directory / name).is_file():
            return directory / name
    raise ModelError(
        f"no weights in {printable(directory)}: expected one of {', '.join(FILE_NAMES)}; name the file itself if it "
        "is called otherwise"
    )


def _read_one(path: Path) -> dict[str, Tensor]:
    name = printable(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"{name} is not a regular file: expected weights (.safetensors or a PyTorch file)")
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise ModelError(f"cannot read {name}: {error.strerror or error}") from error
    if not start:
        raise ModelError(f"{name} is empty: download or copy it anew")
    if start.startswith(_LFS):
        raise ModelError(
            f"{name} is a git-LFS pointer, not the weights themselves: run `git lfs pull` in its repository, "
            "or download the file"
        )
    header = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and header <= status.st_size - 8:  # before pickles: a length of 0x..80 begins as they do
        weights = _read_safetensors(path, header, status.st_size)
    elif start.startswith(_ZIP):
        weights = _read_torch(path, archive=True)
    elif start.startswith(_PICKLE):
        weights = _read_torch(path, archive=False)
    elif start[8:9] == b"{" or path.suffix == ".safetensors":
        weights = _read_safetensors(path, header, status.st_size)
    else:
        raise ModelError(
            f"{name} is no weights file (it starts with {start[:12]!r}): expected .safetensors or a PyTorch file"
        )
    for key, tensor in weights.items():
        _check_tensor(name, key, tensor)
    return weights


def _read_safetensors(path: Path, header: int, size: int) -> dict[str, Tensor]:
    name = printable(path)
    if header > min(size - 8, LARGEST_HEADER):
        raise ModelError(
            f"{name} is truncated or no safetensors file: it claims a header of {header:,} bytes in a file of {size:,}"
        )
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ModelError(f"{name} is a damaged safetensors file: {_line(error)}; download or copy it anew") from error


def _read_torch(path: Path, *, archive: bool) -> dict[str, Tensor]:
    name, foreign = printable(path), list[str]()
    try:
        foreign = (check_zip if archive else check_legacy)(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about typed storages of old files
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except ModelError:
        raise
    except (pickle.UnpicklingError, AttributeError, ImportError) as error:
        wants = f"it wants {', '.join(foreign[:3])}" if foreign else _line(error)
        raise ModelError(
            f"{name} holds more than tensors, which is not loaded because it could run code ({wants}): "
            "have its owner save the state dict alone, best as .safetensors"
        ) from error
    except (
        OSError, EOFError, RuntimeError, ValueError, TypeError, KeyError, IndexError, MemoryError, OverflowError,
        AssertionError, zipfile.BadZipFile, UnicodeDecodeError, NotImplementedError,
    ) as error:  # fmt: skip
        raise ModelError(f"{name} is a damaged PyTorch file: {_line(error)}; download or copy it anew") from error
    if isinstance(content, Tensor):
        raise ModelError(f"{name} holds a single tensor: expected the state dict of a vision transformer")
    return dict(_flat(content, name))


def _flat(content: Any, where: str) -> Iterator[tuple[str, Tensor]]:
    """Tensors of nested dictionaries with their joined names; what is no tensor (settings, counters) is no weight."""
    todo: list[tuple[str, Any, int]] = [("", content, 0)]
    while todo:
        name, value, depth = todo.pop()
        if isinstance(value, Tensor):
            yield name, value.detach()
        elif isinstance(value, Mapping):
            if depth == DEEPEST:
                raise ModelError(f"{where} nests dictionaries more than {DEEPEST} deep: expected a state dict")
            inner = [(f"{name}.{key}" if name else str(key), item, depth + 1) for key, item in value.items()]
            todo += reversed(inner)


def _check_tensor(where: str, key: str, tensor: Tensor) -> None:
    if tensor.is_sparse or tensor.is_quantized or tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise ModelError(f"{where}: {key} is not a dense tensor with values: expected plain weights")
    held = tensor.untyped_storage().nbytes()
    if tensor.numel() * tensor.element_size() > held:
        raise ModelError(f"{where}: {key} claims shape {tuple(tensor.shape)}, for which its {held:,} bytes do not do")


def _read_index(path: Path) -> dict[str, Tensor]:
    name = printable(path)
    try:
        if path.stat().st_size > LARGEST_INDEX:
            raise ModelError(f"{name} is too large for an index of shards")
        places = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        files = sorted({str(file) for file in places.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{name} is no index of shards (expected a JSON object with weight_map): {error}") from error
    weights: dict[str, Tensor] = {}
    for file in files:
        if file != Path(file).name or "\\" in file:
            raise ModelError(f"{name} names {file!r}: a shard must lie beside its index")
        shard = _read_one(path.with_name(file))
        wanted = {key for key, place in places.items() if place == file}
        if missing := sorted(wanted - set(shard)):
            raise ModelError(f"{printable(path.with_name(file))} lacks {missing[0]}, which {path.name} says it holds")
        weights.update({key: shard[key] for key in wanted})
    return weights


def _line(error: BaseException) -> str:
    """The gist of another library's message: its first line, at most 200 characters."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
