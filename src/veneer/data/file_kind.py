"""Tell what a file is by its first bytes, whatever it is called."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from veneer.files import open_regular

__all__ = ["FileKind", "kind_of", "kind_of_file"]

_HEAD = 4096  # bytes that are looked at
_MAX_HEADER = 2**28  # bytes of a safetensors header, generously


@dataclass(frozen=True)
class FileKind:
    """What a file is.

    Attributes:
        name: in words, with an article.
        category: ``archive``, ``picture``, ``other picture`` (which no decoder here reads), ``video``, ``weights``,
            ``pickle``, ``data`` or ``text``.
        remedy: what to do where a picture was expected; None: nothing that follows from the kind.
    """

    name: str
    category: str
    remedy: str | None = None

    @property
    def is_json(self) -> bool:
        """Whether it is JSON, which YAML's readers take as well."""
        return self is _JSON

    @property
    def is_markup(self) -> bool:
        """Whether it is a page or another document of elements in angle brackets."""
        return self in (_HTML, _XML)


_SAVE_AS = "save it as PNG or JPEG"
_PICKLE = FileKind("a pickle, which could run code when opened", "pickle")
_TEXT = FileKind("a text file", "text")
_HTML = FileKind("an HTML page", "text")
_XML = FileKind("an XML file", "text")
_JSON = FileKind("a JSON file", "text")
_SAFETENSORS = FileKind("a safetensors file", "weights")
_ISO_BRANDS = (
    (rb"avi[fs]", FileKind("an AVIF picture", "picture")),
    (rb"hei[cxms]|hev[cx]|mif1|msf1", FileKind("a HEIC picture", "other picture", _SAVE_AS)),
    (rb"crx ", FileKind("a raw photo (CR3)", "other picture", _SAVE_AS)),
    (rb"....", FileKind("a video", "video")),
)
_MAGIC = (
    (rb"\x89PNG\r\n\x1a\n", FileKind("a PNG picture", "picture")),
    (rb"\xff\xd8\xff", FileKind("a JPEG picture", "picture")),
    (rb"GIF8[79]a", FileKind("a GIF picture", "picture")),
    (rb"RIFF....WEBP", FileKind("a WebP picture", "picture")),
    (rb"BM....\0\0\0\0", FileKind("a BMP picture", "picture")),
    (rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  ", FileKind("a JPEG 2000 picture", "picture")),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", FileKind("a JPEG XL picture", "other picture", _SAVE_AS)),
    (rb"8BPS", FileKind("a Photoshop file", "other picture", _SAVE_AS)),
    (rb"II\*\0|MM\0\*", FileKind("a TIFF picture or raw photo", "picture")),
    *((rb"....ftyp" + brand, kind) for brand, kind in _ISO_BRANDS),
    (rb"RIFF....AVI |\x1a\x45\xdf\xa3|\0\0\x01\xba", FileKind("a video", "video")),
    (rb"PK\x03\x04.{26}[^/\0]{1,99}/(data\.pkl|byteorder|version)", _PICKLE),
    (rb"\x80[\x02-\x05]", _PICKLE),
    (rb"PK(\x03\x04|\x05\x06)", FileKind("a zip archive", "archive")),
    (rb"7z\xbc\xaf\x27\x1c", FileKind("a 7z archive", "archive")),
    (rb"Rar!\x1a\x07", FileKind("a rar archive", "archive")),
    (rb"\x1f\x8b|BZh|\xfd7zXZ\0|\x28\xb5\x2f\xfd|.{257}ustar", FileKind("a compressed file or tar archive", "archive")),
    (rb"GGUF", FileKind("a GGUF file of weights", "weights")),
    (rb"PAR1", FileKind("a parquet table", "data")),
    (rb"ARROW1", FileKind("an Arrow table", "data")),
    (rb"\x89HDF\r\n", FileKind("an HDF5 file", "data")),
    (rb"SQLite format 3", FileKind("an SQLite database", "data")),
    (rb"%PDF", FileKind("a PDF document", "data")),
    (
        rb"version https://git-lfs",
        FileKind("a pointer of Git LFS to a file that was not fetched", "data", "fetch it: git lfs pull"),
    ),
    (rb"(?i)(\xef\xbb\xbf)?\s*(<!--.*?-->\s*)?<(!doctype html|html|head|body)\b", _HTML),
    (
        rb"(?i)(\xef\xbb\xbf)?\s*(<\?xml.*?\?>\s*)?(<!.*?>\s*)*<svg\b",
        FileKind("an SVG drawing", "other picture", _SAVE_AS),
    ),
    (rb"(\xef\xbb\xbf)?\s*<\?xml", _XML),
    (rb"(\xef\xbb\xbf)?\s*([\[{]\s*[\"\[{\d\]}])", _JSON),
    (rb"\xff\xfe|\xfe\xff", _TEXT),
)


def kind_of(head: bytes) -> FileKind | None:
    """Return what begins with these bytes; None if it is nothing that is known, or empty."""
    length = int.from_bytes(head[:8], "little")
    if 2 <= length <= _MAX_HEADER and head[8:9] == b"{":
        return _SAFETENSORS
    for pattern, kind in _MAGIC:
        if re.match(pattern, head, re.DOTALL):
            return kind
    return _TEXT if _is_text(head) else None


def kind_of_file(path: Path) -> FileKind | None:
    """Return what a file is; None if that is not known, it is no regular file, or it may not be read."""
    try:
        with open_regular(path) as file:
            return kind_of(file.read(_HEAD))
    except OSError:
        return None


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        # the cut may go through a character
        if error.start < len(head) - 3:
            return False
        text = head[: error.start].decode("utf-8")
    return bool(text.strip()) and not re.search(r"[\0-\x08\x0e-\x1a\x1c-\x1f]", text)
