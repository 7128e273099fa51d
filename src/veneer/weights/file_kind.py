"""Kinds of files that lie under a safetensors file's name, told by their first bytes."""

from __future__ import annotations

from dataclasses import dataclass

from veneer.weights.header import shown

__all__ = ["FileKind", "kind_of"]


@dataclass(frozen=True)
class FileKind:
    """A kind of file.

    Attributes:
        name: with its article: ``a zip archive``.
        remedy: what to do about it.
        is_pickle: whether opening it can run code.
    """

    name: str
    remedy: str
    is_pickle: bool = False


_UNPACK = "unpack it, and name the .safetensors file in it"
_FETCH = "a download page was saved in its place; fetch the file itself, logged in where that is asked for"
_OTHER = "name the .safetensors file"
_PICKLE = FileKind("a pickle", "", is_pickle=True)
_STARTS: tuple[tuple[bytes, FileKind], ...] = (
    *((bytes((0x80, protocol)), _PICKLE) for protocol in range(1, 6)),
    (b"version https://git-lfs", FileKind("a git-lfs pointer, and the file itself was not fetched", "git lfs pull")),
    (b"\x1f\x8b", FileKind("a gzip archive", _UNPACK)),
    (b"7z\xbc\xaf\x27\x1c", FileKind("a 7z archive", _UNPACK)),
    (b"Rar!", FileKind("a rar archive", _UNPACK)),
    (b"\xfd7zXZ", FileKind("an xz archive", _UNPACK)),
    (b"GGUF", FileKind("a GGUF file", "ask its maker for a .safetensors file")),
    (b"\x89HDF", FileKind("an HDF5 file", "ask its maker for a .safetensors file")),
    (b"\x93NUMPY", FileKind("a NumPy file", "ask its maker for a .safetensors file")),
    (b"\x89PNG", FileKind("a PNG picture", _OTHER)),
    (b"\xff\xd8\xff", FileKind("a JPEG picture", _OTHER)),
    (b"RIFF", FileKind("a WebP picture or another RIFF file", _OTHER)),
    (b"GIF8", FileKind("a GIF picture", _OTHER)),
    (b"%PDF", FileKind("a PDF", _OTHER)),
)
_MARKUP = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<svg", b"<error", b"<!--")
_ZIP, _TORCH_MEMBER = b"PK\x03\x04", b".pkl"
_TEXT_SHOWN = 60


def kind_of(start: bytes) -> FileKind | None:
    """Return the kind of file that begins with these bytes; None where they tell none."""
    if start.startswith(_ZIP):  # torch.save writes a zip, with a pickle first
        return _PICKLE if _TORCH_MEMBER in start else FileKind("a zip archive", _UNPACK)
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text[:20].lower().startswith(_MARKUP):
        return FileKind("a web page (HTML) or XML", _FETCH)
    known = next((kind for begin, kind in _STARTS if start.startswith(begin)), None)
    return known or _text(start)


def _text(start: bytes) -> FileKind | None:
    """Return the kind of a file that is text, which quotes it: servers' refusals are saved as files."""
    if len(start) < 2 or any(byte < 9 or 13 < byte < 32 or byte == 127 for byte in start):
        return None
    words = " ".join(start[:200].decode("utf-8", "replace").split())
    return FileKind(f"a text that begins {shown(words[:_TEXT_SHOWN])}", "fetch the file itself")
