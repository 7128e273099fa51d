"""A file's tensors sorted into layers and made into adapters; each one is accounted for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from veneer.adapter.protocol import LayerAdapter, Method
from veneer.adapter.registry import METHODS
from veneer.errors import UserError

__all__ = ["adapters_of", "named_tensors", "rename_tensors"]

_LONGEST = 500  # characters of a tensor's name; a Flux block's has less than 100

Settings = Mapping[str, Any]


def adapters_of(
    tensors: Mapping[str, Tensor], naming: str, settings_of: Callable[[str], Settings | None]
) -> dict[str, LayerAdapter]:
    """Return each layer's adapter by the name that the file has for the layer.

    Args:
        tensors: all of the file's.
        naming: how a method's tensors are called, a key of ``Method.endings``.
        settings_of: gives what the file's config says of a layer; None: there is no config, the tensors tell all.

    Raises:
        UserError: a tensor belongs to no adapter, a part of one is missing or there twice, or the config contradicts
            the tensors.
    """
    layers = _by_layer(tensors, naming)
    if not layers:
        raise UserError("holds no adapter: there is no tensor in it", code="weights.empty")
    return {layer: _adapter(layer, parts, naming, settings_of) for layer, parts in sorted(layers.items())}


def rename_tensors(tensors: Mapping[str, Tensor], rename: Callable[[str], str]) -> dict[str, Tensor]:
    """Return a file's tensors under other names.

    Raises:
        UserError: two tensors get the same name.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if (new := rename(name)) in renamed:
            raise UserError(f"has {new} twice, under two names; {name} is one", code="weights.tensor_twice")
        renamed[new] = tensor
    return renamed


def _by_layer(tensors: Mapping[str, Tensor], naming: str) -> dict[str, dict[str, Tensor]]:
    table = {ending: part for method in METHODS.values() for ending, part in method.endings.get(naming, {}).items()}
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if len(name) > _LONGEST or not name.isprintable():
            what = f"has a tensor of which the name is no layer's: {name[:40]!r}"
            raise UserError(what, code="weights.bad_tensor_name")
        layer, part = _split(name, table)
        parts = layers.setdefault(layer, {})
        if part in parts:
            what = f"{layer} has two tensors of one kind; {name} is one"
            raise UserError(what, code="weights.tensor_twice")
        parts[part] = tensor
    return layers


def _split(name: str, table: Mapping[str, str]) -> tuple[str, str]:
    for ending, part in table.items():
        if name.endswith(f".{ending}"):
            return name.removesuffix(f".{ending}"), part
    what = f"tensor {name} belongs to no adapter method that Veneer reads"
    remedy = f"it reads {' and '.join(method.title for method in METHODS.values())}"
    raise UserError(what, code="weights.unknown_tensor", remedy=remedy)


def _adapter(
    layer: str, parts: Mapping[str, Tensor], naming: str, settings_of: Callable[[str], Settings | None]
) -> LayerAdapter:
    method = _method_of(layer, set(parts), naming)
    try:
        settings = settings_of(layer)
        _check_markers(method, settings or {})
        return method.from_file(parts, settings)
    except UserError as error:
        raise UserError(error.what, code=error.code, where=layer, remedy=error.remedy) from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = f"its config does not tell the strength of {layer} ({error!r:.200})"
        raise UserError(what, code="weights.bad_config") from error


def _method_of(layer: str, parts: set[str], naming: str) -> Method:
    """Return the method whose tensors these are: of those that have all of them, the one with the fewest others."""
    known = [(set(method.endings.get(naming, {}).values()), method) for method in METHODS.values()]
    fitting = [(len(known_parts), method) for known_parts, method in known if parts <= known_parts]
    if not fitting:
        what = f"{layer} has {', '.join(sorted(parts))}, which belong to different methods"
        raise UserError(what, code="weights.mixed_parts")
    return min(fitting, key=lambda each: each[0])[1]


def _check_markers(method: Method, settings: Settings) -> None:
    """Refuse a config that names another method than the tensors do."""
    for marker in {key for each in METHODS.values() for key in each.peft_markers}:
        expected = method.peft_markers.get(marker, False)
        if settings and settings.get(marker, False) != expected:
            what = (
                f"its tensors are of a {method.title}, but its config says {marker}={settings.get(marker, False)!s:.20}"
            )
            raise UserError(what, code="weights.config_contradicts")


def named_tensors(layer: str, adapter: LayerAdapter, naming: str) -> dict[str, Tensor]:
    """Return one layer's tensors as a file has them.

    Args:
        layer: the file's name for the layer.
        adapter: of the layer.
        naming: how a method's tensors are called, a key of ``Method.endings``.

    Raises:
        UserError: files of this kind have no names for the method.
    """
    if naming not in adapter.method.endings:
        what = f"{layer} has a {adapter.method.title} adapter, for which {naming} files have no names"
        raise UserError(what, code="weights.method_not_in_format", remedy="save it in another format")
    endings: dict[str, str] = {}
    for ending, part in adapter.method.endings[naming].items():
        endings.setdefault(part, ending)
    return {f"{layer}.{endings[part]}": tensor for part, tensor in adapter.file_parts(naming).items()}
