"""Look the pictures of a run over as its training would, without training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from veneer.config.schema import RunConfig
from veneer.data.preflight import survey

__all__ = ["DataCheck", "check_pictures"]


@dataclass(frozen=True)
class DataCheck:
    """The pictures of a run, looked over.

    Attributes:
        train: how many there are to train on.
        held_out: how many are kept from it.
        rejected: why a picture is put aside, by its path.
        copies: pairs of files of the same bytes.
        near_duplicates: pairs of files that look the same.
        notes: what is good to know, in words.
    """

    train: int
    held_out: int
    rejected: Mapping[str, str]
    copies: tuple[tuple[Path, Path], ...]
    near_duplicates: tuple[tuple[Path, Path], ...]
    notes: tuple[str, ...]


def check_pictures(config: RunConfig) -> DataCheck:
    """Look the pictures of a run over.

    Raises:
        UserError: a training would refuse them.
    """
    dataset = survey(config.data)
    rejected = (*dataset.train.rejected, *dataset.held_out.rejected)
    return DataCheck(
        train=len(dataset.train.samples),
        held_out=len(dataset.held_out.samples),
        rejected={str(one.path): one.reason for one in rejected},
        copies=dataset.copies,
        near_duplicates=dataset.near,
        notes=dataset.notes,
    )
