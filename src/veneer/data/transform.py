"""Cut from a sample what the model sees of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from veneer.config.colour import rgb
from veneer.config.data_config import DataConfig
from veneer.data.augment import AS_MEASURED, Augmentation, Box, augmentation_of
from veneer.data.buckets import Size
from veneer.data.clip import frames_at
from veneer.data.clip_frames import FrameSpan
from veneer.data.color import change_colors
from veneer.data.decode import decode
from veneer.data.manifest import Mask, Reference, Sample, content_id
from veneer.data.mask import area_average, decode_alpha, decode_mask
from veneer.data.unreadable import Unreadable
from veneer.errors import UserError

__all__ = [
    "Geometry",
    "centered_geometry",
    "centered_square",
    "cut",
    "geometry_of",
    "is_flipped",
    "load_centered",
    "load_centered_mask",
    "load_centered_references",
    "load_mask",
    "load_pixels",
    "load_references",
]


_T = TypeVar("_T")


@dataclass(frozen=True)
class Geometry:
    """Where what the model sees lies in its picture; lengths are (height, width) in pixels.

    Attributes:
        original: size of the picture.
        top_left: corner of the cut, in the picture as it was resized for it and mirrored.
        target: size of the cut.
        frames: that are seen of a clip; 1 of a picture.
        frame_rate: frames a second of what is seen of a clip; None: the base's own, or it is a picture.
    """

    original: tuple[int, int]
    top_left: tuple[int, int]
    target: tuple[int, int]
    frames: int = 1
    frame_rate: float | None = None

    @classmethod
    def whole(cls, height: int, width: int, frames: int = 1) -> Geometry:
        """Return the geometry of a picture or clip that is seen whole and as large as it is."""
        return cls((height, width), (0, 0), (height, width), frames)

    @property
    def extent(self) -> tuple[int, int, int]:
        """Height and width of the cut in pixels, and the frames."""
        return *self.target, self.frames


def geometry_of(
    sample: Sample, config: DataConfig, size: Size, seed: int, draw_index: int, span: FrameSpan | None = None
) -> Geometry:
    """Return the geometry of what :func:`load_pixels` loads for the same arguments."""
    return _geometry(sample, size, augmentation_of(sample, config, seed, draw_index), span)


def centered_geometry(sample: Sample, size: Size, span: FrameSpan | None = None) -> Geometry:
    """Return the geometry of what :func:`load_centered` loads."""
    return _geometry(sample, size, AS_MEASURED, span)


def _geometry(sample: Sample, size: Size, change: Augmentation, span: FrameSpan | None) -> Geometry:
    left, top, right, bottom = change.part_of(_box((sample.width, sample.height), size, change.place))
    if change.flipped:
        left, right = sample.width - right, sample.width - left
    corner = round(top * size[0] / (bottom - top)), round(left * size[1] / (right - left))
    frames, rate = (1, None) if span is None else (span.count, span.rate)
    return Geometry((sample.height, sample.width), corner, size, frames, rate)


def load_pixels(
    sample: Sample, config: DataConfig, size: Size, seed: int, draw_index: int, span: FrameSpan | None = None
) -> Tensor:
    """Load a sample as one draw of training has it.

    Args:
        sample: which picture.
        config: background, and how pictures are augmented.
        size: height and width (H, W) that it is cut to, in pixels.
        seed: of the run.
        draw_index: the draw's number among all of the run, from 0.
        span: which frames of a clip; None: it is a picture.

    Returns:
        float32 (3, H, W) in [-1, 1]; of a clip of several frames (3, T, H, W).
    """
    change = augmentation_of(sample, config, seed, draw_index)
    return _load(sample, config, size, change) if span is None else _load_clip(sample, config, size, change, span)


def load_references(sample: Sample, config: DataConfig, size: Size, seed: int, draw_index: int) -> tuple[Tensor, ...]:
    """Load the references of a sample as one draw of training has them: cut, resized and mirrored as the sample is.

    Args:
        sample: which picture.
        config: as for :func:`load_pixels`, like all others.
        size: as there.
        seed: as there.
        draw_index: as there.

    Returns:
        Of each reference float32 (3, H, W) in [-1, 1].
    """
    change = augmentation_of(sample, config, seed, draw_index)
    return tuple(_load(reference, config, size, change) for reference in sample.references)


def load_mask(
    sample: Sample, config: DataConfig, size: Size, grid: tuple[int, int], seed: int, draw_index: int
) -> Tensor:
    """Load the mask of a sample as one draw of training has it: cut and mirrored as the sample is.

    Args:
        sample: which picture.
        config: as for :func:`load_pixels`, like all others but the grid.
        size: as there.
        grid: rows and columns (h, w) of latents that the picture becomes.
        seed: as there.
        draw_index: as there.

    Returns:
        float32 (h, w) in [0, 1], the mean of the mask over what each latent is of; 1 where there is no mask.
    """
    return _load_mask(sample, size, grid, augmentation_of(sample, config, seed, draw_index))


def load_centered_mask(sample: Sample, size: Size, grid: tuple[int, int]) -> Tensor:
    """Load the mask of a sample as :func:`load_centered` loads the sample, (h, w)."""
    return _load_mask(sample, size, grid, AS_MEASURED)


def _load_mask(sample: Sample, size: Size, grid: tuple[int, int], change: Augmentation) -> Tensor:
    if sample.mask is None:
        return torch.ones(grid)
    is_alpha = sample.mask.location == sample.location
    mask = _read(sample.mask, decode_alpha if is_alpha else decode_mask)
    assert mask is not None, "a picture that is nowhere transparent has no mask"
    # in the mask's own pixels, of which there may be more or fewer than the picture has
    across, down = mask.width / sample.width, mask.height / sample.height
    left, top, right, bottom = change.part_of(_box((sample.width, sample.height), size, change.place))
    cells = area_average(mask, (left * across, top * down, right * across, bottom * down), *grid)
    return torch.from_numpy(np.ascontiguousarray(cells[:, ::-1] if change.flipped else cells))


def _load(picture: Sample | Reference, config: DataConfig, size: Size, change: Augmentation) -> Tensor:
    """Load a picture as it is augmented; colours are changed last, when it is upright, sRGB and of its final size."""
    part = cut(_read(picture, lambda content: decode(content, rgb(config.background))), size, change)
    pixels_CHW = _to_tensor(part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if change.flipped else part)
    return pixels_CHW if change.color is None else change_colors(pixels_CHW, change.color)


def _load_clip(sample: Sample, config: DataConfig, size: Size, change: Augmentation, span: FrameSpan) -> Tensor:
    """Load frames of a clip, all cut, mirrored and coloured alike."""
    background, times = rgb(config.background), span.times(sample.frame_rate or span.rate)

    def decoded(content: bytes) -> Tensor:
        # one after the other: a frame is often many times as large as what is cut from it
        return torch.stack([_to_tensor(cut(frame, size, change)) for frame in frames_at(content, background, times)], 1)

    pixels_CTHW = _read(sample, decoded)
    pixels_CTHW = pixels_CTHW.flip(-1) if change.flipped else pixels_CTHW
    if change.color is not None:  # of all frames as of one tall picture, so that nothing flickers
        pixels_CTHW = change_colors(pixels_CTHW.flatten(1, 2), change.color).view_as(pixels_CTHW)
    return pixels_CTHW[:, 0].contiguous() if span.count == 1 else pixels_CTHW.contiguous()


def is_flipped(sample: Sample, config: DataConfig, seed: int, draw_index: int) -> bool:
    """Check whether one draw is mirrored; where nothing else differs, it is then ``load_centered`` mirrored."""
    return augmentation_of(sample, config, seed, draw_index).flipped


def load_centered(sample: Sample, config: DataConfig, size: Size, span: FrameSpan | None = None) -> Tensor:
    """Load a sample as it is measured on, with nothing random: its middle, as :func:`load_pixels` loads it."""
    if span is None:
        return _load(sample, config, size, AS_MEASURED)
    return _load_clip(sample, config, size, AS_MEASURED, span)


def load_centered_references(sample: Sample, config: DataConfig, size: Size) -> tuple[Tensor, ...]:
    """Load the references of a sample as :func:`load_centered` loads the sample."""
    return tuple(_load(reference, config, size, AS_MEASURED) for reference in sample.references)


def centered_square(image: Image.Image, side: int) -> Image.Image:
    """Cut the middle square of a picture and resize it to ``side``."""
    return cut(image, (side, side))


def _read(picture: Sample | Reference | Mask, decoded: Callable[[bytes], _T]) -> _T:
    """Decode a picture's file, which must still be the one that was inspected."""
    try:
        content = picture.location.read()
        if content_id(content) == picture.content:
            return decoded(content)
        code, what = "data.picture_changed", "has changed since the pictures were looked over"
    except OSError as error:
        code, what = "data.picture_gone", f"can no longer be read: {error.strerror}"
    except Unreadable as error:
        code, what = "data.picture_unusable", str(error)
    remedy = "leave the pictures alone while training, and start again"
    raise UserError(what, code=code, where=picture.location, remedy=remedy)


def cut(image: Image.Image, size: Size, change: Augmentation = AS_MEASURED) -> Image.Image:
    """Cut the largest part of a size's shape from a picture, or a part of that, and resize it to that size.

    Args:
        image: the picture.
        size: height and width in pixels.
        change: where the part lies; whether it is mirrored and coloured is none of this function's concern.
    """
    # cutting while resizing: the part's sides are never rounded to whole pixels
    box = change.part_of(_box(image.size, size, change.place))
    return image.resize((size[1], size[0]), Image.Resampling.LANCZOS, box=box)


def _box(picture: tuple[int, int], size: Size, place: float) -> Box:
    """Return the largest part of a size's shape in a picture (width, height), at a place along what is cropped away."""
    (width, height), (tall, wide) = picture, size
    is_wider = width * tall > height * wide
    across = height * wide / tall if is_wider else float(width)
    down = float(height) if is_wider else width * tall / wide
    left, top = place * (width - across), place * (height - down)
    # a sum of rounded numbers may be a hair beyond the picture
    return left, top, min(left + across, width), min(top + down, height)


def _to_tensor(image: Image.Image) -> Tensor:
    pixels_HWC = torch.from_numpy(np.array(image))
    return pixels_HWC.permute(2, 0, 1).to(torch.float32).div(127.5).sub(1.0).contiguous()
