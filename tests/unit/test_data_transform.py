from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.errors import raises_code
from veneer.config.data_config import DataConfig
from veneer.config.source_config import SourceConfig
from veneer.data.location import Location
from veneer.data.manifest import Sample
from veneer.data.preflight import survey
from veneer.data.transform import is_flipped, load_centered, load_pixels


def config(folder: Path = Path("pictures"), **options: Any) -> DataConfig:
    return DataConfig(sources=(SourceConfig(path=folder),), **{"trigger": "tok", "held_out": 0.0, **options})


def sample_of(image: Image.Image, folder: Path, name: str = "a.png") -> Sample:
    image.save(folder / name)
    return next(one for one in survey(config(folder)).train.samples if one.path.name == name)


def ramp(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards, both by one level a pixel."""
    rows, columns = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([columns, rows, np.zeros_like(rows)], axis=-1).astype(np.uint8))


def levels(pixels: torch.Tensor) -> torch.Tensor:
    return (pixels + 1) * 127.5


def test_a_square_of_the_right_size_is_only_scaled_to_one(tmp_path: Path) -> None:
    image = ramp(32, 32)
    pixels = load_pixels(sample_of(image, tmp_path), config(), (32, 32), 0, 0)
    assert (pixels.dtype, pixels.shape, pixels.is_contiguous()) == (torch.float32, (3, 32, 32), True)
    expected = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert torch.equal(levels(pixels).round().to(torch.uint8), expected)


def test_black_is_minus_one_and_white_is_one(tmp_path: Path) -> None:
    for colour, value in (("black", -1.0), ("white", 1.0)):
        sample = sample_of(Image.new("RGB", (20, 30), colour), tmp_path, f"{colour}.png")
        assert torch.equal(load_pixels(sample, config(), (16, 16), 0, 0), torch.full((3, 16, 16), value))


@pytest.mark.parametrize(("size", "channel"), [((96, 32), 0), ((32, 96), 1)])
def test_the_middle_is_cut_from_the_long_side(tmp_path: Path, size: tuple[int, int], channel: int) -> None:
    pixels = levels(load_pixels(sample_of(ramp(*size), tmp_path), config(), (32, 32), 0, 0)).round()
    assert set(pixels[channel].flatten().tolist()) == set(range(32, 64))
    assert set(pixels[1 - channel].flatten().tolist()) == set(range(32))


def test_resizing_is_lanczos_of_the_short_side(tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    square = image.crop((10, 0, 50, 40)).resize((16, 16), Image.Resampling.LANCZOS)
    pixels = levels(load_pixels(sample_of(image, tmp_path), config(), (16, 16), 0, 0))
    inside = torch.from_numpy(np.array(square)).permute(2, 0, 1)
    assert torch.equal(pixels.round()[:, :, 3:-3], inside.to(torch.float32)[:, :, 3:-3])


def test_a_random_crop_is_keyed_and_reaches_every_place(tmp_path: Path) -> None:
    sample, random = sample_of(ramp(40, 32), tmp_path), config(crop="random")
    lefts = [float(levels(load_pixels(sample, random, (32, 32), 0, draw_index))[0, 0, 0]) for draw_index in range(64)]
    again = [float(levels(load_pixels(sample, random, (32, 32), 0, draw_index))[0, 0, 0]) for draw_index in range(64)]
    assert lefts == again
    assert min(lefts) < 1 and max(lefts) > 7
    other_seed = [
        float(levels(load_pixels(sample, random, (32, 32), 1, draw_index))[0, 0, 0]) for draw_index in range(64)
    ]
    assert lefts != other_seed


def test_half_of_the_showings_are_mirrored(tmp_path: Path) -> None:
    sample = sample_of(ramp(32, 32), tmp_path)
    plain = load_pixels(sample, config(), (32, 32), 0, 0)
    shown = [load_pixels(sample, config(flip=True), (32, 32), 0, draw_index) for draw_index in range(100)]
    mirrored = [is_flipped(sample, config(flip=True), 0, draw_index) for draw_index in range(100)]
    assert all(
        torch.equal(one, plain.flip(2) if turned else plain) for one, turned in zip(shown, mirrored, strict=True)
    )
    assert 30 < sum(mirrored) < 70
    assert not any(is_flipped(sample, config(), 0, draw_index) for draw_index in range(100))


def test_without_crop_and_flip_nothing_varies(tmp_path: Path) -> None:
    sample = sample_of(ramp(48, 32), tmp_path)
    centered = load_centered(sample, config(flip=True, crop="random"), (32, 32))
    assert all(torch.equal(load_pixels(sample, config(), (32, 32), seed, seed), centered) for seed in range(3))


def test_the_background_shows_through(tmp_path: Path) -> None:
    sample = sample_of(Image.new("RGBA", (16, 16), (0, 0, 0, 0)), tmp_path)
    pixels = levels(load_pixels(sample, config(background="#ff8000"), (16, 16), 0, 0))
    assert pixels[:, 5, 5].tolist() == [255.0, 128.0, 0.0]


def test_a_picture_that_changes_while_training_stops_the_run(tmp_path: Path) -> None:
    sample = sample_of(ramp(16, 16), tmp_path)
    ramp(16, 17).save(tmp_path / "a.png")
    with raises_code("data.picture_changed") as caught:
        load_pixels(sample, config(), (16, 16), 0, 0)
    assert "a.png: has changed since the pictures were looked over; " in str(caught.value)
    gone = tmp_path / "gone.png"
    with raises_code("data.picture_gone") as caught:
        load_pixels(replace(sample, path=gone, location=Location(gone)), config(), (16, 16), 0, 0)
    assert "gone.png: can no longer be read: No such file" in str(caught.value)
