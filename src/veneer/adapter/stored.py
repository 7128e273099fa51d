"""What the methods have in common that are read, merged and written, and not trained here.

Their numbers stay as a file has them; each method's own file says which weight they fit and what delta W they make.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from veneer.adapter.protocol import Method, WeightedLayer
from veneer.errors import UserError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "StoredAdapter",
    "alpha_in",
    "alpha_tensor",
    "as_channels",
    "bad_factors",
    "check_parts",
    "layer_product",
    "number_in",
    "product",
    "product_shape",
    "same_but_kernel",
    "squared_product",
    "without_core",
]

_LARGEST = 2**29
"""Most numbers that a layer's weight may have; the largest of FLUX has 7 10^7."""
_SHAPE = "weight_shape"


@dataclass(frozen=True, eq=False)
class StoredAdapter(ABC):
    """One layer's numbers of a method, as a file has them.

    Attributes:
        tensors: by part.
        numbers: what is one number each, such as alpha, by part.
        weight_shape: shape of the layer's weight; empty: only the base tells it.
    """

    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, float]
    weight_shape: tuple[int, ...] = ()

    NUMBERS: ClassVar[tuple[str, ...]] = ()
    """The parts that are numbers."""

    def __post_init__(self) -> None:
        """Refuse what is not this method's, or would make a weight larger than any layer's."""
        self.check()
        if any(size < 0 for size in self.told_shape):
            return
        if (count := math.prod(self.told_shape)) > _LARGEST:
            raise bad_factors(f"would make a weight of {count:,} numbers, more than a layer has")

    @property
    @abstractmethod
    def method(self) -> Method:
        """The method whose numbers these are."""

    @property
    @abstractmethod
    def told_shape(self) -> tuple[int, ...]:
        """What the numbers tell of the weight's shape, as ``LayerAdapter.shape`` has it."""

    @abstractmethod
    def check(self) -> None:
        """Refuse tensors that do not fit together.

        Raises:
            UserError: they do not.
        """

    @abstractmethod
    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether it can change a weight of a shape."""

    @abstractmethod
    def delta_weight(self, weight: Tensor) -> Tensor:
        """Return delta W, of the shape of the layer's weight."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight that it changes, as far as it is known."""
        return self.weight_shape or self.told_shape

    @property
    def bias_size(self) -> int | None:
        """How many entries the bias has that it needs the layer to have; None: it needs none."""
        return None

    @property
    def parameter_count(self) -> int:
        """Number of trained parameters."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    @property
    def hyperparameters(self) -> Mapping[str, float]:
        """The sizes and strengths that it was made with."""
        return {}

    @property
    def is_untrained(self) -> bool:
        """True where a part is zero that makes all of delta W zero."""
        return not all(tensor.any() for tensor in self.tensors.values())

    def fitted(self, shape: tuple[int, ...]) -> Self | None:
        """Return the same numbers for a weight of a shape; None: they do not fit."""
        return replace(self, weight_shape=shape) if self.fits(shape) else None

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Self:
        """Return the same numbers on another device or in another dtype."""
        return replace(self, tensors={part: tensor.to(device, dtype) for part, tensor in self.tensors.items()})

    def state_dict(self) -> dict[str, Tensor]:
        """Return all of it as named tensors, the weight's shape where the others do not tell it."""
        shape = {_SHAPE: torch.tensor(self.weight_shape)} if self.shape != self.told_shape else {}
        numbers = {part: torch.tensor(number, dtype=torch.float64) for part, number in self.numbers.items()}
        return {**self.tensors, **numbers, **shape}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Self:
        """Return the numbers that :meth:`state_dict` gave."""
        tensors = {part: tensor for part, tensor in state.items() if part not in (*cls.NUMBERS, _SHAPE)}
        numbers = {part: float(state[part]) for part in cls.NUMBERS if part in state}
        return cls(tensors, numbers, tuple(state[_SHAPE].tolist()) if _SHAPE in state else ())

    def file_parts(self, naming: str) -> dict[str, Tensor]:
        """Return the tensors of a file by part, as they are."""
        numbers = {part: alpha_tensor(number) for part, number in self.numbers.items()}
        return {**self.tensors, **numbers}

    def peft_settings(self) -> dict[str, Any]:
        """Return nothing: peft's config has no place for it."""
        return {}

    def delta_bias(self, bias: Tensor) -> Tensor | None:
        """Return None: nothing is added to the bias."""
        return None

    def squared_norm(self, weight: Tensor | None = None) -> float:
        """Return the squared Frobenius norm of delta W; it takes the base's weight."""
        assert weight is not None, f"{self.method.title}'s delta W depends on the base's weight"
        return float(self.to(weight.device, torch.float64).delta_weight(weight.double()).square().sum())

    def bypass(self, layer: WeightedLayer) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the function that adds delta W x, and the change of the bias, to a layer's output.

        delta W is made anew each time, in float32, so that no more than one layer's is in memory.
        """

        @torch.no_grad()
        def add(x: Tensor, output: Tensor) -> Tensor:
            own = self.to(x.device, torch.float32)
            delta = own.delta_weight(layer.weight.detach().to(x.device, torch.float32))
            change = layer_product(layer, x.float(), delta)
            bias = None if layer.bias is None else own.delta_bias(layer.bias.detach().float())
            if bias is not None:
                change = change + as_channels(layer, bias)
            return output + change.to(output.dtype)

        return add

    def low_rank(self) -> None:
        """Return None: the update is no product of two thin matrices."""
        return None


def layer_product(layer: WeightedLayer, x: Tensor, weight: Tensor) -> Tensor:
    """Return what a layer would make of an input with another weight and no bias."""
    if isinstance(layer, nn.Conv2d):
        return functional.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
    return functional.linear(x, weight)


def as_channels(layer: WeightedLayer, bias: Tensor) -> Tensor:
    """Return a bias in a shape that can be added to a layer's output."""
    return bias.reshape(1, -1, 1, 1) if isinstance(layer, nn.Conv2d) else bias


def same_but_kernel(told: Sequence[int], shape: Sequence[int]) -> bool:
    """Return whether two shapes are one, but that the first may have a kernel's axes multiplied into its second.

    A kernel of 1 x 1 may be left out of either.
    """
    if told[0] != shape[0] or math.prod(told[1:]) != math.prod(shape[1:]):
        return False
    return len(told) == 2 or tuple(told) == tuple(shape) or math.prod(told[2:]) == 1 == math.prod(shape[2:])


def squared_product(a: Tensor, b: Tensor) -> float:
    """Return |A B|^2 = sum of (A'A) * (B B') without making A B, for A (out, r) and B (r, in)."""
    return max(float(((a.T @ a) * (b @ b.T)).sum()), 0.0)


def product_shape(a: Tensor, b: Tensor, core: Tensor | None) -> tuple[int, ...] | None:
    """Return the shape of :func:`product`; None: the factors do not fit together."""
    if core is not None:
        fits = a.ndim == b.ndim == 2 and core.ndim == 4 and tuple(core.shape[:2]) == (a.shape[0], b.shape[0])
        return (a.shape[1], b.shape[1], *core.shape[2:]) if fits else None
    return (a.shape[0], *b.shape[1:]) if a.ndim == 2 and b.ndim >= 2 and a.shape[1] == b.shape[0] else None


def product(a: Tensor, b: Tensor, core: Tensor | None) -> Tensor:
    """Return A B, or the sum of core[i, j] A[i] B[j] of a Tucker decomposition (LyCORIS, ``rebuild_tucker``).

    Args:
        a: (out, r); with a core (r, out).
        b: (r, in), (r, in kh kw) or (r, in, kh, kw); with a core (r, in).
        core: (r, r, kh, kw); None: there is none.
    """
    if core is not None:
        return torch.einsum("ijkl,jr,ip->prkl", core, b, a)
    return (a @ b.flatten(1)).reshape(a.shape[0], *b.shape[1:])


def without_core(core: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return A (out, r) and B (r, in kh kw) with the product of a Tucker decomposition.

    Args:
        core: (r, r, kh, kw).
        a: (r, out).
        b: (r, in).
    """
    return a.T, torch.einsum("ijkl,jr->irkl", core, b).flatten(1)


def check_parts(parts: Mapping[str, Tensor], required: Sequence[str]) -> None:
    """Refuse a file's parts of a layer among which one is missing.

    Raises:
        UserError: the first that is.
    """
    if lacking := [part for part in required if part not in parts]:
        raise UserError(f"has no {lacking[0]}", code="adapter.missing_part", remedy="the file is not whole")


def bad_factors(what: str) -> UserError:
    """Return the error for tensors that do not fit together."""
    return UserError(what, code="adapter.bad_factors", remedy="the file is damaged, or of another method")


def number_in(part: str, tensor: Tensor) -> float:
    """Return the number that a file's tensor is.

    Raises:
        UserError: it is not one number, or none that can be computed with.
    """
    if tensor.numel() != 1:
        raise UserError(f"its {part} is not one number but {tensor.numel()}", code="adapter.bad_alpha")
    if not math.isfinite(number := float(tensor)):
        raise UserError(f"its {part} is {number}", code="adapter.bad_alpha")
    return number


def alpha_tensor(alpha: float) -> Tensor:
    """Return alpha in float32, as kohya writes it, or in float64 where float32 has no such number."""
    narrow = torch.tensor(alpha, dtype=torch.float32)
    return narrow if narrow.item() == alpha else narrow.new_tensor(alpha, dtype=torch.float64)


def alpha_in(parts: Mapping[str, Tensor], settings: Mapping[str, Any] | None, rank: int) -> float:
    """Return the alpha that a file tells, such that alpha/r is the strength.

    Args:
        parts: among them perhaps alpha, and perhaps the scalar that LyCORIS multiplies by where it is told to.
        settings: peft's config of the layer; None: alpha tells, and without it is r.
        rank: r, as the tensors have it.

    Raises:
        UserError: alpha is not one number, or the config tells another rank or strength.
    """
    own = number_in("alpha", parts["alpha"]) if "alpha" in parts else None
    told = None if settings is None or "alpha" not in settings else float(settings["alpha"])
    if told is not None and settings is not None and settings["r"] != rank:
        what = f"its config says rank {settings['r']!s:.20}, and its tensors have rank {rank}"
        raise UserError(what, code="adapter.other_rank")
    if own is not None and told is not None and not math.isclose(own, told, rel_tol=1e-3):
        what = f"its alpha is {own:g}, and its config tells {told:g}"
        raise UserError(what, code="weights.config_contradicts", remedy="remove the one that is not true")
    alpha = next((value for value in (told, own) if value is not None), float(rank))
    return alpha * number_in("scalar", parts["scalar"]) if "scalar" in parts else alpha
