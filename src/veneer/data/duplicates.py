"""Find pictures that look the same, by their thumbnails."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from veneer.data.near_pairs import Indices, visit_near_pairs

__all__ = ["THUMB", "Comparison", "Thumb", "compare", "lookalikes", "near_duplicates"]

Thumb = NDArray[np.uint8]
"""A picture of THUMB x THUMB cells, (THUMB, THUMB, 3)."""

THUMB = 8
"""Cells along a side of a thumbnail, by which pictures that look alike are recognised."""
_NEAR = 24
"""Levels of 255 by which no cell of two alike thumbnails differs. Of 1,000 emoji drawings, 99 % of the copies resized
or saved as JPEG of quality 75 or 90 stayed within it, and of the 499,500 pairs of different drawings none did."""


@dataclass(frozen=True)
class Comparison:
    """Which of N thumbnails look the same.

    Attributes:
        group_N: of each, the first one of its group, as an index. Two that look the same are of one group, and so are
            all that such pairs link.
        pairs: see :func:`near_duplicates`.
    """

    group_N: Indices
    pairs: list[tuple[int, int]]


def lookalikes(thumbs: NDArray[np.uint8], thumb: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Check which thumbnails (N, H, W, 3) differ from one (H, W, 3) in no cell by more than a few levels, (N,)."""
    apart = np.abs(thumbs.astype(np.int16) - thumb.astype(np.int16))
    alike: NDArray[np.bool_] = apart.max(axis=(1, 2, 3), initial=0) <= _NEAR
    return alike


def near_duplicates(thumbs: NDArray[np.uint8], held_N: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return pairs of thumbnails (N, H, W, 3) no cell of which differs by more than a few levels, as indices in order.

    Each is paired with the first that is like it among those of its own side, held out or not, and with the first of
    the other side: at most 2N pairs, where all would be N^2/2 of pictures that are all alike.
    """
    return compare(thumbs, held_N).pairs


def compare(thumbs: NDArray[np.uint8], held_N: NDArray[np.bool_]) -> Comparison:
    """Compare thumbnails (N, H, W, 3), some of which are held out, and return which look the same."""
    firsts = _Firsts(held_N)
    visit_near_pairs(thumbs.reshape(len(thumbs), int(np.prod(thumbs.shape[1:]))), _NEAR, firsts)
    return Comparison(firsts.groups(), firsts.pairs())


class _Firsts:
    """For each thumbnail the first that is like it, of its own side and of the other, and the first of its group."""

    def __init__(self, held_N: NDArray[np.bool_]) -> None:
        self._held_N, self._none = held_N, len(held_N)
        self._linked_N = np.arange(len(held_N))  # a forest: each points to itself, or to an earlier one of its group
        self._first_N2 = np.full((len(held_N), 2), self._none)

    def meet(self, first: Indices, second: Indices) -> None:
        """Take pairs that are alike, (P,) and (P,)."""
        across = (self._held_N[first] != self._held_N[second]).astype(int)
        np.minimum.at(self._first_N2, (first, across), second)
        np.minimum.at(self._first_N2, (second, across), first)
        self._link(first, second)

    def _link(self, first: Indices, second: Indices) -> None:
        """Let both of each pair be of one group."""
        while True:
            first, second = self._roots(first), self._roots(second)
            apart = first != second
            if not apart.any():
                return
            first, second = np.minimum(first, second)[apart], np.maximum(first, second)[apart]
            np.minimum.at(self._linked_N, second, first)

    def _roots(self, indices: Indices) -> Indices:
        roots = self._linked_N[indices]
        while (roots != self._linked_N[roots]).any():
            roots = self._linked_N[roots]
        self._linked_N[indices] = roots
        return roots

    def meet_all(self, alike: Indices) -> None:
        """Take thumbnails (A,) that are all alike."""
        for side in (False, True):
            leading = np.sort(alike[self._held_N[alike] == side])[:2]
            for other in leading:
                met = alike[alike != other]
                self.meet(met, np.full(len(met), other))

    def groups(self) -> Indices:
        """Return of each thumbnail the first one of its group."""
        return self._roots(np.arange(self._none))

    def pairs(self) -> list[tuple[int, int]]:
        """Return each thumbnail with its firsts, smaller index first, in order and once."""
        index, side = np.nonzero(self._first_N2 < self._none)
        other = self._first_N2[index, side]
        pairs = np.unique(np.stack([np.minimum(index, other), np.maximum(index, other)], axis=1), axis=0)
        return [(first, second) for first, second in pairs.tolist()]
