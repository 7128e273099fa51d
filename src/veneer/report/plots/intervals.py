"""The plot of the scores at the end: a row each, with its interval."""

from __future__ import annotations

from collections.abc import Iterator

from veneer.evaluate.results import Evaluation
from veneer.report.formatting import change, is_closed, share
from veneer.report.plots.axes import Scale, ticks
from veneer.report.plots.scores import interval_ends, score_tip
from veneer.report.plots.svg import Dot, Drawing, Group, Rule, Shape, Text
from veneer.report.scores import NamedScore, named_scores

__all__ = ["intervals_plot"]

_WIDTH, _ROW_HEIGHT, _LEFT, _RIGHT = 400.0, 40.0, 12.0, 328.0
_FOOT = 38.0


def intervals_plot(evaluation: Evaluation) -> Drawing | None:
    """Return each score as a share of the base's loss, with its interval; None if nothing was measured."""
    scores = list(named_scores(evaluation))
    if not scores:
        return None
    ends = [0.0, *(end for named in scores for end in interval_ends(named.score))]
    margin = 0.05 * (max(ends) - min(ends)) or 0.01
    across = Scale(min(ends) - margin, max(ends) + margin, _LEFT, _RIGHT)
    bottom = _ROW_HEIGHT * len(scores) + 8
    rows = (_row(named, across, _ROW_HEIGHT * place) for place, named in enumerate(scores))
    changes = " ".join(f"{named.name}: {share(change(named.score))}." for named in scores)
    description = f"Change of the denoising loss with 95 % intervals. {changes}"
    return Drawing(_WIDTH, bottom + _FOOT, description, (*_axis(across, bottom), *rows))


def _axis(across: Scale, bottom: float) -> Iterator[Shape]:
    form = "+.0%" if across.high - across.low > 0.04 else "+.1%"
    for value in ticks(across.low, across.high, 4):
        is_zero = abs(value) < 1e-9
        x = across(value)
        yield Rule((x, 4), (x, bottom), "zero" if is_zero else "grid")
        yield Text((x, bottom + 15), share(0.0 if is_zero else value, form), "tick", "middle")
    label = "change of the denoising loss, in percent of the base's"
    yield Text(((_LEFT + _RIGHT) / 2, bottom + 33), label, "label", "middle")


def _row(named: NamedScore, across: Scale, top: float) -> Group:
    score, y, text = named.score, top + 29, share(change(named.score))
    shapes: list[Shape] = [Text((_LEFT, top + 17), named.name, "row")]
    if is_closed(score.low, score.high):
        low, high = across(score.low / score.base), across(score.high / score.base)
        shapes.append(Rule((low, y), (high, y), f"whisker {named.tone}"))
    shapes.append(Dot((across(change(score)), y), named.tone, f"{named.name}: {score_tip(score)}", 4.5))
    shapes.append(Text((396, y + 4), text, "value", "end"))
    return Group(tuple(shapes))
