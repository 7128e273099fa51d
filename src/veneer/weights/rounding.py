"""What a weight becomes in the number formats that bases are held in."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

__all__ = ["NF4_LEVELS", "ROUNDINGS"]

NF4_LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""The 16 values of a 4-bit NormalFloat (Dettmers et al. 2023, "QLoRA", appendix E), as bitsandbytes has them."""
_NF4_BLOCK = 64  # weights that share a scale
_FP8_LARGEST = 448.0


def _bfloat16(weight: Tensor) -> Tensor:
    return weight.to(torch.bfloat16).float()


def _float16(weight: Tensor) -> Tensor:
    return weight.to(torch.float16).float()


def _fp8(weight: Tensor) -> Tensor:
    """Return a weight in E4M3 without a scale, as ComfyUI casts to ``fp8_e4m3fn``; what is too large is the largest."""
    return weight.clamp(-_FP8_LARGEST, _FP8_LARGEST).to(torch.float8_e4m3fn).float()


def _scaled_fp8(weight: Tensor) -> Tensor:
    """Return a weight in E4M3 with one scale, by which its largest number is the largest of E4M3."""
    scale = weight.abs().max().clamp_min(torch.finfo(torch.float32).tiny) / _FP8_LARGEST
    return _fp8(weight / scale) * scale


def _nf4(weight: Tensor) -> Tensor:
    """Return a weight in 4-bit NormalFloat, blocks of 64 each divided by the largest of its numbers."""
    flat = weight.flatten()
    blocks = torch.nn.functional.pad(flat, (0, -len(flat) % _NF4_BLOCK)).view(-1, _NF4_BLOCK)
    largest = blocks.abs().amax(dim=1, keepdim=True)
    shares = blocks / largest.clamp_min(torch.finfo(torch.float32).tiny)
    levels = torch.tensor(NF4_LEVELS)
    nearest = torch.zeros(blocks.shape, dtype=torch.int32)
    for edge in (levels[1:] + levels[:-1]) / 2:  # a pass for each is faster than a search for each number
        nearest += shares > edge
    return (levels[nearest.long()] * largest).flatten()[: len(flat)].view(weight.shape)


ROUNDINGS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "bf16": _bfloat16,
    "fp16": _float16,
    "fp8": _fp8,
    "fp8 scaled": _scaled_fp8,
    "nf4": _nf4,
}
"""What a float32 weight is after it was stored in each format, in float32 again."""
