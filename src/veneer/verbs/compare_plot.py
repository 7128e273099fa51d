"""The comparison of two adapters as a picture: phi(i, j) as in the paper's figure 3, and measures layer by layer."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veneer.adapter.compare import SIDES, LayerComparison, cosine, drift
from veneer.errors import UserError
from veneer.files import atomic_write, opens_paths
from veneer.verbs.compare import AdapterComparison
from veneer.verbs.info import check_plot_place
from veneer.verbs.layer_groups import by_kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["comparison_plot", "write_comparison_plot"]

_INK, _SOFT, _FIRST, _SECOND = "#222222", "#8a8f98", "#2563a8", "#b4461f"
_TITLES = {"A": "what A reads", "input": "inputs of delta W", "output": "outputs of delta W"}
_MOST_KINDS, _LONGEST_NAME = 40, 40


@opens_paths
def write_comparison_plot(comparison: AdapterComparison, path: Path) -> None:
    """Write the picture as a PNG.

    Raises:
        UserError: matplotlib is not installed, the place has another ending, has something already, or cannot be
            written to.
    """
    check_plot_place(path)
    atomic_write(path, comparison_plot(comparison))


def comparison_plot(comparison: AdapterComparison) -> bytes:
    """Return the picture as a PNG; equal comparisons give equal bytes.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(
            "a plot needs matplotlib", code="compare.matplotlib_missing", remedy="pip install 'veneer[study]'"
        ) from None
    kinds = dict(list(by_kind(comparison.layers.items()).items())[:_MOST_KINDS])
    names = [_short(name) for name in comparison.names]
    figure = Figure(figsize=(11.5, 5.4 + 0.3 * len(kinds)), dpi=150, layout="constrained", facecolor="white")
    halves: Any = figure.subfigures(2, 1, height_ratios=(4.2, 1.2 + 0.3 * len(kinds)))
    _grids(halves[0], comparison, names)
    _measures(halves[1], kinds, names, with_base=comparison.base is not None)
    figure.suptitle(f"{names[0]} and {names[1]}", x=0.01, ha="left", fontsize=12, color=_INK)
    picture = io.BytesIO()
    # without the library's version in it, equal comparisons give equal bytes
    figure.savefig(picture, format="png", metadata={"Software": None})
    return picture.getvalue()


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def _grids(figure: Any, comparison: AdapterComparison, names: Sequence[str]) -> None:
    """Draw phi(i, j) of each side, the mean over layers."""
    grids = {side: grid for side in SIDES if (grid := comparison.grid(side)) is not None}
    panels = figure.subplots(1, max(1, len(grids)), squeeze=False)[0]
    image = None
    for axes, (side, grid) in zip(panels, grids.items(), strict=False):
        extent = (0.5, grid.shape[1] + 0.5, grid.shape[0] + 0.5, 0.5)
        image = axes.imshow(grid.numpy(), vmin=0, vmax=1, cmap="magma", aspect="auto", extent=extent)
        axes.set_title(_TITLES[side], fontsize=9, loc="left", color=_SOFT)
        axes.set_xlabel(f"j: first directions of {names[1]}", fontsize=9, color=_INK)
        axes.tick_params(colors=_INK, labelsize=8, length=0)
        axes.locator_params(integer=True, nbins=8)
        for spine in axes.spines.values():
            spine.set_visible(False)
    panels[0].set_ylabel(f"i: of {names[0]}", fontsize=9, color=_INK)
    if image is None:
        panels[0].set_axis_off()
        panels[0].text(0, 0.5, "no layer has directions in both", color=_SOFT)
        return
    bar = figure.colorbar(image, ax=list(panels), fraction=0.02, pad=0.01)
    bar.set_label("phi(i, j): shared part, mean over layers", fontsize=8, color=_INK)
    bar.ax.tick_params(colors=_INK, labelsize=8, length=0)
    bar.outline.set_visible(False)


def _measures(
    figure: Any, kinds: Mapping[str, Sequence[LayerComparison]], names: Sequence[str], *, with_base: bool
) -> None:
    """Draw cosine, drift and amplification, a dot a layer, a row a kind."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    panels = figure.subplots(1, 3 if with_base else 2, sharey=True)
    _dots(panels[0], kinds, lambda layer: cosine([layer]), _FIRST)
    panels[0].set_xlim(-1.05, 1.05)
    panels[0].axvline(0, color=_SOFT, linewidth=1)
    panels[0].set_xlabel("cosine of delta W", fontsize=9, color=_INK)
    panels[0].set_title("a dot a layer, a bar their mean", fontsize=9, loc="left", color=_SOFT)
    _dots(panels[1], kinds, lambda layer: drift([layer]), _FIRST)
    panels[1].set_xlabel(f"|difference| / |{names[0]}|", fontsize=9, color=_INK)
    panels[1].set_xlim(left=0)
    if with_base:
        for place, colour in enumerate((_FIRST, _SECOND)):
            _dots(panels[2], kinds, partial(_factor, place), colour, 0.16 * (2 * place - 1))
        panels[2].set_xscale("log")
        panels[2].xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        panels[2].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panels[2].xaxis.set_minor_formatter(NullFormatter())
        panels[2].set_xlabel("amplification |dW| / |U'WV|", fontsize=9, color=_INK)
        panels[2].set_title(f"blue {names[0]}, red {names[1]}", fontsize=9, loc="left", color=_SOFT)
    panels[0].set_yticks(range(len(kinds)), [_short(kind) for kind in kinds], fontsize=8)
    panels[0].set_ylim(len(kinds) - 0.4, -0.6)
    for axes in panels:
        _tidy(axes)


def _factor(place: int, layer: LayerComparison) -> float:
    own = layer.amplifications[place]
    return math.nan if own is None else own.factor


def _dots(
    axes: Axes,
    kinds: Mapping[str, Sequence[LayerComparison]],
    value: Callable[[LayerComparison], float],
    colour: str,
    offset: float = 0.0,
) -> None:
    for row, layers in enumerate(kinds.values()):
        values = [own for own in map(value, layers) if math.isfinite(own)]
        if values:
            axes.plot(values, [row + offset] * len(values), "o", color=colour, alpha=0.4, markersize=4)
            mean = sum(values) / len(values)
            axes.plot([mean], [row + offset], "|", color=colour, markersize=11, markeredgewidth=2)


def _tidy(axes: Axes) -> None:
    axes.grid(axis="x", color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, labelsize=8, length=0, which="both")
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color("#c9ccd1")
