"""Warnings about the provenance of what an adapter is measured with: pictures it was trained on, another base."""

from __future__ import annotations

from collections.abc import Mapping

from veneer.data.manifest import Manifest
from veneer.errors import UserError
from veneer.family.fingerprint import fingerprint
from veneer.run.identity import BASE, HASHES

__all__ = ["base_warnings", "without_training_pictures"]


def without_training_pictures(pictures: Manifest, trained_on: Manifest) -> tuple[Manifest, list[str]]:
    """Return pictures to measure on without those that were trained on, and a warning if there are such."""
    unseen = pictures.without(trained_on)
    count = len(pictures.samples) - len(unseen.samples)
    if not count:
        return unseen, []
    were = "picture to measure on was" if count == 1 else "pictures to measure on were"
    return unseen, [f"{count} {were} trained on, so left out"]


def base_warnings(metadata: Mapping[str, str], base: str) -> list[str]:
    """Return a warning if a base is not the one that an adapter's file names; files of other tools name none."""
    recorded = metadata.get(HASHES[BASE])
    try:
        if recorded is None or recorded == fingerprint(base):
            return []
    except UserError:  # a base that is loaded from elsewhere has no weights here to compare
        return []
    return [f"{base} is not the base that the adapter's file names, so the adapter may do less here than on its own"]
