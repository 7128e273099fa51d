"""The parameters of an adapter and the size of its file, counted before it is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from veneer.adapter.inject import Injection, Match, inject
from veneer.adapter.protocol import AdapterWeights, LayerAdapter
from veneer.adapter.registry import specs_of
from veneer.adapter.targets import measure_coverage
from veneer.config.schema import RunConfig
from veneer.engine.quantized import parameter_count
from veneer.family.protocol import Family
from veneer.plan.plan import NetworkPlan, Plan
from veneer.weights.file import AdapterFile, rendered_bytes
from veneer.weights.formats.diffusers import DIFFUSERS
from veneer.weights.formats.protocol import BaseNames

__all__ = ["count_networks", "count_parameters", "file_size", "plan_parameters"]

_NOTHING: Mapping[str, str] = MappingProxyType({})


def plan_parameters(config: RunConfig, family: Family, metadata: Mapping[str, str] = _NOTHING) -> Plan:
    """Return a plan of parameters and file size alone; the networks are left as they were, bit for bit.

    Args:
        config: the run.
        family: its base.
        metadata: what the adapter's file will hold beside the weights.

    Raises:
        UserError: the adapter does not fit the base: a target that matches nothing, a rank beyond the matrix.
    """
    injection = inject(family.networks, specs_of(config.adapter, family), config.seed)
    try:
        return count_parameters(family.networks, injection, metadata, config.output.formats[0])
    finally:
        injection.eject()


def count_parameters(
    networks: Mapping[str, nn.Module],
    injection: Injection,
    metadata: Mapping[str, str] = _NOTHING,
    format_name: str = DIFFUSERS.name,
) -> Plan:
    """Return a plan of parameters and file size of an adapter that is in its networks already.

    Args:
        networks: the base's, by name.
        injection: the adapter.
        metadata: what its file will hold beside the weights.
        format_name: of the file.
    """
    counts = injection.parameter_counts()
    totals = {
        name: parameter_count(network) - sum(n for path, n in counts.items() if path.startswith(f"{name}."))
        for name, network in networks.items()
    }
    file_bytes = file_size(networks, injection.weights(), metadata, format_name)
    return Plan(count_networks(networks, totals, injection.matches, counts), file_bytes)


def count_networks(
    networks: Mapping[str, nn.Module],
    totals: Mapping[str, int],
    matches: Sequence[Match],
    layer_counts: Mapping[str, int],
) -> dict[str, NetworkPlan]:
    """Return the parameters of each network.

    Args:
        networks: the base's, by name, with an adapter in them or without.
        totals: their parameters without it.
        matches: the layers that it changes.
        layer_counts: how many parameters of it each of these has, by the layer's full path.
    """
    plans = {}
    for name, network in networks.items():
        own = [match for match in matches if match.network == name]
        layers = {match.target: len(match.modules) for match in own}
        targets = {match.target: sum(layer_counts[module] for module in match.modules) for match in own}
        paths = [module.removeprefix(f"{name}.") for match in own for module in match.modules]
        blocks = measure_coverage(network, paths) if own else None
        plans[name] = NetworkPlan(sum(targets.values()), totals[name], layers, targets, blocks)
    return plans


def file_size(
    networks: Mapping[str, nn.Module],
    weights: AdapterWeights,
    metadata: Mapping[str, str] = _NOTHING,
    format_name: str = DIFFUSERS.name,
) -> int:
    """Return the bytes of an adapter's file in a format, or of its files; the numbers need not be there.

    Args:
        networks: the base's, by name.
        weights: the adapter.
        metadata: what its file will hold beside the weights.
        format_name: of the file.
    """
    with _disable_current_modes():  # where tensors are without data, it must not matter which numbers they have
        empty = {path: adapter.method.from_state(_shapes_of(adapter)) for path, adapter in weights.items()}
        return rendered_bytes(AdapterFile(empty, metadata), format_name, BaseNames.of(networks))


def _shapes_of(adapter: LayerAdapter) -> dict[str, Tensor]:
    """Return an adapter's state with tensors of the meta device in place of all but single numbers."""
    state = adapter.state_dict()
    return {
        name: tensor if tensor.ndim == 0 else torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        for name, tensor in state.items()
    }
