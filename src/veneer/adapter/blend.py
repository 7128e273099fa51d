"""Several adapters blended into one: their weighted sum, exact or cut to a rank, or by TIES, DARE or magnitude pruning.

The pruning methods (Yadav et al. 2023, Yu et al. 2024) are defined on what training changed, which is delta W; they are
applied to it by peft's functions, layer by layer, and the result is cut to a rank. peft can also apply them to A and B
(its kinds without ``_svd``): delta W = B A = (B R^-1)(R A) for any invertible R, so an entry's size and sign in A or B
alone mean nothing, and the product of two sums has terms B_i A_j of adapters that have nothing to do with each other.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from veneer.adapter.biased import BiasedAdapter
from veneer.adapter.full import FullDifference
from veneer.adapter.merge import combine
from veneer.adapter.parts import without_bias
from veneer.adapter.peft_library import merge_utils
from veneer.adapter.protocol import AdapterWeights, LayerAdapter, LowRank, check_strength
from veneer.adapter.svd import decompose, decompose_dense
from veneer.errors import UserError
from veneer.rng import key

__all__ = ["BlendPart", "Blended", "Pruning", "PruningMethod", "blend"]

PruningMethod: TypeAlias = Literal["ties", "dare", "dare_ties", "magnitude"]

_FUNCTIONS: Mapping[str, Callable[..., Tensor]] = {
    "ties": merge_utils.ties,
    "dare": merge_utils.dare_linear,
    "dare_ties": merge_utils.dare_ties,
    "magnitude": merge_utils.magnitude_prune,
}
_ELECTS_SIGNS = ("ties", "dare_ties")


@dataclass(frozen=True)
class Pruning:
    """How each delta W is pruned before they are added.

    Attributes:
        method: ``ties`` keeps the largest entries and adds those of the sign that prevails; ``dare`` keeps random
            entries and enlarges them; ``dare_ties`` keeps those, and adds by signs; ``magnitude`` keeps the largest.
        density: share of the entries of each delta W that is kept.
        majority_sign: whether the sign of an entry prevails by the sum of the values or by how many have it.
        seed: of the random entries.
    """

    method: PruningMethod
    density: float = 0.5
    majority_sign: Literal["total", "frequency"] = "total"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a share that is none.

        Raises:
            UserError: it is none.
        """
        if not 0 < self.density <= 1:
            remedy = "use a share above 0 and up to 1"
            raise UserError(f"the density is {self.density}", code="adapter.bad_density", remedy=remedy)


@dataclass(frozen=True)
class BlendPart:
    """One of the adapters of a blend.

    Attributes:
        weights: the adapter.
        strength: what all of its delta W are multiplied by.
        name: names it in messages.
        layer_strengths: what single layers are multiplied by as well.
    """

    weights: AdapterWeights
    strength: float = 1.0
    name: str = "adapter"
    layer_strengths: Mapping[str, float] = field(default_factory=dict)

    def strength_of(self, path: str) -> float:
        """Return what a layer's delta W is multiplied by."""
        return self.strength * self.layer_strengths.get(path, 1.0)


@dataclass(frozen=True)
class Blended:
    """The result of a blend.

    Attributes:
        weights: the adapter.
        retained: share of the Frobenius norm of all delta W that the cut to a rank has left; 1 without one.
    """

    weights: AdapterWeights
    retained: float


_Terms: TypeAlias = "list[tuple[LayerAdapter, float]]"


def blend(parts: Sequence[BlendPart], *, rank: int | None = None, pruning: Pruning | None = None) -> Blended:
    """Return one adapter that does what several do together: a LoRA, or on layers with full differences one of these.

    Without a rank and a pruning it is their weighted sum, exact: the ranks side by side, and full differences added. A
    layer that all of them have at strength 0 is left out. Biases and norms are added and never cut.

    Args:
        parts: the adapters.
        rank: of each layer, at most; default: all ranks together, and with a pruning the highest of them.
        pruning: of each delta W before they are added; None: none.

    Raises:
        UserError: an adapter's delta W is not told by its file alone, or it has no low rank and no rank is given; two
            disagree on the shape of a layer; a strength is no finite number; or nothing is left.
    """
    if rank is not None and rank < 1:
        raise UserError(f"the rank is {rank}", code="adapter.bad_rank", remedy="use 1 or more")
    for part in parts:
        check_strength(part.strength, part.name)
        _check_additive(part)
    layers = {path: _terms(path, parts) for path in sorted({path for part in parts for path in part.weights})}
    if rank is None and pruning is None:
        _check_exact(layers)
    cuts = [_blend_layer(path, terms, rank, pruning) for path, terms in layers.items() if terms]
    if not cuts:
        raise UserError("every layer has the strength 0, so nothing is left", code="adapter.empty_blend")
    weights = dict(zip((path for path, terms in layers.items() if terms), (cut.layer for cut in cuts), strict=True))
    total = sum(cut.total for cut in cuts)
    return Blended(weights, math.sqrt(sum(cut.left for cut in cuts) / total) if total else 1.0)


@dataclass(frozen=True)
class _Cut:
    """One layer of a blend, with the squared norm of its delta W before and after it was cut to a rank."""

    layer: LayerAdapter
    total: float = 0.0
    left: float = 0.0


def _blend_layer(path: str, terms: _Terms, rank: int | None, pruning: Pruning | None) -> _Cut:
    """Return the sum of a layer's adapters; trained biases are added beside it, and never cut or pruned."""
    weights = [(own, strength) for adapter, strength in terms if (own := without_bias(adapter)) is not None]
    bias = _sum_of_biases(terms)
    if not weights:
        assert bias is not None, "an adapter changes a weight or a bias"
        return _Cut(FullDifference({FullDifference.BIAS: bias}, {}))
    cut = _blend_weights(path, weights, rank, pruning)
    return cut if bias is None else replace(cut, layer=_with_bias(cut.layer, bias))


def _blend_weights(path: str, terms: _Terms, rank: int | None, pruning: Pruning | None) -> _Cut:
    thin = [product for adapter, _ in terms if (product := adapter.low_rank()) is not None]
    if pruning is None and len(thin) == len(terms):
        layer = combine([({path: adapter}, strength) for adapter, strength in terms])[path]
        return _Cut(layer) if rank is None or layer.rank <= rank else _cut_product(layer.low_rank(), rank)
    full = next((adapter for adapter, _ in terms if isinstance(adapter, FullDifference)), None)
    if full is not None and (len(full.shape) == 1 or (rank is None and pruning is None)):
        return _Cut(type(full)({full.WEIGHT: _dense(path, terms, None)}, {}))
    rank = max((product.rank for product in thin), default=1) if rank is None else rank
    return _cut_dense(_dense(path, terms, pruning), rank)


def _sum_of_biases(terms: _Terms) -> Tensor | None:
    """Return the weighted sum of what is added to a layer's bias, float32; None: nothing is."""
    sizes = {adapter.bias_size for adapter, _ in terms} - {None}
    if not sizes:
        return None
    total = torch.zeros(next(size for size in sizes if size is not None))
    for adapter, strength in terms:
        if (own := adapter.to("cpu", torch.float32).delta_bias(torch.zeros_like(total))) is not None:
            total += strength * own
    return total


def _with_bias(layer: LayerAdapter, bias: Tensor) -> LayerAdapter:
    if isinstance(layer, FullDifference):
        return replace(layer, tensors={**layer.tensors, layer.BIAS: bias})
    return BiasedAdapter(layer, bias)


def _cut_product(product: LowRank, rank: int) -> _Cut:
    whole = decompose(product)
    squares = whole.values.square()
    return _Cut(whole.cut(rank, torch.float32), float(squares.sum()), float(squares[:rank].sum()))


def _cut_dense(delta: Tensor, rank: int) -> _Cut:
    leading = decompose_dense(delta, rank)
    left = float(leading.values[:rank].double().square().sum())
    return _Cut(leading.cut(rank, torch.float32), max(left, float(delta.double().square().sum())), left)


def _dense(path: str, terms: _Terms, pruning: Pruning | None) -> Tensor:
    """Return the sum of a layer's delta W, each pruned before, float32."""
    deltas = [adapter.to("cpu", torch.float32).delta_weight(torch.empty(0)) for adapter, _ in terms]
    strengths = torch.tensor([strength for _, strength in terms])
    if pruning is None:
        return torch.stack([strength * delta for strength, delta in zip(strengths, deltas, strict=True)]).sum(0)
    settings: dict[str, Any] = {"density": pruning.density}
    if pruning.method in _ELECTS_SIGNS:
        settings["majority_sign_method"] = pruning.majority_sign
    # peft's functions draw from torch's own generator
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(key(pruning.seed, "blend", path))
        warnings.filterwarnings("ignore", message="The density .* no pruning")
        return _FUNCTIONS[pruning.method](deltas, strengths, **settings)


def _terms(path: str, parts: Sequence[BlendPart]) -> _Terms:
    """Return the adapters of one layer with their strengths, once they are known to fit each other."""
    having = [part for part in parts if path in part.weights]
    shapes = {part.weights[path].shape: part.name for part in having if without_bias(part.weights[path]) is not None}
    sizes = {part.weights[path].shape[0] for part in having}  # of outputs, which is all that a bias alone tells
    if len(shapes) > 1 or len(sizes) > 1:
        told = " and ".join(f"{part.weights[path].shape} in {part.name}" for part in having)
        what = f"the adapters are of different architectures: {path} is {told}"
        raise UserError(what, code="adapter.different_architectures")
    strengths = [(part.weights[path], part.strength_of(path)) for part in having]
    return [(adapter, strength) for adapter, strength in strengths if strength != 0]


def _check_additive(part: BlendPart) -> None:
    method = next((each.method for each in part.weights.values() if not each.method.is_additive), None)
    if method is not None:
        what = f"{part.name} is a {method.title} adapter, whose change of a layer depends on the base's weight"
        remedy = "merge the adapters into the base instead, each with its strength: veneer adapter merge"
        raise UserError(what, code="adapter.cannot_combine", remedy=remedy)


def _check_exact(layers: Mapping[str, _Terms]) -> None:
    """Refuse adapters whose sum would have to be cut to a rank, if none is told.

    A sum is exact where all have low rank, and where one is a full difference, for then it is one as well.
    """
    for path, terms in layers.items():
        adapters = [own for adapter, _ in terms if (own := without_bias(adapter)) is not None]
        dense = next((adapter for adapter in adapters if adapter.low_rank() is None), None)
        if dense is not None and not any(isinstance(adapter, FullDifference) for adapter in adapters):
            what = f"{path} has a {dense.method.title} adapter, whose ranks cannot be put beside those of others"
            remedy = "name a --rank, to which the sum is cut, or merge the adapters into the base: veneer adapter merge"
            raise UserError(what, code="adapter.cannot_combine", remedy=remedy)
