"""diffusers' format: ``unet.PATH.lora_A.weight``, the strength as JSON in the metadata.

The strength alpha/r is folded into the tensors, and the metadata says alpha = r, so that a reader with the metadata or
without finds the same strength.
"""

from __future__ import annotations

import json
from typing import Any

from torch import Tensor

from veneer.adapter.protocol import AdapterWeights, LayerAdapter
from veneer.weights.adapter_path import named_file
from veneer.weights.formats.folding import fold
from veneer.weights.formats.names import file_path, memory_path
from veneer.weights.formats.peft_config import METADATA_KEY, config_for
from veneer.weights.formats.protocol import STEM, BaseNames, FormatFile
from veneer.weights.formats.strength import RECORD_KEY
from veneer.weights.formats.tensors import named_tensors, peft_naming

__all__ = ["DIFFUSERS", "METADATA_KEY", "DiffusersFormat"]


class DiffusersFormat:
    """What ``load_lora_weights`` reads, and what Veneer writes."""

    name = "diffusers"
    metadata_keys = (METADATA_KEY, RECORD_KEY, "format")

    def file_name(self, stem: str) -> str:
        """Return the one name that the format has for files."""
        return named_file(self.name, stem)

    def write(self, weights: AdapterWeights, base: BaseNames | None = None, stem: str = STEM) -> tuple[FormatFile, ...]:
        """Return one file, whose tensors have the strength in them, and whose metadata says that it is 1.

        Raises:
            UserError: a layer's method has no names in this format, or one network has layers of several methods.
        """
        tensors: dict[str, Tensor] = {}
        networks: dict[str, dict[str, LayerAdapter]] = {}
        for path, adapter in ((path, fold(adapter)) for path, adapter in weights.items()):
            network, _, rest = memory_path(path).partition(".")
            named = named_tensors(file_path(path), adapter, peft_naming(network, adapter, self.name))
            assert not tensors.keys() & named.keys(), "a layer is named twice, with text_model. and without"
            tensors |= named
            networks.setdefault(network, {})[rest] = adapter
        configs: dict[str, Any] = {}
        for network, layers in networks.items():
            config = config_for(layers, anchored=network != "text_encoder")
            configs |= {f"{network}.{key}": value for key, value in config.items()}
        metadata = {METADATA_KEY: json.dumps(configs, sort_keys=True), "format": "pt"}
        return (FormatFile(self.file_name(stem), tensors, metadata),)


DIFFUSERS = DiffusersFormat()
