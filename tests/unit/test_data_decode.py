from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from tests.zoo import png_16
from veneer.config.data_config import DataConfig
from veneer.config.source_config import SourceConfig
from veneer.data.decode import MAX_PIXELS, _Budget, decode, decoded
from veneer.data.preflight import survey
from veneer.data.unreadable import Unreadable

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


def tiff_16(values: np.ndarray[Any, Any], order: str) -> bytes:
    """Return a TIFF of RGB (H, W, 3) of 16 bits, with the bytes of each number in some order."""
    height, width = values.shape[:2]
    data = values.astype(f"{order}u2").tobytes()
    behind = 8 + 2 + 12 * 9 + 4  # where the bits of each channel stand
    shorts = {256: width, 257: height, 259: 1, 262: 2, 277: 3, 278: height}
    fields = {tag: struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0) for tag, value in shorts.items()}
    fields[258] = struct.pack(f"{order}HHII", 258, 3, 3, behind)
    fields[273] = struct.pack(f"{order}HHII", 273, 4, 1, behind + 6)
    fields[279] = struct.pack(f"{order}HHII", 279, 4, 1, len(data))
    table = struct.pack(f"{order}H", 9) + b"".join(fields[tag] for tag in sorted(fields)) + bytes(4)
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    return start + table + struct.pack(f"{order}HHH", 16, 16, 16) + data


EVERY_VALUE = np.arange(65536).reshape(256, 256)
COLOURS_16 = np.stack([EVERY_VALUE, EVERY_VALUE[::-1], EVERY_VALUE.T], axis=-1)


@pytest.mark.parametrize(
    "content",
    [
        png_16(COLOURS_16),
        png_16(np.concatenate([COLOURS_16, np.full((256, 256, 1), 65535)], axis=-1), 6),
        tiff_16(COLOURS_16, "<"),
        tiff_16(COLOURS_16, ">"),
    ],
    ids=["PNG", "PNG with alpha", "TIFF", "TIFF of the other order"],
)
def test_16_bits_of_colour_are_scaled_to_within_one_level_and_no_darker(content: bytes) -> None:
    """Against x / 65535 x 255 rounded, of every value there is: Pillow takes the high byte."""
    apart = pixels(content).astype(int) - np.round(COLOURS_16 / 65535 * 255).astype(int)
    assert abs(apart).max() == 1 and apart.sum() == 0 and (apart != 0).mean() < 0.25


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


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
def test_pictures_stand_upright_in_every_format(kind: str) -> None:
    image = Image.new("RGB", (48, 32), "white")
    image.paste((255, 0, 0), (0, 0, 16, 32))
    exif = Image.Exif()
    exif[0x0112] = 6
    shown = pixels(encode(image, kind, exif=exif)).astype(int)
    assert shown.shape == (48, 32, 3)
    assert np.abs(shown[4, 16] - RED).max() < 20 and np.abs(shown[40, 16] - WHITE).max() < 20


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_turns_nothing(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = noise("RGB")
    assert (pixels(encode(image, exif=exif)) == np.asarray(image)).all()


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"\0"])
def test_a_picture_with_broken_exif_is_a_picture(exif: bytes) -> None:
    image = noise("RGB", (32, 24))
    assert pixels(encode(image, "JPEG", exif=exif, quality=90)).shape == (24, 32, 3)
    assert (pixels(encode(image, exif=exif)) == np.asarray(image)).all()


def tiff(values: np.ndarray[Any, Any], bits: int, photometric: int) -> bytes:
    """A TIFF of grey, rows of an even number of values."""
    height, width = values.shape
    if bits == 12:
        first, second = values[:, 0::2].astype(int), values[:, 1::2].astype(int)
        data = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], -1).astype(np.uint8).tobytes()
    else:
        data = values.astype("<u2").tobytes()
    short = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (277, 1), (278, height)]
    long = [(273, 8 + 2 + 12 * 9 + 4), (279, len(data))]
    entries = [*((tag, 3, value) for tag, value in short), *((tag, 4, value) for tag, value in long)]
    packed = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in sorted(entries))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", 9) + packed + bytes(4) + data


def test_12_bits_are_scaled() -> None:
    values = np.linspace(0, 4095, 256).round().astype(np.uint16).reshape(16, 16)
    assert (pixels(tiff(values, 12, 1))[..., 0].ravel() == np.rint(values.ravel() / 4095 * 255)).all()


def test_a_tiff_may_say_that_zero_is_white() -> None:
    values = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    assert (pixels(tiff(values, 16, 0))[..., 0].ravel() == np.arange(255, -1, -1)).all()
    assert (pixels(tiff(values, 16, 1))[..., 0].ravel() == np.arange(256)).all()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"just words", "not a picture of a known format, but a text file"),
        (b"\n<!DOCTYPE html><title>403</title>", "but a web page"),
        (b"<?xml version='1.0'?><svg xmlns='x'/>", "but an SVG drawing: save it as PNG or JPEG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "but a HEIC picture: save it as PNG or JPEG"),
        (b"\xff\x0a\xfa\x0f", "but a JPEG XL picture: save it as PNG or JPEG"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0", "but a video"),
        (b"PK\x03\x04 and so on", "but a zip archive"),
        (b"%PDF-1.7", "but a PDF document"),
        (b'{"error": "rate limit"}', "but a JSON file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "was not fetched: fetch it: git lfs pull"),
        (b"\0\0\0\x18ftypavif\0\0\0\0", "broken: begins as an AVIF picture, and cannot be read as one"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n", "but a text file"),
    ],
)
def test_what_has_the_name_of_a_picture_is_said_to_be_what_it_is(content: bytes, words: str) -> None:
    with pytest.raises(Unreadable) as caught:
        decode(content, WHITE)
    assert words in str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP"])
def test_a_picture_whose_ending_lies_is_read_by_its_content(kind: str, tmp_path: Path) -> None:
    image = noise("RGB")
    (tmp_path / "a.jpg").write_bytes(encode(image, kind, **({"lossless": True} if kind == "WEBP" else {})))
    config = DataConfig(sources=(SourceConfig(path=tmp_path),), trigger="tok", resolution=16)
    (sample,) = survey(config).train.samples
    assert (sample.width, sample.height) == image.size


@pytest.mark.parametrize(
    ("kind", "said"), [("GIF", True), ("WEBP", True), ("PNG", True), ("TIFF", True), ("MPO", False)]
)
def test_frames_that_are_not_taken_are_said(kind: str, said: bool) -> None:
    """MPO is what cameras call a JPEG with a preview of itself."""
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    remarks: list[str] = []
    decode(encode(frames[0], kind, save_all=True, append_images=frames[1:]), WHITE, remarks)
    assert remarks == (["more than one frame or page, of which the first is taken"] if said else [])
    remarks.clear()
    decode(encode(frames[0]), WHITE, remarks)
    assert remarks == []


def test_no_picture_is_handed_to_another_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow has Ghostscript run PostScript, which is a program, whatever the file's name."""
    monkeypatch.setattr("subprocess.check_call", lambda *words, **options: pytest.fail(f"runs {words}"))
    monkeypatch.setattr("PIL.EpsImagePlugin.has_ghostscript", lambda: True)
    drawing = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(Unreadable, match="not a picture of a known format"):
        decode(drawing, WHITE)


def test_threads_hold_no_more_pixels_than_one_picture_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("veneer.data.decode._PIXELS", _Budget(24 * 16))
    content, begun = encode(noise("RGB")), threading.Event()

    def look() -> None:
        with decoded(content, WHITE):
            begun.set()

    other = threading.Thread(target=look)
    with decoded(content, WHITE):
        other.start()
        assert not begun.wait(0.2)
    other.join(10)
    assert begun.is_set()
