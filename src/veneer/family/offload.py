"""Parts of a base that nobody needs for a while: out of memory, and back when somebody calls them.

On the CPU a part's weights are let go and read from the base's files again; on a GPU they wait on the CPU. The modules
and their parameters stay the objects they are, so whoever holds them need not know. What a part has instead of its
numbers is NaN everywhere, so that nothing can be computed with it unnoticed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from veneer.errors import UserError

__all__ = ["Offloader"]

Loader = Callable[[str], nn.Module]
"""Loads a part of a base again, by its name."""


class Offloader:
    """The parts of a base that may leave memory.

    Args:
        parts: by name.
        load: reads one again, to the same bits; None: it cannot be done, and on the CPU all of them stay.
    """

    def __init__(self, parts: Mapping[str, nn.Module], load: Loader | None) -> None:
        self._parts, self._load = dict(parts), load
        self._away: dict[str, _Offloaded] = {}
        self._staying: set[str] = set()

    def only(self, names: Iterable[str]) -> None:
        """Let these parts leave, and bring all others back; what was changed since it was loaded stays."""
        wanted = set(names)
        for name in [name for name in self._away if name not in wanted]:
            self.wake(name)
        for name in wanted - self._away.keys() - self._staying:
            self._let_go(name)

    def _let_go(self, name: str) -> None:
        part = self._parts[name]
        absence = _absence_of(part, None if self._load is None else lambda: self._again(name))
        if absence is None:
            self._staying.add(name)  # comparing once is enough
            return
        self._away[name] = absence
        # an autoencoder is never called as a whole
        for module in (part, *part.children()):
            absence.hooks.append(module.register_forward_pre_hook(lambda *_: self.wake(name)))

    def _again(self, name: str) -> nn.Module:
        assert self._load is not None
        return self._load(name)

    def wake(self, name: str) -> None:
        """Bring a part back, if it is away; its call does so too, but what asks for its device comes before."""
        if name in self._away:
            self._away[name].end()
            del self._away[name]  # not before: what could not be read is still away


class _Offloaded:
    """One part's, from now until its end.

    Args:
        numbers: what each parameter has meanwhile.
        back: gives each its own again.
    """

    def __init__(self, numbers: Mapping[nn.Parameter, Tensor], back: Callable[[], None]) -> None:
        self.hooks: list[Any] = []
        self._back = back
        for parameter, meanwhile in numbers.items():
            _give(parameter, meanwhile)

    def end(self) -> None:
        self._back()
        for hook in self.hooks:
            hook.remove()


def _absence_of(part: nn.Module, load: Callable[[], nn.Module] | None) -> _Offloaded | None:
    """How a part can be away; None: it cannot."""
    parameters = list(part.parameters())
    if any(isinstance(parameter, FakeTensor) for parameter in parameters):
        return _of_fakes(parameters)
    if all(parameter.device.type != "cpu" for parameter in parameters):
        return _on_the_cpu(parameters)
    if load is None or not _can_be_read(part, load):
        return None
    return _Offloaded({parameter: _nothing(parameter) for parameter in parameters}, lambda: _read(part, load()))


def _on_the_cpu(parameters: list[nn.Parameter]) -> _Offloaded:
    homes = {parameter: parameter.device for parameter in parameters}

    def back() -> None:
        for parameter, device in homes.items():
            _give(parameter, parameter.data.to(device))

    return _Offloaded({parameter: parameter.data.cpu() for parameter in parameters}, back)


def _of_fakes(parameters: list[nn.Parameter]) -> _Offloaded:
    """A plan's: there are no numbers to read again."""

    def back() -> None:
        for parameter in parameters:
            _give(parameter, torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device))

    return _Offloaded({parameter: _nothing(parameter) for parameter in parameters}, back)


def _nothing(parameter: nn.Parameter) -> Tensor:
    """NaN in the shape of a parameter, with the memory of one number."""
    return torch.full((), math.nan, dtype=parameter.dtype, device=parameter.device).expand(parameter.shape)


def _give(parameter: nn.Parameter, numbers: Tensor) -> None:
    if isinstance(parameter, FakeTensor):  # has no data that could be set
        torch.utils.swap_tensors(parameter, nn.Parameter(numbers, requires_grad=parameter.requires_grad))
    else:
        parameter.data = numbers


def _can_be_read(part: nn.Module, load: Callable[[], nn.Module]) -> bool:
    """Whether what can be loaded has a part's numbers, once it is cast as the part is."""
    try:
        other = dict(load().named_parameters())
    except UserError:  # whose files are gone, or out of reach
        return False
    own = dict(part.named_parameters())
    return own.keys() == other.keys() and all(torch.equal(own[n].data, other[n].data.to(own[n].dtype)) for n in own)


@torch.no_grad()
def _read(part: nn.Module, again: nn.Module) -> None:
    for parameter, numbers in zip(part.parameters(), again.parameters(), strict=True):
        parameter.data = numbers.data.to(parameter.dtype)
