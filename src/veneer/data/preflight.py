"""Check the pictures before anything is trained: list, decode, split and compare them.

A fault in a picture puts that picture aside and says why; a fault in what the user wrote (a folder, a caption, a
list) ends the run before it starts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set, Sized
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from veneer.config.data_config import DataConfig
from veneer.config.schema import RunConfig
from veneer.config.source_config import SourceConfig
from veneer.data.duplicates import Comparison, compare, near_duplicates
from veneer.data.holdout import choose_held_out, keep_sides, split, without_held_out
from veneer.data.inspection import Advance, Inspection, inspect_pictures, no_progress
from veneer.data.manifest import Manifest, Rejected, Sample
from veneer.data.notes import note_pictures, reasons
from veneer.data.seen import Look
from veneer.data.sources.protocol import Entry, Listing
from veneer.data.sources.registry import read_sources
from veneer.data.sources.tree import Tree
from veneer.data.split_record import SPLIT, SplitRecord, read_split
from veneer.data.wording import few
from veneer.errors import UserError

__all__ = ["Dataset", "SourceCount", "look_over", "read_prior", "refuse_if_none", "survey"]


@dataclass(frozen=True)
class SourceCount:
    """The pictures of one source.

    Attributes:
        path: of the source.
        pictures: how many it lists to be trained on; some may turn out to be of no use.
        left_out: how many it lists that are left out without being opened.
    """

    path: Path
    pictures: int
    left_out: int


@dataclass(frozen=True)
class Dataset:
    """The pictures that a run learns from, and those that it is measured on.

    Attributes:
        train: pictures to learn from, and all that were put aside from the sources.
        held_out: pictures that training never sees; empty if there are too few to spare any.
        near: pairs of pictures that look the same but are different files; of many that all do, each is in a pair with
            one on its own side, of training or held out, and in one with one on the other side, if there are any.
        copies: pairs of files of the same bytes, each of which is one picture, with the repeats of all.
        notes: what the user may want to know, a sentence each.
        looks: what was seen of the pictures, by id.
        sources: how many pictures each source lists.
        split: on which side each picture is, and what it looks like.
    """

    train: Manifest
    held_out: Manifest
    near: tuple[tuple[Path, Path], ...] = ()
    copies: tuple[tuple[Path, Path], ...] = ()
    notes: tuple[str, ...] = ()
    looks: Mapping[str, Look] = field(default_factory=dict)
    sources: tuple[SourceCount, ...] = ()
    split: SplitRecord = field(default_factory=SplitRecord)


def survey(config: DataConfig, progress: Advance = no_progress, earlier: SplitRecord | None = None) -> Dataset:
    """Read, decode and split the pictures of a config.

    Args:
        config: of the pictures.
        progress: is called with how many pictures are decoded, and how many there are.
        earlier: pictures that stay on their sides; None: those of the run that the config names, or none.

    Raises:
        UserError: a folder, caption or list is at fault, too many pictures cannot be used, or none is left to learn
            from.
    """
    dataset, refusal = look_over(config, progress, earlier)
    if refusal is not None:
        raise refusal
    return dataset


def look_over(
    config: DataConfig, progress: Advance = no_progress, earlier: SplitRecord | None = None
) -> tuple[Dataset, UserError | None]:
    """Read, decode and split the pictures of a config, and say what is against training on those that are left.

    Args:
        config: as for :func:`survey`.
        progress: likewise.
        earlier: likewise.

    Returns:
        The pictures; and the mistake that too many cannot be used, if they are.

    Raises:
        UserError: as of :func:`survey`, but for that one.
    """
    if earlier is None:
        earlier = _earlier_split(config)
    listings = read_sources(config)
    listed = list(zip(config.sources, listings, strict=True))
    counts = tuple(SourceCount(source.path, len(one.entries), len(one.rejected)) for source, one in listed)
    masked = [(source, {entry.path for entry in one.entries}) for source, one in listed if source.masks is not None]
    del listed
    pictures = inspect_pictures(_each_once(listings), config.background, progress, clips=config.frames is not None)
    _refuse_without_masks(masked, pictures)
    comparison: Comparison | None = None
    if isinstance(config.held_out, Path):
        held = _inspect_held_out(config.held_out, config)
        train = without_held_out(pictures, held)
    else:
        comparison = compare(pictures.thumbs, np.zeros(len(pictures.thumbs), bool))
        train, held = split(pictures, _held_out(pictures, config.held_out, comparison, earlier))
    _refuse_if_empty(train, config.sources[0].path)
    _check_references(config, [*train.samples.values(), *held.samples.values()])
    record = _record(pictures, held)
    near = _near_paths(pictures, held, record, comparison)
    notes = note_pictures(config, train, held, near)
    dataset = Dataset(
        train.manifest(),
        held.manifest(),
        near,
        pictures.copies,
        notes,
        {**pictures.looks, **held.looks} if held.looks else pictures.looks,
        counts,
        record,
    )
    return dataset, _too_faulty(pictures, config)


def read_prior(config: RunConfig) -> Manifest:
    """Read pictures of the class that a subject belongs to, each captioned with the prior's prompt.

    Returns:
        The first ``count`` by path that can be used. There may be fewer, or none: the base paints the missing ones.
    """
    prior = config.data.prior
    folder = config.output.dir / "prior" if prior is None or prior.path is None else prior.path
    if prior is None or not folder.exists():
        return Manifest()
    tree = Tree.walk(folder)
    entries = tuple(Entry(path, (prior.prompt,), location=tree.location(path)) for path in tree.readable)
    pictures = inspect_pictures([Listing(entries)], config.data.background).manifest()
    # a picture that is there twice is one picture of the class
    samples = tuple(replace(sample, repeats=1) for sample in pictures.samples[: prior.count])
    return Manifest(samples, pictures.rejected)


def _inspect_held_out(folder: Path, config: DataConfig) -> Inspection:
    first = config.sources[0]  # it is read as the first source is
    same = {name: getattr(first, name) for name in ("captions", "columns", "follow_links", "masks", "split")}
    source = SourceConfig(path=folder, **same)
    listings = read_sources(config.model_copy(update={"sources": (source,)}))
    held = inspect_pictures(listings, config.background, clips=config.frames is not None)
    _refuse_if_empty(held, folder)
    return held


def _each_once(listings: list[Listing]) -> Iterator[Listing]:
    """Yield listings, each of which is gone then."""
    while listings:
        yield listings.pop(0)


def _refuse_without_masks(sources: Sequence[tuple[SourceConfig, Set[Path]]], pictures: Inspection) -> None:
    """Refuse sources that shall have masks, each with the paths of its pictures, and have none.

    Raises:
        UserError: all would be learned.
    """
    if not sources:
        return
    masked = {sample.path for sample in pictures.samples.values() if sample.mask is not None}
    usable = {sample.path for sample in pictures.samples.values()}
    for source, paths in sources:
        if source.masks is not None and paths & usable and not paths & masked:
            raise UserError(
                _NO_MASK.get(source.masks, f"no picture has a mask of its name in {source.masks}"),
                code="data.no_mask",
                where=source.path,
                remedy="leave masks out, or name where they are: data.sources.0.masks=alpha, beside or a folder",
            )


_NO_MASK: Mapping[object, str] = {
    "alpha": "no picture has anything transparent that could be its mask",
    "beside": "no picture has a mask beside it, such as a-masklabel.png beside a.png",
}


def _refuse_if_empty(pictures: Inspection, where: Path) -> None:
    refuse_if_none(pictures.samples, pictures.rejected, where)


def refuse_if_none(pictures: Sized, rejected: Sequence[Rejected], where: Path) -> None:
    """Refuse a source of which no picture is left.

    Raises:
        UserError: there are no pictures; it names the first ones that were put aside.
    """
    if not len(pictures):
        what = f"no picture can be used: {few(reasons(rejected))}"
        raise UserError(what, code="data.no_usable_picture", where=where)


def _too_faulty(pictures: Inspection, config: DataConfig) -> UserError | None:
    """Return the mistake that more pictures cannot be used than the config allows."""
    total = len(pictures.faults) + len(pictures.samples) + len(pictures.copies)
    if len(pictures.faults) <= config.max_rejected * total:
        return None
    return UserError(
        f"{len(pictures.faults)} of {total} pictures cannot be used: {few(reasons(pictures.faults))}",
        code="data.too_many_rejected",
        where=config.sources[0].path,
        remedy=f"mend them, or allow more than data.max_rejected={config.max_rejected:g}",
    )


def _check_references(config: DataConfig, samples: Sequence[Sample]) -> None:
    """Refuse pictures of which not all have as many references, and pictures of the class beside pairs.

    Raises:
        UserError: a batch could not be made of them.
    """
    counts = Counter(len(sample.references) for sample in samples)
    if len(counts) > 1:
        told = ", ".join(f"{number} have {count}" for count, number in sorted(counts.items()))
        raise UserError(
            f"of {len(samples)} pictures, held-out ones included, {told} references",
            code="data.mixed_references",
            where="data.sources",
            remedy="give each as many, or train on those of each number apart",
        )
    if config.prior is not None and 0 not in counts:
        what = "pictures of the class have no references, and the pictures have"
        raise UserError(what, code="data.prior_of_pairs", where="data.prior", remedy="leave it out")


def _earlier_split(config: DataConfig) -> SplitRecord | None:
    """Return the record of the run whose split is kept; None: the config names none.

    Raises:
        UserError: the folder has none.
    """
    if config.split_from is None:
        return None
    record = read_split(config.split_from)
    if record is None:
        what, remedy = f"has no {SPLIT}, which a run leaves", "name the folder of a run, or leave data.split_from out"
        raise UserError(what, code="data.no_split", where=config.split_from, remedy=remedy)
    return record


def _held_out(
    pictures: Inspection, share: float, comparison: Comparison, earlier: SplitRecord | None
) -> frozenset[str]:
    """Return the ids of pictures to hold out; those of an earlier split stay on their sides."""
    ids, groups = list(pictures.samples), _groups(pictures, comparison)
    if earlier is None:
        return choose_held_out(ids, share, groups)
    return keep_sides(ids, share, groups, earlier.sides_of(_record(pictures, Inspection())))


def _record(pictures: Inspection, held: Inspection) -> SplitRecord:
    others = [place for place, id in enumerate(held.samples) if id not in pictures.samples]
    ids = {**pictures.samples, **held.samples}
    thumbs = np.concatenate([pictures.thumbs, held.thumbs[others]]) if others else pictures.thumbs
    return SplitRecord({id: id in held.samples for id in ids}, thumbs)


def _groups(pictures: Inspection, comparison: Comparison) -> dict[str, str]:
    """Return for each picture, by id, the first one of those that it looks like."""
    ids = list(pictures.samples)
    return {id: ids[first] for id, first in zip(ids, comparison.group_N.tolist(), strict=True)}


def _near_paths(
    pictures: Inspection, held: Inspection, record: SplitRecord, comparison: Comparison | None
) -> tuple[tuple[Path, Path], ...]:
    """Return pairs of files that look the same; a picture that is in both is named as it is held out.

    Args:
        pictures: all that are not in a folder of held-out ones.
        held: what is held out.
        record: of both.
        comparison: of all pictures as if none were held out; None: there is none. It holds where groups are whole.
    """
    known = pictures.samples
    ids, held_N = list(record.held_out), np.array(list(record.held_out.values()), dtype=bool)
    if comparison is None or (held_N != held_N[comparison.group_N]).any():
        pairs = near_duplicates(record.thumbs, held_N)
    else:
        pairs = comparison.pairs

    def path(place: int) -> Path:
        return (held.samples.get(ids[place]) or known[ids[place]]).path

    return tuple((path(first), path(second)) for first, second in pairs)
