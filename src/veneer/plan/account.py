"""What a run will train, counted before it trains anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import nn

from veneer.adapter.inject import Injection, inject
from veneer.adapter.spec import AdapterSpec
from veneer.config.schema import AdapterConfig, RunConfig, TextEncoderAdapterConfig
from veneer.family.base import Family
from veneer.weights.file import AdapterFile, render

__all__ = ["NetworkPlan", "Plan", "account", "plan", "specs_of"]

_NO_METADATA: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class NetworkPlan:
    """One network's part of the plan.

    Attributes:
        trainable: parameters of its adapter.
        total: parameters of the network itself.
        layers: adapted layers by target.
    """

    trainable: int
    total: int
    layers: Mapping[str, int]


@dataclass(frozen=True)
class Plan:
    """Parameters and bytes of an adapter.

    Attributes:
        networks: by prefix; those that are only read are in it too, with nothing to train.
        file_bytes: size of the adapter file, exactly.
    """

    networks: Mapping[str, NetworkPlan]
    file_bytes: int

    @property
    def trainable(self) -> int:
        """Parameters of the adapter."""
        return sum(network.trainable for network in self.networks.values())

    @property
    def total(self) -> int:
        """Parameters of all networks that an adapter may change, without it."""
        return sum(network.total for network in self.networks.values())

    @property
    def share(self) -> float:
        """Trainable parameters as a share of the total."""
        return self.trainable / self.total

    def __str__(self) -> str:
        """A short table."""
        rows = [("network", "trainable", "of", "share", "layers")]
        rows += [_row(name, n.trainable, n.total, sum(n.layers.values())) for name, n in self.networks.items()]
        rows.append(_row("all", self.trainable, self.total, sum(int(row[4]) for row in rows[1:])))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(_aligned(row, widths)).rstrip() for row in rows]
        return "\n".join([*lines, f"adapter file: {self.file_bytes:,} bytes"])


def _row(name: str, trainable: int, total: int, layers: int) -> tuple[str, str, str, str, str]:
    return name, f"{trainable:,}", f"{total:,}", f"{trainable / total:.3%}", str(layers)


def _aligned(row: tuple[str, ...], widths: list[int]) -> list[str]:
    """The first column to the left, numbers to the right."""
    return [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]


def specs_of(config: AdapterConfig) -> dict[str, AdapterSpec]:
    """The adapters that a config asks for, by the prefix of their network."""
    specs = {"unet": _spec(config)}
    return specs if config.text_encoder is None else specs | {"text_encoder": _spec(config.text_encoder)}


def _spec(config: AdapterConfig | TextEncoderAdapterConfig) -> AdapterSpec:
    alpha = float(config.rank) if config.alpha is None else config.alpha
    return AdapterSpec(config.rank, alpha, config.targets, config.dropout)


def account(
    networks: Mapping[str, nn.Module], injection: Injection, metadata: Mapping[str, str] = _NO_METADATA
) -> Plan:
    """Count an adapter that is in its networks already.

    Args:
        networks: the base's, by prefix.
        injection: the adapter.
        metadata: what will be told in the file beside the numbers; it counts towards the file's size.
    """
    content = render(AdapterFile(injection.factors(), metadata))
    parts = {prefix: _network_plan(prefix, network, injection) for prefix, network in networks.items()}
    return Plan(MappingProxyType(parts), len(content))


def _network_plan(prefix: str, network: nn.Module, injection: Injection) -> NetworkPlan:
    trainable = sum(parameter.numel() for parameter in injection.by_network(prefix))
    everything = sum(parameter.numel() for parameter in network.parameters())
    layers = {match.target: len(match.modules) for match in injection.matches if match.network == prefix}
    return NetworkPlan(trainable, everything - trainable, MappingProxyType(layers))


def plan(config: RunConfig, family: Family, metadata: Mapping[str, str] = _NO_METADATA) -> Plan:
    """Count the adapter that a config asks for; the networks are left as they were, bit for bit.

    Raises:
        UserError: the adapter does not fit the base: a target that matches nothing, a rank beyond the matrix.
    """
    injection = inject(family.networks, specs_of(config.adapter), config.seed)
    try:
        return account(family.networks, injection, metadata)
    finally:
        injection.eject()
