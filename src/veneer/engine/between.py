"""What a network's own code does to layers' outputs between the layers.

A transformer scales and shifts its norms' outputs, joins the tokens of text and picture, rotates queries and keys; each
result would be kept by the layer that follows. What is made of noted tensors by such cheap operations is noted too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from veneer.engine.recompute import is_noted, remember

__all__ = ["Between", "works_between"]

_SHARE = 0.5
"""Of a result's bytes, how much may be kept only to make it again: scales, shifts, angles."""


def _cheap() -> Iterator[object]:
    """Functions of one pass over their arguments, by which networks work between layers; none works in place."""
    for owner, names in (
        (torch, "add sub mul div neg cat stack concat sigmoid tanh square rsqrt"),
        (Tensor, "add sub mul div true_divide neg sigmoid tanh square rsqrt to float type_as bfloat16 half clone"),
        (Tensor, "contiguous reshape flatten __add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__ __neg__"),
        (functional, "silu gelu"),
    ):
        yield from (getattr(owner, name) for name in names.split())


_CHEAP = frozenset(_cheap())


def works_between(model: nn.Module) -> bool:
    """Whether it pays to look: convolutional networks do little but sums between their layers, and are many calls."""
    return not any(isinstance(module, nn.GroupNorm) for module in model.modules())


class Between(TorchFunctionMode):
    """While it is open, cheap operations on noted tensors note their results."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _CHEAP and isinstance(result, Tensor) and result.requires_grad:
            _note(result, func, (args, kwargs or {}))
        return result


def _note(result: Tensor, func: Callable[..., Tensor], arguments: object) -> None:
    leaves, form = tree_flatten(arguments)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    others = [tensor.nbytes for tensor in tensors if not is_noted(tensor)]
    if len(others) == len(tensors) or sum(others) > _SHARE * result.nbytes:
        return
    blanks = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def again(*tensors: Tensor) -> Tensor:
        filled = list(blanks)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        args, named = tree_unflatten(filled, form)
        return func(*args, **named)

    remember(result, again, *tensors)
