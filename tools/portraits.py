"""Show what square crops lose of portraits and what buckets keep: the picture and the table of docs/data.md.

python -m tools.portraits      a few seconds

The portraits are drawn: a face among the demo's pictures in the upper part of the paper, as photographers place it, on
shoulders and before a wall. So it is known to the pixel where the head is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import veneer
from tools.publish import publish
from veneer.data.buckets import Buckets, Size, cropped_share
from veneer.data.transform import cut
from veneer.sample.sheet import sheet

__all__ = ["PAGE", "PICTURE", "PORTRAITS", "SECTION", "Portrait", "main", "table"]

ROOT = Path(__file__).parents[1]
PAGE, PICTURE, SECTION = ROOT / "docs" / "data.md", ROOT / "docs" / "portraits.png", "portraits"
SIDE, MULTIPLE = 1024, 32
"""The resolution, and what sides of pictures are multiples of, as of SDXL."""
_ROOM = 0.06
"""Room above a head, as a share of the picture's height."""
_PAPER = (255, 0, 255)
"""A colour that no face has."""


@dataclass(frozen=True)
class Portrait:
    """A drawing of a head on shoulders.

    Attributes:
        face: name of the demo's picture.
        shape: what photographers call the shape.
        width: in pixels.
        height: in pixels.
        wall: colour behind the head.
        coat: colour of the shoulders.
    """

    face: str
    shape: str
    width: int
    height: int
    wall: str
    coat: str

    @property
    def head(self) -> tuple[int, int, int]:
        """Left, top and side of the square that the head fills."""
        side = round(0.46 * min(self.width, self.height))
        return (self.width - side) // 2, round(_ROOM * self.height), side

    def draw(self) -> Image.Image:
        """Return the picture."""
        paper = Image.new("RGB", (self.width, self.height), self.wall)
        left, top, side = self.head
        pen, middle = ImageDraw.Draw(paper), self.width // 2
        pen.rectangle((0, round(0.86 * self.height), self.width, self.height), fill="#6b5b4b")
        reach, shoulders = round(0.75 * side), top + round(0.98 * side)
        pen.rounded_rectangle((middle - reach, shoulders, middle + reach, 2 * self.height), side // 3, fill=self.coat)
        with Image.open(veneer.demo_path() / "train" / f"{self.face}.png") as image:
            face = image.convert("RGBA").resize((side, side), Image.Resampling.LANCZOS)
        paper.paste(face, (left, top), _without_paper(face))
        return paper

    def head_kept(self, size: Size) -> float:
        """Return the share of the head's square that is seen where the middle of the picture is cut to a size."""
        left, top, side = self.head
        across = min(self.width, self.height * size[1] / size[0])
        down = min(self.height, self.width * size[0] / size[1])
        x, y = (self.width - across) / 2, (self.height - down) / 2
        wide = min(left + side, x + across) - max(left, x)
        tall = min(top + side, y + down) - max(top, y)
        return max(wide, 0) * max(tall, 0) / side**2


PORTRAITS = (
    Portrait("relieved-face", "2 : 3, a camera held upright", 1200, 1800, "#cfdbe6", "#2f4a6d"),
    Portrait("robot", "3 : 4, a tablet", 1350, 1800, "#e6dccb", "#7a2e2e"),
    Portrait("smirking-face", "4 : 5, a feed", 1440, 1800, "#d5e3d0", "#3f5d3a"),
    Portrait("bear", "9 : 16, a telephone", 1080, 1920, "#e3d3dd", "#52355c"),
    Portrait("alien", "3 : 2, a camera", 1800, 1200, "#d9d9d9", "#333333"),
)


def main() -> None:
    """Draw the picture, and publish the table."""
    drawings = [portrait.draw() for portrait in PORTRAITS]
    rows = [drawings]
    for buckets in (_squares(), _buckets()):
        sizes = [buckets.largest(*drawing.size) for drawing in drawings]
        rows.append([cut(drawing, size) for drawing, size in zip(drawings, sizes, strict=True)])
    headings = [f"{one.width} x {one.height}" for one in PORTRAITS]
    labels = ("the picture", "aspect: square", "aspect: buckets")
    sheet(rows, headings, labels, cell=176).quantize(128).save(PICTURE, optimize=True)
    publish(PAGE, table(), SECTION)
    print(table())


def table() -> str:
    """Return the table of what is kept of each portrait."""
    lines = [
        "| portrait | square: of the picture | of the head | bucket | of the picture | of the head |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for one in PORTRAITS:
        square, size = ((SIDE, SIDE), _buckets().largest(one.width, one.height))
        cells = [one.shape, *_kept(one, square), f"{size[1]} x {size[0]}", *_kept(one, size)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _kept(portrait: Portrait, size: Size) -> tuple[str, str]:
    whole = 1 - cropped_share(portrait.width, portrait.height, size)
    return f"{whole:.0%}", f"{portrait.head_kept(size):.0%}"


def _buckets() -> Buckets:
    return Buckets((SIDE,), MULTIPLE)


def _squares() -> Buckets:
    return Buckets(((SIDE, SIDE),), MULTIPLE)


def _without_paper(face: Image.Image) -> Image.Image:
    """Return a mask of a drawing without the white paper around it."""
    flat = Image.new("RGB", face.size, "white")
    flat.paste(face, mask=face.getchannel("A"))
    for corner in ((0, 0), (face.width - 1, 0), (0, face.height - 1), (face.width - 1, face.height - 1)):
        ImageDraw.floodfill(flat, corner, _PAPER, thresh=40)
    is_face_HW = (np.asarray(flat) != _PAPER).any(axis=-1)
    return Image.fromarray((255 * is_face_HW).astype(np.uint8))


if __name__ == "__main__":
    main()
