"""The layers of an adapter's base, which a file's names mean something beside, without the base's weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from veneer.adapter.protocol import LayerAdapter
from veneer.config.load import load_config
from veneer.errors import UserError
from veneer.family.layer_names import names_of_base, published_names
from veneer.family.published import PUBLISHED, read_published
from veneer.files import opens_paths
from veneer.run.folder import config_beside
from veneer.weights.file import family_of_file, outline
from veneer.weights.formats.layers import LayerIndex
from veneer.weights.formats.protocol import BaseNames

__all__ = ["base_names", "published_names"]


@opens_paths
def base_names(file: Path, base: str | None = None) -> BaseNames | None:
    """Return the layers that an adapter file's names are of; no weight of the base is read.

    They are those of ``base``; else of the base in the config of the run that the file lies in; else of the first
    published architecture that has all of the file's layers, in their shapes.

    Args:
        file: the adapter, or the folder of its run.
        base: its base; also the name of a published architecture.

    Returns:
        None: no base is named, and no published architecture fits.

    Raises:
        UserError: ``base`` is none, or the file cannot be read.
    """
    if base is not None:
        return names_of_base(base)
    if (config := config_beside(file)).is_file():
        try:
            return names_of_base(load_config(config).base)
        except UserError:  # it is not on this machine any more; the names may tell
            pass
    return _fitting(file)


def _fitting(file: Path) -> BaseNames | None:
    """Return the first published architecture that has a file's layers, those of the file's own family first."""
    layers, origin = outline(file), family_of_file(file)
    for name in sorted(PUBLISHED, key=lambda name: not read_published(name).title.startswith(origin or " ")):
        if _fits(layers, published_names(name)):
            return published_names(name)
    return None


def _fits(layers: Mapping[str, LayerAdapter], base: BaseNames) -> bool:
    try:
        LayerIndex(base).place(layers)
    except UserError:
        return False
    return True
