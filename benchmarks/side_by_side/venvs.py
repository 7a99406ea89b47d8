"""Environments of the peers: each in its own, beside ours, made once.

rclip is installed whole (it needs no torch). clip-retrieval and what it calls are installed without their dependencies
on torch, torchvision, transformers and faiss: these are the ones of the environment that runs the benchmark, found
through a ``.pth`` file, so both sides compute with the same libraries.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

_LIGHT = (
    "pandas<3", "wandb", "flask", "flask_cors", "flask_restful", "prometheus_client", "fire", "braceexpand",
    "webdataset", "ftfy", "regex", "tqdm", "fsspec", "aiohttp", "h5py", "img2dataset", "onnxscript",
)  # fmt: skip
_WITHOUT_DEPENDENCIES = (
    "clip-retrieval", "all_clip", "autofaiss", "embedding-reader", "open_clip_torch", "clip-anytorch",
    "sentence-transformers", "multilingual-clip",
)  # fmt: skip


def rclip_python(folder: Path) -> Path:
    """The interpreter of an environment with rclip, made if it is not there.

    Raises:
        subprocess.CalledProcessError: If it cannot be installed.
    """
    python = _environment(folder / "rclip")
    if not (python.parent / "rclip").exists():
        _pip(python, "rclip")
    return python


def clip_retrieval_python(folder: Path) -> Path:
    """The same with clip-retrieval, autofaiss and open_clip."""
    place = folder / "clip-retrieval"
    python = _environment(place)
    if not (python.parent / "clip-retrieval").exists():
        _pip(python, *_LIGHT)
        _pip(python, "--no-deps", *_WITHOUT_DEPENDENCIES)
    [packages] = place.glob("lib/python*/site-packages")
    # Behind its own packages, so that what was installed here goes first.
    (packages / "zz_beside.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def version(python: Path, package: str) -> str:
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def _environment(place: Path) -> Path:
    python = place.absolute() / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
    return python


def _pip(python: Path, *arguments: str) -> None:
    subprocess.run([python, "-m", "pip", "install", "--quiet", *arguments], check=True)
