"""The pictures of a run: taken from its sheets, made small, and put into the page itself."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageOps

from veneer.evaluate.results import Copying, Neighbour
from veneer.report.content import NearestPair, Picture, PictureGrid
from veneer.run.folder import SHEET, TIMELAPSE, sheets_in
from veneer.sample.clip import middle
from veneer.sample.files import read_note, read_pictures
from veneer.sample.timelapse import spread_evenly

__all__ = ["before_after", "nearest_pairs", "samples_by_step"]

_MAX_COLUMNS, _MAX_ROWS, _MAX_PAIRS = 12, 12, 8
_MAX_SIDE = 192
"""Most pixels of a picture's side: twice what a page shows, for screens of many pixels."""

Row = Sequence[Image.Image]


def samples_by_step(folder: Path) -> PictureGrid | None:
    """Return the pictures painted while training, of as many steps and prompts as a page has room for.

    Sheets that were painted otherwise than the last one, before the prompts were changed, are left out; sheets that
    cannot be taken apart are shown as the strip that the run made of them.
    """
    sheets = sheets_in(folder)
    if not sheets:
        return None
    note = read_note(sheets[max(sheets)])
    same = [step for step, path in sheets.items() if read_note(path) == note]
    rows_by_step = {step: read_pictures(sheets[step]) for step in spread_evenly(same, _MAX_COLUMNS)}
    samples = {step: [middle(row) for row in rows] for step, rows in rows_by_step.items() if rows}
    if note is None or not samples:
        strip = next(iter(sheets.values())).with_name(TIMELAPSE)
        return _whole_picture(strip, folder, "sample pictures over the steps")
    prompts = tuple(str(label) for label in note["labels"][:_MAX_ROWS])
    files = {step: _relative(sheets[step], folder) for step in samples}
    return _samples_grid(prompts, samples, files)


def _samples_grid(prompts: Sequence[str], samples: Mapping[int, Row], files: Mapping[int, str]) -> PictureGrid:
    columns = {step: "base" if step == 0 else f"step {step:,}" for step in samples}
    rows = tuple(
        tuple(_picture(samples[step][place], f"{prompt}, {column}", files[step]) for step, column in columns.items())
        for place, prompt in enumerate(prompts)
    )
    return PictureGrid(tuple(columns.values()), tuple(prompts), rows)


def before_after(folder: Path) -> PictureGrid | None:
    """Return the pictures by base and adapter and the real ones, a row for each prompt."""
    path = folder / SHEET
    note, sheet = read_note(path), read_pictures(path)
    if note is None or sheet is None:
        return _whole_picture(path, folder, "base above, adapter below, and real pictures")
    columns = tuple(str(label) for label in note["labels"])
    prompts = tuple(str(prompt) for prompt in note["columns"])
    rows = tuple(
        tuple(_picture(row[place], f"{prompt}: {column}", SHEET) for row, column in zip(sheet, columns, strict=True))
        for place, prompt in enumerate(prompts)
    )
    return PictureGrid(columns, prompts, rows)


def nearest_pairs(copying: Copying, folder: Path) -> tuple[NearestPair, ...]:
    """Return the nearest pairs of painted and training pictures, some of whose files may be gone."""
    return tuple(_nearest_pair(neighbour, folder) for neighbour in copying.samples[:_MAX_PAIRS])


def _nearest_pair(neighbour: Neighbour, folder: Path) -> NearestPair:
    nearest = Path(neighbour.nearest)
    return NearestPair(
        caption=neighbour.caption,
        painted=_open(folder / neighbour.picture, f"painted: {neighbour.caption}", neighbour.picture),
        nearest=_open(nearest, f"the training picture nearest to it, {nearest.name}", nearest.name),
        name=nearest.name,
        angle=neighbour.angle,
        mirrored=neighbour.mirrored,
        flagged=neighbour.flagged,
    )


def _whole_picture(path: Path, folder: Path, description: str) -> PictureGrid | None:
    picture = _open(path, description, _relative(path, folder), max_side=None)
    return None if picture is None else PictureGrid((), (), ((picture,),))


def _open(path: Path, description: str, file: str, max_side: int | None = _MAX_SIDE) -> Picture | None:
    """Return a picture from a file; None if the file is gone or damaged."""
    try:
        with Image.open(path) as image:
            return _picture(_square(image) if max_side else image, description, file, max_side)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def _square(image: Image.Image) -> Image.Image:
    """Return the middle square the right way up, as the model sees it, on white."""
    upright = ImageOps.exif_transpose(image).convert("RGBA")
    paper = Image.new("RGBA", upright.size, "white")
    paper.alpha_composite(upright)
    side = min(paper.size)
    return ImageOps.fit(paper.convert("RGB"), (side, side))


def _picture(image: Image.Image, description: str, file: str, max_side: int | None = _MAX_SIDE) -> Picture:
    small = image.convert("RGB")
    if max_side is not None:
        small.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    small.save(content, "WEBP", quality=85, method=4)
    data = content.getvalue()
    encoded = base64.b64encode(data).decode("ascii")
    return Picture(description, file, hashlib.sha256(data).hexdigest(), f"data:image/webp;base64,{encoded}")


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
