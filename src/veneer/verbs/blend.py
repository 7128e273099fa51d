"""Blend several adapter files into one."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from veneer.adapter.blend import BlendPart, Pruning, blend
from veneer.adapter.patterns import matching
from veneer.errors import UserError
from veneer.family.block_weights import strengths_by_block
from veneer.files import check_free, opens_paths
from veneer.run.identity import BASE, HASHES, TRIGGER
from veneer.verbs.derived_file import OpenedAdapter, open_adapters
from veneer.weights.checkpoint import STATE
from veneer.weights.file import AdapterFile, family_of_file
from veneer.weights.metadata import common, derived

__all__ = ["BlendOptions", "BlendResult", "BlendSource", "BlockWeights", "blend_adapters"]


@opens_paths
@dataclass(frozen=True)
class BlendSource:
    """One of the adapters to blend.

    Attributes:
        file: the adapter, or the folder of its run.
        strength: what it is multiplied by; 1 is what it was trained at.
    """

    file: Path
    strength: float = 1.0


@dataclass(frozen=True)
class BlockWeights:
    """What some layers are multiplied by, beside the strength of their adapter.

    Attributes:
        pattern: of the layers: whole levels of their path, such as ``down_blocks.1`` or ``attn2.to_*``.
        weights: one number; or, without a pattern, a list of LoRA Block Weight: 12, 17, 20, 26 or 61 numbers.
        source: which adapter's, counted from 1; None: of all.
    """

    pattern: str | None
    weights: tuple[float, ...]
    source: int | None = None

    def __str__(self) -> str:
        """Return it as the command line takes it: ``2:down_blocks.1=0.5``."""
        values = ",".join(f"{weight:g}" for weight in self.weights)
        return (f"{self.source}:" if self.source else "") + (f"{self.pattern}=" if self.pattern else "") + values


@dataclass(frozen=True)
class BlendOptions:
    """How adapters are blended.

    Attributes:
        rank: of each layer, at most; None: that of the exact sum, and with a pruning the highest of the adapters'.
        pruning: of each delta W before they are added; None: none.
        block_weights: of some layers; where several match a layer, the last one counts.
        dtype: of the new file: ``float32``, ``float16`` or ``bfloat16``; None: float32, which is exact.
    """

    rank: int | None = None
    pruning: Pruning | None = None
    block_weights: tuple[BlockWeights, ...] = ()
    dtype: str | None = None


@dataclass(frozen=True)
class BlendResult:
    """What was blended.

    Attributes:
        path: the new file.
        layers: how many it changes.
        ranks: the lowest and the highest; None: all layers are full differences.
        retained: share of the Frobenius norm of all delta W that the cut to a rank has left; 1 without one.
        warnings: doubts about whether the adapters belong together.
    """

    path: Path
    layers: int
    ranks: tuple[int, int] | None
    retained: float
    warnings: tuple[str, ...]


@opens_paths
def blend_adapters(
    sources: Sequence[BlendSource],
    out: Path,
    *,
    options: BlendOptions | None = None,
    base: str | None = None,
    to: str | None = None,
) -> BlendResult:
    """Blend adapter files into one LoRA file: their weighted sum, exact unless it is cut to a rank.

    Args:
        sources: the adapters with their strengths.
        out: the new file.
        options: rank, pruning, block weights.
        base: the adapters'; asked only where the names in a file mean something beside a base alone, as kohya's do.
        to: the format of the new file; default: that of the first adapter.

    Raises:
        UserError: the new file is there already; a file cannot be read; the adapters are of different architectures, or
            of a method whose sum is no adapter.
    """
    options = options or BlendOptions()
    check_free(out)
    if not sources:
        raise UserError("no adapter is named", code="adapter.empty_blend", remedy="name one or more: A:0.8 B:0.5")
    _check_sources(options, len(sources))
    opened = open_adapters([source.file for source in sources], base, to=to, whole=True, without=True)
    parts = [
        BlendPart(each.adapter.weights, source.strength, str(source.file), _layer_strengths(number, each, options))
        for number, (source, each) in enumerate(zip(sources, opened, strict=True), start=1)
    ]
    _check_families(opened)
    blended = blend(parts, rank=options.rank, pruning=options.pruning)
    opened[0].save(AdapterFile(blended.weights, _metadata(sources, opened, options)), out, to, options.dtype)
    ranks = {
        int(layer.hyperparameters["rank"]) for layer in blended.weights.values() if "rank" in layer.hyperparameters
    }
    bounds = (min(ranks), max(ranks)) if ranks else None
    return BlendResult(out, len(blended.weights), bounds, blended.retained, tuple(_doubts(opened)))


def _check_families(opened: Sequence[OpenedAdapter]) -> None:
    """Refuse adapters of different families of bases, as far as their files tell."""
    told = {family: each.path for each in opened if (family := _family(each)) is not None}
    for one, other in combinations(told, 2):
        if one not in other and other not in one:  # some files tell "FLUX or Stable Diffusion 3"
            what = f"{told[one].name} is of {one}, and {told[other].name} of {other}"
            raise UserError(what, code="adapter.different_architectures", remedy="blend adapters of one base")


def _family(opened: OpenedAdapter) -> str | None:
    return None if opened.path.name == STATE else family_of_file(opened.path)


def _layer_strengths(number: int, opened: OpenedAdapter, options: BlendOptions) -> dict[str, float]:
    """Return what single layers of an adapter are multiplied by."""
    strengths: dict[str, float] = {}
    for each in options.block_weights:
        if each.source in (None, number):
            strengths |= _strengths(each, opened.adapter.weights)
    return strengths


def _strengths(each: BlockWeights, paths: Collection[str]) -> dict[str, float]:
    if not all(math.isfinite(weight) for weight in each.weights):
        raise UserError("a block weight is no finite number", code="adapter.bad_block_weights")
    if each.pattern is None:
        return strengths_by_block(each.weights, paths)
    return dict.fromkeys(matching(each.pattern, paths), each.weights[0])


def _check_sources(options: BlendOptions, count: int) -> None:
    if wrong := next((each for each in options.block_weights if each.source and each.source > count), None):
        what = f"block weights are given for adapter {wrong.source}, and there are {count}"
        raise UserError(what, code="adapter.bad_block_weights")


def _metadata(sources: Sequence[BlendSource], opened: Sequence[OpenedAdapter], options: BlendOptions) -> dict[str, str]:
    """Return what all files say alike, their trigger words joined, and how they were blended."""
    said = [each.adapter.metadata for each in opened]
    kept = common(said)
    for key in (TRIGGER, "modelspec.trigger_phrase"):
        if words := dict.fromkeys(each[key] for each in said if each.get(key)):
            kept[key] = ", ".join(words)
    details = _details(options) | {"strengths": ", ".join(f"{source.strength:g}" for source in sources)}
    return derived(kept, "blend", [each.source for each in opened], **details)


def _details(options: BlendOptions) -> dict[str, str | int | float | None]:
    pruning = options.pruning
    how: dict[str, str | int | float | None] = {"rank": options.rank, "dtype": options.dtype}
    if pruning is not None:
        how |= {"method": pruning.method, "density": pruning.density, "seed": pruning.seed}
        how |= {"majority_sign": pruning.majority_sign}
    if options.block_weights:
        how["block_weights"] = "; ".join(map(str, options.block_weights))
    return how


def _doubts(opened: Sequence[OpenedAdapter]) -> list[str]:
    doubts = [note for each in opened for note in each.notes]
    key = HASHES[BASE]
    bases = {each.adapter.metadata[key] for each in opened if key in each.adapter.metadata}
    if len(bases) < 2:
        return doubts
    return [*doubts, "the adapters were trained on different bases, so together they may do less than each on its own"]
