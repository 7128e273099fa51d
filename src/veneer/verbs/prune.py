"""Drop layers of an adapter file: its text encoders, some blocks, or all but some."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from veneer.adapter.patterns import matching
from veneer.adapter.protocol import AdapterWeights
from veneer.errors import UserError
from veneer.family.base_weights import BaseWeights
from veneer.files import check_free, opens_paths
from veneer.verbs.derived_file import open_adapters, written_bytes
from veneer.weights.file import AdapterFile
from veneer.weights.formats.places import place_of
from veneer.weights.metadata import derived

__all__ = ["PruneOptions", "PruneResult", "prune_adapter"]

_TEXT_ENCODER = "text_encoder"


@dataclass(frozen=True)
class PruneOptions:
    """Which layers are dropped.

    Attributes:
        text_encoder: whether those of all text encoders are.
        blocks: patterns of layers that are, such as ``down_blocks.1``.
        keep: patterns of layers that stay; all others are dropped. None at all: all stay that are not dropped.
    """

    text_encoder: bool = False
    blocks: Sequence[str] = ()
    keep: Sequence[str] = ()


@dataclass(frozen=True)
class PruneResult:
    """An adapter file without some layers.

    Attributes:
        path: the new file.
        kept: how many layers stayed.
        dropped: how many are gone, by network and block: ``transformer.transformer_blocks.1``.
        retained: share of the Frobenius norm of all delta W that is left; None where only the base could tell.
        bytes_before: of the old file.
        bytes_after: of the new one.
        notes: what of the old file is no part of the adapter, and so is not in the new one.
    """

    path: Path
    kept: int
    dropped: Mapping[str, int]
    retained: float | None
    bytes_before: int
    bytes_after: int
    notes: tuple[str, ...] = ()


@opens_paths
def prune_adapter(
    file: Path, out: Path, options: PruneOptions, *, base: str | None = None, to: str | None = None
) -> PruneResult:
    """Write an adapter file without some of its layers; what stays is as it was.

    Args:
        file: the adapter, or the folder of its run.
        out: the new file.
        options: which layers are dropped.
        base: the adapter's; asked where the names in the file mean something beside a base alone, as kohya's do, and by
            methods whose delta W depends on it, for the norms.
        to: the format of the new file; default: that of the old one.

    Raises:
        UserError: a pattern matches nothing, all layers or none would be dropped, the file cannot be read, or the new
            one is there already.
    """
    check_free(out)
    (opened,) = open_adapters([file], base, to=to, without=True)
    weights = opened.adapter.weights
    kept = _kept(weights, options, file)
    dropped = [path for path in weights if path not in kept]
    details = {"text_encoder": options.text_encoder or None, "keep": ", ".join(options.keep) or None}
    details |= {"blocks": ", ".join(options.blocks) or None}
    metadata = derived(opened.adapter.metadata, "prune", [opened.source], **details)
    opened.save(AdapterFile({path: weights[path] for path in kept}, metadata), out, to)
    share = _retained(weights, kept, base)
    sizes = opened.size_bytes, written_bytes(out)
    return PruneResult(out, len(kept), _by_block(dropped), share, *sizes, tuple(opened.notes))


def _kept(weights: AdapterWeights, options: PruneOptions, file: Path) -> list[str]:
    """Return the layers that stay, in their order.

    Raises:
        UserError: a pattern matches nothing, or all layers or none would stay.
    """
    staying = {path for pattern in options.keep for path in matching(pattern, weights)} or set(weights)
    going = {path for pattern in options.blocks for path in matching(pattern, weights)}
    if options.text_encoder:
        going |= _of_text_encoders(weights, file)
    kept = [path for path in weights if path in staying and path not in going]
    if not kept:
        raise UserError("no layer would be left", code="adapter.nothing_left", where=file, remedy="drop fewer")
    if len(kept) == len(weights):
        what, remedy = "no layer would be dropped", "name some: --text-encoder, --blocks or --keep"
        raise UserError(what, code="adapter.nothing_dropped", where=file, remedy=remedy)
    return kept


def _of_text_encoders(paths: Collection[str], file: Path) -> set[str]:
    found = {path for path in paths if path.startswith(_TEXT_ENCODER)}
    if not found:
        networks = ", ".join(sorted({path.partition(".")[0] for path in paths}))
        what = f"changes no text encoder, but {networks}"
        raise UserError(what, code="adapter.no_layer_matches", where=file, remedy="leave --text-encoder out")
    return found


def _by_block(paths: Sequence[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for path in paths:
        block = f"{path.partition('.')[0]}.{place_of(path, 'diffusers').block}"
        counts[block] = counts.get(block, 0) + 1
    return counts


def _retained(weights: AdapterWeights, kept: Collection[str], base: str | None) -> float | None:
    needed = any(not layer.method.is_additive for layer in weights.values())
    if needed and base is None:
        return None
    stored = BaseWeights.open(base) if needed and base is not None else None
    squares = {
        path: layer.squared_norm(None if stored is None or layer.method.is_additive else stored.read(path).float())
        for path, layer in weights.items()
    }
    total = sum(squares.values())
    return math.sqrt(sum(squares[path] for path in kept) / total) if total else 1.0
