"""Recompute layers' outputs in the backward pass instead of saving them in the forward pass.

Autograd saves what each operation asks for, whoever computed it. Here a layer attaches a recipe to its output, how it
is computed from its input, e.g. "the norm of x". When a frozen layer, attention or a product written by hand then asks
to save that output, or a view of it, the recipe is saved instead, and the output is recomputed when the backward pass
needs it. The recipe is attached to the output's storage and dies with it, so nothing has to be known about the code
between two layers.

The gradient is that of plain autograd, bit for bit, for the same operations are done on the same numbers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, TypeAlias
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

__all__ = [
    "RecomputeContext",
    "forget_recipe",
    "has_outer_hooks",
    "is_recomputable",
    "make_recomputable",
    "recomputes_products",
]

_ATTRIBUTE = "_veneer_recipe"
_WITH_STORAGE = (Tensor, nn.Parameter, FakeTensor)
"""Classes of tensors whose storage holds their numbers, or would; quantised and distributed tensors are of others."""


class _SavedTensor:
    """A tensor that is saved as it is."""

    __slots__ = ("_tensor", "_version")
    products = 0

    def __init__(self, tensor: Tensor) -> None:
        # a leaf is saved itself, for its data may be moved; of others the graph that made them must not be held
        self._tensor = tensor if tensor.is_leaf else tensor.detach()
        self._version = tensor._version

    def get(self) -> Tensor:
        if self._tensor._version != self._version:
            raise RuntimeError(
                f"a tensor of shape {tuple(self._tensor.shape)} that the backward pass needs was changed in place "
                f"(version {self._tensor._version}, needed {self._version}); at leaner memory levels layers' inputs "
                "are needed too: try a level nearer to exact"
            )
        return self._tensor


class _RecomputedView:
    """A view of the tensor that a recipe computes."""

    __slots__ = ("_offset", "_recipe", "_size", "_stride")

    def __init__(self, recipe: _Recipe, tensor: Tensor) -> None:
        self._recipe = recipe
        self._size, self._stride, self._offset = tensor.size(), tensor.stride(), tensor.storage_offset()

    @property
    def products(self) -> int:
        return self._recipe.products

    def get(self) -> Tensor:
        return self._recipe.compute().as_strided(self._size, self._stride, self._offset)


_Saved: TypeAlias = "_SavedTensor | _RecomputedView"


class _Recipe:
    """How a tensor is computed, and from what; computed once for all who ask while any of them lives.

    Attributes:
        products: the number of matrix products on the way from tensors that are saved.
    """

    __slots__ = (
        "__weakref__",
        "_autocast",
        "_function",
        "_inputs",
        "_result",
        "dtype",
        "nbytes",
        "products",
        "version",
    )

    def __init__(
        self, output: Tensor, function: Callable[..., Tensor], inputs: Sequence[_Saved], products: int
    ) -> None:
        self._function, self._inputs = function, inputs
        self.products = products + max(saved.products for saved in inputs)
        self.version, self.dtype, self.nbytes = output._version, output.dtype, output.untyped_storage().nbytes()
        kind = output.device.type
        self._autocast = kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
        self._result: Tensor | None = None

    def compute(self) -> Tensor:
        if self._result is None:
            kind, dtype, enabled = self._autocast
            # no cache: casts cached without gradients must not meet a later forward pass
            with torch.no_grad(), torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False):
                self._result = self._function(*(saved.get() for saved in self._inputs))
            assert self._result.untyped_storage().nbytes() == self.nbytes, "recomputed with another size"
        return self._result


class _RecipeHolder:
    """The attribute of an output's storage; emptied after the forward pass, so that no input outlives its need."""

    __slots__ = ("__weakref__", "recipe")

    def __init__(self, recipe: _Recipe) -> None:
        self.recipe: _Recipe | None = recipe


class RecomputeContext:
    """A context in which autograd saves recipes instead of tensors that have one.

    Args:
        products: whether layers make outputs recomputable that cost a matrix product.
    """

    def __init__(self, products: bool) -> None:
        self.products = products
        self._holders: WeakSet[_RecipeHolder] = WeakSet()
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack)

    def __enter__(self) -> RecomputeContext:
        self._hooks.__enter__()
        _CONTEXTS.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert _CONTEXTS.pop() is self
        self._hooks.__exit__(kind, error, trace)
        for holder in self._holders:
            holder.recipe = None

    def is_overridden(self) -> bool:
        """Tell whether others' hooks get what is saved now, e.g. those of a block that is recomputed as a whole."""
        top: Any = torch._C._autograd._top_saved_tensors_default_hooks(False)
        return top is None or top[0] != self._hooks.pack_hook

    def attach(self, output: Tensor, function: Callable[..., Tensor], inputs: Sequence[Tensor], products: int) -> None:
        """Attach a recipe to an output."""
        holder = _RecipeHolder(_Recipe(output, function, [self._pack(tensor) for tensor in inputs], products))
        setattr(output.untyped_storage(), _ATTRIBUTE, holder)
        self._holders.add(holder)

    @staticmethod
    def _pack(tensor: Tensor) -> _Saved:
        recipe = _recipe_of(tensor)
        return _SavedTensor(tensor) if recipe is None else _RecomputedView(recipe, tensor)


def has_outer_hooks() -> bool:
    """Tell whether somebody else's hooks get what is saved now: they move it to the CPU, say, or drop it.

    PyTorch calls the innermost hooks alone, so a ``RecomputeContext`` within them would take all of it from them.
    """
    top: Any = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return top is not None and top[0] != RecomputeContext._pack


class _ContextStack(threading.local):
    """The contexts that are open in this thread, the innermost last."""

    def __init__(self) -> None:
        self.stack: list[RecomputeContext] = []

    def append(self, context: RecomputeContext) -> None:
        self.stack.append(context)

    def pop(self) -> RecomputeContext:
        return self.stack.pop()

    def current(self) -> RecomputeContext | None:
        """Return the context that gets what is saved now."""
        return None if not self.stack or self.stack[-1].is_overridden() else self.stack[-1]


_CONTEXTS = _ContextStack()


def _unpack(saved: _Saved) -> Tensor:
    return saved.get()


def _recipe_of(tensor: Tensor) -> _Recipe | None:
    """Return the recipe of a tensor's storage; None if it has none, or has been written to since."""
    if type(tensor) not in _WITH_STORAGE or tensor.layout is not torch.strided:
        return None
    holder: _RecipeHolder | None = getattr(tensor.untyped_storage(), _ATTRIBUTE, None)
    recipe = None if holder is None else holder.recipe
    if recipe is None or recipe.version != tensor._version or recipe.dtype != tensor.dtype:
        return None
    return recipe


def forget_recipe(tensor: Tensor) -> None:
    """Let whoever saves a tensor from now on save the tensor itself."""
    if type(tensor) in _WITH_STORAGE and tensor.layout is torch.strided:
        holder: _RecipeHolder | None = getattr(tensor.untyped_storage(), _ATTRIBUTE, None)
        if holder is not None:
            holder.recipe = None


def is_recomputable(tensor: Tensor) -> bool:
    """Tell whether a tensor's storage has a recipe."""
    return _recipe_of(tensor) is not None


def recomputes_products(*inputs: Tensor) -> bool:
    """Tell whether an output that costs a matrix product is made recomputable: if there is none on the way to it."""
    context = _CONTEXTS.current()
    if context is None or not context.products:
        return False
    recipes = [_recipe_of(tensor) for tensor in inputs]
    return all(recipe is None or recipe.products == 0 for recipe in recipes)


def make_recomputable(output: Tensor, function: Callable[..., Tensor], *inputs: Tensor, products: int = 0) -> Tensor:
    """Attach a recipe to an output, for whoever saves it; return the output.

    Args:
        output: just computed, with a storage of its own.
        function: computes it again from ``inputs``: the same numbers with the same strides.
        inputs: what it was computed from; saved as long as the output is, unless they have a recipe themselves.
        products: the number of matrix products that ``function`` does.
    """
    context = _CONTEXTS.current() if output.requires_grad else None
    if context is not None and all(type(tensor) in _WITH_STORAGE for tensor in (output, *inputs)):
        own = output.untyped_storage()
        if all(tensor.untyped_storage() is not own for tensor in inputs):
            context.attach(output, function, inputs, products)
    return output
