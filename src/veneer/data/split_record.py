"""The record of a run's split: which pictures it was trained on and which were held out, and what each looks like.

By it a later run over the same folder, to which pictures were added, keeps each on its side, and an old adapter is not
measured on pictures that it was trained on.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from veneer.data.duplicates import THUMB, compare
from veneer.errors import UserError
from veneer.files import atomic_stream, open_regular

__all__ = ["SPLIT", "SplitRecord", "read_split", "write_split"]

SPLIT = "split.jsonl"
"""In a run's folder: the record, a line each picture."""

_NO_THUMBS = np.zeros((0, THUMB, THUMB, 3), np.uint8)


@dataclass(frozen=True)
class SplitRecord:
    """N pictures, on which side each is, and what it looks like.

    Attributes:
        held_out: whether it is held out, by id; in the order of the thumbnails.
        thumbs: (N, THUMB, THUMB, 3).
    """

    held_out: Mapping[str, bool] = field(default_factory=dict)
    thumbs: NDArray[np.uint8] = field(default_factory=lambda: _NO_THUMBS, repr=False, compare=False)

    @property
    def trained(self) -> frozenset[str]:
        """The ids of those that are trained on."""
        return frozenset(id for id, held in self.held_out.items() if not held)

    def sides_of(self, pictures: SplitRecord) -> dict[str, bool]:
        """Return for each of some pictures that this record knows, or knows a lookalike of, whether it is held out.

        One that is not known and looks like any that was trained on counts as trained on.
        """
        groups = compare(np.concatenate([self.thumbs, pictures.thumbs]), np.zeros(len(self) + len(pictures), bool))
        group_N, group_M = np.split(groups.group_N, [len(self)])
        sides: dict[int, bool] = {}
        for group, held in zip(group_N.tolist(), self.held_out.values(), strict=True):
            sides[group] = sides.get(group, True) and held
        named = zip(pictures.held_out, group_M.tolist(), strict=True)
        return {id: self.held_out.get(id, sides[group]) for id, group in named if group in sides}

    def extended_by(self, later: SplitRecord) -> SplitRecord:
        """Return the record of a run that went on with other pictures: what it was trained on stays so."""
        gone = [place for place, id in enumerate(self.held_out) if id not in later.held_out]
        ids = list(self.held_out)
        sides = {id: held and self.held_out.get(id, True) for id, held in later.held_out.items()}
        sides |= {ids[place]: self.held_out[ids[place]] for place in gone}
        return SplitRecord(sides, np.concatenate([later.thumbs, self.thumbs[gone]]))

    def __len__(self) -> int:
        """Return how many pictures there are."""
        return len(self.held_out)


def write_split(record: SplitRecord, folder: Path) -> None:
    """Write the record of a run into its folder."""
    atomic_stream(folder / SPLIT, _lines(record))


def _lines(record: SplitRecord) -> Iterator[bytes]:
    for (id, held), thumb in zip(record.held_out.items(), record.thumbs, strict=True):
        line = {"id": id, "held_out": held, "thumb": base64.b64encode(thumb.tobytes()).decode()}
        yield f"{json.dumps(line)}\n".encode()


def read_split(folder: Path) -> SplitRecord | None:
    """Read the record of a run; None: its folder has none, as those of earlier versions.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with open_regular(folder / SPLIT) as lines:
            read = [_read_line(line) for line in lines]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        what, remedy = f"is no record of a split: {error}", "remove it, or take it from a copy of the run's folder"
        raise UserError(what, code="data.bad_split", where=folder / SPLIT, remedy=remedy) from error
    return SplitRecord({id: held for id, held, _ in read}, _stacked([thumb for _, _, thumb in read]))


def _read_line(line: bytes) -> tuple[str, bool, NDArray[np.uint8]]:
    values = json.loads(line)
    thumb = np.frombuffer(base64.b64decode(values["thumb"], validate=True), np.uint8)
    return str(values["id"]), bool(values["held_out"]), thumb.reshape(THUMB, THUMB, 3)


def _stacked(thumbs: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return np.stack(thumbs) if thumbs else _NO_THUMBS
