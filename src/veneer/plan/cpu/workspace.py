"""The memory that an operation on the CPU takes for itself while it runs: copies in its own layout, compiled kernels.

Among PyTorch's operations it is the convolutions that take much. oneDNN's have a layout of their own, blocks of
channels (``nChw16c``, ``OIhw16i16o``), so the weight, the input and the output are each there twice for a while; those
of a deep layer are large, and are copied in every call. Small convolutions go through PyTorch's own code, which lays
out each pixel's surroundings in columns (aten/src/ATen/native/ConvolutionMM2d.cpp).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

__all__ = ["KERNEL", "Workspace", "workspace"]

KERNEL = 72 * 1024
"""Bytes of machine code and notes that oneDNN keeps for a convolution of one shape in one direction, as measured."""

_FORWARD, _BACKWARD = torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default
Direction = Literal["forward", "to the input", "to the weight"]


class Workspace(NamedTuple):
    """The memory of one operation.

    Attributes:
        sizes: bytes of each block, the one that is released last at the end.
        kernel: identifies the compiled kernel, which stays; None: there is none.
    """

    sizes: Sequence[int] = ()
    kernel: object | None = None


class _Convolution(NamedTuple):
    """One convolution: its input, weight and output (or gradients of these shapes), and stride, padding and so on."""

    input: Tensor
    weight: Tensor
    output: Tensor
    settings: Sequence[Any]


def workspace(func: object, args: Sequence[Any], result: Any) -> Workspace:
    """Return what an operation takes for itself.

    Args:
        func: the operation.
        args: its arguments.
        result: what it returned.
    """
    if func is _FORWARD and args[0].device.type == "cpu":
        return _direction("forward", _Convolution(args[0], args[1], result, args[3:9]))
    if func is _BACKWARD and args[0].device.type == "cpu":
        gradient, input, weight, *settings = args
        convolution = _Convolution(input, weight, gradient, settings[1:7])
        passes = [_direction(direction, convolution) for direction in _wanted(settings[-1])]
        kernels = tuple(each.kernel for each in passes if each.kernel is not None)
        return Workspace([size for each in passes for size in each.sizes], kernels or None)
    return Workspace()


def _wanted(mask: Sequence[bool]) -> list[Direction]:
    """Return the directions of a backward pass; that of the bias comes with the weight's."""
    directions: tuple[Direction, ...] = ("to the input", "to the weight")
    return [direction for direction, wanted in zip(directions, mask, strict=False) if wanted]


def _direction(direction: Direction, convolution: _Convolution) -> Workspace:
    """Return what one direction of a convolution takes."""
    input, weight, output, settings = convolution
    if not _is_blocked(convolution):
        columns = weight[0].numel() * math.prod(output.shape[2:]) * input.shape[0] * input.element_size()
        return Workspace((columns,) if math.prod(weight.shape[2:]) > 1 else ())
    last = {"forward": output, "to the input": input, "to the weight": weight}[direction]
    copies = [tensor for tensor in (weight, input, output) if tensor is not last]
    kernel = direction, *(tuple(tensor.shape) for tensor in (input, weight)), *map(tuple, settings[:2])
    return Workspace([tensor.numel() * tensor.element_size() for tensor in (*copies, last)], kernel)


def _is_blocked(convolution: _Convolution) -> bool:
    """Tell whether a convolution is oneDNN's."""
    backend: Any = torch._C._select_conv_backend(convolution.input, convolution.weight, None, *convolution.settings)
    return bool(backend.name == "Mkldnn")
