"""peft's format: a folder for each network, with ``adapter_model.safetensors`` and ``adapter_config.json``.

``PeftModel.from_pretrained`` reads it, transformers' ``load_adapter``, and ``load_lora_adapter`` of diffusers' networks
with ``prefix="base_model.model"``, which looks for the config in the metadata. The strength is in the config, so that
the tensors are those that were trained.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor

from veneer.adapter.layers import fit_to_layers
from veneer.adapter.protocol import AdapterWeights, LayerAdapter
from veneer.weights.adapter_path import named_file
from veneer.weights.formats.layers import LayerIndex
from veneer.weights.formats.names import memory_path
from veneer.weights.formats.peft_config import METADATA_KEY, config_for
from veneer.weights.formats.protocol import STEM, BaseNames, FormatFile
from veneer.weights.formats.strength import CONFIG_NAME, FILE_NAME, NETWORK_KEY, PREFIX
from veneer.weights.formats.tensors import named_tensors, peft_naming

__all__ = ["PEFT", "PeftFormat"]

_SETTINGS: Mapping[str, Any] = MappingProxyType(
    {
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "modules_to_save": None,
    }
)
"""What peft's config says beside rank and alpha."""
_LORA: Mapping[str, Any] = MappingProxyType(
    {"bias": "none", "fan_in_fan_out": False, "init_lora_weights": True, "lora_dropout": 0.0}
)
"""What it says of LoRA alone."""


class PeftFormat:
    """What ``PeftModel.save_pretrained`` writes."""

    name = "peft"
    metadata_keys = ("format", METADATA_KEY, NETWORK_KEY)

    def file_name(self, stem: str) -> str:
        """Return the folder's name."""
        return named_file(self.name, stem)

    def write(self, weights: AdapterWeights, base: BaseNames | None = None, stem: str = STEM) -> tuple[FormatFile, ...]:
        """Return a file with a config for each network: of one network in the folder itself, of several in one each.

        Args:
            weights: the adapter.
            base: whose layers it is of, if it is at hand: its layers are called as they are in memory.
            stem: the adapter's own name.

        Raises:
            UserError: the adapter is not of the base, a layer's method has no names in this format, or one network has
                layers of several methods.
        """
        if base is None:
            named: AdapterWeights = {memory_path(path): adapter for path, adapter in weights.items()}
        else:
            named = fit_to_layers(weights, LayerIndex(base).layers)
        networks: dict[str, dict[str, LayerAdapter]] = {}
        for path, adapter in named.items():
            network, _, inner = path.partition(".")
            networks.setdefault(network, {})[inner] = adapter
        folder = self.file_name(stem)
        folders = {network: f"{folder}/{network}" if len(networks) > 1 else folder for network in networks}
        return tuple(_file(folders[network], network, layers, base) for network, layers in networks.items())


def _file(folder: str, network: str, layers: Mapping[str, LayerAdapter], base: BaseNames | None) -> FormatFile:
    """Return one network's file and config."""
    tensors: dict[str, Tensor] = {}
    for path, adapter in layers.items():
        tensors |= named_tensors(f"{PREFIX}{path}", adapter, peft_naming(network, adapter))
    config = config_for(layers)
    told = json.dumps({PREFIX + key: value for key, value in config.items()}, sort_keys=True)
    metadata = {METADATA_KEY: told, NETWORK_KEY: network, "format": "pt"}
    kind = next(iter(layers.values())).method.names.peft_type
    own = {"peft_type": kind, **_SETTINGS, **(_LORA if kind == "LORA" else {})}
    text = json.dumps({**own, **config}, indent=2, sort_keys=True)
    return FormatFile(f"{folder}/{FILE_NAME}", tensors, metadata, {CONFIG_NAME: f"{text}\n"})


PEFT = PeftFormat()
