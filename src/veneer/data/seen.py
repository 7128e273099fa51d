"""What decoding a picture once tells of it, as plain numbers that can be kept in place of decoding it again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from veneer.data.decode import decoded
from veneer.data.duplicates import THUMB
from veneer.data.manifest import content_id
from veneer.data.sharpness import BLURRED, edge_width, is_flat

__all__ = ["Look", "Seen", "see"]


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen of a picture beside its size.

    Attributes:
        conversions: what was done to it as its file asks, each in some words.
        edge_width: see :func:`~veneer.data.sharpness.edge_width`.
        is_flat: whether it is of one colour.
    """

    conversions: tuple[str, ...] = ()
    edge_width: float | None = None
    is_flat: bool = False

    @property
    def is_blurred(self) -> bool:
        """Whether it has no sharp edge."""
        return not self.is_flat and self.edge_width is not None and self.edge_width > BLURRED


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of a picture that was decoded.

    Attributes:
        content: hash of its bytes.
        width: in pixels, upright.
        height: likewise.
        thumb: its thumbnail's bytes.
        remarks: on how it is decoded, each in some words.
        look: what else was seen of it.
        frames: of a clip, how many the file has; of a picture 1.
        frame_rate: frames a second of a clip, on the mean; None: it is a picture.
    """

    content: str
    width: int
    height: int
    thumb: bytes
    remarks: tuple[str, ...]
    look: Look
    frames: int = 1
    frame_rate: float | None = None


def see(content: bytes, background: tuple[int, int, int]) -> Seen:
    """Decode a picture and keep what is to be known of it.

    Raises:
        Unreadable: it cannot be used.
    """
    remarks: list[str] = []
    conversions: list[str] = []
    with decoded(content, background, remarks, conversions) as image:
        thumb = np.asarray(image.resize((THUMB, THUMB), Image.Resampling.BOX)).tobytes()
        look = Look(tuple(conversions), edge_width(image), is_flat(image))
        return Seen(content_id(content), *image.size, thumb, tuple(remarks), look)
