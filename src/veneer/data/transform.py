"""From a sample to the square that the model sees."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from veneer.config.colour import rgb
from veneer.config.schema import DataConfig
from veneer.data.decode import Unreadable, decode
from veneer.data.manifest import Sample, content_id
from veneer.errors import UserError
from veneer.rng import uniform

__all__ = ["is_flipped", "load_centered", "load_pixels"]


def load_pixels(sample: Sample, config: DataConfig, resolution: int, seed: int, draw_index: int) -> Tensor:
    """A sample as one showing of training has it.

    Args:
        sample: which picture.
        config: background, crop and flip.
        resolution: side of the square R, in pixels.
        seed: of the run.
        showing: number of the picture among all that the run shows, from 0.

    Returns:
        float32 (3, R, R) in [-1, 1].
    """
    shift = uniform(seed, draw_index, sample.id, "crop") if config.crop == "random" else 0.5
    square = _square(_read(sample, config), resolution, shift)
    if is_flipped(sample, config, seed, draw_index):
        square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return _to_tensor(square)


def is_flipped(sample: Sample, config: DataConfig, seed: int, draw_index: int) -> bool:
    """Whether one showing is mirrored; where ``crop`` is center, it is then ``load_centered`` mirrored."""
    return config.flip and uniform(seed, draw_index, sample.id, "flip") < 0.5


def load_centered(sample: Sample, config: DataConfig, resolution: int) -> Tensor:
    """A sample as it is measured on, with nothing random: its middle square, float32 (3, R, R) in [-1, 1]."""
    return _to_tensor(_square(_read(sample, config), resolution, 0.5))


def _read(sample: Sample, config: DataConfig) -> Image.Image:
    """Decode a sample's file, which must still be the one that was looked over."""
    try:
        content = sample.path.read_bytes()
        if content_id(content) == sample.id:
            return decode(content, rgb(config.background))
        fault = "has changed since the pictures were looked over"
    except OSError as error:
        fault = f"can no longer be read: {error.strerror}"
    except Unreadable as error:
        fault = str(error)
    raise UserError(fault, where=sample.path, remedy="leave the pictures alone while training, and start again")


def _square(image: Image.Image, side: int, shift: float) -> Image.Image:
    """Resize the short side to ``side`` and cut a square that lies ``shift`` (0 to 1) of the way along the long one."""
    short = min(image.size)
    left, top = (shift * (whole - short) for whole in image.size)
    # cutting while resizing: the long side is never rounded to whole pixels
    return image.resize((side, side), Image.Resampling.LANCZOS, box=(left, top, left + short, top + short))


def _to_tensor(image: Image.Image) -> Tensor:
    pixels_HWC = torch.from_numpy(np.array(image))
    return pixels_HWC.permute(2, 0, 1).to(torch.float32).div(127.5).sub(1.0).contiguous()
