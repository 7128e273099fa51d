"""diffusers' format: ``unet.PATH.lora_A.weight``, the strength as JSON in the metadata.

The strength alpha/r is folded into the tensors, and the metadata says alpha = r, so that a reader with the metadata or
without finds the same strength.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from veneer.adapter.layers import layers_of
from veneer.adapter.protocol import AdapterWeights, LayerAdapter
from veneer.weights.formats.names import NETWORKS, file_path, memory_path, require_base, resolve, spellings
from veneer.weights.formats.peft_config import PeftConfig, config_for, parse_config
from veneer.weights.formats.protocol import BaseNames, FileContent
from veneer.weights.formats.tensors import adapters_of, named_tensors

__all__ = ["DIFFUSERS", "METADATA_KEY", "DiffusersFormat"]

METADATA_KEY = "lora_adapter_metadata"
"""Key of the JSON in a file's metadata that diffusers reads the strength from."""


class DiffusersFormat:
    """What ``load_lora_weights`` reads, and what Veneer writes."""

    name = "diffusers"
    metadata_keys = (METADATA_KEY, "format")

    def detects(self, names: Collection[str]) -> bool:
        """Return whether a name begins with a network's."""
        return any(self.network_of(name) is not None for name in names)

    def read(self, content: FileContent) -> dict[str, LayerAdapter]:
        """Return each layer's adapter; without metadata the strength is 1.

        Raises:
            UserError: the file is not whole, or its metadata contradicts its tensors.
        """
        text = content.metadata.get(METADATA_KEY)
        configs = None if text is None else _Configs(parse_config(text))
        return adapters_of(content.tensors, "peft", lambda layer: None if configs is None else configs.of(layer))

    def network_of(self, layer: str) -> str | None:
        """Return the first part of a name, where it is a network's; files of one network alone may leave it out."""
        prefix = layer.partition(".")[0]
        return prefix if prefix in NETWORKS else None

    def paths(self, layers: Collection[str], base: BaseNames | None) -> dict[str, str]:
        """Return the names themselves, but for the text encoder's optional level; a base is needed without prefixes.

        Raises:
            UserError: a name says no network and there is no base, two names mean one layer, or one means none.
        """
        if not all(self.network_of(layer) for layer in layers):
            return resolve(layers, _aliases(require_base(base, self.name, layers)))
        return {layer: memory_path(layer) for layer in layers}

    def write(self, weights: AdapterWeights, base: BaseNames | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return the tensors, which have the strength in them, and the metadata, which says that it is 1.

        Raises:
            UserError: a layer's method has no names in this format, or one network has layers of several methods.
        """
        tensors: dict[str, Tensor] = {}
        networks: dict[str, dict[str, LayerAdapter]] = {}
        for path, adapter in weights.items():
            network, _, rest = memory_path(path).partition(".")
            named = named_tensors(file_path(path), adapter, _naming_in(network, adapter))
            assert not tensors.keys() & named.keys(), "a layer is named twice, with text_model. and without"
            tensors |= named
            networks.setdefault(network, {})[rest] = adapter
        configs: dict[str, Any] = {}
        for network, layers in networks.items():
            config = config_for(layers, anchored=network != "text_encoder")
            configs |= {f"{network}.{key}": value for key, value in config.items()}
        return tensors, {METADATA_KEY: json.dumps(configs, sort_keys=True), "format": "pt"}


def _naming_in(network: str, adapter: LayerAdapter) -> str:
    """Return how a layer's tensors are called; text encoders are loaded by transformers, which may want other names."""
    is_text_encoder = network.startswith("text_encoder")
    return "transformers" if is_text_encoder and "transformers" in adapter.method.endings else "peft"


class _Configs:
    """The configs of a file's networks: one JSON, its keys with the network's prefix unless there is only one."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self._networks: dict[str | None, PeftConfig] = {}

    def of(self, layer: str) -> dict[str, Any]:
        """Return the config of a layer's network, as it is for the layer."""
        network = DIFFUSERS.network_of(layer)
        if network not in self._networks:
            own = {key.removeprefix(f"{network}."): value for key, value in self._config.items()}
            self._networks[network] = PeftConfig(self._config if network is None else own)
        return self._networks[network].of(layer if network is None else layer.partition(".")[2])


def _aliases(base: BaseNames) -> dict[str, set[str]]:
    """Return the layers that a name within one network, or with its prefix, may mean."""
    aliases: dict[str, set[str]] = {}
    for full in layers_of(base.networks):
        network, _, path = full.partition(".")
        for name in spellings(path):
            aliases.setdefault(name, set()).add(full)
            aliases.setdefault(f"{network}.{name}", set()).add(full)
    return aliases


DIFFUSERS = DiffusersFormat()
