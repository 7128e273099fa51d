"""From what ``train``, ``plan`` and ``study`` are given to a configuration; a mistake is told before slow imports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from veneer.config.load import config_from_folder, load_config
from veneer.config.schema import RunConfig
from veneer.errors import UserError
from veneer.study.config import Study, load_study

__all__ = ["config_of", "planned", "studied"]


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


def planned(
    words: Sequence[str], base: str | None, trigger: str | None, presets: Sequence[str]
) -> tuple[RunConfig, bool]:
    """The configuration to plan, and whether its pictures are known.

    Args:
        words: a folder or a file, unless ``base`` says enough, then overrides.
        base: in place of the configuration's.
        trigger: as for ``config_of``.
        presets: likewise.
    """
    named = bool(words) and ("=" not in words[0] or Path(words[0]).exists())
    if not named and base is None:
        raise UserError("is missing", where="FOLDER|CONFIG.yaml", remedy="or name an architecture with --base")
    overrides = [*words[named:], *([f"base={_quoted(base)}"] if base else [])]
    if named:
        return config_of(Path(words[0]), overrides, trigger, presets), True
    return config_from_folder(Path("pictures"), trigger, overrides, presets), False


def studied(source: Path, overrides: Sequence[str], config: Path | None, trigger: str | None) -> Study:
    """The study of a file or a name, of the run that ``--config`` names if it names one."""
    if config is None:
        if trigger is not None:
            raise UserError("means something only with --config", where="--trigger", remedy="or set run.data.trigger")
        return load_study(source, overrides)
    return load_study(source, overrides, config_of(config, (), trigger, ()))


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
