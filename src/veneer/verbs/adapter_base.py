"""The layers of an adapter's base, which a file's names mean something beside, without the base's weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from veneer.adapter.protocol import LayerAdapter
from veneer.config.load import load_config
from veneer.errors import UserError
from veneer.family.layer_names import names_of_base, published_names
from veneer.family.published import PUBLISHED, read_published
from veneer.family.registry import BUNDLED
from veneer.files import opens_paths
from veneer.run.folder import config_beside
from veneer.run.identity import BASE_NAME
from veneer.weights.adapter_path import file_in
from veneer.weights.file import family_of_file, outline
from veneer.weights.formats.layers import LayerIndex
from veneer.weights.formats.protocol import BaseNames
from veneer.weights.tensors_file import open_tensors

__all__ = ["base_names", "published_names"]


@opens_paths
def base_names(file: Path, base: str | None = None) -> BaseNames | None:
    """Return the layers that an adapter file's names are of; no weight of the base is read.

    They are those of ``base``; else of the base in the config of the run that the file lies in; else of the bundled one
    where the file says that it was trained on it; else of the first published architecture. The last two count only
    where they have all of the file's layers, in their shapes.

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
    """Return the bundled base where a file names it, else the first published architecture that has its layers.

    Those of the file's own family are asked first.
    """
    layers, origin = outline(file), family_of_file(file)
    if _says_bundled(file) and _fits(layers, names := names_of_base(BUNDLED)):
        return names
    for name in sorted(PUBLISHED, key=lambda name: not read_published(name).title.startswith(origin or " ")):
        if _fits(layers, published_names(name)):
            return published_names(name)
    return None


def _says_bundled(file: Path) -> bool:
    with open_tensors(file_in(file)) as opened:
        return opened.header.metadata.get(BASE_NAME) == BUNDLED


def _fits(layers: Mapping[str, LayerAdapter], base: BaseNames) -> bool:
    try:
        LayerIndex(base).place(layers)
    except UserError:
        return False
    return True
