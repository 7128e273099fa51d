"""The configuration of a study: a run, what is changed about it, and how often each change is trained.

It is checked as a run's is: frozen, typed, an unknown key refused with the nearest known name and its line.
"""

from __future__ import annotations

import copy
import difflib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationError, model_validator
from pydantic_core import ErrorDetails

from veneer.config.adapter_config import AdapterConfig, TextEncoderAdapterConfig
from veneer.config.document import Document, Key, read_yaml, write_yaml
from veneer.config.keys import dotted
from veneer.config.load import build_config, config_from_folder, load_config
from veneer.config.override import parse_override, set_key
from veneer.config.paths import anchored, check_elsewhere, portable, set_default_output
from veneer.config.schema import RunConfig
from veneer.config.section import Section
from veneer.config.values import Count, NonBlank, Seed, Share, as_tuple
from veneer.errors import UserError
from veneer.files import opens_paths, read_utf8, user_path

__all__ = [
    "FIXED",
    "Point",
    "RangeConfig",
    "SearchConfig",
    "Study",
    "StudyConfig",
    "build_study",
    "config_of_point",
    "dump_study",
    "list_studies",
    "load_study",
    "point_of",
    "points_of",
]

FIXED = (
    "base",
    "output",
    "seed",
    "sample",
    "validation",
    "tracking",
    "data.held_out",
    "data.split_from",
    "data.trigger",
    "data.resolution",
    "data.aspect",
    "data.upscale",
    "data.background",
    "data.cache",
)
"""Keys that are the same for all points: another value would change what is measured or where, not what is trained."""

_MOST_POINTS = 10_000


def _leaves(value: object) -> object:
    """Return nested sections as dotted keys, so that both may be written."""
    if not isinstance(value, dict):
        return value
    flat: dict[str, object] = {}
    for name, below in value.items():
        inner = _leaves(below) if isinstance(below, dict) and below else None
        flat |= {f"{name}.{key}": leaf for key, leaf in inner.items()} if isinstance(inner, dict) else {name: below}
    return flat


def _choice_or_range(value: object) -> str:
    return "choice" if isinstance(value, (list, tuple)) else "range"


def _is_run(value: object) -> object:
    if value is not None and not isinstance(value, (str, dict)):
        raise ValueError("should be a run's configuration, the name of its file, or a folder of pictures")
    return value


Choices = Annotated[tuple[Any, ...], Field(min_length=1), BeforeValidator(as_tuple)]
Changes = Annotated[dict[str, Any], Field(min_length=1), BeforeValidator(_leaves)]


class RangeConfig(Section):
    """Numbers between two; integers where both ends are."""

    low: int | float
    """Smallest number."""
    high: int | float
    """Largest number."""
    log: bool = False
    """Whether numbers are drawn by their logarithm, as learning rates should be."""

    @model_validator(mode="after")
    def _check_order(self) -> RangeConfig:
        if not self.low < self.high:
            raise ValueError(f"low is {self.low} and high {self.high}, so nothing lies between")
        if self.log and self.low <= 0:
            raise ValueError(f"low is {self.low}, which has no logarithm")
        return self


class SearchConfig(Section):
    """Points that a sampler proposes by the losses of those before it."""

    sampler: Literal["tpe"] = "tpe"
    """Optuna's sampler: the tree-structured Parzen estimator (Bergstra et al. 2011)."""
    trials: Count = 20
    """Number of points."""
    space: Annotated[
        dict[
            str,
            Annotated[
                Annotated[Choices, Tag("choice")] | Annotated[RangeConfig, Tag("range")],
                Discriminator(_choice_or_range),
            ],
        ],
        Field(min_length=1),
    ]
    """By dotted key of a run's configuration: a list to choose from, or ``{low: ..., high: ..., log: ...}``."""


class StudyConfig(Section):
    """The configuration of one study, which has either a grid, or points, or a search."""

    run: Annotated[str | dict[str, Any] | None, BeforeValidator(_is_run)] = None
    """The run that is changed: its configuration, the file of one, or a folder of pictures."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1), BeforeValidator(as_tuple)] = (
        0,
        1,
        2,
    )
    """Seeds, with each of which every point is trained once; they show how far chance goes."""
    grid: Annotated[dict[str, Choices], Field(min_length=1), BeforeValidator(_leaves)] | None = None
    """Lists of values by dotted key; every combination is a point."""
    points: Annotated[dict[str, Changes], Field(min_length=1)] | None = None
    """Points by name, each with the values that it sets by dotted key."""
    search: SearchConfig | None = None
    """A search, whose points a sampler proposes."""
    budget: NonBlank | None = None
    """Name of a point: every point that sets no rank gets the one that comes closest to its number of parameters."""
    reference: NonBlank | None = None
    """Name of the point that all others are compared with; default: the last one of a grid or of ``points``."""
    margin: Share = 0.02
    """Share of the reference's gain over the base that a smaller adapter may lose and still be recommended."""

    @model_validator(mode="after")
    def _check_points(self) -> StudyConfig:
        given = [name for name in ("grid", "points", "search") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"a study has one of grid, points and search, not {' and '.join(given) or 'none'}")
        count = math.prod(len(values) for values in (self.grid or {}).values())
        if count > _MOST_POINTS:
            raise ValueError(f"the grid makes {count:,} points, of which {_MOST_POINTS:,} are allowed")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("a seed is given twice, which would be the same training twice")
        if self.search is not None and (self.budget or self.reference):
            raise ValueError("budget and reference name points, which a search has none of before it begins")
        return self


@dataclass(frozen=True)
class Point:
    """One of the settings that a study compares.

    Attributes:
        name: in tables and folders.
        changes: values by dotted key of the run's configuration.
    """

    name: str
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Study:
    """A study and where each of its keys was set.

    Attributes:
        config: checked; its ``run`` is a mapping.
        origin: names the study in messages.
        name: of the file or of the ready-made study, without an ending.
        places: file and line of each key.
    """

    config: StudyConfig
    origin: str
    name: str
    places: Mapping[Key, str] = field(default_factory=dict, repr=False)

    @property
    def run(self) -> RunConfig:
        """The configuration of the run that is changed."""
        return self._build(self._values(), {})

    def _values(self) -> dict[str, Any]:
        assert isinstance(self.config.run, dict), "load_study() reads it"
        return copy.deepcopy(self.config.run)

    @property
    def run_places(self) -> dict[Key, str]:
        """File and line of each key of the run's configuration."""
        return {key[1:]: place for key, place in self.places.items() if key[:1] == ("run",) and len(key) > 1}

    def _build(self, values: dict[str, Any], places: Mapping[Key, str]) -> RunConfig:
        return build_config(values, self.origin, {**self.run_places, **places})


def list_studies() -> dict[str, str]:
    """Return the ready-made studies' names, and the question that each answers."""
    return {name: text.splitlines()[0].lstrip("# ") for name, text in _ready_made().items()}


@lru_cache(maxsize=1)
def _ready_made() -> dict[str, str]:
    files = resources.files("veneer.study.presets").iterdir()
    return dict(sorted((f.name[:-5], f.read_text("utf-8")) for f in files if f.name.endswith(".yaml")))


@opens_paths
def load_study(source: Path, overrides: Sequence[str] = (), run: RunConfig | None = None) -> Study:
    """Load a study's file, or a ready-made one by its name, under overrides such as ``run.train.max_steps=50``.

    Args:
        source: the file; a name such as ``rank`` where there is no such file.
        overrides: keys of the study with their values.
        run: the run to study, in place of the file's own.

    Raises:
        UserError: there is no such study, a key is unknown, or a value is wrong.
    """
    ready = not source.exists() and str(source) in _ready_made()
    if not (source.exists() or ready):
        remedy = f"give a STUDY.yaml, or one of {', '.join(_ready_made())}"
        what = "is neither a file nor a ready-made study"
        raise UserError(what, code="study.unknown", where=source, remedy=remedy)
    origin = f"study {source}" if ready else str(source)
    document = read_yaml(_ready_made()[str(source)] if ready else read_utf8(source), origin)
    if ready or not isinstance(document.values, dict):
        return _study(document, origin, source.stem, overrides, run)
    joined = replace(document, values=_anchored(document.values, source.parent))
    study = _study(joined, origin, source.stem, overrides, run)
    if run is None:
        told = {override.partition("=")[0].strip() for override in overrides}
        own = {key: place for key, place in study.run_places.items() if f"run.{dotted(key)}" not in told}
        check_elsewhere(document.values.get("run"), study.config.run, source.parent, own)
    return study


def _anchored(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the values of a study's file with relative paths joined to its folder."""
    joined = _with_paths(values, lambda part: anchored(part, folder))
    run = values.get("run")
    if isinstance(run, str) and run:
        joined["run"] = str(folder / user_path(run))
    elif isinstance(run, dict):
        set_default_output(joined["run"], folder)
    return joined


def _with_paths(values: dict[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """Return a study's values with those parts changed that have keys of a run."""
    search = values.get("search")
    changed = {name: change(values[name]) for name in ("run", "grid") if isinstance(values.get(name), dict)}
    if isinstance(points := values.get("points"), dict):
        changed["points"] = {name: change(changes) for name, changes in points.items()}
    if isinstance(search, dict) and isinstance(search.get("space"), dict):
        changed["search"] = {**search, "space": change(search["space"])}
    return {**values, **changed}


def build_study(values: Mapping[str, Any], origin: str, name: str = "study") -> Study:
    """Return the study that a mapping, as YAML or JSON has it, describes.

    Raises:
        UserError: a key is unknown, or a value is wrong.
    """
    return _study(Document(dict(values)), origin, name, (), None)


def _study(document: Document, origin: str, name: str, overrides: Sequence[str], run: RunConfig | None) -> Study:
    if not isinstance(document.values, dict):
        what = "should be a list of keys with values, such as `seeds: [0, 1]`"
        raise UserError(what, code="study.not_a_mapping", where=origin)
    values = copy.deepcopy(document.values)
    places = {key: f"{origin}:{line}" for key, line in document.lines.items()}
    if run is not None:
        values["run"] = run.model_dump(mode="json")
    for override in overrides:
        _override(values, override)
    _read_run(values)
    try:
        config = StudyConfig.model_validate(values)
    except ValidationError as error:
        raise _explain(error, origin, places) from None
    if not config.run:
        remedy = "name one in the study, or with --config FOLDER or CONFIG.yaml"
        raise UserError("has no run to study", code="study.no_run", where=origin, remedy=remedy)
    study = Study(config, origin, name, places)
    _check(study)
    return study


def _read_run(values: dict[str, Any]) -> None:
    """Replace the name of a run by its configuration."""
    name = values.get("run")
    if isinstance(name, str) and name:
        values["run"] = _load_run(Path(name)).model_dump(mode="json")


def _load_run(path: Path) -> RunConfig:
    return config_from_folder(path, None) if user_path(path).is_dir() else load_config(path)


def _override(values: dict[str, Any], override: str) -> None:
    """Set a key of a study; what follows ``grid.``, ``search.space.`` or ``run.`` is a key of the run."""
    name, value = parse_override(override)
    head, _, rest = name.partition(".")
    if head == "run" and rest:
        _read_run(values)
        set_key(_section(values, "run", override), rest, value, override)
    elif head == "grid" and rest:
        _section(values, "grid", override)[rest] = value
    elif name.startswith("search.space."):
        space = _section(_section(values, "search", override), "space", override)
        space[name.removeprefix("search.space.")] = value
    elif head == "search" and rest:
        _section(values, "search", override)[rest] = value
    else:
        values[name] = value


def _section(values: dict[str, Any], name: str, override: str) -> dict[str, Any]:
    """Return the section to set a key in; one that is missing or blank is made."""
    if values.get(name) is None:
        values[name] = {}
    section = values[name]
    if not isinstance(section, dict):
        what = f"{name} is {section!r} in the study, which has no keys to set"
        raise UserError(what, code="study.not_a_section", where=override)
    return section


def _check(study: Study) -> None:
    """Refuse what no trial could start with, each fault by its line."""
    _ = study.run
    points = points_of(study.config)
    for point in points:
        config_of_point(study, point)
    for key in study.config.search.space if study.config.search else ():
        _refuse_fixed(key, f"{study.origin}: search.space.{key}")
    _check_names(study, [point.name for point in points])
    if study.config.budget is not None:
        (budget,) = (point for point in points if point.name == study.config.budget)
        if "adapter.rank" not in budget.changes:
            what = f"the point {budget.name!r} sets no adapter.rank, so it is no budget"
            raise UserError(what, code="study.budget_without_rank", where=f"{study.origin}: budget")


def _check_names(study: Study, names: Sequence[str]) -> None:
    """Refuse a budget or a reference that is no point's name; a search has no names yet."""
    for key in ("budget", "reference"):
        name = getattr(study.config, key)
        if name is not None and names and name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            remedy = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names)}"
            where = f"{study.origin}: {key}"
            raise UserError(f"no point is called {name!r}", code="study.unknown_point", where=where, remedy=remedy)


def points_of(config: StudyConfig) -> tuple[Point, ...]:
    """Return the points of a grid, in the order of its lists, or those with names; a search has none yet.

    Where there is a budget, ranks that are still to be counted are not in their changes.
    """
    if config.points is not None:
        return tuple(Point(name, changes) for name, changes in config.points.items())
    if config.grid is None:
        return ()
    values = itertools.product(*config.grid.values())
    return tuple(point_of(dict(zip(config.grid, combination, strict=True))) for combination in values)


def point_of(changes: Mapping[str, Any]) -> Point:
    """Return a point named after what it changes: ``rank 4, learning_rate 0.002``."""
    leaves = [key.rpartition(".")[2] for key in changes]
    names = [leaf if leaves.count(leaf) == 1 else key for key, leaf in zip(changes, leaves, strict=True)]
    return Point(", ".join(f"{n} {_as_text(v)}" for n, v in zip(names, changes.values(), strict=True)), dict(changes))


def _as_text(value: object) -> str:
    """Return a value as a point's name has it."""
    if isinstance(value, (list, tuple)):
        return " + ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def config_of_point(study: Study, point: Point) -> RunConfig:
    """Return the run's configuration with a point's changes.

    Raises:
        UserError: a key is unknown or its value wrong, or it is one of those that all points share.
    """
    values = study._values()
    places: dict[Key, str] = {}
    for name, value in point.changes.items():
        where = _place(study, point, name)
        _refuse_fixed(name, f"{where}: {name}")
        # set_key takes the place for messages about a key that no configuration can have
        places[set_key(values, name, copy.deepcopy(value), f"{where}: {name}")] = where
    _keep_alpha(study.run.adapter, values, point.changes)
    return study._build(values, places)


def _keep_alpha(adapter: AdapterConfig, values: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Keep the run's alpha where a point sets a rank alone (Hu et al. 2021, section 4.1).

    Adam changes each of the r parts of B A by about as much; they add up and are divided by r, so that a step changes
    B A by about as much at every rank. With a constant alpha/rank, it would change sixteen times as much at rank 64 as
    at rank 4.
    """
    parts: dict[str, AdapterConfig | TextEncoderAdapterConfig] = {"adapter": adapter}
    parts |= {f"adapter.text_encoders.{name}": part for name, part in adapter.text_encoders.items()}
    for name, part in parts.items():
        if f"{name}.rank" in changes and f"{name}.alpha" not in changes:
            set_key(values, f"{name}.alpha", part.alpha or float(part.rank), name)


def _place(study: Study, point: Point, name: str) -> str:
    """Return the line that sets a key of a point, as near as it is known; the key may be written nested or dotted."""
    sections: tuple[Key, ...] = (("grid",), ("points", point.name))
    dotted_keys = [(*section, name) for section in sections]
    nested_keys = [(*section, *name.split(".")) for section in sections]
    candidates = (*dotted_keys, *nested_keys, ("points", point.name))
    return next((study.places[key] for key in candidates if key in study.places), study.origin)


def _refuse_fixed(name: str, where: str) -> None:
    """Refuse a key that all points share."""
    for fixed in FIXED:
        if name == fixed or name.startswith(f"{fixed}.") or fixed.startswith(f"{name}."):
            remedy = "give seeds instead" if fixed == "seed" else "set it under run, for all"
            what = f"{fixed} is the same for all points of a study"
            raise UserError(what, code="study.fixed_key", where=where, remedy=remedy)


def dump_study(config: StudyConfig, folder: Path) -> str:
    """Return YAML for a file in a folder, that ``load_study`` reads back with the same meaning from anywhere."""
    values = config.model_dump(mode="json", exclude_none=True)
    if isinstance(values.get("run"), dict):
        set_default_output(values["run"], Path())
    return write_yaml(_with_paths(values, lambda part: portable(part, folder)))


_WORDS = {
    "input should be": "should be",
    "a valid tuple": "a list",
    "a valid dictionary or instance of RangeConfig": "a list to choose from, or low and high",
    "a valid dictionary": "keys with their values",
}
"""Pydantic's words, and ours in their place."""
_TAGS = ("choice", "range", "str", "dict[str,any]")


def _explain(error: ValidationError, origin: str, places: Mapping[Key, str]) -> UserError:
    """Return the first fault in one line: its place, its key, what is wrong with it."""
    fault = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    key = tuple(part for part in fault["loc"] if part not in _TAGS)
    line = next((places[key[:n]] for n in range(len(key), 0, -1) if key[:n] in places), origin)
    where = f"{line}: {dotted(key)}" if key else line
    if fault["type"] == "extra_forbidden":
        section = SearchConfig if key[0] == "search" and len(key) == 2 else StudyConfig
        model = RangeConfig if len(key) > 2 else section
        close = difflib.get_close_matches(str(key[-1]), model.model_fields, n=1)
        remedy = f"did you mean {close[0]}?" if close else None
        return UserError("no such key", code="study.unknown_key", where=where, remedy=remedy)
    message = str(fault["ctx"]["error"]) if fault["type"] == "value_error" else _message(fault)
    return UserError(message, code="study.invalid_value", where=where)


def _message(fault: ErrorDetails) -> str:
    """Return Pydantic's message in our words."""
    if fault["type"] == "too_short":
        return "should be a list that is not empty"
    message = fault["msg"][0].lower() + fault["msg"][1:]
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    return message
