"""What each peer's authors publish: learning rate, weight decay, temperatures, momentum, views; with the source.

Three things are not as published, for every peer alike, and in the peers' favour at these sizes:

- heads are 1024 wide inside instead of 2048 to 4096 and end in at most 2048 prototypes instead of 8192 to 65536: they
  were made for encoders of width 384 and more and 1.3 million images, and would cost many times the encoder here (as
  wide as our own head; prototypes as lightly-train's table has them for up to 50,000 images);
- what is published in epochs (warm-up, teacher temperature, frozen last layer) is the same share of the run;
- batches are of 256 images (128 with many crops) and the learning rate follows by the linear rule, as published.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from bakeoff.views import ViewSpec
from vitembed.errors import ConfigError


@dataclass(frozen=True)
class Recipe:
    """The numbers of one method."""

    base_lr: float
    """Peak learning rate per 256 images."""
    weight_decay: tuple[float, float]
    """At the start and at the end; a cosine between them."""
    warmup_share: float
    """Share of the run in which the learning rate rises."""
    views: tuple[ViewSpec, ...]
    batch_size: int = 256
    betas: tuple[float, float] = (0.9, 0.999)
    min_lr_ratio: float = 0.0
    grad_clip: float | None = None
    pos_embed: str = "learned"
    head_hidden: int = 1024
    head_dim: int = 256
    temperature: float = 0.1
    """Of the student, or of the contrast."""
    teacher_temp: tuple[float, float] = (0.04, 0.04)
    """At the start and from ``teacher_temp_share`` on."""
    teacher_temp_share: float = 0.3
    momentum: float = 0.996
    """Of the teacher at the start; a cosine to 1 at the end."""
    freeze_last_share: float = 0.0
    """Share of the run in which the head's last layer stands still."""
    mask_ratio: float = 0.0
    weight: float = 1.0
    """Of the method's regulariser."""


RECIPES: dict[str, Recipe] = {
    # Chen et al. 2020, arXiv:2002.05709: colours for CIFAR of appendix B.9, crops of 8 to 100 %, head of two
    # layers to 128. It gives no recipe for transformers: optimiser, learning rate, decay and warm-up (40 of 300
    # epochs) are those of MoCo v3 for ViT-S (github.com/facebookresearch/moco-v3, CONFIG.md), whose paper trains SimCLR
    # so as well. B.9 finds temperature 0.5 best for CIFAR; lightly's benchmarks and lightly-train use 0.1.
    "simclr": Recipe(
        base_lr=1.5e-4,
        weight_decay=(0.1, 0.1),
        warmup_share=40 / 300,
        views=(ViewSpec(2, (0.08, 1.0), blur_prob=0.5),),
        head_dim=128,
        temperature=0.1,
    ),
    # Chen et al. 2021, arXiv:2104.02057, and its CONFIG.md for ViT-S: AdamW 1.5e-4, decay 0.1, 40 of 300 epochs,
    # temperature 0.2, momentum 0.99 to 1 by cosine, head 3 and predictor 2 layers to 256 with batch norm, fixed
    # sine-cosine positions, blur 1 / 0.1, solarise 0 / 0.2. The patch embedding is trained: freezing it
    # (stop-grad-conv1) is against instabilities of batches of 4096.
    "mocov3": Recipe(
        base_lr=1.5e-4,
        weight_decay=(0.1, 0.1),
        warmup_share=40 / 300,
        views=(
            ViewSpec(1, (0.08, 1.0), blur_prob=1.0),
            ViewSpec(1, (0.08, 1.0), blur_prob=0.1, solarize_prob=0.2),
        ),
        pos_embed="sincos2d",
        temperature=0.2,
        momentum=0.99,
    ),
    # Caron et al. 2021, arXiv:2104.14294, and github.com/facebookresearch/dino, "vanilla DINO training" of ViT-S (100
    # epochs): 5e-4 per 256, decay 0.04 to 0.4, 10 epochs of warm-up, teacher temperature 0.04, clip 3, last layer
    # frozen for 1 epoch, 2 crops of 40-100 % and 8 of 5-40 % at 96 px. Momentum starts at 0.99 and prototypes are 2048
    # as lightly-train scales both for 20,000 to 50,000 images (at 0.996 the teacher of a few hundred steps is mostly
    # its random start).
    "dino": Recipe(
        base_lr=5e-4,
        weight_decay=(0.04, 0.4),
        warmup_share=0.1,
        views=(
            ViewSpec(1, (0.4, 1.0), blur_prob=1.0),
            ViewSpec(1, (0.4, 1.0), blur_prob=0.1, solarize_prob=0.2),
            ViewSpec(8, (0.05, 0.4), side_of_224=96, blur_prob=0.5),
        ),
        batch_size=128,
        grad_clip=3.0,
        head_dim=2048,
        momentum=0.99,
        freeze_last_share=0.01,
    ),
    # Zhou et al. 2021, arXiv:2111.07832, as lightly's benchmark has it (benchmarks/imagenet/vitb16/ibot.py): one head
    # for cls and patches, 5e-4 per 256, decay 0.04 to 0.4, temperature of the teacher 0.04 to 0.07 over 30 of 100
    # epochs, blocks of patches hidden in half of the global views, 2 crops of 25-100 % and 10 of 5-25 %. Layer scale
    # and stochastic depth are left out: the backbone is the same for all.
    "ibot": Recipe(
        base_lr=5e-4,
        weight_decay=(0.04, 0.4),
        warmup_share=0.1,
        views=(
            ViewSpec(1, (0.25, 1.0), blur_prob=1.0),
            ViewSpec(1, (0.25, 1.0), blur_prob=0.1, solarize_prob=0.2),
            ViewSpec(10, (0.05, 0.25), side_of_224=96, blur_prob=0.5),
        ),
        batch_size=128,
        grad_clip=3.0,
        head_dim=2048,
        teacher_temp=(0.04, 0.07),
        momentum=0.99,
        freeze_last_share=0.01,
    ),
    # Assran et al. 2022, arXiv:2204.07141, and its configuration for ViT-S/16: 1e-3 per 1024 images, decay 0.04 to
    # 0.4, 15 of 800 epochs, 1024 prototypes, temperatures 0.1 and 0.025, mean-entropy weight 1, Sinkhorn, clip 3, one
    # target, one anchor with 15 % of its patches dropped, 10 small crops. Momentum from 0.99, as for DINO.
    "msn": Recipe(
        base_lr=2.5e-4,
        weight_decay=(0.04, 0.4),
        warmup_share=15 / 800,
        views=(
            ViewSpec(2, (0.3, 1.0), blur_prob=0.5),
            ViewSpec(10, (0.05, 0.3), side_of_224=96, blur_prob=0.5),
        ),
        batch_size=128,
        grad_clip=3.0,
        mask_ratio=0.15,
        momentum=0.99,
    ),
    # Wu et al. 2026, arXiv:2606.02572, as lightly's benchmark has it (benchmarks/imagenet/vitb16/visreg.py): 9e-4,
    # decay 0.05, 1 of 100 epochs, cosine to 1/1000, head of three layers with GELU to 256, 2048 slices, 4 crops of
    # 30-100 % and 6 of 5-30 %; weight 0.6, the paper's for small data sets.
    "visreg": Recipe(
        base_lr=9e-4,
        weight_decay=(0.05, 0.05),
        warmup_share=0.01,
        min_lr_ratio=0.001,
        views=(
            ViewSpec(4, (0.3, 1.0), blur_prob=0.5, solarize_prob=0.2),
            ViewSpec(6, (0.05, 0.3), side_of_224=96, blur_prob=0.5, solarize_prob=0.2),
        ),
        batch_size=128,
        weight=0.6,
    ),
    # He et al. 2021, arXiv:2111.06377, appendix A.1 and its PRETRAIN.md: 1.5e-4 per 256, decay 0.05, betas 0.9, 0.95,
    # 40 of 800 epochs, 75 % hidden, standardised patches, crops of 20-100 % and mirroring alone, fixed positions. The
    # decoder is 2 blocks of width 128 (8 of 512 beside 24 of 1024 in the paper).
    "mae": Recipe(
        base_lr=1.5e-4,
        weight_decay=(0.05, 0.05),
        betas=(0.9, 0.95),
        warmup_share=40 / 800,
        views=(ViewSpec(1, (0.2, 1.0), colour=False),),
        pos_embed="sincos2d",
        mask_ratio=0.75,
    ),
}


def with_settings(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """The recipe with ``key=value`` changes: its own numbers (``a:b`` for two), ``crop=LOW:HIGH`` and ``small=COUNT``.

    Raises:
        ConfigError: If there is no such number.
    """
    for setting in settings:
        key, _, value = setting.partition("=")
        known = {field.name for field in fields(Recipe)} - {"views"}
        numbers = () if key == "pos_embed" else tuple(float(part) for part in value.split(":"))
        if key == "crop":
            low, high = numbers
            views = (replace(v, crop_scale=(low, high)) if v.side_of_224 == 224 else v for v in recipe.views)
            recipe = replace(recipe, views=tuple(views))
        elif key == "small":
            views = (v if v.side_of_224 == 224 else replace(v, count=int(value)) for v in recipe.views)
            recipe = replace(recipe, views=tuple(views))
        elif key in known:
            old = getattr(recipe, key)
            new = (
                numbers
                if isinstance(old, tuple)
                else value
                if key == "pos_embed"
                else int(value)
                if isinstance(old, int)
                else numbers[0]
            )
            recipe = replace(recipe, **{key: new})
        else:
            raise ConfigError(f"peers have no setting {key!r}: expected one of crop, small, {', '.join(sorted(known))}")
    return recipe
