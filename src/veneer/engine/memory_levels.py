"""Prepare a network to train with less memory, and undo it: the entry point of the engine."""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import nn

from veneer.engine.elementwise import ElementwiseRecompute, has_elementwise_work
from veneer.engine.instance_forward import InstanceForward, has_foreign_forward, is_prepared, uninstall
from veneer.engine.layers import LAYER_FORWARDS
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
            forward = LAYER_FORWARDS.get(type(module))
            if forward is not None and not has_foreign_forward(module):
                forward(module).install()
        _NetworkForward(model, memory == "leaner", has_elementwise_work(model)).install()
    return PreparedNetwork(model, memory)


def undo(network: nn.Module) -> None:
    """Make a network what it was before :func:`prepare`, without its handle; a copy of a prepared network too.

    Adapters stay. A network that is not prepared is left as it is.
    """
    for module in network.modules():
        uninstall(module)
        _restore_checkpointing(module)


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


class _NetworkForward(InstanceForward):
    """A prepared network's ``forward``: the one it had, within a ``RecomputeContext`` if gradients are enabled.

    It is no pair of hooks, for PyTorch calls none when a forward pass is interrupted (Ctrl-C), and the context would
    stay open. Whoever wraps a network's ``forward`` meanwhile keeps this one, which adds nothing after ``undo``.

    Args:
        model: the network; held weakly.
        products: as for ``RecomputeContext``.
        elementwise: whether operations between layers are recomputed too.
    """

    __slots__ = _settings = ("_elementwise", "_products")

    def __init__(self, model: nn.Module, products: bool, elementwise: bool) -> None:
        super().__init__(model)
        self._products, self._elementwise = products, elementwise

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._saves_less():
            return self.original()(*args, **kwargs)
        with ExitStack() as stack:
            stack.enter_context(RecomputeContext(self._products))
            if self._elementwise:
                stack.enter_context(ElementwiseRecompute())
            return self.original()(*args, **kwargs)

    def _saves_less(self) -> bool:
        """Tell whether a backward pass may follow, and nobody else decides what is kept for it."""
        is_recorded = self.is_active(self.module()) and torch.is_grad_enabled()
        return is_recorded and not torch.compiler.is_compiling() and not has_outer_hooks()

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.original())


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
