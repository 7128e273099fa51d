"""Read a config from presets, a YAML file and ``key=value`` overrides, and write it back to YAML.

Each layer wins over the one before it: schema's defaults < presets in the order given < file < overrides. Sections
are merged key by key; a list is replaced whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import ValidationError

from veneer.config.adapter_config import AdapterConfig, TargetPreset, TextEncoderAdapterConfig
from veneer.config.document import MAX_BYTES, Document, Key, read_yaml, write_yaml
from veneer.config.explain import explain
from veneer.config.objective_config import Density, ObjectiveConfig, TimestepShift
from veneer.config.override import parse_override, set_key
from veneer.config.paths import anchored, check_elsewhere, portable, set_default_output
from veneer.config.run_folder import CONFIG, LOG, has_log
from veneer.config.schema import RunConfig
from veneer.errors import UserError
from veneer.files import atomic_write, opens_paths, read_utf8

__all__ = [
    "CONFIG",
    "LOG",
    "BaseDefaults",
    "ObjectiveDefaults",
    "build_config",
    "complete_adapter",
    "complete_objective",
    "config_from_folder",
    "dump_config",
    "list_presets",
    "load_config",
    "resolve",
    "write_config",
]


@dataclass(frozen=True)
class _Draft:
    """A config that is not complete yet: its values, and where each was set."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[Key, str] = field(default_factory=dict)


@opens_paths
def load_config(path: Path, overrides: Sequence[str] = (), presets: Sequence[str] = ()) -> RunConfig:
    """Load the config of a YAML file, on top of presets and under overrides such as ``train.max_steps=200``.

    Relative paths in the file are relative to its folder, those of overrides to the working directory. The output of
    the config that a run left in its folder is that folder, wherever it was moved to.

    Raises:
        UserError: the file, a preset or an override is at fault, or the config as a whole.
    """
    draft, document, folder = _from_presets(presets), _read_mapping(_read_text(path), str(path)), path.parent
    _add_layer(draft, replace(document, values=anchored(document.values, folder)), str(path))
    if _is_of_run(path):
        set_key(draft.values, "output.dir", str(folder), str(path))
    set_default_output(draft.values, folder)
    _override(draft, overrides)
    if not _is_of_run(path):
        own = {key: place for key, place in draft.places.items() if place.startswith(f"{path}:")}
        check_elsewhere(document.values, draft.values, folder, own)
    return build_config(draft.values, str(path), draft.places)


def _read_text(path: Path) -> str:
    """Read a config's text, unless the file is larger than any config's: it may be a film."""
    if path.is_file() and path.stat().st_size > MAX_BYTES:
        what = f"has {path.stat().st_size:,} bytes, but a config has at most {MAX_BYTES:,}"
        raise UserError(what, code="config.too_large", where=path)
    return read_utf8(path)


def _is_of_run(path: Path) -> bool:
    """Check whether a file is the config that a run left in its folder: the run's log is beside it.

    Other results are not enough: the folder may be a user's, whose config says where its results go.
    """
    return path.name == CONFIG and has_log(path.parent)


@opens_paths
def config_from_folder(
    folder: Path, trigger: str | None, overrides: Sequence[str] = (), presets: Sequence[str] = ()
) -> RunConfig:
    """Return the config for a source of pictures: the bundled base, with results in ``runs/<the source's name>``."""
    draft = _from_presets(presets)
    data: dict[str, Any] = {"sources": [{"path": str(folder)}]}
    if trigger is not None:
        data["trigger"] = trigger
    name = folder.stem if folder.is_file() else folder.resolve().name or "adapter"
    values = {"base": "bundled", "output": {"dir": str(Path("runs", name))}, "data": data}
    _add_layer(draft, Document(values), "command line")
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


class ObjectiveDefaults(Protocol):
    """The properties of a base that an objective's defaults depend on; ``veneer.family.protocol.Family`` is one.

    Attributes:
        resolution: side of the square that it was trained on, in pixels.
        default_density: the density that timesteps are drawn from where a config names none.
        default_logit_mean: of a logit-normal density.
        default_logit_std: of a logit-normal density.
    """

    resolution: int
    default_density: Density
    default_logit_mean: float
    default_logit_std: float

    @property
    def default_shift(self) -> TimestepShift:
        """The shift of timesteps where a config names none."""


class BaseDefaults(ObjectiveDefaults, Protocol):
    """The properties of a base that a config's defaults depend on; ``veneer.family.protocol.Family`` is one.

    Attributes:
        denoiser: the name of its denoiser.
        default_targets: of each network, the layers that an adapter changes where a config names none.
        default_blocks: of a network, the blocks that it is confined to then; of others it is none.
    """

    denoiser: str
    default_targets: Mapping[str, tuple[str, ...]]
    default_blocks: Mapping[str, tuple[str, ...]]

    def expand_targets(
        self, network: str, wanted: TargetPreset | None, blocks: Sequence[str]
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the layers' names and the blocks that a preset means, or the base's default, within some blocks.

        Raises:
            UserError: a block is not there, or nothing in the blocks is meant.
        """


def resolve(config: RunConfig, base: BaseDefaults) -> RunConfig:
    """Fill in what depends on the base or on other keys, so that the file written beside a result says everything.

    Args:
        config: as the user wrote it.
        base: what the config is for.

    Raises:
        UserError: a key is set that has no effect beside the others.
    """
    data = config.data
    text_encoders = {name: complete_adapter(part, base, name) for name, part in config.adapter.text_encoders.items()}
    adapter = complete_adapter(config.adapter, base, base.denoiser)
    adapter = adapter.model_copy(update={"text_encoders": text_encoders})
    prior = data.prior
    if prior is not None and prior.path is None:
        prior = prior.model_copy(update={"path": config.output.dir / "prior"})
    data = data.model_copy(update={"resolution": data.resolution or base.resolution, "prior": prior})
    objective = complete_objective(config.objective, base)
    return config.model_copy(update={"adapter": adapter, "data": data, "objective": objective})


def complete_objective(config: ObjectiveConfig, base: ObjectiveDefaults) -> ObjectiveConfig:
    """Fill in the density of timesteps and its shift where a config leaves them to the base.

    Raises:
        UserError: the shape of a logit-normal density is set beside another density.
    """
    density = config.timestep_density or base.default_density
    shift = base.default_shift if config.timestep_shift is None else config.timestep_shift
    update: dict[str, Any] = {"timestep_density": density, "timestep_shift": shift}
    if density == "logit_normal":
        mean, std = config.logit_mean, config.logit_std
        update["logit_mean"] = base.default_logit_mean if mean is None else mean
        update["logit_std"] = base.default_logit_std if std is None else std
    elif name := next((name for name in ("logit_mean", "logit_std") if getattr(config, name) is not None), None):
        remedy = "leave it out, or set objective.timestep_density to logit_normal"
        what = f"has no effect: timesteps are drawn from the {density} density"
        raise UserError(what, code="config.unused_key", where=f"objective.{name}", remedy=remedy)
    return config.model_copy(update=update)


_Adapter = TypeVar("_Adapter", AdapterConfig, TextEncoderAdapterConfig)


def complete_adapter(adapter: _Adapter, base: BaseDefaults, network: str) -> _Adapter:
    """Fill in the names of layers where a config leaves them to the base or to a preset, and a strength of 1.

    Args:
        adapter: as the user wrote it.
        base: what it is for.
        network: the name of the network that is adapted; one that the base lacks is refused elsewhere.

    Raises:
        UserError: a preset or the base's default is nothing within ``blocks``, or these are not there.
    """
    update: dict[str, Any] = {"alpha": adapter.alpha or float(adapter.rank)}
    wanted, blocks = adapter.target_modules, adapter.blocks
    if network in base.default_targets and (isinstance(wanted, str) or (wanted is None and blocks)):
        preset = wanted if isinstance(wanted, str) else None
        update["target_modules"], update["blocks"] = base.expand_targets(network, preset, blocks or ())
    elif wanted is None:
        update["target_modules"] = base.default_targets.get(network)
        update["blocks"] = base.default_blocks.get(network)
    return adapter.model_copy(update=update)


def dump_config(config: RunConfig) -> str:
    """Return YAML that ``load_config`` reads back equal."""
    return write_yaml(config.model_dump(mode="json"))


@opens_paths
def write_config(config: RunConfig, path: Path) -> None:
    """Write a config such that no reader ever sees half of it, and that it means the same from wherever it is read."""
    atomic_write(path, write_yaml(portable(config.model_dump(mode="json"), path.parent)).encode())


def list_presets() -> dict[str, str]:
    """Return each preset's name and why one would take it."""
    return {name: _reason(text) for name, text in _presets().items()}


@lru_cache(maxsize=1)
def _presets() -> dict[str, str]:
    files = resources.files("veneer.config.presets").iterdir()
    texts = {file.name[:-5]: file.read_text("utf-8") for file in files if file.name.endswith(".yaml")}
    return dict(sorted(texts.items()))


def _reason(text: str) -> str:
    """Return the comment lines at the top of a preset."""
    lines = text.splitlines()
    end = next((place for place, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return " ".join(line.lstrip("# ") for line in lines[:end])


def _from_presets(names: Sequence[str]) -> _Draft:
    draft = _Draft()
    for name in names:
        if name not in _presets():
            close = get_close_matches(name, _presets(), n=1)
            remedy = f"did you mean {close[0]}?" if close else f"there are {', '.join(_presets())}"
            raise UserError("no such preset", code="config.unknown_preset", where=name, remedy=remedy)
        _add_layer(draft, _read_mapping(_presets()[name], f"preset {name}"), f"preset {name}")
    return draft


def _read_mapping(text: str, origin: str) -> Document:
    document = read_yaml(text, origin)
    if document.values is None:
        return Document({})
    if not isinstance(document.values, dict):
        what = "should be a list of keys with values, such as `base: bundled`"
        raise UserError(what, code="config.not_a_mapping", where=origin)
    return document


def _add_layer(draft: _Draft, layer: Document, origin: str) -> None:
    """Put a layer on top of a draft, which is changed."""
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
