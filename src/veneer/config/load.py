"""From presets, a YAML file and ``key=value`` overrides to a config, and back to YAML.

Each layer wins over the one before it: schema's defaults < presets in the order given < file < overrides. Sections
are merged key by key; a list is replaced whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import ValidationError

from veneer.config.document import Document, Key, read_yaml, write_yaml
from veneer.config.explain import explain
from veneer.config.keys import dotted, known_keys, nearest, schema_name, section_at
from veneer.config.schema import AdapterConfig, RunConfig, TextEncoderAdapterConfig
from veneer.errors import UserError
from veneer.files import atomic_write, read_utf8

__all__ = [
    "BaseDefaults",
    "build_config",
    "config_from_folder",
    "dump_config",
    "list_presets",
    "load_config",
    "parse_override",
    "resolve",
    "set_key",
    "write_config",
]


@dataclass(frozen=True)
class _Draft:
    """A config being put together: its values, and where each was set."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[Key, str] = field(default_factory=dict)


def load_config(path: Path, overrides: Sequence[str] = (), presets: Sequence[str] = ()) -> RunConfig:
    """The config of a YAML file, on top of presets and under overrides such as ``train.max_steps=200``.

    Relative paths in it are relative to the working directory, not to the file.
    """
    draft = _from_presets(presets)
    _lay(draft, _read_mapping(read_utf8(path), str(path)), str(path))
    _override(draft, overrides)
    return build_config(draft.values, str(path), draft.places)


def config_from_folder(
    folder: Path, trigger: str | None, overrides: Sequence[str] = (), presets: Sequence[str] = ()
) -> RunConfig:
    """The config for a folder of pictures and nothing else: the bundled base, results in ``runs/<folder's name>``."""
    draft = _from_presets(presets)
    data: dict[str, Any] = {"sources": [{"path": str(folder)}]}
    if trigger is not None:
        data["trigger"] = trigger
    name = folder.expanduser().resolve().name or "adapter"
    values = {"base": "bundled", "output": {"dir": str(Path("runs", name))}, "data": data}
    _lay(draft, Document(values), "command line")
    _override(draft, overrides)
    return build_config(draft.values, "command line", draft.places)


def build_config(mapping: Mapping[str, Any], origin: str, places: Mapping[Key, str] | None = None) -> RunConfig:
    """Check a mapping against the schema.

    Args:
        mapping: plain values, as YAML or JSON has them.
        origin: names the mapping in messages: a file, ``request``.
        places: where each key was set, if better known than by ``origin``.

    Raises:
        UserError: names the faulty key by its whole path, with the nearest known name.
    """
    try:
        return RunConfig.model_validate(dict(mapping))
    except ValidationError as error:
        raise explain(error, origin, places or {}) from None


class BaseDefaults(Protocol):
    """What of a base a config's defaults depend on; ``veneer.family.protocol.Family`` is one.

    Attributes:
        resolution: side of the square that it was trained on, in pixels.
        denoiser: the name of its denoiser.
        default_targets: of each network, the layers that an adapter changes where a config names none.
    """

    resolution: int
    denoiser: str
    default_targets: Mapping[str, tuple[str, ...]]


def resolve(config: RunConfig, base: BaseDefaults) -> RunConfig:
    """Fill in what depends on the base or on other keys, so that the file written beside a result says everything.

    Args:
        config: as the user wrote it.
        base: what the config is for.
    """
    data, targets = config.data, base.default_targets
    text_encoders = {name: _completed(part, targets.get(name)) for name, part in config.adapter.text_encoders.items()}
    adapter = _completed(config.adapter, targets[base.denoiser]).model_copy(update={"text_encoders": text_encoders})
    prior = data.prior
    if prior is not None and prior.path is None:
        prior = prior.model_copy(update={"path": config.output.dir / "prior"})
    data = data.model_copy(update={"resolution": data.resolution or base.resolution, "prior": prior})
    return config.model_copy(update={"adapter": adapter, "data": data})


_Adapter = TypeVar("_Adapter", AdapterConfig, TextEncoderAdapterConfig)


def _completed(adapter: _Adapter, targets: tuple[str, ...] | None) -> _Adapter:
    """Fill in the base's targets, and a strength alpha/rank of 1."""
    alpha = adapter.alpha or float(adapter.rank)
    return adapter.model_copy(update={"alpha": alpha, "target_modules": adapter.target_modules or targets})


def dump_config(config: RunConfig) -> str:
    """YAML that ``load_config`` reads back equal."""
    return write_yaml(config.model_dump(mode="json"))


def write_config(config: RunConfig, path: Path) -> None:
    """Write a config so that no reader ever sees half of it."""
    atomic_write(path, dump_config(config).encode())


def list_presets() -> dict[str, str]:
    """Each preset's name and why one would take it."""
    return {name: _reason(text) for name, text in _presets().items()}


@lru_cache(maxsize=1)
def _presets() -> dict[str, str]:
    files = resources.files("veneer.config.presets").iterdir()
    texts = {file.name[:-5]: file.read_text("utf-8") for file in files if file.name.endswith(".yaml")}
    return dict(sorted(texts.items()))


def _reason(text: str) -> str:
    """The comment lines at the top of a preset."""
    lines = text.splitlines()
    end = next((place for place, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return " ".join(line.lstrip("# ") for line in lines[:end])


def _from_presets(names: Sequence[str]) -> _Draft:
    draft = _Draft()
    for name in names:
        if name not in _presets():
            close = get_close_matches(name, _presets(), n=1)
            remedy = f"did you mean {close[0]}?" if close else f"there are {', '.join(_presets())}"
            raise UserError("no such preset", where=name, remedy=remedy)
        _lay(draft, _read_mapping(_presets()[name], f"preset {name}"), f"preset {name}")
    return draft


def _read_mapping(text: str, origin: str) -> Document:
    document = read_yaml(text, origin)
    if document.values is None:
        return Document({})
    if not isinstance(document.values, dict):
        raise UserError("should be a list of keys with values, such as `base: bundled`", where=origin)
    return document


def _lay(draft: _Draft, layer: Document, origin: str) -> None:
    """Put a layer on top of a draft, in place."""
    _merge(draft.values, layer.values)
    for key, line in layer.lines.items():
        draft.places[key] = f"{origin}:{line}"


def _merge(under: dict[str, Any], over: dict[str, Any]) -> None:
    for name, value in over.items():
        if isinstance(value, dict) and isinstance(under.get(name), dict):
            _merge(under[name], value)
        else:
            under[name] = value


def _override(draft: _Draft, overrides: Sequence[str]) -> None:
    for override in overrides:
        name, value = parse_override(override)
        draft.places[set_key(draft.values, name, value, override)] = override


def parse_override(override: str) -> tuple[str, Any]:
    """The dotted key and the value of ``train.max_steps=200``."""
    name, equals, text = override.partition("=")
    if not equals or not all(part != "" for part in _parse_key(name)):
        raise UserError("should be key=value", where=override, remedy="for example train.max_steps=200")
    return name.strip(), _parse_value(text, override)


def set_key(values: dict[str, Any], name: str, value: Any, where: str) -> Key:
    """Set a dotted key of a run's configuration, making the sections on its way that are not there.

    Args:
        values: changed in place.
        name: such as ``train.max_steps`` or ``data.sources.0.path``.
        value: as YAML has it.
        where: names the place in messages.

    Returns:
        The key.

    Raises:
        UserError: no configuration can have such a key.
    """
    key = _parse_key(name)
    _set(values, key, value, where)
    return key


def _parse_key(name: str) -> Key:
    return tuple(int(part) if part.isascii() and part.isdigit() else part for part in name.strip().split("."))


def _parse_value(text: str, override: str) -> Any:
    # to YAML a # starts a comment; on the command line nobody comments
    return text.strip() if text.lstrip().startswith("#") else read_yaml(text, override).values


def _set(values: dict[str, Any], key: Key, value: Any, override: str) -> None:
    """Set a value deep in a mapping, making the sections on its way that are not there."""
    here: Any = values
    for place, part in enumerate(key[:-1]):
        _check_place(here, key[: place + 1], override)
        if not isinstance(here, list) and here.get(part) is None:
            here[part] = {}
        here = here[part]
    _check_place(here, key, override)
    here[key[-1]] = value


def _check_place(here: Any, key: Key, override: str) -> None:
    """Refuse a key that no config can have because of what stands above its last part."""
    above, name = key[:-1], key[-1]
    if isinstance(here, list):
        if not isinstance(name, int) or name >= len(here):
            raise UserError(f"{dotted(above)} has {len(here)} elements, counted from 0", where=override)
    elif isinstance(name, int) or not isinstance(here, dict) or section_at(above) is None:
        if not above or schema_name(above) in known_keys():
            raise UserError(f"{dotted(above) or 'a config'} has no {name}", where=override)
        meant = nearest(above)
        remedy = f"did you mean {meant}?" if meant else None
        raise UserError(f"{dotted(above)} is no key", where=override, remedy=remedy)
