"""A folder of hostile and odd files, as users have them, with what is to be said of each."""

from __future__ import annotations

import io
import os
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["OUTSIDE", "Zoo", "encoded", "png_16", "write_zoo"]

OUTSIDE = "outside"
"""Name of a folder beside the zoo with pictures and captions that nothing may read."""


@dataclass(frozen=True)
class Zoo:
    """What was written.

    Attributes:
        folder: with all of it.
        outside: beside it; some links lead there.
        good: names of the pictures that are trained on.
        bad: names of what is put aside, each with a pattern of the reason.
        noted: names that a note mentions.
        files: how many there are.
    """

    folder: Path
    outside: Path
    good: frozenset[str]
    bad: dict[str, str]
    noted: frozenset[str]
    files: int


def encoded(
    seed: int, kind: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (40, 32), **options: object
) -> bytes:
    """Return a picture of noise on a ground of its own, which is like no other's."""
    values = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    image = Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)
    content = io.BytesIO()
    image.convert(mode).save(content, kind, **options)  # type: ignore[arg-type]
    return content.getvalue()


def png_16(pixels_HWC: np.ndarray, colour_type: int = 2) -> bytes:
    """Return a PNG of 16 bits a channel, which Pillow cannot write: of RGB, or of RGBA (6)."""
    height, width = pixels_HWC.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels_HWC)
    head = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(_chunk, *zip(*chunks, strict=True)))


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _frames(kind: str) -> bytes:
    content = io.BytesIO()
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("#804020", "#208040")]
    frames[0].save(content, kind, save_all=True, append_images=frames[1:])
    return content.getvalue()


def _gray_16(kind: str) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.linspace(0, 65535, 32 * 40).reshape(32, 40).astype(np.uint16)).save(content, kind)
    return content.getvalue()


def _float_tiff() -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.linspace(0, 1, 32 * 40, dtype=np.float32).reshape(32, 40)).save(content, "TIFF")
    return content.getvalue()


def _palette() -> bytes:
    image = Image.new("P", (32, 32))
    image.putpalette([0, 0, 0, 200, 40, 90])
    image.paste(1, (8, 8, 24, 24))
    content = io.BytesIO()
    image.save(content, "PNG", transparency=0)
    return content.getvalue()


def _bomb() -> bytes:
    """Return a PNG that says to have 900 million pixels."""
    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", head)
        + _chunk(b"IDAT", zlib.compress(bytes(2**20)))
        + _chunk(b"IEND", b"")
    )


def _zip(members: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, inner in members.items():
            archive.writestr(name, inner)
    return content.getvalue()


def _rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(60, "JPEG", exif=exif)


def _good() -> Iterator[tuple[str, bytes]]:
    """Yield pictures that are trained on."""
    yield "plain.png", encoded(1)
    yield "photo.jpg", encoded(2, "JPEG")
    yield "UPPER.PNG", encoded(3)
    yield "Mixed.JpEg", encoded(4, "JPEG")
    yield "really a png.jpg", encoded(5)
    yield "really a webp.png", encoded(6, "WEBP")
    yield "new\nline.png", encoded(7)
    yield "emoji 😀👩‍👩‍👧.png", encoded(8)
    yield "n" * 251 + ".png", encoded(9)
    yield "é" * 125 + ".png", encoded(10)  # 254 bytes in UTF-8
    yield "quote\"'`$(rm).png", encoded(11)
    yield " blank.png", encoded(12)
    yield "animated.webp", _frames("WEBP")
    yield "animated.gif", _frames("GIF")
    yield "one bit.png", encoded(13, mode="1")
    yield "palette with transparency.png", _palette()
    yield "gray and alpha.png", encoded(14, mode="LA")
    yield "cmyk with a broken profile.jpg", encoded(15, "JPEG", "CMYK", icc_profile=b"no profile" * 20)
    yield "rgb with a broken profile.png", encoded(16, icc_profile=b"\0" * 200)
    yield "16 bit grey.png", _gray_16("PNG")
    yield "16 bit grey.tiff", _gray_16("TIFF")
    yield "16 bit colour.png", png_16(np.random.default_rng(0).integers(0, 65536, (16, 16, 3)))
    yield "two pictures.jpg", encoded(17, "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    yield "lab.tif", encoded(18, "TIFF", "LAB")
    yield "rotated.jpg", _rotated()
    yield "bitmap.bmp", encoded(19, "BMP")
    yield "targa.tga", encoded(20, "TGA")
    yield "text.ppm", b"P3\n8 8\n255\n" + b"12 200 90 " * 64
    yield "wavelets.jp2", encoded(21, "JPEG2000")
    yield "new.avif", encoded(22, "AVIF")
    yield "bytes behind its end.png", encoded(23) + b"\0" * 999
    yield "folder.png/inside.png", encoded(24)
    yield "bom.png", encoded(25)
    yield "crlf.png", encoded(26)
    yield "utf16.png", encoded(27)
    yield "json.png", encoded(28)


def _bad() -> Iterator[tuple[str, bytes, str]]:
    """Yield files that are put aside, each with a pattern of the reason."""
    for kind, ending in (("PNG", "png"), ("JPEG", "jpg")):
        content = encoded(30, kind)
        for tenth in range(1, 10):
            yield f"truncated {tenth}.{ending}", content[: len(content) * tenth // 10], "broken|not a picture"
    yield "empty.png", b"", "empty file"
    yield "text.png", b"this is no picture", "a text file"
    yield "page.jpg", b"<!DOCTYPE html><title>403</title>", "a web page"
    yield "pointer.png", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"
    yield "pickle.png", b"\x80\x04}\x94.", "a pickle"
    yield "archive.png", _zip({"a.png": encoded(31)}), "a zip archive"
    yield "weights.png", b"\x08\0\0\0\0\0\0\0{}      ", "a safetensors file"
    yield "video.png", b"\0\0\0\x18ftypmp42" + bytes(99), "a video"
    yield "document.jpg", b"%PDF-1.7\n", "a PDF document"
    yield "zeros.png", bytes(4096), "not a picture"
    yield "pixel bomb.png", _bomb(), "too large"
    yield "tiny.png", encoded(32, size=(4, 4)), "too small"
    yield "float.tif", _float_tiff(), "32 bits"
    yield "phone.heic", b"\0\0\0\x18ftypheic" + bytes(99), "not read: save it as"
    yield "heic with a png's name.png", b"\0\0\0\x18ftypheic" + bytes(99), "a HEIC picture"
    yield "camera.cr2", b"II*\0" + bytes(99), "not read: save it as"
    yield "drawing.svg", b"<svg/>", "not read: save it as"
    yield "no ending", encoded(33), "rename it"
    yield "latin.png", encoded(34), "latin.txt: not UTF-8 at byte 3"
    yield "binary.png", encoded(35), "binary.caption: not UTF-8"
    yield "half json.png", encoded(36), "half json.json: not JSON"
    yield "long caption.png", encoded(37), "too large"
    yield "piped caption.png", encoded(38), "a named pipe"
    yield "caption elsewhere.png", encoded(39), "out of the folder"


_CAPTIONS = {
    "bom.txt": "\ufeffa red bird".encode(),
    "crlf.txt": b"a red bird\r\na blue bird\r\n",
    "utf16.txt": "a red bird, \u732b".encode("utf-16"),
    "json.json": b'{"caption": "a red bird", "tags": ["red", "bird"], "rating": 5}',
    "latin.txt": b"caf\xe9",
    "binary.caption": bytes(range(256)),
    "half json.json": b'{"caption": "a re',
    "long caption.txt": b"word " * 2**18,
    "plain.txt": b"",
}
_HIDDEN = {
    "._plain.png": b"\0\5\x16\7" + bytes(99),
    ".DS_Store": b"\0\0\0\1Bud1",
    "@eaDir/plain.png": b"-",
    "Thumbs.db": b"\xd0\xcf",
}


def write_zoo(folder: Path) -> Zoo:
    """Write the folder, and one beside it that links lead to."""
    outside = folder.parent / OUTSIDE
    _write(outside / "secret.png", encoded(99))
    _write(outside / "secret.txt", b"a secret")
    good, bad = dict(_good()), {name: (content, reason) for name, content, reason in _bad()}
    for name, content in {**good, **{name: pair[0] for name, pair in bad.items()}, **_CAPTIONS, **_HIDDEN}.items():
        _write(folder / name, content)
    reasons = {name: reason for name, (_, reason) in bad.items()} | _write_special(folder, outside)
    noted = _write_archives(folder)
    files = sum(len(names) for _, _, names in os.walk(folder))
    return Zoo(folder, outside, frozenset(good), reasons, noted, files)


def _write_special(folder: Path, outside: Path) -> dict[str, str]:
    """Write what is no regular file; returns the names that are put aside, with patterns of the reasons."""
    os.mkfifo(folder / "pipe.png")
    os.mkfifo(folder / "piped caption.txt")
    with (folder / "sparse.png").open("wb") as file:
        file.truncate(2**31)
    links: dict[str, tuple[str | Path, str]] = {
        "link out.png": (outside / "secret.png", "out of the folder"),
        "relative link out.png": (f"../{OUTSIDE}/secret.png", "out of the folder"),
        "caption elsewhere.txt": (outside / "secret.txt", "out of the folder"),
        "folder out": (outside, "out of the folder"),
        "device.png": ("/dev/zero", "out of the folder"),
        "gone.png": ("no such picture.png", "cannot be read"),
        "itself.png": ("itself.png", "cannot be read"),
    }
    for name, (target, _) in links.items():
        (folder / name).symlink_to(target)
    (folder / "circle").symlink_to(folder, target_is_directory=True)
    (folder / "folder.png" / "up").symlink_to("..", target_is_directory=True)
    reasons = {"pipe.png": "a named pipe", "sparse.png": "too large: 2,147,483,648 bytes"}
    reasons |= {name: reason for name, (_, reason) in links.items()}
    if sys.platform != "win32" and os.geteuid() != 0:  # root may read all
        _write(folder / "forbidden.png", encoded(40))
        (folder / "forbidden.png").chmod(0)
        _write(folder / "forbidden" / "a.png", encoded(41))
        (folder / "forbidden").chmod(0)
        reasons |= {"forbidden.png": "Permission denied", "forbidden": "Permission denied"}
    return reasons


def _write_archives(folder: Path) -> frozenset[str]:
    """Write archives among the pictures, which are not looked into; returns their names."""
    zeros = _zip({"zeros.png": bytes(2**26)})
    made: dict[str, Callable[[], bytes]] = {
        "bomb.zip": lambda: zeros,
        "nested.zip": lambda: _zip({"bomb.zip": zeros, "a.zip": _zip({"a.png": encoded(42)})}),
        "slip.zip": lambda: _zip({"../evil.png": encoded(43), "/evil.png": encoded(44)}),
    }
    for name, make in made.items():
        _write(folder / name, make())
    return frozenset(made)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
