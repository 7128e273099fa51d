from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import pickle
import struct
import tarfile
import time
import wave
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from veneer.cli.inputs import read_run_config
from veneer.data.decode import decode
from veneer.data.unreadable import Unreadable
from veneer.errors import UserError
from veneer.family.registry import detect_file
from veneer.file_kind import is_torn_zip, kind_despite_ending, kind_in, kind_of, kind_of_file
from veneer.weights.file import load


def picture(kind: str) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (16, 16)).save(content, kind)
    return content.getvalue()


def zipped(*names: str, content: bytes = b"x") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, content)
    return file.getvalue()


def tarred() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as file:
        file.addfile(tarfile.TarInfo("a.png"))
    return content.getvalue()


def checkpoint(**options: bool) -> bytes:
    content = io.BytesIO()
    torch.save({"a": torch.ones(2)}, content, **options)
    return content.getvalue()


def script() -> bytes:
    """A checkpoint whose first 4096 bytes are numbers: its pickle lies behind them."""
    content = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(64, 64)), content)
    return content.getvalue()


def arrays() -> bytes:
    content = io.BytesIO()
    np.savez(content, a=np.ones(3))
    return content.getvalue()


def sound() -> bytes:
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(100))
    return content.getvalue()


KINDS: list[tuple[bytes, str, str]] = [
    *((picture(kind), f"a {kind} picture", "picture") for kind in ("PNG", "JPEG", "GIF", "BMP", "PPM")),
    (picture("WEBP"), "a WebP picture", "picture"),
    (picture("TIFF"), "a TIFF picture or raw photo", "picture"),
    (picture("AVIF"), "an AVIF picture", "picture"),
    (picture("JPEG2000"), "a JPEG 2000 picture", "picture"),
    (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC picture", "other picture"),
    (b"\xff\x0a\xfa\x0f", "a JPEG XL picture", "other picture"),
    (b"8BPS\0\1" + bytes(40), "a Photoshop file", "other picture"),
    (b"<?xml version='1.0'?><svg xmlns='x'/>", "an SVG drawing", "other picture"),
    (b"\0\0\0\x18ftypmp42\0\0\0\0", "a video", "video"),
    (b"\x1a\x45\xdf\xa3" + bytes(40), "a video", "video"),
    (sound(), "a sound recording", "audio"),
    (b"ID3\4\0\0" + bytes(40), "a sound recording", "audio"),
    (zipped("a.png"), "a zip archive", "archive"),
    (zipped("lora.safetensors"), "a zip archive", "archive"),
    (zipped("model.pt", content=checkpoint()), "a zip archive", "archive"),
    (zipped(), "a zip archive", "archive"),
    (b"PK\x03\x04" + bytes(99), "a zip archive", "archive"),
    (tarred(), "a tar archive", "archive"),
    (gzip.compress(b"x", mtime=0), "a gzip archive", "archive"),
    (bz2.compress(b"x"), "a bzip2 archive", "archive"),
    (lzma.compress(b"x"), "an xz archive", "archive"),
    (b"7z\xbc\xaf\x27\x1c" + bytes(99), "a 7z archive", "archive"),
    (b"Rar!\x1a\x07\1\0" + bytes(99), "a rar archive", "archive"),
    (b"\x28\xb5\x2f\xfd" + bytes(99), "a zstd archive", "archive"),
    (checkpoint(), "a pickle", "pickle"),
    (checkpoint()[:300], "a pickle", "pickle"),
    (checkpoint(_use_new_zipfile_serialization=False), "a pickle", "pickle"),
    (script(), "a pickle", "pickle"),
    (zipped("x/version", *(f"x/data/{i}" for i in range(3000)), "x/data.pkl"), "a pickle", "pickle"),
    (zipped("readme.md", "data.pkl"), "a pickle", "pickle"),
    (pickle.dumps({"a": 1}, protocol=2), "a pickle", "pickle"),
    (pickle.dumps({"a": 1}, protocol=5), "a pickle", "pickle"),
    (save({"a": torch.ones(2)}), "a safetensors file", "weights"),
    (save({"a": torch.ones(2)}, {"note": "x" * 70_000}), "a safetensors file", "weights"),
    (b"\x80\x02" + bytes(6) + b"{" + b" " * 639, "a safetensors file", "weights"),
    (b"GGUF\3\0\0\0" + bytes(40), "a GGUF file", "weights"),
    (b"\x89HDF\r\n\x1a\n" + bytes(40), "an HDF5 file", "data"),
    (arrays(), "a NumPy file", "data"),
    (b"\x93NUMPY\1\0" + bytes(40), "a NumPy file", "data"),
    (b"PAR1\x15\x04", "a parquet table", "data"),
    (b"SQLite format 3\0" + bytes(40), "an SQLite database", "data"),
    (b"\0\x05\x16\x07\0\2\0\0Mac OS X" + bytes(40), "what macOS keeps beside a file (AppleDouble)", "data"),
    (b"%PDF-1.7\n", "a PDF document", "document"),
    (zipped("[Content_Types].xml", "word/document.xml"), "an Office document", "document"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "a git-lfs pointer", "pointer"),
    (b"<!DOCTYPE html><html><body>Sign in</body></html>", "a web page", "markup"),
    (b"\xef\xbb\xbf\n <html><body>Log in", "a web page", "markup"),
    (b"<?xml version='1.0'?><!DOCTYPE html><html>", "a web page", "markup"),
    (b"<?xml version='1.0'?>\n<!-- a --><!DOCTYPE svg PUBLIC 'x' 'y'>", "an SVG drawing", "other picture"),
    (b"<!-- saved -->\n<HTML>", "a web page", "markup"),
    (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "an XML file", "markup"),
    (b"<Error><Code>AccessDenied</Code></Error>", "an XML file", "markup"),
    (b'{"error": "Repository not found"}', "a JSON file", "text"),
    (b"[1, 2]", "a JSON file", "text"),
    (b"Entry not found", "a text file", "text"),
    (b"base: bundled\n", "a text file", "text"),
    ("\u00e9".encode() * 3000, "a text file", "text"),
    (b"x" + "\u00e9".encode() * 2048, "a text file", "text"),  # the cut goes through a character
    ("words".encode("utf-16"), "a text file", "text"),
    (b"", "empty", "empty"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "name", "category"), KINDS)
def test_a_file_is_what_its_bytes_say(content: bytes, name: str, category: str) -> None:
    kind = kind_in(io.BytesIO(content))
    assert kind is not None and (kind.name.partition(" to a file")[0], kind.category) == (name, category)


def said_of_a_picture(content: bytes, folder: Path) -> str:
    with pytest.raises(Unreadable) as caught:
        decode(content, (255, 255, 255))
    return str(caught.value)


def said_of_an_adapter(content: bytes, folder: Path) -> str:
    (folder / "x.safetensors").write_bytes(content)
    with pytest.raises(UserError) as caught:
        load(folder / "x.safetensors")
    return str(caught.value)


def said_of_a_base(content: bytes, folder: Path) -> str:
    (folder / "x.safetensors").write_bytes(content)
    with pytest.raises(UserError) as caught:
        detect_file(folder / "x.safetensors")
    return str(caught.value)


def said_of_a_base_without_ending(content: bytes, folder: Path) -> str:
    (folder / "x").write_bytes(content)
    with pytest.raises(UserError) as caught:
        detect_file(folder / "x")
    return str(caught.value)


def said_of_a_source(content: bytes, folder: Path) -> str:
    (folder / "x").write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_run_config(folder / "x", (), "tok", ())
    return str(caught.value)


ROOMS: dict[Callable[[bytes, Path], str], tuple[str, ...]] = {
    # what each is asked for, with the categories of what it takes
    said_of_a_picture: ("picture",),
    said_of_an_adapter: ("weights",),
    said_of_a_base: ("weights",),
    said_of_a_base_without_ending: (),
    said_of_a_source: ("text", "empty"),
}


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.__name__)
@pytest.mark.parametrize(("content", "name", "category"), KINDS)
def test_all_rooms_call_it_the_same(
    room: Callable[[bytes, Path], str], content: bytes, name: str, category: str, tmp_path: Path
) -> None:
    taken = category in ROOMS[room] or (room is said_of_a_source and name == "a zip archive")
    if not taken or name == "a GGUF file":
        said = room(content, tmp_path)
        assert name in said and "\n" not in said


PICKLES = [
    checkpoint(),
    pickle.dumps(1),
    b"(dp0\n.",
    b"",
    b"PK\x03\x04",
    b"anything",
    np.random.default_rng(0).bytes(300),
]


@pytest.mark.parametrize("content", PICKLES)
def test_what_may_be_a_pickle_is_one_by_its_ending(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.ckpt").write_bytes(content)
    assert kind_despite_ending(tmp_path / "x.ckpt") is None
    for read in (load, detect_file):
        with pytest.raises(UserError, match="is a pickle, which can run"):
            read(tmp_path / "x.ckpt")


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (save({"a": torch.ones(2)}), "is a safetensors file under the name of a pickle; rename it to x.safetensors"),
        (b"<!DOCTYPE html><p>404", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a git-lfs pointer"),
        (zipped("x.safetensors"), "is a zip archive"),
        (picture("PNG"), "is a PNG picture"),
    ],
)
@pytest.mark.parametrize("read", [load, detect_file])
def test_what_is_no_pickle_is_not_called_one_for_its_ending(
    read: Callable[[Path], object], content: bytes, name: str, tmp_path: Path
) -> None:
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(tmp_path / "x.ckpt")
    assert name in str(caught.value) and "torch.load" not in str(caught.value)


def test_the_directory_of_a_large_zip_is_found() -> None:
    """A zip of more than 4 GB has a second record of its end, and the first one has no size."""
    content = zipped("a", "x/data.pkl")
    end = content.rindex(b"PK\x05\x06")
    size, start = struct.unpack("<II", content[end + 12 : end + 20])
    record = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, 2, 2, size, start)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, end, 1)
    last = content[end : end + 12] + b"\xff" * 8 + content[end + 20 :]
    kind = kind_in(io.BytesIO(content[:end] + record + locator + last))
    assert kind is not None and kind.name == "a pickle"


@pytest.mark.parametrize("size", [0, 2**31, 2**32 - 1])
def test_a_directory_of_a_false_size_tells_nothing(size: int) -> None:
    content = bytearray(zipped("a", "x/data.pkl"))
    end = content.rindex(b"PK\x05\x06")
    content[end + 12 : end + 16] = size.to_bytes(4, "little")
    kind = kind_in(io.BytesIO(bytes(content)))
    assert kind is not None and kind.name == "a zip archive"


@pytest.mark.parametrize("content", [b"<!---->", b"<!>", b"<?xml?>", b"P1 #\n", b"[ "])
def test_no_file_takes_long_to_tell(content: bytes) -> None:
    before = time.process_time()
    kind_of((content * 4096)[:4096])
    assert time.process_time() - before < 1


@pytest.mark.parametrize(("content", "torn"), [(checkpoint(), False), (checkpoint()[:-30], True), (b"x" * 99, False)])
def test_a_zip_without_its_end_is_torn(content: bytes, torn: bool, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    assert is_torn_zip(tmp_path / "x") is torn


@pytest.mark.parametrize("content", [b" \n", b"\0\1\2\3", np.random.default_rng(0).bytes(300)])
def test_what_is_not_known_is_not_guessed(content: bytes) -> None:
    assert kind_of(content) is None


@given(st.binary(max_size=400))
def test_any_bytes_are_something_or_nothing(content: bytes) -> None:
    for kind in (kind_of(content), kind_in(io.BytesIO(content)), kind_in(io.BytesIO(b"PK\x03\x04" + content))):
        assert kind is None or kind.name


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert kind_of_file(tmp_path / "pipe") is None
    assert kind_of_file(tmp_path) is None
    assert kind_of_file(tmp_path / "gone") is None
    (tmp_path / "a").write_bytes(picture("PNG"))
    assert kind_of_file(tmp_path / "a") == kind_of(picture("PNG"))
