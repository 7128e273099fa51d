"""A file's tensors sorted into layers and made into adapters; each one is accounted for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from veneer.adapter.protocol import LayerAdapter, Method
from veneer.adapter.registry import METHODS
from veneer.errors import UserError
from veneer.weights.formats.names import TensorName, parse_name

__all__ = ["Settings", "adapter_of", "by_layer", "named_tensors", "parse_names", "require_known"]

_LONGEST = 500  # characters of a tensor's name; a Flux block's has less than 100

_STARTS_THAT_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")

Settings = Mapping[str, Any]


def parse_names(names: Iterable[str]) -> dict[str, TensorName | None]:
    """Return what each tensor's name says, None where it is no adapter's that is read.

    Raises:
        UserError: there is none, or one is no layer's.
    """
    parsed: dict[str, TensorName | None] = {}
    for name in names:
        if len(name) > _LONGEST or not name.isprintable():
            what = f"has a tensor of which the name is no layer's: {name[:40]!r}"
            raise UserError(what, code="weights.bad_tensor_name", remedy="name the file of an adapter")
        parsed[name] = parse_name(name)
    if not parsed:
        raise UserError("holds no adapter: there is no tensor in it", code="weights.empty", remedy="name another file")
    return parsed


def require_known(names: Mapping[str, TensorName | None]) -> dict[str, TensorName]:
    """Return what each tensor's name says.

    Raises:
        UserError: one belongs to no adapter method that is read.
    """
    if (unread := next((name for name, parsed in names.items() if parsed is None), None)) is not None:
        what = f"tensor {unread} belongs to no adapter method that Veneer reads"
        remedy = f"it reads {' and '.join(method.title for method in METHODS.values())}"
        raise UserError(what, code="weights.unknown_tensor", remedy=remedy)
    return {name: parsed for name, parsed in names.items() if parsed is not None}


def by_layer(names: Mapping[str, TensorName]) -> dict[str, dict[str, str]]:
    """Return the names of each layer's tensors by part, by the file's name for the layer.

    Raises:
        UserError: two tensors are the same part of the same layer.
    """
    layers: dict[str, dict[str, str]] = {}
    for name, parsed in names.items():
        first = layers.setdefault(parsed.layer, {}).setdefault(parsed.part, name)
        if first != name:
            what = f"{parsed.layer} has two tensors of one kind, or one twice, under two names: {first} and {name}"
            raise UserError(what, code="weights.tensor_twice", remedy="remove the one that is not meant")
    return dict(sorted(layers.items()))


def adapter_of(layer: str, parts: Mapping[str, Tensor], settings_of: Callable[[str], Settings | None]) -> LayerAdapter:
    """Return one layer's adapter.

    Args:
        layer: the file's name for the layer.
        parts: its tensors.
        settings_of: gives what the file's config says of the layer; None: there is no config, the tensors tell all.

    Raises:
        UserError: a part is missing or does not fit, or the config contradicts the tensors.
    """
    method = _method_of(layer, set(parts))
    try:
        settings = settings_of(layer)
        _check_markers(method, settings or {})
        _check_start(settings or {})
        return method.from_file(parts, settings)
    except UserError as error:
        raise UserError(error.what, code=error.code, where=layer, remedy=error.remedy) from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = f"its config does not tell the strength of {layer} ({error!r:.200})"
        raise UserError(what, code="weights.bad_config") from error


def _method_of(layer: str, parts: set[str]) -> Method:
    """Return the method whose tensors these are: of those that have all of them, the one with the fewest others."""
    known = [(set(method.spellings), method) for method in METHODS.values()]
    fitting = [(len(known_parts), method) for known_parts, method in known if parts <= known_parts]
    if not fitting:
        what = f"{layer} has {', '.join(sorted(parts))}, which belong to different methods"
        raise UserError(what, code="weights.mixed_parts", remedy="save one method a layer")
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


def _check_start(settings: Settings) -> None:
    """Refuse an adapter whose start was taken out of the base's weights: it means nothing beside the base itself."""
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_STARTS_THAT_CHANGE_THE_BASE):
        what = f"its config says init_lora_weights={start:.20}, which takes the start out of the base's weights"
        remedy = "save it with peft's path_initial_model_for_weight_conversion, which makes it an adapter of the base"
        raise UserError(what, code="weights.unsupported_method", remedy=remedy)


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
