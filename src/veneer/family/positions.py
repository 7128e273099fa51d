"""Places of patches in a fixed grid, of which a picture is given the middle: it can be no larger than the grid."""

from __future__ import annotations

from collections.abc import Sequence

from veneer.data.transform import Geometry
from veneer.errors import UserError

__all__ = ["check_in_grid"]


def check_in_grid(geometries: Sequence[Geometry], most: int) -> None:
    """Check that pictures are no larger than a grid of places.

    Args:
        geometries: of the pictures.
        most: side of the grid in pixels.

    Raises:
        UserError: one is.
    """
    for height, width in (geometry.target for geometry in geometries):
        if max(height, width) > most:
            what = f"makes a picture of {height} x {width} pixels, and the transformer has places for {most} a side"
            raise UserError(what, code="family.too_large", where="data.resolution", remedy="choose a smaller one")
