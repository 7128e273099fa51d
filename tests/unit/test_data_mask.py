"""Masks: how files and alpha channels are decoded, and their means over cells against exact sums."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from veneer.data.mask import area_average, decode_alpha, decode_mask, mean_of
from veneer.data.unreadable import Unreadable

LEVELS = np.arange(16 * 12, dtype=np.uint8).reshape(12, 16)
"""A mask of 16 x 12 pixels, each of another level."""


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def grey(levels: Any = LEVELS) -> Image.Image:
    return Image.fromarray(np.asarray(levels, dtype=np.uint8))


def palette() -> Image.Image:
    image = grey().copy()
    image.putpalette([level for level in range(256) for _ in range(3)])
    return image


def white_behind_alpha() -> Image.Image:
    image = Image.new("RGB", (16, 12), "white")
    image.putalpha(grey())
    return image


SAME = {
    "grey": saved(grey()),
    "colour": saved(grey().convert("RGB")),
    "palette": saved(palette()),
    "grey and alpha": saved(grey().convert("LA")),
    "white and alpha": saved(white_behind_alpha()),
    "16 bits": saved(Image.fromarray(LEVELS.astype(np.uint16) * 257)),
    "with gamma": saved(grey(), pnginfo=None, gamma=1 / 1.8),
    "TIFF": saved(grey(), "TIFF"),
}


@pytest.mark.parametrize("name", SAME)
def test_a_mask_is_its_grey_levels_however_it_is_saved(name: str) -> None:
    mask = decode_mask(SAME[name])
    assert mask.mode == "L" and np.array_equal(np.asarray(mask), LEVELS)


def test_a_mask_of_one_bit_is_black_and_white() -> None:
    mask = decode_mask(saved(grey(LEVELS > 99).point(lambda level: 255 * level).convert("1")))
    assert np.array_equal(np.asarray(mask), 255 * (LEVELS > 99))


def test_a_mask_is_turned_by_its_own_exif() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_mask(saved(grey(), exif=exif)).size == (12, 16)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (grey(LEVELS * 0), "black"),
        (grey(LEVELS > 99), "multiply it by 255"),
        (Image.new("RGBA", (16, 12)), "black"),
        (Image.fromarray(np.stack([LEVELS, LEVELS[::-1], LEVELS], axis=2)), "colours"),
    ],
)
def test_a_mask_of_which_nothing_would_be_learned_is_refused(image: Image.Image, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        decode_mask(saved(image))


def test_grey_of_a_jpeg_is_grey() -> None:
    mask = decode_mask(saved(grey(LEVELS // 64 * 80).convert("RGB"), "JPEG"))
    assert mask.mode == "L"


def test_alpha_is_what_the_picture_shows() -> None:
    alpha = decode_alpha(saved(white_behind_alpha()))
    assert alpha is not None and np.array_equal(np.asarray(alpha), LEVELS)
    keyed = palette()
    seen = decode_alpha(saved(keyed, transparency=5))
    assert seen is not None and np.array_equal(np.asarray(seen), 255 * (LEVELS != 5))
    for opaque in (grey(), grey().convert("RGBA"), Image.fromarray(LEVELS.astype(np.uint16) * 257)):
        assert decode_alpha(saved(opaque)) is None
    with pytest.raises(Unreadable, match="transparent everywhere"):
        decode_alpha(saved(Image.new("RGBA", (16, 12))))


def test_the_mean_is_the_share_that_is_learned() -> None:
    assert mean_of(grey(LEVELS)) == pytest.approx(LEVELS.mean() / 255)
    assert mean_of(grey(LEVELS * 0 + 255)) == 1


@given(
    st.lists(st.lists(st.sampled_from([0, 1, 128, 255]), min_size=5, max_size=5), min_size=4, max_size=4),
    st.tuples(st.integers(0, 8), st.integers(0, 6), st.integers(1, 12), st.integers(1, 10)),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_an_average_is_the_exact_integral_of_each_cell(
    levels: list[list[int]], quarters: tuple[int, int, int, int], grid: tuple[int, int]
) -> None:
    """In fractions, over boxes that begin and end at quarters of pixels."""
    left, top, width, height = (Fraction(one, 4) for one in quarters)
    box = (left, top, min(left + width, Fraction(5)), min(top + height, Fraction(4)))
    own = area_average(grey(levels), tuple(map(float, box)), *grid)  # type: ignore[arg-type]
    for row in range(grid[0]):
        for column in range(grid[1]):
            assert own[row, column] == pytest.approx(float(exact(levels, box, grid, row, column)), abs=1e-6)


def exact(levels: list[list[int]], box: tuple[Fraction, ...], grid: tuple[int, int], row: int, column: int) -> Fraction:
    left, top, right, bottom = box
    height, width = (bottom - top) / grid[0], (right - left) / grid[1]
    rows = overlaps(top + row * height, height, len(levels))
    columns = overlaps(left + column * width, width, len(levels[0]))
    total = sum(levels[y][x] * rows[y] * columns[x] for y in range(len(levels)) for x in range(len(levels[0])))
    return Fraction(total) / (255 * height * width)


def overlaps(start: Fraction, length: Fraction, count: int) -> list[Fraction]:
    return [
        max(Fraction(0), min(start + length, Fraction(one + 1)) - max(start, Fraction(one))) for one in range(count)
    ]


@pytest.mark.parametrize("size", [(7, 9), (64, 64), (13, 64)])
def test_white_is_1_and_black_is_0_to_the_bit(size: tuple[int, int]) -> None:
    """Also where cells are parts of pixels, and beside what is not black."""
    levels = np.random.default_rng(0).integers(0, 256, (60, 84))
    assert (area_average(grey(levels * 0 + 255), (1.3, 2.7, 80.9, 59.1), *size) == 1).all()
    levels[:, 42:] = 0
    half = area_average(grey(levels), (0, 0, 84, 60), size[0], 2 * size[1])
    assert not half[:, size[1] :].any() and half[:, : size[1]].all()
