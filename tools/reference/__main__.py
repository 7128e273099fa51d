"""Write ``docs/configuration.md``, ``events.md`` and ``errors.md`` from the code: ``python -m tools.reference``."""

from __future__ import annotations

import types
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tools.publish import publish
from tools.reference import errors, events, methods
from veneer.config.load import list_presets
from veneer.config.schema import RunConfig
from veneer.config.spellings import ELSEWHERE, RENAMED

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
_HEAD = """\
# Configuration

<!-- written by `python -m tools.reference`; a test says when it is out of date -->

A run is one YAML file; `veneer train FOLDER` writes it for you, resolved, as `config.yaml` beside the result. Every
key has a default but `base` and `data.sources`. On the command line a key is changed with `train.max_steps=200`, an
entry of a list with `data.sources.0.repeats=3`. Layers: a preset, over it the file, over it the command line.

Relative paths in a file are relative to the file's folder, so that the file means the same from wherever it is used;
those on the command line are relative to where the command is run. `~` is the home folder. The `config.yaml` that a run
leaves has whole paths, and its results are in the folder that it lies in: `veneer train RUN/config.yaml --resume` goes
on with that run from anywhere, also where the folder was moved. YAML is read by its 1.2 rules: `1e-4` is a number, `no`
is a word.

Pictures are read from a folder and the folders below it: with a `metadata.jsonl` or `metadata.csv` (`file_name`,
`text`), as the `datasets` library has it, or with a caption file beside each picture, each line of which is one
caption. [Captions](captions.md) says which files are read.

"""
_OTHER_NAMES = """\
# Other names

A configuration with one of these names is refused, in one line that gives the key of today. The names of other trainers
are those of kohya's and diffusers' scripts, ai-toolkit, OneTrainer and SimpleTuner.
"""


def page() -> str:
    """Return the whole page."""
    rows = [f"| `{key}` | {kind} | {default} | {why} |" for key, kind, default, why in _rows(RunConfig, "")]
    table = ["| key | what it takes | default | what it does |", "| --- | --- | --- | --- |", *rows]
    presets = [f"## `--preset {name}`\n\n```yaml\n{_preset(name)}```\n" for name in list_presets()]
    return "\n".join([_HEAD + "\n".join(table), "", "# Presets", "", *presets, _OTHER_NAMES, *_other_names()])


def _other_names() -> Iterator[str]:
    """Yield the rows of what keys were called in earlier releases and are called elsewhere, sorted by key."""
    yield from ["| key | in earlier releases | in other trainers |", "| --- | --- | --- |"]
    for key in sorted({*RENAMED.values(), *ELSEWHERE.values()}):
        columns = [", ".join(f"`{old}`" for old, new in names.items() if new == key) for names in (RENAMED, ELSEWHERE)]
        yield f"| `{key}` | {columns[0]} | {columns[1]} |"
    yield ""


def _rows(section: type[BaseModel], above: str) -> Iterator[tuple[str, str, str, str]]:
    for name, field in section.model_fields.items():
        key, inner = above + name, _section_in(field.annotation)
        if inner is None or not _is_plain(field.annotation):
            yield (
                key,
                _kind(field.annotation),
                _default(field),
                (field.description or "").replace("\n", " ").replace("``", "`"),
            )
        if inner is not None:
            yield from _rows(inner, key + _below(field.annotation))


def _is_plain(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _below(annotation: Any) -> str:
    """Return what stands between a key and those below it: a place in a list, or a name that the user gives."""
    return {tuple: "[].", dict: ".<name>."}.get(get_origin(annotation), ".")


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if _is_plain(annotation):
        return annotation  # type: ignore[no-any-return]
    return next((found for part in get_args(annotation) if (found := _section_in(part))), None)


def _kind(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(_kind(part) for part in parts if part is not type(None))
    if origin is tuple:
        return f"list of {_kind(parts[0])}"
    if origin is dict:
        return f"{_kind(parts[1])} by name"
    if hasattr(annotation, "__metadata__"):
        return _kind(parts[0])
    if _is_plain(annotation):
        return "section"
    return {"str": "text", "int": "whole number", "float": "number", "bool": "true or false", "Path": "path"}[
        annotation.__name__
    ]


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return ""
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _preset(name: str) -> str:
    return (resources.files("veneer.config.presets") / f"{name}.yaml").read_text("utf-8")


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), "utf-8")
    events.PAGE.write_text(events.page(), "utf-8")
    errors.PAGE.write_text(errors.page(), "utf-8")
    publish(methods.PAGE, methods.table(), methods.SECTION)
