"""Cut from a sample the square that the model sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from veneer.config.colour import rgb
from veneer.config.schema import DataConfig
from veneer.data.decode import decode
from veneer.data.manifest import Reference, Sample, content_id
from veneer.data.unreadable import Unreadable
from veneer.errors import UserError
from veneer.rng import uniform

__all__ = [
    "Geometry",
    "centered_geometry",
    "centered_square",
    "geometry_of",
    "is_flipped",
    "load_centered",
    "load_centered_references",
    "load_pixels",
    "load_references",
]


@dataclass(frozen=True)
class Geometry:
    """Where what the model sees lies in its picture; lengths are (height, width) in pixels.

    Attributes:
        original: size of the picture.
        top_left: corner of the cut, in the picture as it was resized for it and mirrored.
        target: size of the cut.
    """

    original: tuple[int, int]
    top_left: tuple[int, int]
    target: tuple[int, int]

    @classmethod
    def whole(cls, height: int, width: int) -> Geometry:
        """Return the geometry of a picture that is seen whole and as large as it is."""
        return cls((height, width), (0, 0), (height, width))


def geometry_of(sample: Sample, config: DataConfig, resolution: int, seed: int, draw_index: int) -> Geometry:
    """Return the geometry of what :func:`load_pixels` loads for the same arguments."""
    shift = _shift(sample, config, seed, draw_index)
    return _geometry(sample, resolution, shift, is_flipped(sample, config, seed, draw_index))


def centered_geometry(sample: Sample, resolution: int) -> Geometry:
    """Return the geometry of what :func:`load_centered` loads."""
    return _geometry(sample, resolution, 0.5, flipped=False)


def _geometry(sample: Sample, side: int, shift: float, flipped: bool) -> Geometry:
    short = min(sample.width, sample.height)
    top, left = (shift * (whole - short) for whole in (sample.height, sample.width))
    if flipped:
        left = sample.width - short - left
    corner = round(top * side / short), round(left * side / short)
    return Geometry((sample.height, sample.width), corner, (side, side))


def load_pixels(sample: Sample, config: DataConfig, resolution: int, seed: int, draw_index: int) -> Tensor:
    """Load a sample as one draw of training has it.

    Args:
        sample: which picture.
        config: background, crop and flip.
        resolution: side of the square R, in pixels.
        seed: of the run.
        draw_index: the draw's number among all of the run, from 0.

    Returns:
        float32 (3, R, R) in [-1, 1].
    """
    shift = _shift(sample, config, seed, draw_index)
    return _load(sample, config, resolution, shift, is_flipped(sample, config, seed, draw_index))


def load_references(
    sample: Sample, config: DataConfig, resolution: int, seed: int, draw_index: int
) -> tuple[Tensor, ...]:
    """Load the references of a sample as one draw of training has them: cut, resized and mirrored as the sample is.

    Args:
        sample: which picture.
        config: as for :func:`load_pixels`, like all others.
        resolution: as there.
        seed: as there.
        draw_index: as there.

    Returns:
        Of each reference float32 (3, R, R) in [-1, 1].
    """
    shift, flipped = _shift(sample, config, seed, draw_index), is_flipped(sample, config, seed, draw_index)
    return tuple(_load(reference, config, resolution, shift, flipped) for reference in sample.references)


def _load(picture: Sample | Reference, config: DataConfig, side: int, shift: float, flipped: bool) -> Tensor:
    square = _square(_read(picture, config), side, shift)
    return _to_tensor(square.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else square)


def _shift(sample: Sample, config: DataConfig, seed: int, draw_index: int) -> float:
    """Return how far along its picture's long side one showing's square lies, from 0 to 1."""
    return uniform(seed, draw_index, sample.id, "crop") if config.crop == "random" else 0.5


def is_flipped(sample: Sample, config: DataConfig, seed: int, draw_index: int) -> bool:
    """Check whether one draw is mirrored; where ``crop`` is center, it is then ``load_centered`` mirrored."""
    return config.flip and uniform(seed, draw_index, sample.id, "flip") < 0.5


def load_centered(sample: Sample, config: DataConfig, resolution: int) -> Tensor:
    """Load a sample as it is measured on, with nothing random: its middle square, float32 (3, R, R) in [-1, 1]."""
    return _load(sample, config, resolution, 0.5, flipped=False)


def load_centered_references(sample: Sample, config: DataConfig, resolution: int) -> tuple[Tensor, ...]:
    """Load the references of a sample as :func:`load_centered` loads the sample."""
    return tuple(_load(reference, config, resolution, 0.5, flipped=False) for reference in sample.references)


def centered_square(image: Image.Image, side: int) -> Image.Image:
    """Cut the middle square of a picture and resize it to ``side``, as what is trained on is."""
    return _square(image, side, 0.5)


def _read(picture: Sample | Reference, config: DataConfig) -> Image.Image:
    """Decode a picture's file, which must still be the one that was inspected."""
    try:
        content = picture.location.read()
        if content_id(content) == picture.content:
            return decode(content, rgb(config.background))
        code, what = "data.picture_changed", "has changed since the pictures were looked over"
    except OSError as error:
        code, what = "data.picture_gone", f"can no longer be read: {error.strerror}"
    except Unreadable as error:
        code, what = "data.picture_unusable", str(error)
    remedy = "leave the pictures alone while training, and start again"
    raise UserError(what, code=code, where=picture.path, remedy=remedy)


def _square(image: Image.Image, side: int, shift: float) -> Image.Image:
    """Cut a square that lies ``shift`` (0 to 1) of the way along the long side, and resize it to ``side``."""
    short = min(image.size)
    left, top = (shift * (whole - short) for whole in image.size)
    # cutting while resizing: the long side is never rounded to whole pixels
    return image.resize((side, side), Image.Resampling.LANCZOS, box=(left, top, left + short, top + short))


def _to_tensor(image: Image.Image) -> Tensor:
    pixels_HWC = torch.from_numpy(np.array(image))
    return pixels_HWC.permute(2, 0, 1).to(torch.float32).div(127.5).sub(1.0).contiguous()
