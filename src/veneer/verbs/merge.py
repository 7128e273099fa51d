"""Merge an adapter file into its base."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers.utils import logging

from veneer.adapter.merge import merge
from veneer.errors import UserError
from veneer.family.loading import load_base, text_options
from veneer.family.protocol import Family
from veneer.family.windows import token_windows_of
from veneer.files import name_beside, opens_paths
from veneer.run.folder import base_beside
from veneer.weights.file import info, load

__all__ = ["load_merged", "merge_adapter"]


@opens_paths
def merge_adapter(file: Path, out: Path, *, base: str | None = None, scale: float = 1.0) -> Path:
    """Write the base with an adapter merged into it, in float32, as a folder that any diffusers pipeline loads.

    Args:
        file: the adapter, or the folder of its run.
        out: the folder to make.
        base: the adapter's base; default: that of the run's config beside the adapter, else the bundled one.
        scale: strength of the adapter.

    Raises:
        UserError: the folder is there already or cannot be written, or the adapter cannot be read or merged.
    """
    with _new_folder(out) as beside:
        family = load_merged(file, base, scale)
        try:
            _save(family, beside)
        except SafetensorError as error:  # as its library reports a full disk
            raise UserError(f"cannot be written ({error})", code="output.not_writable", where=out) from error
    return out


def _save(family: Family, folder: Path) -> None:
    """Write a family's pipeline, without transformers' own progress bar."""
    pipeline: Any = family.pipeline()
    logging.disable_progress_bar()
    try:
        pipeline.save_pretrained(folder, safe_serialization=True)
    finally:
        logging.enable_progress_bar()


def load_merged(file: Path, base: str | None, scale: float) -> Family:
    """Load a base with an adapter merged into it; a fault of the adapter's file is raised before the base is loaded."""
    windows = token_windows_of(info(file).metadata)
    family = load_base(base or base_beside(file), **text_options(windows))
    weights = load(file, family.networks).weights
    merge(family.networks, [(weights, scale)])
    return family


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder to fill, which takes its name only when all of it is on the disk."""
    if folder.exists():
        raise UserError("is there already", code="output.exists", where=folder, remedy="choose another --out")
    beside = name_beside(folder)
    try:
        try:
            beside.mkdir(parents=True)
        except OSError as error:
            what = f"cannot be made: {error.strerror or error}"
            raise UserError(what, code="output.not_writable", where=folder, remedy="choose another --out") from error
        yield beside
        for path in beside.rglob("*"):
            _sync(path)
        os.replace(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _sync(path: Path) -> None:
    """Wait until the disk has a file."""
    if path.is_file():
        with path.open("r+b") as file:
            os.fsync(file.fileno())
