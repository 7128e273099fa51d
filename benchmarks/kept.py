"""Bytes that a forward pass leaves behind for the backward pass, counted two ways."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["kept_by_layer", "kept_bytes"]


class _Made(TorchDispatchMode):
    """Notes every storage that an operation makes, whoever holds it then."""

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        self._storages: dict[int, ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and id(leaf.untyped_storage()) not in given:
                storage = leaf.untyped_storage()
                self._storages[id(storage)] = ref(storage)
        return result

    def alive(self) -> list[torch.UntypedStorage]:
        return [storage for held in self._storages.values() if (storage := held()) is not None]


def kept_bytes(forward: Callable[[], Tensor]) -> int:
    """Bytes of all storages made by ``forward`` that are alive while only its result is held.

    However they are kept, by autograd, by a function of one's own or by a hook: what is alive is counted.
    """
    gc.collect()
    with _Made() as made:
        result = forward()
    gc.collect()
    own = result.untyped_storage()
    return sum(storage.nbytes() for storage in made.alive() if storage is not own)


def kept_by_layer(forward: Callable[[], Tensor], weights: Iterable[Tensor]) -> dict[str, int]:
    """What autograd keeps, by the class of the layer that asks first; largest first.

    Args:
        forward: with no hooks of its own.
        weights: are kept anyway.
    """
    seen = {weight.untyped_storage()._cdata for weight in weights}
    bytes_by: Counter[str] = Counter()
    inside: list[str] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            bytes_by[inside[-1] if inside else "outside"] += storage.nbytes()
        return tensor

    def enter(module: nn.Module, arguments: object) -> None:
        inside.append(type(module).__name__)

    def leave(module: nn.Module, arguments: object, output: object) -> None:
        inside.pop()

    with ExitStack() as stack:
        stack.callback(register_module_forward_pre_hook(enter).remove)
        stack.callback(register_module_forward_hook(leave).remove)
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor))
        result = forward()
    del result
    return dict(bytes_by.most_common())
