"""A run's pictures for its report: taken from its sheets, made small, put into the page itself."""

from __future__ import annotations

import base64
import hashlib
import io
from pathlib import Path

from PIL import Image, ImageOps

from veneer.evaluate.results import Copying, Neighbour
from veneer.report.content import Painting, Strip, Twin
from veneer.run.folder import SHEET, TIMELAPSE, sheets_in
from veneer.sample.files import read_note, read_pictures
from veneer.sample.timelapse import spread_evenly

__all__ = ["before_after", "samples_by_step", "twins_of"]

_COLUMNS, _ROWS, _TWINS = 12, 12, 8
"""Most pictures of each kind."""
_SIDE = 192
"""Most pixels of a picture's side: twice what a page shows, for screens of many pixels."""


def samples_by_step(folder: Path) -> Strip | None:
    """The sheets painted while training, as many steps and prompts as a page has room for.

    Sheets that were painted otherwise than the last one, before the prompts were changed, are left out; sheets that
    cannot be taken apart are shown as the strip that the run made of them.
    """
    sheets = sheets_in(folder)
    if not sheets:
        return None
    last = read_note(sheets[max(sheets)])
    alike = [step for step, path in sheets.items() if read_note(path) == last]
    steps = spread_evenly(alike, _COLUMNS)
    found = {step: read_pictures(sheets[step]) for step in steps}
    whole = {step: [row[0] for row in rows] for step, rows in found.items() if rows}
    if last is None or not whole:
        return _whole(next(iter(sheets.values())).with_name(TIMELAPSE), folder, "sample pictures over the steps")
    prompts = tuple(str(label) for label in last["labels"][:_ROWS])
    columns = tuple("base" if step == 0 else f"step {step:,}" for step in whole)
    rows = tuple(
        tuple(
            _painting(pictures[row], f"{prompt}, {column}", _told(sheets[step], folder))
            for (step, pictures), column in zip(whole.items(), columns, strict=True)
        )
        for row, prompt in enumerate(prompts)
    )
    return Strip(columns, prompts, rows)


def before_after(folder: Path) -> Strip | None:
    """The sheet of base, adapter and real pictures, a row a prompt."""
    path = folder / SHEET
    note, rows = read_note(path), read_pictures(path)
    if note is None or rows is None:
        return _whole(path, folder, "base above, adapter below, and real pictures")
    columns = tuple(str(label) for label in note["labels"])
    prompts = tuple(str(prompt) for prompt in note["columns"])
    pictures = tuple(
        tuple(_painting(row[place], f"{prompt}: {column}", SHEET) for row, column in zip(rows, columns, strict=True))
        for place, prompt in enumerate(prompts)
    )
    return Strip(columns, prompts, pictures)


def twins_of(copying: Copying, folder: Path) -> tuple[Twin, ...]:
    """The nearest ones, of whose pictures some may be gone."""
    return tuple(_twin(each, folder) for each in copying.samples[:_TWINS])


def _twin(neighbour: Neighbour, folder: Path) -> Twin:
    nearest = Path(neighbour.nearest)
    painted = _opened(folder / neighbour.picture, f"painted: {neighbour.caption}", neighbour.picture)
    real = _opened(nearest, f"the training picture nearest to it, {nearest.name}", nearest.name)
    angle, mirrored, flagged = neighbour.angle, neighbour.mirrored, neighbour.flagged
    return Twin(neighbour.caption, painted, real, nearest.name, angle, mirrored, flagged)


def _whole(path: Path, folder: Path, about: str) -> Strip | None:
    found = _opened(path, about, _told(path, folder), most=None)
    return None if found is None else Strip((), (), ((found,),))


def _opened(path: Path, about: str, file: str, most: int | None = _SIDE) -> Painting | None:
    try:
        with Image.open(path) as picture:
            return _painting(_square(picture) if most else picture, about, file, most)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def _square(picture: Image.Image) -> Image.Image:
    """The middle square the right way up, as the model sees it, on white."""
    upright = ImageOps.exif_transpose(picture).convert("RGBA")
    paper = Image.new("RGBA", upright.size, "white")
    paper.alpha_composite(upright)
    side = min(paper.size)
    return ImageOps.fit(paper.convert("RGB"), (side, side))


def _painting(picture: Image.Image, about: str, file: str, most: int | None = _SIDE) -> Painting:
    small = picture.convert("RGB")
    if most is not None:
        small.thumbnail((most, most), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    small.save(content, "WEBP", quality=85, method=4)
    data = content.getvalue()
    coded = base64.b64encode(data).decode("ascii")
    return Painting(about, file, hashlib.sha256(data).hexdigest(), f"data:image/webp;base64,{coded}")


def _told(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
