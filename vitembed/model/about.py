"""Everything worth knowing of a model before it is used: what it is, what it costs, where it is from."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vitembed.config import ViTConfig, to_dict
from vitembed.errors import ModelError
from vitembed.model.catalogue import PublicModel
from vitembed.model.cost import Cost, cost_of, raw_pixel_pairs
from vitembed.model.encoder import load
from vitembed.model.hub import find_cached
from vitembed.model.names import public_source
from vitembed.model.vit import VisionTransformer


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """A model as ``vitembed info`` shows it."""

    name: str
    on_disk: bool
    """Whether its weights are on this machine; without them there is no fingerprint."""
    architecture: dict[str, Any]
    num_params: int
    embed_dim: int
    """Length of its vectors."""
    pool: str
    preprocess: dict[str, Any]
    flops: int
    """Per image, a multiply-add counted as two."""
    raw_pixel_pairs: int
    cost: Cost | None
    """At the size of image that it is shown; none where it is no vision transformer of ours."""
    fingerprint: str | None
    licence: str | None
    provenance: dict[str, Any]
    config: ViTConfig | None
    """The architecture, to work out other sizes."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        values = {key: value for key, value in asdict(self).items() if key not in ("config", "cost")}
        return values | {"cost": None if self.cost is None else asdict(self.cost)}


def about(model: str | os.PathLike[str] | None, *, batch_size: int) -> ModelFacts:
    """Facts about the model that a name means; nothing is fetched for a model of the catalogue.

    Args:
        model: As for ``vitembed.load``.
        batch_size: Images that the memory is worked out for.

    Raises:
        ModelError: If there is no such model.
    """
    row = _not_fetched(model)
    if row is not None:
        return _of_row(row, batch_size)
    encoder = load(model, device="cpu")
    vit: nn.Module = encoder.vit
    side = encoder.preprocess.img_size
    cost, config = None, None
    if not isinstance(vit, VisionTransformer):
        flops = _counted_flops(vit, side)
    else:
        config = vit.config
        cost = cost_of(config, img_size=side, batch_size=batch_size)
        flops = cost.flops
    return ModelFacts(
        name=encoder.name,
        on_disk=True,
        architecture=to_dict(encoder.vit.config),
        num_params=sum(weight.numel() for weight in vit.parameters()),
        embed_dim=encoder.embed_dim,
        pool=encoder.pool,
        preprocess=encoder.preprocess.to_dict(),
        flops=flops,
        raw_pixel_pairs=raw_pixel_pairs(side),
        cost=cost,
        fingerprint=encoder.fingerprint,
        licence=encoder.licence,
        provenance=encoder.provenance,
        config=config,
    )


def config_of(row: PublicModel) -> ViTConfig:
    """The architecture of a catalogue's row, as far as it matters for cost."""
    gated = {"mlp": "swiglu", "mlp_ratio": 2 * row.hidden_dim / row.embed_dim}
    plain = {"mlp": "mlp", "mlp_ratio": row.hidden_dim / row.embed_dim}
    scaled = row.family in ("dinov2", "dinov3", "deit3")
    return ViTConfig(
        img_size=row.img_size,
        patch_size=row.patch_size,
        embed_dim=row.embed_dim,
        depth=row.depth,
        num_heads=row.num_heads,
        num_registers=row.num_registers,
        class_token=row.has_cls,
        pos_embed="rope" if row.family == "dinov3" else "learned",
        pre_norm=row.family == "clip",
        init_values=1.0 if scaled else None,
        **(gated if row.gated_mlp else plain),  # type: ignore[arg-type]
    )


def _not_fetched(model: str | os.PathLike[str] | None) -> PublicModel | None:
    """The row of a name of the catalogue whose files are not here."""
    if model is None or os.path.lexists(model):
        return None
    source = public_source(os.fspath(model))
    return None if source is None or find_cached(source) is not None else source.row


def _of_row(row: PublicModel, batch_size: int) -> ModelFacts:
    config = config_of(row)
    cost = cost_of(config, batch_size=batch_size)
    facts = {"source": "hub", "hub_id": row.hub_id, "family": row.family, "paper": row.paper}
    return ModelFacts(
        name=row.name,
        on_disk=False,
        architecture=to_dict(config),
        num_params=row.num_params,
        embed_dim=row.embed_dim,
        pool="cls" if row.has_cls else "mean",
        preprocess={"img_size": row.img_size},
        flops=cost.flops,
        raw_pixel_pairs=cost.raw_pixel_pairs,
        cost=cost,
        fingerprint=None,
        licence=row.licence + (" (gated)" if row.gated else ""),
        provenance=facts,
        config=config,
    )


def _counted_flops(module: nn.Module, side: int) -> int:
    """By running one image."""
    with FlopCounterMode(display=False) as counter:
        module(torch.zeros(1, 3, side, side))
    return int(counter.get_total_flops())


def refuse_table(facts: ModelFacts) -> ModelError:
    """Why there is no table of sizes."""
    return ModelError(
        f"{facts.name} is no vision transformer of ours: patches and costs at other sizes are not known for it"
    )
