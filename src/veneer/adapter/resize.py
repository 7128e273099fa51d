"""An adapter cut to lower ranks, at which it does as nearly the same as any of those ranks can.

How far each layer is cut is a rank, or what a layer's singular values have to keep (:class:`Criterion`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from veneer.adapter.biased import BiasedAdapter
from veneer.adapter.full import FULL, FullDifference
from veneer.adapter.parts import without_bias
from veneer.adapter.protocol import AdapterWeights, LayerAdapter, LowRank, Method
from veneer.adapter.svd import decompose
from veneer.errors import UserError

__all__ = [
    "CRITERIA",
    "Criterion",
    "LayerCut",
    "Resized",
    "check_lower",
    "cut",
    "highest_rank",
    "resize",
    "retained",
]


def _energy(values: Tensor, share: float) -> int:
    """Return how many of the largest squares are this share of their sum."""
    tails = _tails(values)
    return int((tails[1:] > (1 - share) * tails[0]).sum()) + 1


def _frobenius(values: Tensor, error: float) -> int:
    """Return how many to keep for the rest to have at most this share of the norm."""
    tails = _tails(values).sqrt()
    return int((tails[1:] > error * tails[0]).sum()) + 1


def _sum(values: Tensor, share: float) -> int:
    """Return how many of the largest are this share of their sum."""
    return _energy(values.sqrt(), share)


def _ratio(values: Tensor, ratio: float) -> int:
    """Return how many are larger than the largest divided by a number."""
    return int((values > values[0] / ratio).sum())


def _tails(values: Tensor) -> Tensor:
    """Return the sums of squares from each place on; one by one from the end, so that small ones are not lost."""
    return values.square().flip(0).cumsum(0).flip(0)


@dataclass(frozen=True)
class _Kind:
    """A kind of criterion.

    Attributes:
        rank: of singular values that fall, and the number.
        is_share: whether the number is a share, else it is 1 or more.
        meaning: in words.
    """

    rank: Callable[[Tensor, float], int]
    is_share: bool
    meaning: str


CRITERIA: Mapping[str, _Kind] = {
    "energy": _Kind(_energy, True, "share of the squared singular values kept"),
    "frobenius": _Kind(_frobenius, True, "relative error of delta W, at most"),
    "sv_fro": _Kind(lambda values, share: _energy(values, share**2), True, "share of the Frobenius norm kept"),
    "sv_cumulative": _Kind(_sum, True, "share of the sum of the singular values kept"),
    "sv_ratio": _Kind(_ratio, False, "largest singular value over the smallest that is kept, less than"),
}
"""What a layer can be cut by; the last three are those of kohya's ``resize_lora.py``, which keeps one more.

``energy`` x is ``sv_fro`` of its root, and ``frobenius`` x is ``energy`` 1 - x^2.
"""


@dataclass(frozen=True)
class Criterion:
    """What each layer has to keep, from which its rank follows.

    Attributes:
        name: a key of ``CRITERIA``.
        number: how much of it.
    """

    name: str
    number: float

    def __post_init__(self) -> None:
        """Refuse a name or a number that has no meaning.

        Raises:
            UserError: it has none.
        """
        if self.name not in CRITERIA:
            what = f"{self.name!r} is nothing that layers are cut by"
            raise UserError(what, code="adapter.bad_criterion", remedy=f"use {', '.join(CRITERIA)}")
        is_share = CRITERIA[self.name].is_share
        if not (0 < self.number <= 1 if is_share else 1 <= self.number < math.inf):
            what = f"{self.name} is {self.number:g}"
            remedy = "use a share above 0 and up to 1" if is_share else "use 1 or more"
            raise UserError(what, code="adapter.bad_criterion", remedy=f"{remedy}: {CRITERIA[self.name].meaning}")

    def rank(self, values: Tensor) -> int:
        """Return the lowest rank that keeps enough, of singular values that fall; 1 where all are zero."""
        return max(1, CRITERIA[self.name].rank(values, self.number)) if bool(values.any()) else 1

    def __str__(self) -> str:
        """Return it as the command line has it: ``energy 0.95``."""
        return f"{self.name} {self.number:g}"


@dataclass(frozen=True)
class LayerCut:
    """What a cut has done to one layer.

    Attributes:
        before: its rank before.
        after: its rank now.
        parameters_before: numbers in A and B before.
        parameters_after: numbers in A and B now.
        squared_norm: of delta W, before.
        squared_norm_left: of what of it is left.
    """

    before: int
    after: int
    parameters_before: int
    parameters_after: int
    squared_norm: float
    squared_norm_left: float


@dataclass(frozen=True)
class Resized:
    """An adapter that was cut.

    Attributes:
        weights: the new adapter.
        layers: what was done to each layer, by path.
    """

    weights: AdapterWeights
    layers: Mapping[str, LayerCut]

    @property
    def retained(self) -> float:
        """Share of the Frobenius norm of all delta W that is left; 1 for an adapter that is zero."""
        return retained(self.layers.values())

    @property
    def is_smaller(self) -> bool:
        """Whether any layer has a lower rank than before."""
        return any(layer.after < layer.before for layer in self.layers.values())


def retained(layers: Iterable[LayerCut]) -> float:
    """Return the share of the Frobenius norm of some layers' delta W that is left; 1 where it is zero."""
    own = list(layers)
    total = sum(each.squared_norm for each in own)
    return math.sqrt(sum(each.squared_norm_left for each in own) / total) if total else 1.0


def highest_rank(weights: AdapterWeights) -> int:
    """Return the highest rank that an adapter has on any layer.

    Raises:
        UserError: it is of a method that has no rank to cut.
    """
    return max((product.rank for product in _products(weights).values()), default=0)


def cut(weights: AdapterWeights, rank: int | None = None, criterion: Criterion | None = None) -> Resized:
    """Return the adapter of lower ranks that is nearest to this one, layer by layer, in the Frobenius norm.

    delta W = s B A is cut after its largest singular values (Eckart and Young 1936), which are computed without forming
    it. They are shared evenly by both new factors, and alpha is their rank, which makes the strength 1. A layer whose
    rank is as low already is left as it is, and so are biases, norms and full differences.

    Args:
        weights: the adapter, whose updates are products of two thin matrices, as LoRA's are.
        rank: of each layer, at most; None: no limit.
        criterion: what each layer has to keep, unless the rank does not allow it; None: all that the rank allows.

    Raises:
        UserError: the rank is none, or the adapter is of a method that has no rank to cut.
    """
    if rank is not None and rank < 1:
        raise UserError(f"the rank is {rank}", code="adapter.bad_rank", remedy="use 1 or more")
    done = {path: _cut(weights[path], product, rank, criterion) for path, product in _products(weights).items()}
    new = {path: layer for path, (layer, _) in done.items()}
    layers = {path: told for path, (_, told) in done.items()}
    return Resized({path: new.get(path, layer) for path, layer in weights.items()}, layers)


def resize(weights: AdapterWeights, rank: int) -> AdapterWeights:
    """Return the adapter of a rank that is nearest to this one, as :func:`cut` makes it.

    Raises:
        UserError: the rank is not lower than the adapter's, or the adapter is of a method that has no rank to cut.
    """
    check_lower(weights, rank)
    return cut(weights, rank).weights


def check_lower(weights: AdapterWeights, rank: int) -> None:
    """Refuse a rank that is not lower than an adapter's highest.

    Raises:
        UserError: it is not, or the adapter is of a method that has no rank to cut.
    """
    if 1 <= rank < (highest := highest_rank(weights)):
        return
    if rank < 1:
        raise UserError(f"the rank is {rank}", code="adapter.bad_rank", remedy="use 1 or more")
    what = f"the adapter's rank is {highest}, which is not more than {rank}"
    raise UserError(what, code="adapter.rank_not_lower", remedy="use a lower one")


def _products(weights: AdapterWeights) -> dict[str, LowRank]:
    """Return the products of the layers that have a rank; full differences, biases and norms have none to cut."""
    parts = {path: own for path, layer in weights.items() if (own := without_bias(layer)) is not None}
    ranked = {path: own for path, own in parts.items() if not isinstance(own, FullDifference)}
    if not ranked:
        _refuse(FULL)
    products = {path: own.low_rank() for path, own in ranked.items()}
    if (path := next((path for path, product in products.items() if product is None), None)) is not None:
        _refuse(ranked[path].method)
    return {path: product for path, product in products.items() if product is not None}


def _refuse(method: Method) -> NoReturn:
    what = f"a {method.title} adapter cannot be cut to a lower rank"
    blend = "veneer adapter blend FILE --rank N -o OUT makes a LoRA of it"
    remedy = blend if method.is_additive else "train it anew with a lower adapter.rank"
    raise UserError(what, code="adapter.cannot_resize", remedy=remedy)


def _cut(
    layer: LayerAdapter, product: LowRank, rank: int | None, criterion: Criterion | None
) -> tuple[LayerAdapter, LayerCut]:
    whole = decompose(product)
    wanted = len(whole.values) if criterion is None else criterion.rank(whole.values)
    target = wanted if rank is None else min(rank, wanted)
    squares = whole.values.square()
    new: LayerAdapter = layer
    if product.rank <= target:
        target = product.rank
    else:
        new = whole.cut(target, torch.promote_types(product.up.dtype, product.down.dtype))
        new = BiasedAdapter(new, layer.difference) if isinstance(layer, BiasedAdapter) else new
    counts = layer.parameter_count, new.parameter_count
    return new, LayerCut(product.rank, target, *counts, float(squares.sum()), float(squares[:target].sum()))
