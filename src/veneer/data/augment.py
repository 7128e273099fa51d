"""Augment pictures: what one draw does to its picture is a pure function of (seed, draw, sample).

Geometry (which part is cut, and whether it is mirrored) is done to a picture, to its mask and to all pictures of a pair
alike. So is colour, to all but masks: an adapter that saw it changed in one picture of a pair alone would learn to
change it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from veneer.config.schema import ColorJitterConfig, DataConfig
from veneer.data.manifest import Sample
from veneer.rng import uniform

__all__ = ["AS_MEASURED", "Augmentation", "Box", "ColorChange", "augmentation_of", "draws_differ", "names_side"]

Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of a picture, in pixels."""

_WORDS = r"""
left right leftmost rightmost leftward rightward leftwards rightwards lefthand righthand lefty
links rechts linke linker linkes linken linkem rechte rechter rechtes rechten rechtem
gauche droite droit
izquierda izquierdo derecha derecho
sinistra sinistro destra destro
esquerda esquerdo direita direito
lewo lewa lewy lewej prawo prawa prawy prawej
слева справа налево направо левый левая левое левой правый правая правое правой
"""
_SIDE = re.compile(rf"\b(?:{'|'.join(_WORDS.split())})\b|[左右]|왼|오른", re.IGNORECASE)
"""Left and right in English, German, Dutch, French, Spanish, Italian, Portuguese, Polish, Russian, Chinese, Japanese
and Korean."""


@dataclass(frozen=True)
class ColorChange:
    """A change of a picture's colours.

    Attributes:
        brightness: what all values are multiplied by.
        contrast: what the distance to the picture's mean grey is multiplied by.
        saturation: what the distance to each pixel's grey is multiplied by.
        hue: turns of the colour circle.
    """

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0

    def __call__(self, pixels_CHW: Tensor) -> Tensor:
        """Return a picture in [-1, 1] with its colours changed, within [-1, 1].

        The four come one after the other, each cut off at black and white, as in torchvision's ``ColorJitter``.
        """
        rgb_CHW = (pixels_CHW + 1) / 2
        rgb_CHW = (rgb_CHW * self.brightness).clamp(0, 1)
        rgb_CHW = _blended(rgb_CHW, _grey(rgb_CHW).mean(), self.contrast)
        rgb_CHW = _blended(rgb_CHW, _grey(rgb_CHW), self.saturation)
        return _turned(rgb_CHW, self.hue) * 2 - 1 if self.hue else rgb_CHW * 2 - 1


@dataclass(frozen=True)
class Augmentation:
    """What is done to a picture in one draw.

    Attributes:
        place: where the cut lies along what is cropped away, from 0 (left, top) to 1.
        zoom: sides of the part of the cut that is shown, as a share of the cut's.
        across: where that part lies in the cut, from 0 (left) to 1.
        down: likewise, from 0 (top) to 1.
        flipped: whether it is mirrored, left to right.
        color: how its colours are changed; None: not.
    """

    place: float = 0.5
    zoom: float = 1.0
    across: float = 0.5
    down: float = 0.5
    flipped: bool = False
    color: ColorChange | None = None

    def part_of(self, box: Box) -> Box:
        """Return the part of a cut that is shown."""
        if self.zoom == 1:
            return box
        left, top, right, bottom = box
        width, height = (right - left) * self.zoom, (bottom - top) * self.zoom
        left += self.across * (right - left - width)
        top += self.down * (bottom - top - height)
        # a sum of rounded numbers may be a hair beyond the cut
        return left, top, min(left + width, right), min(top + height, bottom)


AS_MEASURED = Augmentation()
"""Nothing random: the middle of a picture, as it is."""


def augmentation_of(sample: Sample, config: DataConfig, seed: int, draw_index: int) -> Augmentation:
    """Return what one draw does to its picture."""

    def number(purpose: str) -> float:
        return uniform(seed, draw_index, sample.id, purpose)

    moves = config.crop_jitter > 0
    return Augmentation(
        place=number("crop") if config.crop == "random" else 0.5,
        zoom=1 - config.crop_jitter * number("crop zoom") if moves else 1.0,
        across=number("crop across") if moves else 0.5,
        down=number("crop down") if moves else 0.5,
        flipped=config.flip and number("flip") < 0.5 and not names_side(sample.captions),
        color=_color(config.color_jitter, number) if config.color_jitter.is_on else None,
    )


def draws_differ(config: DataConfig) -> bool:
    """Check whether each draw sees other pixels of its picture, so that its latent is encoded in every step."""
    return config.crop == "random" or config.crop_jitter > 0 or config.color_jitter.is_on


@lru_cache(maxsize=2**16)
def names_side(captions: tuple[str, ...]) -> bool:
    """Check whether captions say left or right, so that a mirrored picture would belie them."""
    return any(_SIDE.search(caption) for caption in captions)


def _color(config: ColorJitterConfig, number: Callable[[str], float]) -> ColorChange:
    def factor(share: float, purpose: str) -> float:
        return 1 + share * (2 * number(purpose) - 1) if share else 1.0

    return ColorChange(
        factor(config.brightness, "brightness"),
        factor(config.contrast, "contrast"),
        factor(config.saturation, "saturation"),
        factor(config.hue, "hue") - 1,
    )


def _grey(rgb_CHW: Tensor) -> Tensor:
    """Return the luma (1, H, W) of ITU-R BT.601."""
    red, green, blue = rgb_CHW
    return torch.stack([0.299 * red + 0.587 * green + 0.114 * blue])


def _blended(rgb_CHW: Tensor, other: Tensor, factor: float) -> Tensor:
    if factor == 1:
        return rgb_CHW
    blended: Tensor = factor * rgb_CHW + (1 - factor) * other
    return blended.clamp(0, 1)


def _turned(rgb_CHW: Tensor, turns: float) -> Tensor:
    """Turn the hue of HSV, of which each channel is a function: v - c max(0, min(k, 4 - k, 1)), k = (n + 6h) mod 6."""
    value, _ = rgb_CHW.max(dim=0)
    chroma = value - rgb_CHW.min(dim=0).values
    red, green, blue = rgb_CHW
    safe = torch.where(chroma == 0, torch.ones_like(chroma), chroma)
    sixths = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    channels = []
    for n in (5, 3, 1):
        k = (n + sixths + 6 * turns) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels)
