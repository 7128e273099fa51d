"""Read the configuration that ``train``, ``plan`` and ``study`` are given, before anything slow is imported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from veneer.cli.options import refuse_unused
from veneer.config.load import config_from_folder, load_config
from veneer.config.schema import RunConfig
from veneer.errors import UserError
from veneer.files import user_path
from veneer.study.config import Study, load_study

__all__ = ["read_planned_config", "read_run_config", "read_study"]


def read_run_config(source: Path, overrides: Sequence[str], trigger: str | None, presets: Sequence[str]) -> RunConfig:
    """Read the configuration for a folder of pictures, or of a file.

    Raises:
        UserError: there is no such folder or file, or the configuration is at fault.
    """
    if source.is_dir():
        return config_from_folder(source, trigger, overrides, presets)
    if not source.exists():
        what = "is neither a folder of pictures nor a configuration file"
        raise UserError(what, code="cli.no_such_source", where=source)
    if trigger is not None:
        # last, so that it wins as an option does; quoted, since a trigger may look like a number
        overrides = [*overrides, f"data.trigger={_quoted(trigger)}"]
    return load_config(source, overrides, presets)


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
    overrides = [*words[has_source:], *([f"base={_quoted(base)}"] if base else [])]
    if has_source:
        return read_run_config(user_path(words[0]), overrides, trigger, presets), True
    return config_from_folder(Path("pictures"), trigger, overrides, presets), False


def read_study(source: Path, overrides: Sequence[str], config: Path | None, trigger: str | None) -> Study:
    """Read the study of a file or a name, of the run that ``config`` is, if it is given."""
    if config is None:
        refuse_unused({"--trigger": trigger}, "--config", remedy="or set run.data.trigger")
        return load_study(source, overrides)
    return load_study(source, overrides, read_run_config(config, (), trigger, ()))


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
