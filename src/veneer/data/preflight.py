"""The pictures are looked over before anything is trained: each is decoded once, as training will decode it.

A fault in a picture puts that picture aside and says why; a fault in what the user wrote (a folder, a caption, a
list) ends the run before it starts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from veneer.config.colour import rgb
from veneer.config.schema import DataConfig, RunConfig, SourceConfig
from veneer.data.decode import Unreadable, decode
from veneer.data.manifest import Entry, Listing, Manifest, Rejected, Sample, content_id, find_pictures, read_folder
from veneer.errors import UserError
from veneer.rng import key

__all__ = ["THUMB", "Dataset", "enlarged", "lookalikes", "near_duplicates", "read_prior", "survey"]

Thumb = NDArray[np.uint8]

THUMB = 8
"""Cells along a side of a thumbnail, by which pictures that look alike are told."""
_NEAR = 24
"""Levels of 255 by which no cell of two alike thumbnails differs. Of 1,000 emoji drawings, 99 % of the copies resized
or saved as JPEG of quality 75 or 90 stayed within it, and of the 499,500 pairs of different drawings none did."""


@dataclass(frozen=True)
class Dataset:
    """What a run learns from and what it is measured on.

    Attributes:
        train: pictures to learn from, and all that were put aside from the sources.
        held_out: pictures that training never sees; empty if there are too few to spare any.
        near: pairs of pictures that look the same but are different files; of many that all do, each is in a pair with
            one on its own side, of training or held out, and in one with one on the other side, if there are any.
        notes: what the user may want to know, a sentence each.
    """

    train: Manifest
    held_out: Manifest
    near: tuple[tuple[Path, Path], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Looked:
    """Pictures by id after a look at them: no id twice."""

    samples: dict[str, Sample]
    thumbs: dict[str, Thumb]
    rejected: tuple[Rejected, ...]
    twins: tuple[tuple[Path, Path], ...]

    def manifest(self) -> Manifest:
        return Manifest(tuple(self.samples.values()), self.rejected)


def survey(config: DataConfig) -> Dataset:
    """Read, decode and split the pictures of a config.

    Raises:
        UserError: a folder, caption or list is at fault, or no picture is left to learn from.
    """
    looked = _look_over([read_folder(source, config.trigger) for source in config.sources], config.background)
    if isinstance(config.held_out, Path):
        held = _held_folder(config.held_out, config)
        train = _without(looked, held)
    else:
        train, held = _split(looked, config.held_out)
    if not train.samples:
        raise UserError(f"no picture can be used: {_few(_reasons(train.rejected))}", where=config.sources[0].path)
    near = _near_paths({**looked.thumbs, **held.thumbs}, {**looked.samples, **held.samples}, held.samples.keys())
    notes = (*_source_notes(config.sources), *_notes(config, looked.twins, train, held, near))
    return Dataset(train.manifest(), held.manifest(), near, notes)


def read_prior(config: RunConfig) -> Manifest:
    """Pictures of the class that a subject belongs to, each captioned with the prior's prompt.

    The first ``count`` by path that can be used. There may be fewer, or none: the base paints the missing ones.
    """
    prior = config.data.prior
    folder = config.output.dir / "prior" if prior is None or prior.path is None else prior.path
    if prior is None or not folder.exists():
        return Manifest()
    entries = tuple(Entry(path, (prior.prompt,), 1) for path in find_pictures(folder))
    found = _look_over([Listing(entries, ())], config.data.background).manifest()
    # a picture that is there twice is one picture of the class
    return Manifest(tuple(replace(sample, repeats=1) for sample in found.samples[: prior.count]), found.rejected)


def _look_over(listings: Iterable[Listing], background: str) -> _Looked:
    """Decode every picture; the same picture twice is one, with the captions and showings of both."""
    samples: dict[str, Sample] = {}
    thumbs: dict[str, Thumb] = {}
    rejected: list[Rejected] = []
    twins: list[tuple[Path, Path]] = []
    for listing in listings:
        rejected += listing.rejected
        for entry in listing.entries:
            try:
                sample, thumb = _look(entry, rgb(background))
            except Unreadable as error:
                rejected.append(Rejected(entry.path, str(error)))
                continue
            twin = samples.get(sample.id)
            if twin is not None:
                twins.append((twin.path, sample.path))
                sample = _united(twin, sample)
            samples[sample.id], thumbs[sample.id] = sample, thumb
    return _Looked(samples, thumbs, tuple(rejected), tuple(twins))


def _look(entry: Entry, background: tuple[int, int, int]) -> tuple[Sample, Thumb]:
    try:
        content = entry.path.read_bytes()
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror}") from None
    image = decode(content, background)
    thumb = np.asarray(image.resize((THUMB, THUMB), Image.Resampling.BOX))
    return Sample(content_id(content), entry.path, entry.captions, *image.size, entry.repeats), thumb


def _united(first: Sample, second: Sample) -> Sample:
    captions = tuple(dict.fromkeys((*first.captions, *second.captions)))
    return replace(first, captions=captions, repeats=first.repeats + second.repeats)


def _split(looked: _Looked, share: float) -> tuple[_Looked, _Looked]:
    """Keep a share from training: the ids that a hash ranks first, whatever the files' names and order.

    Of ten or more pictures at least one; never all.
    """
    total = len(looked.samples)
    # a share such as 0.29 of 100 is 28.999999999999996
    count = int(share * total + 1e-9)
    if share > 0 and total >= 10:
        count = max(count, 1)
    ranked = sorted(looked.samples, key=lambda id: key("held out", id))
    chosen = set(ranked[: min(count, max(total - 1, 0))])
    kept = {id: sample for id, sample in looked.samples.items() if id not in chosen}
    held = {id: sample for id, sample in looked.samples.items() if id in chosen}
    return replace(looked, samples=kept), _Looked(held, {}, (), ())


def _held_folder(folder: Path, config: DataConfig) -> _Looked:
    held = _look_over([read_folder(SourceConfig(path=folder), config.trigger)], config.background)
    if not held.samples:
        raise UserError(f"no picture can be used: {_few(_reasons(held.rejected))}", where=folder)
    return held


def _without(looked: _Looked, held: _Looked) -> _Looked:
    """Training pictures less those that are held out as well."""
    both = [looked.samples[id] for id in looked.samples if id in held.samples]
    kept = {id: sample for id, sample in looked.samples.items() if id not in held.samples}
    reasons = [Rejected(sample.path, f"held out as {held.samples[sample.id].path}") for sample in both]
    return replace(looked, samples=kept, rejected=(*looked.rejected, *reasons))


def lookalikes(thumbs: NDArray[np.uint8], thumb: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which thumbnails (N, H, W, 3) differ from another (H, W, 3) in no cell by more than a few levels, (N,)."""
    apart = np.abs(thumbs.astype(np.int16) - thumb.astype(np.int16))
    alike: NDArray[np.bool_] = apart.max(axis=(1, 2, 3), initial=0) <= _NEAR
    return alike


def near_duplicates(thumbs: NDArray[np.uint8], held_N: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Pairs of thumbnails (N, H, W, 3) no cell of which differs by more than a few levels, as places in order.

    Each is paired with the first that is like it among those of its own side, held out or not, and with the first of
    the other side: at most 2N pairs, where all would be N^2/2 of pictures that are all alike.

    Sums over D cells cannot differ by more than D times what cells do, so only thumbnails of like brightness are
    compared: exact, and quick.
    """
    flat_ND = thumbs.reshape(len(thumbs), -1)
    sum_N = flat_ND.sum(axis=1, dtype=np.int64)
    order = np.argsort(sum_N, kind="stable")
    ends = np.searchsorted(sum_N[order], sum_N[order] + _NEAR * flat_ND.shape[1], side="right")
    count = len(thumbs)
    first_N2 = np.full((count, 2), count)  # of the own side, of the other; count: none
    for place, (index, end) in enumerate(zip(order, ends, strict=True)):
        others = order[place + 1 : end]
        alike = others[lookalikes(thumbs[others], thumbs[index])]
        across = (held_N[alike] != held_N[index]).astype(int)
        first_N2[alike, across] = np.minimum(first_N2[alike, across], index)
        for side in (0, 1):
            first_N2[index, side] = min(first_N2[index, side], alike[across == side].min(initial=count))
    found = ((index, int(other)) for index, pair in enumerate(first_N2) for other in pair if other < count)
    return sorted({(min(pair), max(pair)) for pair in found})


def _near_paths(thumbs: dict[str, Thumb], samples: dict[str, Sample], held: Set[str]) -> tuple[tuple[Path, Path], ...]:
    paths = [samples[id].path for id in thumbs]
    pairs = near_duplicates(np.stack(list(thumbs.values())), np.array([id in held for id in thumbs]))
    return tuple((paths[first], paths[second]) for first, second in pairs)


def _source_notes(sources: Sequence[SourceConfig]) -> list[str]:
    """Folders named as kohya's scripts have it, where ``10_cat`` means ten repeats."""
    notes = []
    for source in sources:
        folders = [source.path, *(path for path in sorted(source.path.iterdir()) if path.is_dir())]
        for folder in folders:
            number = re.match(r"(\d+)_\w", folder.name)
            if number and int(number[1]) != source.repeats:
                notes.append(f"{folder}: the number is not read as repeats; write {{path: ..., repeats: {number[1]}}}")
    return notes


def _notes(
    config: DataConfig,
    twins: Sequence[tuple[Path, Path]],
    train: _Looked,
    held: _Looked,
    near: Sequence[tuple[Path, Path]],
) -> list[str]:
    notes = []
    if twins:
        named = _few([f"{second} = {first}" for first, second in twins])
        notes.append(f"the same picture more than once, taken as one with the captions and repeats of all: {named}")
    if config.held_out and not held.samples:
        notes.append(f"{len(train.samples)} pictures are too few to hold any out, so there will be no held-out score")
    unseen = {sample.path for sample in held.samples.values()}
    leaks = [f"{first} and {second}" for first, second in near if (first in unseen) != (second in unseen)]
    if leaks:
        notes.append(f"a held-out picture looks like a training picture, which flatters the score: {_few(leaks)}")
    return notes + enlarged(train.samples.values(), config.resolution or 0)


def enlarged(samples: Iterable[Sample], side: int) -> list[str]:
    """What to say of pictures that are smaller than ``side`` pixels; nothing if there are none."""
    small = [f"{one.path} ({one.width} x {one.height})" for one in samples if _short(one) < side]
    return [f"smaller than {side} pixels and enlarged, so blurred: {_few(small)}"] if small else []


def _short(sample: Sample) -> int:
    return min(sample.width, sample.height)


def _reasons(rejected: Iterable[Rejected]) -> list[str]:
    return [f"{one.path.name}: {one.reason}" for one in rejected]


def _few(items: Sequence[Any]) -> str:
    """The first three, and how many more."""
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return ", ".join(map(str, items[:3])) + more
