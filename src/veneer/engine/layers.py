"""Layers of PyTorch, diffusers, transformers and peft that save less for the backward pass.

Each class here is the ``forward`` that layers of some classes are given, see :mod:`veneer.engine.instance_forward`:
classes, names, parameters, hooks, files and devices stay. Whatever is not the plain frozen case, a trainable weight, no
gradient wanted, several adapters at once, is left to the layer's own ``forward``, and so is ``torch.compile``, which
decides for itself what is saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import activations as text_activations
from transformers.models.t5.modeling_t5 import T5LayerNorm

from veneer.adapter.peft_library import LoraConv2d, LoraLinear
from veneer.engine import frozen
from veneer.engine.instance_forward import InstanceForward, has_foreign_forward
from veneer.engine.lora_function import DenseMatrix, LinearMap, LoraMaps, Operands, lora_forward, lora_output
from veneer.engine.quantized import QuantizedConv2d, QuantizedLayer, QuantizedLinear
from veneer.engine.recompute import make_recomputable, recomputes_products
from veneer.lazy_bitsandbytes import bitsandbytes_on_demand

with bitsandbytes_on_demand():
    from diffusers.models import activations, normalization
    from diffusers.models.transformers.transformer_krea2 import Krea2RMSNorm

__all__ = ["LAYER_FORWARDS"]


class _LayerForward(InstanceForward):
    """The ``forward`` of a layer; subclasses say what it computes of one tensor while gradients are recorded."""

    __slots__ = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        layer: Any = self.module()
        is_plain = len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and self.is_active(layer)
        if is_plain and torch.is_grad_enabled() and not torch.compiler.is_compiling() and self.takes(layer, args[0]):
            return self.compute(layer, args[0])
        return type(layer).forward(layer, *args, **kwargs)

    def takes(self, layer: Any, x: Tensor) -> bool:
        """Tell whether this is the case the class is for: an input that requires a gradient, frozen weights."""
        return x.requires_grad and _is_frozen(layer)

    def compute(self, layer: Any, x: Tensor) -> Tensor:
        """Compute what the layer's own ``forward`` would."""
        raise NotImplementedError


class _OwnCall:
    """A layer's own ``forward`` with the weights that it has now: others may be in their place by the backward pass.

    accelerate's offloading puts tensors without data there, ``torch.func.functional_call`` those that were before.
    """

    __slots__ = ("_class", "_layer", "_tensors")

    def __init__(self, layer: nn.Module) -> None:
        self._layer, self._class = layer, type(layer)
        self._tensors = {"_parameters": layer._parameters.copy(), "_buffers": layer._buffers.copy()}

    def __call__(self, x: Tensor) -> Tensor:
        layer = self._class.__new__(self._class)
        vars(layer).update(vars(self._layer))
        vars(layer).update(self._tensors)
        y: Tensor = self._class.forward(layer, x)
        return y


def _is_frozen(module: nn.Module) -> bool:
    attributes = vars(module)
    for parameter in attributes["_parameters"].values():
        if parameter is not None and parameter.requires_grad:
            return False
    # replicas of DataParallel, and what is computed before each call, have it as a plain attribute
    return not any(isinstance(each := attributes.get(name), Tensor) and each.requires_grad for name in _WEIGHTS)


_WEIGHTS = ("weight", "bias")


def _dtypes_fit(x: Tensor, weight: Tensor) -> bool:
    """Tell whether the two can be multiplied; where they cannot, PyTorch has the better error."""
    return x.dtype == weight.dtype or torch.is_autocast_enabled(x.device.type)


class _SingleOperation(_LayerForward):
    """A norm or activation that is one operation: its output is recomputable."""

    __slots__ = ()

    def compute(self, layer: Any, x: Tensor) -> Tensor:
        return make_recomputable(type(layer).forward(layer, x), _OwnCall(layer), x)


class _SeveralOperations(_LayerForward):
    """A norm or activation that is written as several operations: only its input is saved."""

    __slots__ = ()

    def compute(self, layer: Any, x: Tensor) -> Tensor:
        own = _OwnCall(layer)
        return make_recomputable(frozen.recomputed(own, x), own, x)


class _Geglu(_LayerForward):
    """The gated activation: gelu's output is not saved."""

    __slots__ = ()

    def takes(self, layer: Any, x: Tensor) -> bool:
        return x.device.type != "npu"

    def compute(self, layer: Any, x: Tensor) -> Tensor:
        projected = layer.proj(x)
        y = frozen.geglu(projected)
        return make_recomputable(y, frozen.geglu, projected) if projected.requires_grad else y


class _Gelu(_LayerForward):
    """A linear layer with gelu after it: gelu's output is recomputable."""

    __slots__ = ()

    def takes(self, layer: Any, x: Tensor) -> bool:
        return True

    def compute(self, layer: Any, x: Tensor) -> Tensor:
        gate = layer.proj(x)
        return make_recomputable(layer.gelu(gate), layer.gelu, gate)


class _Conv(_LayerForward):
    """A frozen convolution: its input is not saved."""

    __slots__ = ()

    def compute(self, layer: Any, x: Tensor) -> Tensor:
        geometry, weight = _geometry(layer), layer.weight
        if geometry is None or not _dtypes_fit(x, weight) or x.dim() != weight.dim():  # else it is no batch
            y: Tensor = type(layer).forward(layer, x)
            return y
        return frozen.conv(x, weight, layer.bias, geometry)


class _Linear(_LayerForward):
    """A frozen linear layer: its weight is not saved twice, and its output is recomputable."""

    __slots__ = ()

    def compute(self, layer: Any, x: Tensor) -> Tensor:
        weight = layer.weight
        if weight.dtype == frozen.product_dtype(x) or not _dtypes_fit(x, weight):
            y: Tensor = type(layer).forward(layer, x)
        else:
            y = frozen.linear(x, weight, layer.bias)
        return _with_recomputed_product(layer, x, y)


class _Quantized(_LayerForward):
    """A linear layer that unpacks its weight for each product: its output is recomputable."""

    __slots__ = ()

    def compute(self, layer: Any, x: Tensor) -> Tensor:
        return _with_recomputed_product(layer, x, type(layer).forward(layer, x))


def _with_recomputed_product(layer: Any, x: Tensor, y: Tensor) -> Tensor:
    """Return a linear layer's output; recomputable, if it is no smaller than the input and products are recomputed."""
    if layer.in_features <= layer.out_features and recomputes_products(x):
        make_recomputable(y, _OwnCall(layer), x, products=1)
    return y


def _geometry(layer: Any) -> frozen.ConvGeometry | None:
    """Return the geometry of a convolution that is padded with a number of zeros; None for other padding."""
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return None
    return frozen.ConvGeometry(layer.stride, layer.padding, layer.dilation, layer.groups)


class _Lora(_LayerForward):
    """peft's layer with one plain adapter: one autograd function instead of a dozen operations."""

    __slots__ = ()

    def takes(self, layer: Any, x: Tensor) -> bool:
        return True

    def compute(self, layer: Any, x: Tensor) -> Any:
        name = _only_adapter(layer)
        parts = None if name is None else _plain_parts(layer, name)
        if name is None or parts is None or not _takes_batch(x, parts[0]):
            return type(layer).forward(layer, x)
        return _lora_forward(layer, name, parts, x)


def _only_adapter(layer: Any) -> str | None:
    """Return the name of the one active adapter of a layer in its plain state; None in any other."""
    if layer.disable_adapters or layer.merged or not layer.cast_input_dtype_enabled:
        return None
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    return active[0] if len(active) == 1 and active[0] not in layer.lora_variant else None


def _plain_parts(layer: Any, name: str) -> tuple[Any, Any, Any] | None:
    """Return the frozen layer, A and B; None if calling them would do more than multiply by their weights."""
    base, down, up = parts = layer.base_layer, layer.lora_A[name], layer.lora_B[name]
    are_plain = all(type(part) in _PRODUCTS and not _is_hooked(part) for part in parts)
    dropout = layer.lora_dropout[name]
    if not are_plain or _is_hooked(dropout) or type(dropout) not in (nn.Dropout, nn.Identity):
        return None
    return parts if down.bias is None and up.bias is None and _is_frozen(base) else None


_PRODUCTS = (nn.Linear, nn.Conv2d, QuantizedLinear, QuantizedConv2d)


def _is_hooked(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or has_foreign_forward(module)


def _takes_batch(x: object, base: Any) -> bool:
    """Tell whether the frozen layer takes ``x`` as a batch."""
    if not isinstance(x, Tensor) or not x.numel():
        return False
    if not isinstance(base, QuantizedLayer) and not _dtypes_fit(x, base.weight):
        return False
    return x.dim() == 4 if isinstance(base, nn.Conv2d) else x.dim() >= 2


def _lora_forward(layer: Any, name: str, parts: tuple[Any, Any, Any], x: Tensor) -> Any:
    base, down, up = parts
    base_map, down_map, up_map = (_linear_map(part) for part in parts)
    if base_map is None or down_map is None or up_map is None:
        return type(layer).forward(layer, x)
    mask, keep_share = _dropout_mask(layer.lora_dropout[name], x, down.weight.dtype)
    maps = LoraMaps(base_map, down_map, up_map, layer.scaling[name], keep_share)
    weight = base.parts[0] if isinstance(base, QuantizedLayer) else base.weight
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
    shape = base.weight_shape if isinstance(base, QuantizedLayer) else base.weight.shape
    return bool(shape[1:].numel() <= shape[0])


def _linear_map(layer: nn.Module) -> LinearMap | None:
    if isinstance(layer, QuantizedLayer):
        return layer.linear_map
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


_CLASSES: dict[type[_LayerForward], tuple[type[nn.Module], ...]] = {
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
        Krea2RMSNorm,
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
    _Lora: (LoraConv2d, LoraLinear),
}


LAYER_FORWARDS: Mapping[type[nn.Module], type[InstanceForward]] = {
    cls: forward for forward, classes in _CLASSES.items() for cls in classes
}
"""The forward for layers of exactly this class; those of its subclasses keep their own."""
