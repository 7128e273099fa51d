"""Blend several adapter files into one."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from veneer.adapter.blend import BlendPart, Pruning, blend
from veneer.adapter.patterns import matching
from veneer.adapter.protocol import AdapterWeights
from veneer.errors import UserError
from veneer.family.block_weights import strengths_by_block
from veneer.family.loading import load_base
from veneer.files import opens_paths
from veneer.run.folder import base_beside
from veneer.run.identity import BASE, HASHES, TRIGGER
from veneer.weights.file import AdapterFile, AdapterInfo, info, load, save

__all__ = ["BlendOptions", "BlendResult", "BlockWeights", "Source", "blend_adapters"]

_FROM, _HOW = "veneer.blended.from", "veneer.blended.how"


@opens_paths
@dataclass(frozen=True)
class Source:
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


@dataclass(frozen=True)
class BlendOptions:
    """How adapters are blended.

    Attributes:
        rank: of each layer, at most; None: that of the exact sum, and with a pruning the highest of the adapters'.
        pruning: of each delta W before they are added; None: none.
        block_weights: of some layers; where several match a layer, the last one counts.
    """

    rank: int | None = None
    pruning: Pruning | None = None
    block_weights: tuple[BlockWeights, ...] = ()


@dataclass(frozen=True)
class BlendResult:
    """What was blended.

    Attributes:
        path: the new file.
        layers: how many it changes.
        ranks: the lowest and the highest.
        retained: share of the Frobenius norm of all delta W that the cut to a rank has left; 1 without one.
        warnings: doubts about whether the adapters belong together.
    """

    path: Path
    layers: int
    ranks: tuple[int, int]
    retained: float
    warnings: tuple[str, ...]


@opens_paths
def blend_adapters(
    sources: Sequence[Source], out: Path, *, options: BlendOptions | None = None, base: str | None = None
) -> BlendResult:
    """Blend adapter files into one LoRA file: their weighted sum, exact unless it is cut to a rank.

    Args:
        sources: the adapters with their strengths.
        out: the new file.
        options: rank, pruning, block weights.
        base: the adapters'; asked only where the names in a file mean something beside a base alone, as kohya's do.

    Raises:
        UserError: the new file is there already; a file cannot be read; the adapters are of different architectures, or
            of a method whose sum is no adapter.
    """
    options = options or BlendOptions()
    if out.exists():
        raise UserError("is there already", code="output.exists", where=out, remedy="choose another --out")
    if not sources:
        raise UserError("no adapter is named", code="adapter.empty_blend", remedy="name one or more: A:0.8 B:0.5")
    contents = [info(source.file) for source in sources]
    files = _load_all(sources, contents, base)
    parts = [
        BlendPart(file.weights, source.strength, str(source.file), _layer_strengths(number, file.weights, options))
        for number, (source, file) in enumerate(zip(sources, files, strict=True), start=1)
    ]
    _check_sources(options, len(sources))
    blended = blend(parts, rank=options.rank, pruning=options.pruning)
    metadata = {**_common([file.metadata for file in files]), **_origin(sources, contents, options)}
    save(AdapterFile(blended.weights, metadata), out)
    ranks = [int(layer.hyperparameters["rank"]) for layer in blended.weights.values()]
    bounds = (min(ranks), max(ranks))
    return BlendResult(out, len(ranks), bounds, blended.retained, tuple(_doubts([file.metadata for file in files])))


def _load_all(sources: Sequence[Source], contents: Sequence[AdapterInfo], base: str | None) -> list[AdapterFile]:
    """Load all adapters under one base's names for layers, where one of them needs a base, else under their own."""
    needing = next((source for source, each in zip(sources, contents, strict=True) if each.needs_base), None)
    if needing is None:
        return [load(source.file) for source in sources]
    networks = load_base(base or base_beside(needing.file)).networks
    return [load(source.file, networks) for source in sources]


def _layer_strengths(number: int, weights: AdapterWeights, options: BlendOptions) -> dict[str, float]:
    """Return what single layers of an adapter are multiplied by."""
    strengths: dict[str, float] = {}
    for each in options.block_weights:
        if each.source in (None, number):
            strengths |= _strengths(each, weights)
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


def _common(metadata: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return what all files say alike, and their trigger words joined."""
    first, *others = metadata
    common = {key: text for key, text in first.items() if all(other.get(key) == text for other in others)}
    triggers = dict.fromkeys(each[TRIGGER] for each in metadata if each.get(TRIGGER))
    return {**common, TRIGGER: ", ".join(triggers)} if triggers else common


def _origin(sources: Sequence[Source], contents: Sequence[AdapterInfo], options: BlendOptions) -> dict[str, str]:
    """Return what was blended and how, as metadata."""
    named = [
        {"name": source.file.stem, "sha256": content.sha256, "strength": source.strength}
        for source, content in zip(sources, contents, strict=True)
    ]
    how: dict[str, object] = {"method": options.pruning.method if options.pruning else "sum"}
    if options.pruning is not None:
        how |= vars(options.pruning)
    if options.rank is not None:
        how["rank"] = options.rank
    if options.block_weights:
        how["block_weights"] = [vars(each) for each in options.block_weights]
    return {_FROM: json.dumps(named), _HOW: json.dumps(how, sort_keys=True)}


def _doubts(metadata: Sequence[Mapping[str, str]]) -> list[str]:
    bases = {each[HASHES[BASE]] for each in metadata if HASHES[BASE] in each}
    if len(bases) < 2:
        return []
    return ["the adapters were trained on different bases, so together they may do less than each on its own"]
