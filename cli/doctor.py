"""``vitembed doctor``: whether everything is here that is needed, and what will be used."""

from __future__ import annotations

import importlib
import os
import platform
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import typer

from vitembed import __version__
from vitembed.errors import VitembedError, counted

from .options import WorkspaceOption
from .output import EXIT_MISTAKE, note, say_table, shown

# Distribution -> the name it is imported by.
_LIBRARIES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "pytorch-lightning": "pytorch_lightning",
    "numpy": "numpy",
    "pillow": "PIL",
    "pyarrow": "pyarrow",
    "scikit-learn": "sklearn",
    "safetensors": "safetensors",
    "huggingface_hub": "huggingface_hub",
    "omegaconf": "omegaconf",
}
_FORMATS = {"JPEG": "jpg", "PNG": "zlib", "WebP": "webp", "AVIF": "avif", "TIFF (compressed)": "libtiff"}

Row = tuple[str, str, str]
"""What, what was found, and the problem with it or nothing."""


def doctor(workspace: WorkspaceOption = None) -> None:
    """Check the installation, devices and workspace.

    Exits with 1 if something is wrong, and says what to do.
    """
    rows = [("vitembed", f"{__version__}, Python {platform.python_version()}, {platform.platform(terse=True)}", "")]
    rows += [_library(name, module) for name, module in _LIBRARIES.items()]
    checks: list[Callable[[], list[Row]]] = [_faiss, _devices, _formats, lambda: _workspace(workspace)]
    for check in checks:
        rows += check()
    say_table(
        ["", "found", ""],
        [(what, found, "" if not problem else f"PROBLEM: {problem}") for what, found, problem in rows],
    )
    num_problems = sum(bool(problem) for _, _, problem in rows)
    if num_problems:
        note(f"Error: {num_problems} problem{'s' if num_problems > 1 else ''} found")
        raise typer.Exit(EXIT_MISTAKE)


def _library(name: str, module: str) -> Row:
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return (name, "-", f"not installed: pip install {name}")
    try:
        if module == "torchvision":
            from vitembed._torchvision import import_torchvision

            import_torchvision()
        importlib.import_module(module)
    except Exception as error:  # whatever a broken installation raises is what the user wants to know
        return (name, version, f"cannot be imported: {_first_line(error)}")
    return (name, version, "")


def _faiss() -> list[Row]:
    wheels = {}
    for name in ("faiss-cpu", "faiss-gpu"):
        try:
            wheels[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    found = ", ".join(f"{name} {version}" for name, version in wheels.items()) or "-"
    if not wheels:
        return [("faiss", found, "not installed: pip install faiss-cpu")]
    if len(wheels) > 1:
        return [("faiss", found, "both wheels overwrite each other: uninstall both, then install one")]
    try:
        faiss = importlib.import_module("faiss")
    except Exception as error:
        return [("faiss", found, f"cannot be imported: {_first_line(error)}")]
    return [("faiss", f"{found}, {faiss.get_num_gpus() if hasattr(faiss, 'get_num_gpus') else 0} GPUs", "")]


def _devices() -> list[Row]:
    try:
        import torch
    except Exception:  # told above
        return []
    cpu = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    rows = [("cpu", cpu, "")]
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        rows.append((f"cuda:{number}", f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB", ""))
    if torch.backends.mps.is_available():
        rows.append(("mps", "Apple GPU", ""))
    from vitembed.device import resolve_device

    return [*rows, ("device used", str(resolve_device()), "")]


def _formats() -> list[Row]:
    try:
        from PIL import features
    except Exception:  # told above
        return []
    there = [name for name, feature in _FORMATS.items() if features.check(feature)]
    missing = [name for name in _FORMATS if name not in there]
    return [("image formats", ", ".join(there), f"Pillow lacks {', '.join(missing)}" if missing else "")]


def _workspace(explicit: Path | None) -> list[Row]:
    from vitembed.workspace import find_workspace

    try:
        place = find_workspace(explicit)
    except VitembedError as error:
        return [("workspace", "none", str(error) if explicit is not None else "")]
    rows = [("workspace", shown(place.dir), "" if os.access(place.dir, os.W_OK) else "cannot be written")]
    return [*rows, _opened("model", place.model_dir, _model_facts), _opened("index", place.index_dir, _index_facts)]


def _opened(what: str, directory: Path, facts: Callable[[Path], str]) -> Row:
    if not directory.is_dir():
        return (what, "none yet", "")
    try:
        return (what, facts(directory), "")
    except VitembedError as error:
        return (what, shown(directory), str(error))


def _model_facts(directory: Path) -> str:
    from vitembed.model.encoder import load

    encoder = load(directory, device="cpu")
    return f"{encoder.embed_dim}-d vectors, fingerprint {encoder.fingerprint[:12]}"


def _index_facts(directory: Path) -> str:
    from vitembed.collection.collection import Collection
    from vitembed.collection.founding import has_catalog

    if not has_catalog(directory):
        return "none yet"
    with Collection.open(directory) as collection:
        return f"{counted(len(collection), 'image')}, of encoder {collection.fingerprint[:12] or 'unknown'}"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
