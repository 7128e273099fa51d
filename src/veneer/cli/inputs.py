"""Read the configuration that ``train``, ``plan`` and ``study`` are given, before anything slow is imported."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from veneer.cli.options import refuse_unused
from veneer.config.load import CONFIG, config_from_folder, load_config
from veneer.config.run_folder import is_run
from veneer.config.schema import RunConfig
from veneer.data.sources.kohya_toml import is_dataset_file
from veneer.data.sources.runs import is_painted
from veneer.data.sources.shards import names_shards
from veneer.data.sources.tree import find_pictures
from veneer.data.sources.zip_filesystem import is_zip
from veneer.errors import UserError
from veneer.file_kind import JSON, kind_of_file
from veneer.files import read_utf8, user_path
from veneer.study.config import Study, StudyConfig, load_study

__all__ = ["read_planned_config", "read_run_config", "read_study", "with_base"]


_RUN = "a folder or a zip of pictures, a dataset.toml or a configuration file"
_STUDY = "the file of a study"
_REMEDIES = {
    "archive": "unpack it, and name the folder of pictures, or make a zip of it",
    "audio": "name a folder of pictures",
    "data": "name a folder with the pictures themselves, and a metadata.jsonl or caption files",
    "document": "name a folder with the pictures themselves, and a metadata.jsonl or caption files",
    "other picture": "name the folder of pictures that it lies in",
    "pickle": "convert it to safetensors, and name it as the base: base=FILE.safetensors",
    "picture": "name the folder of pictures that it lies in",
    "pointer": "fetch it: git lfs pull",
    "video": "save frames of it as pictures, and name their folder",
    "weights": "name a folder of pictures, and this file as the base: base=FILE",
}
"""What to do with a file of each category where something to train on is expected."""


def read_run_config(source: Path, overrides: Sequence[str], trigger: str | None, presets: Sequence[str]) -> RunConfig:
    """Read the configuration for a folder, zip or shards of pictures, for kohya's dataset file, or of a file.

    Raises:
        UserError: there is no such folder or file, it is something else, or the configuration is at fault.
    """
    if source.is_dir():
        _refuse_results(source)
        return config_from_folder(source, trigger, overrides, presets)
    if names_shards(source):
        return config_from_folder(source, trigger, overrides, presets)
    if not source.exists():
        what = "does not exist; a folder or zip of pictures or a configuration file is needed"
        raise UserError(what, code="cli.no_such_source", where=source)
    if is_dataset_file(source) or is_zip(source):
        return config_from_folder(source, trigger, overrides, presets)
    _refuse_other_kinds(source, _RUN)
    if trigger is not None:
        # last, so that it wins as an option does; quoted, since a trigger may look like a number
        overrides = [*overrides, f"data.trigger={_quoted(trigger)}"]
    return load_config(source, overrides, presets)


def _refuse_results(folder: Path) -> None:
    """Refuse the folder of a run in which nothing but its results is."""
    if is_run(folder) and all(is_painted(picture, folder) for picture in find_pictures(folder)):
        remedy = f"name its configuration to train it again or to resume it: {folder / CONFIG}"
        raise UserError("holds a run's results, and no pictures", code="cli.run_folder", where=folder, remedy=remedy)


def _refuse_other_kinds(file: Path, wanted: str) -> None:
    """Refuse a file that cannot be a configuration, by its content and not its name."""
    kind = kind_of_file(file)
    if kind is None:
        return
    if kind.category in _REMEDIES:
        remedy = _REMEDIES[kind.category] if wanted == _RUN else None
        raise UserError(f"is {kind.name}, not {wanted}", code="cli.not_a_config", where=file, remedy=remedy)
    if _is_caption_list(file):
        remedy = f"name the folder that it lies in: {file.parent}"
        raise UserError(f"is a list of captions, not {wanted}", code="cli.not_a_config", where=file, remedy=remedy)
    if kind.category == "markup" or (kind is JSON and not _has_keys(file)):
        what = f"is {kind.name} without keys of a configuration, not {wanted}"
        raise UserError(what, code="cli.not_a_config", where=file)
    if file.suffix.lower() == ".zip":
        raise UserError(f"is {kind.name}, not a zip archive", code="cli.not_a_config", where=file)


def _is_caption_list(file: Path) -> bool:
    first = read_utf8(file).partition("\n")[0]
    return file.suffix.lower() in (".csv", ".jsonl", ".tsv") and "file_name" in first


def _has_keys(file: Path) -> bool:
    """Check whether a JSON file, which YAML reads as well, has a key of a run's or a study's configuration."""
    try:
        content = json.loads(read_utf8(file))
    except (ValueError, RecursionError):
        return True  # for YAML to say what is wrong
    known = {*RunConfig.model_fields, *StudyConfig.model_fields}
    return isinstance(content, dict) and not known.isdisjoint(content)


def read_planned_config(
    words: Sequence[str], base: str | None, trigger: str | None, presets: Sequence[str]
) -> tuple[RunConfig, bool]:
    """Read the configuration to plan, and whether its pictures are there to be counted.

    Args:
        words: a folder or a file, which may be left out where ``base`` is given, then overrides.
        base: in place of the configuration's.
        trigger: as for ``read_run_config``.
        presets: likewise.
    """
    has_source = bool(words) and ("=" not in words[0] or user_path(words[0]).exists())
    if not has_source and base is None:
        remedy = "or name an architecture with --base"
        raise UserError("is missing", code="cli.missing_source", where="FOLDER|CONFIG.yaml", remedy=remedy)
    overrides = with_base(words[has_source:], base)
    if has_source:
        return read_run_config(user_path(words[0]), overrides, trigger, presets), True
    return config_from_folder(Path("pictures"), trigger, overrides, presets), False


def with_base(overrides: Sequence[str], base: str | None) -> list[str]:
    """Return overrides with that of an option ``--base`` behind them, and its expert and components behind that."""
    parts = [override for override in overrides if override.lstrip().startswith("base.")]
    others = [override for override in overrides if override not in parts]
    return [*others, f"base={_quoted(base)}", *parts] if base else list(overrides)


def read_study(source: Path, overrides: Sequence[str], config: Path | None, trigger: str | None) -> Study:
    """Read the study of a file or a name, of the run that ``config`` is, if it is given."""
    if source.is_dir():
        remedy = f"name the study's file, and {source} or its configuration with --config"
        raise UserError(f"is a folder, not {_STUDY}", code="cli.not_a_config", where=source, remedy=remedy)
    _refuse_other_kinds(source, _STUDY)
    if config is None:
        refuse_unused({"--trigger": trigger}, "--config", remedy="or set run.data.trigger")
        return load_study(source, overrides)
    return load_study(source, overrides, read_run_config(config, (), trigger, ()))


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
