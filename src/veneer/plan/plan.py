"""The plan of a run as data and as text: parameters, memory, schedule, disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, computed_field

from veneer.adapter.targets import BlockCoverage
from veneer.data.bucket_table import BucketTable
from veneer.plan.bucket_text import bucket_lines
from veneer.plan.memory import Memory
from veneer.plan.text import format_bytes, format_table

__all__ = ["Disk", "NetworkPlan", "Plan", "Schedule", "TimestepPlan"]


@dataclass(frozen=True)
class NetworkPlan:
    """The parameters of one network.

    Attributes:
        trainable: parameters of its adapter.
        total: parameters of the network itself.
        layers: number of adapted layers by target.
        targets: the adapter's parameters by target.
        blocks: that the adapter reaches; None: there is no adapter.
    """

    trainable: int
    total: int
    layers: Mapping[str, int]
    targets: Mapping[str, int] = field(default_factory=dict)
    blocks: BlockCoverage | None = None

    def rows(self, name: str) -> list[tuple[str, ...]]:
        """Return the network's row of the table, and one for each of its targets."""
        targets = [(f"  {target}", f"{n:,}", "", "", f"{self.layers[target]:,}") for target, n in self.targets.items()]
        return [_row(name, self.trainable, self.total, sum(self.layers.values())), *targets]


@dataclass(frozen=True)
class Schedule:
    """The length of a run.

    Attributes:
        steps: optimiser steps.
        batch: pictures a forward pass.
        accumulate: forward passes a step.
        pictures: number that an epoch shows, repeats counted; None: it is not known.
        texts: number that are made of tags that each draw shows otherwise; None: captions are shown as they are.
        masks: pictures with a mask, outside of which nothing or little is learned.
    """

    steps: int
    batch: int
    accumulate: int
    pictures: int | None
    texts: int | None = None
    masks: int = 0

    @computed_field  # type: ignore[prop-decorator]
    @property
    def shown(self) -> int:
        """Number of pictures shown over the run."""
        return self.steps * self.batch * self.accumulate

    @computed_field  # type: ignore[prop-decorator]
    @property
    def epochs(self) -> float | None:
        """Number of passes over the pictures."""
        return self.shown / self.pictures if self.pictures else None

    def __str__(self) -> str:
        """Return one line."""
        batch = f"{self.batch}" if self.accumulate == 1 else f"{self.accumulate} x {self.batch}"
        text = f"schedule: {self.steps:,} steps of {batch} pictures, {self.shown:,} shown"
        text = text if self.epochs is None else f"{text}, {self.epochs:,.1f} epochs of {self.pictures:,}"
        text = f"{text}\nmasks: of {self.masks:,} pictures" if self.masks else text
        return text if self.texts is None else f"{text}\ntexts: {self.texts:,} of tags, each encoded once and kept"


@dataclass(frozen=True)
class TimestepPlan:
    """The density that timesteps are drawn from, and whether each part of it is the base's own default.

    Attributes:
        density: its name.
        logit_mean: mean of logit(t); None: the density has none.
        logit_std: its standard deviation; None likewise.
        shift: of a picture of the run's resolution; 1 moves nothing.
        by_resolution: whether a picture of another size has another shift.
        own_density: whether the density, with mean and deviation, is the base's own.
        own_shift: whether the shift is.
    """

    density: str
    logit_mean: float | None
    logit_std: float | None
    shift: float
    by_resolution: bool
    own_density: bool
    own_shift: bool

    def __str__(self) -> str:
        """Return one line."""
        density, shift = self._density_text(), self._shift_text()
        if self.own_density == self.own_shift:
            return f"timesteps: {density}, {shift}, {_OWNER[self.own_density]}"
        return f"timesteps: {density} ({_OWNER[self.own_density]}), {shift} ({_OWNER[self.own_shift]})"

    def _density_text(self) -> str:
        name = self.density.replace("_", "-")
        is_standard = (self.logit_mean or 0, self.logit_std or 1) == (0, 1)
        return name if is_standard else f"{name} with mean {self.logit_mean:g} and deviation {self.logit_std:g}"

    def _shift_text(self) -> str:
        if self.by_resolution:
            return f"shift {self.shift:.2f} at this resolution"
        return "no shift" if self.shift == 1 else f"shift {self.shift:g}"


_OWNER = {True: "the base's own", False: "as configured"}


@dataclass(frozen=True)
class Disk:
    """The files that a run leaves, pictures and texts not counted.

    Attributes:
        checkpoint: bytes of one checkpoint.
        keep: number of checkpoints at the end.
        result: bytes of the adapter's files in all formats, and of the best adapter's where there is one.
    """

    checkpoint: int
    keep: int
    result: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def total(self) -> int:
        """Bytes at the end of the run."""
        return self.keep * self.checkpoint + self.result

    def __str__(self) -> str:
        """Return one line."""
        checkpoints = f"{self.keep} checkpoint{'s' if self.keep != 1 else ''} of {format_bytes(self.checkpoint)}"
        return f"disk: {format_bytes(self.total)}, {checkpoints} and the adapter"


@dataclass(frozen=True)
class Plan:
    """Parameters, bytes and steps of a run.

    Attributes:
        networks: by prefix; those that are only read are in it too, with nothing to train.
        file_bytes: size of the adapter's file in the first of its formats; exact of diffusers' and peft's.
        memory: the memory of the run; None if only parameters were counted.
        schedule: its length; None likewise.
        disk: the files that it leaves; None likewise.
        timesteps: what they are drawn from; None likewise.
        training_adapter: name of the file that is in the base only while it is trained and scored; None: there is none.
        buckets: sizes of the pictures, what each crops away, and each picture's share; None: they are not known.
        distilled: what plain training does to a base that was distilled; None: nothing says that it was.
    """

    networks: Mapping[str, NetworkPlan]
    file_bytes: int
    memory: Memory | None = None
    schedule: Schedule | None = None
    disk: Disk | None = None
    timesteps: TimestepPlan | None = None
    training_adapter: str | None = None
    distilled: str | None = None
    buckets: BucketTable | None = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def trainable(self) -> int:
        """Parameters of the adapter."""
        return sum(network.trainable for network in self.networks.values())

    @computed_field  # type: ignore[prop-decorator]
    @property
    def total(self) -> int:
        """Parameters of all networks that an adapter may change, without the adapter."""
        return sum(network.total for network in self.networks.values())

    @computed_field  # type: ignore[prop-decorator]
    @property
    def share(self) -> float:
        """Trainable parameters as a share of the total."""
        return self.trainable / self.total

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as JSON holds it, sums included."""
        values: dict[str, Any] = _SERIALISER.dump_python(self, mode="json")
        return values

    def __str__(self) -> str:
        """Return tables for a person."""
        layers = sum(sum(network.layers.values()) for network in self.networks.values())
        rows: list[Sequence[str]] = [("network", "trainable", "of", "share", "layers")]
        rows += [row for name, network in self.networks.items() for row in network.rows(name)]
        rows.append(_row("all", self.trainable, self.total, layers))
        blocks = [f"{name} {network.blocks}" for name, network in self.networks.items() if network.blocks]
        lines = [f"blocks touched: {', '.join(blocks)}"] if blocks else []
        lines += [str(part) for part in (self.timesteps, self.memory, self.schedule) if part]
        lines += [] if self.buckets is None else bucket_lines(self.buckets)
        lines += [] if self.disk is None else [str(self.disk)]
        if self.training_adapter is not None:
            lines.append(f"training adapter: {self.training_adapter}, in the base while it is trained and scored only")
        return "\n".join([format_table(rows), f"adapter file: {self.file_bytes:,} bytes", *lines])


_SERIALISER = TypeAdapter(Plan)


def _row(name: str, trainable: int, total: int, layers: int) -> tuple[str, str, str, str, str]:
    return name, f"{trainable:,}", f"{total:,}", f"{trainable / total:.3%}", f"{layers:,}"
