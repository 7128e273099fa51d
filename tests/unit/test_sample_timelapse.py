"""The strip: which steps are on it, and that each picture is where it belongs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from veneer.sample.sheet import sheet, table_of
from veneer.sample.timelapse import spread_evenly, timelapse


def colour(name: str, side: int = 128) -> Image.Image:
    return Image.new("RGB", (side, side), name)


@given(st.integers(1, 400), st.integers(2, 20))
def test_steps_are_chosen_evenly_and_both_ends_stay(count: int, most: int) -> None:
    steps = [25 * place for place in range(count)]
    chosen = spread_evenly(steps, most)
    assert len(chosen) == min(count, most)
    assert chosen[0] == steps[0] and chosen[-1] == steps[-1]
    gaps = np.diff(chosen) // 25
    assert len(chosen) < 2 or (gaps.min() >= 1 and gaps.max() - gaps.min() <= 1)


def test_a_row_a_prompt_and_a_column_a_step() -> None:
    strip = timelapse({0: [colour("red"), colour("lime")], 100: [colour("blue"), colour("black")]}, ["a", "b"], cell=64)
    pitch, left = 68, 64
    top = strip.height - (2 * pitch + 4)
    middles = [(left + 4 + across * pitch + 32, top + 4 + down * pitch + 32) for down in (0, 1) for across in (0, 1)]
    assert [strip.getpixel(at) for at in middles] == [(255, 0, 0), (0, 0, 255), (0, 255, 0), (0, 0, 0)]
    assert strip.width == left + 4 + 2 * pitch


def test_the_headings_name_the_base_and_the_steps() -> None:
    white = {0: [colour("white")], 100: [colour("white")]}
    strip, other = timelapse(white, ["a"]), timelapse({step + 1: row for step, row in white.items()}, ["a"])
    headed = sheet([[colour("white")] * 2], ["base", "step 100"], ["a"])
    assert strip.tobytes() == headed.tobytes() != other.tobytes()


@pytest.mark.parametrize("cell", [64, 128, 256])
@pytest.mark.parametrize(("count", "columns"), [(1, []), (5, []), (2, ["a turtle", "a violin with words " * 9, ""])])
def test_a_sheet_comes_apart_into_what_was_put_on_it(cell: int, count: int, columns: list[str]) -> None:
    numbers = np.random.default_rng(0)
    rows = [
        [Image.fromarray(numbers.integers(0, 256, (cell, cell, 3), dtype=np.uint8)) for _ in columns or [""]]
        for _ in range(count)
    ]
    labels = [f"a caption of picture {number}" for number in range(count)]
    found = table_of(sheet(rows, columns, labels, cell=cell), columns, labels, cell=cell)
    assert [[each.tobytes() for each in row] for row in found] == [[each.tobytes() for each in row] for row in rows]
