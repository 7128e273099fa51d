"""Prepare a network to train with less memory, and undo it: the entry point of the engine."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from types import MethodType
from typing import Any, Literal, TypeAlias, get_args
from weakref import ref

import torch
from torch import nn

from veneer.engine.class_swap import FORWARD, is_prepared, original_class
from veneer.engine.elementwise import ElementwiseRecompute, has_elementwise_work
from veneer.engine.layers import REPLACEMENTS
from veneer.engine.precision import enable_gradient_checkpointing
from veneer.engine.recompute import RecomputeContext, has_outer_hooks
from veneer.errors import UserError

__all__ = ["MEMORY_LEVELS", "MemoryLevel", "PreparedNetwork", "prepare", "undo"]

MemoryLevel: TypeAlias = Literal["exact", "lean", "leaner", "checkpoint"]
"""How little is saved for the backward pass, from all that autograd asks for to the inputs of blocks alone."""
MEMORY_LEVELS: tuple[MemoryLevel, ...] = get_args(MemoryLevel)

_HOOKS = "_require_grads_hooks"
_SWITCHES = ("gradient_checkpointing", "_gradient_checkpointing_func", _HOOKS, "_require_grads_hook")
"""Attributes that the models' own checkpointing sets on their blocks."""


def prepare(model: nn.Module, memory: MemoryLevel = "lean") -> PreparedNetwork:
    """Let a network save less for the backward pass; its outputs and gradients stay the same up to rounding.

    Any network of diffusers or transformers, before or after peft's adapters are put in, as long as most of it is
    frozen: the trainable parts are left as they are. Without gradients, its outputs keep their bits.

    ``exact``: autograd as it is. ``lean``: nothing is saved that is never read, that a norm or an activation
    recomputes, or that is saved elsewhere. ``leaner``: linear layers' outputs are recomputed as well, where their
    inputs are there. ``checkpoint``: lean, and each block is recomputed in the backward pass.

    There is no second derivative through it: whoever asks for one (``create_graph``) gets PyTorch's error.

    Args:
        model: the whole network, the module that is called; it is changed in place until ``undo``.
        memory: the level.

    Raises:
        UserError: the level is unknown, the network is prepared already, or it has no blocks to recompute.
    """
    if memory not in MEMORY_LEVELS:
        remedy = f"use {', '.join(MEMORY_LEVELS)}"
        raise UserError(f"memory is {memory!r}", code="engine.unknown_memory_level", remedy=remedy)
    if is_prepared(model):
        remedy = "undo that first: veneer.engine.undo(network)"
        raise UserError("the network is prepared already", code="engine.already_prepared", remedy=remedy)
    if memory != "exact":
        if memory == "checkpoint":
            _enable_checkpointing(model)
        for module in model.modules():
            module.__class__ = REPLACEMENTS.get(type(module), type(module))
        before = vars(model).get("forward")
        forward = _Forward(model, memory == "leaner", has_elementwise_work(model), before)
        vars(model)["forward"] = vars(model)[FORWARD] = forward
    return PreparedNetwork(model, memory)


def undo(network: nn.Module) -> None:
    """Make a network what it was before :func:`prepare`, without its handle; a copy of a prepared network too.

    Adapters stay. A network that is not prepared is left as it is.
    """
    for module in network.modules():
        module.__class__ = original_class(type(module))
        _restore_checkpointing(module)
        forward = vars(module).pop(FORWARD, None)
        if forward is not None:
            forward.retire()


class PreparedNetwork:
    """The handle of a prepared network; made by :func:`prepare`.

    Attributes:
        memory: its level.
    """

    def __init__(self, model: nn.Module, memory: MemoryLevel) -> None:
        self.memory = memory
        self._model: nn.Module | None = model

    def undo(self) -> None:
        """Make the network what it was; adapters that were put in meanwhile stay. A second call does nothing."""
        if self._model is not None:
            model, self._model = self._model, None
            undo(model)


class _Forward:
    """A prepared network's ``forward``: the one it had, within a ``RecomputeContext`` if gradients are enabled.

    It is no pair of hooks, for PyTorch calls none when a forward pass is interrupted (Ctrl-C), and the context would
    stay open. Whoever wraps a network's ``forward`` meanwhile keeps this one, which adds nothing after ``undo``.

    Args:
        model: the network; held weakly, so that it is freed when nobody else holds it.
        products: as for ``RecomputeContext``.
        elementwise: whether operations between layers are recomputed too.
        before: the ``forward`` that somebody else had set on the network; None: it was its class's.
    """

    def __init__(self, model: nn.Module, products: bool, elementwise: bool, before: Any) -> None:
        self._model = ref(model)
        self._products, self._elementwise, self._before = products, elementwise, before
        self._retired = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            if not self._retired and torch.is_grad_enabled() and not has_outer_hooks():
                stack.enter_context(RecomputeContext(self._products))
                if self._elementwise:
                    stack.enter_context(ElementwiseRecompute())
            return self._original()(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._original())

    def _original(self) -> Callable[..., Any]:
        model = self._model()
        assert model is not None
        return MethodType(type(model).forward, model) if self._before is None else self._before

    def retire(self) -> None:
        """Put back the ``forward`` that was there before, unless somebody has replaced this one."""
        self._retired, model = True, self._model()
        if model is None or vars(model).get("forward") is not self:
            return
        del vars(model)["forward"]
        if self._before is not None:
            vars(model)["forward"] = self._before

    def __reduce__(self) -> tuple[type[_Forward], tuple[Any, ...], dict[str, Any]]:
        """Let it be copied and pickled with the network, for the copy."""
        return _Forward, (self._model(), self._products, self._elementwise, self._before), {"_retired": self._retired}


_BEFORE = "_veneer_switches_before"


def _enable_checkpointing(model: nn.Module) -> None:
    """Turn block checkpointing on; every module stores the switches it had before."""
    switches = [(module, _switches(module)) for module in model.modules()]
    try:
        enable_gradient_checkpointing(model)
    except (AttributeError, ValueError) as fault:
        what = f"{type(model).__name__} has no blocks to recompute"
        raise UserError(what, code="engine.no_blocks", remedy="use leaner") from fault
    for module, before in switches:
        if _HOOKS not in before:
            # transformers makes embeddings require a gradient, which non-reentrant checkpointing does not need
            for hook in vars(module).get(_HOOKS, ()):
                hook.remove()
        vars(module)[_BEFORE] = before


def _switches(module: nn.Module) -> dict[str, Any]:
    return {name: vars(module)[name] for name in _SWITCHES if name in vars(module)}


def _restore_checkpointing(module: nn.Module) -> None:
    before = vars(module).pop(_BEFORE, None)
    if before is None:
        return
    for name in _SWITCHES:
        vars(module).pop(name, None)
    vars(module).update(before)
