"""The engine's one door: a network that trains with less memory, and the same network again."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import nn

from veneer.engine.between import Between, works_between
from veneer.engine.layers import OWN
from veneer.engine.precision import recompute_blocks
from veneer.engine.saving import Saving
from veneer.engine.standing import is_prepared, plain_class
from veneer.errors import UserError

__all__ = ["MEMORY", "Memory", "Prepared", "prepare"]

Memory: TypeAlias = Literal["exact", "lean", "leaner", "checkpoint"]
"""How little is kept for the backward pass, from all that autograd asks for to the inputs of blocks alone."""
MEMORY: tuple[Memory, ...] = get_args(Memory)

_HOOKS = "_require_grads_hooks"
_SWITCHES = ("gradient_checkpointing", "_gradient_checkpointing_func", _HOOKS, "_require_grads_hook")
"""What the models' own checkpointing sets on their blocks."""


def prepare(model: nn.Module, memory: Memory = "lean") -> Prepared:
    """Let a network keep less for the backward pass; its outputs and gradients stay those it has, up to rounding.

    Any network of diffusers or transformers, before or after peft's adapters are put in, as long as most of it is
    frozen: the trainable parts are left as they are. Without gradients, its outputs keep their bits.

    ``exact``: autograd as it is. ``lean``: nothing is kept that is never read, that can be made again by a norm or an
    activation, or that is kept elsewhere. ``leaner``: linear layers' outputs are made again as well, where their
    inputs are there. ``checkpoint``: lean, and each block is computed again in the backward pass.

    Args:
        model: the whole network, the module that is called; it is changed in place until ``undo``.
        memory: the level.

    Raises:
        UserError: the network is prepared already, or it has no blocks to compute again.
    """
    if memory not in MEMORY:
        raise UserError(f"memory is {memory!r}", remedy=f"use {', '.join(MEMORY)}")
    if is_prepared(model):
        raise UserError("the network is prepared already", remedy="undo that first")
    return Prepared(model, memory)


class Prepared:
    """A network at a level of memory; made by :func:`prepare`.

    Attributes:
        memory: the level.
    """

    def __init__(self, model: nn.Module, memory: Memory) -> None:
        self.memory = memory
        self._model: nn.Module | None = model
        self._blocks: _Attributes = []
        self._hooks: list[Any] = []
        if memory == "exact":
            return
        if memory == "checkpoint":
            self._blocks = _recompute(model)
        for module in model.modules():
            module.__class__ = OWN.get(type(module), type(module))
        opening = _Opening(products=memory == "leaner", between=works_between(model))
        self._hooks = [
            model.register_forward_pre_hook(opening.open),
            model.register_forward_hook(opening.close, always_call=True),
        ]

    def undo(self) -> None:
        """Make the network what it was; adapters put in meanwhile stay. A second call does nothing."""
        if self._model is None:
            return
        model, self._model = self._model, None
        for hook in self._hooks:
            hook.remove()
        for module in model.modules():
            module.__class__ = plain_class(type(module))
        _restore(self._blocks)


class _Opening:
    """Opens a ``Saving`` for each call of a network that wants gradients."""

    def __init__(self, products: bool, between: bool) -> None:
        self._products, self._between = products, between
        self._local = threading.local()

    def open(self, module: nn.Module, arguments: object) -> None:
        stack = ExitStack()
        if torch.is_grad_enabled():
            stack.enter_context(Saving(self._products))
            if self._between:
                stack.enter_context(Between())
        self._opened().append(stack)

    def close(self, module: nn.Module, arguments: object, output: object) -> None:
        self._opened().pop().close()

    def _opened(self) -> list[ExitStack]:
        """Of this thread's calls, the innermost last."""
        if not hasattr(self._local, "opened"):
            self._local.opened = []
        opened: list[ExitStack] = self._local.opened
        return opened

    def __reduce__(self) -> tuple[type[_Opening], tuple[bool, bool]]:
        """Copied and pickled with the network, without the calls that are under way."""
        return _Opening, (self._products, self._between)


_Attributes: TypeAlias = "list[tuple[nn.Module, dict[str, Any]]]"


def _recompute(model: nn.Module) -> _Attributes:
    """Turn block checkpointing on; return what every block had before."""
    before = [(module, _switches(module)) for module in model.modules()]
    try:
        recompute_blocks(model)
    except (AttributeError, ValueError) as fault:
        raise UserError(f"{type(model).__name__} has no blocks to compute again", remedy="use leaner") from fault
    for module, had in before:
        if _HOOKS not in had:
            # transformers makes embeddings require a gradient, which this form of checkpointing does not need
            for hook in vars(module).get(_HOOKS, ()):
                hook.remove()
    return before


def _switches(module: nn.Module) -> dict[str, Any]:
    return {name: vars(module)[name] for name in _SWITCHES if name in vars(module)}


def _restore(before: _Attributes) -> None:
    for module, had in before:
        for name in _SWITCHES:
            vars(module).pop(name, None)
        vars(module).update(had)
