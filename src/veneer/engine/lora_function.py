"""The LoRA layer, linear or convolution, as one autograd function: ``h = W0 x + b + (alpha/r) B A x``.

The operations of one layer's forward and backward pass, with T tokens, k inputs, d outputs and rank r, beside the
frozen layer's own (Hu et al. 2021, eq. 3; Cherniuk et al. 2023, RunLoRA, table 1):

======== ====================================== =============================================================
part     variant                                floating point operations
======== ====================================== =============================================================
forward  split: A x, then B of it                2 T r k + 2 T r d
forward  merged: W0 + s B A in W0's place        2 r k d
dX       split: add (dY B) A                     2 T r k, and dY B
dX       merged                                  2 r k d
dA, dB   factors: (dY B)' X and dY' (A X)        2 T r k + 2 T r d, and dY B and A X where not there yet
dA, dB   product: G = dY' X, then B' G and G A'  2 T k d + 4 r k d
======== ====================================== =============================================================

Which takes least time depends on the sizes; :func:`fastest_order` counts. The input is saved once, as it came: layers
of the same input (q, k, v) share it, in the dtype it has, and an input that can be recomputed is not saved at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from veneer.engine.frozen import ConvGeometry, product_dtype

__all__ = [
    "CallSize",
    "ComputeOrder",
    "DenseMatrix",
    "LinearMap",
    "LoraMaps",
    "MatrixProduct",
    "Operands",
    "call_size",
    "fastest_order",
    "lora_forward",
    "lora_output",
]


class CallSize(NamedTuple):
    """The sizes of one call of a layer; the tokens of a convolution are its output positions.

    Attributes:
        tokens: T, over the whole batch.
        inputs: k; for a convolution, channels times the kernel's size.
        outputs: d.
        rank: r.
        input_numel: numbers of the input tensor; T k for a linear layer, less for a convolution.
    """

    tokens: int
    inputs: int
    outputs: int
    rank: int
    input_numel: int


class ComputeOrder(NamedTuple):
    """The variant in which each part is computed.

    Attributes:
        merged_output: the forward pass uses W0 + s B A.
        merged_input: the gradient of the input uses it too.
        whole_gradient: the gradients of A and B are taken from that of the whole matrix.
    """

    merged_output: bool
    merged_input: bool
    whole_gradient: bool


_SPLIT = ComputeOrder(False, False, False)
_WIDE = (torch.float32, torch.float64)
_OPERATIONS_PER_BYTE = {"cpu": 8.0}
"""Operations of one core in the time that one byte takes from memory; see docs/engine.md."""
_GPU_OPERATIONS_PER_BYTE = 20.0


@lru_cache(maxsize=4096)
def fastest_order(size: CallSize, device: str = "cpu") -> ComputeOrder:
    """Return the order of least estimated time in float32 or wider, by operations and memory traffic."""
    ratio = _OPERATIONS_PER_BYTE.get(device, _GPU_OPERATIONS_PER_BYTE)
    orders = [ComputeOrder(*(bool(number >> bit & 1) for bit in range(3))) for number in range(8)]
    return min(orders, key=lambda order: sum(work / ratio + 4 * moved for work, moved in _costs(size, order)))


def _costs(size: CallSize, order: ComputeOrder) -> Iterable[tuple[float, float]]:
    """Yield (operations, numbers read or written) of each product that is added to the frozen layer's."""
    tokens, k, d, r, read = size
    down, up, merge = (2 * tokens * r * k, read), (2 * tokens * r * d, tokens * d), (2 * r * k * d, 2 * k * d)
    yield from [merge] if order.merged_output else [down, (up[0], 2 * up[1])]
    if order.whole_gradient:
        yield 2 * tokens * k * d, read + tokens * d + k * d
        yield from [(merge[0], k * d)] * 2
    else:
        yield from [up, down]  # dB and dA
        if order.merged_output:
            yield down  # A x, for dB
    if not (order.whole_gradient and order.merged_input):
        yield up  # dY B
    yield merge if order.merged_input else (down[0], 2 * read)


class LinearMap(Protocol):
    """A linear map of an input by a weight: a matrix product or a convolution."""

    def read(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the weight in ``dtype``; ``weight`` may be a stand-in for it."""

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return the output."""

    def input_gradient(self, dy: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        """Return the gradient of an input of ``shape``."""

    def weight_gradient(self, dy: Tensor, x: Tensor, shape: torch.Size) -> Tensor:
        """Return the gradient of a weight of ``shape``."""


class MatrixProduct:
    """The product of (..., in) with a matrix (out, in), however that is stored."""

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return (..., out)."""
        return functional.linear(x, weight, bias)

    def input_gradient(self, dy: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        """Return (..., in), from (..., out)."""
        return torch.matmul(dy, weight)

    def weight_gradient(self, dy: Tensor, x: Tensor, shape: torch.Size) -> Tensor:
        """Return (out, in)."""
        return dy.reshape(-1, dy.shape[-1]).T @ x.reshape(-1, x.shape[-1])


@dataclass(frozen=True)
class DenseMatrix(MatrixProduct):
    """The product with the weight of a plain linear layer."""

    def read(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the weight itself, or a copy in another dtype."""
        return weight.to(dtype)


class LoraMaps(NamedTuple):
    """The linear maps of an adapted layer.

    Attributes:
        base: the map by W0.
        down: the map by A.
        up: the map by B; a convolution's kernel is 1 x 1.
        scale: s = alpha/r.
        keep_share: the share of the input that dropout keeps; 1 where there is no mask.
    """

    base: LinearMap
    down: LinearMap
    up: LinearMap
    scale: float
    keep_share: float = 1.0


class Operands(NamedTuple):
    """The input and the weights of an adapted layer.

    Attributes:
        x: (..., in), or (B, in, ...) for a convolution.
        weight: W0, frozen, or a stand-in that the base map reads it from.
        down: A, (r, in) or (r, in, kh, kw).
        up: B, (out, r) or (out, r, 1, 1).
        mask: where dropout keeps the adapter's input, bool, of x's shape; None: everywhere.
    """

    x: Tensor
    weight: Tensor
    down: Tensor
    up: Tensor
    mask: Tensor | None


class _CallPlan(NamedTuple):
    """How one call is computed.

    Attributes:
        dtype: the dtype of the frozen layer's products.
        lora_dtype: the dtype of the adapter's products.
        order: the order of computation.
    """

    dtype: torch.dtype
    lora_dtype: torch.dtype
    order: ComputeOrder


def lora_forward(operands: Operands, bias: Tensor | None, maps: LoraMaps) -> Tensor:
    """Return the layer's output, with gradients for x, A and B; it saves ``operands`` and A x, which is small.

    Args:
        operands: the input and the weights.
        bias: b, frozen.
        maps: the maps by these weights.
    """
    function: Any = _LoraFunction
    return cast(Tensor, function.apply(*operands, bias, maps))


def lora_output(operands: Operands, bias: Tensor | None, maps: LoraMaps) -> Tensor:
    """Return the output of :func:`lora_forward`, bit for bit, without gradients."""
    return _output(operands, bias, maps, _plan(operands, maps))[0]


def _output(operands: Operands, bias: Tensor | None, maps: LoraMaps, plan: _CallPlan) -> tuple[Tensor, Tensor | None]:
    """Return the output, and A x where it was computed on the way."""
    x, weight = operands.x.to(plan.dtype), maps.base.read(operands.weight, plan.dtype)
    bias = None if bias is None else bias.to(plan.dtype)
    if plan.order.merged_output:
        return maps.base.apply(x, _merged(operands, maps), bias), None
    y = maps.base.apply(x, weight, bias)
    low = maps.down.apply(_lora_input(operands, maps, plan), operands.down.to(plan.lora_dtype))
    return _add_up(y, low, operands.up.to(plan.lora_dtype), maps), low


def _lora_input(operands: Operands, maps: LoraMaps, plan: _CallPlan) -> Tensor:
    """Return what A is applied to; dropout is done in A's own dtype."""
    if operands.mask is None:
        return operands.x.to(plan.lora_dtype)
    return _drop_out(operands.x.to(operands.down.dtype), operands.mask, maps.keep_share).to(plan.lora_dtype)


def _drop_out(x: Tensor, mask: Tensor | None, keep_share: float) -> Tensor:
    """Apply a dropout mask and scale what is kept (Srivastava et al. 2014, section 10)."""
    return x if mask is None else x * (mask.to(x.dtype) / keep_share)


def _add_up(y: Tensor, low: Tensor, up: Tensor, maps: LoraMaps) -> Tensor:
    """Add s B low to y, in place where the dtypes allow."""
    if isinstance(maps.up, DenseMatrix) and y.dtype == up.dtype:
        y.view(-1, y.shape[-1]).addmm_(low.reshape(-1, low.shape[-1]), up.T, alpha=maps.scale)
        return y
    high = maps.up.apply(low, up)
    return y.add_(high, alpha=maps.scale) if y.dtype == high.dtype else y.add(high, alpha=maps.scale).to(y.dtype)


def _merged(operands: Operands, maps: LoraMaps) -> Tensor:
    """Return W0 + s B A."""
    weight, down, up = operands.weight, operands.down, operands.up
    return torch.addmm(weight.flatten(1), up.flatten(1), down.flatten(1), alpha=maps.scale).view_as(weight)


def _plan(operands: Operands, maps: LoraMaps) -> _CallPlan:
    """Choose dtypes and order: autocast's dtype if it is on, else x's for the frozen layer and A's for the adapter."""
    x, down = operands.x, operands.down
    lora_dtype = product_dtype(x) if torch.is_autocast_enabled(x.device.type) else down.dtype
    plan = _CallPlan(product_dtype(x), lora_dtype, _SPLIT)
    if not _can_merge(operands, maps, plan):
        return plan
    return plan._replace(order=fastest_order(call_size(operands, maps.base), x.device.type))


def _can_merge(operands: Operands, maps: LoraMaps, plan: _CallPlan) -> bool:
    """Tell whether merging loses no precision and is the same map: one wide dtype, one geometry, no dropout."""
    x, weight, down, up, mask = operands
    if mask is not None or maps.base != maps.down or weight[0].shape != down[0].shape:
        return False
    return plan.dtype in _WIDE and {plan.dtype, plan.lora_dtype} == {t.dtype for t in (x, weight, down, up)}


def call_size(operands: Operands, base: LinearMap) -> CallSize:
    """Return the sizes of one call."""
    x, weight = operands.x, operands.weight
    return CallSize(_tokens(x, weight, base), weight[0].numel(), weight.shape[0], operands.down.shape[0], x.numel())


def _tokens(x: Tensor, weight: Tensor, base: LinearMap) -> int:
    """Count the output's positions over the whole batch."""
    if not isinstance(base, ConvGeometry):
        return x.numel() // x.shape[-1]
    return x.shape[0] * math.prod(base.output_sides(x.shape, weight.shape))


class _LoraFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        down: Tensor,
        up: Tensor,
        mask: Tensor | None,
        bias: Tensor | None,
        maps: LoraMaps,
    ) -> Tensor:
        """Compute the output in the fastest order and save what backward needs; shapes as in :class:`Operands`."""
        operands = Operands(x, weight, down, up, mask)
        ctx.maps, ctx.plan = maps, _plan(operands, maps)
        y, low = _output(operands, bias, maps, ctx.plan)
        ctx.save_for_backward(*operands, low)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        *operands, low = ctx.saved_tensors
        gradients = _Gradients(Operands(*operands), dy, low, ctx.maps, ctx.plan)
        needs_x, _, needs_down, needs_up, *_ = ctx.needs_input_grad
        d_down, d_up = gradients.factors(needs_down, needs_up)
        return gradients.input() if needs_x else None, None, d_down, d_up, None, None, None


class _Gradients:
    """The gradients of one call; what two of them need is computed once."""

    def __init__(self, operands: Operands, dy: Tensor, low: Tensor | None, maps: LoraMaps, plan: _CallPlan) -> None:
        self._operands, self._dy, self._maps, self._plan = operands, dy, maps, plan
        self._low = low
        self._d_low: Tensor | None = None
        self._cached_input: Tensor | None = None

    def input(self) -> Tensor:
        """Return dX in x's dtype."""
        x, base = self._operands.x, self._maps.base
        if self._plan.order.merged_input:
            return base.input_gradient(self._dy, _merged(self._operands, self._maps), x.shape)
        dx = base.input_gradient(self._dy, base.read(self._operands.weight, self._plan.dtype), x.shape)
        return self._add_lora_gradient(dx)

    def _add_lora_gradient(self, dx: Tensor) -> Tensor:
        """Add s (dY B) A to dx, in place where the dtypes allow."""
        x, d_low, down = self._operands.x, self._low_gradient(), self._operands.down.to(self._plan.lora_dtype)
        one_dtype = dx.dtype == d_low.dtype == x.dtype
        if one_dtype and self._operands.mask is None and isinstance(self._maps.down, DenseMatrix):
            dx.view(-1, dx.shape[-1]).addmm_(d_low.reshape(-1, d_low.shape[-1]), down)
            return dx
        added = self._maps.down.input_gradient(d_low, down, x.shape)
        added = _drop_out(added, self._operands.mask, self._maps.keep_share)
        return dx.add_(added) if one_dtype else dx.to(x.dtype).add(added).to(x.dtype)

    def factors(self, needs_down: bool, needs_up: bool) -> tuple[Tensor | None, Tensor | None]:
        """Return dA and dB in their own dtypes."""
        if self._plan.order.whole_gradient and (needs_down or needs_up):
            return self._factors_of_whole()
        return self._down() if needs_down else None, self._up() if needs_up else None

    def _factors_of_whole(self) -> tuple[Tensor, Tensor]:
        """Return dA = s B' G and dB = s G A', where G is the gradient of the whole matrix."""
        x, weight, down, up, _ = self._operands
        whole = self._maps.base.weight_gradient(self._dy, x, weight.shape).flatten(1)
        d_down = (up.flatten(1).T @ whole).mul_(self._maps.scale)
        return d_down.view_as(down), (whole @ down.flatten(1).T).mul_(self._maps.scale).view_as(up)

    def _down(self) -> Tensor:
        """Return dA = s (dY B)' X."""
        down = self._operands.down
        return self._maps.down.weight_gradient(self._low_gradient(), self._input(), down.shape).to(down.dtype)

    def _up(self) -> Tensor:
        """Return dB = s dY' (A X)."""
        down, up, dtype = self._operands.down, self._operands.up, self._plan.lora_dtype
        low = self._maps.down.apply(self._input(), down.to(dtype)) if self._low is None else self._low
        gradient = self._maps.up.weight_gradient(self._dy.to(dtype), low, up.shape)
        return gradient.mul_(self._maps.scale).to(up.dtype)

    def _low_gradient(self) -> Tensor:
        """Return the gradient of A x: s dY B."""
        if self._d_low is None:
            dy, up = self._dy.to(self._plan.lora_dtype), self._operands.up.to(self._plan.lora_dtype)
            shape = torch.Size([dy.shape[0], self._operands.down.shape[0], *dy.shape[2:]])
            self._d_low = self._maps.up.input_gradient(dy, up, shape).mul_(self._maps.scale)
        return self._d_low

    def _input(self) -> Tensor:
        """Return what A was applied to."""
        if self._cached_input is None:
            self._cached_input = _lora_input(self._operands, self._maps, self._plan)
        return self._cached_input
