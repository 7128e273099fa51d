"""An adapter file put to use: painted with, or merged into its base for good."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers.utils import logging

from veneer.adapter.merge import merge
from veneer.errors import UserError
from veneer.family.loading import load_base
from veneer.family.protocol import Family
from veneer.files import name_beside
from veneer.run.folder import base_beside, make_writable, write_picture
from veneer.sample.generate import generate
from veneer.weights.file import info, load

__all__ = ["Painting", "merge_adapter", "sample_adapter"]


@dataclass(frozen=True)
class Painting:
    """How pictures are painted.

    Attributes:
        seed: of each prompt's first picture; its others count on from it.
        count: pictures of each prompt.
        scale: strength of the adapter; 1 is what it was trained at.
        steps: denoising steps.
        guidance: classifier-free guidance; 1 is none.
    """

    seed: int = 0
    count: int = 1
    scale: float = 1.0
    steps: int = 25
    guidance: float = 4.0


def sample_adapter(
    file: Path, prompts: Sequence[str], out: Path, *, base: str | None = None, how: Painting | None = None
) -> list[Path]:
    """Paint prompts with an adapter; the pictures' files in ``out``, prompt by prompt.

    Args:
        file: the adapter, or the folder of its run.
        prompts: what to paint.
        out: folder for the pictures.
        base: the adapter's base; default: that of the run's config beside the adapter, else the bundled one.
        how: seeds, strength, steps.
    """
    how = how or Painting()
    make_writable(out, "choose another --out")
    family = _with_adapter(file, base, how.scale)
    jobs = [(row, prompt, how.seed + turn) for row, prompt in enumerate(prompts) for turn in range(how.count)]
    texts, seeds = [prompt for _, prompt, _ in jobs], [seed for _, _, seed in jobs]
    pictures = generate(family, texts, seeds, steps=how.steps, guidance=how.guidance)
    return [write_picture(picture, out / _name(*job)) for picture, job in zip(pictures, jobs, strict=True)]


def merge_adapter(file: Path, out: Path, *, base: str | None = None, scale: float = 1.0) -> Path:
    """Write the base with an adapter merged into it, in float32, as a folder that any diffusers pipeline loads.

    Args:
        file: the adapter, or the folder of its run.
        out: the folder to make.
        base: as in :func:`sample_adapter`.
        scale: strength of the adapter.
    """
    with _new_folder(out) as beside:
        family = _with_adapter(file, base, scale)
        try:
            _save(family, beside)
        except SafetensorError as error:  # what its library makes of a full disk
            raise UserError(f"cannot be written ({error})", where=out) from error
    return out


def _save(family: Family, folder: Path) -> None:
    """Write a family's pipeline, without transformers' own bar."""
    pipeline: Any = family.pipeline()
    logging.disable_progress_bar()
    try:
        pipeline.save_pretrained(folder, safe_serialization=True)
    finally:
        logging.enable_progress_bar()


def _with_adapter(file: Path, base: str | None, scale: float) -> Family:
    """The base with an adapter merged into it; what is wrong with the file is said before the base is loaded."""
    info(file)
    family = load_base(base or base_beside(file))
    merge(family.networks, [(load(file, family.networks).weights, scale)])
    return family


def _name(row: int, prompt: str, seed: int) -> str:
    words = re.sub(r"\W+", "-", prompt.lower()).strip("-")[:40] or "empty"
    return f"{row:02d}-{words}-{seed}.png"


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill that takes its name only when it is full."""
    if folder.exists():
        raise UserError("is there already", where=folder, remedy="choose another --out")
    beside = name_beside(folder)
    try:
        try:
            beside.mkdir(parents=True)
        except OSError as error:
            what = f"cannot be made: {error.strerror or error}"
            raise UserError(what, where=folder, remedy="choose another --out") from error
        yield beside
        for path in beside.rglob("*"):
            _sync(path)
        os.replace(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _sync(path: Path) -> None:
    if path.is_file():
        with path.open("r+b") as file:
            os.fsync(file.fileno())
