"""The adapter methods by name: the one table that a new method is entered in."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from veneer.adapter.lora import LORA
from veneer.adapter.protocol import AdapterSpec, AdapterWeights, LayerAdapter, Method
from veneer.config.schema import AdapterConfig

__all__ = ["METHODS", "from_tensors", "specs_of", "to_tensors"]

METHODS: Mapping[str, Method] = {method.name: method for method in (LORA,)}
"""Each method by its value of ``adapter.method``."""


def specs_of(config: AdapterConfig) -> dict[str, AdapterSpec]:
    """Return the adapters that a config asks for, by the prefix of their network."""
    method = METHODS[config.method]
    specs = {"unet": method.spec(config)}
    return specs if config.text_encoder is None else specs | {"text_encoder": method.spec(config.text_encoder)}


def to_tensors(weights: AdapterWeights) -> dict[str, Tensor]:
    """Return an adapter as tensors named ``METHOD.LAYER.PART``, from which :func:`from_tensors` makes it again."""
    return {
        f"{layer.method.name}.{path}.{part}": tensor
        for path, layer in weights.items()
        for part, tensor in layer.state_dict().items()
    }


def from_tensors(tensors: Mapping[str, Tensor]) -> dict[str, LayerAdapter]:
    """Return the adapter that :func:`to_tensors` took apart, bit for bit."""
    states: dict[tuple[str, str], dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        method, _, rest = name.partition(".")
        path, _, part = rest.rpartition(".")
        states.setdefault((method, path), {})[part] = tensor
    return {path: METHODS[method].from_state(state) for (method, path), state in states.items()}
