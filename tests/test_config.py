"""Settings: every mistake stops with its full path and what to do."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from vitembed.config import FinetuneConfig, PretrainConfig, to_dict
from vitembed.errors import ConfigError
from vitembed.recipes import differences, flat, given, load_config


def test_settings_reach_every_level_and_yaml_is_below_them(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("seed: 7\noptim:\n  base_lr: 1.0e-4\n  batch_size: 32\n")
    config = load_config(
        PretrainConfig, recipe, ["optim.batch_size=64", "augment.crop_scale=[0.2,0.9]", "model.init_values=1e-5"]
    )
    assert config.seed == 7
    assert config.optim.base_lr == 1e-4
    assert config.optim.batch_size == 64
    assert config.augment.crop_scale == (0.2, 0.9)
    assert config.model.vit().init_values == 1e-5
    assert config.objective == PretrainConfig().objective


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optim.max_step=60", "unknown setting 'optim.max_step'. Did you mean 'optim.max_steps'?"),
        ("mode.size=tiny", "unknown setting 'mode'. Did you mean 'model'?"),
        ("optim.zzz=1", "unknown setting 'optim.zzz'. Known here: batch_size"),
        ("optim.max_steps=abc", "optim.max_steps: Value 'abc' of type 'str' could not be converted to Integer"),
        ("model.size=smal", "unknown model size 'smal': expected one of nano, tiny, small, base, large, huge"),
        ("model.img_size=60", "img_size 60 must be a multiple of patch_size 16"),
        ("objective.mask_ratio=2", "objective.mask_ratio must be a number in 0..1 (1 excluded), got 2"),
        ("objective.num_views=1", "objective.spread 'coding_rate' compares views: num_views must be at least 2"),
        ("augment.crop_scale=[1]", "augment.crop_scale takes 2 numbers such as [0.3, 1.0], got [1.0]"),
        ("optim=3", "Merge error"),
        ("nonsense", "setting 'nonsense' is not of the form key=value"),
        ("time_budget_seconds=-1", "time_budget_seconds must be a number in 0..1e+09 (0 excluded), got -1"),
    ],
)
def test_a_mistake_is_one_line_with_the_full_name(setting, message):
    with pytest.raises(ConfigError) as error:
        load_config(PretrainConfig, None, [setting])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_several_contradictions_are_told_at_once():
    with pytest.raises(ConfigError, match=r"objective.mask_ratio must .*; objective.spread must be"):
        load_config(PretrainConfig, None, ["objective.mask_ratio=1.5", "objective.spread=magic"])


@pytest.mark.parametrize("text", ["model: [", "- a\n- b\n", "model:\n  sise: tiny\n", "\x00"])
def test_a_recipe_that_is_none_is_one_clear_error(tmp_path, text):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        load_config(PretrainConfig, path)


def test_an_unknown_recipe_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"no recipe 'smal': .*one of .*small.* Did you mean 'small'\?"):
        load_config(PretrainConfig, "smal")
    with pytest.raises(ConfigError, match=r"cannot read config .*absent.yaml"):
        load_config(PretrainConfig, "absent.yaml")


def test_differences_name_each_setting():
    old = to_dict(load_config(PretrainConfig, None, []))
    new = to_dict(load_config(PretrainConfig, None, ["seed=1", "augment.crop_scale=[0.1,1.0]"]))
    assert differences(old, new) == ["augment.crop_scale: [0.3, 1.0] -> [0.1, 1.0]", "seed: 0 -> 1"]
    assert differences(old, old) == []


def test_settings_need_no_torch():
    code = "import sys, vitembed.recipes, vitembed.config; print('torch' in sys.modules, 'faiss' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False", "False"]


def test_room_and_function_of_the_same_name_are_one_whatever_is_imported_first():
    for first in ("import vitembed", "import vitembed.pretrain.losses", "from vitembed.pretrain.run import pretrain"):
        code = f"{first}\nimport vitembed\nassert callable(vitembed.pretrain), vitembed.pretrain"
        subprocess.run([sys.executable, "-c", code], check=True)


ONE_PASS = ["optim.max_epochs=1"]


@pytest.mark.parametrize(
    ("recipe", "typed", "expected"),
    [
        ("smoke", ONE_PASS, {"optim.max_steps": None, "optim.max_epochs": 1.0}),
        ("smoke", ["time_budget_seconds=9"], {"optim.max_steps": None, "time_budget_seconds": 9.0}),
        ("smoke", ["time_budget_seconds=9", "optim.max_steps=5"], {"optim.max_steps": 5, "time_budget_seconds": 9.0}),
        ("smoke", ["time_budget_seconds=null"], {"optim.max_steps": 60}),
        ("small", ["optim.max_steps=5"], {"optim.max_steps": 5}),
        ("continue", ONE_PASS, {"optim.max_steps": None}),
        ("smoke", ["model.size=tiny"], {"model.embed_dim": None, "model.depth": None}),
        ("smoke", ["model.size=tiny", "model.depth=3"], {"model.embed_dim": None, "model.depth": 3}),
        ("emoji", ["model.img_size=64"], {"data.cache_size": None}),
        ("emoji", ["model.img_size=64", "data.cache_size=80"], {"data.cache_size": 80}),
        ("base", ["model.img_size=128"], {"objective.local_img_size": None}),
        ("budget.yaml", ONE_PASS, {"time_budget_seconds": None, "optim.max_epochs": 1.0}),
        ("budget.yaml", ["optim.max_steps=5"], {"time_budget_seconds": None, "optim.max_steps": 5}),
    ],
)
def test_what_was_typed_wins_over_what_would_hide_it(tmp_path, monkeypatch, recipe, typed, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "budget.yaml").write_text("time_budget_seconds: 60\n")
    found = dict(flat(to_dict(load_config(PretrainConfig, recipe, typed))))
    assert {key: found[key] for key in expected} == expected


def test_a_time_budget_of_fine_tuning_is_a_limit_beside_its_length(tmp_path):
    path = tmp_path / "tune.yaml"
    path.write_text("time_budget_seconds: 60\noptim: {max_steps: 7}\n")
    config = load_config(FinetuneConfig, path, ONE_PASS)
    assert (config.time_budget_seconds, config.optim.max_steps, config.optim.max_epochs) == (60, None, 1)
    config = load_config(FinetuneConfig, path, ["time_budget_seconds=9"])
    assert (config.time_budget_seconds, config.optim.max_steps) == (9, 7)


@pytest.mark.parametrize(
    "typed",
    [
        ["optim.max_steps=3", "optim.max_epochs=200"],  # also where it is the default
        ["time_budget_seconds=3", "optim.max_epochs=2"],
    ],
)
def test_two_lengths_from_one_hand_are_refused_by_name(typed, tmp_path):
    with pytest.raises(ConfigError, match=rf"{typed[0].split('=')[0]}=.* and optim.max_epochs=.* contradict"):
        load_config(PretrainConfig, "smoke", typed)


def test_a_file_may_name_one_length_or_be_that_of_a_whole_run(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("optim: {max_steps: 9, max_epochs: 3}\n")
    with pytest.raises(ConfigError, match=r"optim.max_steps=9 and optim.max_epochs=3 contradict"):
        load_config(PretrainConfig, path)
    whole = to_dict(load_config(PretrainConfig, "smoke"))
    path.write_text(json.dumps(whole))
    assert to_dict(load_config(PretrainConfig, path)) == whole


def test_an_option_and_a_setting_that_differ_are_refused():
    assert given("seed", 3, ["seed=3"], "--seed") == ["seed=3"]
    assert given("seed", None, ["seed=3"], "--seed") == []
    with pytest.raises(ConfigError, match="--seed 4 and seed=3 contradict"):
        given("seed", 4, ["seed=3"], "--seed")
