"""What parts a file must have to be a LoRA or a DoRA, told by their shapes alone: it takes no torch.

Shapes are those of the file: A (r, in) or (r, in, kh, kw), B (out, r) or (out, r, 1, 1), a core (r, r, kh, kw).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, Protocol, TypeAlias

from veneer.errors import UserError

__all__ = [
    "Shape",
    "alpha_in",
    "check_magnitude",
    "check_names",
    "column_shape",
    "magnitude_part",
    "magnitude_shape",
    "product_shape",
    "row_shape",
    "with_core",
]

Shape: TypeAlias = tuple[int, ...]


class Vector(Protocol):
    """Numbers in a row."""

    def __len__(self) -> int:
        """Return how many there are."""

    def __getitem__(self, place: int, /) -> Any:
        """Return the one at a place."""


_FACTORS = {"down": "A (down)", "up": "B (up)"}


def check_names(parts: Collection[str]) -> None:
    """Refuse a layer without A or without B.

    Raises:
        UserError: names the one that is missing.
    """
    if lacking := [name for part, name in _FACTORS.items() if part not in parts]:
        raise UserError(f"has no {lacking[0]}", code="adapter.missing_part", remedy="the file is not whole")


def product_shape(down: Shape, up: Shape) -> Shape:
    """Return the shape of the weight that B A is added to: (out, in) or (out, in, kh, kw).

    Raises:
        UserError: they are no factors of such a weight.
    """
    fits = len(down) == len(up) and len(down) in (2, 4) and down[0] == up[1] >= 1 and math.prod(up[2:]) == 1
    if not fits or 0 in (up[0], *down[1:]):
        what = f"A {down!s:.80} and B {up!s:.80} are not the factors of a linear layer or a convolution"
        raise UserError(what, code="adapter.bad_factors")
    return (up[0], *down[1:])


def with_core(down: Shape, up: Shape, core: Shape) -> Shape:
    """Return the shape of A once the core of a Tucker decomposition is multiplied into it: (r, in, kh, kw).

    Raises:
        UserError: they do not fit together.
    """
    is_thin = len(down) == len(up) == len(core) == 4 and math.prod(down[2:]) == math.prod(up[2:]) == 1
    if not (is_thin and core[1] == down[0] and core[0] == up[1]):
        what = f"A {down!s:.80}, B {up!s:.80} and a core {core!s:.80} are not the factors of a convolution"
        raise UserError(what, code="adapter.bad_factors")
    return (core[0], down[1], *core[2:])


def alpha_in(numbers: Vector | None, settings: Mapping[str, Any] | None, rank: int) -> float:
    """Return the alpha that a file tells: by a tensor, by peft's config, by both alike, or by neither, which means r.

    Args:
        numbers: of the tensor, (n,), torch's or numpy's; None: there is none.
        settings: peft's config of the layer; None: there is none.
        rank: rows of A.

    Raises:
        UserError: the tensor is not one number that is finite, or contradicts the config.
    """
    if numbers is not None and len(numbers) != 1:
        raise UserError(f"its alpha is not one number but {len(numbers):,}", code="adapter.bad_alpha")
    own = None if numbers is None else float(numbers[0])
    told = None if settings is None else _alpha_of(settings, rank)
    if own is not None and told is not None and not math.isclose(own, told, rel_tol=1e-3):
        what = f"its alpha is {own:g}, and its config tells {told:g}"
        raise UserError(what, code="weights.config_contradicts", remedy="remove the one that is not true")
    alpha = next((value for value in (told, own) if value is not None), float(rank))
    if not math.isfinite(alpha):
        raise UserError(f"alpha is {alpha}", code="adapter.bad_alpha")
    return alpha


def _alpha_of(settings: Mapping[str, Any], rank: int) -> float:
    """Return the alpha that peft's config tells, such that alpha/r is the strength that peft would use.

    Raises:
        UserError: it tells another rank.
    """
    if (declared := settings["r"]) != rank:
        what = f"its config says rank {declared!s:.20}, and its tensors have rank {rank}"
        raise UserError(what, code="adapter.other_rank")
    alpha = float(settings["lora_alpha"])
    return alpha * math.sqrt(rank) if settings.get("use_rslora") else alpha  # Kalajdzievski 2023: alpha / sqrt(r)


_PEFT_PART = "magnitude"
_MAGNITUDES = (_PEFT_PART, "dora_scale")


def magnitude_part(parts: Collection[str]) -> str:
    """Return which of a DoRA's parts are its magnitudes.

    Raises:
        UserError: there is none, or two.
    """
    found = [part for part in _MAGNITUDES if part in parts]
    if len(found) > 1:
        raise UserError("has magnitudes under two names", code="adapter.bad_factors")
    if not found:
        raise UserError("has no magnitudes", code="adapter.missing_part", remedy="the file is not whole")
    return found[0]


def magnitude_shape(part: str, shape: Shape, weight: Shape) -> Shape:
    """Return the shape in which magnitudes stand beside the weight: over outputs (out, 1, ...) or inputs (1, in, ...).

    Args:
        part: as the file calls it; peft has magnitudes of outputs only, as (out,), or (1, out, 1, 1) of a convolution.
        shape: in the file.
        weight: shape of the layer's weight.

    Raises:
        UserError: they are of neither.
    """
    if math.prod(shape) == weight[0] and (part == _PEFT_PART or shape != row_shape(weight)):
        return column_shape(weight)
    check_magnitude(shape, weight)
    return shape


def check_magnitude(shape: Shape, weight: Shape) -> None:
    """Refuse magnitudes that are neither over the outputs nor over the inputs of a weight of this shape.

    Raises:
        UserError: they are not.
    """
    if shape not in (column_shape(weight), row_shape(weight)):
        what = f"magnitudes of shape {shape!s:.80} are neither of the outputs nor of the inputs of {weight}"
        raise UserError(what, code="adapter.bad_factors")


def column_shape(weight: Shape) -> Shape:
    """Return the shape of one number for each output of a weight: (out, 1) or (out, 1, 1, 1)."""
    return (weight[0], *(1 for _ in weight[1:]))


def row_shape(weight: Shape) -> Shape:
    """Return the shape of one number for each input of a weight: (1, in) or (1, in, 1, 1)."""
    return (1, weight[1], *(1 for _ in weight[2:]))
