"""Write a page of pictures that were looked over: their crops, twins, captions, and what was put aside.

It is one file that holds all that it needs, and bounded, however many pictures there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from veneer.config.colour import rgb
from veneer.data.buckets import Size
from veneer.data.manifest import Sample
from veneer.data.parallel import map_in_order
from veneer.family.unread import Unread
from veneer.files import atomic_write
from veneer.printable import in_one_line, printable
from veneer.report.page import templates
from veneer.verbs.data_check import FINDINGS, CheckedPicture, DataCheck
from veneer.verbs.thumbnail import thumbnail

__all__ = ["write_check_page"]

_SIDE = 192  # pixels of a thumbnail
_MOST_PICTURES, _MOST_PAIRS, _MOST_ROWS = 200, 40, 500
_MOST_LETTERS = 600  # of a caption


@dataclass(frozen=True)
class _Figure:
    """A picture as the page has it; the crop is in percent of its sides."""

    name: str
    thumbnail: str | None
    size: str
    cut: str
    crop: tuple[float, float, float, float] | None
    cropped: float
    held_out: bool
    captions: tuple[tuple[str, str], ...]
    findings: tuple[str, ...]


def write_check_page(path: Path, check: DataCheck) -> None:
    """Write the page of a check.

    Args:
        path: of the page.
        check: what is shown. Of more than 200 pictures those are shown that something is said of, or that lose most to
            their crop.

    Raises:
        UserError: the page cannot be written.
    """
    pairs = () if check.dataset is None else (*check.dataset.copies, *check.dataset.near)[:_MOST_PAIRS]
    shown = _shown(check.pictures)
    by_path = {str(one.sample.path): one for one in check.pictures}
    figures = _figures([*shown, *(by_path[str(one)] for pair in pairs for one in pair if str(one) in by_path)], check)
    text = (
        templates()
        .get_template("data_check.html")
        .render(
            check=check,
            title=", ".join(in_one_line(str(source.path)) for source in check.config.data.sources),
            figures=figures[: len(shown)],
            total=len(check.pictures),
            pairs=_pairs(pairs, {figure.name: figure for figure in figures}),
            rejected=[(in_one_line(name), in_one_line(why)) for name, why in list(check.rejected.items())[:_MOST_ROWS]],
            findings=FINDINGS,
        )
    )
    atomic_write(path, printable(text).encode())


def _shown(pictures: Sequence[CheckedPicture]) -> list[CheckedPicture]:
    """Return the pictures that a page has room for, in their order."""
    order = sorted(range(len(pictures)), key=lambda at: (not pictures[at].findings, -pictures[at].cropped, at))
    return [pictures[at] for at in sorted(order[:_MOST_PICTURES])]


def _pairs(pairs: Iterable[tuple[Path, Path]], figures: dict[str, _Figure]) -> list[tuple[_Figure, _Figure]]:
    """Return the figures of pairs; of twins only the first is among the pictures."""
    found = []
    for pair in pairs:
        first, second = (figures.get(in_one_line(str(path))) for path in pair)
        known = first or second
        if known is not None:
            twin = _Figure(in_one_line(str(pair[1])), known.thumbnail, known.size, "", None, 0, False, (), ())
            found.append((known, second or twin))
    return found


def _figures(pictures: Sequence[CheckedPicture], check: DataCheck) -> list[_Figure]:
    background = rgb(check.config.data.background)
    thumbnails = map_in_order(lambda one: thumbnail(one.sample.location, background, _SIDE), pictures)
    return [_figure(one, thumbnail, check) for one, thumbnail in zip(pictures, thumbnails, strict=True)]


def _figure(one: CheckedPicture, thumbnail: str | None, check: DataCheck) -> _Figure:
    sample = one.sample
    return _Figure(
        name=in_one_line(str(sample.path)),
        thumbnail=thumbnail,
        size=f"{sample.width} x {sample.height}" + _length(sample),
        cut=", ".join(f"{width} x {height}" for height, width in one.sizes)
        + (f", {one.frames} frames" if one.frames > 1 else ""),
        crop=_crop(sample, one.sizes[0]) if one.sizes else None,
        cropped=one.cropped,
        held_out=one.held_out,
        captions=tuple(_parts(caption, check.unread.get(caption)) for caption in sample.captions[:3]),
        findings=one.findings,
    )


def _length(sample: Sample) -> str:
    """Return how long a clip is, for people; nothing of a picture."""
    return "" if sample.frame_rate is None else f", {sample.frames} frames at {sample.frame_rate:.4g} a second"


def _crop(sample: Sample, size: Size) -> tuple[float, float, float, float]:
    """Return left, top, width and height of the middle part that has a size's shape, in percent."""
    across = min(1.0, sample.height * size[1] / size[0] / sample.width)
    down = min(1.0, sample.width * size[0] / size[1] / sample.height)
    return (50 * (1 - across), 50 * (1 - down), 100 * across, 100 * down)


def _parts(caption: str, unread: Unread | None) -> tuple[str, str]:
    """Return what is read of a caption, and what is not."""
    read, rest = (caption, "") if unread is None or not unread.is_cut else (unread.read, unread.rest)
    return _shortened(read), _shortened(rest)


def _shortened(text: str) -> str:
    return text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]} ... ({len(text):,} characters)"
