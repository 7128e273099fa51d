"""Names that files have for networks and layers, resolved against a base's own."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from veneer.errors import UserError
from veneer.weights.formats.protocol import BaseNames

__all__ = ["NETWORKS", "file_path", "memory_path", "require_base", "resolve", "spellings"]

NETWORKS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
"""What diffusers' files, and the rest after them, call the networks of a base."""
_LEVEL = "text_model."
"""A level of text encoders' layer names: files have it, networks in memory have it or not, by class and version."""
_SHORT, _LONG = "text_encoder.", f"text_encoder.{_LEVEL}"
# transformers 5 dropped the level from this network; files keep it, for every reader knows it and only new ones know
# the other


def spellings(path: str) -> set[str]:
    """Return how a layer's path within its network may be written: as it is, with and without the optional level."""
    return {path, path.removeprefix(_LEVEL), f"{_LEVEL}{path}"}


def file_path(path: str) -> str:
    """Return a layer's full path as files have it."""
    return _LONG + path.removeprefix(_SHORT) if path.startswith(_SHORT) and not path.startswith(_LONG) else path


def memory_path(path: str) -> str:
    """Return a layer's full path as newer networks have it."""
    return _SHORT + path.removeprefix(_LONG) if path.startswith(_LONG) else path


def resolve(layers: Collection[str], aliases: Mapping[str, Collection[str]]) -> dict[str, str]:
    """Return the one path that each of a file's names for layers means.

    Args:
        layers: the file's names.
        aliases: the paths that a name may mean.

    Raises:
        UserError: a name means none of the base's layers, or several of them.
    """
    for layer in layers:
        if len(paths := sorted(aliases.get(layer, ()))) != 1:
            what = f"its name {layer} means {' and '.join(paths) or 'no layer'} of the base"
            code = "weights.ambiguous_layer" if paths else "weights.unknown_layer"
            raise UserError(what, code=code, remedy="use the base that it was trained on")
    return {layer: next(iter(aliases[layer])) for layer in layers}


def require_base(base: BaseNames | None, format_name: str, layers: Collection[str]) -> BaseNames:
    """Return the base, without which a file's names do not say which layers they mean.

    Raises:
        UserError: there is none.
    """
    if base is None:
        what = f"its {format_name} names, such as {next(iter(layers))}, need a base to tell which layers they are"
        raise UserError(what, code="weights.needs_base")
    return base
