"""Tables about an adapter file: its content, and what was verified of it."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from veneer.printable import in_one_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from veneer.verbs.check import AdapterCheck
    from veneer.verbs.check_layers import Loss
    from veneer.verbs.verify import Check
    from veneer.weights.summary import AdapterInfo

__all__ = ["check_text", "checks_text", "info_text"]


def info_text(path: Path, info: AdapterInfo, bar: str = "#") -> str:
    """Return a table of an adapter file.

    Args:
        path: of the file.
        info: what is in it.
        bar: the character that bars are made of.
    """
    rows = [
        ("file", str(path)),
        ("format", info.format),
        ("family", info.family or "unknown"),
        ("method", ", ".join(info.methods)),
        ("networks", ", ".join(info.networks) or "only its base can tell"),
        ("layers", f"{info.targets:,}"),
        ("kinds", _listed(info.kinds, _MOST_KINDS)),
        *((name, ", ".join(f"{value:g}" for value in values)) for name, values in info.hyperparameters.items()),
        ("strength", _strength(info)),
        ("parameters", f"{info.parameters:,}"),
        ("numbers", ", ".join(f"{count:,} {dtype}" for dtype, count in info.dtypes.items())),
        ("bytes", f"{info.size_bytes:,}"),
        *_norm_rows(info, bar),
        *info.hashes.by_name.items(),
        *_training_rows(info),
        *(("note", note) for note in info.notes),
        *((key, _shortened(value)) for key, value in sorted(info.metadata.items())),
    ]
    return _table(rows)


_MOST_KINDS, _MOST_TAGS = 8, 15
_BAR_WIDTH, _MOST_BARS = 40, 200
_LONGEST_VALUE = 400  # characters of a value in the metadata


def _strength(info: AdapterInfo) -> str:
    """Return the strengths alpha/r that occur."""
    return ", ".join(f"{scale:g}" for scale in info.scales) or "told by no alpha"


def _listed(counts: Mapping[str, int], most: int) -> str:
    """Return the most frequent of some things, each with how often it is there."""
    shown = ", ".join(f"{name} {count:,}" for name, count in list(counts.items())[:most])
    return shown + (f" and {len(counts) - most:,} more" if len(counts) > most else "")


def _norm_rows(info: AdapterInfo, bar: str) -> list[tuple[str, str]]:
    """Return a bar for the norm of each block; none where only the base can tell them."""
    norms = info.norms
    largest = max(norms.values(), default=0.0) or 1.0
    bars = {place: bar * round(_BAR_WIDTH * norm / largest) for place, norm in norms.items()}
    rows = [(".".join(filter(None, place)), f"{norm:<10.4g} {bars[place]}") for place, norm in norms.items()]
    more = [("...", f"and {len(rows) - _MOST_BARS:,} more blocks, which --json has")] if len(rows) > _MOST_BARS else []
    return [("norm of delta W", "by block (Frobenius)"), *rows[:_MOST_BARS], *more] if rows else []


def _training_rows(info: AdapterInfo) -> list[tuple[str, str]]:
    training = info.training
    rows = [("trigger words", ", ".join(training.triggers)), ("frequent tags", _listed(training.tags, _MOST_TAGS))]
    return [(name, _shortened(value)) for name, value in (*rows, *training.facts.items()) if value]


def _shortened(value: str) -> str:
    """Return a value of the metadata, of a long one the beginning."""
    if len(value) <= _LONGEST_VALUE:
        return value
    return f"{value[:_LONGEST_VALUE]}... ({len(value):,} characters, which --json has)"


def check_text(path: Path, check: AdapterCheck) -> str:
    """Return a table of an adapter checked against its base, with the verdict at its end."""
    ratios = check.ratios
    rows = [
        ("file", str(path)),
        ("base", f"{check.base}, in {check.precision}"),
        ("tensors", f"{check.tensors:,}, each of one of {len(check.layers):,} layers of the base"),
        ("layers", _covered(check)),
        ("strength", ", ".join(f"{scale:g} of {count:,} layers" for scale, count in check.strengths.items()) or "none"),
        ("strength told in", ", ".join(f"{place} of {count:,}" for place, count in check.strength_in.items())),
        *((f"|dW| / |W| {name}", text) for name, text in _sizes(ratios)),
        ("ranks", _dead_ranks(check)),
        *((f"merged in {name}", _lost(loss)) for name, loss in check.losses.items()),
        *(("note", note) for note in check.notes),
        *(("problem", problem) for problem in check.problems),
        ("verdict", f"{len(check.problems)} problems" if check.problems else "fine"),
    ]
    return _table(rows)


_MOST_LARGEST = 3


def _covered(check: AdapterCheck) -> str:
    """Return how many layers of each kind are changed, and which kinds are not."""
    changed = [f"{kind} {own}/{total}" for kind, (own, total) in check.coverage.items() if own]
    rest = [(kind, total) for kind, (own, total) in check.coverage.items() if not own]
    left = f"; none of {sum(total for _, total in rest):,} others ({', '.join(kind for kind, _ in rest)})"
    return ", ".join(changed) + (_shortened(left) if rest else "")


def _sizes(ratios: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return the median and the largest ratios of norms."""
    if not ratios:
        return []
    largest = ", ".join(f"{name} {ratio:.3g}" for name, ratio in list(ratios.items())[:_MOST_LARGEST])
    return [("median", f"{median(ratios.values()):.3g}"), ("largest", largest)]


def _dead_ranks(check: AdapterCheck) -> str:
    ranks = [(layer.rank, layer.dead_ranks or 0) for layer in check.layers if layer.rank is not None]
    if not ranks:
        return "its method has none"
    return f"{sum(rank for rank, _ in ranks):,}, of which {sum(dead for _, dead in ranks):,} carry nothing"


def _lost(loss: Loss) -> str:
    return f"off by {loss.error:.1%} of dW; {loss.unchanged:.1%} of |dW| at weights that stay as they are"


def checks_text(checks: Sequence[Check]) -> str:
    """Return a table of what was verified: ok, which hashes differ, or why nothing can be said."""
    return _table([(check.subject, _verdict(check)) for check in checks])


def _verdict(check: Check) -> str:
    if check.current is None:
        return f"not checked: {check.reason}"
    return f"differs: {check.recorded} is recorded, {check.current} is here" if check.differs else "ok"


def _table(rows: Sequence[tuple[str, str]]) -> str:
    shown = [(in_one_line(name), in_one_line(" ".join(value.split()))) for name, value in rows]
    width = max(len(name) for name, _ in shown)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in shown)
