"""What is chosen for which images, with reasons, and never over the user's own settings."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vitembed.config import PretrainConfig
from vitembed.images.source import ImageRef
from vitembed.pretrain.auto import batch_for, choose, epochs_for, look_at, patch_of, sizes_for
from vitembed.recipes import load_config


def images(folder, sizes, *, mode="RGB", suffix="png"):
    folder.mkdir(exist_ok=True)
    refs = []
    for i, (width, height) in enumerate(sizes):
        noise = np.random.default_rng(i).integers(0, 255, (height, width, 3), dtype=np.uint8)
        path = folder / f"{mode}{i}.{suffix}"
        Image.fromarray(noise).convert(mode).save(path)
        refs.append(ImageRef(str(path)))
    return refs


def resolved(choice, *overrides):
    return load_config(PretrainConfig, choice.recipe, [*choice.overrides, *overrides])


def test_the_median_shorter_side_and_colour_are_seen_and_unreadable_images_do_not_count(tmp_path):
    refs = images(tmp_path, [(300, 60), (80, 200), (90, 500)])
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    look = look_at([*refs, ImageRef(str(tmp_path / "broken.jpg"))])
    assert look.side == 80
    assert not look.grey
    assert look_at(images(tmp_path, [(40, 40)] * 3, mode="L")).grey


def test_a_grey_jpeg_saved_in_colour_is_grey(tmp_path):
    folder = tmp_path / "grey"
    folder.mkdir()
    for i in range(3):
        ramp = np.linspace(0, 200 + i, 64, dtype=np.uint8).reshape(1, 64, 1).repeat(64, 0).repeat(3, 2)
        Image.fromarray(ramp).save(folder / f"{i}.jpg")
    assert look_at([ImageRef(str(path)) for path in sorted(folder.iterdir())]).grey


def test_without_a_gpu_a_small_model_for_a_few_minutes(tmp_path):
    choice = choose(images(tmp_path, [(500, 375)] * 4), gpu=False)
    config = resolved(choice)
    assert choice.recipe == "nano"
    assert (config.model.img_size, config.model.patch_size) == (64, 16)
    assert config.time_budget_seconds == 600
    assert config.optim.batch_size == 32
    assert any("no GPU" in reason for reason in choice.reasons)
    assert any("375 px" in reason for reason in choice.reasons)


@pytest.mark.parametrize(("num", "recipe"), [(4, "small"), (60_000, "base")])
def test_with_a_gpu_the_recipe_follows_the_number_of_images(tmp_path, num, recipe):
    refs = images(tmp_path, [(500, 375)] * 4) * (num // 4)
    choice = choose(refs, gpu=True)
    config = resolved(choice)
    assert choice.recipe == recipe
    assert (config.model.img_size, config.model.patch_size) == (224, 16)
    assert config.time_budget_seconds is None
    assert config.optim.max_epochs == epochs_for(num)


def test_grey_images_get_no_colour_changes(tmp_path):
    config = resolved(choose(images(tmp_path, [(28, 28)] * 4, mode="L"), gpu=False))
    assert (config.augment.saturation, config.augment.hue, config.augment.gray_prob) == (0, 0, 0)
    assert (config.model.img_size, config.model.patch_size) == (32, 8)


def test_what_the_user_names_is_left_to_the_user(tmp_path):
    own = ["model.img_size=128", "optim.batch_size=16", "optim.max_steps=5", "augment.hue=0.2"]
    choice = choose(images(tmp_path, [(40, 40)] * 4, mode="L"), overrides=own, gpu=False)
    assert not {setting.split("=")[0] for setting in choice.overrides} & {setting.split("=")[0] for setting in own}
    assert resolved(choice, *own).time_budget_seconds is None


def test_patches_follow_the_size_that_the_user_names(tmp_path):
    refs = images(tmp_path, [(500, 375)] * 4)
    for own, expected in ((["model.img_size=32"], (32, 8)), (["model.img_size=32", "model.patch_size=16"], (32, 16))):
        choice = choose(refs, gpu=False, overrides=own)
        config = resolved(choice, *own)
        assert (config.model.img_size, config.model.patch_size) == expected


def test_sizes_batches_and_lengths_over_the_whole_range():
    for side in (0, 28, 47, 48, 160, 4000):
        for gpu in (False, True):
            img_size, patch_size = sizes_for(side, gpu=gpu)
            assert img_size % patch_size == 0
            assert 16 <= (img_size // patch_size) ** 2 <= 256
    assert sizes_for(500, gpu=False, compares_views=False) == (64, 8)
    assert [patch_of(size) for size in (16, 32, 48, 56, 64, 96, 224)] == [4, 8, 8, 8, 16, 16, 16]
    config = load_config(PretrainConfig, "nano")
    assert [batch_for(num, config) for num in (8, 500, 2_500, 50_000, 10**6)] == [32, 32, 256, 256, 256]
    assert [epochs_for(num) for num in (100, 10_000, 100_000, 10**6)] == [400, 400, 100, 30]


def test_a_batch_that_does_not_fit_the_memory_is_halved_and_that_of_an_interrupted_run_is_kept(tmp_path, monkeypatch):
    refs = images(tmp_path, [(64, 64)] * 4) * 2_000
    monkeypatch.setattr("vitembed.pretrain.memory.free_memory", lambda device: 500_000_000)
    choice = choose(refs, gpu=False)
    size = resolved(choice).optim.batch_size
    assert 8 <= size < 256
    assert any("MB" in reason or "GB" in reason for reason in choice.reasons)
    monkeypatch.setattr("vitembed.pretrain.memory.free_memory", lambda device: 10**12)
    assert resolved(choose(refs, gpu=False)).optim.batch_size == 256
    assert resolved(choose(refs, gpu=False, batch_size=size)).optim.batch_size == size


@pytest.mark.parametrize(("gpu", "size"), [(False, "nano"), (True, "small")])
def test_images_that_must_not_be_changed_are_learned_from_without_views(tmp_path, gpu, size):
    choice = choose(images(tmp_path, [(64, 64)] * 4), overrides=["augment.preset=none"], gpu=gpu)
    config = resolved(choice, "augment.preset=none")
    assert (config.model.size, config.objective.spread, config.objective.num_views) == (size, "none", 1)
    assert config.objective.cls_regression_weight > 0
    assert config.augment.crop_scale == (1.0, 1.0)
