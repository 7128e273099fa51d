"""Autograd functions for frozen layers, which keep only what the gradient of their input needs.

Autograd computes the gradients of what requires one, but some operations keep their operands whatever requires one:
a convolution its input, which only the weight's gradient reads; under autocast a product the cast copy of its weight;
an activation written in Python one buffer an operation. Norms and activations that are one operation of PyTorch keep
no more than they need already; what remains there is that their *outputs* are kept by the layers that follow, see
:mod:`veneer.engine.recompute`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

__all__ = ["Window", "conv", "geglu", "linear", "product_dtype", "recomputed"]


def product_dtype(x: Tensor) -> torch.dtype:
    """Of matrix products with ``x``: autocast's where that is on (which leaves float64 alone), else its own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) and x.dtype != torch.float64 else x.dtype


_LARGE = 2**23
"""Numbers of a convolution's weight that no cache holds."""
_OUTPUTS_A_PLACE = 4
"""Its outputs for each place of the batch, from which on a matrix product is faster; measured, see docs/engine.md."""


class Window(NamedTuple):
    """How a convolution moves over its input of n spatial dimensions, zeros around it."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def read(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """The weight itself, or a copy in another precision."""
        return weight.to(dtype)

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """(B, in, ...) with (out, in/groups, ...) to (B, out, ...)."""
        sides = self.output_sides(x.shape, weight.shape)
        if self._is_weighty(x, weight, sides):
            return self._as_product(x, weight, bias, sides)
        no_padding = (0,) * len(self.stride)
        return torch.convolution(
            x, weight, bias, self.stride, self.padding, self.dilation, False, no_padding, self.groups
        )

    def input_gradient(self, dy: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        """Of an input of ``shape``, from the output's gradient."""
        if self._is_weighty(dy, weight, tuple(dy.shape[2:])):
            return self._input_gradient_as_product(dy, weight, shape)
        # the input's numbers are not read, only its shape
        return cast(Tensor, self._backward(dy, dy.new_empty(1).expand(shape), weight, (True, False, False))[0])

    def weight_gradient(self, dy: Tensor, x: Tensor, shape: torch.Size) -> Tensor:
        """Of a weight of ``shape``, from the output's gradient and the input."""
        return cast(Tensor, self._backward(dy, x, dy.new_empty(1).expand(shape), (False, True, False))[1])

    def output_sides(self, x_shape: torch.Size, weight_shape: torch.Size) -> tuple[int, ...]:
        """Of the output, (height, width) of two dimensions."""
        sizes = zip(x_shape[2:], weight_shape[2:], self.stride, self.padding, self.dilation, strict=True)
        return tuple((side + 2 * pad - d * (kernel - 1) - 1) // stride + 1 for side, kernel, stride, pad, d in sizes)

    def _is_weighty(self, x: Tensor, weight: Tensor, sides: tuple[int, ...]) -> bool:
        """Whether the weight is so much larger than what it meets that a plain matrix product is faster."""
        if x.device.type != "cpu" or x.dtype != torch.float32 or len(sides) != 2 or self.groups != 1:
            return False
        places = x.shape[0] * sides[0] * sides[1]
        return weight.numel() >= _LARGE and weight.shape[0] >= _OUTPUTS_A_PLACE * places and weight[0, 0].numel() > 1

    def _as_product(self, x: Tensor, weight: Tensor, bias: Tensor | None, sides: tuple[int, ...]) -> Tensor:
        """``W unfold(X)``, with the windows of the input as columns (Chellapilla et al. 2006, section 3.2)."""
        columns_BKL = functional.unfold(x, weight.shape[2:], self.dilation, self.padding, self.stride)
        y_DN = weight.flatten(1) @ _side_by_side(columns_BKL)
        if bias is not None:
            y_DN += bias[:, None]
        return y_DN.view(-1, x.shape[0], *sides).transpose(0, 1).contiguous()

    def _input_gradient_as_product(self, dy: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        """``fold(W' dY)``: the transposed map."""
        columns_KN = weight.flatten(1).T @ _side_by_side(dy.flatten(2))
        columns_BKL = columns_KN.unflatten(1, (dy.shape[0], -1)).transpose(0, 1)
        return functional.fold(columns_BKL, shape[2:], weight.shape[2:], self.dilation, self.padding, self.stride)

    def _backward(self, dy: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool]) -> Any:
        no_padding = (0,) * len(self.stride)
        return torch.ops.aten.convolution_backward(
            dy, x, weight, None, self.stride, self.padding, self.dilation, False, no_padding, self.groups, wanted
        )


def _side_by_side(columns_BKL: Tensor) -> Tensor:
    """(B, K, L) to (K, B L): no copy for a batch of one."""
    return columns_BKL.transpose(0, 1).flatten(1)


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.window, ctx.shape, ctx.dtype = window, x.shape, x.dtype
        dtype = product_dtype(x)
        return window.apply(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        return ctx.window.input_gradient(dy, weight.to(dy.dtype), ctx.shape).to(ctx.dtype), None, None, None


def conv(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
    """A frozen convolution: the same numbers and the same gradient as PyTorch's, which keeps ``x`` for neither.

    Args:
        x: (B, in, ...), 1 to 3 spatial dimensions.
        weight: (out, in/groups, ...).
        bias: (out,).
        window: its stride, padding, dilation and groups.
    """
    return cast(Tensor, _apply(_Conv, x, weight, bias, window))


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
    """A frozen linear layer: (..., in) to (..., out). It keeps the weight itself, not autocast's copy of it."""
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
    """``hidden * gelu(gate)`` (Shazeer 2020, section 2) of the halves of (..., 2 d): (..., d).

    It keeps its argument alone; autograd keeps gelu's output as well.
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
    """``compute(x)``, which keeps ``x`` alone and does everything again in the backward pass (Chen et al. 2016).

    Args:
        compute: of one tensor, without randomness, whose parameters are frozen; what it returns is new.
        x: its argument.
    """
    return cast(Tensor, _apply(_Recomputed, x, compute))


def _apply(function: Any, *arguments: object) -> object:
    """``function.apply``, which has no types."""
    return function.apply(*arguments)
