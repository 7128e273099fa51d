"""Hold pictures out from training, to measure on them."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace

import numpy as np

from veneer.data.inspection import Inspection
from veneer.data.manifest import Rejected, Sample
from veneer.rng import keys, uniform

__all__ = ["MANY", "choose_held_out", "keep_sides", "split", "without_held_out"]

MANY = 100
"""Pictures from which on each is held out by its own hash alone, so that no other picture changes its side."""
_PURPOSE = "held out"


def choose_held_out(ids: Sequence[str], share: float, group_of: Mapping[str, str] | None = None) -> frozenset[str]:
    """Choose which pictures are held out, whatever their names and order.

    Groups are held out whole, by the hash of one member: the first by another hash, so that large groups are held out
    no more often than small ones. Of fewer than ``MANY`` pictures the share is held out as exactly as groups allow:
    those that the hash ranks first, and of ten or more at least one. Of more, those whose hash, a number in [0, 1), is
    below the share, but for groups that are larger than it: then pictures that are added move none from one
    side to the other, unless they join its group or make a group fit. Never all.

    Args:
        ids: of the pictures, each once.
        share: to hold out, 0 to 1.
        group_of: the name of each picture's group, by id; None: each is alone.
    """
    total = len(ids)
    # a share such as 0.29 of 100 is 28.999999999999996
    count = int(share * total + 1e-9)
    if share > 0 and total >= 10:
        count = max(count, 1)
    count = min(count, max(total - 1, 0))
    groups = _groups(ids, group_of)
    keys_G = keys((_PURPOSE,), [group[0] for group in groups])
    order = [place for place in np.argsort(keys_G, kind="stable").tolist() if len(groups[place]) <= count]
    small = [groups[place] for place in order]
    chosen = [groups[place] for place in order if keys_G[place] / 2.0**63 < share] if total >= MANY else []
    if not chosen:
        chosen = _filling(small, count if total < MANY else min(count, 1))
    held = [id for group in chosen for id in group]
    spared = len(chosen[-1]) if chosen and len(held) == total else 0
    return frozenset(held[: len(held) - spared])


def keep_sides(
    ids: Sequence[str], share: float, group_of: Mapping[str, str], sides: Mapping[str, bool]
) -> frozenset[str]:
    """Choose which pictures are held out where it is known of some, each of which stays on its side.

    A group of which one was trained on is trained on. Of groups of which nothing is known those are held out whose hash
    is below the share, but for groups that are larger than it.

    Args:
        ids: of the pictures, each once.
        share: of the new ones to hold out, 0 to 1.
        group_of: the name of each picture's group, by id.
        sides: whether a picture is held out, by id, of those of which it is known.
    """
    held: list[str] = []
    for group in _groups(ids, group_of):
        known = [sides[id] for id in group if id in sides]
        is_small = len(group) <= share * len(ids)
        if all(known) if known else is_small and uniform(_PURPOSE, group[0]) < share:
            held += group
    return frozenset(held)


def _groups(ids: Sequence[str], group_of: Mapping[str, str] | None) -> list[list[str]]:
    """Return the members of each group, first the one that decides for all."""
    groups: dict[str, list[str]] = {}
    for id in ids:
        groups.setdefault(id if group_of is None else group_of[id], []).append(id)
    return [members if len(members) == 1 else _deciding_first(members) for members in groups.values()]


def _deciding_first(members: list[str]) -> list[str]:
    order = np.argsort(keys(("deciding",), members), kind="stable")
    return [members[place] for place in order.tolist()]


def _filling(groups: Sequence[list[str]], count: int) -> list[list[str]]:
    """Return the first groups that together have so many members, leaving out those that are too large."""
    chosen = []
    for group in groups:
        if len(group) <= count:
            chosen.append(group)
            count -= len(group)
    return chosen


def split(pictures: Inspection, chosen: Container[str]) -> tuple[Inspection, Inspection]:
    """Return the pictures to train on, and those that are chosen to be held out."""
    train = {id: sample for id, sample in pictures.samples.items() if id not in chosen}
    held = {id: sample for id, sample in pictures.samples.items() if id in chosen}
    return _of_samples(pictures, train), Inspection(held)


def without_held_out(pictures: Inspection, held: Inspection) -> Inspection:
    """Return the pictures less those that are held out as well, which are rejected."""
    both = [sample for id, sample in pictures.samples.items() if id in held.samples]
    train = {id: sample for id, sample in pictures.samples.items() if id not in held.samples}
    reasons = [Rejected(sample.path, f"held out as {held.samples[sample.id].path}") for sample in both]
    return replace(_of_samples(pictures, train), rejected=(*pictures.rejected, *reasons))


def _of_samples(pictures: Inspection, samples: dict[str, Sample]) -> Inspection:
    """Return what is known of pictures for some of them, without thumbnails."""
    return replace(pictures, samples=samples, thumbs=Inspection().thumbs)
