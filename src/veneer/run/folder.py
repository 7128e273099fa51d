"""The folder of a run: the names of its files, whether it may be written to, and how it is emptied."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from veneer.config.load import CONFIG, LOG, load_config
from veneer.config.run_folder import has_log
from veneer.data.split_record import SPLIT
from veneer.errors import UserError
from veneer.evaluate.results import EVALUATION
from veneer.family.registry import BUNDLED
from veneer.sample.clip import CLIP_SUFFIX
from veneer.weights.adapter_path import BEST, adapters_in
from veneer.weights.checkpoint import checkpoints_in, clear_checkpoints
from veneer.weights.formats.strength import CONFIG_NAME as PEFT_CONFIG
from veneer.weights.formats.strength import FILE_NAME as PEFT_NAME

__all__ = [
    "BEST",
    "CARD",
    "CHECKPOINTS",
    "CONFIG",
    "COPYING",
    "EVALUATED",
    "GALLERY",
    "LOG",
    "PLAN",
    "REPORT",
    "REPORT_DATA",
    "SAMPLES",
    "SHEET",
    "TENSORBOARD",
    "TIMELAPSE",
    "base_beside",
    "claim",
    "clear",
    "clear_samples",
    "config_beside",
    "sheets_in",
    "writable",
]

CHECKPOINTS = "checkpoints"
"""Folder of the states from which a stopped run goes on."""
PLAN = "plan.json"
"""What the run was planned to take."""
SAMPLES = "samples"
"""Folder of the sheets painted while training."""
TIMELAPSE = "timelapse.png"
"""In the folder of samples: the same pictures through the run."""
GALLERY = "gallery"
"""Folder of the adapter's pictures, as large as they were painted, each with how it was."""
SHEET = "sheet.png"
"""Base and adapter side by side."""
TENSORBOARD = "tensorboard"
"""Folder of TensorBoard's event files."""
COPYING = "copying.png"
"""Painted pictures and the training pictures nearest to them."""
EVALUATED = "evaluation"
"""Folder of the pictures that were painted to be evaluated."""
REPORT = "report.html"
"""The run as one page."""
REPORT_DATA = "report.json"
"""What the page tells, as data."""
CARD = "README.md"
"""The adapter's model card."""


@contextmanager
def writable(folder: Path, remedy: str) -> Iterator[None]:
    """Make a folder and check that files can be written there, before anything takes long.

    What was made goes again if an error leaves it empty: a run that is refused leaves nothing behind.

    Raises:
        UserError: they cannot.
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        _make_writable(folder, remedy)
        yield
    except BaseException:
        with suppress(OSError):  # something is in it, or it was never made
            for place in missing:
                place.rmdir()
        raise


def _make_writable(folder: Path, remedy: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # permissions, quotas and read-only disks all show in an attempt, and only there
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"probe")
    except OSError as error:
        what = f"cannot be written to: {error.strerror or error}"
        raise UserError(what, code="output.not_writable", where=folder, remedy=remedy) from error


def config_beside(file: Path) -> Path:
    """Return where the configuration of an adapter's run would be: in its folder, or beside its file."""
    return (file if file.is_dir() else file.parent) / CONFIG


def base_beside(file: Path) -> str:
    """Return the base of the run that an adapter lies in; the bundled one where there is no configuration."""
    config = config_beside(file)
    return load_config(config).base if config.is_file() else BUNDLED


def claim(folder: Path, *, overwrite: bool = False) -> None:
    """Take a folder for a run that starts from nothing.

    Raises:
        UserError: it holds a result, or a run that was stopped, and they are not to be overwritten.
    """
    if overwrite:
        return
    if results := [file.name for file in adapters_in(folder).values()]:
        raise UserError(
            f"already holds a result, {results[0]}",
            code="output.has_result",
            where=folder,
            remedy="choose another output.dir=FOLDER, or --overwrite",
        )
    if checkpoints_in(folder / CHECKPOINTS):
        remedy = "--resume goes on with it, --overwrite starts over"
        raise UserError(
            "holds checkpoints of an unfinished run", code="output.has_checkpoints", where=folder, remedy=remedy
        )
    _check_ours(folder)


def _check_ours(folder: Path) -> None:
    """Refuse a folder with files of a run's names that are no run's: somebody's own README.md, a config by hand.

    Raises:
        UserError: there is one.
    """
    if has_log(folder):
        return
    for name in (CARD, CONFIG, LOG):
        if (folder / name).exists():
            remedy = "choose another output.dir=FOLDER, or --overwrite"
            what = f"holds a {name} that is no run's, which a run would replace"
            raise UserError(what, code="output.has_other_file", where=folder, remedy=remedy)


def clear(folder: Path) -> None:
    """Remove an earlier run's result, so that no file of it is taken for one of the next.

    The log goes last: by it the folder is known as a run's, should the process die here.
    """
    for adapter in adapters_in(folder).values():
        _remove_adapter(adapter)
    for name in (BEST, CARD, CONFIG, PLAN, SPLIT, SHEET, EVALUATION, COPYING, REPORT, REPORT_DATA):
        (folder / name).unlink(missing_ok=True)
    for events in (folder / TENSORBOARD).glob("events.out.tfevents.*"):
        events.unlink()
    clear_samples(folder)
    for painted in (EVALUATED, GALLERY):
        shutil.rmtree(folder / painted, ignore_errors=True)
    clear_checkpoints(folder / CHECKPOINTS)
    (folder / LOG).unlink(missing_ok=True)


def _remove_adapter(place: Path) -> None:
    """Remove an adapter's file, or those that peft has in a folder and in one for each network; no other file goes."""
    if place.is_file():
        place.unlink()
        return
    for folder in (*(each for each in place.iterdir() if each.is_dir()), place):
        for name in (PEFT_NAME, PEFT_CONFIG):
            (folder / name).unlink(missing_ok=True)
        with suppress(OSError):  # something else is in it
            folder.rmdir()


def clear_samples(folder: Path, after: int = -1) -> None:
    """Remove the sheets that were painted while training, of later steps than ``after``; the strip is made anew."""
    (folder / SAMPLES / TIMELAPSE).unlink(missing_ok=True)
    for step, sheet in sheets_in(folder).items():
        if step > after:
            sheet.unlink()
    for clip in (folder / SAMPLES).glob(f"step-*{CLIP_SUFFIX}"):
        if not clip.with_suffix(".png").exists():
            clip.unlink()


def sheets_in(folder: Path) -> dict[int, Path]:
    """Return the sheets that were painted while training, by step, in their order."""
    names = (re.fullmatch(r"step-(\d+)\.png", path.name) for path in sorted((folder / SAMPLES).glob("step-*.png")))
    return {int(match[1]): folder / SAMPLES / match[0] for match in names if match}
