"""The LoRA layer, linear or convolution, as one autograd function: ``h = W0 x + b + (alpha/r) B A x``.

Of one layer's forward and backward pass, with T tokens, k inputs, d outputs and rank r, beside the frozen layer's own
work (Hu et al. 2021, eq. 3; Cherniuk et al. 2023, RunLoRA, table 1):

======== ====================================== =============================================================
part     way                                    floating point operations
======== ====================================== =============================================================
forward  split: A x, then B of it                2 T r k + 2 T r d
forward  merged: W0 + s B A in W0's place        2 r k d
dX       split: add (dY B) A                     2 T r k, and dY B
dX       merged                                  2 r k d
dA, dB   factors: (dY B)' X and dY' (A X)        2 T r k + 2 T r d, and dY B and A X where not there yet
dA, dB   product: G = dY' X, then B' G and G A'  2 T k d + 4 r k d
======== ====================================== =============================================================

Which is least work depends on the shape; :func:`order` counts. The input is kept once, as it came: layers of the same
input (q, k, v) share it, in the precision it has, and where its maker left a note it is not kept at all.
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

from veneer.engine.frozen import Window, product_dtype

__all__ = [
    "Adapter",
    "Layer",
    "Linear",
    "MatrixProduct",
    "Operands",
    "Order",
    "Shape",
    "adapted",
    "order",
    "output",
    "shape_of",
]


class Shape(NamedTuple):
    """Sizes of one call of a layer. A convolution's tokens are its output's places, its inputs those of a window.

    Attributes:
        tokens: T, over the whole batch.
        inputs: k, channels times places of the window.
        outputs: d.
        rank: r.
        read: numbers of the input tensor; T k for a linear layer, less for a convolution.
    """

    tokens: int
    inputs: int
    outputs: int
    rank: int
    read: int


class Order(NamedTuple):
    """Which way each part of the work is done.

    Attributes:
        merged_output: the forward pass uses W0 + s B A.
        merged_input: so does the gradient of the input.
        whole_gradient: the factors' gradients are taken from that of the whole matrix.
    """

    merged_output: bool
    merged_input: bool
    whole_gradient: bool


_SPLIT = Order(False, False, False)
_WIDE = (torch.float32, torch.float64)
_OPERATIONS_A_BYTE = {"cpu": 8.0}
"""Operations in the time that one byte takes from memory, of one core; see docs/engine.md."""
_GPU_OPERATIONS_A_BYTE = 20.0


@lru_cache(maxsize=4096)
def order(shape: Shape, device: str = "cpu") -> Order:
    """The way of least time for float32 or wider: operations over what the machine does while it reads a byte."""
    ratio = _OPERATIONS_A_BYTE.get(device, _GPU_OPERATIONS_A_BYTE)
    ways = [Order(*(bool(number >> bit & 1) for bit in range(3))) for number in range(8)]
    return min(ways, key=lambda way: sum(work / ratio + 4 * moved for work, moved in _costs(shape, way)))


def _costs(shape: Shape, way: Order) -> Iterable[tuple[float, float]]:
    """(operations, numbers read or written) of each product that ``way`` adds to the frozen layer's work."""
    tokens, k, d, r, read = shape
    down, up, merge = (2 * tokens * r * k, read), (2 * tokens * r * d, tokens * d), (2 * r * k * d, 2 * k * d)
    yield from [merge] if way.merged_output else [down, (up[0], 2 * up[1])]
    if way.whole_gradient:
        yield 2 * tokens * k * d, read + tokens * d + k * d
        yield from [(merge[0], k * d)] * 2
    else:
        yield from [up, down]  # dB and dA
        if way.merged_output:
            yield down  # A x, for dB
    if not (way.whole_gradient and way.merged_input):
        yield up  # dY B
    yield merge if way.merged_input else (down[0], 2 * read)


class Layer(Protocol):
    """A linear map of the input by a weight: a matrix product, or a convolution."""

    def read(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """The weight's numbers in ``dtype``, of what stands for it."""

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The output."""

    def input_gradient(self, dy: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        """Of an input of ``shape``."""

    def weight_gradient(self, dy: Tensor, x: Tensor, shape: torch.Size) -> Tensor:
        """Of a weight of ``shape``."""


class MatrixProduct:
    """The product of (..., in) with (out, in), however the latter is held."""

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """(..., out)."""
        return functional.linear(x, weight, bias)

    def input_gradient(self, dy: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        """(..., in), from (..., out)."""
        return torch.matmul(dy, weight)

    def weight_gradient(self, dy: Tensor, x: Tensor, shape: torch.Size) -> Tensor:
        """(out, in)."""
        return dy.reshape(-1, dy.shape[-1]).T @ x.reshape(-1, x.shape[-1])


@dataclass(frozen=True)
class Linear(MatrixProduct):
    """That of a plain linear layer."""

    def read(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """The weight itself, or a copy in another precision."""
        return weight.to(dtype)


class Adapter(NamedTuple):
    """How an adapter is applied.

    Attributes:
        base: the frozen layer.
        down: the layer whose weight is A.
        up: the layer whose weight is B; it has no window.
        scale: alpha/r.
        kept: share of the input that dropout leaves; 1 where there is no mask.
    """

    base: Layer
    down: Layer
    up: Layer
    scale: float
    kept: float = 1.0


class Operands(NamedTuple):
    """What an adapted layer is applied to, and its weights.

    Attributes:
        x: (..., in), or (B, in, ...) of a convolution.
        weight: W0, frozen, or what the base layer reads it from.
        down: A, (r, in) or (r, in, kh, kw).
        up: B, (out, r) or (out, r, 1, 1).
        mask: where dropout leaves the adapter's input, bool, of x's shape; None: everywhere.
    """

    x: Tensor
    weight: Tensor
    down: Tensor
    up: Tensor
    mask: Tensor | None


class _Plan(NamedTuple):
    """How one call is computed.

    Attributes:
        dtype: of the frozen layer's products.
        narrow: of the adapter's products.
        order: which way.
    """

    dtype: torch.dtype
    narrow: torch.dtype
    order: Order


def adapted(operands: Operands, bias: Tensor | None, adapter: Adapter) -> Tensor:
    """The layer's output, with gradients for x, A and B; it keeps ``operands`` and A x, which is small.

    Args:
        operands: what is multiplied.
        bias: b, frozen.
        adapter: the rest.
    """
    function: Any = _Adapted
    return cast(Tensor, function.apply(*operands, bias, adapter))


def output(operands: Operands, bias: Tensor | None, adapter: Adapter) -> Tensor:
    """The same output, bit for bit, without gradients."""
    return _output(operands, bias, adapter, _plan(operands, adapter))[0]


def _output(operands: Operands, bias: Tensor | None, adapter: Adapter, plan: _Plan) -> tuple[Tensor, Tensor | None]:
    """The output, and A x where it was computed on the way."""
    x, weight = operands.x.to(plan.dtype), adapter.base.read(operands.weight, plan.dtype)
    bias = None if bias is None else bias.to(plan.dtype)
    if plan.order.merged_output:
        return adapter.base.apply(x, _merged(operands, adapter), bias), None
    y = adapter.base.apply(x, weight, bias)
    low = adapter.down.apply(_adapter_input(operands, adapter, plan), operands.down.to(plan.narrow))
    return _plus(y, low, operands.up.to(plan.narrow), adapter), low


def _adapter_input(operands: Operands, adapter: Adapter, plan: _Plan) -> Tensor:
    """What A is applied to: dropout is done in A's own precision."""
    if operands.mask is None:
        return operands.x.to(plan.narrow)
    return _dropped(operands.x.to(operands.down.dtype), operands.mask, adapter.kept).to(plan.narrow)


def _dropped(x: Tensor, mask: Tensor | None, kept: float) -> Tensor:
    """What dropout leaves of ``x``, in proportion (Srivastava et al. 2014, section 10)."""
    return x if mask is None else x * (mask.to(x.dtype) / kept)


def _plus(y: Tensor, low: Tensor, up: Tensor, adapter: Adapter) -> Tensor:
    """``y + s B low``, in y's place where the precision allows."""
    if isinstance(adapter.up, Linear) and y.dtype == up.dtype:
        y.view(-1, y.shape[-1]).addmm_(low.reshape(-1, low.shape[-1]), up.T, alpha=adapter.scale)
        return y
    high = adapter.up.apply(low, up)
    return y.add_(high, alpha=adapter.scale) if y.dtype == high.dtype else y.add(high, alpha=adapter.scale).to(y.dtype)


def _merged(operands: Operands, adapter: Adapter) -> Tensor:
    """``W0 + s B A``."""
    weight, down, up = operands.weight, operands.down, operands.up
    return torch.addmm(weight.flatten(1), up.flatten(1), down.flatten(1), alpha=adapter.scale).view_as(weight)


def _plan(operands: Operands, adapter: Adapter) -> _Plan:
    """Products are autocast's where that is on; else the frozen layer's are of x's precision, the adapter's of A's."""
    x, down = operands.x, operands.down
    narrow = product_dtype(x) if torch.is_autocast_enabled(x.device.type) else down.dtype
    plan = _Plan(product_dtype(x), narrow, _SPLIT)
    if not _is_free(operands, adapter, plan):
        return plan
    return plan._replace(order=order(shape_of(operands, adapter.base), x.device.type))


def _is_free(operands: Operands, adapter: Adapter, plan: _Plan) -> bool:
    """Whether merging keeps the bits and is the same map: wide enough, no dropout, no other window, no groups."""
    x, weight, down, up, mask = operands
    if mask is not None or adapter.base != adapter.down or weight[0].shape != down[0].shape:
        return False
    return plan.dtype in _WIDE and {plan.dtype, plan.narrow} == {t.dtype for t in (x, weight, down, up)}


def shape_of(operands: Operands, layer: Layer) -> Shape:
    """The sizes of one call."""
    x, weight = operands.x, operands.weight
    return Shape(_tokens(x, weight, layer), weight[0].numel(), weight.shape[0], operands.down.shape[0], x.numel())


def _tokens(x: Tensor, weight: Tensor, layer: Layer) -> int:
    """Places of the output."""
    if not isinstance(layer, Window):
        return x.numel() // x.shape[-1]
    return x.shape[0] * math.prod(layer.output_sides(x.shape, weight.shape))


class _Adapted(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        down: Tensor,
        up: Tensor,
        mask: Tensor | None,
        bias: Tensor | None,
        adapter: Adapter,
    ) -> Tensor:
        """Shapes as :func:`adapted` has them; what backward needs is kept, in the order of work that is cheapest."""
        operands = Operands(x, weight, down, up, mask)
        ctx.adapter, ctx.plan = adapter, _plan(operands, adapter)
        y, low = _output(operands, bias, adapter, ctx.plan)
        ctx.save_for_backward(*operands, low)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        *operands, low = ctx.saved_tensors
        work = _Backward(Operands(*operands), dy, low, ctx.adapter, ctx.plan)
        wants_x, _, wants_down, wants_up, *_ = ctx.needs_input_grad
        d_down, d_up = work.factors(wants_down, wants_up)
        return work.input() if wants_x else None, None, d_down, d_up, None, None, None


class _Backward:
    """One call's gradients; what two of them need is computed once."""

    def __init__(self, operands: Operands, dy: Tensor, low: Tensor | None, adapter: Adapter, plan: _Plan) -> None:
        self._operands, self._dy, self._adapter, self._plan = operands, dy, adapter, plan
        self._low = low
        self._d_low: Tensor | None = None
        self._adapter_x: Tensor | None = None

    def input(self) -> Tensor:
        """dX, in x's precision."""
        x, base = self._operands.x, self._adapter.base
        if self._plan.order.merged_input:
            return base.input_gradient(self._dy, _merged(self._operands, self._adapter), x.shape)
        dx = base.input_gradient(self._dy, base.read(self._operands.weight, self._plan.dtype), x.shape)
        return self._plus_adapter(dx)

    def _plus_adapter(self, dx: Tensor) -> Tensor:
        """Add s (dY B) A, in dx's place where the precision allows."""
        x, d_low, down = self._operands.x, self._low_gradient(), self._operands.down.to(self._plan.narrow)
        alike = dx.dtype == d_low.dtype == x.dtype
        if alike and self._operands.mask is None and isinstance(self._adapter.down, Linear):
            dx.view(-1, dx.shape[-1]).addmm_(d_low.reshape(-1, d_low.shape[-1]), down)
            return dx
        share = self._adapter.down.input_gradient(d_low, down, x.shape)
        share = _dropped(share, self._operands.mask, self._adapter.kept)
        return dx.add_(share) if alike else dx.to(x.dtype).add(share).to(x.dtype)

    def factors(self, wants_down: bool, wants_up: bool) -> tuple[Tensor | None, Tensor | None]:
        """dA and dB, in their own precision."""
        if self._plan.order.whole_gradient and (wants_down or wants_up):
            return self._of_whole()
        return self._of_down() if wants_down else None, self._of_up() if wants_up else None

    def _of_whole(self) -> tuple[Tensor, Tensor]:
        """dA = s B' G and dB = s G A', of the whole matrix's gradient G."""
        x, weight, down, up, _ = self._operands
        whole = self._adapter.base.weight_gradient(self._dy, x, weight.shape).flatten(1)
        d_down = (up.flatten(1).T @ whole).mul_(self._adapter.scale)
        return d_down.view_as(down), (whole @ down.flatten(1).T).mul_(self._adapter.scale).view_as(up)

    def _of_down(self) -> Tensor:
        """dA = s (dY B)' X."""
        down = self._operands.down
        return self._adapter.down.weight_gradient(self._low_gradient(), self._input(), down.shape).to(down.dtype)

    def _of_up(self) -> Tensor:
        """dB = s dY' (A X)."""
        down, up, narrow = self._operands.down, self._operands.up, self._plan.narrow
        low = self._adapter.down.apply(self._input(), down.to(narrow)) if self._low is None else self._low
        gradient = self._adapter.up.weight_gradient(self._dy.to(narrow), low, up.shape)
        return gradient.mul_(self._adapter.scale).to(up.dtype)

    def _low_gradient(self) -> Tensor:
        """Of A x: s dY B."""
        if self._d_low is None:
            dy, up = self._dy.to(self._plan.narrow), self._operands.up.to(self._plan.narrow)
            places = torch.Size([dy.shape[0], self._operands.down.shape[0], *dy.shape[2:]])
            self._d_low = self._adapter.up.input_gradient(dy, up, places).mul_(self._adapter.scale)
        return self._d_low

    def _input(self) -> Tensor:
        """What A was applied to."""
        if self._adapter_x is None:
            self._adapter_x = _adapter_input(self._operands, self._adapter, self._plan)
        return self._adapter_x
