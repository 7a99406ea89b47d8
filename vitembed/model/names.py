"""What a model's name means: a row of the catalogue, any repository of the hub, or nothing we know. No torch here."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from vitembed.errors import ModelError, printable
from vitembed.model.catalogue import MODELS, PublicModel

DEFAULT_MODEL = "dinov2-small"
"""What ``vitembed index`` takes where there is no model yet: small, strong without training, free to use."""

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")

_BY_NAME = {model.name: model for model in MODELS}
_COMMIT = re.compile(r"[0-9a-f]{40}")
# The hub's own rule for a repository's name.
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}")
_REVISION = re.compile(r"[\w./-]+")


@dataclass(frozen=True, kw_only=True)
class HubSource:
    """A repository on the hub, and which state of it."""

    hub_id: str
    """``org/name``."""
    revision: str | None
    """Commit, branch or tag that was asked for; none: the catalogue's, else ``main``."""
    row: PublicModel | None
    """The catalogue's row, if it has one for this repository."""

    @property
    def name(self) -> str:
        """What to call it: the catalogue's name, else the repository's."""
        return self.row.name if self.row is not None else self.hub_id

    def pinned_to(self, commit: str) -> str:
        """A name that gives the very same weights again."""
        return f"{self.name}@{commit}"


def public_source(name: str) -> HubSource | None:
    """The repository that a name such as ``dinov2-small``, ``timm/vit_base_patch16_224.dino`` or ``org/name`` means.

    Any of them may end in ``@REVISION``: a commit, branch or tag.

    Returns:
        None if it is no such name, as with a path.
    """
    plain, at, revision = name.partition("@")
    if at and not _REVISION.fullmatch(revision):
        return None
    row = _BY_NAME.get(plain)
    if row is not None:
        return HubSource(hub_id=row.hub_id, revision=revision or None, row=row)
    if not _REPOSITORY.fullmatch(plain) or plain.endswith(WEIGHT_SUFFIXES) or ".." in plain:
        return None
    row = next((model for model in MODELS if model.hub_id == plain), None)
    return HubSource(hub_id=plain, revision=revision or None, row=row)


def is_commit(revision: str) -> bool:
    """Whether it is a full commit hash, which can never mean other weights."""
    return _COMMIT.fullmatch(revision) is not None


def near_matches(name: str) -> list[str]:
    """Names of the catalogue that someone may have meant."""
    plain = name.partition("@")[0].lower().replace("_", "-")
    found = difflib.get_close_matches(plain, _BY_NAME, n=3, cutoff=0.6)
    return found or [known for known in _BY_NAME if plain and known.startswith(plain)][:3]


def refuse_unknown(name: str | os.PathLike[str]) -> ModelError:
    """What to say of a name that means nothing."""
    text = os.fspath(name)
    meant = near_matches(Path(text).name)
    hint = f" Did you mean {' or '.join(repr(near) for near in meant)}?" if meant else ""
    return ModelError(
        f"no model at {printable(text)}: expected a model folder, a weights file, a name given to pretrain --name, "
        f"a public name (vitembed models lists them) or org/name on the Hugging Face hub.{hint}"
    )
