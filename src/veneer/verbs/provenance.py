"""What would make a measurement of an adapter's file doubtful: pictures that it was trained on, another base."""

from __future__ import annotations

from collections.abc import Mapping

from veneer.data.manifest import Manifest
from veneer.errors import UserError
from veneer.family.fingerprint import fingerprint
from veneer.run.identity import BASE, HASHES

__all__ = ["base_doubts", "never_seen"]


def never_seen(pictures: Manifest, trained_on: Manifest) -> tuple[Manifest, list[str]]:
    """Pictures to measure on less those that were trained on, and a sentence if there are such."""
    left = pictures.without(trained_on)
    count = len(pictures.samples) - len(left.samples)
    if not count:
        return left, []
    were = "picture to measure on was" if count == 1 else "pictures to measure on were"
    return left, [f"{count} {were} trained on, so left out"]


def base_doubts(metadata: Mapping[str, str], base: str) -> list[str]:
    """A sentence if a base's weights are not those that an adapter's file tells of; files of others tell nothing."""
    told = metadata.get(HASHES[BASE])
    try:
        if told is None or told == fingerprint(base):
            return []
    except UserError:  # what is loaded from elsewhere has no weights here to compare
        return []
    return [f"{base} is not the base that the adapter's file tells of, so it may do less here than on its own"]
