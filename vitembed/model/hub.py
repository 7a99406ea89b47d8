"""Files of a public model, from the Hugging Face hub's cache on this machine or from the hub itself.

The cache is the one that all of Hugging Face's libraries share, in its published layout (``models--ORG--NAME`` with
``refs``, ``snapshots`` and ``blobs``). What lies there is used without asking the network, so a model that was fetched
once works offline, always at the same commit. ``huggingface_hub`` is imported only to fetch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from vitembed.errors import ModelError, printable
from vitembed.model.names import HubSource, is_commit, near_matches

log = logging.getLogger("vitembed")

WEIGHT_FILES = (
    "encoder.safetensors",
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Where the weights may be, in the order in which they are looked for."""
SIDE_FILES = ("config.json", "open_clip_config.json", "preprocessor_config.json", "README.md")
"""What is said about them: architecture, preprocessing, licence."""
TIMEOUT_SECONDS = 10.0
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SWITCHED_ON = {"1", "ON", "YES", "TRUE"}  # as huggingface_hub reads its variables


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A model's files at one commit."""

    directory: Path
    """Folder with ``config.json`` and the weights."""
    commit: str
    """Which state of the repository that is."""
    weights: Path
    """The weights file, or the index of several."""

    def shards(self) -> list[Path]:
        """The files with the tensors themselves."""
        return shards_of(self.weights)


def cache_dir() -> Path:
    """Where the hub's files are kept, by the variables that huggingface_hub knows."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return Path(os.environ[variable]).expanduser()
    home = os.environ.get("HF_HOME") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    return Path(home).expanduser() / "hub"


def is_offline() -> bool:
    """Whether the user has forbidden the network (``HF_HUB_OFFLINE`` or ``TRANSFORMERS_OFFLINE``)."""
    return any(os.environ.get(name, "").upper() in _SWITCHED_ON for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def find_cached(source: HubSource) -> Snapshot | None:
    """The model's files where they are on this machine already; complete ones only.

    A revision that was asked for is the only one taken. Otherwise it is the catalogue's, then what ``main`` was when
    any program last fetched it.
    """
    if source.revision is not None:
        return _cached(source.hub_id, source.revision)
    pinned = source.row.revision if source.row is not None else None
    return (_cached(source.hub_id, pinned) if pinned else None) or _cached(source.hub_id, "main")


def fetch(source: HubSource) -> Snapshot:
    """The model's files: from the cache, else from the hub.

    Raises:
        ModelError: If they are in neither, the model is gated, or the hub cannot be reached; with what to do.
    """
    pinned = source.row.revision if source.row is not None else None
    exact = source.revision or pinned
    found = _cached(source.hub_id, exact or "main")
    if found is not None:
        return found
    if is_offline():
        return _other_revision(source) or _refuse(source, "the network is switched off (HF_HUB_OFFLINE)")
    try:
        return _download(source, exact or "main")
    except _Unreachable as problem:
        return _other_revision(source) or _refuse(source, f"the hub cannot be reached ({problem})")


def sha256_of(file: Path) -> str:
    """SHA-256 of a file, in hex.

    Raises:
        ModelError: If the hub's cache names the file by another sum: it was damaged after it was fetched.
    """
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256") if hasattr(hashlib, "file_digest") else _digest(opened)
    found = digest.hexdigest()
    named = file.readlink().name if file.is_symlink() else ""
    if _SHA256.fullmatch(named) and file.parent.parent.name == "snapshots" and named != found:
        raise ModelError(
            f"{printable(file)} was damaged after it was fetched (SHA-256 {found[:12]}, expected {named[:12]}): "
            "delete this file and the one that it links to, then run the command again"
        )
    return found


def checksums(weights: Path) -> str | dict[str, str]:
    """SHA-256 of a weights file, or of each file that an index names.

    Raises:
        ModelError: If the hub's cache knows another sum.
    """
    sums = {shard.name: sha256_of(shard) for shard in shards_of(weights) if shard.is_file()}
    return next(iter(sums.values())) if len(sums) == 1 else sums


def shards_of(weights: Path) -> list[Path]:
    """The files that an index names, or the file itself."""
    if not weights.name.endswith(".index.json"):
        return [weights]
    try:
        names = set(json.loads(weights.read_text(encoding="utf-8"))["weight_map"].values())
        return [weights.with_name(str(name)) for name in sorted(names)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{printable(weights)} is no index of weight files: {error}") from error


class _Unreachable(Exception):
    """The hub did not answer; the cache may help."""


def _cached(hub_id: str, revision: str) -> Snapshot | None:
    folder = cache_dir() / f"models--{hub_id.replace('/', '--')}"
    commit = revision
    if not is_commit(revision):
        try:
            commit = (folder / "refs" / revision).read_text(encoding="utf-8").strip()
        except OSError:
            return None
    directory = folder / "snapshots" / commit
    for name in WEIGHT_FILES:
        weights = directory / name
        if weights.is_file() and all(shard.is_file() for shard in shards_of(weights)):
            return Snapshot(directory=directory, commit=commit, weights=weights)
    return None


def _other_revision(source: HubSource) -> Snapshot | None:
    """Without network, what another program has fetched, unless a revision was asked for; said so."""
    found = None if source.revision is not None else find_cached(source)
    if found is not None:
        log.info("%s: commit %s from the cache, as the pinned one is not there", source.name, found.commit[:12])
    return found


def _refuse(source: HubSource, why: str) -> NoReturn:
    revision = source.revision or (source.row.revision if source.row is not None else None)
    at = f" --revision {revision}" if revision else ""
    here = "" if source.row is not None else f"{_no_path(source)}, "
    raise ModelError(
        f"{here}{source.name} is not on this machine and {why}. Three ways on: fetch it where there is a network with "
        f"`hf download {source.hub_id}{at}` and copy {printable(cache_dir())}; give a file with --model FILE; or train "
        "your own with `vitembed pretrain IMAGES`"
    )


def _download(source: HubSource, revision: str) -> Snapshot:
    """Fetch what is needed of a repository, at the commit that ``revision`` is now."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import huggingface_hub
    from huggingface_hub import errors

    try:
        info = huggingface_hub.HfApi().model_info(source.hub_id, revision=revision, timeout=TIMEOUT_SECONDS)
        names = {file.rfilename for file in info.siblings or ()}
        commit = str(info.sha)
        weights = next((name for name in WEIGHT_FILES if name in names), None)
        if weights is None:
            raise ModelError(
                f"{source.hub_id} on the hub has none of {', '.join(WEIGHT_FILES)}: it is no model that can be read "
                "here; name another"
            )
        size = f", {source.row.num_params * 4 / 1e6:,.0f} MB" if source.row is not None else ""
        log.info("fetching %s (%s%s, licence: %s)", source.name, source.hub_id, size, _licence(source))

        def get(name: str) -> Path:
            kept = huggingface_hub.hf_hub_download(source.hub_id, name, revision=commit, cache_dir=cache_dir())
            return Path(kept)

        for name in SIDE_FILES:
            if name in names:
                get(name)
        path = get(weights)
        for shard in shards_of(path):
            if shard != path:
                get(shard.name)
        if not is_commit(revision):
            _remember(source.hub_id, revision, commit)
    except errors.GatedRepoError as error:
        raise ModelError(_gated(source)) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"{source.hub_id} on the hub has no revision {revision}: check the part behind @") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(_no_repository(source)) from error
    except ModelError:
        raise
    except errors.HFValidationError as error:
        raise ModelError(f"{source.hub_id!r} is no name of a repository on the hub: {error}") from error
    except OSError as error:
        if error.errno is not None and not isinstance(error, ConnectionError):  # of this machine: full, not allowed
            raise ModelError(f"cannot keep {source.name} in {printable(cache_dir())}: {error.strerror}") from error
        raise _Unreachable(_first_line(error)) from error
    except Exception as error:
        # The HTTP library below differs from release to release (requests, httpx), and so do its errors. They are the
        # network's; anything else is our bug.
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "requests", "urllib3", "httpcore"):
            raise
        raise _Unreachable(_first_line(error)) from error
    return Snapshot(directory=path.parent, commit=commit, weights=path)


def _remember(hub_id: str, revision: str, commit: str) -> None:
    """Note which commit a branch was, where huggingface_hub itself would, so that it is found again offline."""
    reference = cache_dir() / f"models--{hub_id.replace('/', '--')}" / "refs" / revision
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(commit, encoding="utf-8")


def _gated(source: HubSource) -> str:
    return (
        f"{source.name} ({source.hub_id}) is gated: its licence ({_licence(source)}) has to be accepted first. Accept "
        f"it at https://huggingface.co/{source.hub_id} and log in with `hf auth login` (or set HF_TOKEN); or give the "
        "file with --model FILE"
    )


def _no_repository(source: HubSource) -> str:
    near = near_matches(source.hub_id.partition("/")[2])
    hint = f" Did you mean {' or '.join(repr(name) for name in near)}?" if near else ""
    if source.hub_id.startswith("timm/") and "." not in source.hub_id:
        hint = " timm's names on the hub end in .TAG, such as timm/resnet50.a1_in1k." + hint
    here = f"{_no_path(source)}, and " if source.row is None else ""
    return (
        f"{here}the hub has no model {source.hub_id}, or it is private and you are not logged in (hf auth login).{hint}"
    )


def _no_path(source: HubSource) -> str:
    """A mistyped path looks like a repository's name."""
    return f"there is no file or folder {source.hub_id} here"


def _licence(source: HubSource) -> str:
    return source.row.licence if source.row is not None else "see its page"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _digest(opened: Any) -> Any:
    digest = hashlib.sha256()  # Python 3.10 has no file_digest
    while block := opened.read(1 << 20):
        digest.update(block)
    return digest
