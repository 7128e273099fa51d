"""Two adapters compared layer by layer: their directions, their distance, and what of the base they amplify.

The measures are those of Hu et al. 2021: the similarity of subspaces (section 7.2, eq. 4) and the amplification of the
base's weight (section 7.3, table 7). delta W is not formed where it is a product of thin matrices.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from veneer.adapter.parts import without_bias
from veneer.adapter.protocol import LayerAdapter
from veneer.adapter.svd import Decomposition, decompose, decompose_dense
from veneer.errors import UserError

__all__ = [
    "SIDES",
    "Amplification",
    "LayerComparison",
    "Subspaces",
    "Update",
    "amplification",
    "compare_layer",
    "cosine",
    "drift",
    "inner_product",
    "mean_grid",
    "subspace_similarity",
    "update_of",
]

SIDES: Mapping[str, str] = {
    "A": "right singular vectors of A: what of the layer's input is read (section 7.2)",
    "input": "right singular vectors of delta W: what of the layer's input changes its output",
    "output": "left singular vectors of delta W: what of the layer's output is changed",
}
"""The subspaces that are compared."""
_ZERO = 1e-12  # of the largest singular value: what is below is the error of float64


@dataclass(frozen=True)
class Update:
    """One layer's delta W, taken apart.

    Attributes:
        whole: its singular value decomposition.
        bases: orthonormal vectors of each of ``SIDES`` as rows, the leading ones first; none of A where there is no A.
    """

    whole: Decomposition
    bases: Mapping[str, Tensor]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of delta W."""
        return self.whole.shape

    @property
    def squared_norm(self) -> float:
        """Squared Frobenius norm of delta W."""
        return float(self.whole.values.square().sum())

    @property
    def rank(self) -> int:
        """Singular values of delta W that are not zero."""
        return _rank(self.whole.values)


def update_of(path: str, adapter: LayerAdapter, weight: Tensor | None = None) -> Update | None:
    """Take a layer's delta W apart; None where only the bias is changed.

    Args:
        path: of the layer, for the message.
        adapter: of the layer.
        weight: the base's; methods that are additive can do without.

    Raises:
        UserError: the method needs the base's weight and there is none, or the adapter does not fit it.
    """
    if (part := without_bias(adapter)) is None:
        return None
    return _update(path, part, weight)


def _update(path: str, adapter: LayerAdapter, weight: Tensor | None) -> Update:
    if (product := adapter.low_rank()) is not None:
        whole = decompose(product)
        values, vectors = torch.linalg.svd(product.down.flatten(1).double(), full_matrices=False)[1:]
        return Update(whole, {"A": vectors[: _rank(values)], **_bases(whole)})
    if weight is not None and (fitted := adapter.fitted(tuple(weight.shape))) is not None:
        delta = fitted.to("cpu", torch.float32).delta_weight(weight.float())
    elif weight is not None:
        what = f"{path} is {adapter.shape} in the adapter and {tuple(weight.shape)} in the base"
        raise UserError(what, code="adapter.other_architecture", remedy="use the base that it was trained on")
    elif adapter.method.is_additive:
        delta = adapter.to("cpu", torch.float32).delta_weight(torch.empty(0))
    else:
        what = f"{path} has a {adapter.method.title} adapter, whose change of the layer depends on the base's weight"
        raise UserError(what, code="adapter.needs_base", remedy="name the base as well: --base")
    whole = decompose_dense(delta if delta.ndim > 1 else delta[None])
    return Update(whole, _bases(whole))


def _bases(whole: Decomposition) -> dict[str, Tensor]:
    rank = _rank(whole.values)
    return {"input": whole.right[:rank], "output": whole.left[:, :rank].T}


def _rank(values: Tensor) -> int:
    return int((values > _ZERO * values[0]).sum())


@dataclass(frozen=True)
class Subspaces:
    """The similarity of two adapters' leading directions on one side of a layer.

    Attributes:
        grid: phi(i, j), (r_A, r_B), float64.
        dimension: of the space that both lie in.
    """

    grid: Tensor
    dimension: int

    @property
    def rank(self) -> int:
        """The lower of both ranks: how many directions ``phi`` is of."""
        return min(self.grid.shape)

    @property
    def phi(self) -> float:
        """phi(r, r), r the lower of both ranks."""
        return float(self.grid[self.rank - 1, self.rank - 1])

    @property
    def by_chance(self) -> float:
        """What phi(r, r) of random directions is on average: r over the dimension."""
        return self.rank / self.dimension


def subspace_similarity(one: Tensor, other: Tensor) -> Tensor:
    """Return phi(i, j) = |U_A^i^T U_B^j|_F^2 / min(i, j) for all i and j (Hu et al. 2021, eq. 4), between 0 and 1.

    Args:
        one: orthonormal vectors as rows, the leading ones first: (r_A, d).
        other: the same of the other, (r_B, d).
    """
    squares = (one @ other.T.to(one.dtype)).square().cumsum(0).cumsum(1)
    i, j = (torch.arange(1, count + 1, dtype=one.dtype) for count in squares.shape)
    return squares / torch.minimum(i[:, None], j[None])


def inner_product(one: Update, other: Update) -> float:
    """Return <dW_A, dW_B> = tr(dW_A^T dW_B) = sum of s_i t_j (U_A^T U_B)_ij (V_A^T V_B)_ij, without forming them."""
    left = one.whole.left.double().T @ other.whole.left.double()
    right = one.whole.right.double() @ other.whole.right.double().T
    weights = one.whole.values.double()[:, None] * other.whole.values.double()[None]
    return float((weights * left * right).sum())


def squared_distance(one: Update, other: Update) -> float:
    """Return |dW_A - dW_B|_F^2, without the loss of digits that the norms less twice the inner product would have.

    The difference is [U_A S_A, -U_B S_B] [V_A, V_B]^T, whose norm is that of the product of two small triangles.
    """
    left = torch.cat([one.whole.left * one.whole.values, -other.whole.left * other.whole.values], dim=1).double()
    right = torch.cat([one.whole.right, other.whole.right]).double().T
    small_left, small_right = torch.linalg.qr(left, mode="r")[1], torch.linalg.qr(right, mode="r")[1]
    return float((small_left @ small_right.T).square().sum())


@dataclass(frozen=True)
class Amplification:
    """What an adapter makes of the base's weight in its own directions (Hu et al. 2021, section 7.3).

    Attributes:
        rank: r, the directions of delta W.
        delta_norm: |dW|_F.
        weight_norm: |W|_F.
        within: |U^T W V^T|_F: how much of W lies in the directions of delta W.
        within_random: the same in random directions, as the root of the mean square: r |W|_F / sqrt(out in).
    """

    rank: int
    delta_norm: float
    weight_norm: float
    within: float
    within_random: float

    @property
    def factor(self) -> float:
        """|dW|_F / |U^T W V^T|_F: how much larger the directions of delta W are made than they were."""
        return self.delta_norm / self.within if self.within else math.inf

    @property
    def alignment(self) -> float:
        """How much more of W lies in the directions of delta W than in random ones."""
        return self.within / self.within_random if self.within_random else math.nan


def amplification(update: Update, weight: Tensor) -> Amplification | None:
    """Return what an adapter amplifies of a weight; None where delta W is zero.

    Args:
        update: of the layer.
        weight: the base's, (out, in) or (out, in, kh, kw).
    """
    rank = update.rank
    if not rank:
        return None
    matrix = weight.double().reshape(weight.shape[0], -1) if weight.ndim > 1 else weight.double()[None]
    inside = update.bases["output"].double() @ matrix @ update.bases["input"].double().T
    norm = float(matrix.norm())
    random = rank * norm / math.sqrt(matrix.numel())
    return Amplification(rank, math.sqrt(update.squared_norm), norm, float(inside.norm()), random)


@dataclass(frozen=True)
class LayerComparison:
    """One layer of two adapters; of a layer that one of them lacks, its numbers are those of a delta W of zero.

    Attributes:
        lacking: whether each lacks the layer.
        ranks: singular values of each delta W that are not zero.
        squared_norms: of each delta W.
        inner: <dW_A, dW_B>.
        squared_distance: |dW_A - dW_B|^2.
        subspaces: by side, where both have directions on it.
        amplifications: of each, where the base is known.
    """

    lacking: tuple[bool, bool]
    ranks: tuple[int, int]
    squared_norms: tuple[float, float]
    inner: float
    squared_distance: float
    subspaces: Mapping[str, Subspaces] = field(default_factory=dict)
    amplifications: tuple[Amplification | None, Amplification | None] = (None, None)


def compare_layer(one: Update | None, other: Update | None, weight: Tensor | None = None) -> LayerComparison:
    """Compare one layer of two adapters.

    Args:
        one: the first one's delta W; None: it lacks the layer.
        other: the second one's.
        weight: the base's; None: amplification is not measured.
    """
    updates = (one, other)
    norms = tuple(0.0 if update is None else update.squared_norm for update in updates)
    ranks = tuple(0 if update is None else update.rank for update in updates)
    inner, distance, subspaces = 0.0, sum(norms), {}
    if one is not None and other is not None:
        inner, distance = inner_product(one, other), squared_distance(one, other)
        subspaces = {side: _subspaces(one.bases[side], other.bases[side]) for side in SIDES if _have(side, one, other)}
    amplified = [None if update is None or weight is None else amplification(update, weight) for update in updates]
    return LayerComparison(
        lacking=(one is None, other is None),
        ranks=(ranks[0], ranks[1]),
        squared_norms=(norms[0], norms[1]),
        inner=inner,
        squared_distance=distance,
        subspaces=subspaces,
        amplifications=(amplified[0], amplified[1]),
    )


def _have(side: str, *updates: Update) -> bool:
    return all(side in update.bases and len(update.bases[side]) for update in updates)


def _subspaces(one: Tensor, other: Tensor) -> Subspaces:
    return Subspaces(subspace_similarity(one.double(), other.double()), one.shape[1])


def cosine(layers: Iterable[LayerComparison]) -> float:
    """Return the cosine of two adapters' delta W, of all layers together: <A, B> / (|A| |B|); NaN where one is zero."""
    own = list(layers)
    norms = [math.sqrt(sum(layer.squared_norms[place] for layer in own)) for place in (0, 1)]
    return sum(layer.inner for layer in own) / (norms[0] * norms[1]) if all(norms) else math.nan


def drift(layers: Iterable[LayerComparison]) -> float:
    """Return how far the second is from the first: |A - B| / |A|, of all layers together; NaN where A is zero."""
    own = list(layers)
    norm = sum(layer.squared_norms[0] for layer in own)
    return math.sqrt(sum(layer.squared_distance for layer in own) / norm) if norm else math.nan


def mean_grid(subspaces: Iterable[Subspaces]) -> Tensor:
    """Return the mean of phi(i, j) over layers, of each i and j over the layers that have it."""
    grids = [each.grid for each in subspaces]
    size = [max(grid.shape[axis] for grid in grids) for axis in (0, 1)]
    total, count = torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    for grid in grids:
        total[: grid.shape[0], : grid.shape[1]] += grid
        count[: grid.shape[0], : grid.shape[1]] += 1
    return total / count
