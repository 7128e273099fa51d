"""Compare two adapter files: directions, cosine, drift, and what of the base each amplifies."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from torch import Tensor

from veneer.adapter.compare import (
    SIDES,
    Amplification,
    LayerComparison,
    compare_layer,
    cosine,
    drift,
    mean_grid,
    update_of,
)
from veneer.adapter.protocol import AdapterWeights
from veneer.errors import UserError
from veneer.family.base_weights import BaseWeights
from veneer.files import opens_paths
from veneer.verbs.derived_file import open_adapters
from veneer.verbs.layer_groups import by_kind

__all__ = ["AdapterComparison", "GroupComparison", "compare_adapters", "comparison_data"]


@dataclass(frozen=True)
class GroupComparison:
    """What the comparison of several layers comes to.

    Attributes:
        name: of the group: the layers' kind, such as ``attn1.to_q``, or ``all``.
        layers: how many they are.
        lacking: how many of them the first and the second adapter lack.
        norms: Frobenius norm of each adapter's delta W, of all layers together.
        cosine: of both delta W, of all layers together; NaN where one is zero.
        drift: |dW_A - dW_B| / |dW_A|, of all layers together; NaN where the first is zero.
        similarity: mean of phi(r, r) over the layers that both have, by side.
        by_chance: mean of what that would be of random directions, by side.
        amplification: median over layers of each adapter's |dW| / |U^T W V^T|; None where the base is not told.
        alignment: median over layers of |U^T W V^T| against random directions; None likewise.
    """

    name: str
    layers: int
    lacking: tuple[int, int]
    norms: tuple[float, float]
    cosine: float
    drift: float
    similarity: Mapping[str, float]
    by_chance: Mapping[str, float]
    amplification: tuple[float | None, float | None]
    alignment: tuple[float | None, float | None]

    @classmethod
    def of(cls, name: str, layers: Sequence[LayerComparison]) -> GroupComparison:
        """Sum up layers."""
        sides = {side: [each.subspaces[side] for each in layers if side in each.subspaces] for side in SIDES}
        return cls(
            name=name,
            layers=len(layers),
            lacking=(sum(each.lacking[0] for each in layers), sum(each.lacking[1] for each in layers)),
            norms=(_norm(layers, 0), _norm(layers, 1)),
            cosine=cosine(layers),
            drift=drift(layers),
            similarity={side: fmean(each.phi for each in own) for side, own in sides.items() if own},
            by_chance={side: fmean(each.by_chance for each in own) for side, own in sides.items() if own},
            amplification=(_median(layers, 0, "factor"), _median(layers, 1, "factor")),
            alignment=(_median(layers, 0, "alignment"), _median(layers, 1, "alignment")),
        )


def _norm(layers: Iterable[LayerComparison], place: int) -> float:
    return math.sqrt(sum(each.squared_norms[place] for each in layers))


def _median(layers: Iterable[LayerComparison], place: int, name: str) -> float | None:
    """Return the median over layers of what an adapter's amplification is; None where none is known."""
    values = [getattr(own, name) for each in layers if (own := each.amplifications[place]) is not None]
    return median(values) if values else None


@dataclass(frozen=True)
class AdapterComparison:
    """The comparison of two adapters.

    Attributes:
        names: of their files, without the endings, or of the folders of their runs.
        layers: of each layer that either has, by path.
        base: as it was named; None: amplification was not measured.
        notes: what of the files is no part of the adapters, and so is not compared.
    """

    names: tuple[str, str]
    layers: Mapping[str, LayerComparison]
    base: str | None
    notes: tuple[str, ...] = ()

    @property
    def overall(self) -> GroupComparison:
        """All layers together."""
        return GroupComparison.of("all", list(self.layers.values()))

    @property
    def kinds(self) -> list[GroupComparison]:
        """The layers of each kind."""
        return [GroupComparison.of(kind, layers) for kind, layers in by_kind(self.layers.items()).items()]

    def grid(self, side: str) -> Tensor | None:
        """Return the mean of phi(i, j) over the layers that both have, (r_A, r_B); None where there is none.

        Args:
            side: a key of ``SIDES``.
        """
        own = [layer.subspaces[side] for layer in self.layers.values() if side in layer.subspaces]
        return mean_grid(own) if own else None


@opens_paths
def compare_adapters(first: Path, second: Path, *, base: str | None = None) -> AdapterComparison:
    """Compare two adapters of one base: checkpoints of a run, other ranks, other methods.

    Args:
        first: an adapter, or the folder of its run; what drift is measured from.
        second: the other.
        base: theirs; with it amplification is measured, and methods can be compared whose delta W depends on it.

    Raises:
        UserError: a file cannot be read, they are of different architectures, or a method needs the base.
    """
    one, other = open_adapters([first, second], base, without=True)
    weights = None if base is None else BaseWeights.open(base)
    pair = (one.adapter.weights, other.adapter.weights)
    _check_common(one.path, other.path, pair)
    layers = {path: _compare(path, pair, weights) for path in sorted({*pair[0], *pair[1]})}
    names = (one.title, other.title)
    names = names if len(set(names)) == 2 else (f"{names[0]} (1)", f"{names[1]} (2)")
    return AdapterComparison(names, layers, base, (*one.notes, *other.notes))


def _compare(path: str, pair: tuple[AdapterWeights, AdapterWeights], base: BaseWeights | None) -> LayerComparison:
    weight = None if base is None else base.read(path)
    one, other = (update_of(path, own[path], weight) if path in own else None for own in pair)
    if one is not None and other is not None and _sides(one.shape) != _sides(other.shape):
        what = f"the adapters are of different architectures: {path} is {one.shape} and {other.shape}"
        raise UserError(what, code="adapter.different_architectures", remedy="compare adapters of one base")
    return compare_layer(one, other, weight)


def _sides(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the sides of delta W as a matrix; a kernel may be in the shape, or multiplied into its second size."""
    return shape[0], math.prod(shape[1:])


def _check_common(one: Path, other: Path, pair: tuple[AdapterWeights, AdapterWeights]) -> None:
    if not pair[0].keys() & pair[1].keys():
        layers = f"{next(iter(pair[0]))} and {next(iter(pair[1]))}"
        what = f"{one.name} and {other.name} have no layer in common; they change such as {layers}"
        raise UserError(what, code="adapter.nothing_in_common", remedy="compare adapters of one base")


def comparison_data(comparison: AdapterComparison) -> dict[str, Any]:
    """Return a comparison as plain data: all layers together, each kind, each layer, and the mean grids."""
    grids = {side: comparison.grid(side) for side in SIDES}
    return {
        "adapters": comparison.names,
        "base": comparison.base,
        "notes": comparison.notes,
        "all": vars(comparison.overall),
        "kinds": [vars(kind) for kind in comparison.kinds],
        "phi": {side: grid.tolist() for side, grid in grids.items() if grid is not None},
        "layers": {path: _layer_data(layer) for path, layer in comparison.layers.items()},
    }


def _layer_data(layer: LayerComparison) -> dict[str, Any]:
    return {
        "ranks": layer.ranks,
        "norms": [math.sqrt(square) for square in layer.squared_norms],
        "cosine": cosine([layer]),
        "drift": drift([layer]),
        "similarity": {side: each.phi for side, each in layer.subspaces.items()},
        "by_chance": {side: each.by_chance for side, each in layer.subspaces.items()},
        "amplification": [None if own is None else _amplification_data(own) for own in layer.amplifications],
    }


def _amplification_data(own: Amplification) -> dict[str, float]:
    return {**vars(own), "factor": own.factor, "alignment": own.alignment}
