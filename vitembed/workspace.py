"""Where the three commands meet without flags: a folder ``.vitembed``, found by walking up as git does."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from vitembed.errors import ConfigError, VitembedError, printable

WORKSPACE_DIR = ".vitembed"
OWN_MODEL = "model"
"""Name of the workspace's own model; all others lie in ``models/``."""
WORKSPACE_VARIABLE = "VITEMBED_WORKSPACE"


_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")
_RESERVED = re.compile(r"con|prn|aux|nul|com\d|lpt\d|model", re.IGNORECASE)  # devices on Windows; our own model


def check_name(name: str) -> str:
    """The name of a model and its run, where it is one: a single folder name that every file system takes.

    Raises:
        ConfigError: If it is not 1 to 64 letters (a-z, A-Z), digits, ``-`` and ``_``, or is reserved.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        shown = f"'{printable(name)}'" if isinstance(name, str) else repr(name)
        shown = shown if len(shown) <= 80 else f"{shown[:60]}...' ({len(name):,} characters)"
        raise ConfigError(
            f"--name {shown}: expected 1 to 64 letters (a-z, A-Z), digits, - and _, not starting with -; it becomes "
            "the name of a folder in the workspace, so it cannot be a path"
        )
    if name != OWN_MODEL and _RESERVED.fullmatch(name):
        raise ConfigError(f"--name {name!r} is reserved by the system or for the workspace's own model: choose another")
    return name


@dataclass(frozen=True)
class Workspace:
    """The places inside one workspace. Only ``dir`` is sure to exist; the rest is made by who writes there."""

    root: Path
    """The folder that holds ``.vitembed``, absolute. Paths of images below it are stored relative to it."""

    @property
    def dir(self) -> Path:
        """The folder ``.vitembed`` itself."""
        return self.root / WORKSPACE_DIR

    @property
    def model_dir(self) -> Path:
        """The encoder that ``pretrain`` leaves and ``index`` takes."""
        return self.dir / OWN_MODEL

    @property
    def index_dir(self) -> Path:
        """The collection that ``index`` writes and ``search`` reads."""
        return self.dir / "index"

    @property
    def runs_dir(self) -> Path:
        """One folder per training run."""
        return self.dir / "runs"

    def model_named(self, name: str) -> Path:
        """Where ``pretrain --name`` puts a model.

        Raises:
            ConfigError: If it cannot be a name.
        """
        return self.model_dir if check_name(name) == OWN_MODEL else self.dir / "models" / name

    def run_named(self, name: str) -> Path:
        """The folder of that model's training run.

        Raises:
            ConfigError: If it cannot be a name.
        """
        return self.runs_dir / check_name(name)

    def find_model(self, name: str | os.PathLike[str]) -> Path | None:
        """The folder of a model that is there, by name; None for a path, or where there is none of that name.

        Names of earlier versions (with dots or spaces) and of archived models (``NAME@FINGERPRINT``) are found too.
        """
        text = os.fspath(name)
        if not text or Path(text).name != text or text.startswith(".") or "\0" in text:
            return None
        folder = self.model_dir if text == OWN_MODEL else self.dir / "models" / text
        return folder if folder.is_dir() else None

    def named_models(self) -> list[Path]:
        """The folders of all models beside the workspace's own, sorted."""
        return sorted(path for path in (self.dir / "models").glob("*/") if not path.name.startswith("."))

    @property
    def cache_dir(self) -> Path:
        """What can be thrown away at any time: decoded images."""
        return self.dir / "cache"


def find_workspace(explicit: Path | None = None, *, create: bool = False, start: Path | None = None) -> Workspace:
    """Workspace to use: ``explicit``, else ``VITEMBED_WORKSPACE``, else the nearest one at or above ``start``.

    Args:
        explicit: A folder that holds (or is) a ``.vitembed`` folder.
        create: Make the workspace where none is found: in the named folder, or in ``start``.
        start: Where the walk up begins; the current folder by default.

    Raises:
        VitembedError: If there is none and ``create`` is off, or it cannot be made.
    """
    named, origin = explicit, "--workspace"
    if named is None and os.environ.get(WORKSPACE_VARIABLE):
        named, origin = Path(os.environ[WORKSPACE_VARIABLE]), WORKSPACE_VARIABLE
    if named is not None:
        root = _absolute(named.expanduser())
        if root.name == WORKSPACE_DIR:
            root = root.parent
        if (root / WORKSPACE_DIR).is_dir():
            return Workspace(root)
        if create:
            return _create(root)
        raise VitembedError(
            f"no workspace in {printable(root)} (named by {origin}): it has no {WORKSPACE_DIR} folder; "
            "run vitembed pretrain or vitembed index to make one"
        )
    start = _absolute_start(start)
    for folder in (start, *start.parents):
        if (folder / WORKSPACE_DIR).is_dir():
            return Workspace(folder)
    if create:
        return _create(start)
    raise VitembedError(
        f"no workspace at or above {printable(start)}: run vitembed pretrain or vitembed index there first, "
        f"or name one with --workspace or {WORKSPACE_VARIABLE}"
    )


def _absolute_start(start: Path | None) -> Path:
    try:
        return _absolute(start if start is not None else Path.cwd())
    except FileNotFoundError as error:
        raise VitembedError("the current folder no longer exists: change to another one") from error


def _absolute(path: Path) -> Path:
    # Not resolve(): a user who went through a link means the folders on that way up.
    return Path(os.path.abspath(path))  # noqa: PTH100


def _create(root: Path) -> Workspace:
    workspace = Workspace(root)
    try:
        workspace.dir.mkdir(parents=True, exist_ok=True)
        # Vectors and weights are large and can be made again: they do not belong into the user's repository.
        (workspace.dir / ".gitignore").write_text("*\n", encoding="utf-8")
    except OSError as error:
        raise VitembedError(f"cannot make a workspace in {printable(root)}: {error.strerror}") from error
    return workspace
