"""Draw one strip of a whole training: a row a prompt, a column a step, so that one sees what the steps did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image

from veneer.sample.sheet import sheet

__all__ = ["spread_evenly", "timelapse"]


def spread_evenly(steps: Sequence[int], count: int) -> list[int]:
    """Choose at most ``count`` of some steps: the first, the last, and others at like distances.

    Args:
        steps: in rising order.
        count: at least 2.
    """
    if len(steps) <= count:
        return list(steps)
    last = len(steps) - 1
    return [steps[round(place * last / (count - 1))] for place in range(count)]


def timelapse(pictures: Mapping[int, Sequence[Image.Image]], prompts: Sequence[str], *, cell: int = 128) -> Image.Image:
    """Draw the strip of pictures that were painted from the same prompts and seeds at several steps.

    Args:
        pictures: by step, in the order of their columns; of each prompt one. Step 0 is the base.
        prompts: label the rows.
        cell: side of a picture on the strip, in pixels.
    """
    rows = [list(row) for row in zip(*pictures.values(), strict=True)]
    return sheet(rows, [_heading(step) for step in pictures], prompts, cell=cell)


def _heading(step: int) -> str:
    return f"step {step}" if step else "base"
