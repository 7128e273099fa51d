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

from veneer.config.data_config import ColorJitterConfig, DataConfig
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
    """A change of a picture's colours, which :func:`~veneer.data.color.change_colors` makes.

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
    """Check whether each draw sees other pixels of its picture, so that its latent is encoded in every step.

    Of clips whose draws begin anywhere, :attr:`veneer.data.clip_frames.FrameSpan.varies` says it.
    """
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
