"""diffusers' first format, of 2023: ``unet.PATH.processor.to_q_lora.down.weight``; each strength is 1.

The tensors lie with an attention's processor rather than with its layers, and the network's prefix may be missing.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from veneer.adapter.protocol import LayerAdapter
from veneer.weights.formats.diffusers import DIFFUSERS
from veneer.weights.formats.protocol import BaseNames, FileContent
from veneer.weights.formats.tensors import adapters_of, rename_tensors

__all__ = ["ATTN_PROCESSOR", "AttnProcessorFormat"]

_TENSOR = re.compile(r"(.+)\.processor\.(to_[qkv]|to_out|add_[qkv]_proj)_lora\.(down|up)\.weight")
_LAYERS = {"to_out": "to_out.0"}
"""What a layer of an attention is called, where it is not what its processor calls it."""


class AttnProcessorFormat:
    """What ``save_attn_procs`` of diffusers wrote before adapters were peft's."""

    name = "attn_processor"
    metadata_keys = ("format",)

    def detects(self, names: Collection[str]) -> bool:
        """Return whether a tensor lies with a processor."""
        return any(_TENSOR.fullmatch(name) for name in names)

    def read(self, content: FileContent) -> dict[str, LayerAdapter]:
        """Return each layer's adapter, at a strength of 1.

        Raises:
            UserError: the file is not whole, or has tensors of other kinds.
        """
        return adapters_of(rename_tensors(content.tensors, _of_layer), "peft", lambda _: None)

    def network_of(self, layer: str) -> str | None:
        """Return the first part of a name, where it is a network's."""
        return DIFFUSERS.network_of(layer)

    def paths(self, layers: Collection[str], base: BaseNames | None) -> dict[str, str]:
        """Return the names themselves; a base is needed where they have no network's prefix.

        Raises:
            UserError: a name says no network and there is no base, or it means no layer of the base.
        """
        return DIFFUSERS.paths(layers, base)


def _of_layer(name: str) -> str:
    """Return the name that later files have for a tensor: that of its layer, and the factor."""
    found = _TENSOR.fullmatch(name)
    if found is None:
        return name
    attention, layer, factor = found.groups()
    return f"{attention}.{_LAYERS.get(layer, layer)}.lora.{factor}.weight"


ATTN_PROCESSOR = AttnProcessorFormat()
