"""Warnings about the provenance of what an adapter is measured with: pictures it was trained on, another base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from veneer.config.schema import RunConfig
from veneer.data.manifest import Manifest
from veneer.data.preflight import Dataset, survey
from veneer.data.split_record import SplitRecord, read_split
from veneer.errors import UserError
from veneer.family.fingerprint import fingerprint
from veneer.run.folder import config_beside
from veneer.run.identity import BASE, HASHES

__all__ = ["base_warnings", "survey_run", "without_training_pictures"]


def survey_run(config: RunConfig, file: Path) -> tuple[Dataset, list[str]]:
    """Return the pictures of a run as it was trained on them, and warnings if others are there now.

    None that the run was trained on, nor a new one that looks like one of those, is held out, however the folder is
    split now; and only those that it was trained on are called so. Runs of earlier versions have no record of it.

    Args:
        config: of the run.
        file: its folder, or the adapter in it.

    Raises:
        UserError: as of :func:`~veneer.data.preflight.survey`.
    """
    record = _record_of(file)
    pictures = survey(config.data, earlier=record)
    if record is None:
        return pictures, []
    held_out, notes = _without_seen(pictures.held_out, pictures.split, record)
    trained = [sample for sample in pictures.train.samples if sample.id in record.trained]
    new = len(pictures.train.samples) - len(trained)
    if new:
        notes.append(f"{new} of the pictures to train on were not there when it was trained, so left out")
    return replace(pictures, train=replace(pictures.train, samples=tuple(trained)), held_out=held_out), notes


def without_training_pictures(
    pictures: Manifest, trained_on: Manifest, looks: SplitRecord | None = None, file: Path | None = None
) -> tuple[Manifest, list[str]]:
    """Return pictures to measure on without those that were trained on, and a warning if there are such.

    Args:
        pictures: to measure on.
        trained_on: what is known to have been trained on.
        looks: of the pictures; None: their bytes alone are compared.
        file: the adapter, or its run's folder, whose own record of what it was trained on is looked at as well.
    """
    unseen = pictures.without(trained_on)
    record = None if looks is None or file is None else _record_of(file)
    if record is not None and looks is not None:
        unseen, _ = _without_seen(unseen, looks, record)
    return unseen, _left_out(len(pictures.samples) - len(unseen.samples))


def _record_of(file: Path) -> SplitRecord | None:
    return read_split(config_beside(file).parent)


def _without_seen(pictures: Manifest, looks: SplitRecord, record: SplitRecord) -> tuple[Manifest, list[str]]:
    """Return pictures without those that were trained on by a run's record, or look like such, and a warning."""
    sides = record.sides_of(looks)
    unseen = tuple(sample for sample in pictures.samples if sides.get(sample.id, True))
    return replace(pictures, samples=unseen), _left_out(len(pictures.samples) - len(unseen))


def _left_out(count: int) -> list[str]:
    were = "picture to measure on was" if count == 1 else "pictures to measure on were"
    return [f"{count} {were} trained on, so left out"] if count else []


def base_warnings(metadata: Mapping[str, str], base: str) -> list[str]:
    """Return a warning if a base is not the one that an adapter's file names; files of other tools name none."""
    recorded = metadata.get(HASHES[BASE])
    try:
        if recorded is None or recorded == fingerprint(base):
            return []
    except UserError:  # a base that is loaded from elsewhere has no weights here to compare
        return []
    return [f"{base} is not the base that the adapter's file names, so the adapter may do less here than on its own"]
