"""The engine's one door: a network that trains with less memory, and the same network again."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from types import MethodType
from typing import Any, Literal, TypeAlias, get_args
from weakref import ref

import torch
from torch import nn

from veneer.engine.between import Between, works_between
from veneer.engine.class_swap import FORWARD, is_prepared, plain_class
from veneer.engine.layers import OWN
from veneer.engine.precision import recompute_blocks
from veneer.engine.recompute import Saving, is_overheard
from veneer.errors import UserError

__all__ = ["MEMORY", "Memory", "Prepared", "prepare", "undo"]

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

    There is no second derivative through it: who asks for one (``create_graph``) hears of it in an error.

    Args:
        model: the whole network, the module that is called; it is changed in place until ``undo``.
        memory: the level.

    Raises:
        UserError: the network is prepared already, or it has no blocks to compute again.
    """
    if memory not in MEMORY:
        raise UserError(f"memory is {memory!r}", remedy=f"use {', '.join(MEMORY)}")
    if is_prepared(model):
        raise UserError("the network is prepared already", remedy="undo that first: veneer.engine.undo(network)")
    if memory != "exact":
        if memory == "checkpoint":
            _recompute(model)
        for module in model.modules():
            module.__class__ = OWN.get(type(module), type(module))
        before = vars(model).get("forward")
        vars(model)["forward"] = vars(model)[FORWARD] = _Forward(
            model, memory == "leaner", works_between(model), before
        )
    return Prepared(model, memory)


def undo(network: nn.Module) -> None:
    """Make a network what it was before :func:`prepare`, whoever has the handle; a copy of a prepared one as well.

    Adapters stay. Of a network that is not prepared nothing is changed.
    """
    for module in network.modules():
        module.__class__ = plain_class(type(module))
        _restore(module)
        forward = vars(module).pop(FORWARD, None)
        if forward is not None:
            forward.retire()


class Prepared:
    """A network at a level of memory; made by :func:`prepare`.

    Attributes:
        memory: the level.
    """

    def __init__(self, model: nn.Module, memory: Memory) -> None:
        self.memory = memory
        self._model: nn.Module | None = model

    def undo(self) -> None:
        """Make the network what it was; adapters put in meanwhile stay. A second call does nothing."""
        if self._model is not None:
            model, self._model = self._model, None
            undo(model)


class _Forward:
    """A prepared network's ``forward``: the one it had, with a ``Saving`` open if gradients are wanted.

    It is no pair of hooks, for PyTorch calls none when a forward pass is interrupted (Ctrl-C), and what is open would
    stay so. Who wraps a network's ``forward`` meanwhile keeps this one, which does nothing of its own after ``undo``.

    Args:
        model: the network; it is not held, so that it is freed when nobody else holds it.
        products: of ``Saving``.
        between: whether to look at what is done between layers.
        before: what hung on the network as ``forward``, of somebody else's; None: it was its class's.
    """

    def __init__(self, model: nn.Module, products: bool, between: bool, before: Any) -> None:
        self._model = ref(model)
        self._products, self._between, self._before = products, between, before
        self._retired = False

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        with ExitStack() as stack:
            if not self._retired and torch.is_grad_enabled() and not is_overheard():
                stack.enter_context(Saving(self._products))
                if self._between:
                    stack.enter_context(Between())
            return self._plain()(*arguments, **named)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._plain())

    def _plain(self) -> Callable[..., Any]:
        model = self._model()
        assert model is not None
        return MethodType(type(model).forward, model) if self._before is None else self._before

    def retire(self) -> None:
        """Put back what was there before, if nobody has put something over this."""
        self._retired, model = True, self._model()
        if model is None or vars(model).get("forward") is not self:
            return
        del vars(model)["forward"]
        if self._before is not None:
            vars(model)["forward"] = self._before

    def __reduce__(self) -> tuple[type[_Forward], tuple[Any, ...], dict[str, Any]]:
        """Copied and pickled with the network, for the copy."""
        return _Forward, (self._model(), self._products, self._between, self._before), {"_retired": self._retired}


_HAD = "_veneer_had"


def _recompute(model: nn.Module) -> None:
    """Turn block checkpointing on; every block notes what it had before."""
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
        vars(module)[_HAD] = had


def _switches(module: nn.Module) -> dict[str, Any]:
    return {name: vars(module)[name] for name in _SWITCHES if name in vars(module)}


def _restore(module: nn.Module) -> None:
    had = vars(module).pop(_HAD, None)
    if had is None:
        return
    for name in _SWITCHES:
        vars(module).pop(name, None)
    vars(module).update(had)
