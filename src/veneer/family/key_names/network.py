"""The names that a family's function gives for the layers of a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from veneer.adapter.layers import weighted_layers_of
from veneer.family.key_names.rules import Names, Outputs
from veneer.weights.formats.fused import Slice

__all__ = ["dotted_in_comfy", "names_in"]

_COMFY = "diffusion_model"
"""What ComfyUI's files call the denoiser, before the names of the model's own code."""


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


def dotted_in_comfy(prefix: str, network: nn.Module, names: Callable[[Outputs], Names]) -> Names:
    """Return what ComfyUI's files call layers of which it takes the model's own names only, and diffusers does too.

    Args:
        prefix: of the network.
        network: whose weights need not be there.
        names: of the family.
    """
    own = names_in(prefix, network, names)
    paths = weighted_layers_of({prefix: network})
    return {path: _prefixed(_COMFY, _without(prefix, own.get(path, path))) for path in paths}


def _without(prefix: str, name: str | Slice) -> str | Slice:
    start = f"{prefix}."
    if isinstance(name, Slice):
        return replace(name, name=name.name.removeprefix(start))
    return name.removeprefix(start)


def _prefixed(prefix: str, name: str | Slice) -> str | Slice:
    return replace(name, name=f"{prefix}.{name.name}") if isinstance(name, Slice) else f"{prefix}.{name}"
