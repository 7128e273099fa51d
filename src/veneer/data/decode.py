"""Decode a picture's bytes to upright 8-bit RGB, whatever they were: the one way that pictures come in.

No setting of Pillow's is changed: what is too large is refused here, by a limit of our own.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

__all__ = ["MAX_PIXELS", "MIN_SIDE", "Unreadable", "decode"]

MAX_PIXELS = 89_478_485
"""Pixels in a picture, at most: a quarter GiB of RGB, from where on Pillow warns of decompression bombs."""
MIN_SIDE = 8
"""Pixels on a picture's short side, at least: the smallest resolution a config may ask for."""


class Unreadable(Exception):
    """A picture that cannot be used; the message says why."""


def decode(content: bytes, background: tuple[int, int, int]) -> Image.Image:
    """Decode a picture to RGB: upright by its EXIF, first frame, on a background where it is transparent.

    Args:
        content: the file's bytes.
        background: red, green and blue, 0 to 255.

    Raises:
        Unreadable: the picture is broken, of no known format, too small or too large.
    """
    if not content:
        raise Unreadable("empty file (0 bytes)")
    with warnings.catch_warnings():
        # Pillow's other warnings are about files that decode; its limit may be any, so ours is checked below
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(content)) as image:
                _check_size(*image.size)
                image.load()
                return _to_rgb(ImageOps.exif_transpose(image), background)
        except Unreadable:
            raise
        except Image.DecompressionBombError:
            raise Unreadable(f"too large: more than {2 * MAX_PIXELS:,} pixels") from None
        except UnidentifiedImageError:
            raise Unreadable("not a picture of a known format") from None
        except Exception as error:  # decoders of broken files raise whatever they stumbled on
            raise Unreadable(f"broken: {' '.join(str(error).split()) or type(error).__name__}") from None


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise Unreadable(f"too large: {width} x {height} pixels, at most {MAX_PIXELS:,} in all")
    if min(width, height) < MIN_SIDE:
        raise Unreadable(f"too small: {width} x {height} pixels, at least {MIN_SIDE} each way")


def _to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_8_bits(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    ground = Image.new("RGBA", image.size, (*background, 255))
    return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit gray to 8 bits; Pillow's own conversion would clip it to white."""
    gray_HW = np.asarray(image)
    if image.mode == "F" or gray_HW.min() < 0 or gray_HW.max() > 0xFFFF:
        raise Unreadable("pixels of 32 bits, whose range nobody knows: save it with 8 or 16 bits a channel")
    # x / 65535 * 255 = x / 257, rounded
    return Image.fromarray(((gray_HW.astype(np.uint32) + 128) // 257).astype(np.uint8))
