"""One training loop for all peers: AdamW under a budget of CPU time, schedules by the share of it that is spent."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from typing import Any

import torch

from bakeoff.peers import PEERS, cosine
from bakeoff.recipes import Recipe
from bakeoff.views import make_views
from vitembed.config import ModelConfig
from vitembed.images.cache import ImageCache
from vitembed.model.vit import VisionTransformer
from vitembed.pretrain.batches import BatchStream
from vitembed.pretrain.module import parameter_groups
from vitembed.pretrain.schedule import lr_factor


def train_peer(
    name: str,
    recipe: Recipe,
    model: ModelConfig,
    cache: ImageCache,
    seconds: float,
    *,
    seed: int,
    lr_scale: float = 1.0,
    max_steps: int | None = None,
) -> tuple[dict[str, VisionTransformer], dict[str, Any]]:
    """Train for ``seconds`` of this process's CPU time; the encoders to score, and facts about the run."""
    torch.manual_seed(seed)
    random.seed(seed)  # lightly draws its block masks with it
    stream = BatchStream(cache, batch_size=recipe.batch_size, seed=seed)
    vit = VisionTransformer(replace(model, pos_embed=recipe.pos_embed).vit())
    peer = PEERS[name](vit, recipe).train()
    peak = recipe.base_lr * stream.batch_size / 256 * lr_scale
    optimizer = torch.optim.AdamW(parameter_groups(peer, 1.0), lr=peak, betas=recipe.betas, fused=True)
    decayed = optimizer.param_groups[0]
    generator = torch.Generator().manual_seed(seed)
    start, step, loss = time.process_time(), 0, torch.zeros(())
    while (spent := time.process_time() - start) < seconds and step != max_steps:
        progress = spent / seconds
        factor = lr_factor(progress, warmup_share=recipe.warmup_share, min_ratio=recipe.min_lr_ratio)
        for group in optimizer.param_groups:
            group["lr"] = peak * factor
        decayed["weight_decay"] = cosine(*recipe.weight_decay, progress)
        batch = stream.batch(step)
        views = make_views(
            batch["images"],
            batch["aspect"],
            recipe.views,
            img_size=model.img_size,
            patch_size=model.patch_size,
            generator=generator,
        )
        loss = peer.loss(views, progress)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss of {name} is {float(loss.detach())} at step {step}")
        optimizer.zero_grad()
        loss.backward()
        peer.before_step(progress)
        if recipe.grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(peer.parameters(), recipe.grad_clip)
        optimizer.step()
        peer.after_step(progress)
        step += 1
    spent = time.process_time() - start
    facts = {"steps": step, "images": step * stream.batch_size, "cpu_seconds": spent, "loss": float(loss.detach())}
    return peer.encoders(), facts
