from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from veneer.data.decode import MAX_PIXELS, Unreadable, decode

WHITE, RED = (255, 255, 255), (255, 0, 0)


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def pixels(content: bytes, background: tuple[int, int, int] = WHITE) -> np.ndarray[Any, Any]:
    image = decode(content, background)
    assert image.mode == "RGB"
    return np.asarray(image)


def noise(mode: str, size: tuple[int, int] = (24, 16)) -> Image.Image:
    depth = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], depth), dtype=np.uint8)
    return Image.frombytes(mode, size, values.tobytes())


def blank_png(width: int, height: int) -> bytes:
    """A whole and valid PNG of black, one bit a pixel, small however large it is."""
    rows = zlib.compressobj(1)
    row = bytes(1 + (width + 7) // 8)
    data = b"".join([*(rows.compress(row) for _ in range(height)), rows.flush()])

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file (0 bytes)"),
        (b"not a picture", "not a picture of a known format"),
        (encode(noise("RGB"))[:200], "broken: "),
        (encode(noise("RGB", (64, 64)), "JPEG")[:-400], "broken: "),
        (encode(noise("RGB", (64, 64)), "WEBP", lossless=True)[:-400], "broken: "),
        (encode(noise("RGB", (64, 64)), "GIF")[:-2000], "broken: "),
        (encode(noise("RGB", (64, 64)), "BMP")[:-400], "broken: "),
        (encode(noise("RGB", (1, 1))), "too small: 1 x 1 pixels, at least 8 each way"),
        (encode(noise("RGB", (7, 400))), "too small: 7 x 400 pixels"),
        (blank_png(12_000, 12_000), "too large: 12000 x 12000 pixels, at most 89,478,485 in all"),
        (blank_png(30_000, 30_000), "too large: more than 178,956,970 pixels"),
        (encode(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF"), "pixels of 32 bits"),
        (encode(Image.fromarray(np.full((9, 9), 1 << 20, np.int32)), "TIFF"), "pixels of 32 bits"),
    ],
)
def test_a_faulty_picture_is_refused_with_the_reason(content: bytes, reason: str) -> None:
    with pytest.raises(Unreadable) as caught:
        decode(content, WHITE)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("limit", [None, 100])
def test_the_limit_is_ours_and_nobody_elses(limit: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(Unreadable, match="too large"):
        decode(blank_png(30_000, 30_000), WHITE)
    if limit is None:
        with pytest.raises(Unreadable, match="too large: 12000 x 12000"):
            decode(blank_png(12_000, 12_000), WHITE)


def test_nothing_of_pillows_is_changed() -> None:
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))
    decode(encode(noise("RGB")), WHITE)
    with pytest.raises(Unreadable):
        decode(blank_png(12_000, 12_000), WHITE)
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)) == before
    assert MAX_PIXELS == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_plain_pictures_are_what_they_were(mode: str) -> None:
    image = noise(mode)
    assert (pixels(encode(image)) == np.asarray(image.convert("RGB"))).all()


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk(kind: str) -> None:
    shown = pixels(encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), kind))
    assert np.abs(shown.astype(int) - RED).max() <= 2


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_16_bits_are_scaled_and_not_clipped(kind: str, order: str) -> None:
    gray = np.linspace(0, 65535, 256).round().astype(order).reshape(16, 16)
    image = Image.fromarray(gray)
    shown = pixels(encode(image, kind))
    assert (shown == np.arange(256).reshape(16, 16, 1)).all()


def test_16_bits_are_rounded_to_the_nearest() -> None:
    gray = np.arange(0, 65536, 7, dtype=np.uint16)[:9216].reshape(96, 96)
    expected = np.rint(gray / 65535 * 255)
    assert (pixels(encode(Image.fromarray(gray)))[..., 0] == expected).all()


@pytest.mark.parametrize("background", [WHITE, RED])
def test_transparent_pictures_lie_on_the_background(background: tuple[int, int, int]) -> None:
    image = Image.new("RGBA", (16, 16), (0, 0, 200, 0))
    image.putpixel((3, 3), (0, 0, 200, 255))
    image.putpixel((4, 4), (0, 0, 200, 128))
    shown = pixels(encode(image), background)
    assert tuple(shown[0, 0]) == background
    assert tuple(shown[3, 3]) == (0, 0, 200)
    half = (np.array((0, 0, 200)) * 128 + np.array(background) * 127) / 255
    assert np.abs(shown[4, 4] - half).max() <= 1


@pytest.mark.parametrize("kind", ["palette", "gray", "gray and alpha", "rgb", "gif"])
def test_every_way_of_being_transparent(kind: str) -> None:
    gray = Image.new("L", (16, 16), 40)
    gray.paste(200, (0, 0, 8, 16))
    if kind == "palette":
        content = encode(gray.quantize(2), transparency=bytes([0, 0]))
    elif kind == "gif":
        content = encode(Image.new("P", (16, 16), 0), "GIF", transparency=0)
    elif kind == "gray":
        content = encode(Image.new("L", (16, 16), 40), transparency=40)
    elif kind == "gray and alpha":
        content = encode(Image.new("LA", (16, 16), (40, 0)))
    else:
        content = encode(Image.new("RGB", (16, 16), (1, 2, 3)), transparency=(1, 2, 3))
    assert (pixels(content, RED) == RED).all()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if kind == "WEBP" else {}
    shown = pixels(encode(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **options))
    assert (shown == RED).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(orientation: int) -> None:
    image = noise("RGB", (24, 16))
    undone = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = image if undone is None else image.transpose(undone)
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert (pixels(encode(stored, exif=exif)) == np.asarray(image)).all()
