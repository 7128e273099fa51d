"""Recompute the elementwise operations that a network's own code does between its layers.

A transformer scales and shifts its norms' outputs, joins the tokens of text and picture, rotates queries and keys; the
layer that follows would save each result. A result of such cheap operations on recomputable tensors is made
recomputable too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from veneer.engine.recompute import is_recomputable, make_recomputable

__all__ = ["ElementwiseRecompute", "has_elementwise_work"]

_MAX_SAVED_SHARE = 0.5
"""The share of a result's bytes that may be saved only to recompute it: scales, shifts, angles."""


def _cheap_functions() -> Iterator[object]:
    """Yield functions of one pass over their arguments that networks call between layers; none works in place."""
    for owner, names in (
        (torch, "add sub mul div neg cat stack concat sigmoid tanh square rsqrt"),
        (Tensor, "add sub mul div true_divide neg sigmoid tanh square rsqrt to float type_as bfloat16 half clone"),
        (Tensor, "contiguous reshape flatten __add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__ __neg__"),
        (functional, "silu gelu"),
    ):
        yield from (getattr(owner, name) for name in names.split())


_CHEAP = frozenset(_cheap_functions())
_SAVING_INPUT = frozenset((functional.silu, functional.gelu))
"""Those that save their input for their own gradient, so that recomputing the result saves nothing more: SwiGLU's."""


def has_elementwise_work(model: nn.Module) -> bool:
    """Tell whether watching pays: convolutional networks do little but sums between their layers, in many calls."""
    return not any(isinstance(module, nn.GroupNorm) for module in model.modules())


class ElementwiseRecompute(TorchFunctionMode):
    """A context in which cheap operations on recomputable tensors make their results recomputable."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _CHEAP and isinstance(result, Tensor) and result.requires_grad:
            _make_recomputable(result, func, (args, kwargs or {}))
        return result


def _make_recomputable(result: Tensor, func: Callable[..., Tensor], arguments: object) -> None:
    leaves, structure = tree_flatten(arguments)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    saved = [tensor.nbytes for tensor in tensors if not is_recomputable(tensor)]
    is_free = func in _SAVING_INPUT and len(tensors) == 1
    if not is_free and (len(saved) == len(tensors) or sum(saved) > _MAX_SAVED_SHARE * result.nbytes):
        return
    template = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def recompute(*tensors: Tensor) -> Tensor:
        filled = list(template)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        args, kwargs = tree_unflatten(filled, structure)
        return func(*args, **kwargs)

    make_recomputable(result, recompute, *tensors)
