"""Decode a picture's bytes to upright 8-bit sRGB, whatever they were: the one way that pictures come in.

No setting of Pillow's is changed: what is too large is refused here, by a limit of our own.
"""

from __future__ import annotations

import io
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from veneer.data.colour_space import stated_space
from veneer.data.unreadable import Unreadable
from veneer.file_kind import EMPTY, kind_in

__all__ = [
    "DECODING",
    "FORMATS",
    "MAX_PIXELS",
    "MIN_SIDE",
    "ORIENTATION",
    "TRANSPARENT",
    "UPRIGHT",
    "Notes",
    "decode",
    "decoded",
    "is_transparent",
    "on_background",
    "opened",
    "pixels_taken",
    "to_8_bits",
    "to_srgb",
    "upright",
]

DECODING = 2
"""Version of the decoding, part of the keys of cached latents: raise it when pictures begin to give other pixels."""
MAX_PIXELS = 89_478_485
"""Pixels in a picture, at most: a quarter GiB of RGB, from where on Pillow warns of decompression bombs."""
MIN_SIDE = 8
"""Pixels on a picture's short side, at least: the smallest resolution a config may ask for."""
FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "PSD", "ICO", "DIB", "PCX", "SGI"),
    "TGA",  # last, for it has no signature
)
"""Those that people have, by Pillow's names; not EPS, which Pillow has Ghostscript run."""
TRANSPARENT = "transparent in parts, which are laid on data.background and learned (masks: alpha leaves them out)"
"""The remark on pictures of which more than :data:`_MARGIN` is transparent."""
_MARGIN = 0.01
"""Share of a picture that may be transparent without a word, such as the pixels of a soft edge."""
ORIENTATION = 0x0112  # EXIF
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BAND = 2**20  # pixels
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # TIFF


_REMEDIES = {"other picture": "save it as PNG or JPEG", "pointer": "fetch it: git lfs pull"}
"""What to do with a file of each category that has the name of a picture, where the category tells it."""


def decode(
    content: bytes,
    background: tuple[int, int, int],
    remarks: list[str] | None = None,
    conversions: list[str] | None = None,
) -> Image.Image:
    """Decode a picture to sRGB: upright by its EXIF, first frame, on a background where it is transparent.

    Args:
        content: the file's bytes.
        background: red, green and blue, 0 to 255.
        remarks: gets what a user may want to know of how the picture is decoded, each in some words.
        conversions: gets what was done to it as its file asks, likewise.

    Raises:
        Unreadable: the picture is broken, of no known format, too small or too large.
    """
    with opened(content) as image:
        return _decoded(image, content, background, Notes.of(remarks, conversions))


@contextmanager
def decoded(
    content: bytes,
    background: tuple[int, int, int],
    remarks: list[str] | None = None,
    conversions: list[str] | None = None,
) -> Iterator[Image.Image]:
    """Decode a picture as :func:`decode` does; its pixels count among those of all threads while within, and are gone
    after.
    """
    with opened(content) as image:
        shown = _decoded(image, content, background, Notes.of(remarks, conversions))
        try:
            yield shown
        finally:
            shown.close()
            image.close()


@contextmanager
def opened(content: bytes) -> Iterator[Image.Image]:
    """Open a picture by its content, its first frame loaded; what goes wrong with it in the block is its fault.

    Raises:
        Unreadable: the picture is broken, of no known format, too small or too large.
    """
    _refuse_others(content)
    with _WITHOUT_WARNINGS:
        try:
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                _check_size(*image.size)
                with _PIXELS.taken(image.width * image.height):
                    image.load()
                    yield image
        except Unreadable:
            raise
        except Image.DecompressionBombError:
            raise Unreadable(f"too large: more than {2 * MAX_PIXELS:,} pixels") from None
        except UnidentifiedImageError:
            raise Unreadable(_what_else(content)) from None
        except Exception as error:  # decoders of broken files raise whatever they stumbled on
            raise Unreadable(f"broken: {' '.join(str(error).split()) or type(error).__name__}") from None


class Notes(NamedTuple):
    """Lists of what is to be said of how a picture is decoded."""

    remarks: list[str]
    conversions: list[str]

    @classmethod
    def of(cls, remarks: list[str] | None, conversions: list[str] | None) -> Notes:
        """Return the lists, with one that nobody reads for each that is None."""
        return cls([] if remarks is None else remarks, [] if conversions is None else conversions)

    def add_new(self, others: Notes) -> None:
        """Add what others say and these do not: of the frames of a clip, each thing once."""
        for own, further in zip(self, others, strict=True):
            own += [text for text in further if text not in own]


class _WithoutWarnings:
    """Warn of nothing while any thread is within: Python has one list of filters for all.

    Pillow's warnings are about files that decode; its limit may be any, so ours is checked here.
    """

    def __init__(self) -> None:
        self._lock, self._within = threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._within:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.simplefilter("ignore")
            self._within += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._within -= 1
            if not self._within:
                self._caught.__exit__(None, None, None)


class _Budget:
    """So much of something may be taken at a time; who wants more than is left waits, and one alone may have more."""

    def __init__(self, most: int) -> None:
        self._most, self._taken, self._changed = most, 0, threading.Condition()

    @contextmanager
    def taken(self, amount: int) -> Iterator[None]:
        """Take an amount while within."""
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + amount <= self._most)
            self._taken += amount
        try:
            yield
        finally:
            with self._changed:
                self._taken -= amount
                self._changed.notify_all()


_BLOCK = 64 * 2**20
"""Bytes of a block of a picture's pixels. Pillow's own 16 MiB lie in malloc's arenas, one for each thread, which
keep the holes of large pictures; above 32 MiB a block has pages of its own, which go back (mallopt(3))."""
Image.core.set_block_size(_BLOCK)  # type: ignore[attr-defined]

_WITHOUT_WARNINGS = _WithoutWarnings()
_PIXELS = _Budget(MAX_PIXELS)
"""Pixels that are held at a time: as many threads as there are hold no more memory than one needs for the largest
picture."""


def pixels_taken(amount: int) -> AbstractContextManager[None]:
    """Count so many pixels among those of all threads while within; waits while there are too many.

    Nobody who is within may ask for more.
    """
    return _PIXELS.taken(amount)


def _forget_other_threads() -> None:
    """Let a process that was forked off wait for no thread of the one that it comes from."""
    _WITHOUT_WARNINGS.__init__()  # type: ignore[misc]
    _PIXELS.__init__(MAX_PIXELS)  # type: ignore[misc]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_threads)


def _refuse_others(content: bytes) -> None:
    """Refuse what has another kind's signature: decoders of formats without one may take it for a picture.

    A text may be a picture whose numbers are written out.
    """
    kind = kind_in(io.BytesIO(content))
    if kind is EMPTY:
        raise Unreadable("empty file (0 bytes)")
    if kind is not None and kind.category not in ("markup", "other picture", "picture", "text"):
        raise Unreadable(_what_else(content))


def _what_else(content: bytes) -> str:
    kind = kind_in(io.BytesIO(content))
    if kind is None:
        return "not a picture of a known format"
    if kind.category == "picture":
        return f"broken: begins as {kind.name}, and cannot be read as one"
    remedy = _REMEDIES.get(kind.category)
    return f"not a picture of a known format, but {kind.name}" + (f": {remedy}" if remedy else "")


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise Unreadable(f"too large: {width} x {height} pixels, at most {MAX_PIXELS:,} in all")
    if min(width, height) < MIN_SIDE:
        raise Unreadable(f"too small: {width} x {height} pixels, at least {MIN_SIDE} each way")


def _decoded(image: Image.Image, content: bytes, background: tuple[int, int, int], notes: Notes) -> Image.Image:
    if _has_more_frames(image):
        notes.remarks.append("more than one frame or page, of which the first is taken")
    return to_srgb(image, content, background, notes)


def to_srgb(image: Image.Image, content: bytes, background: tuple[int, int, int], notes: Notes) -> Image.Image:
    """Return the frame that an opened picture is at: 8-bit sRGB, upright, on a background where it is transparent."""
    space, scaled = stated_space(image, content), to_8_bits(image)
    shown, fault, is_converted = space.to_srgb(scaled)
    if fault is not None:
        notes.remarks.append(f"taken as sRGB, for {fault}")
    turned = upright(shown, image)
    done = {
        "turned upright by its EXIF": turned is not shown,
        "converted to sRGB from its colour space": is_converted,
        "scaled to 8 bits from more": scaled is not image,
        "laid on the background, for it is transparent": turned.mode != "RGB",
    }
    notes.conversions.extend(what for what, is_done in done.items() if is_done)
    if turned.mode == "RGB":
        return turned
    if is_transparent(turned):
        notes.remarks.append(TRANSPARENT)
    return on_background(turned, background)


def is_transparent(image: Image.Image) -> bool:
    """Check whether more of a picture than a margin is rather transparent than not; it has alpha as last channel."""
    levels = image.histogram()[-256:]
    return sum(levels[:128]) > _MARGIN * sum(levels)


def on_background(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Lay a picture with alpha on a background."""
    shown = Image.new("RGB", image.size)
    for top, bottom in _bands(*image.size):
        band = image.crop((0, top, image.width, bottom))
        ground = Image.new("RGBA", band.size, (*background, 255))
        shown.paste(Image.alpha_composite(ground, band).convert("RGB"), (0, top))
    return shown


def _bands(width: int, height: int) -> Iterator[tuple[int, int]]:
    """Yield first and last rows of bands, in which what is done pixel by pixel takes little memory."""
    rows = max(1, _BAND // width)
    for top in range(0, height, rows):
        yield top, min(top + rows, height)


def _has_more_frames(image: Image.Image) -> bool:
    # MPO is a JPEG with previews of itself, as cameras write it
    try:
        return image.format != "MPO" and bool(getattr(image, "is_animated", False))
    except Exception:  # a later frame may be broken, which is no fault of the first
        return False


def upright(shown: Image.Image, image: Image.Image) -> Image.Image:
    """Return a picture turned as the EXIF of the opened one asks for; as it is where that is broken."""
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:  # Pillow raises whatever it stumbles on
        return shown
    turn = UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return shown if turn is None else shown.transpose(turn)


def to_8_bits(image: Image.Image) -> Image.Image:
    """Scale gray of more than 8 bits to 8; Pillow's own conversion would clip it to white."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    gray_HW = np.asarray(image)
    if image.mode == "F" or gray_HW.min() < 0 or gray_HW.max() > 0xFFFF:
        raise Unreadable("pixels of 32 bits, whose range nobody knows: save it with 8 or 16 bits a channel")
    tags = getattr(image, "tag_v2", {})
    white = 0xFFF if tags.get(_BITS_PER_SAMPLE) == (12,) else 0xFFFF
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        gray_HW = white - gray_HW
    scaled_HW = np.empty(gray_HW.shape, np.uint8)
    for top, bottom in _bands(*image.size):
        # rounded to the nearest, as x / white * 255 is
        scaled_HW[top:bottom] = (gray_HW[top:bottom].astype(np.uint32) * 255 + white // 2) // white
    return Image.fromarray(scaled_HW)
