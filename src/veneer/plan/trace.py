"""A record of the blocks of memory that a computation takes and releases, and the moments at which it holds most."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from operator import add, attrgetter
from typing import NamedTuple

__all__ = ["KEPT", "Block", "Peak", "Repeats", "Trace", "peaks"]

KEPT = 5
"""How many of a run of equal blocks are rehearsed."""
_FAR = (3, 3, 2, 1, 1)
"""Which of them stands for those that are left out while each of them is computed: one that is not beside it."""


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
class Repeats:
    """Which blocks of memory belong to equal blocks of a network, of which more are there than were rehearsed.

    Attributes:
        owners: of each block of memory the kept block of the network that it belongs to; -1: none. Of run r they are
            ``KEPT r`` and on.
        visits: the number of events before a kept block begins to be computed, with its number; -1: none is any more.
        further: how many blocks were left out of each run.
    """

    owners: Sequence[int]
    visits: Sequence[tuple[int, int]]
    further: Sequence[int]

    def added(self, trace: Trace, size_of: Callable[[Block], int]) -> list[int]:
        """Return the bytes that blocks that were left out hold before the first event and after each.

        While the one in the middle is computed it is none: it stands for others, and its neighbours for it.
        """
        held, added = [0] * (KEPT * len(self.further)), [0]
        starts = [*self.visits, (len(trace.events), -1)]
        for (start, visited), (end, _) in pairwise([(0, -1), *starts]):
            for event in trace.events[start:end]:
                number = abs(event) - 1
                if (owner := self.owners[number]) >= 0:
                    size = size_of(trace.blocks[number])
                    held[owner] += size if event > 0 else -size
                added.append(self._added_now(held, visited))
        return added

    def _added_now(self, held: Sequence[int], visited: int) -> int:
        if visited >= 0 and visited % KEPT == KEPT // 2:
            return 0
        return sum(count * held[self._example(run, visited)] for run, count in enumerate(self.further))

    def _example(self, run: int, visited: int) -> int:
        """Return the kept block that stands for those that were left out of a run."""
        return KEPT * run + (_FAR[visited % KEPT] if visited >= 0 and visited // KEPT == run else KEPT // 2)

    def times(self, position: int) -> Callable[[int], int]:
        """Return how often each block of memory counts after so many events."""
        place = bisect_left([start for start, _ in self.visits], position) - 1
        visited = self.visits[place][1] if place >= 0 else -1
        examples = {self._example(run, visited): count for run, count in enumerate(self.further)}
        return lambda number: 1 + examples.get(self.owners[number], 0)


@dataclass(frozen=True)
class Peak:
    """The moment of a phase at which its tensors take most.

    Attributes:
        total: bytes.
        parts: the same bytes by role; they sum to the total.
    """

    total: int
    parts: Mapping[str, int]


def peaks(trace: Trace, roles: Sequence[str], repeats: Repeats | None = None) -> dict[str, Peak]:
    """Return the peak of each phase, by its name.

    Args:
        trace: of all tensors.
        roles: what each block is for, by its number.
        repeats: which of them stand for more; None: each is one.
    """
    totals = [0, *accumulate(_signed(trace, event) for event in trace.events)]
    if repeats is not None:
        totals = list(map(add, totals, repeats.added(trace, attrgetter("tensor"))))
    return {
        name: _peak(trace, roles, max(range(start, end + 1), key=totals.__getitem__), repeats)
        for name, (start, end) in trace.spans().items()
    }


def _signed(trace: Trace, event: int) -> int:
    size = trace.blocks[abs(event) - 1].tensor
    return size if event > 0 else -size


def _peak(trace: Trace, roles: Sequence[str], position: int, repeats: Repeats | None) -> Peak:
    """Sum up what is held after the first ``position`` events."""
    events = Counter(abs(event) - 1 for event in trace.events[:position])
    times = (lambda number: 1) if repeats is None else repeats.times(position)
    parts: Counter[str] = Counter()
    for number, count in events.items():
        if count % 2:  # taken, and not released yet
            parts[roles[number]] += times(number) * trace.blocks[number].tensor
    parts = +parts  # without blocks that are no tensors
    return Peak(parts.total(), dict(parts))
