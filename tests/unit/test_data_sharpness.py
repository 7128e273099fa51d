from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image, ImageFilter

from veneer.base import demo_path
from veneer.data.sharpness import BLURRED, edge_width, is_flat


def step(width: float, side: int = 128) -> Image.Image:
    """A vertical edge that a Gaussian of a width has blurred."""
    places = (np.arange(side) - 47) / width  # in the middle of a tile
    ramp = np.array([0.5 * (1 + math.erf(place / math.sqrt(2))) for place in places])
    return Image.fromarray(np.broadcast_to(20 + 200 * ramp, (side, side)).round().astype(np.uint8))


@pytest.mark.parametrize("width", [1.0, 1.5, 2.0])
def test_the_width_of_an_edge_is_that_of_its_gaussian(width: float) -> None:
    assert edge_width(step(width)) == pytest.approx(width, rel=0.1)


def test_bundled_drawings_are_sharp_and_blurred_ones_are_not() -> None:
    for path in sorted((demo_path() / "train").glob("*.png"))[:20]:
        with Image.open(path) as opened:
            image = Image.alpha_composite(Image.new("RGBA", opened.size, "white"), opened.convert("RGBA")).convert(
                "RGB"
            )
        sharp, blurred = edge_width(image), edge_width(image.filter(ImageFilter.GaussianBlur(2)))
        assert sharp is not None and blurred is not None and sharp < 0.5 < BLURRED < blurred


def test_one_sharp_part_is_enough() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (512, 512), dtype=np.uint8)
    portrait = Image.fromarray(noise).filter(ImageFilter.GaussianBlur(4))
    assert (edge_width(portrait) or 0) > BLURRED
    portrait.paste(Image.fromarray(noise[:160, :160]).filter(ImageFilter.GaussianBlur(0.4)), (128, 128))
    assert (edge_width(portrait) or 9) < BLURRED


def test_blur_that_no_model_sees_is_none() -> None:
    large = Image.effect_noise((300, 300), 80).resize((2400, 2400), Image.Resampling.BICUBIC)
    assert (edge_width(large) or 9) < BLURRED < (edge_width(large.crop((0, 0, 512, 512))) or 0)


def test_pictures_of_every_shape_are_measured() -> None:
    assert edge_width(Image.effect_noise((31, 400), 80)) is None
    assert edge_width(Image.new("L", (64, 64), 9)) == math.inf
    for size in ((40, 40_000), (40_000, 40), (700, 5000), (32, 32)):
        assert (edge_width(Image.effect_noise(size, 80)) or 9) < BLURRED


def test_what_is_of_one_colour() -> None:
    image = Image.new("RGB", (20, 20), (10, 200, 30))
    assert is_flat(image) and is_flat(Image.new("L", (9, 9), 3))
    image.putpixel((3, 3), (10, 200, 50))
    assert not is_flat(image)
