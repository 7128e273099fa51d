"""The table of ``veneer data check``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from veneer.printable import in_one_line

if TYPE_CHECKING:
    from veneer.verbs.data_check import DataCheck

__all__ = ["check_text"]

_MOST = 20
"""Rows of one kind."""

Rows = Iterator[tuple[str, str]]


def check_text(found: DataCheck) -> str:
    """Return a table of pictures that were looked over, with the verdict at its end."""
    rows = [*_of_pictures(found), *_of_buckets(found), *_of_findings(found), *_verdict(found)]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(width)}  {in_one_line(' '.join(value.split()))}" for name, value in rows)


def _of_pictures(found: DataCheck) -> Rows:
    dataset = found.dataset
    if dataset is None:
        return
    counts = f"{len(dataset.train.samples):,} to train on, {len(dataset.held_out.samples):,} held out"
    yield "pictures", f"{counts}, {len(found.rejected):,} put aside"
    if len(dataset.sources) > 1:
        for source in dataset.sources:
            yield "source", f"{source.path}: {source.pictures:,} pictures, {source.left_out:,} left out unopened"
    yield "base", str(found.config.base)
    yield from _few("put aside", [f"{path}: {reason}" for path, reason in found.rejected.items()])
    yield from _few("same bytes", [f"{first} and {second}" for first, second in dataset.copies])
    yield from _few("look the same", [f"{first} and {second}" for first, second in dataset.near])


def _of_buckets(found: DataCheck) -> Rows:
    table = found.bucket_table
    if table is None:
        return
    rows = [
        f"{row.name}: {row.pictures:,} pictures, {row.share:.1%} of the training, "
        f"{row.cropped:.1%} cropped away, at most {row.most_cropped:.1%}"
        for row in table.rows
    ]
    yield from _few("bucket", rows)


def _of_findings(found: DataCheck) -> Rows:
    from veneer.verbs.data_check import FINDINGS

    for name, pictures in found.findings.items():
        if name in FINDINGS:
            yield from _few(name, [str(one.sample.path) for one in pictures])
        else:
            yield "decoded", f"{len(pictures):,} pictures were {name}"
    for warning in found.warnings:
        yield "warning", warning.text
        yield from _few("", list(warning.details))
    for note in () if found.dataset is None else found.dataset.notes:
        yield "note", note


def _verdict(found: DataCheck) -> Rows:
    yield "verdict", "a training would start" if found.refusal is None else f"refused: {found.refusal}"


def _few(name: str, values: Sequence[str]) -> Rows:
    for value in values[:_MOST]:
        yield name, value
    if len(values) > _MOST:
        yield name, f"and {len(values) - _MOST:,} more, which --json has"
