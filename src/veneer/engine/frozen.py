"""Autograd functions for frozen layers, which save only what the gradient of their input needs.

Autograd computes the gradients of what requires one, but some operations save their operands whatever requires one:
a convolution its input, which only the weight's gradient reads; under autocast a product the cast copy of its weight;
an activation written in Python one tensor for each operation. Norms and activations that are one operation of PyTorch
save no more than they need already; but their *outputs* are saved by the layers that follow, see
:mod:`veneer.engine.recompute`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

__all__ = ["ConvGeometry", "conv", "geglu", "linear", "product_dtype", "recomputed"]


def product_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of matrix products with ``x``: autocast's if it is on (float64 is left alone), else x's own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) and x.dtype != torch.float64 else x.dtype


_MIN_WEIGHT_NUMEL = 2**23
"""Size of a convolution's weight that no cache holds."""
_MIN_CHANNELS_PER_POSITION = 4
"""Output channels for each output position from which a matrix product is faster; measured, see docs/engine.md."""


class ConvGeometry(NamedTuple):
    """Stride, padding with zeros, dilation and groups of a convolution over n spatial dimensions: a ``LinearMap``."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def read(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the weight itself, or a copy in another dtype."""
        return weight.to(dtype)

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Convolve (B, in, ...) with (out, in/groups, ...) to (B, out, ...)."""
        sides = self.output_sides(x.shape, weight.shape)
        if self._is_faster_as_product(x, weight, sides):
            return self._as_product(x, weight, bias, sides)
        no_padding = (0,) * len(self.stride)
        return torch.convolution(
            x, weight, bias, self.stride, self.padding, self.dilation, False, no_padding, self.groups
        )

    def input_gradient(self, dy: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        """Return the gradient of an input of ``shape``, from the output's gradient."""
        if self._is_faster_as_product(dy, weight, tuple(dy.shape[2:])):
            return self._input_gradient_as_product(dy, weight, shape)
        # only the input's shape is read, not its numbers
        return cast(Tensor, self._backward(dy, dy.new_empty(1).expand(shape), weight, (True, False, False))[0])

    def weight_gradient(self, dy: Tensor, x: Tensor, shape: torch.Size) -> Tensor:
        """Return the gradient of a weight of ``shape``, from the output's gradient and the input."""
        return cast(Tensor, self._backward(dy, x, dy.new_empty(1).expand(shape), (False, True, False))[1])

    def output_sides(self, x_shape: torch.Size, weight_shape: torch.Size) -> tuple[int, ...]:
        """Return the output's spatial sides, such as (height, width)."""
        sizes = zip(x_shape[2:], weight_shape[2:], self.stride, self.padding, self.dilation, strict=True)
        return tuple((side + 2 * pad - d * (kernel - 1) - 1) // stride + 1 for side, kernel, stride, pad, d in sizes)

    def _is_faster_as_product(self, x: Tensor, weight: Tensor, sides: tuple[int, ...]) -> bool:
        """Tell whether the weight is so much larger than the input that a plain matrix product is faster."""
        if x.device.type != "cpu" or x.dtype != torch.float32 or len(sides) != 2 or self.groups != 1:
            return False
        positions = x.shape[0] * sides[0] * sides[1]
        is_large = weight.numel() >= _MIN_WEIGHT_NUMEL and weight.shape[0] >= _MIN_CHANNELS_PER_POSITION * positions
        return is_large and weight[0, 0].numel() > 1

    def _as_product(self, x: Tensor, weight: Tensor, bias: Tensor | None, sides: tuple[int, ...]) -> Tensor:
        """Compute ``W unfold(X)``, with the windows of the input as columns (Chellapilla et al. 2006, section 3.2)."""
        columns_BKL = functional.unfold(x, weight.shape[2:], self.dilation, self.padding, self.stride)
        y_DN = weight.flatten(1) @ _join_batch(columns_BKL)
        if bias is not None:
            y_DN += bias[:, None]
        return y_DN.view(-1, x.shape[0], *sides).transpose(0, 1).contiguous()

    def _input_gradient_as_product(self, dy: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        """Compute ``fold(W' dY)``: the transposed map."""
        columns_KN = weight.flatten(1).T @ _join_batch(dy.flatten(2))
        columns_BKL = columns_KN.unflatten(1, (dy.shape[0], -1)).transpose(0, 1)
        return functional.fold(columns_BKL, shape[2:], weight.shape[2:], self.dilation, self.padding, self.stride)

    def _backward(self, dy: Tensor, x: Tensor, weight: Tensor, outputs: tuple[bool, bool, bool]) -> Any:
        no_padding = (0,) * len(self.stride)
        return torch.ops.aten.convolution_backward(
            dy, x, weight, None, self.stride, self.padding, self.dilation, False, no_padding, self.groups, outputs
        )


def _join_batch(columns_BKL: Tensor) -> Tensor:
    """Reshape (B, K, L) to (K, B L); no copy for a batch of one."""
    return columns_BKL.transpose(0, 1).flatten(1)


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.geometry, ctx.shape, ctx.dtype = geometry, x.shape, x.dtype
        dtype = product_dtype(x)
        return geometry.apply(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        return ctx.geometry.input_gradient(dy, weight.to(dy.dtype), ctx.shape).to(ctx.dtype), None, None, None


def conv(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry) -> Tensor:
    """Apply a frozen convolution: the numbers and the gradient of PyTorch's, without saving ``x``.

    Args:
        x: (B, in, ...), 1 to 3 spatial dimensions.
        weight: (out, in/groups, ...).
        bias: (out,).
        geometry: its stride, padding, dilation and groups.
    """
    return cast(Tensor, _apply(_Conv, x, weight, bias, geometry))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.dtype = x.dtype
        dtype = product_dtype(x)
        return functional.linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return torch.matmul(dy, weight.to(dy.dtype)).to(ctx.dtype), None, None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply a frozen linear layer, (..., in) to (..., out); it saves the weight itself, not autocast's copy of it."""
    return cast(Tensor, _apply(_Linear, x, weight, bias))


class _Geglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_and_gate: Tensor) -> Tensor:
        ctx.save_for_backward(hidden_and_gate)
        hidden, gate = hidden_and_gate.chunk(2, dim=-1)
        return functional.gelu(gate).mul_(hidden)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (hidden_and_gate,) = ctx.saved_tensors
        hidden, gate = hidden_and_gate.chunk(2, dim=-1)
        gradient = torch.empty_like(hidden_and_gate, memory_format=torch.contiguous_format)
        d_hidden, d_gate = gradient.chunk(2, dim=-1)
        torch.mul(dy, functional.gelu(gate), out=d_hidden)
        d_gate.copy_(torch.ops.aten.gelu_backward(dy * hidden, gate))
        return gradient


def geglu(hidden_and_gate: Tensor) -> Tensor:
    """Compute ``hidden * gelu(gate)`` (Shazeer 2020, section 2) of the halves of (..., 2 d): (..., d).

    It saves its argument alone; autograd saves gelu's output as well.
    """
    return cast(Tensor, _apply(_Geglu, hidden_and_gate))


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        kind = x.device.type
        ctx.compute, ctx.autocast = compute, (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        ctx.save_for_backward(x)
        return compute(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        kind, dtype, enabled = ctx.autocast
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad(), torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False):
            y = ctx.compute(x)
        return torch.autograd.grad(y, x, dy)[0], None


def recomputed(compute: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return ``compute(x)``, saving ``x`` alone and computing it again in the backward pass (Chen et al. 2016).

    Args:
        compute: a function of one tensor without randomness, with frozen parameters; it returns a new tensor.
        x: its argument.
    """
    return cast(Tensor, _apply(_Recomputed, x, compute))


def _apply(function: Any, *arguments: object) -> object:
    """Call ``function.apply``, which has no types."""
    return function.apply(*arguments)
