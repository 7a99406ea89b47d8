"""How settings are read: the defaults of a dataclass, then a YAML recipe, then ``key=value``.

An unknown key, a wrong type or values that contradict each other stop with the full path of the setting and a near
match. No torch here, and the only home of OmegaConf.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from vitembed.config import AUGMENT_PRESETS, AugmentConfig, FinetuneConfig, to_dict
from vitembed.config.ranges import RANGES, Range
from vitembed.errors import ConfigError

C = TypeVar("C")


_LENGTHS = ("optim.max_steps", "optim.max_epochs", "time_budget_seconds")
_GIVES_WAY = {
    "optim.max_steps": ("time_budget_seconds",),
    "optim.max_epochs": ("optim.max_steps", "time_budget_seconds"),
    "time_budget_seconds": ("optim.max_steps",),
    "model.size": ("model.embed_dim", "model.depth", "model.num_heads"),
    "model.img_size": ("data.cache_size", "objective.local_img_size"),
}
"""What a setting that the user typed would be hidden by, where a recipe or YAML file says it: that gives way."""


def load_config(
    kind: type[C],
    source: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    chosen: Sequence[str] = (),
) -> C:
    """A checked configuration: the defaults of ``kind``, then a YAML, then ``key=value`` settings.

    What the user typed wins: ``optim.max_epochs=1`` on a recipe with ``max_steps`` is one pass, as the recipe's length
    gives way.

    Args:
        kind: A frozen dataclass such as ``PretrainConfig``.
        source: Name of a packaged recipe, or path of a YAML file; none: defaults alone.
        overrides: Settings such as ``optim.max_steps=60``, as the user typed them.
        chosen: Such settings that were chosen for the user; they come before the others.

    Raises:
        ConfigError: Unknown recipe or key (with a near match), wrong type, contradicting values.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        merged = OmegaConf.structured(kind)
        _set_writable(merged)
        layers: list[Any] = [_parse(read_recipe(source), source)] if source is not None else []
        written = _flat_layers(layers)
        if written.get("optim.max_epochs") != dict(flat(to_dict(kind()))).get("optim.max_epochs"):
            _refuse_two_lengths(kind, written)  # a file with all settings of a run has the default beside its length
        typed = [_setting(setting) for setting in overrides]
        _refuse_two_lengths(kind, _flat_layers(typed))
        layers += [_setting(setting) for setting in chosen]
        layers += [_setting(setting) for setting in _giving_way(kind, _flat_layers(layers), _flat_layers(typed))]
        layers += typed
        for layer in layers:
            given = OmegaConf.to_container(layer)
            _check_keys(kind, given, "")
            merged = OmegaConf.merge(merged, _augment_start(given), layer)
        values = OmegaConf.to_container(merged)
    except (OmegaConfBaseException, OverflowError) as error:  # a whole number may be too large for a float
        key = str(getattr(error, "full_key", None) or "")
        allowed = _range_of(kind, key)
        expected = f"; {key} must be {allowed}" if allowed is not None else ""
        raise ConfigError(f"{f'{key}: ' if key else ''}{str(error).splitlines()[0]}{expected}") from error
    config: C = _build(kind, values)
    return config


def given(key: str, value: object, overrides: Sequence[str], option: str) -> list[str]:
    """The setting that an option stands for, as ``key=value``; none where it was not given.

    Raises:
        ConfigError: If the setting was given as well, with another value.
    """
    if value is None:
        return []
    named = named_settings(None, overrides).get(key, value)
    if named is not value and named != value:  # NaN is not even itself
        raise ConfigError(f"{option} {value} and {key}={named} contradict each other: leave one of them out")
    return [f"{key}={value}"]


def _setting(setting: str) -> Any:
    """``key=value`` as an OmegaConf mapping."""
    from omegaconf import OmegaConf

    key, equals, _ = setting.partition("=")
    if not equals or not key:
        raise ConfigError(f"setting {setting!r} is not of the form key=value, such as optim.max_steps=60")
    if re.search(r"\d{310}", setting):
        raise ConfigError(f"{key} is a number too large to compute with: {setting.partition('=')[2][:20]}...")
    return OmegaConf.from_dotlist([setting])


def _giving_way(kind: type, below: Mapping[str, Any], typed: Mapping[str, Any]) -> list[str]:
    """Settings by which those below give way that would hide what the user typed."""
    defaults = dict(flat(to_dict(kind())))
    hidden = [key for name, value in typed.items() if value is not None for key in _GIVES_WAY.get(name, ())]
    if kind is FinetuneConfig:  # there a time budget is a limit beside the length
        hidden = [key for key in hidden if key not in _LENGTHS or "optim.max_epochs" in typed]
        hidden = [key for key in hidden if key != "time_budget_seconds"]
    return [f"{key}={json.dumps(defaults[key])}" for key in hidden if key in {*below} & {*defaults} - {*typed}]


def _refuse_two_lengths(kind: type, named: Mapping[str, Any]) -> None:
    """Two lengths from one hand, of which one would be passed over in silence.

    Raises:
        ConfigError: With both of them.
    """
    for other in ("optim.max_steps", *(() if kind is FinetuneConfig else ("time_budget_seconds",))):
        if named.get(other) is not None and named.get("optim.max_epochs") is not None:
            raise ConfigError(
                f"{other}={named[other]} and optim.max_epochs={named['optim.max_epochs']} contradict each other: both "
                "say how long the run is, leave one of them out"
            )


def _flat_layers(layers: Sequence[Any]) -> dict[str, Any]:
    """What some layers say together."""
    from omegaconf import OmegaConf

    return {key: value for layer in layers for key, value in flat(OmegaConf.to_container(layer))}


def _range_of(kind: Any, key: str) -> Range | None:
    """The range of a numeric setting by its full key; none for another setting or key."""
    first, _, rest = key.partition(".")
    if rest:
        section = next((known.default_factory for known in dataclasses.fields(kind) if known.name == first), None)
        return _range_of(section, rest) if dataclasses.is_dataclass(section) else None
    return RANGES[kind.__name__].get(first.partition("[")[0])


def named_settings(source: str | Path | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What a YAML and ``key=value`` settings say themselves, flat: ``{"optim.max_steps": 60}``; nothing is checked."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        layers = [_parse(read_recipe(source), source)] if source is not None else []
        layers += [OmegaConf.from_dotlist([setting]) for setting in overrides if "=" in setting]
        return _flat_layers(layers)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from error


def flat(values: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Nested settings as pairs such as ``("optim.max_steps", 60)``."""
    if not isinstance(values, dict):
        return [(prefix.removesuffix("."), values)]
    return [pair for key, value in values.items() for pair in flat(value, f"{prefix}{key}.")]


def _augment_start(given: Any) -> dict[str, Any]:
    """What ``augment.preset`` in a layer of settings stands for: the whole section, under the layer's own settings."""
    section = given.get("augment") if isinstance(given, dict) else None
    preset = section.get("preset") if isinstance(section, dict) else None
    if preset not in AUGMENT_PRESETS:  # none named, or an unknown one, which AugmentConfig refuses
        return {}
    return {"augment": {**to_dict(AugmentConfig()), **AUGMENT_PRESETS[preset]}}


def _parse(text: str, source: str | Path) -> Any:
    """A recipe's text as an OmegaConf mapping."""
    import yaml
    from omegaconf import DictConfig, OmegaConf

    try:
        parsed = OmegaConf.create(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"config {str(source)!r} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(parsed, DictConfig):
        raise ConfigError(f"config {str(source)!r} is a list, expected settings such as `seed: 1`")
    return parsed


def read_recipe(source: str | Path) -> str:
    """The text of a packaged recipe by name, or of a YAML file.

    Raises:
        ConfigError: If there is neither.
    """
    path = Path(source)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read config {str(path)!r}: {error}") from error
    names = packaged_configs()
    if str(source) not in names:
        near = difflib.get_close_matches(str(source), names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"no recipe {str(source)!r}: expected a YAML file or one of {', '.join(names)}.{hint}")
    return (files("vitembed.configs") / f"{source}.yaml").read_text(encoding="utf-8")


def packaged_configs() -> dict[str, str]:
    """Name of each packaged recipe and its first line, which says what it is for."""
    found = {}
    for entry in sorted(files("vitembed.configs").iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".yaml"):
            first = entry.read_text(encoding="utf-8").splitlines()[0]
            found[entry.name.removesuffix(".yaml")] = first.lstrip("# ").strip()
    return found


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """One line per setting that differs between two ``to_dict`` results: ``optim.base_lr: 0.002 -> 0.001``."""
    lines = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a} -> {b}")
    return lines


def config_from_dict(kind: type[C], values: Mapping[str, Any]) -> C:
    """The configuration of which ``to_dict`` gave ``values``, complete and of this version."""
    config: C = _build(kind, values)
    return config


def _build(kind: Any, values: Any, prefix: str = "") -> Any:
    """The dataclass from plain data; OmegaConf's own way would hand it lists where it has tuples."""
    settings = {}
    for known in dataclasses.fields(kind):
        value = values[known.name]
        section: Any = known.default_factory
        if dataclasses.is_dataclass(section):
            value = _build(section, value, f"{prefix}{known.name}.")
        if isinstance(value, list):
            value = tuple(value)
            if isinstance(known.default, tuple) and len(value) != len(known.default):
                example = list(known.default)
                raise ConfigError(
                    f"{prefix}{known.name} takes {len(example)} numbers such as {example}, got {list(value)}"
                )
        settings[known.name] = value
    return kind(**settings)


def _set_writable(node: Any) -> None:
    """Frozen dataclasses make read-only nodes; merging into them needs them open."""
    from omegaconf import DictConfig, OmegaConf

    OmegaConf.set_readonly(node, False)
    for key in node:
        if isinstance(node._get_node(key), DictConfig):
            _set_writable(node._get_node(key))


def _check_keys(kind: Any, given: Any, prefix: str) -> None:
    """Stop at a key that the dataclass does not have, with its full path and a near match."""
    if not isinstance(given, dict):
        return
    known = {f.name: f for f in dataclasses.fields(kind)}
    sections = {name: f.default_factory for name, f in known.items() if dataclasses.is_dataclass(f.default_factory)}
    for key, value in given.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f" Did you mean {prefix + near[0]!r}?" if near else f" Known here: {', '.join(known)}."
            raise ConfigError(f"unknown setting {prefix + str(key)!r}.{hint}")
        if key in sections:
            _check_keys(sections[key], value, f"{prefix}{key}.")
