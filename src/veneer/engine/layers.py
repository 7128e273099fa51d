"""Layers as PyTorch, diffusers, transformers and peft have them, which keep less for the backward pass.

Each is a subclass of the layer it stands for and adds nothing but how ``forward`` is done, so a layer becomes one by
its ``__class__`` alone: names, parameters, hooks, files and devices stay. Whatever is not the plain frozen case, a
trainable weight, no gradient wanted, several adapters at once, is left to the class it stands for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any, cast

import torch
from diffusers.models import activations, normalization
from peft.tuners.lora import Conv2d as PeftConv2d
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn
from transformers import activations as text_activations
from transformers.models.t5.modeling_t5 import T5LayerNorm

from veneer.engine import frozen
from veneer.engine.class_swap import STANDS_FOR, plain_base, plain_class
from veneer.engine.lora_linear import Adapter, Layer, Linear, Operands, adapted, output
from veneer.engine.quantized import Quantized
from veneer.engine.recompute import remember, remembers_products

__all__ = ["OWN"]


def _plain(module: nn.Module) -> Callable[..., Any]:
    """How the class that a layer stands for does ``forward``.

    Not by ``super()``: a layer may be called by a ``forward`` that somebody (accelerate's hooks) took of it while it
    was prepared, and be of its plain class again.
    """
    return MethodType(plain_base(type(module)).forward, module)


def _is_frozen(*modules: nn.Module) -> bool:
    return not any(p.requires_grad for module in modules for p in module._parameters.values() if p is not None)


def _takes(x: Tensor, weight: Tensor) -> bool:
    """Whether a product of the two is one; where it is none, PyTorch says so better."""
    return x.dtype == weight.dtype or torch.is_autocast_enabled(x.device.type)


def _wants_gradient(module: nn.Module, x: object, *rest: object) -> bool:
    """Whether this is the case the layers are for: one input that requires a gradient, weights that do not."""
    plain = not rest and isinstance(x, Tensor) and x.requires_grad and _stands(module)
    return plain and torch.is_grad_enabled() and _is_frozen(module)


def _stands(module: nn.Module) -> bool:
    """Whether a layer is one of ours: no more after ``undo``, nor where somebody (parametrisations) made another."""
    return plain_class(type(module)) is not type(module)


class _Remembered(nn.Module):
    """Norms and activations that are one operation: their outputs are cheap to make again."""

    def forward(self, x: Any, *rest: Any, **named: Any) -> Any:
        plain = _plain(self)
        y = plain(x, *rest, **named)
        return remember(y, plain, x) if _wants_gradient(self, x, *rest, *named) else y


class _Recomputed(nn.Module):
    """Norms and activations written as several operations: only their input is kept."""

    def forward(self, x: Any, *rest: Any, **named: Any) -> Any:
        if not _wants_gradient(self, x, *rest, *named):
            return _plain(self)(x, *rest, **named)
        plain = _plain(self)
        return remember(frozen.recomputed(plain, x), plain, x)


class _Geglu(nn.Module):
    """The gated activation: gelu's output is not kept."""

    def forward(self, x: Any, *rest: Any, **named: Any) -> Any:
        plain = not rest and not named and isinstance(x, Tensor) and x.device.type != "npu" and _stands(self)
        if not plain or not torch.is_grad_enabled():
            return _plain(self)(x, *rest, **named)
        projected = cast(Any, self).proj(x)
        if not projected.requires_grad:
            return frozen.geglu(projected)
        return remember(frozen.geglu(projected), frozen.geglu, projected)


class _Gelu(nn.Module):
    """A linear layer with gelu after it: gelu's output is cheap to make again."""

    def gelu(self, gate: Tensor) -> Tensor:
        plain = cast(Any, super()).gelu
        y: Tensor = plain(gate)
        return remember(y, plain, gate)


class _Conv(nn.Module):
    """A frozen convolution does not keep its input."""

    def forward(self, x: Any, *rest: Any, **named: Any) -> Any:
        layer = cast(Any, self)
        window = _window(layer)
        if window is None or not _wants_gradient(self, x, *rest, *named) or not _takes(x, layer.weight):
            return _plain(self)(x, *rest, **named)
        if x.dim() != layer.weight.dim():  # no batch
            return _plain(self)(x)
        return frozen.conv(x, layer.weight, layer.bias, window)


class _Linear(nn.Module):
    """A frozen linear layer: its weight is not kept twice, and its output can be made again."""

    def forward(self, x: Any, *rest: Any, **named: Any) -> Any:
        layer = cast(Any, self)
        if not _wants_gradient(self, x, *rest, *named) or not _takes(x, layer.weight):
            return _plain(self)(x, *rest, **named)
        if layer.weight.dtype == frozen.product_dtype(x):
            y = _plain(self)(x)
        else:
            y = frozen.linear(x, layer.weight, layer.bias)
        if layer.in_features <= layer.out_features and remembers_products(x):
            remember(y, _plain(self), x, products=1)
        return y


class _Read(nn.Module):
    """A linear layer that reads its weight for each product: its output can be made again."""

    def forward(self, x: Any, *rest: Any, **named: Any) -> Any:
        layer = cast(Any, self)
        y = _plain(self)(x, *rest, **named)
        wanted = _wants_gradient(self, x, *rest, *named) and layer.in_features <= layer.out_features
        return remember(y, _plain(self), x, products=1) if wanted and remembers_products(x) else y


def _window(layer: Any) -> frozen.Window | None:
    """Of a convolution padded with a number of zeros; None for other padding."""
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return None
    return frozen.Window(layer.stride, layer.padding, layer.dilation, layer.groups)


class _Lora(nn.Module):
    """peft's layer with one plain adapter: one function instead of a dozen operations."""

    def forward(self, x: Any, *rest: Any, **named: Any) -> Any:
        name = _only_adapter(cast(Any, self)) if torch.is_grad_enabled() and not rest and not named else None
        parts = None if name is None else _parts(cast(Any, self), name)
        if name is None or parts is None or not _fits(x, parts[0]):
            return _plain(self)(x, *rest, **named)
        return _adapted(cast(Any, self), name, parts, x)


def _only_adapter(layer: Any) -> str | None:
    """The one active adapter of a layer in its plain state."""
    if not _stands(layer) or layer.disable_adapters or layer.merged or not layer.cast_input_dtype_enabled:
        return None
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    return active[0] if len(active) == 1 and active[0] not in layer.lora_variant else None


def _parts(layer: Any, name: str) -> tuple[Any, Any, Any] | None:
    """Frozen layer, A and B, if calling them would do what their weights say and no more."""
    base, down, up = parts = layer.base_layer, layer.lora_A[name], layer.lora_B[name]
    plain = all(plain_class(type(part)) in _PRODUCTS and not _is_hooked(part) for part in parts)
    dropout = layer.lora_dropout[name]
    if not plain or _is_hooked(dropout) or type(dropout) not in (nn.Dropout, nn.Identity):
        return None
    return parts if down.bias is None and up.bias is None and _is_frozen(base) else None


_PRODUCTS = (nn.Linear, nn.Conv2d, Quantized)


def _is_hooked(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)


def _fits(x: object, base: Any) -> bool:
    """Whether the frozen layer takes ``x`` as a batch."""
    if not isinstance(x, Tensor) or not x.numel():
        return False
    if not isinstance(base, Quantized) and not _takes(x, base.weight):
        return False
    return x.dim() == 4 if isinstance(base, nn.Conv2d) else x.dim() >= 2


def _adapted(layer: Any, name: str, parts: tuple[Any, Any, Any], x: Tensor) -> Any:
    base, down, up = parts
    of_base, of_down, of_up = (_map(part) for part in parts)
    if of_base is None or of_down is None or of_up is None:
        return _plain(layer)(x)
    mask, kept = _mask(layer.lora_dropout[name], x, down.weight.dtype)
    adapter = Adapter(of_base, of_down, of_up, layer.scaling[name], kept)
    weight = base.parts[0] if isinstance(base, Quantized) else base.weight
    operands = Operands(x, weight, down.weight, up.weight, mask)
    y = adapted(operands, base.bias, adapter)
    if _widens(base) and remembers_products(x):
        _remember(y, operands, base.bias, adapter)
    return y


def _remember(y: Tensor, operands: Operands, bias: Tensor | None, adapter: Adapter) -> None:
    x, weight, down, up, mask = operands
    masks = () if mask is None else (mask,)

    def again(x: Tensor, down: Tensor, up: Tensor, mask: Tensor | None = None) -> Tensor:
        return output(Operands(x, weight, down, up, mask), bias, adapter)

    remember(y, again, x, down, up, *masks, products=1)


def _widens(base: Any) -> bool:
    """Whether an output is no smaller than the input it is made of."""
    if isinstance(base, Quantized):
        return base.in_features <= base.out_features
    return bool(base.weight[0].numel() <= base.weight.shape[0])


def _map(layer: nn.Module) -> Layer | None:
    if isinstance(layer, Quantized):
        return layer.packed
    return Linear() if isinstance(layer, nn.Linear) else _window(layer)


def _mask(dropout: nn.Module, x: Tensor, dtype: torch.dtype) -> tuple[Tensor | None, float]:
    """The mask that ``dropout`` would draw, from the same random numbers, and the share it leaves."""
    if not isinstance(dropout, nn.Dropout) or not dropout.training or dropout.p == 0:
        return None, 1.0
    kept = 1.0 - dropout.p
    if kept == 0:  # nothing is drawn, and nothing to be in proportion to
        return torch.zeros_like(x, dtype=torch.bool), 1.0
    if x.device.type == "cpu":
        return torch.empty_like(x, dtype=torch.bool).bernoulli_(kept), kept
    # which numbers a kernel draws depends on the precision it runs in
    return torch.native_dropout(x.detach().to(dtype), dropout.p, True)[1], kept


_KINDS: dict[type[nn.Module], tuple[type[nn.Module], ...]] = {
    _Remembered: (
        nn.GELU,
        nn.GroupNorm,
        nn.LayerNorm,
        nn.Mish,
        nn.SiLU,
        text_activations.GELUActivation,
        text_activations.SiLUActivation,
    ),
    _Recomputed: (
        T5LayerNorm,
        activations.FP32SiLU,
        nn.RMSNorm,
        normalization.FP32LayerNorm,
        normalization.RMSNorm,
        text_activations.FastGELUActivation,
        text_activations.GELUTanh,
        text_activations.NewGELUActivation,
        text_activations.QuickGELUActivation,
    ),
    _Geglu: (activations.GEGLU,),
    _Gelu: (activations.GELU,),
    _Conv: (nn.Conv1d, nn.Conv2d, nn.Conv3d),
    _Linear: (nn.Linear,),
    _Read: (Quantized,),
    _Lora: (PeftConv2d, PeftLinear),
}


def _make(kind: type[nn.Module], plain: type[nn.Module]) -> type[nn.Module]:
    """A class of this module, found by its name when a network is copied or pickled."""
    package = plain.__module__.partition(".")[0].capitalize()
    about = {"__module__": __name__, "__doc__": plain.__doc__, STANDS_FOR: plain}
    own = type(f"{package}{plain.__name__}", (kind, plain), about)
    globals()[own.__name__] = own
    return own


OWN: Mapping[type[nn.Module], type[nn.Module]] = {
    plain: _make(kind, plain) for kind, plains in _KINDS.items() for plain in plains
}
"""The class that stands for a layer of exactly this class; none for others, subclasses among them."""
