"""A file's tensors sorted into layers, and each layer's method told by its parts; neither takes torch.

Each tensor is accounted for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from veneer.adapter.part_names import BIASED, PART_NAMES, PartNames, titles
from veneer.errors import UserError
from veneer.weights.formats.names import TensorName, parse_name

__all__ = ["Settings", "by_layer", "check_settings", "in_layer", "method_of", "parse_names", "require_known"]

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
        remedy = f"it reads {titles()}"
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


def method_of(layer: str, parts: Collection[str]) -> PartNames:
    """Return the method whose tensors these are: of those that have all of them, the one with the fewest others.

    Args:
        layer: the file's name for the layer.
        parts: that the file has of it; among them may be a bias beside those of the method.

    Raises:
        UserError: no method has all of them.
    """
    told = {part.partition(".")[0] for part in parts}
    fitting = _having(told) or _having(told - BIASED.spellings.keys())
    if not fitting:
        what = f"{layer} has {', '.join(sorted(parts))}, which belong to different methods"
        raise UserError(what, code="weights.mixed_parts", remedy="save one method a layer")
    return min(fitting, key=lambda names: len(names.spellings))


def _having(parts: set[str]) -> list[PartNames]:
    """Return the methods that have all of these parts."""
    return [names for names in PART_NAMES.values() if names.spellings.keys() >= parts]


def check_settings(method: PartNames, settings: Settings) -> None:
    """Refuse a config that names another method than the tensors do, or a start taken out of the base's weights.

    Args:
        method: that the tensors are of.
        settings: what the file's config says of a layer; empty: there is none.

    Raises:
        UserError: it does.
    """
    _check_markers(method, settings)
    _check_start(settings)


@contextmanager
def in_layer(layer: str) -> Iterator[None]:
    """Say of which layer an error is that is raised inside; a config that makes no sense is one, too."""
    try:
        yield
    except UserError as error:
        where = layer if error.where is None else error.where
        raise UserError(error.what, code=error.code, where=where, remedy=error.remedy) from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = f"its config does not tell the strength of {layer} ({error!r:.200})"
        raise UserError(what, code="weights.bad_config") from error


def _check_markers(method: PartNames, settings: Settings) -> None:
    """Refuse a config that names another method than the tensors do."""
    for marker in {key for each in PART_NAMES.values() for key in each.peft_markers}:
        expected = method.peft_markers.get(marker, False)
        if settings and settings.get(marker, False) != expected:
            what = (
                f"its tensors are of a {method.title}, but its config says {marker}={settings.get(marker, False)!s:.20}"
            )
            raise UserError(what, code="weights.config_contradicts")
    kind = settings.get("peft_type", method.peft_type)
    if kind != method.peft_type:
        what = f"its tensors are of a {method.title}, but its config says peft_type={kind!s:.20}"
        raise UserError(what, code="weights.config_contradicts")


def _check_start(settings: Settings) -> None:
    """Refuse an adapter whose start was taken out of the base's weights: it means nothing beside the base itself."""
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_STARTS_THAT_CHANGE_THE_BASE):
        what = f"its config says init_lora_weights={start:.20}, which takes the start out of the base's weights"
        remedy = "save it with peft's path_initial_model_for_weight_conversion, which makes it an adapter of the base"
        raise UserError(what, code="weights.unsupported_method", remedy=remedy)
