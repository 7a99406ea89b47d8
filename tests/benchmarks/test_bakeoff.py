"""The bake-off: what is ours in it (splits, sweep, report, budget) and how the peers' parts are put together."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import pretrain_quality
from bakeoff.data import labels_of, load_data
from bakeoff.ours import ABLATIONS, train_ours
from bakeoff.recipes import RECIPES, with_settings
from bakeoff.report import markdown_report, svg_curves
from bakeoff.score import encoder_scores
from bakeoff.views import ViewSpec, make_views
from pretrain_quality import Job, Sweep, tuned_scale
from vitembed.config import ModelConfig, PretrainConfig
from vitembed.errors import ConfigError
from vitembed.model.vit import VisionTransformer
from vitembed.recipes import load_config

MODEL = ModelConfig(size="nano", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2)


def job(method: str = "dino", minutes: float = 1.0, seed: int = 0, lr_scale: float = 1.0) -> Job:
    return Job(
        data="pets",
        method=method,
        minutes=minutes,
        seed=seed,
        lr_scale=lr_scale,
        settings=(),
        data_root=None,
        cache="unused",
        max_images=None,
        lightly_train_python=None,
    )


def record(of: Job, knn: float, **more: object) -> dict:
    names = ("data", "method", "minutes", "seed", "lr_scale")
    facts = {"settings": [], "num_train": 50, "linear": 50.0, "rankme": 10.0}
    return {**{name: getattr(of, name) for name in names}, **facts, "knn": knn, **more}


def test_a_folder_without_a_split_is_split_once_and_for_all(photo_folder, tmp_path):
    first, second = (load_data(str(photo_folder), None, tmp_path / name) for name in ("a", "b"))
    assert (first.train, first.queries) == (second.train, second.queries)
    assert len(first.queries) == 24 // 5
    assert not set(first.queries) & set(first.train)
    assert set(first.bank) == set(first.train)
    assert set(labels_of(first.bank)) == {"discs", "stripes", "squares"}
    fewer = load_data(str(photo_folder), None, tmp_path / "a", max_images=7)
    assert len(fewer.train) == 7
    assert set(fewer.train) < set(first.train)
    assert fewer.queries == first.queries
    bank, queries = first.scoring_pixels(16)
    assert (bank.shape, queries.shape) == ((20, 16, 16, 3), (4, 16, 16, 3))
    assert np.array_equal(second.scoring_pixels(16)[0], bank)


def test_small_views_are_in_proportion_and_whole_patches():
    spec = ViewSpec(2, (0.05, 0.4), side_of_224=96)
    assert spec.side(32, 8) == 16
    assert spec.side(224, 16) == 96
    images = torch.randint(0, 256, (3, 40, 40, 3), dtype=torch.uint8)
    views = make_views(
        images,
        torch.ones(3),
        [ViewSpec(1, (0.4, 1.0)), spec],
        img_size=32,
        patch_size=8,
        generator=torch.Generator().manual_seed(0),
    )
    assert [tuple(view.shape) for view in views] == [(3, 3, 32, 32), (3, 3, 16, 16), (3, 3, 16, 16)]


def test_settings_of_a_peer():
    changed = with_settings(RECIPES["dino"], ["batch_size=64", "weight_decay=0.1:0.2", "crop=0.3:1", "small=2"])
    assert (changed.batch_size, changed.weight_decay) == (64, (0.1, 0.2))
    assert [(view.count, view.crop_scale) for view in changed.views] == [(1, (0.3, 1.0))] * 2 + [(2, (0.05, 0.4))]
    with pytest.raises(ConfigError, match="no setting 'batchsize'.*batch_size"):
        with_settings(RECIPES["dino"], ["batchsize=64"])


def test_a_sweep_goes_on_where_it_was(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(pretrain_quality, "run", lambda job: ran.append(job.key) or record(job, 30.0))
    jobs = [job(seed=0), job(seed=1)]
    Sweep(tmp_path / "runs.jsonl", 1).results(jobs[:1])
    results = Sweep(tmp_path / "runs.jsonl", 1).results(jobs)
    assert [result["seed"] for result in results] == [0, 1]
    assert ran == [jobs[0].key, jobs[1].key]
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("best", [0.0625, 1.0, 16.0])
def test_the_learning_rate_is_looked_for_beyond_the_range_while_the_best_is_at_its_end(tmp_path, monkeypatch, best):
    def run(job: Job) -> dict:
        return record(job, 50 - abs(np.log2(job.lr_scale / best)))

    monkeypatch.setattr(pretrain_quality, "run", run)
    sweep = Sweep(tmp_path / "runs.jsonl", 1)
    assert tuned_scale(sweep, lambda *of: job(*of), "dino", 2.0, 0, [0.25, 1.0, 4.0]) == best


def test_report_gives_mean_and_spread_over_seeds_and_the_tuned_row(tmp_path):
    runs = [record(job("ours:nano", m, seed), 40 + m + seed) for m in (2.0, 4.0) for seed in (0, 1, 2)]
    runs += [record(job("dino", 2.0, lr_scale=s), 30 + s) for s in (0.25, 1.0, 4.0)] + [
        record(job("dino", 4.0, lr_scale=4.0), 36.0)
    ]
    runs.append(record(job("pixels", 0.0), 33.0))
    report = markdown_report(runs)
    rows = [line for line in report.splitlines() if line.startswith("| ")]
    assert rows[1].startswith("| ours:nano | as shipped | 43.0 ± 1.0 (3) | 45.0 ± 1.0 (3) |")
    assert rows[2].startswith("| dino | x4 | 34.0 | 36.0 |")
    assert rows[3].startswith("| dino | as documented | 31.0 |  |")
    assert rows[4].startswith("| pixels |  | 33.0 | 33.0 |")
    assert "- dino, k-NN at 2 min by learning rate: x0.25: 30.2, x1: 31.0, x4: 34.0" in report
    curves = xml.etree.ElementTree.fromstring(svg_curves(runs))
    assert len(curves.findall("{*}polyline")) == 2


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_term_of_the_default_can_be_taken_away(name):
    changed, whole = (load_config(PretrainConfig, "nano", given) for given in (ABLATIONS[name], []))
    assert changed.objective != whole.objective


def test_our_recipe_learns_for_as_many_steps_as_it_is_given(photo_folder, tmp_path):
    data = load_data(str(photo_folder), None, tmp_path / "cache")
    settings = ["model.img_size=32", "model.embed_dim=32", "model.num_heads=2", "optim.batch_size=8"]
    config = load_config(PretrainConfig, "nano", settings)
    encoders, facts = train_ours(config, data.cache(32), 600.0, max_steps=3)
    assert (facts["steps"], facts["images"]) == (3, 24)
    torch.manual_seed(0)
    fresh = VisionTransformer(config.model.vit())
    assert any(not torch.equal(a, b) for a, b in zip(encoders["vit"].parameters(), fresh.parameters(), strict=True))
    scores = encoder_scores(encoders, data.scoring_pixels(32), (labels_of(data.bank), labels_of(data.queries)))
    assert 0 <= scores["knn"] <= 100
    assert json.dumps(scores)


@pytest.fixture
def peers():
    """The peers' side needs lightly, of the bench extra, and timm."""
    pytest.importorskip("lightly")
    pytest.importorskip("timm")
    import bakeoff.peers
    import bakeoff.train

    return bakeoff


def small(name: str):
    """A peer's recipe with a narrow head and few small views."""
    narrow = ["batch_size=8", "head_hidden=32", "head_dim=16", *(["small=1"] if name not in ("simclr", "mae") else [])]
    return with_settings(RECIPES[name], narrow)


def peer(peers, name: str):
    torch.manual_seed(0)
    recipe = small(name)
    return peers.peers.PEERS[name](VisionTransformer(replace(MODEL, pos_embed=recipe.pos_embed).vit()), recipe).train()


def views_of(count: int, side: int = 32) -> list[torch.Tensor]:
    return [torch.randn(4, 3, side, side) for _ in range(count)]


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_each_peer_makes_its_steps_and_its_encoder_changes(peers, photo_folder, tmp_path, name):
    cache = load_data(str(photo_folder), None, tmp_path / "cache").cache(32)
    ends = [peers.train.train_peer(name, small(name), MODEL, cache, 600.0, seed=0, max_steps=steps) for steps in (0, 2)]
    assert ends[1][1]["steps"] == 2
    assert np.isfinite(ends[1][1]["loss"])
    for encoder in ends[0][0]:  # the teacher moves too
        before, after = (list(end[0][encoder].parameters()) for end in ends)
        assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True)), encoder


def test_teacher_is_a_moving_average_with_the_momentum_of_the_schedule(peers):
    dino = peer(peers, "dino")
    before = dino.teacher.blocks[0].attn.qkv.weight.clone()
    with torch.no_grad():
        dino.vit.blocks[0].attn.qkv.weight.add_(1.0)
    momentum = 1 - (1 - 0.99) * (np.cos(np.pi * 0.3) + 1) / 2
    dino.after_step(0.3)
    expected = momentum * before + (1 - momentum) * dino.vit.blocks[0].attn.qkv.weight
    torch.testing.assert_close(dino.teacher.blocks[0].attn.qkv.weight, expected.detach())


def test_mae_is_judged_on_standardised_hidden_patches(peers):
    mae = peer(peers, "mae")
    torch.nn.init.zeros_(mae.decoder_pred.weight)
    torch.nn.init.zeros_(mae.decoder_pred.bias)
    # Against zeros the mean square of values with mean 0 and (unbiased) variance 1 is (p - 1) / p.
    p = 8 * 8 * 3
    assert float(mae.loss(views_of(1), 0.0).detach()) == pytest.approx((p - 1) / p, rel=1e-4)


def test_ibot_student_never_sees_hidden_patches(peers):
    ibot = peer(peers, "ibot")
    hidden = torch.zeros(1, 4, 4, dtype=torch.bool)
    hidden[0, 1, 2] = True
    ibot.masks = hidden
    views = [view.requires_grad_() for view in views_of(2)]
    ibot.loss(views, 0.0).backward()
    for view in views:
        assert bool((view.grad[:, :, 8:16, 16:24] == 0).all())
        assert bool((view.grad[:, :, :8, :8] != 0).any())
    assert not ibot.vit.patch_embed._forward_hooks
