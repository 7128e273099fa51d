"""Where a file tells strengths other than by ``.alpha`` tensors: diffusers' metadata, or peft's config beside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from veneer.adapter.part_names import PART_NAMES, titles
from veneer.errors import UserError
from veneer.files import open_regular
from veneer.weights.formats.names import NETWORKS, TensorName
from veneer.weights.formats.parts import Settings
from veneer.weights.formats.peft_config import METADATA_KEY, PeftConfig, parse_config

__all__ = ["CONFIG_NAME", "FILE_NAME", "NETWORK_KEY", "PREFIX", "RECORD_KEY", "settings_beside"]

FILE_NAME, CONFIG_NAME = "adapter_model.safetensors", "adapter_config.json"
"""The names under which ``PeftModel.save_pretrained`` writes tensors and config."""
PREFIX = "base_model.model."
"""What peft puts before a layer's path within its network."""
NETWORK_KEY = "veneer.network"
"""Key of the metadata by which a file in peft's format says which network it is of: peft's names do not."""
RECORD_KEY = "veneer.unfolded"
"""Key of the record in a file's metadata: JSON of each layer's alpha and of what rounding took from its tensors."""
_LONGEST_CONFIG = 2**24  # bytes; one that names each layer of a large base has some hundred thousand
_TYPE = "peft_type"
_NEEDED = ("r", "lora_alpha")
_TELLING = {*_NEEDED, "alpha", "use_rslora", "use_dora"}
"""What a config tells a layer's strength and method by."""


def settings_beside(
    path: Path, names: Collection[TensorName], metadata: Mapping[str, str]
) -> Callable[[str], Settings | None]:
    """Return the function that gives what peft's config says of a layer, by the file's name for the layer.

    It gives None where there is no config: the tensors then tell all. kohya's names never have one.

    Args:
        path: of the file.
        names: of its tensors.
        metadata: of its header.

    Raises:
        UserError: peft wrote the file, its tensors do not tell the strength, and its config is not beside it.
    """
    configs = [_Configs(config) for config in _configs(path, names, metadata)]
    if not configs:
        return lambda layer: None
    formats = {name.layer: name.format for name in names}
    return lambda layer: None if formats[layer] == "kohya" else _agreed([config.of(layer) for config in configs])


def _configs(path: Path, names: Collection[TensorName], metadata: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the config in the header, and the one beside a file of peft's names, which peft alone reads."""
    found = []
    if (text := metadata.get(METADATA_KEY)) is not None:
        found.append({key.removeprefix(PREFIX): value for key, value in parse_config(text).items()})
    with_alpha = {name.layer for name in names if name.part == "alpha"}
    is_peft = any(name.format == "peft" and name.layer not in with_alpha for name in names)
    if is_peft and (not found or os.path.lexists(path.parent / CONFIG_NAME)):
        found.append(_checked(parse_config(_config_beside(path))))
    return found


def _checked(config: dict[str, Any]) -> dict[str, Any]:
    """Return peft's config, once it is known to be of a method that is read."""
    if (kind := config.get(_TYPE, "LORA")) not in {each.peft_type for each in PART_NAMES.values() if each.peft_type}:
        what = f"{CONFIG_NAME} beside it says that it is of the method {kind!s:.40}"
        raise UserError(what, code="weights.unsupported_method", remedy=f"Veneer reads {titles()}")
    return config


def _agreed(settings: Sequence[Settings]) -> Settings:
    """Return what all configs of a layer say.

    Raises:
        UserError: they tell different strengths or methods.
    """
    first, *others = settings
    for other in others:
        if lacking := [key for key in _NEEDED if key in first and key not in other]:
            raise UserError(f"{CONFIG_NAME} beside it tells no {lacking[0]}", code="weights.bad_config")
        for key in first.keys() & other.keys() & _TELLING:
            if first[key] != other[key]:
                what = f"its header says {key}={first[key]!s:.20}, and {CONFIG_NAME} beside it {other[key]!s:.20}"
                raise UserError(what, code="weights.config_contradicts", remedy="remove the one that is not true")
    return {key: value for each in reversed(settings) for key, value in each.items()}


def _config_beside(path: Path) -> str:
    """Return the text of the config beside a file.

    Raises:
        UserError: there is none, or it cannot be read or is far too long.
    """
    place, remedy = path.parent / CONFIG_NAME, "it tells alpha, and so the adapter's strength"
    try:
        with open_regular(place) as file:
            # a read of so many bytes takes as many before it knows how many there are
            text = file.read(min(_LONGEST_CONFIG, os.fstat(file.fileno()).st_size) + 1)
    except FileNotFoundError:
        alone = 'programs that read the file alone take 1, which {"r": RANK, "lora_alpha": RANK} in it says'
        what = f"has no {CONFIG_NAME} beside it"
        raise UserError(what, code="weights.no_peft_config", remedy=f"{remedy}; {alone}") from None
    except OSError as error:
        what = f"{CONFIG_NAME} beside it cannot be read: {error.strerror or error}"
        raise UserError(what, code="weights.no_peft_config", remedy=remedy) from error
    if len(text) > _LONGEST_CONFIG:
        what = f"{CONFIG_NAME} beside it has more than {_LONGEST_CONFIG:,} bytes"
        raise UserError(what, code="weights.bad_config", remedy="put the config that peft wrote there")
    return text.decode("utf-8", "replace")


class _Configs:
    """The configs of a file's networks: one JSON, its keys with the network's prefix unless there is only one."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self._networks: dict[str | None, PeftConfig] = {}

    def of(self, layer: str) -> dict[str, Any]:
        """Return the config of a layer's network, as it is for the layer."""
        prefix, _, path = layer.partition(".")
        network = prefix if prefix in NETWORKS else None
        if network not in self._networks:
            own = {key.removeprefix(f"{network}."): value for key, value in self._config.items()}
            self._networks[network] = PeftConfig(self._config if network is None else own)
        return self._networks[network].of(layer if network is None else path)
