"""Frozen linear layers whose weights are held in few bits and read back for each product (Dettmers et al. 2023).

``h = W x + b`` with W as its bits have it: nothing else is rounded, the input least of all, so the gradients are those
of a plain layer with these very weights. The layer keeps neither its input nor the weights it has read; both passes
read them anew. An adapter on top stays in float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from veneer.engine.forms import NONE, Form, form_named
from veneer.engine.frozen import product_dtype
from veneer.engine.lora_linear import MatrixProduct
from veneer.errors import UserError

__all__ = ["Packed", "Quantized", "check_form", "form_of", "parameter_count", "quantize"]


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
    """A weight that was read. Whatever is computed with it is a plain tensor."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _DATA or func.__name__ in _IN_PLACE:
            what = "the weight is quantised and this is a copy of it, so nothing can be merged into it"
            raise UserError(what, remedy="load the base in full for that")
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


_DATA: tuple[Any, ...] = (cast(Any, Tensor.data).__get__, cast(Any, Tensor.data).__set__)
_IN_PLACE = {"add_", "sub_", "mul_", "div_", "addmm_", "copy_", "zero_", "fill_", "__setitem__"} | {
    f"__{operation}__" for operation in ("iadd", "isub", "imul", "itruediv")
}


class Quantized(nn.Linear):
    """A frozen linear layer whose weight is held in few bits; ``weight`` is a copy, read anew each time.

    The copy refuses to be written to, so that whoever would merge something into it hears of it. A state dict has it in
    full, as a plain layer's, so that what is saved loads anywhere.

    Args:
        layer: the plain one; its bias stays its own.
        form: how the weight shall be held.
        device: where; None: where it is.
    """

    def __init__(self, layer: nn.Linear, form: Form, device: torch.device | None = None) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.form = form.name
        parts = form.pack(layer.weight.detach().to(device or layer.weight.device))
        self._names = tuple(f"packed_{place}" for place in range(len(parts)))
        for name, part in zip(self._names, parts, strict=True):
            self.register_buffer(name, part, persistent=False)
        # is cast along with the network, and tells which dtype it has
        self.register_buffer("_like", layer.weight.detach().new_empty(0), persistent=False)
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


def _product(x: Tensor, bias: Tensor | None, packed: Packed, weight: Tensor) -> Tensor:
    dtype = product_dtype(x)
    return functional.linear(x.to(dtype), packed.read(weight, dtype), None if bias is None else bias.to(dtype))


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, packed: Packed, weight: Tensor) -> Tensor:
        ctx.packed, ctx.weight, ctx.dtype = packed, weight, x.dtype
        return _product(x, bias, packed, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:
        return torch.matmul(dy, ctx.packed.read(ctx.weight, dy.dtype)).to(ctx.dtype), None, None, None


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
        UserError: the library is not installed, or the network carries an adapter or is in another form already.
    """
    if form == NONE:
        return 0
    how, before = form_named(form), form_of([network])
    if before != NONE:
        raise UserError(f"the network's weights are {before} already", remedy="load it again")
    if any(isinstance(module, BaseTunerLayer) for module in network.modules()):
        raise UserError("the network carries an adapter", remedy="take it out first")
    places = _places(network)
    for shared in places:
        parent, name = shared[0]
        held = Quantized(getattr(parent, name), how, device)
        for parent, name in shared:
            setattr(parent, name, held)
    return len(places)


def _places(network: nn.Module) -> list[list[tuple[nn.Module, str]]]:
    """Where each linear layer hangs: in several places, where modules share it. The layers themselves are not held."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for parent in network.modules():
        for name, child in parent._modules.items():
            if type(child) is nn.Linear:
                places.setdefault(id(child), []).append((parent, name))
    return list(places.values())


def form_of(networks: Iterable[nn.Module]) -> str:
    """The form that networks' linear layers are held in; ``none`` for plain ones."""
    modules = (module for network in networks for module in network.modules())
    return next((module.form for module in modules if isinstance(module, Quantized)), NONE)


def check_form(networks: Mapping[str, nn.Module], wanted: str) -> None:
    """See that networks which are to be trained on are held as the configuration says.

    Raises:
        UserError: they are not; what is trained on decides what is learned.
    """
    found = form_of(networks.values())
    if found != wanted:
        what = f"is {wanted}, but the weights of the base's linear layers are {found}"
        raise UserError(what, where="train.quantize", remedy=f"load the base with quantize={wanted!r}")


def parameter_count(network: nn.Module) -> int:
    """Parameters of a network, however they are held."""
    held = (m.in_features * m.out_features for m in network.modules() if isinstance(m, Quantized))
    return sum(parameter.numel() for parameter in network.parameters()) + sum(held)
