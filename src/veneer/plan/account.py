"""What a run will train and what it will take, counted before it trains anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torch import nn

from veneer.adapter.inject import Injection, inject
from veneer.adapter.registry import specs_of
from veneer.config.schema import RunConfig
from veneer.engine.quantized import parameter_count
from veneer.family.protocol import Family
from veneer.plan.memory import Memory, as_text, plain, table
from veneer.weights.file import AdapterFile, rendered_bytes

__all__ = ["Course", "Disk", "NetworkPlan", "Plan", "account", "plan"]


@dataclass(frozen=True)
class NetworkPlan:
    """One network's part of the plan.

    Attributes:
        trainable: parameters of its adapter.
        total: parameters of the network itself.
        layers: adapted layers by target.
        targets: the adapter's parameters by target.
    """

    trainable: int
    total: int
    layers: Mapping[str, int]
    targets: Mapping[str, int] = field(default_factory=dict)

    def rows(self, name: str) -> list[tuple[str, ...]]:
        """The network's line of the table, and one for each of its targets."""
        of = [(f"  {t}", f"{n:,}", "", "", f"{self.layers[t]:,}") for t, n in self.targets.items()]
        return [_row(name, self.trainable, self.total, sum(self.layers.values())), *of]


@dataclass(frozen=True)
class Course:
    """How far a run goes.

    Attributes:
        steps: optimiser steps.
        batch: pictures a forward pass.
        accumulate: forward passes a step.
        pictures: that an epoch shows, each as often as it repeats; None: they are not known.
    """

    steps: int
    batch: int
    accumulate: int
    pictures: int | None

    @property
    def shown(self) -> int:
        """Showings of pictures over the run."""
        return self.steps * self.batch * self.accumulate

    @property
    def epochs(self) -> float | None:
        """How often each picture is shown, times its repeats."""
        return self.shown / self.pictures if self.pictures else None

    def __str__(self) -> str:
        """One line."""
        split = f"{self.batch}" if self.accumulate == 1 else f"{self.accumulate} x {self.batch}"
        text = f"course: {self.steps:,} steps of {split} pictures, {self.shown:,} shown"
        return text if self.epochs is None else f"{text}, {self.epochs:,.1f} epochs of {self.pictures:,}"


@dataclass(frozen=True)
class Disk:
    """What a run leaves on disk, less pictures and texts.

    Attributes:
        checkpoint: bytes of one.
        keep: how many there are at the end.
        result: bytes of the adapter's file, and of the best one's beside it where there is one.
    """

    checkpoint: int
    keep: int
    result: int

    @property
    def total(self) -> int:
        """Bytes at the end of the run."""
        return self.keep * self.checkpoint + self.result

    def __str__(self) -> str:
        """One line."""
        kept = f"{self.keep} checkpoint{'s' if self.keep != 1 else ''} of {as_text(self.checkpoint)}"
        return f"disk: {as_text(self.total)}, {kept} and the adapter"


@dataclass(frozen=True)
class Plan:
    """Parameters, bytes and steps of a run.

    Attributes:
        networks: by prefix; those that are only read are in it too, with nothing to train.
        file_bytes: size of the adapter file, exactly.
        memory: what the run holds at once; None where it was not asked for.
        course: how far it goes; None likewise.
        disk: what it leaves; None likewise.
    """

    networks: Mapping[str, NetworkPlan]
    file_bytes: int
    memory: Memory | None = None
    course: Course | None = None
    disk: Disk | None = None

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

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, as JSON has them, with the sums that a reader wants."""
        parts = {"memory": self.memory, "course": self.course, "disk": self.disk}
        sums = {"trainable": self.trainable, "total": self.total, "share": self.share, "file_bytes": self.file_bytes}
        networks = {name: plain(network) for name, network in self.networks.items()}
        return {**sums, "networks": networks, **{name: part and plain(part) for name, part in parts.items()}}

    def __str__(self) -> str:
        """Tables for a person."""
        layers = sum(sum(network.layers.values()) for network in self.networks.values())
        rows: list[Sequence[str]] = [("network", "trainable", "of", "share", "layers")]
        rows += [row for name, network in self.networks.items() for row in network.rows(name)]
        rows.append(_row("all", self.trainable, self.total, layers))
        rest = (self.memory, self.course, self.disk)
        lines = [table(rows), f"adapter file: {self.file_bytes:,} bytes", *(str(part) for part in rest if part)]
        return "\n".join(lines)


def _row(name: str, trainable: int, total: int, layers: int) -> tuple[str, str, str, str, str]:
    return name, f"{trainable:,}", f"{total:,}", f"{trainable / total:.3%}", f"{layers:,}"


def account(
    networks: Mapping[str, nn.Module],
    injection: Injection,
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> Plan:
    """Count an adapter that is in its networks already.

    Args:
        networks: the base's, by prefix.
        injection: the adapter.
        metadata: what will be told in the file beside the numbers; it counts towards the file's size.
    """
    file_bytes = rendered_bytes(AdapterFile(injection.weights(), metadata))
    parts = {name: _network_plan(name, network, injection) for name, network in networks.items()}
    return Plan(MappingProxyType(parts), file_bytes)


def _network_plan(prefix: str, network: nn.Module, injection: Injection) -> NetworkPlan:
    trainable = sum(parameter.numel() for parameter in injection.by_network(prefix))
    everything = parameter_count(network)
    matches = [match for match in injection.matches if match.network == prefix]
    layers = {match.target: len(match.modules) for match in matches}
    sizes = injection.parameter_counts()
    targets = {match.target: sum(sizes[module] for module in match.modules) for match in matches}
    return NetworkPlan(trainable, everything - trainable, MappingProxyType(layers), MappingProxyType(targets))


def plan(config: RunConfig, family: Family, metadata: Mapping[str, str] = MappingProxyType({})) -> Plan:
    """Count the adapter that a config asks for; the networks are left as they were, bit for bit.

    Raises:
        UserError: the adapter does not fit the base: a target that matches nothing, a rank beyond the matrix.
    """
    injection = inject(family.networks, specs_of(config.adapter, family), config.seed)
    try:
        return account(family.networks, injection, metadata)
    finally:
        injection.eject()
