"""Change the colours of pictures."""

from __future__ import annotations

import torch
from torch import Tensor

from veneer.data.augment import ColorChange

__all__ = ["change_colors"]


def change_colors(pixels_CHW: Tensor, change: ColorChange) -> Tensor:
    """Return a picture in [-1, 1] with its colours changed, within [-1, 1].

    The four come one after the other, each cut off at black and white, as in torchvision's ``ColorJitter``.
    """
    rgb_CHW = (pixels_CHW + 1) / 2
    rgb_CHW = (rgb_CHW * change.brightness).clamp(0, 1)
    rgb_CHW = _blended(rgb_CHW, _grey(rgb_CHW).mean(), change.contrast)
    rgb_CHW = _blended(rgb_CHW, _grey(rgb_CHW), change.saturation)
    return _turned(rgb_CHW, change.hue) * 2 - 1 if change.hue else rgb_CHW * 2 - 1


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
