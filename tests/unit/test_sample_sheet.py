"""Sheets: pictures where they belong, on white, with headings that can be read."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from veneer.sample.sheet import sheet


def ink(image: Image.Image, box: tuple[int, int, int, int]) -> int:
    """Dark pixels in a box."""
    return int((np.asarray(image.crop(box).convert("L")) < 128).sum())


def colour(name: str, size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.new("RGB", size, name)


def test_pictures_lie_in_rows_on_white() -> None:
    paper = sheet([[colour("red"), colour("lime")], [colour("blue")]], cell=64)
    assert paper.size == (4 + 2 * 68, 4 + 2 * 68)
    assert [paper.getpixel(at) for at in ((36, 36), (104, 36), (36, 104))] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    assert paper.getpixel((104, 104)) == (255, 255, 255)  # a row may be shorter
    assert paper.getpixel((1, 1)) == (255, 255, 255)


def test_a_picture_is_scaled_but_not_stretched() -> None:
    paper = sheet([[colour("red", (200, 100))]], cell=64)
    assert paper.getpixel((36, 36)) == (255, 0, 0)
    assert paper.getpixel((36, 8)) == (255, 255, 255)


def test_headings_stand_above_and_labels_left() -> None:
    white = [[colour("white")] * 2] * 2
    bare = sheet(white, cell=96)
    headed = sheet(white, ["base", "adapter"], cell=96)
    labelled = sheet(white, labels=["a turtle", "a violin"], cell=96)
    top, left = headed.height - bare.height, labelled.width - bare.width
    assert ink(bare, (0, 0, *bare.size)) == 0
    assert ink(headed, (0, 0, headed.width, top)) > 50
    assert ink(headed, (0, top, *headed.size)) == 0
    assert ink(labelled, (0, 0, left, labelled.height // 2)) > 50
    assert ink(labelled, (left, 0, *labelled.size)) == 0


@pytest.mark.parametrize("label", ["a very long caption of a picture " * 20, "unbreakable" * 20, "", "naïve café"])
def test_a_long_text_stays_in_its_cell(label: str) -> None:
    white = [[colour("white")], [colour("white")]]
    paper = sheet(white, [label], [label], cell=96)
    bare = sheet(white, cell=96)
    left, top = paper.width - bare.width, paper.height - bare.height
    assert ink(paper, (left, top, *paper.size)) == 0
    assert ink(paper, (0, paper.height - 4, *paper.size)) == 0


def test_a_text_is_as_large_as_the_cells_allow() -> None:
    white = [[colour("white")]]
    small, large = (sheet(white, ["base"], cell=cell) for cell in (64, 256))
    assert large.height - sheet(white, cell=256).height > small.height - sheet(white, cell=64).height
