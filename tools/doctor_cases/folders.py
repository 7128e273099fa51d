"""Folders of pictures to train on, made from the demo's pictures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

import veneer
from veneer.rng import key

__all__ = ["HELD_OUT", "HELD_OUT_FIT", "Recipe", "make_folder", "rotate_captions", "split_held_out"]

HELD_OUT, HELD_OUT_FIT = "held_out", "held_out_fit"
"""Halves of the demo's held-out pictures, copied into the working folder so that no path of a machine is recorded."""

CaptionEdit = Callable[[Sequence[str]], Sequence[str]]


def _unchanged(captions: Sequence[str]) -> Sequence[str]:
    return captions


def rotate_captions(captions: Sequence[str]) -> Sequence[str]:
    """Return the captions moved by one picture, as when a list slips by a line."""
    return [*captions[1:], captions[0]]


@dataclass(frozen=True)
class Recipe:
    """How to make a folder of pictures.

    Attributes:
        count: number of pictures, chosen by a hash of their names and ``seed``.
        seed: seed of the choice.
        source: the demo's folder they come from.
        captions: returns the captions to write, given the demo's.
        side: side in pixels that they are resized to; None: not resized.
        copies: number of further files of each picture, saved as JPEG of falling quality.
        broken: number of further files that are no pictures.
    """

    count: int
    seed: int = 3
    source: str = "train"
    captions: CaptionEdit = _unchanged
    side: int | None = None
    copies: int = 0
    broken: int = 0


def split_held_out() -> None:
    """Copy the demo's held-out pictures into two folders that have none in common."""
    demo = veneer.demo_path() / HELD_OUT
    for place, name in enumerate((HELD_OUT, HELD_OUT_FIT)):
        folder = _empty(Path(name))
        rows = _rows(demo)[place::2]
        for row in rows:
            shutil.copy(demo / row["file_name"], folder)
        _write_captions({row["file_name"]: row["text"] for row in rows}, folder)


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _rows(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text("utf-8").splitlines()]


def _write_captions(captions: Mapping[str, str], folder: Path) -> None:
    lines = [json.dumps({"file_name": name, "text": text}) for name, text in captions.items()]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", "utf-8")


def make_folder(recipe: Recipe, folder: Path) -> None:
    """Make a folder by its recipe; what it held before is deleted."""
    _empty(folder)
    demo = veneer.demo_path() / recipe.source
    # the key's text is part of which pictures are drawn: it stays, so that recorded runs can be made again
    rows = sorted(_rows(demo), key=lambda row: key(recipe.seed, "illness", row["file_name"]))[: recipe.count]
    captions = recipe.captions([row["text"] for row in rows])
    captions_by_file: dict[str, str] = {}
    for row, caption in zip(rows, captions, strict=True):
        captions_by_file |= dict.fromkeys(_write_picture(demo / row["file_name"], recipe, folder), caption)
    for number in range(recipe.broken):
        name = f"broken-{number:02d}.png"
        (folder / name).write_bytes(b"no picture")
        captions_by_file[name] = "a broken emoji"
    _write_captions(captions_by_file, folder)


def _write_picture(source: Path, recipe: Recipe, folder: Path) -> list[str]:
    picture = Image.open(source).convert("RGB")
    if recipe.side is not None:
        picture = picture.resize((recipe.side, recipe.side), Image.Resampling.LANCZOS)
    picture.save(folder / source.name)
    copies = [f"{source.stem}-{number}.jpg" for number in range(recipe.copies)]
    for number, name in enumerate(copies):
        picture.save(folder / name, quality=92 - 4 * number)
    return [source.name, *copies]
