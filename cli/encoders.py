"""Which encoder a command means."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitembed.errors import ModelError, VitembedError, printable
from vitembed.workspace import Workspace, find_workspace

from .output import note

if TYPE_CHECKING:
    from vitembed.collection.collection import Collection
    from vitembed.model.encoder import Encoder
    from vitembed.model.late import LateEncoder
    from vitembed.probe.saving import SavedProbe


def open_encoder(
    model: str | None,
    workspace: Path | None,
    *,
    pool: str | None = None,
    speed: str | None = None,
    gpu_decode: bool = False,
    depth: str | None = None,
    tolerant: bool = False,
) -> Encoder:
    """The encoder named by ``--model``, else the one of the workspace.

    Raises:
        VitembedError: If there is none, in the words of ``vitembed.load``.
    """
    if model is None:
        try:
            find_workspace(workspace)
        except VitembedError as error:
            raise ModelError(
                f"no model yet: run vitembed pretrain first, or name one with --model, "
                f"such as a public one that vitembed models lists ({error})"
            ) from error
    from vitembed.model.encoder import load

    return load(
        model_path(model, workspace),
        pool=pool,
        speed=speed or "exact",
        gpu_decode=gpu_decode,
        depth=depth,
        tolerant=tolerant,
    )


def model_path(model: str | None, workspace: Path | None) -> str | None:
    """What ``vitembed.load`` is to be given: it looks for names in the workspace around the current folder alone."""
    if workspace is None or (model is not None and os.path.lexists(model)):
        return model
    try:
        place = find_workspace(workspace)
    except VitembedError:
        if model is None:
            raise
        return model  # a public name needs none
    if model is None:
        return os.fspath(place.model_dir)
    from vitembed.model.kept import named_model

    named = named_model(model, place)
    return model if named is None else os.fspath(named)


def recorded_model(collection: Collection, workspace: Workspace) -> str | None:
    """The model that an index was made with: where it was read, else the workspace's one with its fingerprint.

    None where an index has no model, as of vectors from elsewhere.

    Raises:
        ModelError: If it is nowhere to be found.
    """
    from vitembed.model.kept import has_fingerprint, model_with
    from vitembed.model.late import stated_fingerprint
    from vitembed.model.names import public_source

    meta, fingerprint = collection.meta, collection.fingerprint
    recorded, speed, depth = meta.get("model_path"), recorded_speed(meta), recorded_depth(meta)
    if isinstance(recorded, str) and not Path(recorded).is_absolute() and public_source(recorded) is not None:
        return recorded  # a public name with its revision
    path = Path(recorded) if isinstance(recorded, str) else Path()
    # Files of other projects state no fingerprint: it is compared when they are read.
    is_it = stated_fingerprint(path) is None or has_fingerprint(path, fingerprint, speed, depth)
    if path.is_absolute() and path.exists() and is_it:
        return os.fspath(path)
    found = model_with(fingerprint, workspace, speed=speed, depth=depth)
    if found is not None or not fingerprint:
        return None if found is None else os.fspath(found)
    theirs = f" ({printable(recorded)})" if isinstance(recorded, str) else ""
    raise ModelError(
        f"the index in {printable(workspace.index_dir)} holds vectors of encoder {fingerprint[:12]}{theirs}, and no "
        f"model in {printable(workspace.dir)} is that one: name it with --model, or make the index again with today's "
        "(vitembed index IMAGES --rebuild)"
    )


def recorded_speed(meta: Mapping[str, Any]) -> str:
    """The speed that an index was embedded at."""
    speed = meta.get("speed")
    return speed if isinstance(speed, str) else "exact"


def recorded_depth(meta: Mapping[str, Any]) -> str | None:
    """The depth that an index was embedded with; None where it is from before there was a choice."""
    depth = meta.get("depth")
    return depth if isinstance(depth, str) else None


def index_encoder(
    model: str | None,
    workspace: Path | None,
    *,
    speed: str | None = None,
    rebuild: bool = False,
    gpu_decode: bool = False,
    depth: str | None = None,
    tolerant: bool = False,
) -> LateEncoder:
    """What an index is made or kept by: the model named, else the index's own, the workspace's, a public one.

    It is not read yet where its folder, or a note beside the index, says that it is the one of the index.
    """
    from vitembed.collection.collection import Collection
    from vitembed.model.late import LateEncoder, noted_fingerprint, stated_fingerprint

    named, at, dim, made_by, asked, lost = model, speed or "exact", 0, None, depth, None
    decoding: dict[str, Any] = {"gpu_decode": gpu_decode, "tolerant": tolerant}
    if not rebuild:
        with suppress(VitembedError):  # no index yet, or an unreadable one: what follows says so
            place = find_workspace(workspace)
            with Collection.open(place.index_dir) as collection:
                if collection.holds_nothing():
                    raise VitembedError("it binds nobody to its model")
                at = speed or recorded_speed(collection.meta)
                depth_of_index = recorded_depth(collection.meta)
                depth = depth or depth_of_index
                dim, made_by = collection.dim, collection.fingerprint
                if model is None:
                    try:
                        named = recorded_model(collection, place)
                        _say_which(named, collection, place)
                    except ModelError as error:
                        lost = error
            source = named or os.fspath(place.model_dir)
            stated = stated_fingerprint(Path(source)) if at == "exact" else None
            if asked in (None, depth_of_index) and made_by in (stated, noted_fingerprint(place.index_dir, source, at)):
                return LateEncoder(
                    made_by,
                    dim,
                    lambda: open_noted(place, made_by, named, workspace, speed=at, depth=depth, **decoding),
                )
    if lost is not None:
        raise lost
    source = model_or_public(named, workspace)
    encoder = open_encoder(source, workspace, speed=at, depth=depth, **decoding)
    return LateEncoder.of(encoder if made_by is None or asked is not None else encoder.that_made(made_by))


def _say_which(named: str | None, collection: Collection, place: Workspace) -> None:
    """Say so where the index keeps to its own model, though another one has taken that model's place."""
    if named is None or collection.meta.get("model_path") in (named, None):
        return
    if Path(named) != place.model_dir and place.model_dir.is_dir():
        note(
            f"the index holds vectors of encoder {collection.fingerprint[:12]}, now in {printable(named)}, and is kept "
            f"up to date with it; with the model in {printable(place.model_dir)}: --rebuild"
        )


def open_noted(
    place: Workspace, fingerprint: str, model: str | None, workspace: Path | None, **settings: Any
) -> Encoder:
    """The encoder of an index; a note that promised another one is thrown away."""
    from vitembed.model.late import NOTE_FILE

    encoder = open_encoder(model, workspace, **settings).that_made(fingerprint)
    if encoder.fingerprint != fingerprint:
        (place.index_dir / NOTE_FILE).unlink(missing_ok=True)
    return encoder


def note_model(place: Workspace, encoder: LateEncoder) -> None:
    """Keep in mind where the encoder of an index was read, so that it need not be read to embed nothing."""
    from vitembed.model.late import note_source

    if encoder.is_read:
        note_source(place.index_dir, encoder.encoder())


def index_facts(encoder: LateEncoder) -> dict[str, Any]:
    """What an index keeps of its encoder; nothing of one that is not read, as its index is there and has it."""
    if not encoder.is_read:
        return {}
    found = encoder.encoder()
    return {
        "model": found.name,
        "model_path": found.reference,
        "pool": found.pool,
        "speed": str(found.speed),
        "img_size": found.preprocess.img_size,
        "depth": found.preprocess.depth,
    }


def model_or_public(model: str | None, workspace: Path | None) -> str:
    """What to index with where nobody said: the workspace's own model, and without one a public model; said so."""
    from vitembed.model.names import DEFAULT_MODEL

    if model is None:
        try:
            place = find_workspace(workspace)
            if place.model_dir.is_dir():
                return os.fspath(place.model_dir)
        except VitembedError:  # made further on, when there is something to put into it
            pass
        note(f"no model of your own here: using the public {DEFAULT_MODEL} (vitembed pretrain makes one; --model)")
        return DEFAULT_MODEL
    return model


def encoder_of_probe(
    saved: SavedProbe, model: str | None, workspace: Path | None, *, tolerant: bool = False
) -> Encoder:
    """The encoder that a saved probe belongs to, unless ``--model`` names one; where it is gone, the workspace's.

    A probe may come from anybody, so of public names only those of the catalogue are followed.
    """
    from vitembed.model.kept import model_with
    from vitembed.model.names import public_source

    meta = saved.meta
    recorded, pool, speed = meta.get("model"), meta.get("pool"), recorded_speed(meta)
    if model is None:
        with suppress(VitembedError):  # without a workspace there is only what is recorded
            found = model_with(saved.fingerprint, find_workspace(workspace), speed=speed)
            model = None if found is None else os.fspath(found)
    if model is None and isinstance(recorded, str):
        source = public_source(recorded)
        if os.path.lexists(recorded) or (source is not None and source.row is not None):
            model = recorded
    return open_encoder(model, workspace, pool=pool if isinstance(pool, str) else None, speed=speed, tolerant=tolerant)
