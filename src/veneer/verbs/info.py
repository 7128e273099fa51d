"""What is known of an adapter file as data, and its norms as a picture."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from veneer.errors import UserError
from veneer.files import atomic_write, check_free, opens_paths
from veneer.weights.summary import AdapterInfo, LayerInfo

__all__ = ["check_plot_place", "info_data", "write_norm_plot"]


def info_data(info: AdapterInfo) -> dict[str, Any]:
    """Return all that is known of an adapter file, as plain data."""
    return {
        "format": info.format,
        "family": info.family,
        "methods": info.methods,
        "networks": info.networks,
        "needs_base": info.needs_base,
        "hyperparameters": info.hyperparameters,
        "strengths": info.scales,
        "parameters": info.parameters,
        "dtypes": info.dtypes,
        "size_bytes": info.size_bytes,
        "hashes": {**info.hashes.by_name, "data_sha256": info.hashes.data_sha256},
        "kinds": info.kinds,
        "norms": [{"network": net, "block": block, "norm": norm} for (net, block), norm in info.norms.items()],
        "training": info.training,
        "notes": info.notes,
        "metadata": info.metadata,
        "layers": [_layer_data(layer) for layer in info.layers],
    }


def _layer_data(layer: LayerInfo) -> dict[str, Any]:
    return {
        "name": layer.name,
        "network": layer.place.network,
        "block": layer.place.block,
        "kind": layer.place.kind,
        "method": layer.method,
        **layer.hyperparameters,
        "strength": layer.scale,
        "strength_in": layer.strength_in,
        "parameters": layer.parameters,
        "norm": layer.norm,
    }


def check_plot_place(path: Path) -> None:
    """Refuse a place for a plot that is no PNG's, or where something is already.

    Raises:
        UserError: it is one of these.
    """
    if path.suffix.lower() != ".png":
        raise UserError("is no name of a PNG", code="output.not_png", where=path, remedy="end it in .png")
    check_free(path, "--plot")


@opens_paths
def write_norm_plot(info: AdapterInfo, path: Path, title: str) -> None:
    """Write a PNG of the norms of delta W by block, a bar each.

    Args:
        info: of the adapter.
        path: of the picture.
        title: above the bars.

    Raises:
        UserError: the place has another ending, has something already or cannot be written to, or there is no norm.
    """
    check_plot_place(path)
    if not info.norms:
        what = f"the norms of {' and '.join(info.methods)} take the base to tell, so there is nothing to draw"
        remedy = "use veneer adapter check with the base"
        raise UserError(what, code="weights.no_norms", remedy=remedy)
    bars = {".".join(filter(None, place))[:_LONGEST_NAME]: norm for place, norm in info.norms.items()}
    atomic_write(path, _bar_chart(dict(list(bars.items())[:_MOST_BARS]), title[:_LONGEST_NAME]))


_MOST_BARS, _LONGEST_NAME = 200, 80  # a file may say anything, and a picture has to fit into memory
_INK, _SOFT, _BAR, _PAPER = "#222222", "#8a8f98", "#2563a8", "#ffffff"
_ROW, _TEXT, _TITLE, _GAP, _LONGEST = 30, 20, 26, 24, 760  # pixels


def _bar_chart(bars: Mapping[str, float], title: str) -> bytes:
    """Return a PNG of a bar for each name, from zero to its number."""
    from PIL import Image, ImageDraw, ImageFont

    font, large = ImageFont.load_default(_TEXT), ImageFont.load_default(_TITLE)
    left = 2 * _GAP + round(max(font.getlength(name) for name in bars))
    right = left + _LONGEST + round(max(font.getlength(f"{norm:.3g}") for norm in bars.values())) + 2 * _GAP
    top = 3 * _TITLE + _GAP
    width = max(right, 2 * _GAP + round(large.getlength(title)))
    paper = Image.new("RGB", (width, top + _ROW * len(bars) + _GAP), _PAPER)
    draw = ImageDraw.Draw(paper)
    draw.text((_GAP, _GAP), title, _INK, large)
    draw.text((_GAP, _GAP + 1.4 * _TITLE), "Frobenius norm of delta W by block", _SOFT, font)
    unit = _LONGEST / (max(bars.values()) or 1.0)
    for place, (name, norm) in enumerate(bars.items()):
        middle = top + _ROW * (place + 0.5)
        draw.text((left - _GAP / 2, middle), name, _INK, font, anchor="rm")
        draw.rectangle((left, middle - _ROW * 0.36, left + unit * norm, middle + _ROW * 0.36), _BAR)
        draw.text((left + unit * norm + _GAP / 2, middle), f"{norm:.3g}", _SOFT, font, anchor="lm")
    draw.line((left, top, left, top + _ROW * len(bars)), _SOFT)
    content = io.BytesIO()
    paper.save(content, "PNG", optimize=True)
    return content.getvalue()
