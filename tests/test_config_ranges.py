"""Every numeric setting has a range, and no number outside it gets into a run."""

from __future__ import annotations

import dataclasses
import math
from types import UnionType
from typing import Union, get_args, get_origin, get_type_hints

import pytest
from PIL import Image

import vitembed.config.architecture
import vitembed.config.finetuning
import vitembed.config.learning
import vitembed.config.running
from vitembed.config import FinetuneConfig, PretrainConfig, ViTConfig, to_dict
from vitembed.config.ranges import RANGES
from vitembed.errors import ConfigError
from vitembed.pretrain.run import pretrain
from vitembed.pretrain.supervised.run import finetune
from vitembed.recipes import config_from_dict, load_config

MODULES = (vitembed.config, vitembed.config.architecture, vitembed.config.finetuning, vitembed.config.learning)
CLASSES = {
    value.__name__: value
    for module in (*MODULES, vitembed.config.running)
    for value in vars(module).values()
    if isinstance(value, type) and dataclasses.is_dataclass(value)
}
WHOLE = tuple(name for ranges in RANGES.values() for name, allowed in ranges.items() if allowed.whole)
ODD = (-1, 0, math.nan, math.inf, -math.inf, 1e308, 2**63)


def numeric_fields(kind):
    """Names of the fields that hold numbers, and whether they are several."""

    def kinds(hint):
        if get_origin(hint) in (Union, UnionType, tuple):
            return {kind for part in get_args(hint) for kind in kinds(part)}
        return {hint}

    hints = get_type_hints(kind)
    found = {name: kinds(hint) for name, hint in hints.items() if isinstance(vars(kind).get(name), property) is False}
    return {name for name, each in found.items() if each & {int, float} and bool not in each}


def settings():
    """Each numeric setting of a run by its full key, the kind of run, and the setting's class and field."""
    for run in (PretrainConfig, FinetuneConfig):
        for field in dataclasses.fields(run):
            section = field.default_factory
            if dataclasses.is_dataclass(section):
                for name in sorted(numeric_fields(section)):
                    yield run, f"{field.name}.{name}", section, name
            elif field.name in numeric_fields(run):
                yield run, field.name, run, field.name


def test_every_numeric_field_is_in_the_table_and_nothing_else():
    for name, kind in CLASSES.items():
        assert set(RANGES.get(name, {})) == numeric_fields(kind), name
    assert set(RANGES) <= set(CLASSES)


def test_every_recipe_lies_within():
    from vitembed.recipes import packaged_configs

    for recipe in packaged_configs():
        load_config(FinetuneConfig if "finetune" in recipe else PretrainConfig, recipe)


@pytest.mark.parametrize(("run", "key", "section", "name"), list(settings()))
def test_odd_numbers_are_refused_or_lie_within(run, key, section, name):
    allowed = RANGES[section.__name__][name]
    for odd in ODD:
        given = odd if allowed.whole else float(odd)
        try:
            config = changed(run, key, [given, given] if isinstance(getattr(section(), name), tuple) else given)
        except ConfigError as error:
            message = str(error)
            assert "\n" not in message
            if odd not in allowed:  # else other settings contradict it
                assert key in message, message
                assert str(given) in message, message
                assert str(allowed) in message, message
        else:
            value = getattr(getattr(config, key.split(".")[0]), name) if "." in key else getattr(config, name)
            numbers = value if isinstance(value, tuple) else (value,)
            assert all(number in allowed and math.isfinite(number) for number in numbers)


def changed(run, key, value):
    """A configuration with one setting changed; as text where the dataclass would not take the type."""
    if isinstance(value, float) and key.endswith(WHOLE):
        return load_config(run, None, [f"{key}={value}"])
    values = to_dict(run())
    *section, name = key.split(".")
    (values[section[0]] if section else values)[name] = value
    return config_from_dict(run, values)


def test_architectures_are_refused_alike():
    plain = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
    for name, allowed in RANGES["ViTConfig"].items():
        for odd in ODD:
            if odd in allowed or (allowed.whole and isinstance(odd, float)):
                continue  # types are checked as the tests run, by beartype
            with pytest.raises(ConfigError) as caught:
                ViTConfig(**{**plain, name: odd if allowed.whole else float(odd)})
            assert name in str(caught.value)
            assert str(allowed) in str(caught.value)


def test_a_time_budget_out_of_range_is_refused(tmp_path):
    for number in range(8):
        (tmp_path / f"{number % 2}").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number % 2}/{number}.png")
    for budget in (math.nan, -1.0, 1e308):
        for train in (pretrain, finetune):
            with pytest.raises(ConfigError, match="time_budget_seconds must be a number in"):
                train(tmp_path, time_budget=budget, workspace=tmp_path / "w")


def test_numbers_too_large_for_a_float_are_refused():
    for key in ("time_budget_seconds", "optim.base_lr", "seed"):
        with pytest.raises(ConfigError, match=f"{key} is a number too large to compute with: 1000"):
            load_config(PretrainConfig, None, [f"{key}=1{'0' * 5000}"])
