"""Frozen linear layers whose weights are held in few bits and read back for each product (Dettmers et al. 2023).

``h = W x + b`` with W as its bits have it: nothing else is rounded, the input least of all, so the gradients are those
of a plain layer with these very weights. The layer keeps neither its input nor the weights it has read; both passes
read them anew. An adapter on top stays in float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils._pytree import tree_leaves, tree_map_only

from veneer.adapter.layers import layers_under
from veneer.engine.class_swap import is_prepared, plain_class
from veneer.engine.frozen import product_dtype
from veneer.engine.lora_linear import MatrixProduct
from veneer.engine.peak_memory import release_freed_memory
from veneer.engine.quantization import NONE, Form, form_named
from veneer.errors import UserError

__all__ = [
    "Packed",
    "Quantized",
    "check_form",
    "form_of",
    "linear_weights",
    "parameter_count",
    "quantize",
    "quantize_streamed",
]


class Packed(MatrixProduct):
    """The weights of one layer, as a map that is applied: ``Layer`` of :mod:`veneer.engine.lora_linear`.

    Args:
        form: how they are held.
        parts: their bytes.
        shape: (out, in).
    """

    def __init__(self, form: Form, parts: tuple[Tensor, ...], shape: tuple[int, int]) -> None:
        self._form, self._parts, self._shape = form, parts, shape

    def read(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """The weights, (out, in); ``weight`` stands for them and is not looked at."""
        return self._form.unpack(self._parts, self._shape, dtype)


class _Copy(Tensor):
    """A weight that was read, or a view of it. Whatever else is computed with it is a plain tensor."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func == _SET_DATA or any(isinstance(each, _Copy) for each in _written(func.__name__, args, named)):
            what = "the weight is quantised and this is a copy of it, so nothing can be merged into it"
            raise UserError(what, remedy="load the base in full for that")
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **named)
            held = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(args) if isinstance(leaf, _Copy)}
            return tree_map_only(Tensor, lambda each: _viewed(each, held), result)


def _viewed(result: Tensor, held: set[int]) -> Tensor:
    """What lies in the storage of a copy is one too, so that it is not written to by way of a view."""
    is_view = type(result) is Tensor and result.layout is torch.strided and result.untyped_storage().data_ptr() in held
    return result.as_subclass(_Copy) if is_view else result


def _written(name: str, args: tuple[Any, ...], named: Mapping[str, Any]) -> Iterator[object]:
    """What a function of this name writes to: by PyTorch's convention its first argument, or ``out``."""
    yield from tree_leaves(named.get("out"))
    in_place = (name.endswith("_") and not name.endswith("__")) or name in _OPERATORS or named.get("inplace") is True
    if in_place and name not in _WRITES_NOTHING:
        yield from tree_leaves((args or tuple(named.values()))[0])


_SET_DATA: Any = cast(Any, Tensor.data).__set__
_AUGMENTED = ("add", "and", "floordiv", "lshift", "mod", "mul", "or", "pow", "rshift", "sub", "truediv", "xor")
_OPERATORS = {"__setitem__", *(f"__i{operation}__" for operation in _AUGMENTED)}
_WRITES_NOTHING = {"requires_grad_"}


class Quantized(nn.Linear):
    """A frozen linear layer whose weight is held in few bits; ``weight`` is a copy, read anew each time.

    The copy refuses to be written to, so that whoever would merge something into it hears of it. A state dict has it in
    full, as a plain layer's, so that what is saved loads anywhere. What is loaded is held in this form; the weight that
    the layer has already keeps its bits.

    Args:
        layer: the plain one; its bias stays its own.
        form: how the weight shall be held.
        device: where; None: where it is.
        dtype: of the weight that is read back; None: the layer's.
    """

    def __init__(
        self, layer: nn.Linear, form: Form, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.form = form.name
        parts = form.pack(layer.weight.detach().to(device or layer.weight.device))
        self._names = tuple(f"packed_{place}" for place in range(len(parts)))
        for name, part in zip(self._names, parts, strict=True):
            self.register_buffer(name, part, persistent=False)
        # is cast along with the network, and tells which dtype it has
        self.register_buffer("_like", layer.weight.detach().new_empty(0, dtype=dtype), persistent=False)
        self.bias = layer.bias
        self.train(layer.training)

    @property
    def packed(self) -> Packed:
        """The weights, as a map."""
        return Packed(form_named(self.form), self.parts, (self.out_features, self.in_features))

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The weights' bytes."""
        return tuple(cast(Tensor, self._buffers[name]) for name in self._names)

    def __getattr__(self, name: str) -> Any:
        if name != "weight":
            return super().__getattr__(name)
        weight = self._read()
        return weight if isinstance(weight, FakeTensor) else weight.as_subclass(_Copy)

    def _read(self) -> Tensor:
        return self.packed.read(self.parts[0], cast(Tensor, self._buffers["_like"]).dtype)

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        if torch.is_grad_enabled() and input.requires_grad:
            return cast(Tensor, cast(Any, _Product).apply(input, self.bias, self.packed, self.parts[0]))
        return _product(input, self.bias, self.packed, self.parts[0])

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"{super().extra_repr()}, form={self.form}"

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self._read()

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        rest = (local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        super()._load_from_state_dict(state_dict, prefix, *rest)
        key, shape = f"{prefix}weight", (self.out_features, self.in_features)
        if key in unexpected_keys:
            unexpected_keys.remove(key)
        if key not in state_dict:
            missing_keys.extend([key] if strict else [])
        elif tuple(state_dict[key].shape) != shape:
            error_msgs.append(f"size mismatch for {key}: {tuple(state_dict[key].shape)} in the file and {shape} here.")
        else:
            self._take(state_dict[key])

    def _take(self, weight: Tensor) -> None:
        """Hold another weight; packing what was read gives other bits now and then, so one's own is left as it is."""
        own = self._read()
        given = weight.detach().to(own.device, own.dtype)
        if isinstance(own, FakeTensor) or torch.equal(given, own):
            return
        for mine, part in zip(self.parts, form_named(self.form).pack(given), strict=True):
            mine.copy_(part)


def _product(x: Tensor, bias: Tensor | None, packed: Packed, weight: Tensor) -> Tensor:
    dtype = product_dtype(x)
    return functional.linear(x.to(dtype), packed.read(weight, dtype), None if bias is None else bias.to(dtype))


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, packed: Packed, weight: Tensor) -> Tensor:
        ctx.packed, ctx.weight, ctx.dtype = packed, weight, x.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        return _product(x, bias, packed, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        dx = torch.matmul(dy, ctx.packed.read(ctx.weight, dy.dtype)).to(ctx.dtype)
        wants_bias = ctx.needs_input_grad[1]
        return dx, dy.reshape(-1, dy.shape[-1]).sum(0).to(ctx.bias_dtype) if wants_bias else None, None, None


def quantize(network: nn.Module, form: str, device: torch.device | None = None) -> int:
    """Hold the weights of a network's linear layers in few bits from now on; there is no way back but to load it again.

    The layers change places one by one, so no more than one of them is there in both forms. Convolutions, norms,
    embeddings and biases stay as they are, and so do layers of other classes than ``torch.nn.Linear``.

    Args:
        network: changed in place; it is frozen, or will be.
        form: a key of ``FORMS``, or ``none``.
        device: that the layers' weights go to on their way; None: they stay where they are.

    Returns:
        How many layers there were.

    Raises:
        UserError: the library is not installed, or the network is prepared, carries an adapter or is in a form already.
    """
    if form == NONE:
        return 0
    how, before = form_named(form), form_of(network)
    if is_prepared(network):
        raise UserError("the network is prepared", remedy="undo that, quantise it, and prepare it again")
    if before != NONE:
        raise UserError(f"the network's weights are {before} already", remedy="load it again")
    if any(isinstance(module, BaseTunerLayer) for module in network.modules()):
        raise UserError("the network carries an adapter", remedy="take it out first")
    layers = _linear_layers(network)
    for places in layers.values():
        _quantize_layer(places, how, device)
    return len(layers)


def linear_weights(network: nn.Module) -> list[str]:
    """Return the names of the weights that :func:`quantize` packs, one a layer."""
    return [f"{path}.weight" for path in _linear_layers(network)]


def quantize_streamed(
    network: nn.Module,
    form: str,
    weights: Iterable[tuple[str, Tensor]],
    dtype: torch.dtype,
    device: torch.device | None = None,
) -> None:
    """Quantise the linear layers of a network that has no weights yet, each as its weight comes.

    The bits are those of :func:`quantize` on the network with all its weights, of which there is one at a time here.

    Args:
        network: whose weights are on the meta device; changed in place.
        form: a key of ``FORMS``.
        weights: all that :func:`linear_weights` names, with their names, in any order, of any floating-point dtype.
        dtype: of the weights that are read back.
        device: that the weights are packed on; None: where they are.
    """
    how, layers, freed = form_named(form), _linear_layers(network), 0
    for name, weight in weights:
        places = layers[name.removesuffix(".weight")]
        parent, own_name = places[0]
        getattr(parent, own_name).weight = nn.Parameter(weight, requires_grad=False)
        _quantize_layer(places, how, device, dtype)
        freed += weight.nbytes
        if freed > _RELEASE_AFTER:  # what packing needs for itself lies between packed weights, so the heap keeps it
            release_freed_memory()
            freed = 0


_RELEASE_AFTER = 32 * 2**20
_Places = list[tuple[nn.Module, str]]
"""Where a layer hangs: parents, and its name in each; several where modules share it."""


def _quantize_layer(places: _Places, form: Form, device: torch.device | None, dtype: torch.dtype | None = None) -> None:
    parent, name = places[0]
    quantized = Quantized(getattr(parent, name), form, device, dtype)
    for parent, name in places:
        setattr(parent, name, quantized)


def _linear_layers(network: nn.Module) -> dict[str, _Places]:
    """Return where each linear layer hangs, by its first path; the layers themselves are not held."""
    paths: dict[int, str] = {}
    layers: dict[str, _Places] = {}
    for prefix, parent in network.named_modules():
        for name, child in parent._modules.items():
            if type(child) is nn.Linear:
                path = paths.setdefault(id(child), f"{prefix}.{name}" if prefix else name)
                layers.setdefault(path, []).append((parent, name))
    return layers


def form_of(network: nn.Module) -> str:
    """The form that a network's linear layers are held in; ``none`` for plain ones; several are told together."""
    return " and ".join(_forms_in(network)) or NONE


def _forms_in(network: nn.Module) -> list[str]:
    """Of the layers that ``quantize`` would take, under adapters too."""
    layers = [layer for _, layer in layers_under(network)]
    found = {layer.form for layer in layers if isinstance(layer, Quantized)}
    return sorted(found | {NONE for layer in layers if plain_class(type(layer)) is nn.Linear})


def check_form(networks: Mapping[str, nn.Module], wanted: str) -> None:
    """See that each network which is to be trained on is held as the configuration says.

    Raises:
        UserError: one is not; what is trained on decides what is learned.
    """
    for prefix, network in networks.items():
        if _forms_in(network) not in ([], [wanted]):
            what = f"is {wanted}, but the weights of {prefix}'s linear layers are {form_of(network)}"
            remedy = "load the base in that form: quantization and text_encoders of load_base"
            raise UserError(what, code="quantization.other_form", where="train.quantization", remedy=remedy)


def parameter_count(network: nn.Module) -> int:
    """Parameters of a network, however they are held."""
    held = (m.in_features * m.out_features for m in network.modules() if isinstance(m, Quantized))
    return sum(parameter.numel() for parameter in network.parameters()) + sum(held)
