"""A record of the blocks of memory that a computation takes and releases, and the moments at which it holds most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

__all__ = ["Block", "Peak", "Trace", "peaks"]


class Block(NamedTuple):
    """One block of memory, in bytes.

    Attributes:
        tensor: size of a tensor's storage; 0 for a block that is no tensor.
        malloc: size taken from the C library; 0 for weights, which are there before anything is computed.
        mapped: size of weights that are first read now, which brings their part of the file into memory.
    """

    tensor: int
    malloc: int = 0
    mapped: int = 0


class Trace(NamedTuple):
    """All blocks of a computation, in the order in which they come and go.

    Attributes:
        events: ``n + 1`` takes block n, ``-n - 1`` releases it.
        blocks: by number.
        phases: each phase's name, with the number of events before it.
    """

    events: Sequence[int]
    blocks: Sequence[Block]
    phases: Sequence[tuple[str, int]]

    def spans(self) -> dict[str, tuple[int, int]]:
        """Return the numbers of the first and the last event of each phase, by its name."""
        starts = [start for _, start in self.phases]
        ends = [*starts[1:], len(self.events)]
        return {name: (start, end) for (name, start), end in zip(self.phases, ends, strict=True)}


@dataclass(frozen=True)
class Peak:
    """The moment of a phase at which its tensors take most.

    Attributes:
        total: bytes.
        parts: the same bytes by role; they sum to the total.
    """

    total: int
    parts: Mapping[str, int]


def peaks(trace: Trace, roles: Sequence[str]) -> dict[str, Peak]:
    """Return the peak of each phase, by its name.

    Args:
        trace: of all tensors.
        roles: what each block is for, by its number.
    """
    totals = [0, *accumulate(_signed(trace, event) for event in trace.events)]
    return {
        name: _peak(trace, roles, max(range(start, end + 1), key=totals.__getitem__))
        for name, (start, end) in trace.spans().items()
    }


def _signed(trace: Trace, event: int) -> int:
    size = trace.blocks[abs(event) - 1].tensor
    return size if event > 0 else -size


def _peak(trace: Trace, roles: Sequence[str], position: int) -> Peak:
    """Sum up what is held after the first ``position`` events."""
    times = Counter(abs(event) - 1 for event in trace.events[:position])
    parts: Counter[str] = Counter()
    for number, count in times.items():
        if count % 2:  # taken, and not released yet
            parts[roles[number]] += trace.blocks[number].tensor
    parts = +parts  # without blocks that are no tensors
    return Peak(parts.total(), dict(parts))
