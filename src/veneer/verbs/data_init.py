"""Write a configuration for a place with pictures, from what is found there, with a comment on each choice."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from veneer.config.load import config_from_folder, load_config
from veneer.config.schema import RunConfig
from veneer.data.captions import Uncaptioned
from veneer.data.inspection import Advance, no_progress
from veneer.data.manifest import Sample
from veneer.data.preflight import Dataset, survey
from veneer.data.sources.tree import is_clip
from veneer.files import atomic_write, check_free, opens_paths

__all__ = ["write_initial_config"]

_TAGS = 4
"""Parts between commas from which on a caption is taken for a list of tags."""
_FALLBACK = "tok"
_COUNTS = (9, 17, 33)
"""Frames of clips that are proposed: one more than a multiple of 8, as all bases of clips take them."""


@dataclass(frozen=True)
class _Found:
    """What was found in a place.

    Attributes:
        place: with pictures.
        base: that the configuration is for.
        trigger: words that could call the adapter.
        needs_trigger: whether some picture has no caption.
        dataset: its pictures.
    """

    place: Path
    base: str
    trigger: str
    needs_trigger: bool
    dataset: Dataset

    @property
    def samples(self) -> tuple[Sample, ...]:
        return (*self.dataset.train.samples, *self.dataset.held_out.samples)


@opens_paths
def write_initial_config(
    place: Path, out: Path, base: str = "bundled", trigger: str | None = None, progress: Advance = no_progress
) -> RunConfig:
    """Write a configuration, and return it as it is loaded.

    Args:
        place: with pictures: whatever ``veneer train`` takes, but for a configuration.
        out: the file; must not exist.
        base: that it is for.
        trigger: words that call the adapter; default: the place's name is proposed.
        progress: is called with how many pictures are decoded, and how many there are.

    Raises:
        UserError: the pictures cannot be trained on, or the file cannot be written.
    """
    check_free(out)
    found = _look(place, base, trigger, progress)
    lines = [*_head(found), *_data(found, _from(place, out.parent), trigger), *_rest(found)]
    atomic_write(out, ("\n".join(lines) + "\n").encode())
    return load_config(out)


def _look(place: Path, base: str, trigger: str | None, progress: Advance) -> _Found:
    proposed = trigger or re.sub(r"\W+", " ", place.stem).strip() or _FALLBACK
    try:
        dataset = _survey(place, trigger, progress)
        return _Found(place, base, proposed, trigger is not None, dataset)
    except Uncaptioned:
        dataset = _survey(place, proposed, progress)
        return _Found(place, base, proposed, True, dataset)


def _survey(place: Path, trigger: str | None, progress: Advance) -> Dataset:
    """Look over what is in a place; animated pictures are clips only where there are videos as well."""
    data = config_from_folder(place, trigger).data
    dataset = survey(data.model_copy(update={"frames": (1,)}), progress)
    moving = [one for one in (*dataset.train.samples, *dataset.held_out.samples) if one.frame_rate is not None]
    return survey(data, progress) if moving and not any(is_clip(one.path) for one in moving) else dataset


def _from(place: Path, folder: Path) -> str:
    """Return the path of a place as a configuration in a folder has it: relative, where the place is in the folder."""
    absolute, start = os.path.abspath(place), os.path.abspath(folder)
    inside = os.path.commonpath([absolute, start]) == start
    return os.path.relpath(absolute, start) if inside else absolute


def _quoted(text: str) -> str:
    """Return a text as YAML has it between double quotes, which are JSON's."""
    return json.dumps(text, ensure_ascii=False)


def _head(found: _Found) -> Iterator[str]:
    train, held, rejected = found.dataset.train, found.dataset.held_out, found.dataset.train.rejected
    yield "# Written by veneer data init from the pictures that were there. Every key is in docs/configuration.md."
    yield f"# {len(train.samples)} pictures to train on, {len(held.samples)} held out, {len(rejected)} put aside;"
    yield "# look them over with: veneer data check THIS_FILE --out check.html"
    yield f"base: {_quoted(found.base)}  # bundled, a diffusers folder, a .safetensors file, or a hub id"
    yield ""


def _data(found: _Found, path: str, trigger: str | None) -> Iterator[str]:
    captions = [caption for sample in found.samples for caption in sample.captions]
    yield "data:"
    yield "  sources:"
    yield f"    - path: {_quoted(path)}"
    yield "      repeats: 1  # how often an epoch shows each picture; more where another source has more pictures"
    yield f"      captions: lines  # {_told(found)}; whole: a file is one caption"
    if captions and median(caption.count(",") + 1 for caption in captions) >= _TAGS:
        yield "      # they look like lists of tags:"
        yield "      # shuffle_tags: true"
        yield "      # keep_tags: 1"
    word = f"trigger: {_quoted(found.trigger)}"
    if found.needs_trigger or trigger is not None:
        yield f"  {word}  # words that call the adapter; some pictures have no other caption"
    else:
        yield f"  # {word}  # words that call the adapter, put into each caption; best one that means nothing else"
    yield from _sizes(found.samples)
    yield from _frames(found.samples)
    yield f"  held_out: 0.1  # share kept from training to measure on: {len(found.dataset.held_out.samples)} pictures"
    yield "  # flip: true  # mirror half of the draws; wrong for text and for faces that are not symmetric"
    yield ""


def _told(found: _Found) -> str:
    most = max((len(sample.captions) for sample in found.samples), default=0)
    return f"pictures have up to {most} captions, of which a draw takes one" if most > 1 else "each has one caption"


def _sizes(samples: Sequence[Sample]) -> Iterator[str]:
    sides = sorted(round((one.width * one.height) ** 0.5) for one in samples)
    middle = int(median(sides))
    shapes = {round(one.width / one.height, 2) for one in samples}
    yield f"  # the pictures are as large as squares of {sides[0]} to {sides[-1]} pixels a side, on the median {middle}"
    yield f"  # resolution: {max(64, middle // 64 * 64)}  # default: the base's own"
    what = "shapes, which they keep" if len(shapes) > 1 else "shape, which they keep"
    yield f"  aspect: buckets  # {len(shapes)} {what}; square: what a square has of each"


def _frames(samples: Sequence[Sample]) -> Iterator[str]:
    lengths = sorted(one.frames for one in samples if one.frame_rate is not None)
    if lengths:
        counts = [count for count in _COUNTS if count <= lengths[-1]] or [1]
        yield f"  # {len(lengths)} clips of {lengths[0]} to {lengths[-1]} frames; each is seen with the most of these:"
        yield f"  frames: {counts}  # more take more memory; a base of pictures takes 1"


def _rest(found: _Found) -> Iterator[str]:
    count = max(1, len(found.dataset.train.samples))
    yield "train:"
    yield f"  max_steps: 400  # of 4 pictures each: every picture is shown some {400 * 4 // count} times"
    yield "  batch_size: 4"
    yield "# adapter:"
    yield "#   rank: 16"
