"""LoRA and DoRA as a file has them, in numpy: checked as loading checks them, and the norm of their product B A."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from veneer.adapter.lora_parts import alpha_in, check_names, magnitude_part, magnitude_shape, product_shape, with_core
from veneer.weights.formats.parts import Settings
from veneer.weights.numbers import Numbers
from veneer.weights.tensors_file import TensorsFile, not_finite

__all__ = ["LoraSummary", "summarise_lora"]


@dataclass(frozen=True)
class LoraSummary:
    """One layer's LoRA, or the LoRA within a DoRA.

    Attributes:
        rank: r.
        alpha: numerator of the strength alpha/r.
        parameters: how many numbers were trained.
        norm: Frobenius norm of (alpha/r) B A.
    """

    rank: int
    alpha: float
    parameters: int
    norm: float


def summarise_lora(
    file: TensorsFile, parts: Mapping[str, str], settings: Settings | None, *, dora: bool
) -> LoraSummary:
    """Return what a layer's tensors are, read one at a time.

    Args:
        file: open.
        parts: names of the layer's tensors by part.
        settings: what the file's config says of the layer; None: there is none.
        dora: whether it has magnitudes.

    Raises:
        UserError: as of ``LoraFactors.from_file`` and ``DoraFactors.from_file``, or a tensor holds NaN or infinity.
    """
    check_names(parts)
    shapes = {part: file.header.tensors[name].shape for part, name in parts.items()}
    down = with_core(shapes["down"], shapes["up"], shapes["mid"]) if "mid" in parts else shapes["down"]
    rank = down[0] if down else 0
    alpha = alpha_in(_alpha(file, parts["alpha"]) if "alpha" in parts else None, settings, rank)
    weight = product_shape(down, shapes["up"])
    count = math.prod(down) + math.prod(shapes["up"])
    if dora:
        part = magnitude_part(parts)
        magnitude_shape(part, shapes[part], weight)
        count += math.prod(shapes[part])
        _finite(file, parts[part])
    return LoraSummary(rank, alpha, count, abs(alpha / rank) * _product_norm(file, parts))


def _alpha(file: TensorsFile, name: str) -> Any:
    """Return an alpha's numbers in a row; one that is infinite is for who asks for it to refuse."""
    numbers = file.numbers(name).reshape(-1)
    return numbers if len(numbers) == 1 and np.isinf(numbers[0]) else _finite(file, name).reshape(-1)


def _product_norm(file: TensorsFile, parts: Mapping[str, str]) -> float:
    """Return |B A|, by |B A|^2 = tr(B'B A A') = sum of (B'B) * (A A'), so that no B A is made."""
    up, down = _matrix(file.numbers(parts["up"])), _matrix(_down(file, parts))
    square = _square(up, down)
    if not math.isfinite(square):
        for part in ("up", "down", "mid"):
            if part in parts:
                _finite(file, parts[part])
    if not _SMALLEST < square < math.inf:
        square = _square(up.astype(np.float64), down.astype(np.float64))
    return math.sqrt(max(square, 0.0))


_SMALLEST = 1e-20  # of a square that is sure not to have vanished in float32


def _square(up: Numbers, down: Numbers) -> float:
    """Return |B A|^2; the two matrices of r x r have the factors' type, their product is of float64."""
    with np.errstate(over="ignore", invalid="ignore"):
        # a matrix by its own transpose: BLAS computes half of it
        return float(np.einsum("ij,ij->", up.T @ up, down @ down.T, dtype=np.float64))


def _down(file: TensorsFile, parts: Mapping[str, str]) -> Numbers:
    """Return A, with the core multiplied into it where there is one."""
    down = file.numbers(parts["down"])
    if "mid" not in parts:
        return down
    whole: Numbers = np.einsum("pqhw,qi->pihw", file.numbers(parts["mid"]), _matrix(down), optimize=True)
    return whole


def _matrix(numbers: Numbers) -> Numbers:
    return numbers.reshape(len(numbers), -1)


def _finite(file: TensorsFile, name: str) -> Any:
    """Return a tensor's numbers.

    Raises:
        UserError: it holds NaN or infinity.
    """
    numbers = file.numbers(name)
    if not np.isfinite(numbers).all():
        raise not_finite(name, file.path)
    return numbers
