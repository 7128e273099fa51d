"""Write notes on the pictures that a user may want to read before a training, a sentence each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from veneer.config.data_config import DataConfig
from veneer.data.augment import names_side
from veneer.data.buckets import SmallPictures
from veneer.data.clip_frames import ClipFrames
from veneer.data.inspection import Inspection
from veneer.data.manifest import Rejected, Sample
from veneer.data.wording import few

__all__ = ["note_clips", "note_pictures", "note_small", "note_tiny", "reasons"]

Pairs = Sequence[tuple[Path, Path]]


def note_pictures(config: DataConfig, train: Inspection, held: Inspection, near: Pairs) -> tuple[str, ...]:
    """Return what is to be said of the pictures of a config.

    Args:
        config: of the pictures.
        train: what is trained on, with the copies that were found.
        held: what is held out.
        near: pairs of pictures that look the same.
    """
    notes = [
        *_note_copies(train.copies),
        *_note_empty_holdout(config, train, held),
        *_note_leaks(held, near),
        *_note_references(train),
        *_note_masks(train),
        *_note_sides(config, train),
        *note_small(train.samples.values(), config),
        *_note_looks(train),
        *dict.fromkeys((*train.notes, *held.notes)),
    ]
    return tuple(notes)


def note_small(samples: Iterable[Sample], config: DataConfig, default: int | None = None) -> list[str]:
    """Return a note on pictures that are smaller than the resolution; none if there are no such pictures.

    Args:
        samples: the pictures.
        config: what they are asked to be.
        default: the base's own resolution; None: it is not known.
    """
    small = SmallPictures.among(samples, config, default)
    if not small.samples:
        return []
    named = few(small.samples, _with_size)
    what = "enlarged, so blurred" if small.enlarged else "trained at their own size"
    return [f"smaller than {small.size} pixels and {what}: {named}"]


def note_tiny(samples: Iterable[Sample], config: DataConfig, multiple: int) -> list[str]:
    """Return a note on pictures that are enlarged although none should be; none if there are no such pictures.

    Args:
        samples: the pictures.
        config: what they are asked to be.
        multiple: the smallest side that the base takes.
    """
    tiny = [one for one in samples if min(one.width, one.height) < multiple]
    if not tiny or SmallPictures.among((), config, multiple).enlarged:
        return []
    named = few(tiny, _with_size)
    return [f"smaller than {multiple} pixels, which is the least that the base takes, and so enlarged: {named}"]


def note_clips(samples: Sequence[Sample], clips: ClipFrames) -> list[str]:
    """Return notes on clips that are shorter or slower than what is asked for; none if there are no such clips.

    Args:
        samples: pictures and clips.
        clips: what is asked for.
    """
    short = [f"{one.path} ({clips.count(one)} of {clips.available(one)})" for one in samples if clips.is_short(one)]
    slow = [f"{one.path} ({one.frame_rate:.4g} a second)" for one in samples if clips.repeats_frames(one)]
    facts = (
        (
            short,
            f"clips shorter than {min(clips.counts, default=1)} frames, seen with as many as the base takes of them",
        ),
        (
            slow,
            f"clips slower than {clips.rate or 0:.4g} frames a second, of which frames are seen twice and learned so",
        ),
    )
    return [f"{what}: {few(named)}" for named, what in facts if named]


def reasons(rejected: Iterable[Rejected]) -> list[str]:
    """Return each picture's name and why it is left out."""
    return [f"{one.path.name}: {one.reason}" for one in rejected]


def _path(sample: Sample) -> str:
    return str(sample.path)


def _with_size(sample: Sample) -> str:
    return f"{sample.path} ({sample.width} x {sample.height})"


def _note_copies(copies: Pairs) -> list[str]:
    what = "the same picture more than once, taken as one with the captions and repeats of all"
    return [f"{what}: {few(copies, lambda pair: f'{pair[1]} = {pair[0]}')}"] if copies else []


def _note_empty_holdout(config: DataConfig, train: Inspection, held: Inspection) -> list[str]:
    if not config.held_out or held.samples:
        return []
    return [f"{len(train.samples)} pictures are too few to hold any out, so there will be no held-out score"]


def _note_looks(train: Inspection) -> list[str]:
    """Note pictures that show nothing, or nothing sharp."""
    flat = [sample for id, sample in train.samples.items() if train.looks[id].is_flat]
    blurred = [sample for id, sample in train.samples.items() if train.looks[id].is_blurred]
    facts = (
        (flat, "of one colour, which teaches nothing else"),
        (blurred, "blurred all over, which is learned as well"),
    )
    return [f"{what}: {few(samples, _path)}" for samples, what in facts if samples]


def _note_references(train: Inspection) -> list[str]:
    """Note that pictures are pairs: which files are references is found by names, and may not be what was meant."""
    pair = next((sample for sample in train.samples.values() if sample.references), None)
    if pair is None:
        return []
    return [
        f"each picture is made from {len(pair.references)} by its caption, such as {pair.path} from "
        f"{few([reference.path for reference in pair.references])}"
    ]


def _note_masks(train: Inspection) -> list[str]:
    """Note how much of the pictures is learned, by which masks that are inverted or do not fit can be told."""
    samples = train.samples.values()
    shares = [sample.mask.share for sample in samples if sample.mask is not None]
    whole = [sample for sample in samples if sample.mask is None]
    if not shares:
        return []
    note = (
        f"{len(shares)} of {len(samples)} pictures have a mask, and {sum(shares) / len(shares):.0%} of these is learned"
    )
    return [f"{note} (what is white), of the others all: {few(whole, _path)}" if whole else f"{note} (what is white)"]


def _note_sides(config: DataConfig, train: Inspection) -> list[str]:
    """Note pictures that are not mirrored though ``flip`` is on."""
    sided = [one for one in train.samples.values() if names_side(one.captions)] if config.flip else []
    what = f"{len(sided)} of {len(train.samples)} pictures are not mirrored, for their captions say left or right"
    return [f"{what}: {few(sided, _path)}"] if sided else []


def _note_leaks(held: Inspection, near: Pairs) -> list[str]:
    unseen = {sample.path for sample in held.samples.values()}
    leaks = [f"{first} and {second}" for first, second in near if (first in unseen) != (second in unseen)]
    what = "a held-out picture looks like a training picture, which flatters the score"
    return [f"{what}: {few(leaks)}"] if leaks else []
