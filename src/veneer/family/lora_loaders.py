"""What diffusers' and peft's own loaders make of an adapter file, on a base's networks without their weights.

The loaders run as they do in any program; of the base they take its layers alone, so that a base of any size takes no
memory. What they would merge into a weight is then computed by peft, one layer after another.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from veneer.adapter.peft_library import BaseTunerLayer, PeftModel
from veneer.family.libraries import silence_libraries
from veneer.family.registry import FAMILIES, family_class

__all__ = ["WeightOf", "diffusers_loader", "merged_by_diffusers", "merged_by_peft"]

WeightOf = Callable[[str], Tensor]
"""Gives a layer's weight by its full path."""


def diffusers_loader(networks: Mapping[str, nn.Module]) -> type[Any] | None:
    """Return diffusers' class that loads adapters of a base with these networks; None: there is none."""
    for pipeline in FAMILIES:
        family: Any = family_class(pipeline)
        kinds = family._network_classes()
        if all(type(network) is kinds.get(name) for name, network in networks.items()):
            mixins = [kind for kind in family._pipeline_class().__mro__ if kind.__name__.endswith("LoraLoaderMixin")]
            return mixins[0] if mixins else None
    return None


def merged_by_diffusers(file: Path, networks: Mapping[str, nn.Module], weight_of: WeightOf) -> dict[str, Tensor]:
    """Return the weights of all layers that diffusers' ``load_lora_weights`` finds adapters for, with these merged.

    Args:
        file: the adapter's.
        networks: the base's, which may be on the meta device; they stay as they are.
        weight_of: gives the weight that is merged into.

    Raises:
        Exception: whatever diffusers raises at a file that it does not understand.
    """
    mixin = diffusers_loader(networks)
    assert mixin is not None, "asked for without diffusers_loader"
    own = {name: _of_zeros(network) for name, network in networks.items()}
    loader: Any = type("Loader", (mixin,), {**own, "components": own, "hf_device_map": None})()
    with silence_libraries():
        loader.load_lora_weights(str(file.parent), weight_name=file.name, local_files_only=True)
    return {path: weight for name, network in own.items() for path, weight in _merged(name, network, weight_of)}


def merged_by_peft(
    files: Mapping[str, Path], networks: Mapping[str, nn.Module], weight_of: WeightOf
) -> dict[str, Tensor]:
    """Return the weights of all layers that ``PeftModel.from_pretrained`` finds adapters for, with these merged.

    Args:
        files: of each network, by the networks' names.
        networks: as of :func:`merged_by_diffusers`.
        weight_of: likewise.

    Raises:
        Exception: whatever peft raises at a folder that it does not understand.
    """
    found: dict[str, Tensor] = {}
    for name, file in files.items():
        with silence_libraries():
            wrapped: Any = PeftModel.from_pretrained(_of_zeros(networks[name]), file.parent)
        found |= dict(_merged(name, wrapped.get_base_model(), weight_of))
    return found


def _of_zeros(network: nn.Module) -> nn.Module:
    """Return a copy of a network in which all weights are the same zero: it lies on the CPU and takes no memory."""
    own = copy.deepcopy(network)
    for module in own.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                zero = torch.zeros((), dtype=weight.dtype).expand(weight.shape)
                module._parameters[name] = nn.Parameter(zero, requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype)
    return own


@torch.no_grad()
def _merged(name: str, network: nn.Module, weight_of: WeightOf) -> Iterator[tuple[str, Tensor]]:
    """Yield each adapted layer's full path and weight, merged by peft."""
    for path, module in network.named_modules():
        if isinstance(module, BaseTunerLayer):
            full, layer = f"{name}.{path}", module.get_base_layer()
            layer.weight = nn.Parameter(weight_of(full), requires_grad=False)
            module.merge()
            yield full, layer.weight.detach()
            layer.weight = nn.Parameter(torch.zeros(()).expand(layer.weight.shape), requires_grad=False)
