"""Offload parts of a base while nobody needs them, and restore them when somebody calls them.

On the CPU a part's weights are dropped and read from the base's files again; on a GPU they wait on the CPU. A part that
was made without weights is read when it is first called, and dropped and read again on a GPU too. The modules and their
parameters stay the same objects, so whoever holds them need not know. An offloaded part has NaN in place of its
weights, so that nothing can be computed with it unnoticed; writing to it in place is an error of PyTorch's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from veneer.engine.peak_memory import release_freed_memory
from veneer.engine.placeholders import is_placeholder, placeholder
from veneer.engine.quantized import QuantizedLayer
from veneer.errors import UserError

__all__ = ["Loader", "Offloader", "without_memory"]

Loader = Callable[[str], nn.Module]
"""Load a part of a base again, given its name."""


class Offloader:
    """The parts of a base that can be offloaded.

    Args:
        parts: the modules by name.
        load: loads a part again, to the same bits; None: it cannot be done, and on the CPU every part stays in memory.

    Parts that were made by :func:`without_memory` are offloaded from the beginning.
    """

    def __init__(self, parts: Mapping[str, nn.Module], load: Loader | None) -> None:
        self._parts, self._load = dict(parts), load
        self._offloaded: dict[str, _Offloaded] = {}
        self._resident: set[str] = set()
        weights = {name: _weights_of(part) for name, part in parts.items()}
        self._on_demand = {name: _OnDemand(own) for name, own in weights.items() if _is_unread(own.values())}
        for name in self._on_demand:
            self._enter(name, self._on_demand[name].drop(partial(self._reload, name)))

    def __deepcopy__(self, memo: dict[int, Any]) -> Offloader:
        """Return the offloader of copied parts; all of them count as in memory there."""
        memo[id(self)] = twin = Offloader({}, self._load)
        twin._parts = copy.deepcopy(self._parts, memo)
        return twin

    @property
    def unread(self) -> frozenset[str]:
        """The names of the parts that are read on demand, and are not in memory now."""
        return frozenset(self._offloaded.keys() & self._on_demand.keys())

    def offload(self, names: Iterable[str]) -> None:
        """Offload exactly these parts and restore all others; a part that was changed since it was loaded stays.

        What leaves does so before anything comes back, so that they need not fit into memory together.
        """
        wanted = set(names)
        for name in wanted - self._offloaded.keys() - self._resident:
            self._offload(name)
        for name in [name for name in self._offloaded if name not in wanted]:
            self.restore(name)

    def restore(self, name: str) -> None:
        """Bring a part back if it is offloaded.

        Calling the part does so too; whoever asks for its device before the call restores it first.
        """
        if name in self._offloaded:
            self._offloaded[name].restore()
            del self._offloaded[name]  # not earlier: a part that could not be read is still offloaded

    def restore_others(self, names: Iterable[str]) -> None:
        """Bring all parts back but these, which stay where they are."""
        for name in self._offloaded.keys() - set(names):
            self.restore(name)

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Let parts that are read on demand have another device and dtype once they are back."""
        for name in self.unread:
            self._on_demand[name].to(device, dtype)
            for buffer in self._parts[name].buffers():
                if not is_placeholder(buffer):
                    buffer.data = buffer.data.to(device, dtype if buffer.is_floating_point() else buffer.dtype)

    def _offload(self, name: str) -> None:
        part, load = self._parts[name], None if self._load is None else partial(self._reload, name)
        if name not in self._on_demand:
            offloaded = _offload(part, load)
        else:
            offloaded = self._on_demand[name].drop(partial(self._reload, name))
        if offloaded is None:
            self._resident.add(name)  # comparing with the file once is enough
            return
        self._enter(name, offloaded)

    def _enter(self, name: str, offloaded: _Offloaded | None) -> None:
        assert offloaded is not None
        self._offloaded[name] = offloaded
        part = self._parts[name]
        # an autoencoder is never called as a whole
        for module in (part, *part.children()):
            offloaded.hooks.append(module.register_forward_pre_hook(_Restore(self, name)))

    def _reload(self, name: str) -> nn.Module:
        assert self._load is not None
        return self._load(name)


class _Restore:
    """A hook that restores a part; in a copy of the part it does so in the copy.

    Args:
        offloader: which has the part.
        name: of the part.
    """

    def __init__(self, offloader: Offloader, name: str) -> None:
        self._offloader, self._name = offloader, name

    def __call__(self, *_: object) -> None:
        self._offloader.restore(self._name)


class _Offloaded:
    """A part whose weights are out of memory.

    Args:
        tensors: the part's weights.
        refill: gives each its numbers again.
        kept: what they hold meanwhile; None: placeholders.
    """

    def __init__(
        self, tensors: Collection[Tensor], refill: Callable[[], None], kept: Sequence[Tensor] | None = None
    ) -> None:
        self.hooks: list[Any] = []
        self._refill = refill
        held = kept or [placeholder(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors]
        for tensor, data in zip(tensors, held, strict=True):
            _set_data(tensor, data)

    def restore(self) -> None:
        self._refill()
        for hook in self.hooks:
            hook.remove()


class _OnDemand:
    """The weights of a part that was made without them: they are read when they are needed, and dropped afterwards.

    They are held here because an adapter that is put in meanwhile gives the part's layers other names.

    Args:
        weights: placeholders, by name.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = weights
        self._read: list[int] | None = None  # what they were when they were read

    def drop(self, load: Callable[[], nn.Module]) -> _Offloaded | None:
        """Put placeholders in the weights' place; None: they were changed since they were read."""
        if self._read is not None and self._read != _checksum(self._weights.values()):
            return None
        offloaded = _Offloaded(self._weights.values(), partial(self._fill, load))
        release_freed_memory()
        return offloaded

    def _fill(self, load: Callable[[], nn.Module]) -> None:
        _fill(self._weights, load())
        self._read = _checksum(self._weights.values())

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        for tensor in self._weights.values():
            own = dtype if tensor.is_floating_point() else tensor.dtype
            tensor.data = placeholder(tensor.shape, own, device)


def _offload(part: nn.Module, load: Callable[[], nn.Module] | None) -> _Offloaded | None:
    """Offload a part in the way that its device allows; None: it has to stay."""
    weights = _weights_of(part)
    if any(isinstance(tensor, FakeTensor) for tensor in weights.values()):
        return _offload_fakes(weights.values())
    if all(tensor.device.type != "cpu" for tensor in weights.values()):
        return _offload_to_cpu(weights.values())
    if load is None or not _matches_file(weights, load):
        return None
    return _Offloaded(weights.values(), lambda: _fill(weights, load()))


def _offload_to_cpu(tensors: Collection[Tensor]) -> _Offloaded:
    devices = {tensor: tensor.device for tensor in tensors}
    kept = [tensor.data.cpu() for tensor in tensors]

    def refill() -> None:
        for tensor, device in devices.items():
            _set_data(tensor, tensor.data.to(device))

    return _Offloaded(tensors, refill, kept)


def _offload_fakes(tensors: Collection[Tensor]) -> _Offloaded:
    """Offload an abstract model's part, which has no weights to read again."""

    def refill() -> None:
        for tensor in tensors:
            _set_data(tensor, torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device))

    return _Offloaded(tensors, refill)


def without_memory(network: nn.Module, device: torch.device | None, dtype: torch.dtype) -> nn.Module:
    """Give a network on the meta device placeholders in place of its weights, to be read when it is first called.

    Args:
        network: changed in place; what is not among the weights in its files keeps its values.
        device: where its weights will be; None: the CPU.
        dtype: of those that are not packed.
    """
    made: dict[int, Tensor] = {}

    def placed(tensor: Tensor) -> Tensor:
        own = dtype if tensor.is_floating_point() else tensor.dtype
        if id(tensor) not in made:
            empty = placeholder(tensor.shape, own, device or torch.device("cpu"))
            is_parameter = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
        return made[id(tensor)]

    for module in network.modules():
        for name, parameter in module._parameters.items():
            module._parameters[name] = None if parameter is None else placed(parameter)  # type: ignore[assignment]
        for name, buffer in module._buffers.items():
            if buffer is not None and (buffer.is_meta or _is_stored(module, name)):
                module._buffers[name] = placed(buffer)
    return network


def _weights_of(part: nn.Module) -> dict[str, Tensor]:
    """Return what of a part is in its files, packed weights too, by name; what modules share once."""
    found = dict[str, Tensor](part.named_parameters())
    for path, module in part.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and _is_stored(module, name):
                found[f"{path}.{name}"] = buffer
    return found


def _is_stored(module: nn.Module, buffer: str) -> bool:
    """Return whether a buffer of a module is read from its files."""
    if isinstance(module, QuantizedLayer):
        return buffer.startswith("packed_")
    return buffer not in module._non_persistent_buffers_set


def _is_unread(weights: Collection[Tensor]) -> bool:
    return any(map(is_placeholder, weights)) and not any(isinstance(weight, FakeTensor) for weight in weights)


def _set_data(tensor: Tensor, data: Tensor) -> None:
    if not isinstance(tensor, FakeTensor):
        tensor.data = data
    elif isinstance(tensor, nn.Parameter):  # a fake one has no data that could be set
        torch.utils.swap_tensors(tensor, nn.Parameter(data, requires_grad=tensor.requires_grad))
    else:
        torch.utils.swap_tensors(tensor, data)


def _matches_file(weights: Mapping[str, Tensor], load: Callable[[], nn.Module]) -> bool:
    """Check whether a part's files still hold its weights, once they are cast as the part is."""
    try:
        stored = _weights_of(load())
    except UserError:  # the files are gone, or out of reach
        return False
    if weights.keys() != stored.keys():
        return False
    return all(torch.equal(own.data, stored[name].data.to(own.dtype)) for name, own in weights.items())


@torch.no_grad()
def _fill(weights: Mapping[str, Tensor], loaded: nn.Module) -> None:
    """Give weights the numbers of the same network, loaded."""
    stored = _weights_of(loaded)
    for name, tensor in weights.items():
        tensor.data = stored.pop(name).data.to(tensor.device, tensor.dtype)


@torch.no_grad()
def _checksum(tensors: Iterable[Tensor]) -> list[int]:
    """Return a sum over the bits of each tensor: another number wherever one of its numbers was changed."""
    return [sum(int(part.sum(dtype=torch.int64)) for part in _bits(tensor).split(_AT_ONCE)) for tensor in tensors]


_AT_ONCE = 2**20
"""Numbers that are summed at a time: they are widened for it."""


def _bits(tensor: Tensor) -> Tensor:
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().contiguous().flatten().view(kinds[tensor.element_size()])
