"""The config that peft keeps beside an adapter's tensors, in which its strength is: read and written layer by layer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from veneer.errors import UserError
from veneer.weights.small_json import parse_small_json

if TYPE_CHECKING:
    from veneer.adapter.protocol import LayerAdapter

__all__ = ["METADATA_KEY", "PeftConfig", "config_for", "parse_config"]

METADATA_KEY = "lora_adapter_metadata"
"""Key of the JSON in a file's metadata that diffusers reads the strength from."""
_PATTERNS = {"r": "rank_pattern", "lora_alpha": "alpha_pattern", "alpha": "alpha_pattern"}
"""Settings that a layer may have a value of its own of, and where peft has these."""


def parse_config(text: str) -> dict[str, Any]:
    """Return the config that a text holds.

    Raises:
        UserError: it is no JSON object.
    """
    try:
        config = parse_small_json(text)
    except ValueError as error:
        raise UserError(f"its config is not JSON ({error})", code="weights.bad_config") from error
    if not isinstance(config, dict):
        raise UserError("its config is not a JSON object", code="weights.bad_config")
    return config


class PeftConfig:
    """The config of one network, as it is for each layer."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config

    def of(self, path: str) -> dict[str, Any]:
        """Return the settings of the layer at a path within the network.

        Raises:
            Exception: the config is not one of peft's, in whatever way it is not.
        """
        return {**self._config, **{key: values[path] for key, values in self._by_layer.items()}}

    @cached_property
    def _by_layer(self) -> dict[str, _ByPattern]:
        config = self._config
        return {key: _ByPattern(config.get(name), config[key]) for key, name in _PATTERNS.items() if key in config}


class _ByPattern:
    """Values by layer as peft looks them up: the first pattern that its path, or an ending of it at a dot, is.

    peft takes patterns as regular expressions, and one can be made that takes longer than anybody lives. What writes
    such files writes paths, with ``^`` before one that is no ending; only these are read.
    """

    def __init__(self, patterns: Mapping[str, Any] | None, default: Any) -> None:
        self._default = default
        self._first: dict[tuple[bool, str], tuple[int, Any]] = {}
        for place, (pattern, value) in enumerate((patterns or {}).items()):
            self._first.setdefault((pattern.startswith("^"), _literal(pattern)), (place, value))

    def __getitem__(self, path: str) -> Any:
        parts = path.split(".")
        names = [(True, path), *((False, ".".join(parts[start:])) for start in range(len(parts)))]
        matches = [self._first[name] for name in names if name in self._first]
        return min(matches, key=lambda match: match[0])[1] if matches else self._default


def _literal(pattern: str) -> str:
    """Return the path that a pattern is; a dot means a dot, though to the letter it is any character."""
    path = re.sub(r"\\(\W)", r"\1", pattern.removeprefix("^").removesuffix("$"))
    if re.search(r"[^\w.\- ]", path):
        raise ValueError(f"the pattern {pattern} is not a layer's name")
    return path


def config_for(layers: Mapping[str, LayerAdapter], *, anchored: bool = True) -> dict[str, Any]:
    """Return what peft's config needs for the layers of one network.

    Args:
        layers: by their path within the network.
        anchored: whether a path is whole; else a reader may have something before it.

    Raises:
        UserError: they are of several methods, or of several kinds of one, of which a config can say one.
    """
    methods = {adapter.method.title: adapter.method for adapter in layers.values()}
    if len(methods) > 1:
        what = f"one network has layers of {' and '.join(sorted(methods))}, and its config can name one method"
        raise UserError(what, code="weights.mixed_methods")
    settings = {path: adapter.peft_settings() for path, adapter in sorted(layers.items())}
    config: dict[str, Any] = {"target_modules": sorted(layers)}
    for key in sorted({key for each in settings.values() for key in each}):
        own = {path: each[key] for path, each in settings.items() if key in each}
        values = list(own.values())
        config[key] = usual = max(sorted(set(values)), key=values.count)
        others = {path: value for path, value in own.items() if value != usual}
        if key in _PATTERNS:
            config[_PATTERNS[key]] = {
                f"{'^' if anchored else ''}{re.escape(path)}": each for path, each in others.items()
            }
        elif others:
            what = f"{next(iter(others))} has {key}={others[next(iter(others))]} and other layers {key}={usual}"
            raise UserError(f"{what}, and peft's config can say one", code="weights.mixed_methods")
    (method,) = methods.values()
    return {**config, **method.peft_markers}
