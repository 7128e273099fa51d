"""Results of operations on tensors without data, made from what the same operation gave for like arguments before.

Of a tensor without data an operation needs the shape, strides, dtype and device, and gives no more. PyTorch's
``FakeTensorMode`` finds out what it gives, and remembers it too; but it asks so much of each argument that most of a
rehearsal's time would go into that. A base has few kinds of layer and many of each, so nine operations of ten are known
already, and are answered here without asking it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

__all__ = ["KnownResults"]

_UNKNOWABLE = frozenset((torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.inplace_view))
"""Operations whose result depends on data, or that change the shape of an argument."""
_IN_PLACE = frozenset(("copy_", "fill_", "normal_", "uniform_", "zero_"))
"""Operations that return their first argument as it was, beside those that go element by element."""
_PLAIN = frozenset(
    (
        bool,
        int,
        float,
        complex,
        str,
        type(None),
        torch.dtype,
        torch.device,
        torch.layout,
        torch.memory_format,
    )
)
"""Types of arguments that are compared by value; what else is no tensor makes a result unknowable."""

_Key = tuple[object, ...]
_Maker = Callable[[FakeTensorMode, Sequence[Any]], Any]
"""Makes a result from the mode and the arguments."""


class _Form(NamedTuple):
    """What a tensor without data is.

    Attributes:
        shape: sizes.
        stride: of each axis, in elements.
        offset: of the first element in the storage.
        dtype: of its numbers.
        device: that it would be on.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    device: torch.device


class KnownResults:
    """What operations gave in one mode, or in any before.

    Args:
        mode: makes tensors without data.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode

    def call(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return what an operation gives for its arguments."""
        with torch._C.DisableTorchFunctionSubclass():
            key = _key(func, args, kwargs)
            if key is None:
                return func(*args, **kwargs)
            maker = _MAKERS.get(key)
            if maker is not None:
                return maker(self._mode, args)
            result = func(*args, **kwargs)
            if key not in _MAKERS:
                _MAKERS[key] = _tried_maker(self._mode, func, args, result)
            return result


_MAKERS: dict[_Key, _Maker | None] = {}
"""What makes each result that is known, and None for what cannot be told from the key. PyTorch's memory is as wide."""


def _key(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Key | None:
    """Return all that a result depends on; None: there may be more."""
    key: list[object] = [func, torch.get_default_dtype()]
    if torch.is_inference_mode_enabled() or not _add_all(key, args):
        return None
    return tuple(key) if not kwargs or (_add_all(key, kwargs) and _add_all(key, kwargs.values())) else None


def _add_all(key: list[object], values: Any) -> bool:
    """Add what values are to a key; tell whether that is all."""
    for value in values:
        kind = type(value)
        if kind is FakeTensor:
            if value.constant is not None:
                return False
            key.append(_form(value))
        elif kind in _PLAIN:
            key += (kind, value)
        elif kind is tuple or kind is list:
            key.append(len(value))
            if not _add_all(key, value):
                return False
        else:
            return False
    return True


def _form(tensor: FakeTensor) -> _Form:
    return _Form(tensor.shape, tensor.stride(), int(tensor.storage_offset()), tensor.dtype, tensor.fake_device)


def _tried_maker(mode: FakeTensorMode, func: Any, args: Sequence[Any], result: Any) -> _Maker | None:
    """Return what makes the same result, as :func:`_maker` does; None where this release of PyTorch has other insides.

    A tensor without data is made of parts that PyTorch promises nothing of. Every maker makes one here, and compares it
    with what it has to be, before it is taken.
    """
    try:
        return _maker(mode, func, args, result)
    except (AttributeError, RuntimeError, TypeError):
        return None


def _maker(mode: FakeTensorMode, func: Any, args: Sequence[Any], result: Any) -> _Maker | None:
    """Return what makes the same result of arguments of the same form; None: it cannot be made."""
    if not isinstance(func, torch._ops.OpOverload) or not _UNKNOWABLE.isdisjoint(func.tags):
        return None
    if type(result) is FakeTensor:
        return _maker_of_one(mode, func, args, result)
    if not isinstance(result, tuple | list) or not any(isinstance(one, Tensor) for one in result):
        return None
    makers = [_maker_of_one(mode, func, args, one) for one in result]
    if any(maker is None for maker in makers):
        return None
    sequence = type(result)
    known = cast(Sequence[_Maker], makers)
    return lambda mode, args: sequence(maker(mode, args) for maker in known)


def _maker_of_one(mode: FakeTensorMode, func: Any, args: Sequence[Any], result: Any) -> _Maker | None:
    if result is None or type(result) is int:
        return lambda mode, args: result
    if type(result) is not FakeTensor or result.constant is not None:
        return None
    if args and result is args[0]:
        is_kept = torch.Tag.pointwise in func.tags or func.overloadpacket.__name__ in _IN_PLACE
        return _first_argument if is_kept else None
    if result.requires_grad:
        return None
    maker = _view_maker(result) if func.is_view else _new_tensor_maker(result)
    shares = [tensor is args[0] for tensor in _tensors(args) if _share_storage(tensor, result)]
    if shares != ([True] if func.is_view else []):
        return None
    return maker if _are_alike(maker(mode, args), result) else None


def _first_argument(_: FakeTensorMode, args: Sequence[Any]) -> Any:
    return args[0]


def _new_tensor_maker(result: FakeTensor) -> _Maker:
    """Return what makes a tensor with a storage of its own."""
    shape, stride, dtype, device, state = *_form(result)[:2], result.dtype, result.fake_device, dict(vars(result))

    def make(mode: FakeTensorMode, _: Sequence[Any]) -> Any:
        with torch._C._DisableTorchDispatch():
            empty = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
        return _without_data(empty, device, mode, state)

    return make


def _view_maker(result: FakeTensor) -> _Maker:
    """Return what makes a view of the first argument."""
    form, state = _form(result), dict(vars(result))
    shape, stride, offset, dtype, device = form

    def make(mode: FakeTensorMode, args: Sequence[Any]) -> Any:
        with torch._C._DisableTorchDispatch():
            view = torch.empty_strided((0,), (1,), dtype=dtype, device="meta")
            view.set_(args[0].untyped_storage(), offset, shape, stride)
        return _without_data(view, device, mode, state)

    return make


def _without_data(meta: Tensor, device: torch.device, mode: FakeTensorMode, state: Mapping[str, Any]) -> Any:
    """Return a tensor as ``FakeTensor`` makes it, with the state of one that it made; it takes its time over that."""
    make: Any = Tensor._make_subclass
    tensor = make(FakeTensor, meta, False, dispatch_device=True, device_for_backend_keys=device)
    attributes = vars(tensor)
    attributes.update(state)
    attributes["fake_mode"] = mode
    return tensor


def _tensors(values: Sequence[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)


def _share_storage(one: Tensor, other: Tensor) -> bool:
    return bool(one.untyped_storage()._cdata == other.untyped_storage()._cdata)


def _are_alike(one: FakeTensor, other: FakeTensor) -> bool:
    """Tell whether one tensor without data cannot be told from another."""
    keys: Any = torch._C._dispatch_key_set
    same_form = _form(one) == _form(other) and keys(one) == keys(other) and vars(one).keys() == vars(other).keys()
    return same_form and one.untyped_storage().nbytes() == other.untyped_storage().nbytes()
