"""What makes steps cheap: masks that save FLOPs, no question to the device, no work per step that is an epoch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import vitembed
from vitembed.config import PretrainConfig
from vitembed.errors import DataError
from vitembed.images.augment import random_views
from vitembed.images.cache import ImageCache
from vitembed.images.source import ImageRef
from vitembed.model.vit import VisionTransformer
from vitembed.pretrain.batches import BatchStream
from vitembed.pretrain.objective import MaskedViews
from vitembed.pretrain.seeding import seed_step
from vitembed.recipes import load_config
from vitembed.workspace import find_workspace

TINY = ["model.embed_dim=32", "model.depth=2", "model.num_heads=2", "objective.head_hidden_dim=32"]
TINY += ["objective.head_dim=16", "objective.decoder_dim=32", "trainer.accelerator=cpu"]


PATCHES = ["model.img_size=64", "model.patch_size=8", "model.stem=patch"]


def step_flops(*settings: str) -> int:
    """Forward and backward of the whole objective."""
    config = load_config(PretrainConfig, "nano", [*TINY, *PATCHES, *settings])
    objective = MaskedViews(VisionTransformer(config.model.vit()), config.objective)
    # The counter knows this attention only.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        objective(torch.randn(2, 4, 3, 64, 64), torch.Generator()).loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("mask_ratio", [0.5, 0.75])
def test_the_whole_step_costs_what_its_visible_tokens_cost(mask_ratio):
    # By hand: linear layers cost 2 * weights per token forward and twice that backward; attention 2 * 2 * t * t * d.
    b, d, depth, hidden, patches = 8, 32, 2, 32, 64
    whole = step_flops("objective.patch_weight=0", "objective.mask_ratio=0")
    masked = step_flops("objective.patch_weight=0", f"objective.mask_ratio={mask_ratio}")

    def blocks(tokens: int) -> int:
        return 3 * b * depth * (2 * tokens * 12 * d * d + 4 * tokens * tokens * d)

    seen = 1 + round(patches * (1 - mask_ratio))
    assert whole - masked == pytest.approx(blocks(1 + patches) - blocks(seen), rel=1e-6)
    # The rest is the patch embedding, for all patches, and the head.
    embed, head = 2 * 2 * b * patches * 192 * d, 3 * 2 * b * (d * hidden + hidden * hidden + hidden * 16)
    assert masked - blocks(seen) == pytest.approx(embed + head, rel=0.02)


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["objective.spread=info_nce", "objective.contrast_weight=0"],
        ["objective.spread=visreg"],
        ["objective.teacher=true", "objective.patch_target=latent", "objective.num_local_views=2"],
    ],
)
def test_a_step_asks_nothing_back_from_the_device(settings):
    # On tensors without content, whatever needs a value or a count of them (item, nonzero, a mask as index) raises.
    config = load_config(PretrainConfig, "nano", [*TINY, *settings])
    objective = MaskedViews(VisionTransformer(config.model.vit()), config.objective)
    with FakeTensorMode(allow_non_fake_inputs=True):
        images, aspect = torch.empty(4, 96, 96, 3, dtype=torch.uint8), torch.empty(4)
        generator = torch.Generator()
        made = [
            torch.stack(
                [random_views(images, aspect, config.augment, img_size=side, generator=generator) for _ in range(2)]
            )
            for side in (64, config.local_img_size)
        ]
        local = made[1] if config.objective.num_local_views else None
        objective(made[0], generator, local).loss.backward()


def test_a_step_is_seeded_as_by_torch_manual_seed():
    generator = seed_step(2**62 + 5, torch.device("cpu"))
    drawn = torch.rand(3)
    torch.manual_seed(2**62 + 5)
    assert torch.equal(drawn, torch.rand(3))
    assert torch.equal(drawn, torch.rand(3, generator=generator))


def test_the_order_of_an_epoch_is_made_once(monkeypatch):
    cache = ImageCache(
        np.zeros((40, 1, 1, 3), np.uint8), np.ones(40, np.float32), [ImageRef(str(i)) for i in range(40)], []
    )
    stream = BatchStream(cache, batch_size=8, seed=3)
    made = []
    real = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: made.append(seed) or real(seed))
    rows = [stream.rows(step) for step in range(10)]
    assert made == [[3, 0], [3, 1]]
    for step in (7, 2):  # back and forth, as after an interruption
        assert np.array_equal(stream.rows(step), rows[step])


@pytest.fixture
def folder(tmp_path):
    directory = tmp_path / "images"
    directory.mkdir()
    for i in range(24):
        noise = np.random.default_rng(i).integers(0, 255, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(noise).save(directory / f"{i:02}.png")
    return directory


def run(folder, tmp_path, name, *settings):
    given = [*TINY, "optim.batch_size=8", "trainer.num_pictures=0", "trainer.log_every_steps=1", *settings]
    return vitembed.pretrain(
        folder,
        config="smoke",
        overrides=given,
        workspace=find_workspace(tmp_path / "work", create=True),
        name=name,
        progress=False,
    )


def weights(result) -> bytes:
    return (result.model_dir / "encoder.safetensors").read_bytes()


def test_every_cache_gives_the_same_model(folder, tmp_path):
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not really")
    results = {
        place: run(folder, tmp_path, place, "optim.max_steps=7", f"data.cache={place}")
        for place in ("ram", "disk", "off")
    }
    assert [len(result.bad) for result in results.values()] == [1, 1, 1]
    assert weights(results["off"]) == weights(results["ram"]) == weights(results["disk"])


def test_an_image_that_vanishes_stops_the_run_and_the_same_command_goes_on(folder, tmp_path, monkeypatch):
    from vitembed.images.on_demand import OnDemandImages

    settings = ["optim.max_steps=12", "data.cache=off"]
    whole = run(folder, tmp_path, "whole", *settings)
    asked = []
    real = OnDemandImages.__getitem__
    victim = folder / "07.png"
    content = victim.read_bytes()

    def vanishing(self, rows):
        asked.append(len(rows))
        if len(asked) == 8:
            victim.unlink()
        return real(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(OnDemandImages, "__getitem__", vanishing)
        with pytest.raises(DataError, match=r"07\.png: .*; it could be read when the run checked .*repeat the command"):
            run(folder, tmp_path, "torn", *settings)
    run_dir = tmp_path / "work" / ".vitembed" / "runs" / "torn"
    steps = len((run_dir / "metrics.jsonl").read_text().splitlines())
    assert 0 < steps < 12
    from vitembed.pretrain.keep.checkpoint_io import find_checkpoint, read_checkpoint

    assert read_checkpoint(find_checkpoint(run_dir))["global_step"] == steps  # saved although no save was due
    victim.write_bytes(content)
    resumed = run(folder, tmp_path, "torn", *settings)
    assert resumed.completed
    assert weights(resumed) == weights(whole)
