"""Extract an adapter from a fine-tuned base: the LoRA nearest to what was changed of its parent."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from veneer.adapter.biased import BiasedAdapter
from veneer.adapter.extract import extract
from veneer.adapter.full import FullDifference, NormDifference
from veneer.adapter.lora import LoraFactors
from veneer.adapter.patterns import matching
from veneer.adapter.protocol import LayerAdapter
from veneer.adapter.resize import Criterion
from veneer.errors import UserError
from veneer.family.base_weights import BaseWeights
from veneer.family.fingerprint import fingerprint
from veneer.files import check_free, opens_paths
from veneer.run.identity import BASE, BASE_NAME, HASHES
from veneer.verbs.adapter_base import base_names
from veneer.verbs.layer_groups import by_kind
from veneer.verbs.merged_files import Progress
from veneer.weights.file import AdapterFile, format_named, save
from veneer.weights.formats.protocol import BaseNames
from veneer.weights.metadata import Source, derived

__all__ = ["ExtractOptions", "ExtractResult", "KindShare", "Lost", "extract_adapter"]

_RETAINED = "veneer.extracted.retained"
"""Metadata key: what share of the change's norm the adapter has, by kind of layer, as JSON."""
_TEXT_ENCODER = "text_encoder"


@dataclass(frozen=True)
class ExtractOptions:
    """What is extracted, and how much of it is kept.

    Attributes:
        rank: of each layer, at most; None: no limit.
        criterion: what each layer has to keep, from which its rank follows.
        targets: patterns of the layers; None: all linear layers and convolutions.
        text_encoders: whether layers of the text encoders are extracted too.
        keep_rest: whether changes of biases and norms are kept as they are.
        to: the format of the new file.
        dtype: of its tensors; None: float32.
    """

    rank: int | None = None
    criterion: Criterion | None = None
    targets: tuple[str, ...] = ()
    text_encoders: bool = False
    keep_rest: bool = False
    to: str = "diffusers"
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        """Refuse what tells no size.

        Raises:
            UserError: neither a rank nor what to keep is told, or the rank is below 1.
        """
        if self.rank is None and self.criterion is None:
            raise UserError("neither a rank nor what to keep is told", code="adapter.bad_rank", remedy="tell either")
        if self.rank is not None and self.rank < 1:
            raise UserError(f"the rank is {self.rank}", code="adapter.bad_rank", remedy="use 1 or more")


@dataclass(frozen=True)
class KindShare:
    """What was extracted of the layers of one kind.

    Attributes:
        kind: of the layers: ``attn1.to_q``; ``all`` of all together.
        layers: how many they are.
        ranks: lowest and highest.
        retained: share of the Frobenius norm of their changes that the adapter has.
    """

    kind: str
    layers: int
    ranks: tuple[int, int]
    retained: float


@dataclass(frozen=True)
class Lost:
    """Changes of a kind that the adapter does not have at all.

    Attributes:
        what: they are of, in words.
        count: how many weights.
        share: of the norm of all that was changed.
        example: the weight whose change is largest.
    """

    what: str
    count: int
    share: float
    example: str


@dataclass(frozen=True)
class ExtractResult:
    """What was extracted.

    Attributes:
        path: the new file.
        kinds: what of the layers' changes it has, by kind of layer, and last of all together.
        lost: changes that it does not have.
        retained: share of the norm of all that was changed, what is lost included, that the adapter has.
        unchanged: how many weights are as in the parent.
    """

    path: Path
    kinds: tuple[KindShare, ...]
    lost: tuple[Lost, ...]
    retained: float
    unchanged: int


@opens_paths
def extract_adapter(
    tuned: str, base: str, out: Path, options: ExtractOptions, *, progress: Progress | None = None
) -> ExtractResult:
    """Write the LoRA that is nearest to what a fine-tuned base has changed of its parent, layer by layer.

    Memory holds one layer of both bases at a time, and the adapter. Nothing is passed over silently: layers as they are
    in the parent have none, and every change that the adapter does not have is named with its share.

    Args:
        tuned: the fine-tuned base: a folder in diffusers' layout, a single file, or a hub id.
        base: its parent.
        out: the new file.
        options: rank or what to keep, and which layers.
        progress: is told of bytes of the parent that are done, and of all.

    Raises:
        UserError: the bases are of different architectures, are the same, or cannot be read; the new file is there
            already, or its format has no place for what is extracted.
    """
    check_free(out)
    format_named(options.to)
    parent, child = BaseWeights.open(base), BaseWeights.open(tuned)
    names = _common(parent, child, options.text_encoders)
    names_of_base = None if options.to == "diffusers" else base_names(out, base)
    _check_format(parent, options, names_of_base)
    found = _Extraction(parent, child, _targets(parent, options), options)
    sizes = [parent.stored[name].nbytes for name in names]
    for place, name in enumerate(names, start=1):
        found.add(name)
        if progress is not None:
            progress(sum(sizes[:place]), sum(sizes))
    if not found.factors:
        what = "has no layer to extract that differs from its parent's"
        raise UserError(what, code="adapter.nothing_to_extract", where=tuned, remedy="name another --base or --targets")
    adapter = AdapterFile(found.weights(), _metadata(tuned, base, options, found))
    save(adapter, out, options.to, names_of_base, options.dtype)
    return ExtractResult(out, found.kinds(), found.losses(), found.retained, found.unchanged)


def _check_format(parent: BaseWeights, options: ExtractOptions, names: BaseNames | None) -> None:
    """Refuse a format that has no place for what is kept of norms, before anything is computed.

    Raises:
        UserError: it has none.
    """
    norms = (name for name, stored in parent.stored.items() if name.endswith(".weight") and len(stored.shape) == 1)
    if options.keep_rest and (norm := next(norms, None)) is not None:
        change = {NormDifference.WEIGHT: torch.zeros(parent.stored[norm].shape)}
        format_named(options.to).write({norm.removesuffix(".weight"): NormDifference(change, {})}, names)


def _common(parent: BaseWeights, child: BaseWeights, text_encoders: bool) -> list[str]:
    """Return the names of the weights that are compared, once the bases are known to be of one architecture.

    Text encoders that are not extracted need not be the same: what both have of them is compared, to tell what is lost.

    Raises:
        UserError: they are not.
    """

    def is_wanted(name: str) -> bool:
        return text_encoders or not name.startswith(_TEXT_ENCODER)

    for one, other, words in (
        (parent, child, "the tuned base has no {}, which the parent has"),
        (child, parent, "the tuned base has {}, which the parent has not"),
    ):
        if missing := next((name for name in one.stored if is_wanted(name) and name not in other.stored), None):
            raise _different(words.format(missing))
    names = [name for name in parent.stored if name in child.stored]
    for name in names:
        found, own = child.stored[name].shape, parent.stored[name].shape
        if is_wanted(name) and not _same_shape(found, own):
            raise _different(f"{name} is {found} in it and {own} in the parent")
    return [name for name in names if _same_shape(child.stored[name].shape, parent.stored[name].shape)]


def _different(difference: str) -> UserError:
    what = f"the bases are of different architectures: {difference}"
    return UserError(what, code="adapter.other_architecture", remedy="name the base that it was tuned from")


def _same_shape(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Return whether shapes are the same, or those of a linear layer and of a convolution of 1 x 1."""
    short, long = sorted((one, other), key=len)
    return long == (*short, *(1 for _ in long[len(short) :]))


def _targets(parent: BaseWeights, options: ExtractOptions) -> set[str]:
    """Return the layers that are extracted.

    Raises:
        UserError: a pattern matches none.
    """
    layers = [each for each in parent.layers() if options.text_encoders or not each.startswith(_TEXT_ENCODER)]
    chosen = (matching(pattern, layers) for pattern in options.targets)
    return set(layers) if not options.targets else {layer for found in chosen for layer in found}


@dataclass
class _Extraction:
    """What was extracted so far.

    Attributes:
        factors: the LoRA of each layer.
        sizes: of each layer |delta W|^2, and what of that the LoRA has.
        rest: changes of biases and norms that are kept as they are, by layer and part.
        lost: |change|^2 of each weight that the adapter does not have.
        unchanged: how many weights are as in the parent.
    """

    parent: BaseWeights
    child: BaseWeights
    targets: Collection[str]
    options: ExtractOptions
    factors: dict[str, LoraFactors] = field(default_factory=dict)
    sizes: dict[str, tuple[float, float]] = field(default_factory=dict)
    rest: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    lost: dict[str, float] = field(default_factory=dict)
    unchanged: int = 0

    def add(self, name: str) -> None:
        """Compare one weight, and extract its change.

        Raises:
            UserError: it holds NaN or infinity.
        """
        delta, (layer, _, part) = self._change(name), name.rpartition(".")
        if delta is None:
            self.unchanged += 1
        elif part == "weight" and layer in self.targets:
            found = extract(delta, self.options.rank, self.options.criterion, key=layer)
            self.factors[layer], self.sizes[layer] = found.factors, (found.squared_norm, found.squared_norm_left)
        elif self.options.keep_rest and self._is_wanted(layer) and delta.ndim == 1 and part in ("weight", "bias"):
            self.rest.setdefault(layer, {})[part] = delta
        else:
            self.lost[name] = _squared_norm(delta)

    def _change(self, name: str) -> Tensor | None:
        """Return what was changed of a weight, float32, in the parent's shape; None: nothing."""
        before = self.parent.stored[name].read().float()
        delta = self.child.stored[name].read().float().reshape(before.shape).sub_(before)
        if not bool(torch.isfinite(delta).all()):
            what = f"{name} holds NaN or infinity, in the tuned base or in its parent"
            raise UserError(what, code="adapter.base_not_finite", remedy="use another version of them")
        return delta if bool(delta.any()) else None

    def _is_wanted(self, layer: str) -> bool:
        return self.options.text_encoders or not layer.startswith(_TEXT_ENCODER)

    def weights(self) -> dict[str, LayerAdapter]:
        """Return the adapter: LoRAs, with the biases that are kept beside them, and differences of other layers."""
        weights: dict[str, LayerAdapter] = dict(self.factors)
        for layer, deltas in self.rest.items():
            weights[layer] = self._with_rest(layer, deltas)
        return dict(sorted(weights.items()))

    def _with_rest(self, layer: str, deltas: Mapping[str, Tensor]) -> LayerAdapter:
        if layer in self.factors:
            return BiasedAdapter(self.factors[layer], deltas["bias"])
        bias = {FullDifference.BIAS: deltas["bias"]} if "bias" in deltas else {}
        weight = self.parent.find(layer)
        if weight is None or len(weight.shape) > 1:
            return FullDifference(bias, {})
        bias = {NormDifference.BIAS: deltas["bias"]} if "bias" in deltas else {}
        change = deltas.get("weight", torch.zeros(weight.shape))
        return NormDifference({NormDifference.WEIGHT: change, **bias}, {})

    def kinds(self) -> tuple[KindShare, ...]:
        """Return what was kept of the layers of each kind, and of all together."""
        kinds = by_kind((layer, layer) for layer in self.factors)
        return tuple(self._share(kind, own) for kind, own in [*kinds.items(), ("all", list(self.factors))])

    def _share(self, kind: str, layers: Sequence[str]) -> KindShare:
        ranks = [self.factors[layer].rank for layer in layers]
        whole, left = (math.fsum(self.sizes[layer][place] for layer in layers) for place in (0, 1))
        return KindShare(kind, len(layers), (min(ranks), max(ranks)), math.sqrt(left / whole))

    def losses(self) -> tuple[Lost, ...]:
        """Return what the adapter does not have, the largest share first."""
        groups: dict[str, list[str]] = {}
        for name in self.lost:
            groups.setdefault(self._group(name), []).append(name)
        found = [self._loss(what, names) for what, names in groups.items()]
        return tuple(sorted(found, key=lambda loss: -loss.share))

    def _group(self, name: str) -> str:
        """Return in words what a weight is, whose change is lost."""
        layer, _, part = name.rpartition(".")
        if not self._is_wanted(layer):
            return f"weights of {layer.partition('.')[0]}, which is not asked for (--text-encoders)"
        if part == "bias":
            return "biases"
        if len(self.parent.stored[name].shape) == 1:
            return "norms"
        return "layers that no target names" if layer in set(self.parent.layers()) else "embeddings and other tables"

    def _loss(self, what: str, names: Sequence[str]) -> Lost:
        size = math.fsum(self.lost[name] for name in names)
        return Lost(what, len(names), math.sqrt(size / self._total()), max(names, key=self.lost.__getitem__))

    def _total(self) -> float:
        """Return |change|^2 of all that was changed."""
        kept = [_squared_norm(delta) for deltas in self.rest.values() for delta in deltas.values()]
        return math.fsum([*kept, *self.lost.values(), *(size for size, _ in self.sizes.values())])

    @property
    def retained(self) -> float:
        """Share of the norm of all that was changed that the adapter has."""
        total = self._total()
        missing = math.fsum([*self.lost.values(), *(size - left for size, left in self.sizes.values())])
        return math.sqrt(max(0.0, 1 - missing / total))


def _squared_norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2


def _metadata(tuned: str, base: str, options: ExtractOptions, found: _Extraction) -> dict[str, str]:
    """Return what the file says of where it comes from, and of what it has lost."""
    keeping = None if options.criterion is None else str(options.criterion)
    parent = Source(base, fingerprint(base))
    metadata = derived({}, "extract", [Source(tuned, fingerprint(tuned))], rank=options.rank, keeping=keeping)
    shares = {each.kind: round(each.retained, 6) for each in found.kinds()}
    metadata[_RETAINED] = json.dumps({**shares, "with all that was changed": round(found.retained, 6)})
    return {**metadata, BASE_NAME: parent.as_dict()["name"], HASHES[BASE]: parent.as_dict()["sha256"]}
