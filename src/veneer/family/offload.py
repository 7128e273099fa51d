"""Offload parts of a base while nobody needs them, and restore them when somebody calls them.

On the CPU a part's weights are dropped and read from the base's files again; on a GPU they wait on the CPU. The modules
and their parameters stay the same objects, so whoever holds them need not know. An offloaded part has NaN in place of
its weights, so that nothing can be computed with it unnoticed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from veneer.errors import UserError

__all__ = ["Loader", "Offloader"]

Loader = Callable[[str], nn.Module]
"""Load a part of a base again, given its name."""


class Offloader:
    """The parts of a base that can be offloaded.

    Args:
        parts: the modules by name.
        load: loads a part again, to the same bits; None: it cannot be done, and on the CPU every part stays in memory.
    """

    def __init__(self, parts: Mapping[str, nn.Module], load: Loader | None) -> None:
        self._parts, self._load = dict(parts), load
        self._offloaded: dict[str, _Offloaded] = {}
        self._resident: set[str] = set()

    def offload(self, names: Iterable[str]) -> None:
        """Offload exactly these parts and restore all others; a part that was changed since it was loaded stays."""
        wanted = set(names)
        for name in [name for name in self._offloaded if name not in wanted]:
            self.restore(name)
        for name in wanted - self._offloaded.keys() - self._resident:
            self._offload(name)

    def restore(self, name: str) -> None:
        """Bring a part back if it is offloaded.

        Calling the part does so too; whoever asks for its device before the call restores it first.
        """
        if name in self._offloaded:
            self._offloaded[name].restore()
            del self._offloaded[name]  # not earlier: a part that could not be read is still offloaded

    def _offload(self, name: str) -> None:
        part = self._parts[name]
        offloaded = _offload(part, None if self._load is None else lambda: self._reload(name))
        if offloaded is None:
            self._resident.add(name)  # comparing with the file once is enough
            return
        self._offloaded[name] = offloaded
        # an autoencoder is never called as a whole
        for module in (part, *part.children()):
            offloaded.hooks.append(module.register_forward_pre_hook(lambda *_: self.restore(name)))

    def _reload(self, name: str) -> nn.Module:
        assert self._load is not None
        return self._load(name)


class _Offloaded:
    """A part whose weights are out of memory.

    Args:
        placeholders: what each parameter holds meanwhile.
        refill: gives each parameter its weights again.
    """

    def __init__(self, placeholders: Mapping[nn.Parameter, Tensor], refill: Callable[[], None]) -> None:
        self.hooks: list[Any] = []
        self._refill = refill
        for parameter, placeholder in placeholders.items():
            _set_data(parameter, placeholder)

    def restore(self) -> None:
        self._refill()
        for hook in self.hooks:
            hook.remove()


def _offload(part: nn.Module, load: Callable[[], nn.Module] | None) -> _Offloaded | None:
    """Offload a part in the way that its device allows; None: it has to stay."""
    parameters = list(part.parameters())
    if any(isinstance(parameter, FakeTensor) for parameter in parameters):
        return _offload_fakes(parameters)
    if all(parameter.device.type != "cpu" for parameter in parameters):
        return _offload_to_cpu(parameters)
    if load is None or not _matches_file(part, load):
        return None
    return _Offloaded({parameter: _placeholder(parameter) for parameter in parameters}, lambda: _reread(part, load()))


def _offload_to_cpu(parameters: list[nn.Parameter]) -> _Offloaded:
    devices = {parameter: parameter.device for parameter in parameters}

    def refill() -> None:
        for parameter, device in devices.items():
            _set_data(parameter, parameter.data.to(device))

    return _Offloaded({parameter: parameter.data.cpu() for parameter in parameters}, refill)


def _offload_fakes(parameters: list[nn.Parameter]) -> _Offloaded:
    """Offload an abstract model's part, which has no weights to read again."""

    def refill() -> None:
        for parameter in parameters:
            _set_data(parameter, torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device))

    return _Offloaded({parameter: _placeholder(parameter) for parameter in parameters}, refill)


def _placeholder(parameter: nn.Parameter) -> Tensor:
    """Return NaN in the shape of a parameter, with the memory of one number."""
    return torch.full((), math.nan, dtype=parameter.dtype, device=parameter.device).expand(parameter.shape)


def _set_data(parameter: nn.Parameter, data: Tensor) -> None:
    if isinstance(parameter, FakeTensor):  # has no data that could be set
        torch.utils.swap_tensors(parameter, nn.Parameter(data, requires_grad=parameter.requires_grad))
    else:
        parameter.data = data


def _matches_file(part: nn.Module, load: Callable[[], nn.Module]) -> bool:
    """Check whether a part's files still hold its weights, once they are cast as the part is."""
    try:
        stored = dict(load().named_parameters())
    except UserError:  # the files are gone, or out of reach
        return False
    own = dict(part.named_parameters())
    return own.keys() == stored.keys() and all(torch.equal(own[n].data, stored[n].data.to(own[n].dtype)) for n in own)


@torch.no_grad()
def _reread(part: nn.Module, stored: nn.Module) -> None:
    for parameter, weight in zip(part.parameters(), stored.parameters(), strict=True):
        parameter.data = weight.data.to(parameter.dtype)
