"""Decode a picture's bytes to upright 8-bit sRGB, whatever they were: the one way that pictures come in.

No setting of Pillow's is changed: what is too large is refused here, by a limit of our own.
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

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
    "decode",
    "opened",
    "to_8_bits",
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
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # TIFF


_REMEDIES = {"other picture": "save it as PNG or JPEG", "pointer": "fetch it: git lfs pull"}
"""What to do with a file of each category that has the name of a picture, where the category tells it."""


def decode(content: bytes, background: tuple[int, int, int], remarks: list[str] | None = None) -> Image.Image:
    """Decode a picture to sRGB: upright by its EXIF, first frame, on a background where it is transparent.

    Args:
        content: the file's bytes.
        background: red, green and blue, 0 to 255.
        remarks: gets what a user may want to know of how the picture is decoded, each in some words.

    Raises:
        Unreadable: the picture is broken, of no known format, too small or too large.
    """
    with opened(content) as image:
        return _decoded(image, content, background, [] if remarks is None else remarks)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Ignore warnings: in the main thread only, for their filters are the process's and have no place for two."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def opened(content: bytes) -> Iterator[Image.Image]:
    """Open a picture by its content, its first frame loaded; what goes wrong with it in the block is its fault.

    Raises:
        Unreadable: the picture is broken, of no known format, too small or too large.
    """
    _refuse_others(content)
    # Pillow's warnings are about files that decode, or of its own limit, in place of which ours is checked below
    with _without_warnings():
        try:
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                _check_size(*image.size)
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


def _decoded(image: Image.Image, content: bytes, background: tuple[int, int, int], remarks: list[str]) -> Image.Image:
    if _has_more_frames(image):
        remarks.append("more than one frame or page, of which the first is taken")
    space = stated_space(image, content)
    shown, fault = space.to_srgb(to_8_bits(image))
    if fault is not None:
        remarks.append(f"taken as sRGB, for {fault}")
    shown = upright(shown, image)
    if shown.mode == "RGB":
        return shown
    levels = shown.getchannel("A").histogram()
    if sum(levels[:128]) > _MARGIN * sum(levels):
        remarks.append(TRANSPARENT)
    return _on_background(shown, background)


def _on_background(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    ground = Image.new("RGBA", image.size, (*background, 255))
    return Image.alpha_composite(ground, image).convert("RGB")


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
    # rounded to the nearest, as x / white * 255 is
    return Image.fromarray(((gray_HW.astype(np.uint32) * 255 + white // 2) // white).astype(np.uint8))
