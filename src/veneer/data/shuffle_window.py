"""Order an epoch so that shards which lie elsewhere are read nearly from beginning to end.

A full shuffle asks for a picture of any shard at any time. Here the shards come in an order of the epoch's own, and
pictures change places within a window: blocks of so many pictures that follow each other. So near pictures of a shard
stay near each other, at most a window apart, which is less of a shuffle than that of pictures on disk.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from veneer.data.manifest import Sample
from veneer.rng import key

__all__ = ["DEFAULT_WINDOW", "with_windows"]

DEFAULT_WINDOW = 10_000
"""Pictures of a window where the config does not say."""

Indices = NDArray[np.intp]


def with_windows(order: Indices, samples: Sequence[Sample], seed: int, epoch: int, window: int) -> Indices:
    """Return an epoch's order in which pictures that lie elsewhere are shuffled within windows alone.

    It is a function of its arguments, of which an index of the shards has all, and of the shards' file names: not of
    the address that they are at. Pictures on disk keep their own order, spread evenly among the others.

    Args:
        order: indices of the epoch's pictures, fully shuffled, repeats and all, (E,).
        samples: the pictures.
        seed: of the run.
        epoch: from 0.
        window: how many pictures are shuffled among themselves.
    """
    is_remote_N = np.array([sample.location.is_remote for sample in samples], dtype=bool)
    is_remote_E = is_remote_N[order]
    if not is_remote_E.any():
        return order
    local, remote = order[~is_remote_E], order[is_remote_E]
    remote = _within_windows(remote, samples, seed, epoch, window)
    both: Indices = np.concatenate([remote, local])
    place = np.concatenate([(np.arange(len(part)) + 0.5) / max(len(part), 1) for part in (remote, local)])
    spread: Indices = both[np.argsort(place, kind="stable")]
    return spread


def _within_windows(order: Indices, samples: Sequence[Sample], seed: int, epoch: int, window: int) -> Indices:
    """Return an order by shard and place in it, but in each window as pictures were before."""
    places = [samples[index].location for index in order.tolist()]
    shards = {place.container for place in places}
    ranked = sorted(shards, key=lambda shard: (key(seed, epoch, shard.name, "shard order"), str(shard)))
    rank = {shard: number for number, shard in enumerate(ranked)}
    rank_E = np.array([rank[place.container] for place in places], dtype=np.int64)
    offset_E = np.array([place.offset or 0 for place in places], dtype=np.int64)
    near_E: Indices = np.lexsort((offset_E, rank_E))
    blocks = (np.sort(near_E[start : start + window]) for start in range(0, len(near_E), window))
    shuffled: Indices = order[np.concatenate(list(blocks))]
    return shuffled
