"""Cut an adapter file to lower ranks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from veneer.adapter.resize import Criterion, LayerCut, Resized, check_lower, cut, retained
from veneer.errors import UserError
from veneer.files import check_free, opens_paths
from veneer.verbs.derived_file import default_out, open_adapters, written_bytes
from veneer.verbs.layer_groups import by_kind
from veneer.weights.file import AdapterFile
from veneer.weights.metadata import derived

__all__ = ["KindCut", "ResizeResult", "cut_or_refuse", "resize_adapter"]


@dataclass(frozen=True)
class KindCut:
    """What a cut has done to the layers of one kind.

    Attributes:
        kind: of the layers: ``attn1.to_q``; ``all`` of all together.
        layers: how many they are.
        ranks_before: lowest and highest.
        ranks_after: lowest and highest.
        parameters_before: numbers in A and B.
        parameters_after: numbers in A and B.
        retained: share of the Frobenius norm of their delta W that is left.
    """

    kind: str
    layers: int
    ranks_before: tuple[int, int]
    ranks_after: tuple[int, int]
    parameters_before: int
    parameters_after: int
    retained: float

    @classmethod
    def of(cls, kind: str, layers: Iterable[LayerCut]) -> KindCut:
        """Sum up layers."""
        own = list(layers)
        before, after = [layer.before for layer in own], [layer.after for layer in own]
        sizes = sum(layer.parameters_before for layer in own), sum(layer.parameters_after for layer in own)
        return cls(kind, len(own), (min(before), max(before)), (min(after), max(after)), *sizes, retained(own))


@dataclass(frozen=True)
class ResizeResult:
    """An adapter file that was cut.

    Attributes:
        path: the new file.
        bytes_before: of the old file.
        bytes_after: of the new one.
        kinds: what was done to the layers of each kind, and last to all together.
        notes: what of the old file is no part of the adapter, and so is not in the new one.
    """

    path: Path
    bytes_before: int
    bytes_after: int
    kinds: tuple[KindCut, ...]
    notes: tuple[str, ...] = ()


@opens_paths
def resize_adapter(
    file: Path,
    rank: int | None = None,
    out: Path | None = None,
    *,
    criterion: Criterion | None = None,
    base: str | None = None,
    to: str | None = None,
) -> ResizeResult:
    """Cut an adapter file to lower ranks.

    Args:
        file: the adapter, or the folder of its run.
        rank: of each layer, at most: lower than the adapter's, or with a criterion any; None: no limit.
        out: the new file; default: beside the old one, with the rank or the criterion in its name.
        criterion: what each layer has to keep, from which its rank follows.
        base: the adapter's; asked only where the names in the file mean something beside a base alone, as kohya's do.
        to: the format of the new file; default: that of the old one.

    Raises:
        UserError: no rank would be lower, the file cannot be read, or the new one is there already.
    """
    if rank is None and criterion is None:
        raise UserError("neither a rank nor what to keep is told", code="adapter.bad_rank", remedy="tell either")
    (opened,) = open_adapters([file], base, to=to, without=True)
    name = f"rank{rank}" if criterion is None else f"{criterion.name}{criterion.number:g}"
    out = out or default_out(opened, name, to)
    check_free(out)
    try:
        resized = cut_or_refuse(opened.adapter, rank, criterion)
    except UserError as fault:
        raise UserError(fault.what, code=fault.code, where=file, remedy=fault.remedy) from None
    keeping = None if criterion is None else str(criterion)
    metadata = derived(opened.adapter.metadata, "resize", [opened.source], rank=rank, keeping=keeping)
    opened.save(AdapterFile(resized.weights, metadata), out, to)
    return ResizeResult(out, opened.size_bytes, written_bytes(out), _kinds(resized), tuple(opened.notes))


def cut_or_refuse(adapter: AdapterFile, rank: int | None, criterion: Criterion | None) -> Resized:
    """Return an adapter that was cut.

    Raises:
        UserError: no layer's rank would be lower, or the adapter is of a method that has no rank to cut.
    """
    if criterion is None and rank is not None:
        check_lower(adapter.weights, rank)
    resized = cut(adapter.weights, rank, criterion)
    if not resized.is_smaller:
        what = f"no layer can be cut and keep {criterion}"
        raise UserError(what, code="adapter.rank_not_lower", remedy="ask for less, or name a --rank")
    return resized


def _kinds(resized: Resized) -> tuple[KindCut, ...]:
    kinds = by_kind(resized.layers.items())
    return (*(KindCut.of(kind, layers) for kind, layers in kinds.items()), KindCut.of("all", resized.layers.values()))
