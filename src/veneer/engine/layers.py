"""Layers of PyTorch, diffusers, transformers and peft that save less for the backward pass.

Each class is a subclass of the layer that it replaces and changes nothing but ``forward``, so a layer becomes one by a
swap of its ``__class__``: names, parameters, hooks, files and devices stay. Whatever is not the plain frozen case, a
trainable weight, no gradient wanted, several adapters at once, is left to the original class.
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
from veneer.engine.class_swap import ORIGINAL_CLASS, inherited_original_class, original_class
from veneer.engine.lora_function import DenseMatrix, LinearMap, LoraMaps, Operands, lora_forward, lora_output
from veneer.engine.quantized import QuantizedLinear
from veneer.engine.recompute import make_recomputable, recomputes_products

__all__ = ["REPLACEMENTS"]


def _original_forward(module: nn.Module) -> Callable[..., Any]:
    """Return the ``forward`` of the class that a layer's class replaces.

    Not by ``super()``: a layer may be called through a ``forward`` that somebody (accelerate's hooks) took of it while
    it was prepared, and be of its original class again.
    """
    return MethodType(inherited_original_class(type(module)).forward, module)


def _is_frozen(*modules: nn.Module) -> bool:
    return not any(p.requires_grad for module in modules for p in module._parameters.values() if p is not None)


def _dtypes_fit(x: Tensor, weight: Tensor) -> bool:
    """Tell whether the two can be multiplied; where they cannot, PyTorch has the better error."""
    return x.dtype == weight.dtype or torch.is_autocast_enabled(x.device.type)


def _needs_input_gradient(module: nn.Module, x: object, *others: object) -> bool:
    """Tell whether this is the case the classes are for: one input that requires a gradient, frozen weights."""
    is_plain = not others and isinstance(x, Tensor) and x.requires_grad and _is_swapped(module)
    return is_plain and torch.is_grad_enabled() and _is_frozen(module)


def _is_swapped(module: nn.Module) -> bool:
    """Tell whether a layer is of one of our classes: not after ``undo``, nor if a parametrisation changed its class."""
    return original_class(type(module)) is not type(module)


class _SingleOperation(nn.Module):
    """A norm or activation that is one operation: its output is recomputable."""

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        original = _original_forward(self)
        y = original(x, *args, **kwargs)
        return make_recomputable(y, original, x) if _needs_input_gradient(self, x, *args, *kwargs) else y


class _SeveralOperations(nn.Module):
    """A norm or activation that is written as several operations: only its input is saved."""

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        if not _needs_input_gradient(self, x, *args, *kwargs):
            return _original_forward(self)(x, *args, **kwargs)
        original = _original_forward(self)
        return make_recomputable(frozen.recomputed(original, x), original, x)


class _Geglu(nn.Module):
    """The gated activation: gelu's output is not saved."""

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        is_plain = not args and not kwargs and isinstance(x, Tensor) and x.device.type != "npu" and _is_swapped(self)
        if not is_plain or not torch.is_grad_enabled():
            return _original_forward(self)(x, *args, **kwargs)
        projected = cast(Any, self).proj(x)
        if not projected.requires_grad:
            return frozen.geglu(projected)
        return make_recomputable(frozen.geglu(projected), frozen.geglu, projected)


class _Gelu(nn.Module):
    """A linear layer with gelu after it: gelu's output is recomputable."""

    def gelu(self, gate: Tensor) -> Tensor:
        original = cast(Any, super()).gelu
        y: Tensor = original(gate)
        return make_recomputable(y, original, gate)


class _Conv(nn.Module):
    """A frozen convolution: its input is not saved."""

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        layer = cast(Any, self)
        geometry = _geometry(layer)
        needs_gradient = geometry is not None and _needs_input_gradient(self, x, *args, *kwargs)
        if geometry is None or not needs_gradient or not _dtypes_fit(x, layer.weight):
            return _original_forward(self)(x, *args, **kwargs)
        if x.dim() != layer.weight.dim():  # no batch
            return _original_forward(self)(x)
        return frozen.conv(x, layer.weight, layer.bias, geometry)


class _Linear(nn.Module):
    """A frozen linear layer: its weight is not saved twice, and its output is recomputable."""

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        layer = cast(Any, self)
        if not _needs_input_gradient(self, x, *args, *kwargs) or not _dtypes_fit(x, layer.weight):
            return _original_forward(self)(x, *args, **kwargs)
        if layer.weight.dtype == frozen.product_dtype(x):
            y = _original_forward(self)(x)
        else:
            y = frozen.linear(x, layer.weight, layer.bias)
        if layer.in_features <= layer.out_features and recomputes_products(x):
            make_recomputable(y, _original_forward(self), x, products=1)
        return y


class _Quantized(nn.Module):
    """A linear layer that unpacks its weight for each product: its output is recomputable."""

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        layer = cast(Any, self)
        y = _original_forward(self)(x, *args, **kwargs)
        is_wide = layer.in_features <= layer.out_features
        if _needs_input_gradient(self, x, *args, *kwargs) and is_wide and recomputes_products(x):
            make_recomputable(y, _original_forward(self), x, products=1)
        return y


def _geometry(layer: Any) -> frozen.ConvGeometry | None:
    """Return the geometry of a convolution that is padded with a number of zeros; None for other padding."""
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return None
    return frozen.ConvGeometry(layer.stride, layer.padding, layer.dilation, layer.groups)


class _Lora(nn.Module):
    """peft's layer with one plain adapter: one autograd function instead of a dozen operations."""

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        name = _only_adapter(cast(Any, self)) if torch.is_grad_enabled() and not args and not kwargs else None
        parts = None if name is None else _plain_parts(cast(Any, self), name)
        if name is None or parts is None or not _takes_batch(x, parts[0]):
            return _original_forward(self)(x, *args, **kwargs)
        return _lora_forward(cast(Any, self), name, parts, x)


def _only_adapter(layer: Any) -> str | None:
    """Return the name of the one active adapter of a layer in its plain state; None in any other."""
    if not _is_swapped(layer) or layer.disable_adapters or layer.merged or not layer.cast_input_dtype_enabled:
        return None
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    return active[0] if len(active) == 1 and active[0] not in layer.lora_variant else None


def _plain_parts(layer: Any, name: str) -> tuple[Any, Any, Any] | None:
    """Return the frozen layer, A and B; None if calling them would do more than multiply by their weights."""
    base, down, up = parts = layer.base_layer, layer.lora_A[name], layer.lora_B[name]
    are_plain = all(original_class(type(part)) in _PRODUCTS and not _is_hooked(part) for part in parts)
    dropout = layer.lora_dropout[name]
    if not are_plain or _is_hooked(dropout) or type(dropout) not in (nn.Dropout, nn.Identity):
        return None
    return parts if down.bias is None and up.bias is None and _is_frozen(base) else None


_PRODUCTS = (nn.Linear, nn.Conv2d, QuantizedLinear)


def _is_hooked(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)


def _takes_batch(x: object, base: Any) -> bool:
    """Tell whether the frozen layer takes ``x`` as a batch."""
    if not isinstance(x, Tensor) or not x.numel():
        return False
    if not isinstance(base, QuantizedLinear) and not _dtypes_fit(x, base.weight):
        return False
    return x.dim() == 4 if isinstance(base, nn.Conv2d) else x.dim() >= 2


def _lora_forward(layer: Any, name: str, parts: tuple[Any, Any, Any], x: Tensor) -> Any:
    base, down, up = parts
    base_map, down_map, up_map = (_linear_map(part) for part in parts)
    if base_map is None or down_map is None or up_map is None:
        return _original_forward(layer)(x)
    mask, keep_share = _dropout_mask(layer.lora_dropout[name], x, down.weight.dtype)
    maps = LoraMaps(base_map, down_map, up_map, layer.scaling[name], keep_share)
    weight = base.parts[0] if isinstance(base, QuantizedLinear) else base.weight
    operands = Operands(x, weight, down.weight, up.weight, mask)
    y = lora_forward(operands, base.bias, maps)
    if _is_wide(base) and recomputes_products(x):
        _make_lora_recomputable(y, operands, base.bias, maps)
    return y


def _make_lora_recomputable(y: Tensor, operands: Operands, bias: Tensor | None, maps: LoraMaps) -> None:
    x, weight, down, up, mask = operands
    masks = () if mask is None else (mask,)

    def recompute(x: Tensor, down: Tensor, up: Tensor, mask: Tensor | None = None) -> Tensor:
        return lora_output(Operands(x, weight, down, up, mask), bias, maps)

    make_recomputable(y, recompute, x, down, up, *masks, products=1)


def _is_wide(base: Any) -> bool:
    """Tell whether an output is no smaller than the input it is computed from."""
    if isinstance(base, QuantizedLinear):
        return base.in_features <= base.out_features
    return bool(base.weight[0].numel() <= base.weight.shape[0])


def _linear_map(layer: nn.Module) -> LinearMap | None:
    if isinstance(layer, QuantizedLinear):
        return layer.matrix
    return DenseMatrix() if isinstance(layer, nn.Linear) else _geometry(layer)


def _dropout_mask(dropout: nn.Module, x: Tensor, dtype: torch.dtype) -> tuple[Tensor | None, float]:
    """Draw the mask that ``dropout`` would draw, from the same random numbers; return it with the share it keeps."""
    if not isinstance(dropout, nn.Dropout) or not dropout.training or dropout.p == 0:
        return None, 1.0
    keep_share = 1.0 - dropout.p
    if keep_share == 0:  # nothing is drawn, and nothing is left to scale
        return torch.zeros_like(x, dtype=torch.bool), 1.0
    if x.device.type == "cpu":
        return torch.empty_like(x, dtype=torch.bool).bernoulli_(keep_share), keep_share
    # which numbers a kernel draws depends on the dtype it runs in
    return torch.native_dropout(x.detach().to(dtype), dropout.p, True)[1], keep_share


_REPLACED: dict[type[nn.Module], tuple[type[nn.Module], ...]] = {
    _SingleOperation: (
        nn.GELU,
        nn.GroupNorm,
        nn.LayerNorm,
        nn.Mish,
        nn.SiLU,
        text_activations.GELUActivation,
        text_activations.SiLUActivation,
    ),
    _SeveralOperations: (
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
    _Quantized: (QuantizedLinear,),
    _Lora: (PeftConv2d, PeftLinear),
}


def _make_class(mixin: type[nn.Module], original: type[nn.Module]) -> type[nn.Module]:
    """Make a class of this module, where it is found by its name when a network is copied or pickled."""
    package = original.__module__.partition(".")[0].capitalize()
    attributes = {"__module__": __name__, "__doc__": original.__doc__, ORIGINAL_CLASS: original}
    replacement = type(f"{package}{original.__name__}", (mixin, original), attributes)
    globals()[replacement.__name__] = replacement
    return replacement


REPLACEMENTS: Mapping[type[nn.Module], type[nn.Module]] = {
    original: _make_class(mixin, original) for mixin, originals in _REPLACED.items() for original in originals
}
"""The class that replaces exactly this one; subclasses of it are not replaced."""
