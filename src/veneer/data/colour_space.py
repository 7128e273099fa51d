"""Convert pictures to sRGB from the colour space that their files state.

A file states it by an ICC profile; a PNG also by its chunks cICP, sRGB, gAMA and cHRM (PNG, third edition, section
12.1: in this order, ICC after cICP), an AVIF by a box like cICP, a photo also by EXIF (DCF 2.0: Adobe RGB is "R03"). A
picture that states nothing, or sRGB, is taken as it is, to the bit.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

__all__ = ["ColourSpace", "Converted", "stated_space"]

_SAME = 2
"""Levels of 255 by which a profile's colours may differ from sRGB's to count as the same: profiles of sRGB do by one,
for their curves are tables."""
_INTENT, _FLAGS = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
"""As image editors have it by default; perceptual tables would change the colours of sRGB itself."""

Convert: TypeAlias = Callable[[Image.Image], Image.Image]
Curve: TypeAlias = tuple[float, ...]
"""Parameters of an ICC parametric curve: of type 0 (g), or of type 3 (g a b c d)."""
Primaries: TypeAlias = tuple[float, ...]
"""Chromaticities x, y of white, red, green, blue."""

_D65 = (0.3127, 0.3290)
_SRGB: Primaries = (*_D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
_ADOBE_RGB: Primaries = (*_D65, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
_CICP_PRIMARIES: dict[int, Primaries] = {
    1: _SRGB,
    2: _SRGB,  # unspecified
    9: (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),  # BT.2020
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),  # DCI-P3
    12: (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),  # Display P3
}
_SRGB_CURVE: Curve = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
_CICP_CURVES: dict[int, Curve] = {
    **dict.fromkeys((1, 6, 14, 15), _SRGB_CURVE),  # BT.709's is a camera's; what it recorded is shown as sRGB is
    2: _SRGB_CURVE,  # unspecified
    4: (2.2,),
    5: (2.8,),
    8: (1.0,),
    13: _SRGB_CURVE,
}
"""Transfer characteristics of ITU-T H.273 that are for pictures of ordinary range; PQ (16) and HLG (18) are not."""
_NCLX = re.compile(rb"colrnclx(.{4})", re.DOTALL)
_HEAD = 2**16  # bytes of an AVIF file in which its boxes are looked for
_GREY_MODES = frozenset({"1", "L", "LA", "La"})
_MODE_OF_SPACE = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}
_EXIF_IFD, _INTEROP_IFD, _COLOUR_SPACE, _INTEROP_INDEX = 0x8769, 0xA005, 0xA001, 1


class _Unusable(Exception):
    """A statement that cannot be followed; the message says why."""


class Converted(NamedTuple):
    """A picture in sRGB.

    Attributes:
        image: of mode RGB, or RGBA if it is transparent.
        fault: why it is taken as sRGB although its file states another colour space; None: it is not.
        is_converted: whether its colours were another space's.
    """

    image: Image.Image
    fault: str | None = None
    is_converted: bool = False


@dataclass(frozen=True)
class ColourSpace:
    """The colour space that a file states.

    Attributes:
        profile: an ICC profile of it; None: sRGB.
        fault: why the statement cannot be followed, so that the picture is taken as sRGB.
    """

    profile: bytes | None = None
    fault: str | None = None

    def to_srgb(self, image: Image.Image) -> Converted:
        """Convert a picture of 8 bits a channel to sRGB."""
        try:
            mode, convert = self._conversion(image)
            fault = self.fault
        except _Unusable as error:
            convert, fault = None, str(error)
        if convert is None:
            return Converted(_as_mode(image, "RGBA" if image.has_transparency_data else "RGB"), fault)
        alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
        converted = convert(image if image.mode == mode else image.convert("RGB").convert(mode))
        if alpha is not None:
            converted.putalpha(alpha)
        return Converted(converted, fault, is_converted=True)

    def _conversion(self, image: Image.Image) -> tuple[str, Convert | None]:
        """Return the mode to convert from, and the conversion; None if the colours are sRGB's as they are."""
        if self.profile is not None:
            return _conversion(self.profile, _picture_space(image))
        if image.mode == "LAB":
            lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
            return "LAB", _by_transform(lab, "LAB")
        return "RGB", None


def _as_mode(image: Image.Image, mode: str) -> Image.Image:
    """Return a picture in a mode; the picture itself where it is, for large ones have no room twice."""
    return image if image.mode == mode and "transparency" not in image.info else image.convert(mode)


def stated_space(image: Image.Image, content: bytes) -> ColourSpace:
    """Return the colour space that a file states.

    Args:
        image: the picture, opened.
        content: the file's bytes.
    """
    try:
        return ColourSpace(_stated_profile(image, content))
    except _Unusable as error:
        return ColourSpace(fault=str(error))


def _stated_profile(image: Image.Image, content: bytes) -> bytes | None:
    cicp = _png_chunk(content, b"cICP") if image.format == "PNG" else None
    if cicp is not None:
        if len(cicp) != 4 or cicp[2] != 0 or cicp[3] != 1:
            raise _Unusable("its cICP chunk is broken")
        return _from_cicp(cicp[0], cicp[1])
    profile = image.info.get("icc_profile")
    if profile:
        return bytes(profile)
    box = _NCLX.search(content[:_HEAD]) if image.format == "AVIF" else None
    if box is not None:
        return _from_cicp(*struct.unpack(">HH", box[1]))
    if image.format == "PNG" and not image.info.keys().isdisjoint(("srgb", "gamma", "chromaticity")):
        return _from_png(image)
    return _from_exif(image)


def _from_cicp(primaries: int, transfer: int) -> bytes | None:
    """Return a profile of the space that code points of ITU-T H.273 stand for; None: sRGB, or unspecified."""
    chromaticities, curve = _CICP_PRIMARIES.get(primaries), _CICP_CURVES.get(transfer)
    if chromaticities is None or curve is None:
        raise _Unusable(f"it states a colour space that is not read (primaries {primaries}, transfer {transfer})")
    return None if (chromaticities, curve) == (_SRGB, _SRGB_CURVE) else _matrix_profile(chromaticities, curve)


def _from_png(image: Image.Image) -> bytes | None:
    if "srgb" in image.info:
        return None
    primaries = image.info.get("chromaticity", _SRGB)
    gamma = image.info.get("gamma")
    has_srgb_primaries = np.abs(np.subtract(primaries, _SRGB)).max() < 0.01
    if gamma is None:
        return None if has_srgb_primaries else _matrix_profile(primaries, _SRGB_CURVE)
    if gamma <= 0:
        raise _Unusable("its gAMA chunk is zero")
    # 1/2.2 is how this chunk states sRGB (PNG, third edition, section 11.3.2.3); a twentieth is libpng's tolerance
    if has_srgb_primaries and abs(gamma * 2.2 - 1) < 0.05:
        return None
    return _matrix_profile(primaries, (1 / gamma,))


def _from_exif(image: Image.Image) -> bytes | None:
    try:
        exif = image.getexif()
        space = exif.get_ifd(_EXIF_IFD).get(_COLOUR_SPACE)
        interop = exif.get_ifd(_INTEROP_IFD).get(_INTEROP_INDEX)
    except Exception:  # Pillow raises whatever it stumbles on; broken EXIF states nothing
        return None
    is_adobe = space == 2 or (space != 1 and str(interop).startswith("R03"))
    return _matrix_profile(_ADOBE_RGB, (563 / 256,)) if is_adobe else None


def _png_chunk(content: bytes, name: bytes) -> bytes | None:
    """Return the data of the first chunk of a name before the pixels; Pillow passes over those it does not know."""
    place = 8
    while place + 12 <= len(content):
        length, found = struct.unpack_from(">I4s", content, place)
        if found == name:
            return content[place + 8 : place + 8 + length]
        if found in (b"IDAT", b"IEND"):
            return None
        place += length + 12
    return None


def _picture_space(image: Image.Image) -> str:
    """Return the mode in which a picture's colours are: L, RGB, CMYK or LAB."""
    if image.mode in _GREY_MODES:
        return "L"
    if image.mode in ("CMYK", "LAB"):
        return image.mode
    # some formats store grey as three equal channels, and keep its profile
    red, green, blue = (image.convert("RGB").getchannel(name) for name in "RGB")
    return "L" if red.tobytes() == green.tobytes() == blue.tobytes() else "RGB"


@lru_cache(maxsize=32)
def _conversion(profile: bytes, picture: str) -> tuple[str, Convert | None]:
    """Return the mode that a profile is for, and the conversion from it to sRGB; None if it is sRGB's already.

    Args:
        profile: ICC.
        picture: the mode in which the picture's colours are.
    """
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        raise _Unusable("its colour profile is broken") from error
    mode = _MODE_OF_SPACE.get(space)
    if mode is None or (mode != picture and (mode, picture) != ("RGB", "L")):
        raise _Unusable(f"its colour profile is for {space}, but the picture is not")
    convert = _by_table(source) if mode == "L" else _by_transform(source, mode)
    return mode, None if mode in ("L", "RGB") and _is_srgb(convert, mode) else convert


def _by_transform(source: ImageCms.ImageCmsProfile, mode: str, flags: ImageCms.Flags = _FLAGS) -> Convert:
    try:
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB", _INTENT, flags)
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        raise _Unusable("its colour profile is broken") from error

    def convert(image: Image.Image) -> Image.Image:
        converted = ImageCms.applyTransform(image, transform)
        assert converted is not None, "it returns a picture unless it works in place"
        return converted

    return convert


def _by_table(source: ImageCms.ImageCmsProfile) -> Convert:
    """Return a conversion of grey by a table of its 256 levels: lcms's own has few, and is off by ten in the darks."""
    exactly = _by_transform(source, "L", _FLAGS | ImageCms.Flags.NOOPTIMIZE)
    table = np.asarray(exactly(_probe("L"))).reshape(256, 3)
    return lambda image: Image.fromarray(table[np.asarray(image)])


def _is_srgb(convert: Convert, mode: str) -> bool:
    probe = _probe(mode)
    apart = np.asarray(convert(probe), np.int16) - np.asarray(probe.convert("RGB"), np.int16)
    return bool(np.abs(apart).max() <= _SAME)


def _probe(mode: str) -> Image.Image:
    """Return all greys, or colours from a lattice of 9 x 9 x 9."""
    if mode == "L":
        return Image.frombytes("L", (256, 1), bytes(range(256)))
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    lattice = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(27, 27, 3)
    return Image.fromarray(lattice)


def _matrix_profile(primaries: Primaries, curve: Curve) -> bytes:
    """Return an ICC profile of version 4 for an RGB space, its colours adapted to D50 by Bradford's matrix."""
    colorants = _colorants(primaries)
    kind = {1: 0, 5: 3}[len(curve)]
    tone = b"para\0\0\0\0" + struct.pack(">HH", kind, 0) + _fixed(curve)
    text = "built from what a picture states".encode("utf-16-be")
    words = b"mluc\0\0\0\0" + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(text), 28) + text
    tags = {b"desc": words, b"cprt": words, b"wtpt": _xyz(_D50)}
    for name, column in zip(b"rgb", colorants.T, strict=True):
        tags[bytes([name]) + b"XYZ"] = _xyz(column)
        tags[bytes([name]) + b"TRC"] = tone
    return _icc_file(tags)


_D50 = (0.9642, 1.0, 0.8249)
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def _colorants(primaries: Primaries) -> NDArray[np.float64]:
    """Return the matrix (3, 3) from linear RGB to XYZ under D50."""
    points = np.array(primaries, np.float64).reshape(4, 2)
    if (points[:, 1] <= 0).any():
        raise _Unusable("its chromaticities make no sense")
    x, y = points.T
    white, *columns = np.stack([x / y, np.ones(4), (1 - x - y) / y], axis=1)
    matrix = np.stack(columns, axis=1)
    try:
        matrix = matrix * np.linalg.solve(matrix, white)
        cones = (_BRADFORD @ np.array(_D50)) / (_BRADFORD @ white)
        adapted: NDArray[np.float64] = np.linalg.inv(_BRADFORD) @ np.diag(cones) @ _BRADFORD @ matrix
    except np.linalg.LinAlgError:
        adapted = np.full((3, 3), np.nan)
    if not (np.abs(adapted) < 4).all():
        raise _Unusable("its chromaticities make no sense")
    return adapted


def _fixed(values: Sequence[float] | NDArray[np.float64]) -> bytes:
    """Return numbers as ICC writes them: signed, 16 bits before the point and 16 behind it."""
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def _xyz(values: Sequence[float] | NDArray[np.float64]) -> bytes:
    return b"XYZ \0\0\0\0" + _fixed(values)


def _icc_file(tags: dict[bytes, bytes]) -> bytes:
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, data in tags.items():
        table += struct.pack(">4sII", name, start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    fields = (start + len(body), 0x04200000, b"mntr", b"RGB ", b"XYZ ", b"acsp", _fixed(_D50))
    header = struct.pack(">I4xI4s4s4s12x4s28x12s48x", *fields)
    return header + table + body
