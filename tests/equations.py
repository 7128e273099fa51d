"""LoRA as the paper writes it down, which adapted layers are held against."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from veneer.adapter.lora import LoraFactors

__all__ = ["lora_forward"]


def lora_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    factors: LoraFactors,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
) -> Tensor:
    """``h = W0 x + b + (alpha/r) B A x`` (Hu et al. 2021, eq. 3).

    Args:
        x: (..., in) for a linear layer, (B, in, H, W) for a convolution.
        weight: W0, (out, in) or (out, in, kh, kw).
        bias: b, (out,).
        factors: A and B.
        stride: of a convolution; A strides, B is 1 x 1.
        padding: of a convolution, with zeros.
    """
    if weight.ndim == 2:
        low_rank = functional.linear(functional.linear(x, factors.down), factors.up)
        return functional.linear(x, weight, bias) + factors.scale * low_rank
    low_rank = torch.conv2d(torch.conv2d(x, factors.down, None, stride, padding), factors.up)
    return torch.conv2d(x, weight, bias, stride, padding) + factors.scale * low_rank
