"""Frozen layers whose weights are stored in few bits and read back for each product (Dettmers et al. 2023).

``h = W x + b`` with W as its bits have it: nothing else is rounded, the input least of all, so the gradients are those
of a plain layer with these very weights. The layer keeps neither its input nor the weights it has read; both passes
read them anew. An adapter on top stays in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_leaves, tree_map_only

from veneer.adapter.layers import layers_under
from veneer.adapter.peft_library import BaseTunerLayer
from veneer.engine.frozen import ConvGeometry, product_dtype
from veneer.engine.instance_forward import is_prepared
from veneer.engine.lora_function import LinearMap, MatrixProduct
from veneer.engine.peak_memory import release_freed_memory
from veneer.engine.quantization import NONE, QuantizationFormat, find_format
from veneer.errors import UserError

__all__ = [
    "PackedKernel",
    "PackedMatrix",
    "QuantizedConv2d",
    "QuantizedLayer",
    "QuantizedLinear",
    "check_quantization",
    "packed_weights",
    "parameter_count",
    "quantization_of",
    "quantize",
    "quantize_streamed",
]


class PackedMatrix(MatrixProduct):
    """The packed weight of a linear layer, as a ``LinearMap`` of :mod:`veneer.engine.lora_function`.

    Args:
        format: the format it is packed in.
        parts: its bytes.
        shape: (out, in).
    """

    def __init__(self, format: QuantizationFormat, parts: tuple[Tensor, ...], shape: torch.Size) -> None:
        self._format, self._parts, self._shape = format, parts, (shape[0], shape[1:].numel())

    def read(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """Unpack the weight (out, in); ``weight`` is a stand-in and is not looked at."""
        return self._format.unpack(self._parts, self._shape, dtype)


class PackedKernel:
    """The packed weight of a convolution, as a ``LinearMap``.

    Args:
        geometry: of the convolution.
        matrix: the weight as a matrix (out, all else).
        shape: (out, in/groups, ...).
    """

    def __init__(self, geometry: ConvGeometry, matrix: PackedMatrix, shape: torch.Size) -> None:
        self._matrix, self._shape = matrix, shape
        self.apply, self.input_gradient, self.weight_gradient = (
            geometry.apply,
            geometry.input_gradient,
            geometry.weight_gradient,
        )

    def read(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """Unpack the weight (out, in/groups, ...); ``weight`` is a stand-in and is not looked at."""
        return self._matrix.read(weight, dtype).view(self._shape)


class _UnpackedWeight(Tensor):
    """A weight that was unpacked, or a view of it; whatever else is computed with it is a plain tensor.

    Raises:
        UserError: something writes to it, which would be lost.
    """

    @classmethod
    def __torch_function__(
        cls, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        written = _written_arguments(func.__name__, args, kwargs)
        if func == _SET_DATA or any(isinstance(each, _UnpackedWeight) for each in written):
            what = "the weight is quantised and this is a copy of it, so nothing can be merged into it"
            raise UserError(what, code="quantization.weight_written", remedy="load the base in full for that")
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
            leaves = tree_leaves(args)
            storages = {leaf.untyped_storage().data_ptr() for leaf in leaves if isinstance(leaf, _UnpackedWeight)}
            return tree_map_only(Tensor, lambda each: _guard_view(each, storages), result)


def _guard_view(result: Tensor, storages: set[int]) -> Tensor:
    """Guard a result that lies in the storage of an unpacked weight, so that no view of it is written to either."""
    is_plain = type(result) is Tensor and result.layout is torch.strided
    is_view = is_plain and result.untyped_storage().data_ptr() in storages
    return result.as_subclass(_UnpackedWeight) if is_view else result


def _written_arguments(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[object]:
    """Yield what a function of this name writes to: by PyTorch's convention its first argument, or ``out``."""
    yield from tree_leaves(kwargs.get("out"))
    in_place = (name.endswith("_") and not name.endswith("__")) or name in _OPERATORS or kwargs.get("inplace") is True
    if in_place and name not in _WRITES_NOTHING:
        yield from tree_leaves((args or tuple(kwargs.values()))[0])


# reading it is harmless (peft does, to see a weight's shape): what is read is guarded as any other view
_SET_DATA: Any = cast(Any, Tensor.data).__set__
_AUGMENTED = ("add", "and", "floordiv", "lshift", "mod", "mul", "or", "pow", "rshift", "sub", "truediv", "xor")
_OPERATORS = {"__setitem__", *(f"__i{operation}__" for operation in _AUGMENTED)}
_WRITES_NOTHING = {"requires_grad_"}


class QuantizedLayer(nn.Module):
    """A frozen layer whose weight is packed; ``weight`` is a copy that is unpacked anew each time.

    The copy refuses to be written to, so that whoever would merge something into it gets an error. A state dict has the
    weight in full, as a plain layer's, so that what is saved loads anywhere. A weight that is loaded is packed, unless
    it equals the one that the layer has, whose bits are kept.

    Args:
        layer: the plain layer; its bias becomes this one's.
        format: the format that the weight is packed in.
        device: where it is packed and stays; None: where it is.
        dtype: the dtype of the weight that is unpacked; None: the layer's.
    """

    def __init__(
        self,
        layer: Any,
        format: QuantizationFormat,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Module.__init__(self)
        for name in layer.__constants__:  # its sizes, as attributes
            setattr(self, name, getattr(layer, name))
        self.format, self.weight_shape = format.name, layer.weight.shape
        parts = format.pack(layer.weight.detach().flatten(1).to(device or layer.weight.device))
        self._part_names = tuple(f"packed_{place}" for place in range(len(parts)))
        for name, part in zip(self._part_names, parts, strict=True):
            self.register_buffer(name, part, persistent=False)
        # is cast together with the network, so that it has the dtype of the weight
        self.register_buffer("_dtype_marker", layer.weight.detach().new_empty(0, dtype=dtype), persistent=False)
        self.bias = layer.bias
        self.train(layer.training)

    @property
    def matrix(self) -> PackedMatrix:
        """The packed weight as a matrix (out, all else)."""
        return PackedMatrix(find_format(self.format), self.parts, self.weight_shape)

    @property
    def linear_map(self) -> LinearMap:
        """What the layer does with its packed weight."""
        raise NotImplementedError

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The packed weight's bytes."""
        return tuple(cast(Tensor, self._buffers[name]) for name in self._part_names)

    def __getattr__(self, name: str) -> Any:
        if name != "weight":
            return super().__getattr__(name)
        weight = self._unpack()
        return weight if isinstance(weight, FakeTensor) else weight.as_subclass(_UnpackedWeight)

    def _unpack(self) -> Tensor:
        return self.linear_map.read(self.parts[0], cast(Tensor, self._buffers["_dtype_marker"]).dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Map an input to what the plain layer makes of it."""
        if torch.is_grad_enabled() and input.requires_grad:
            return cast(Tensor, cast(Any, _Product).apply(input, self.bias, self.linear_map, self.parts[0]))
        return _product(input, self.bias, self.linear_map, self.parts[0])

    def extra_repr(self) -> str:
        """Return what ``print`` shows of the layer."""
        return f"{super().extra_repr()}, format={self.format}"

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self._unpack()

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
        key, shape = f"{prefix}weight", tuple(self.weight_shape)
        if key in unexpected_keys:
            unexpected_keys.remove(key)
        if key not in state_dict:
            missing_keys.extend([key] if strict else [])
        elif tuple(state_dict[key].shape) != shape:
            error_msgs.append(f"size mismatch for {key}: {tuple(state_dict[key].shape)} in the file and {shape} here.")
        else:
            self._load_weight(state_dict[key])

    def _load_weight(self, weight: Tensor) -> None:
        """Pack another weight; packing what was unpacked gives other bits now and then, so an equal one is left."""
        own = self._unpack()
        given = weight.detach().to(own.device, own.dtype)
        if isinstance(own, FakeTensor) or torch.equal(given, own):
            return
        for own_part, part in zip(self.parts, find_format(self.format).pack(given.flatten(1)), strict=True):
            own_part.copy_(part)


class QuantizedLinear(QuantizedLayer, nn.Linear):
    """A frozen linear layer whose weight is packed."""

    @property
    def linear_map(self) -> LinearMap:
        """The product with the packed matrix."""
        return self.matrix


class QuantizedConv2d(QuantizedLayer, nn.Conv2d):
    """A frozen convolution whose weight is packed; it pads with zeros."""

    def __new__(cls, layer: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Make a plain convolution of sizes: peft makes an adapter's of the class of the frozen one."""
        return nn.Conv2d(layer, *args, **kwargs) if isinstance(layer, int) else super().__new__(cls)

    @property
    def linear_map(self) -> LinearMap:
        """The convolution with the packed kernel."""
        geometry = ConvGeometry(self.stride, cast(Any, self.padding), self.dilation, self.groups)
        return PackedKernel(geometry, self.matrix, self.weight_shape)


def _product(x: Tensor, bias: Tensor | None, linear_map: LinearMap, weight: Tensor) -> Tensor:
    dtype = product_dtype(x)
    return linear_map.apply(x.to(dtype), linear_map.read(weight, dtype), None if bias is None else bias.to(dtype))


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, linear_map: LinearMap, weight: Tensor) -> Tensor:
        ctx.linear_map, ctx.weight, ctx.dtype, ctx.shape = linear_map, weight, x.dtype, x.shape
        ctx.bias_dtype = None if bias is None else bias.dtype
        return _product(x, bias, linear_map, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        weight = ctx.linear_map.read(ctx.weight, dy.dtype)
        dx = ctx.linear_map.input_gradient(dy, weight, ctx.shape).to(ctx.dtype)
        needs_bias = ctx.needs_input_grad[1]
        return dx, _bias_gradient(dy, ctx.linear_map).to(ctx.bias_dtype) if needs_bias else None, None, None


def _bias_gradient(dy: Tensor, linear_map: LinearMap) -> Tensor:
    """Return the gradient of a bias (out,): the sum over all but the outputs, which are a kernel's second dimension."""
    return dy.transpose(0, 1).flatten(1).sum(1) if isinstance(linear_map, PackedKernel) else _rows(dy).sum(0)


def _rows(dy: Tensor) -> Tensor:
    return dy.reshape(-1, dy.shape[-1])


def quantize(network: nn.Module, format: str, device: torch.device | None = None) -> int:
    """Pack the weights of a network's layers; there is no way back but to load the network again.

    The layers are replaced one by one, so no more than one of them is there in both forms. Norms, embeddings and biases
    stay as they are, convolutions too but in a format of 16 bits, and layers of other classes than ``torch.nn.Linear``
    and ``torch.nn.Conv2d``.

    Args:
        network: changed in place; it is frozen, or will be.
        format: a key of ``FORMATS``, or ``none``.
        device: where the layers' weights are packed and stay; None: where they are.

    Returns:
        The number of layers that were replaced.

    Raises:
        UserError: the library is not installed, or the network is prepared, carries an adapter or is quantised already.
    """
    if format == NONE:
        return 0
    target = find_format(format)
    _check_can_be_quantized(network)
    layers = _layers_to_pack(network, target)
    for places in layers.values():
        _quantize_layer(places, target, device)
    return len(layers)


def _check_can_be_quantized(network: nn.Module) -> None:
    before = quantization_of(network)
    if is_prepared(network):
        remedy = "undo that, quantise it, and prepare it again"
        raise UserError("the network is prepared", code="quantization.network_prepared", remedy=remedy)
    if before != NONE:
        what, code = f"the network's weights are {before} already", "quantization.already_quantized"
        raise UserError(what, code=code, remedy="load it again")
    if any(isinstance(module, BaseTunerLayer) for module in network.modules()):
        what, code = "the network carries an adapter", "quantization.network_adapted"
        raise UserError(what, code=code, remedy="take it out first")


def packed_weights(network: nn.Module, format: str) -> list[str]:
    """Return the names of the weights that :func:`quantize` packs in a format, one a layer."""
    return [f"{path}.weight" for path in _layers_to_pack(network, find_format(format))]


def quantize_streamed(
    network: nn.Module,
    format: str,
    weights: Iterable[tuple[str, Tensor]],
    dtype: torch.dtype,
    device: torch.device | None = None,
) -> None:
    """Pack the layers of a network that has no weights yet, each as its weight arrives.

    The bits are those of :func:`quantize` on the network with all its weights, of which there is one at a time here.

    Args:
        network: its weights are on the meta device; changed in place.
        format: a key of ``FORMATS``.
        weights: each weight of :func:`packed_weights` with its name, in any order, of any floating-point dtype.
        dtype: the dtype of the weights that are unpacked.
        device: where the weights are packed and stay; None: where they are.
    """
    target, freed = find_format(format), 0
    layers = _layers_to_pack(network, target)
    for name, weight in weights:
        places = layers[name.removesuffix(".weight")]
        parent, own_name = places[0]
        getattr(parent, own_name).weight = nn.Parameter(weight, requires_grad=False)
        _quantize_layer(places, target, device, dtype)
        freed += weight.nbytes
        if freed > _RELEASE_AFTER:  # temporary memory lies between packed weights, so the heap would keep it
            release_freed_memory()
            freed = 0


_RELEASE_AFTER = 32 * 2**20
_Places: TypeAlias = "list[tuple[nn.Module, str]]"
"""The parents of a layer with its name in each; several where modules share it."""


def _quantize_layer(
    places: _Places, format: QuantizationFormat, device: torch.device | None, dtype: torch.dtype | None = None
) -> None:
    parent, name = places[0]
    layer = getattr(parent, name)
    quantized = _CLASSES[type(layer)](layer, format, device, dtype)
    for parent, name in places:
        setattr(parent, name, quantized)


_CLASSES: Mapping[type[nn.Module], type[QuantizedLayer]] = {nn.Linear: QuantizedLinear, nn.Conv2d: QuantizedConv2d}


def _layers_to_pack(network: nn.Module, format: QuantizationFormat) -> dict[str, _Places]:
    """Find the places of each layer that a format packs by its first path; the layers themselves are not held."""
    paths: dict[int, str] = {}
    layers: dict[str, _Places] = {}
    for prefix, parent in network.named_modules():
        for name, child in parent._modules.items():
            if type(child) is nn.Linear or (format.packs_kernels and _pads_with_zeros(child)):
                path = paths.setdefault(id(child), f"{prefix}.{name}" if prefix else name)
                layers.setdefault(path, []).append((parent, name))
    return layers


def _pads_with_zeros(layer: nn.Module | None) -> bool:
    is_plain = type(layer) is nn.Conv2d and layer.padding_mode == "zeros"
    return is_plain and not isinstance(cast(nn.Conv2d, layer).padding, str)


def quantization_of(network: nn.Module) -> str:
    """Return the format of a network's linear layers; ``none`` for plain ones, several joined by "and"."""
    return " and ".join(_formats_in(network)) or NONE


def _formats_in(network: nn.Module) -> list[str]:
    """List the formats of the layers that ``quantize`` would take, under adapters too."""
    layers = [layer for _, layer in layers_under(network)]
    formats = {layer.format for layer in layers if isinstance(layer, QuantizedLayer)}
    return sorted(formats | {NONE for layer in layers if type(layer) is nn.Linear})


def check_quantization(networks: Mapping[str, nn.Module], expected: str) -> None:
    """Check that each network that is to be trained on is quantised as the configuration says.

    Raises:
        UserError: one is not; the base that an adapter is trained on decides what it learns.
    """
    for name, network in networks.items():
        if _formats_in(network) not in ([], [expected]):
            what = f"is {expected}, but the weights of {name}'s linear layers are {quantization_of(network)}"
            remedy = "load the base in that format: quantization and text_encoders of load_base"
            raise UserError(what, code="quantization.other_format", where="train.quantization", remedy=remedy)


def parameter_count(network: nn.Module) -> int:
    """Count the parameters of a network, packed ones too."""
    packed = (math.prod(m.weight_shape) for m in network.modules() if isinstance(m, QuantizedLayer))
    return sum([*packed, *(parameter.numel() for parameter in network.parameters())])
