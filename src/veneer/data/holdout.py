"""Hold pictures out from training, to measure on them."""

from __future__ import annotations

from dataclasses import replace

from veneer.data.inspection import Inspection
from veneer.data.manifest import Rejected
from veneer.rng import key

__all__ = ["split", "without_held_out"]


def split(pictures: Inspection, share: float) -> tuple[Inspection, Inspection]:
    """Keep a share from training: the ids that a hash ranks first, whatever the files' names and order.

    Of ten or more pictures at least one; never all.

    Returns:
        The pictures to train on, and those that are held out.
    """
    total = len(pictures.samples)
    # a share such as 0.29 of 100 is 28.999999999999996
    count = int(share * total + 1e-9)
    if share > 0 and total >= 10:
        count = max(count, 1)
    ranked = sorted(pictures.samples, key=lambda id: key("held out", id))
    chosen = set(ranked[: min(count, max(total - 1, 0))])
    train = {id: sample for id, sample in pictures.samples.items() if id not in chosen}
    held = {id: sample for id, sample in pictures.samples.items() if id in chosen}
    return replace(pictures, samples=train), Inspection(held)


def without_held_out(pictures: Inspection, held: Inspection) -> Inspection:
    """Return the pictures less those that are held out as well, which are rejected."""
    both = [sample for id, sample in pictures.samples.items() if id in held.samples]
    train = {id: sample for id, sample in pictures.samples.items() if id not in held.samples}
    reasons = [Rejected(sample.path, f"held out as {held.samples[sample.id].path}") for sample in both]
    return replace(pictures, samples=train, rejected=(*pictures.rejected, *reasons))
