"""A study's table as a plot: each point's loss, and its difference to the reference with its interval."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from veneer.errors import UserError
from veneer.study.statistics import Difference, Row, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot"]

_INK, _SOFT, _MARK, _BAD = "#222222", "#8a8f98", "#2563a8", "#b4461f"


def plot(table: Table, title: str) -> bytes:
    """Return a PNG of two panels, with a row for each point.

    Raises:
        UserError: matplotlib is not installed, or there is nothing to draw.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(
            "a plot needs matplotlib", code="study.matplotlib_missing", remedy="pip install 'veneer[study]'"
        ) from None
    if not table.rows:
        raise UserError("no training of the study ended, so there is nothing to draw", code="study.nothing_trained")
    figure = Figure(figsize=(10, 1.9 + 0.42 * len(table.rows)), dpi=150, layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1.15))
    _losses(left, table)
    _differences(right, table)
    left.set_yticks(range(len(table.rows)), [f"{row.point}\n{row.trainable:,}" for row in table.rows], fontsize=9)
    left.set_ylim(len(table.rows) - 0.4, -0.6)  # the first point on top
    for axes in (left, right):
        _tidy(axes)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=_INK)
    picture = io.BytesIO()
    # without the library's version in it, equal tables give equal bytes
    figure.savefig(picture, format="png", metadata={"Software": None})
    return picture.getvalue()


def _losses(axes: Axes, table: Table) -> None:
    """Draw the loss of each seed, and their mean."""
    for place, row in enumerate(table.rows):
        axes.plot(list(row.losses.values()), [place] * len(row.losses), "o", color=_MARK, alpha=0.45, markersize=5)
        axes.plot([row.loss], [place], "|", color=_MARK, markersize=16, markeredgewidth=2.2)
    axes.set_xlabel(f"held-out loss (base: {table.base:.4f})", fontsize=9, color=_INK)
    axes.set_title("a dot a seed, a bar their mean", fontsize=9, loc="left", color=_SOFT)


def _differences(axes: Axes, table: Table) -> None:
    """Draw the differences with their intervals, and shade the margin."""
    gaps, reference = _gaps(table)
    axes.axvline(0, color=_SOFT, linewidth=1)
    row = next((row for row in table.rows if row.point == table.reference), None)
    if row is not None and row.versus_base.mean < 0:
        axes.axvspan(0, -table.margin * row.versus_base.mean, color=_MARK, alpha=0.10, linewidth=0)
    for place, gap in enumerate(gaps):
        if gap is None:
            label = "reference" if table.rows[place].point == table.reference else "no seed in common"
            axes.annotate(
                label, (0, place), xytext=(6, 0), textcoords="offset points", va="center", fontsize=8, color=_SOFT
            )
            continue
        colour = _BAD if gap.low > 0 else _MARK
        axes.plot([gap.low, gap.high], [place, place], "-", color=colour, linewidth=2, solid_capstyle="butt")
        axes.plot([gap.mean], [place], "o", color=colour, markersize=6)
    axes.set_xlabel(f"loss less that of {reference}", fontsize=9, color=_INK)
    axes.set_title("95 % interval, paired; shaded: the margin allowed", fontsize=9, loc="left", color=_SOFT)


def _gaps(table: Table) -> tuple[Sequence[Difference | None], str]:
    """Return the differences to the reference, or to the base if there is no other, and the name of either."""
    rows: Sequence[Row] = table.rows
    if table.reference is None or len(rows) == 1:
        return [row.versus_base for row in rows], "the base"
    return [row.versus_reference for row in rows], table.reference


def _tidy(axes: Axes) -> None:
    axes.grid(axis="x", color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, labelsize=9, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color("#c9ccd1")
