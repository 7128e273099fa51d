"""Tell what a file is by its first bytes, whatever it is called: the one place that knows.

What to do about a file of a wrong kind depends on what was wanted, so each room has its own remedies.
"""

from __future__ import annotations

import io
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from veneer.files import open_regular

__all__ = [
    "EMPTY",
    "GGUF",
    "HDF5",
    "HEAD",
    "JSON",
    "MOST_HEADER_BYTES",
    "NUMPY",
    "SAFETENSORS",
    "TEXT",
    "ZIP",
    "Category",
    "FileKind",
    "is_torn_zip",
    "kind_despite_ending",
    "kind_in",
    "kind_of",
    "kind_of_file",
    "zip_directory_size",
]

Category = Literal[
    "archive",
    "audio",
    "data",
    "document",
    "empty",
    "markup",
    "other picture",
    "picture",
    "pickle",
    "pointer",
    "text",
    "video",
    "weights",
]
"""``other picture``: one that no decoder here reads; ``markup``: a page, or what a server answers with in XML;
``pointer``: what stands in place of a file that was not fetched; ``data``: tables, databases, arrays."""

MOST_HEADER_BYTES = 100_000_000
"""Bytes that a safetensors file's header may have, by the format."""
HEAD = 4096
"""Bytes that are looked at."""
_TAIL = 2**16 + 22  # bytes in which a zip's last record lies, with the comment behind it
_MOST_DIRECTORY = 2**20  # bytes of a zip's directory that are looked at: some ten thousand names


@dataclass(frozen=True)
class FileKind:
    """What a file is.

    Attributes:
        name: in words that may follow "is", with an article.
        category: of kinds with which one does the same.
    """

    name: str
    category: Category


EMPTY = FileKind("empty", "empty")
TEXT = FileKind("a text file", "text")
JSON = FileKind("a JSON file", "text")
SAFETENSORS = FileKind("a safetensors file", "weights")
GGUF = FileKind("a GGUF file", "weights")
HDF5 = FileKind("an HDF5 file", "data")
NUMPY = FileKind("a NumPy file", "data")
_PICKLE = FileKind("a pickle", "pickle")
ZIP = FileKind("a zip archive", "archive")
_OFFICE = FileKind("an Office document", "document")
_VIDEO = FileKind("a video", "video")
_AUDIO = FileKind("a sound recording", "audio")
_RAW = FileKind("a raw photo", "other picture")
_ISO_BRANDS = (
    (rb"avi[fs]", FileKind("an AVIF picture", "picture")),
    (rb"hei[cxms]|hev[cx]|mif1|msf1", FileKind("a HEIC picture", "other picture")),
    (rb"crx ", _RAW),
    (rb"M4[AB] ", _AUDIO),
    (rb"....", _VIDEO),
)
_MAGIC = (
    (rb"\x89PNG\r\n\x1a\n", FileKind("a PNG picture", "picture")),
    (rb"\xff\xd8\xff", FileKind("a JPEG picture", "picture")),
    (rb"GIF8[79]a", FileKind("a GIF picture", "picture")),
    (rb"RIFF....WEBP", FileKind("a WebP picture", "picture")),
    (rb"BM....\0\0\0\0", FileKind("a BMP picture", "picture")),
    (rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  ", FileKind("a JPEG 2000 picture", "picture")),
    (rb"P[1-6]\s+(#[^\n]*\n\s*)*\d+\s+\d+\s", FileKind("a PPM picture", "picture")),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", FileKind("a JPEG XL picture", "other picture")),
    (rb"8BPS", FileKind("a Photoshop file", "other picture")),
    (rb"gimp xcf ", FileKind("a GIMP file", "other picture")),
    (rb"\x76\x2f\x31\x01", FileKind("an OpenEXR picture", "other picture")),
    (rb"II\*\0|MM\0\*", FileKind("a TIFF picture or raw photo", "picture")),
    (rb"FUJIFILMCCD-RAW|IIU\0|IIR[OS]", _RAW),
    *((rb"....ftyp" + brand, kind) for brand, kind in _ISO_BRANDS),
    (rb"RIFF....AVI |\x1a\x45\xdf\xa3|\0\0\x01\xba|FLV\x01|\x30\x26\xb2\x75", _VIDEO),
    (rb"RIFF....WAVE|ID3[\x02-\x04]|\xff[\xf2\xf3\xfb]|fLaC|OggS", _AUDIO),
    (rb"\x80[\x02-\x05]", _PICKLE),
    (rb"7z\xbc\xaf\x27\x1c", FileKind("a 7z archive", "archive")),
    (rb"Rar!\x1a\x07", FileKind("a rar archive", "archive")),
    (rb"\x1f\x8b", FileKind("a gzip archive", "archive")),
    (rb"BZh[1-9]", FileKind("a bzip2 archive", "archive")),
    (rb"\xfd7zXZ\0", FileKind("an xz archive", "archive")),
    (rb"\x28\xb5\x2f\xfd", FileKind("a zstd archive", "archive")),
    (rb".{257}ustar", FileKind("a tar archive", "archive")),
    (rb"GGUF", GGUF),
    (rb"\x89HDF\r\n", HDF5),
    (rb"\x93NUMPY", NUMPY),
    (rb"PAR1", FileKind("a parquet table", "data")),
    (rb"ARROW1", FileKind("an Arrow table", "data")),
    (rb"SQLite format 3", FileKind("an SQLite database", "data")),
    (rb"\0\x05\x16\x07", FileKind("what macOS keeps beside a file (AppleDouble)", "data")),
    (rb"%PDF", FileKind("a PDF document", "document")),
    (rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", _OFFICE),
    (
        rb"version https://(git-lfs|hawser)\.github\.com/",
        FileKind("a git-lfs pointer to a file that was not fetched", "pointer"),
    ),
    (rb"(\xef\xbb\xbf)?\s*([\[{]\s*[\"\[{\d\]}])", JSON),
    (rb"\xff\xfe|\xfe\xff", TEXT),
)
_BEFORE_ELEMENTS = re.compile(rb"\xef\xbb\xbf|\s+|<\?xml.*?\?>|<!--.*?-->", re.DOTALL)
_ELEMENTS = (
    (rb"(?i)<(!doctype\s+html|html|head|body)\b", FileKind("a web page", "markup")),
    (rb"(?i)<(!doctype\s+svg|svg)\b", FileKind("an SVG drawing", "other picture")),
)
_XML = FileKind("an XML file", "markup")
"""Of servers that declare nothing the errors alone, for a caption may begin with a word in angle brackets."""
_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
_TORCH_MEMBER = re.compile(rb"([^/]+/)?data\.pkl")
_MEMBERS = (
    # torch.save writes data.pkl first, TorchScript behind its numbers
    (_TORCH_MEMBER, _PICKLE),
    (re.compile(rb".*\.npy"), NUMPY),
    (re.compile(rb"\[Content_Types\]\.xml|mimetype"), _OFFICE),
)
"""What a zip is by the name of its first member."""


def kind_of(head: bytes) -> FileKind | None:
    """Return what begins with these bytes; None if it is nothing that is known.

    A zip is told by its first member alone; :func:`kind_in` looks at the others as well.
    """
    if not head:
        return EMPTY
    if _is_safetensors(head):
        return SAFETENSORS
    if head.startswith(_ZIP_MAGIC):
        return _kind_of_zip(head)
    for pattern, kind in _MAGIC:
        if re.match(pattern, head, re.DOTALL):
            return kind
    return _markup(head) or (TEXT if _is_text(head) else None)


def kind_in(file: BinaryIO) -> FileKind | None:
    """Return what an open file is, which is read from its beginning and, for a zip, at its end."""
    file.seek(0)
    kind = kind_of(file.read(HEAD))
    return _PICKLE if kind is ZIP and any(map(_TORCH_MEMBER.fullmatch, _names_in_zip(file))) else kind


def kind_of_file(path: Path) -> FileKind | None:
    """Return what a file is; None if that is not known, it is no regular file, or it may not be read."""
    try:
        with open_regular(path) as file:
            return kind_in(file)
    except OSError:
        return None


def kind_despite_ending(pickle: Path) -> FileKind | None:
    """Return what a file is whose ending is a pickle's and whose content is not; None if it may be a pickle.

    The first pickles were text, and a zip without its end may have been one of PyTorch's.
    """
    kind = kind_of_file(pickle)
    if kind is None or kind.category in ("empty", "pickle", "text"):
        return None
    return None if kind is ZIP and is_torn_zip(pickle) else kind


def is_torn_zip(path: Path) -> bool:
    """Check whether a file begins as a zip and lacks its end, which is where a zip's directory lies.

    Raises:
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        return file.read(4) in _ZIP_MAGIC and not zipfile.is_zipfile(file)


def _is_safetensors(head: bytes) -> bool:
    """Check whether a length that the format allows comes first, and then JSON, which may begin with blanks."""
    return int.from_bytes(head[:8], "little") <= MOST_HEADER_BYTES and head[8:].lstrip(b" \t\r\n")[:1] == b"{"


def _markup(head: bytes) -> FileKind | None:
    """Return the kind of a document of elements by its first one or its declaration."""
    place = 0
    while before := _BEFORE_ELEMENTS.match(head, place):  # one by one: a pattern of them all could take forever
        place = before.end()
    element = next((kind for pattern, kind in _ELEMENTS if re.match(pattern, head[place:])), None)
    declared = re.match(rb"(?i)(\xef\xbb\xbf)?\s*<(\?xml|error\b|!--)", head)
    return element or (_XML if declared else None)


def _kind_of_zip(head: bytes) -> FileKind:
    name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    return next((kind for pattern, kind in _MEMBERS if pattern.fullmatch(name)), ZIP)


def _names_in_zip(file: BinaryIO) -> list[bytes]:
    """Return the names in a zip's directory, of a long one the first.

    Python's zipfile reads all of it, which may be as large as the file, into many times the memory.
    """
    start, size = _directory_span(file)
    file.seek(start)
    directory = file.read(min(size, _MOST_DIRECTORY))
    names: list[bytes] = []
    place = 0
    while directory[place : place + 4] == b"PK\x01\x02":
        name, extra, comment = (int.from_bytes(directory[place + at : place + at + 2], "little") for at in (28, 30, 32))
        names.append(directory[place + 46 : place + 46 + name])
        place += 46 + name + extra + comment
    return names


def zip_directory_size(file: BinaryIO) -> int:
    """Return the bytes that a zip's directory is said to have; 0 if the file is cut short or no zip."""
    return _directory_span(file)[1]


def _directory_span(file: BinaryIO) -> tuple[int, int]:
    """Return where a zip's directory begins and its size; no bytes if the file is cut short.

    It lies right before the record that has its size: 12 bytes into the last one, or 40 bytes into that of a large
    file, which lies 76 bytes before the last.
    """
    size = file.seek(0, io.SEEK_END)
    start = max(0, size - _TAIL - 76)
    file.seek(start)
    tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0:
        return 0, 0
    length = int.from_bytes(tail[end + 12 : end + 16], "little")
    if end >= 76 and tail[end - 76 : end - 72] == b"PK\x06\x06":
        end -= 76
        length = int.from_bytes(tail[end + 40 : end + 48], "little")
    return max(0, start + end - length), length


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        # the cut may go through a character
        if error.start < len(head) - 3:
            return False
        text = head[: error.start].decode("utf-8")
    return bool(text.strip()) and not re.search(r"[\0-\x08\x0e-\x1a\x1c-\x1f]", text)
