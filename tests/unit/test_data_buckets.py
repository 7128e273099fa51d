"""Each picture is cut to a size of its own shape, none is enlarged, and little is lost."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bases import Defaults
from tests.errors import raises_code
from veneer.config.data_config import DataConfig
from veneer.config.load import build_config
from veneer.config.source_config import SourceConfig
from veneer.data.buckets import MAX_ASPECT, Buckets, Size, SmallPictures, cropped_share
from veneer.data.manifest import Sample

sides = st.integers(8, 9000)
bases = st.sampled_from(
    [(1024, 8), (1024, 16), (512, 8), (512, 16), (768, 16), (64, 8), (1024, 32), (16, 4), (1000, 8)]
)


def config(**options: Any) -> DataConfig:
    return DataConfig(sources=(SourceConfig(path=Path("p")),), **options)


def buckets(resolution: Any = 1024, multiple: int = 8, **options: Any) -> Buckets:
    return Buckets.of(config(resolution=resolution, **options), Defaults(1024, multiple=multiple))


@given(sides, sides, bases)
def test_any_picture_fits_its_size_and_little_is_cropped(width: int, height: int, base: tuple[int, int]) -> None:
    side, multiple = base
    ((tall, wide),) = buckets(side, multiple).sizes(width, height)
    assert tall % multiple == wide % multiple == 0 and tall * wide <= side * side
    assert max(tall, wide) <= MAX_ASPECT * min(tall, wide)
    assert (tall <= height and wide <= width) or multiple in (tall, wide), "it would be enlarged"
    short, long = sorted((width, height))
    best = min(rooms(side, multiple), key=lambda size: cropped_share(width, height, size))
    if best[0] <= height and best[1] <= width:
        assert cropped_share(width, height, (tall, wide)) <= cropped_share(width, height, best) + 1e-12
    elif long <= MAX_ASPECT * short:
        # half a step of the shorter side, at the size that it has in the cut
        step = max(multiple, round(min(short, side) / 16 / multiple) * multiple, round(side / 16 / multiple) * multiple)
        assert cropped_share(width, height, (tall, wide)) <= step / (min(tall, wide) + step)


@cache
def rooms(side: int, multiple: int) -> list[Size]:
    """All sizes, in steps of a sixteenth of a resolution, that fill its area: no step more on the short side fits."""
    step = max(1, round(side / 16 / multiple)) * multiple
    steps = range(step, 2 * side + 1, step)
    sizes = [(tall, wide) for tall in steps for wide in steps if max(tall, wide) <= MAX_ASPECT * min(tall, wide)]
    filling = [size for size in sizes if size[0] * size[1] <= side * side < max(size) * (min(size) + step)]
    return [*filling, (side, side)]


@given(st.integers(64, 4000), bases)
def test_a_square_of_at_least_the_resolution_is_trained_at_it(side: int, base: tuple[int, int]) -> None:
    resolution, multiple = base
    (size,) = buckets(resolution, multiple).sizes(side, side)
    assert size == (resolution, resolution) if side >= resolution else max(size) <= side
    assert size[0] == size[1]


@given(sides, sides, bases)
def test_a_picture_and_its_turn_have_the_same_size_turned(width: int, height: int, base: tuple[int, int]) -> None:
    one, other = (buckets(*base).sizes(*pair)[0] for pair in ((width, height), (height, width)))
    assert width == height or one == other[::-1]


@given(st.integers(2048, 8192), st.integers(2048, 8192))
def test_the_size_is_the_one_that_crops_the_least(width: int, height: int) -> None:
    """Of all sizes in steps of 64 that fill 1024 x 1024 pixels: one step more on the short side would be too much."""
    (size,) = buckets().sizes(width, height)
    least = min(cropped_share(width, height, room) for room in rooms(1024, 8))
    assert cropped_share(width, height, size) <= least + 1e-12


def test_well_known_sizes() -> None:
    """Those that SDXL was trained on (Podell et al. 2023, appendix I) for the shapes that cameras have."""
    expected = {
        (3000, 2000): (832, 1216),
        (4000, 3000): (896, 1152),
        (2000, 2000): (1024, 1024),
        (1080, 1920): (1344, 768),
    }
    assert {picture: buckets().sizes(*picture)[0] for picture in expected} == expected


def test_two_hundred_pictures_of_twenty_sizes() -> None:
    """The bar: every picture is in a bucket, 4 % of the area is lost at most on the mean, and none is enlarged."""
    numbers = random.Random(0)
    for side, multiple in ((1024, 8), (1024, 16), (1024, 32), (1024, 64), (512, 8), (512, 16)):
        sizes = [(numbers.randint(400, 4000), numbers.randint(400, 4000)) for _ in range(20)]
        pictures = [(min(w, 4 * h), min(h, 4 * w)) for w, h in sizes] * 10
        cut = [buckets(side, multiple).sizes(*picture)[0] for picture in pictures]
        lost = [cropped_share(*picture, size) for picture, size in zip(pictures, cut, strict=True)]
        assert mean(lost) <= 0.04 and len(cut) == 200
        assert all(tall <= h and wide <= w for (w, h), (tall, wide) in zip(pictures, cut, strict=True))


@pytest.mark.parametrize(
    ("picture", "size"),
    [
        ((700, 525), (520, 680)),  # in steps of a sixteenth of its short side
        ((100, 75), (72, 96)),
        ((40, 15), (8, 24)),
        ((2000, 100), (96, 384)),  # four times as wide as tall at most
        ((8, 8), (8, 8)),
        ((1060, 1000), (1008, 1040)),  # larger than the area, and no bucket of it is in it
    ],
)
def test_a_small_picture_is_not_enlarged(picture: tuple[int, int], size: Size) -> None:
    found = buckets().sizes(*picture)[0]
    assert found[0] <= picture[1] and found[1] <= picture[0]
    assert cropped_share(*picture, found) <= cropped_share(*picture, size)


def test_one_multiple_is_the_least_that_a_base_takes() -> None:
    assert buckets(multiple=32).sizes(20, 20) == ((32, 32),)
    assert buckets(multiple=32).sizes(20, 100) == ((128, 32),)
    assert buckets(multiple=16).sizes(8, 24) == ((48, 16),)


def test_small_pictures_are_enlarged_where_it_is_asked() -> None:
    assert buckets(upscale=True).sizes(300, 200) == ((832, 1216),)
    assert buckets(aspect="square").sizes(300, 200) == ((1024, 1024),)
    assert buckets("832x1216").sizes(300, 200) == ((1216, 832),)


@given(sides, sides)
def test_no_side_is_longer_than_the_base_has_places_for(width: int, height: int) -> None:
    grid = Buckets.of(config(resolution=1024), Defaults(1024, multiple=16, longest_side=1536))
    ((tall, wide),) = grid.sizes(width, height)
    assert max(tall, wide) <= 1536
    if max(width, height) <= 2 * min(width, height):
        assert (tall, wide) == buckets(multiple=16).sizes(width, height)[0]


@given(st.lists(st.tuples(sides, sides), max_size=30), bases, st.booleans())
def test_many_are_grouped_as_each_alone(shapes: list[tuple[int, int]], base: tuple[int, int], upscale: bool) -> None:
    side, multiple = base
    several = buckets([side, side // 2 // multiple * multiple or multiple, f"{side}x{side}"], multiple, upscale=upscale)
    expected: dict[Size, list[int]] = {}
    for index, shape in enumerate(shapes):
        for size in several.sizes(*shape):
            expected.setdefault(size, []).append(index)
    groups = several.group(*np.array(shapes, dtype=np.int64).reshape(-1, 2).T)
    assert {size: index.tolist() for size, index in groups.items()} == expected
    assert list(groups) == sorted(groups)


def test_several_resolutions_each_once() -> None:
    several = buckets([512, 1024, "832x1216"])
    assert several.sizes(2000, 2000) == ((512, 512), (1024, 1024), (1216, 832))
    assert several.sizes(600, 600) == ((512, 512), (600, 600), (1216, 832))
    assert several.sizes(400, 400) == ((384, 384), (1216, 832))
    assert several.largest(2000, 2000) == (1024, 1024) == several.most
    assert buckets([512, 1024], aspect="square").sizes(3000, 2000) == ((512, 512), (1024, 1024))


def test_the_base_s_own_resolution_is_the_default() -> None:
    assert buckets(None).sizes(2000, 2000) == ((1024, 1024),)


@pytest.mark.parametrize(("resolution", "remedy"), [(500, 496), ("500x512", 496), ([512, "512x1001"], 1000)])
def test_a_side_that_the_base_cannot_divide(resolution: Any, remedy: int) -> None:
    with raises_code("data.unfit_resolution", "data.resolution", match=f"use {remedy}"):
        buckets(resolution)


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ("1024", "should be a number, or width and height such as 832x1216"),
        ("4x1216", "sides should be at least 8"),
        ([], "a list that is not empty"),
        ([512, 512], "names one twice"),
        ([512, 4], "at least 8"),
        (512.5, "a whole number"),
    ],
)
def test_what_is_no_resolution(value: Any, fault: str) -> None:
    data = {"sources": [{"path": "p"}], "resolution": value}
    with raises_code("config.invalid_value", match=fault):
        build_config({"base": "bundled", "data": data}, "here")


def test_sizes_are_read_as_they_are_written() -> None:
    data = {"sources": [{"path": "p"}], "resolution": ["832 X 1216", 512]}
    assert build_config({"base": "bundled", "data": data}, "here").data.resolution == ("832x1216", 512)


def test_small_pictures_are_found() -> None:
    pictures = [Sample(str(w), Path(f"{w}.png"), ("a",), w, h, 1) for w, h in ((1000, 1000), (600, 2000), (1100, 1000))]

    def small(**options: Any) -> tuple[list[int], bool]:
        found = SmallPictures.among(pictures, config(**options))
        return [one.width for one in found.samples], found.enlarged

    assert small(resolution=1024) == ([1000], False)
    assert small(resolution=1024, upscale=True) == ([1000], True)
    assert small(resolution=1024, aspect="square") == ([1000, 600, 1100], True)
    assert small(resolution=[512, "700x900"]) == ([600], True)
    assert small() == ([], False)
    assert SmallPictures.among(pictures, config(), 1024).size == "1024 x 1024"
