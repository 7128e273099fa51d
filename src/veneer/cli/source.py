"""From what ``veneer train`` is given to a configuration; a mistake in it is told before anything slow is imported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from veneer.config.load import config_from_folder, load_config
from veneer.config.schema import RunConfig
from veneer.errors import UserError

__all__ = ["config_of"]


def config_of(source: Path, overrides: Sequence[str], trigger: str | None, presets: Sequence[str]) -> RunConfig:
    """The configuration for a folder of pictures, or of a file."""
    if source.is_dir():
        return config_from_folder(source, trigger, overrides, presets)
    if not source.exists():
        raise UserError("is neither a folder of pictures nor a configuration file", where=source)
    if trigger is not None:
        # last, so that it wins as an option does; quoted, since a trigger may look like a number
        overrides = [*overrides, f"data.trigger={_quoted(trigger)}"]
    return load_config(source, overrides, presets)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
