"""The names that a family's function gives for the layers of a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from veneer.adapter.layers import weighted_layers_of
from veneer.family.key_names.rules import Names, Outputs
from veneer.weights.formats.fused import Slice

__all__ = ["names_in"]


def names_in(prefix: str, network: nn.Module, names: Callable[[Outputs], Names]) -> Names:
    """Return what files call the layers of a network, with its prefix before paths and names.

    Args:
        prefix: of the network.
        network: whose weights need not be there.
        names: of the family.
    """
    layers = weighted_layers_of({prefix: network})
    outputs = {path.removeprefix(f"{prefix}."): int(layer.weight.shape[0]) for path, layer in layers.items()}
    return {f"{prefix}.{path}": _prefixed(prefix, name) for path, name in names(outputs).items()}


def _prefixed(prefix: str, name: str | Slice) -> str | Slice:
    return replace(name, name=f"{prefix}.{name.name}") if isinstance(name, Slice) else f"{prefix}.{name}"
