"""The parameters of an adapter and the size of its file, counted before it is trained."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from torch import nn

from veneer.adapter.inject import Injection, inject
from veneer.adapter.registry import specs_of
from veneer.config.schema import RunConfig
from veneer.engine.quantized import parameter_count
from veneer.family.protocol import Family
from veneer.plan.plan import NetworkPlan, Plan
from veneer.weights.file import AdapterFile, rendered_bytes

__all__ = ["count_parameters", "plan_parameters"]

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
        return count_parameters(family.networks, injection, metadata)
    finally:
        injection.eject()


def count_parameters(
    networks: Mapping[str, nn.Module], injection: Injection, metadata: Mapping[str, str] = _NOTHING
) -> Plan:
    """Return a plan of parameters and file size of an adapter that is in its networks already.

    Args:
        networks: the base's, by name.
        injection: the adapter.
        metadata: what its file will hold beside the weights.
    """
    file_bytes = rendered_bytes(AdapterFile(injection.weights(), metadata))
    return Plan({name: _count_network(name, network, injection) for name, network in networks.items()}, file_bytes)


def _count_network(name: str, network: nn.Module, injection: Injection) -> NetworkPlan:
    trainable = sum(parameter.numel() for parameter in injection.by_network(name))
    layer_counts, layers, targets = injection.parameter_counts(), dict[str, int](), dict[str, int]()
    for match in (match for match in injection.matches if match.network == name):
        layers[match.target] = len(match.modules)
        targets[match.target] = sum(layer_counts[module] for module in match.modules)
    return NetworkPlan(trainable, parameter_count(network) - trainable, layers, targets)
