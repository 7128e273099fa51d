"""Count the bytes that a forward pass saves for the backward pass, in two ways."""

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

__all__ = ["saved_bytes_by_layer", "saved_tensor_bytes"]


class _StorageRecorder(TorchDispatchMode):
    """A context that records every storage that an operation makes."""

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
        return [storage for reference in self._storages.values() if (storage := reference()) is not None]


def saved_tensor_bytes(forward: Callable[[], Tensor]) -> int:
    """Count the bytes of all storages made by ``forward`` that are alive while only its result is held.

    What is alive is counted, whether autograd, a function of one's own or a hook saves it.
    """
    gc.collect()
    with _StorageRecorder() as recorder:
        result = forward()
    gc.collect()
    own = result.untyped_storage()
    return sum(storage.nbytes() for storage in recorder.alive() if storage is not own)


def saved_bytes_by_layer(forward: Callable[[], Tensor], weights: Iterable[Tensor]) -> dict[str, int]:
    """Count the bytes that autograd saves, by the class of the layer that asks first; largest first.

    Args:
        forward: a forward pass without hooks of its own.
        weights: tensors that are not counted, for they are there anyway.
    """
    seen = {weight.untyped_storage()._cdata for weight in weights}
    bytes_by: Counter[str] = Counter()
    inside: list[str] = []

    def pack(tensor: Tensor) -> Tensor:
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
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor))
        result = forward()
    del result
    return dict(bytes_by.most_common())
