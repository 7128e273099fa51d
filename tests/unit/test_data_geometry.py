"""The geometry of a showing is that of its pixels: what is told of a crop is where the crop was cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from veneer.config.data_config import DataConfig
from veneer.config.source_config import SourceConfig
from veneer.data.buckets import Size
from veneer.data.manifest import Sample, content_id
from veneer.data.transform import Geometry, centered_geometry, geometry_of, load_centered, load_pixels

SIDE = 32


@pytest.fixture(params=[(96, 64), (64, 96), (128, 32)], ids=["wide", "tall", "very wide"])
def sample(request: pytest.FixtureRequest, tmp_path: Path) -> Sample:
    """A picture whose red tells a pixel's x and whose green tells its y, from dark to bright."""
    width, height = request.param
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    Image.fromarray(np.stack([across, down, 0 * down], axis=-1).astype(np.uint8)).save(tmp_path / "ramp.png")
    content = (tmp_path / "ramp.png").read_bytes()
    return Sample(content_id(content), tmp_path / "ramp.png", ("a ramp",), width, height, 1)


@pytest.fixture(params=[(SIDE, SIDE), (24, 40), (40, 24), (64, 32)], ids=lambda size: "x".join(map(str, size)))
def size(request: pytest.FixtureRequest) -> Size:
    """Height and width of the cut."""
    return request.param


def config(**settings: object) -> DataConfig:
    return DataConfig(sources=(SourceConfig(path=Path("p")),), **settings)  # type: ignore[arg-type]


def seen_at(pixels: np.ndarray, sample: Sample, size: Size, *, mirrored: bool) -> tuple[float, float]:
    """Where the cut's middle lies in the resized picture, (y, x), told by its colours."""
    scale = max(size[0] / sample.height, size[1] / sample.width)
    red, green = ((pixels[channel].mean() + 1) / 2 for channel in (0, 1))
    x = (1 - red if mirrored else red) * sample.width * scale
    return green * sample.height * scale, x


@pytest.mark.parametrize("draw", range(6))
def test_a_random_crop_is_where_it_is_told_to_be(sample: Sample, size: Size, draw: int) -> None:
    settings = config(crop="random", flip=True)
    pixels = load_pixels(sample, settings, size, seed=3, draw_index=draw).numpy()
    geometry = geometry_of(sample, settings, size, seed=3, draw_index=draw)
    assert (geometry.original, geometry.target) == ((sample.height, sample.width), size)
    mirrored = bool(pixels[0, :, -1].mean() < pixels[0, :, 0].mean())
    y, x = seen_at(pixels, sample, size, mirrored=mirrored)
    assert geometry.top_left[0] + size[0] / 2 == pytest.approx(y, abs=1.5)
    assert geometry.top_left[1] + size[1] / 2 == pytest.approx(x, abs=1.5)


def test_mirrored_showings_are_among_those(sample: Sample, size: Size) -> None:
    settings = config(crop="random", flip=True)
    ends = [load_pixels(sample, settings, size, 3, draw)[0, 0, [0, -1]].tolist() for draw in range(6)]
    assert {left < right for left, right in ends} == {True, False}


def test_a_centered_crop_is_in_the_middle(sample: Sample, size: Size) -> None:
    geometry = centered_geometry(sample, size)
    y, x = seen_at(load_centered(sample, config(), size).numpy(), sample, size, mirrored=False)
    assert geometry.top_left[0] + size[0] / 2 == pytest.approx(y, abs=1.5)
    assert geometry.top_left[1] + size[1] / 2 == pytest.approx(x, abs=1.5)
    assert geometry == geometry_of(sample, config(), size, seed=0, draw_index=0)


def test_a_picture_that_is_seen_whole_has_no_crop() -> None:
    assert Geometry.whole(24, 32) == Geometry((24, 32), (0, 0), (24, 32))
