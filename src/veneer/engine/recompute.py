"""What the backward pass keeps: tensors, or the way to make them again.

Autograd keeps what each operation asks for, whoever made it. Here a layer notes on its output how it was made, e.g.
"the norm of x"; whoever then asks to keep that output, or any view of it, a frozen layer, attention, a product written
by hand, keeps the note instead, and the output is made again when the backward pass needs it. The note is attached to
the output's storage and dies with it, so nothing has to be known about the code between two layers.

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

__all__ = ["Saving", "is_noted", "is_overheard", "remember", "remembers_products"]

_NOTE = "_veneer_note"
_WITH_STORAGE = (Tensor, nn.Parameter, FakeTensor)
"""Whose storage holds their numbers, or would; quantised and distributed tensors are of other classes."""


class _Kept:
    """A tensor, kept as it is."""

    __slots__ = ("_tensor", "_version")
    products = 0

    def __init__(self, tensor: Tensor) -> None:
        # a leaf is kept itself, for its numbers may be moved; of others the way they were made must not be kept
        self._tensor = tensor if tensor.is_leaf else tensor.detach()
        self._version = tensor._version

    def get(self) -> Tensor:
        if self._tensor._version != self._version:
            raise RuntimeError(
                f"a tensor of shape {tuple(self._tensor.shape)} that the backward pass needs was changed in place "
                f"(version {self._tensor._version}, needed {self._version}); where memory is leaner, layers' inputs "
                "are needed too: try a level nearer to exact"
            )
        return self._tensor


class _Made:
    """A view of what a recipe makes."""

    __slots__ = ("_offset", "_recipe", "_size", "_stride")

    def __init__(self, recipe: _Recipe, tensor: Tensor) -> None:
        self._recipe = recipe
        self._size, self._stride, self._offset = tensor.size(), tensor.stride(), tensor.storage_offset()

    @property
    def products(self) -> int:
        return self._recipe.products

    def get(self) -> Tensor:
        return self._recipe.make().as_strided(self._size, self._stride, self._offset)


_Handle: TypeAlias = "_Kept | _Made"


class _Recipe:
    """How a tensor was made, with what it was made of; made again once, for all who ask while any of them lives.

    Attributes:
        products: matrix products on the way from tensors that are kept.
    """

    __slots__ = ("__weakref__", "_autocast", "_how", "_inputs", "_made", "dtype", "nbytes", "products", "version")

    def __init__(self, output: Tensor, how: Callable[..., Tensor], inputs: Sequence[_Handle], products: int) -> None:
        self._how, self._inputs = how, inputs
        self.products = products + max(handle.products for handle in inputs)
        self.version, self.dtype, self.nbytes = output._version, output.dtype, output.untyped_storage().nbytes()
        kind = output.device.type
        self._autocast = kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
        self._made: Tensor | None = None

    def make(self) -> Tensor:
        if self._made is None:
            kind, dtype, enabled = self._autocast
            # no cache: casts cached without gradients must not meet a later forward pass
            with torch.no_grad(), torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False):
                self._made = self._how(*(handle.get() for handle in self._inputs))
            assert self._made.untyped_storage().nbytes() == self.nbytes, "made otherwise than the first time"
        return self._made


class _Note:
    """Hangs on an output's storage; emptied when the forward pass is over, so that no input outlives its need."""

    __slots__ = ("__weakref__", "recipe")

    def __init__(self, recipe: _Recipe) -> None:
        self.recipe: _Recipe | None = recipe


class Saving:
    """While it is open, autograd keeps notes where there are some.

    Args:
        products: whether layers shall note outputs that cost a matrix product to make again.
    """

    def __init__(self, products: bool) -> None:
        self.products = products
        self._notes: WeakSet[_Note] = WeakSet()
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, _give)

    def __enter__(self) -> Saving:
        self._hooks.__enter__()
        _OPEN.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert _OPEN.pop() is self
        self._hooks.__exit__(kind, error, trace)
        for note in self._notes:
            note.recipe = None

    def is_outdone(self) -> bool:
        """Whether what is saved now goes to somebody else's hooks, e.g. those of a block that is recomputed whole."""
        top: Any = torch._C._autograd._top_saved_tensors_default_hooks(False)
        return top is None or top[0] != self._hooks.pack_hook

    def note(self, output: Tensor, how: Callable[..., Tensor], inputs: Sequence[Tensor], products: int) -> None:
        """Hang a note on an output."""
        recipe = _Recipe(output, how, [self._keep(tensor) for tensor in inputs], products)
        note = _Note(recipe)
        setattr(output.untyped_storage(), _NOTE, note)
        self._notes.add(note)

    @staticmethod
    def _keep(tensor: Tensor) -> _Handle:
        recipe = _recipe_of(tensor)
        return _Kept(tensor) if recipe is None else _Made(recipe, tensor)


def is_overheard() -> bool:
    """Whether what is saved now goes to somebody else's hooks: moved to the CPU, say, or dropped and computed again.

    PyTorch asks the innermost hooks alone, so a ``Saving`` opened within them would keep them from all they are for.
    """
    top: Any = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return top is not None and top[0] != Saving._keep


class _Open(threading.local):
    """The savings open in this thread, the innermost last."""

    def __init__(self) -> None:
        self.stack: list[Saving] = []

    def append(self, saving: Saving) -> None:
        self.stack.append(saving)

    def pop(self) -> Saving:
        return self.stack.pop()

    def current(self) -> Saving | None:
        """The one that gets what is saved now."""
        return None if not self.stack or self.stack[-1].is_outdone() else self.stack[-1]


_OPEN = _Open()


def _give(handle: _Handle) -> Tensor:
    return handle.get()


def _recipe_of(tensor: Tensor) -> _Recipe | None:
    """How a tensor's storage was made; None if nobody noted it, or if it has been written to since."""
    if type(tensor) not in _WITH_STORAGE or tensor.layout is not torch.strided:
        return None
    note: _Note | None = getattr(tensor.untyped_storage(), _NOTE, None)
    recipe = None if note is None else note.recipe
    if recipe is None or recipe.version != tensor._version or recipe.dtype != tensor.dtype:
        return None
    return recipe


def is_noted(tensor: Tensor) -> bool:
    """Whether it is known how a tensor's storage was made."""
    return _recipe_of(tensor) is not None


def remembers_products(*inputs: Tensor) -> bool:
    """Whether a layer of these inputs shall note an output that costs a matrix product: only one on the way."""
    saving = _OPEN.current()
    if saving is None or not saving.products:
        return False
    recipes = [_recipe_of(tensor) for tensor in inputs]
    return all(recipe is None or recipe.products == 0 for recipe in recipes)


def remember(output: Tensor, how: Callable[..., Tensor], *inputs: Tensor, products: int = 0) -> Tensor:
    """Note how an output was made, for whoever keeps it; return it.

    Args:
        output: just made, with a storage of its own.
        how: makes it again of ``inputs``: the same numbers with the same strides.
        inputs: what it was made of. They are kept as long as the output is, unless they have a note themselves.
        products: matrix products that ``how`` does.
    """
    saving = _OPEN.current() if output.requires_grad else None
    if saving is not None and all(type(tensor) in _WITH_STORAGE for tensor in (output, *inputs)):
        own = output.untyped_storage()
        if all(tensor.untyped_storage() is not own for tensor in inputs):
            saving.note(output, how, inputs, products)
    return output
