"""What an operation on the CPU takes for itself while it runs: copies in its own layout, and compiled kernels.

Of PyTorch's operations it is the convolutions that take much. oneDNN's have a layout of their own, blocks of channels
(``nChw16c``, ``OIhw16i16o``), so the weights, what goes in and what comes out are each there twice for a while; those
of a deep layer are large, and are copied in every call. Small convolutions go by PyTorch's own code, which lays
out each pixel's surroundings in columns (aten/src/ATen/native/ConvolutionMM2d.cpp).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["KERNEL", "workspace"]

KERNEL = 72 * 1024
"""Bytes of machine code and notes that oneDNN keeps for a convolution of one shape in one direction, as measured."""

_NOTHING: tuple[Sequence[int], object] = ((), None)
_FORWARD, _BACKWARD = torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default


def workspace(func: object, args: Sequence[Any], result: Any) -> tuple[Sequence[int], object]:
    """Bytes of each block that an operation takes, the one that is given back last at the end, and its kernel.

    Args:
        func: the operation.
        args: that it is called with.
        result: what came of it.
    """
    if func is _FORWARD and args[0].device.type == "cpu":
        return _convolution("forward", args[0], args[1], result, args[3:9])
    if func is _BACKWARD and args[0].device.type == "cpu":
        gradient, given, weight, *how = args
        passes = [_convolution(way, given, weight, gradient, how[1:7]) for way in _wanted(how[-1])]
        keys = tuple(key for _, key in passes if key is not None)
        return [size for sizes, _ in passes for size in sizes], keys or None
    return _NOTHING


def _wanted(mask: Sequence[bool]) -> list[str]:
    """The directions of a backward pass; that of the bias comes with the weight's."""
    return [way for way, wanted in zip(("to the input", "to the weight"), mask, strict=False) if wanted]


def _convolution(
    way: str, given: Tensor, weight: Tensor, made: Tensor, how: Sequence[Any]
) -> tuple[Sequence[int], object]:
    """One direction of a convolution; ``made`` is what the forward pass makes, or its gradient."""
    if not _is_blocked(given, weight, how):
        columns = weight[0].numel() * math.prod(made.shape[2:]) * given.shape[0] * given.element_size()
        return ((columns,) if math.prod(weight.shape[2:]) > 1 else ()), None
    last = {"forward": made, "to the input": given, "to the weight": weight}[way]
    sizes = [tensor.numel() * tensor.element_size() for tensor in (weight, given, made) if tensor is not last]
    key = way, *(tuple(tensor.shape) for tensor in (given, weight)), *map(tuple, how[:2])
    return [*sizes, last.numel() * last.element_size()], key


def _is_blocked(given: Tensor, weight: Tensor, how: Sequence[Any]) -> bool:
    """Whether it is oneDNN's."""
    backend: Any = torch._C._select_conv_backend(given, weight, None, *how)
    return bool(backend.name == "Mkldnn")
