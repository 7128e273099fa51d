from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from veneer.config.data_config import DataConfig
from veneer.config.source_config import SourceConfig
from veneer.data.decode import decode
from veneer.data.preflight import survey
from veneer.data.unreadable import Unreadable

WHITE = (255, 255, 255)
Pixels = np.ndarray[Any, Any]
# from linear values of the space to linear sRGB, as published with each space (both have sRGB's white)
ADOBE = np.array([[1.39836, -0.39836, 0.0], [0.0, 1.0, 0.0], [0.0, -0.04293, 1.04293]])
DISPLAY_P3 = np.array([[1.22494, -0.22494, 0.0], [-0.04206, 1.04206, 0.0], [-0.01964, -0.07864, 1.09828]])


def colours(mode: str = "RGB") -> Image.Image:
    """Colours from all over the cube, of which those in sRGB's gamut are compared."""
    levels = np.linspace(0, 255, 8).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(16, 32, 3)
    return Image.fromarray(cube).convert(mode)


def srgb_decoded(values: Pixels) -> Pixels:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def srgb_encoded(linear: Pixels) -> Pixels:
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * np.maximum(linear, 0) ** (1 / 2.4) - 0.055)


def check_shown(content: bytes, linear: Pixels, matrix: Pixels, tolerance: float = 2) -> None:
    """Compare what is decoded with a conversion in float64, of colours that sRGB has."""
    wanted = linear @ matrix.T
    inside = ((wanted >= 0) & (wanted <= 1)).all(axis=-1)
    assert inside.sum() > 100
    shown = np.asarray(decode(content, WHITE)).astype(float)
    assert np.abs(shown - srgb_encoded(wanted) * 255)[inside].max() <= tolerance


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def s15(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def profile(space: bytes, tags: dict[bytes, bytes], pcs: bytes = b"XYZ ", kind: bytes = b"mntr") -> bytes:
    """An ICC profile of version 2."""
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78),
        b"wtpt": xyz(0.9642, 1, 0.8249),
        **tags,
    }
    table, body, start = b"", b"", 132 + 12 * len(tags)
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += struct.pack(">4sII", name, start + len(body), len(data))
        body += data
    head = struct.pack(
        ">I4xI4s4s4s12x4s28x12s48x", start + len(body), 0x02100000, kind, space, pcs, b"acsp", s15(0.9642, 1, 0.8249)
    )
    return head + struct.pack(">I", len(tags)) + table + body


def xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + s15(*values)


def gamma(value: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(value * 256)) + b"\0\0"


ADOBE_RGB = profile(
    b"RGB ",
    {
        **{b"rXYZ": xyz(0.60974, 0.31111, 0.01947), b"gXYZ": xyz(0.20528, 0.62567, 0.06087)},
        **{b"bXYZ": xyz(0.14919, 0.06322, 0.74457)},
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), gamma(563 / 256)),
    },
)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def grey_profile(value: float) -> bytes:
    return profile(b"GRAY", {b"kTRC": gamma(value)})


def ink_profile() -> bytes:
    """Cyan ink makes Lab (50, -40, -40) on white paper; the other inks do nothing."""
    ramp = bytes(range(256))
    paper, cyan = bytes([255, 128, 128]), bytes([128, 88, 88])
    grid = paper * 8 + cyan * 8  # cyan varies slowest
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + s15(1, 0, 0, 0, 1, 0, 0, 0, 1) + ramp * 4 + grid + ramp * 3
    return profile(b"CMYK", {b"A2B0": lut, b"A2B1": lut}, b"Lab ", b"prtr")


def with_chunks(content: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG with more chunks behind its header."""
    made = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return content[:33] + b"".join(made) + content[33:]


def gama(value: float) -> tuple[bytes, bytes]:
    return b"gAMA", struct.pack(">I", round(value * 100_000))


def chrm(*values: float) -> tuple[bytes, bytes]:
    return b"cHRM", struct.pack(">8I", *(round(value * 100_000) for value in values))


SRGB_PRIMARIES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
ADOBE_PRIMARIES = (0.3127, 0.329, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)


def remarks(content: bytes) -> list[str]:
    found: list[str] = []
    decode(content, WHITE, found)
    return found


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG", "AVIF"])
def test_a_colour_profile_is_followed_in_every_format(kind: str) -> None:
    options: dict[str, Any] = {
        "WEBP": {"lossless": True},
        "JPEG": {"quality": 100, "subsampling": 0},
        "AVIF": {"quality": 100},
    }
    # flat tiles, so that what a lossy format loses is small
    image = colours().resize((256, 128), Image.Resampling.NEAREST)
    content = encode(image, kind, icc_profile=ADOBE_RGB, **options.get(kind, {}))
    with Image.open(io.BytesIO(content)) as stored:
        linear = (np.asarray(stored.convert("RGB")) / 255) ** (563 / 256)
    check_shown(content, linear, ADOBE)
    assert remarks(content) == []


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "LA"])
@pytest.mark.parametrize("stated", ["nothing", "sRGB profile", "sRGB chunk", "gAMA", "cICP", "EXIF"])
def test_what_is_srgb_already_keeps_its_bits(mode: str, stated: str) -> None:
    image = colours(mode)
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA001] = 1
    options: dict[str, Any] = {"sRGB profile": {"icc_profile": SRGB}, "EXIF": {"exif": exif}}
    chunks = {
        "sRGB chunk": [(b"sRGB", b"\0"), gama(1.0)],
        "gAMA": [gama(0.45455), chrm(*SRGB_PRIMARIES)],
        "cICP": [(b"cICP", bytes([1, 13, 0, 1])), gama(1.0)],
    }
    content = with_chunks(encode(image, **options.get(stated, {})), *chunks.get(stated, []))
    assert (np.asarray(decode(content, WHITE)) == np.asarray(image.convert("RGB"))).all()
    assert remarks(content) == []


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_transparent_pixels_lie_on_the_background_as_it_is(mode: str) -> None:
    """The background is given in sRGB, so only the picture is converted."""
    image = Image.new("RGBA", (16, 16), (90, 200, 90, 255))
    clear = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    clear.paste(image.crop((0, 0, 8, 16)), (0, 0))
    stored = image.convert("RGB") if mode == "RGB" else clear if mode == "RGBA" else clear.quantize(4)
    shown = np.asarray(decode(encode(stored, icc_profile=ADOBE_RGB), (1, 2, 3))).astype(int)
    wanted = np.asarray(decode(encode(image.convert("RGB"), icc_profile=ADOBE_RGB), WHITE))[0, 0].astype(int)
    assert np.abs(shown[3, 3] - wanted).max() <= 1 and wanted[0] == 0
    assert mode == "RGB" or tuple(shown[3, 12]) == (1, 2, 3)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "I;16"])
def test_a_profile_of_grey(mode: str) -> None:
    """Also where a format stores grey as three equal channels, or in 16 bits."""
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(values)
    image = Image.fromarray(values.astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    shown = np.asarray(decode(encode(image, icc_profile=grey_profile(1.0)), WHITE)).astype(float)
    assert np.abs(shown - (srgb_encoded(values / 255) * 255)[..., None]).max() <= 2


def test_a_profile_of_rgb_on_a_grey_picture() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    shown = np.asarray(decode(encode(Image.fromarray(values), icc_profile=ADOBE_RGB), WHITE)).astype(float)
    assert np.abs(shown - (srgb_encoded((values / 255) ** (563 / 256)) * 255)[..., None]).max() <= 2


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_a_profile_of_inks(kind: str) -> None:
    image = Image.new("CMYK", (32, 32), (0, 0, 0, 0))
    image.paste((255, 0, 0, 0), (0, 0, 16, 32))
    shown = np.asarray(decode(encode(image, kind, icc_profile=ink_profile()), WHITE)).astype(int)
    assert np.abs(shown[16, 24] - 255).max() <= 2
    # Lab (50.2, -40, -40) under D50 is out of sRGB's gamut in red alone
    assert shown[16, 6, 0] <= 2 and abs(shown[16, 6, 1] - 136) <= 8 and abs(shown[16, 6, 2] - 187) <= 8


def test_lab() -> None:
    image = Image.merge("LAB", [Image.new("L", (16, 16), value) for value in (138, 209, 198)])
    shown = np.asarray(decode(encode(image, "TIFF"), WHITE)).astype(int)
    assert np.abs(shown[0, 0] - (255, 0, 0)).max() <= 8


@pytest.mark.parametrize(
    ("chunks", "power", "matrix"),
    [
        ([gama(1.0)], 1.0, np.eye(3)),
        ([gama(1 / 1.8)], 1.8, np.eye(3)),
        ([gama(0.45455), chrm(*ADOBE_PRIMARIES)], 2.2, ADOBE),
        ([(b"cICP", bytes([12, 4, 0, 1]))], 2.2, DISPLAY_P3),
        ([chrm(*ADOBE_PRIMARIES)], None, ADOBE),
        ([(b"cICP", bytes([12, 13, 0, 1])), (b"sRGB", b"\0")], None, DISPLAY_P3),
    ],
)
def test_the_chunks_of_a_png(chunks: list[tuple[bytes, bytes]], power: float | None, matrix: Pixels) -> None:
    image = colours()
    values = np.asarray(image) / 255
    linear = srgb_decoded(values) if power is None else values**power
    check_shown(with_chunks(encode(image), *chunks), linear, matrix, tolerance=3)


@pytest.mark.parametrize(("primaries", "transfer", "matrix"), [(12, 13, DISPLAY_P3), (1, 13, None), (2, 2, None)])
def test_an_avif_states_its_space_in_a_box(primaries: int, transfer: int, matrix: Pixels | None) -> None:
    image = colours().resize((256, 128), Image.Resampling.NEAREST)
    content = encode(image, "AVIF", quality=100, subsampling="4:4:4")
    place = content.index(b"colrnclx") + 8
    content = content[:place] + struct.pack(">HH", primaries, transfer) + content[place + 4 :]
    with Image.open(io.BytesIO(content)) as stored:
        values = np.asarray(stored.convert("RGB"))
    if matrix is None:
        assert (np.asarray(decode(content, WHITE)) == values).all()
    else:
        check_shown(content, srgb_decoded(values / 255), matrix)


def test_an_avif_of_high_dynamic_range_is_said_to_be_taken_as_srgb() -> None:
    content = encode(colours(), "AVIF")
    place = content.index(b"colrnclx") + 8
    content = content[:place] + struct.pack(">HH", 9, 16) + content[place + 4 :]
    assert remarks(content) == [
        "taken as sRGB, for it states a colour space that is not read (primaries 9, transfer 16)"
    ]


def exif_of(space: int | None, interop: str | None) -> Image.Exif:
    exif = Image.Exif()
    if space is not None:
        exif.get_ifd(0x8769)[0xA001] = space
    if interop is not None:
        exif.get_ifd(0x8769)[0xA005] = {1: interop}
    return exif


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    ("space", "interop", "adobe"),
    [
        (0xFFFF, "R03", True),
        (None, "R03", True),
        (2, None, True),
        (1, "R03", False),
        (0xFFFF, "R98", False),
        (0xFFFF, None, False),
    ],
)
def test_cameras_state_adobe_rgb_by_exif(kind: str, space: int | None, interop: str | None, adobe: bool) -> None:
    image = Image.new("RGB", (64, 64), (90, 200, 90))
    content = encode(
        image, kind, exif=exif_of(space, interop).tobytes(), **({"lossless": True} if kind == "WEBP" else {})
    )
    red = decode(content, WHITE).getpixel((9, 9))[0]  # type: ignore[index]
    assert red <= 3 if adobe else abs(red - 90) <= 3


def test_a_profile_counts_more_than_exif_does() -> None:
    content = encode(Image.new("RGB", (64, 64), (90, 200, 90)), exif=exif_of(0xFFFF, "R03").tobytes(), icc_profile=SRGB)
    assert decode(content, WHITE).getpixel((9, 9)) == (90, 200, 90)


@pytest.mark.parametrize(
    ("options", "chunks", "words"),
    [
        ({"icc_profile": b"no profile"}, [], "its colour profile is broken"),
        ({"icc_profile": ADOBE_RGB[:200]}, [], "its colour profile is broken"),
        ({"icc_profile": ink_profile()}, [], "its colour profile is for CMYK, but the picture is not"),
        ({"icc_profile": grey_profile(1.0)}, [], "its colour profile is for GRAY, but the picture is not"),
        ({}, [(b"cICP", bytes([9, 16, 0, 1]))], "it states a colour space that is not read (primaries 9, transfer 16)"),
        ({}, [(b"cICP", b"\1")], "its cICP chunk is broken"),
        ({}, [gama(0.0)], "its gAMA chunk is zero"),
        ({}, [chrm(*[0.0] * 8)], "its chromaticities make no sense"),
        ({}, [chrm(*[0.3] * 8)], "its chromaticities make no sense"),
    ],
)
def test_a_statement_that_cannot_be_followed_is_said(
    options: dict[str, Any], chunks: list[tuple[bytes, bytes]], words: str
) -> None:
    image = colours()
    content = with_chunks(encode(image, **options), *chunks)
    assert remarks(content) == [f"taken as sRGB, for {words}"]
    assert (np.asarray(decode(content, WHITE)) == np.asarray(image)).all()


def test_it_is_among_the_notes(tmp_path: Path) -> None:
    shades = Image.linear_gradient("L").resize((16, 16)).convert("RGB")
    for number in range(2):
        shades.rotate(90 * number).save(tmp_path / f"{number}.png", icc_profile=b"broken")
    frames = [shades.rotate(angle) for angle in (180, 270)]
    frames[0].save(tmp_path / "2.gif", save_all=True, append_images=frames[1:])
    config = DataConfig(sources=(SourceConfig(path=tmp_path),), held_out=0.0, trigger="tok")
    assert survey(config).notes == (
        f"taken as sRGB, for its colour profile is broken: {tmp_path / '0.png'}, {tmp_path / '1.png'}",
        f"more than one frame or page, of which the first is taken: {tmp_path / '2.gif'}",
    )


def damaged(content: bytes, place: int, byte: int, cut: int) -> bytes:
    changed = bytearray(content)
    changed[place % len(content)] = byte
    return bytes(changed[: len(content) - cut])


@given(
    st.sampled_from([ADOBE_RGB, SRGB, grey_profile(2.0)]), st.integers(0, 5000), st.integers(0, 255), st.integers(0, 40)
)
def test_no_damaged_profile_makes_a_picture_unreadable(whole: bytes, place: int, byte: int, cut: int) -> None:
    for mode in ("RGB", "L"):
        content = encode(Image.new(mode, (9, 9), 77), icc_profile=damaged(whole, place, byte, cut))
        assert decode(content, WHITE).size == (9, 9)


@given(st.binary(max_size=60))
def test_no_exif_makes_a_picture_unreadable(exif: bytes) -> None:
    for kind in ("JPEG", "PNG", "WEBP"):
        try:
            content = encode(Image.new("RGB", (9, 9), "red"), kind, exif=b"Exif\0\0II*\0\x08\0\0\0" + exif)
        except Exception:  # what Pillow does not write, it need not read
            return
        try:
            assert decode(content, WHITE).size == (9, 9)
        except Unreadable as error:
            raise AssertionError(f"{kind}: {error}") from error
