from __future__ import annotations

import io
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from veneer.data.file_kind import kind_of, kind_of_file


def picture(kind: str) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (16, 16)).save(content, kind)
    return content.getvalue()


def archive(tar: bool) -> bytes:
    content = io.BytesIO()
    if tar:
        with tarfile.open(fileobj=content, mode="w") as file:
            file.addfile(tarfile.TarInfo("a.png"))
    else:
        with zipfile.ZipFile(content, "w") as file:
            file.writestr("a.png", "x")
    return content.getvalue()


def checkpoint() -> bytes:
    content = io.BytesIO()
    torch.save({"a": torch.ones(2)}, content)
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "category"),
    [
        *((picture(kind), "picture") for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000")),
        (archive(tar=False), "archive"),
        (archive(tar=True), "archive"),
        (checkpoint(), "pickle"),
        (pickle.dumps({"a": 1}), "pickle"),
        (save({"a": torch.ones(2)}), "weights"),
        (save({"a": torch.ones(2)}, {"note": "x" * 70_000}), "weights"),
        (b'{"a": 1}', "text"),
        (b"[1, 2]", "text"),
        (b"base: bundled\n", "text"),
        ("é".encode() * 3000, "text"),
        (b"x" + "é".encode() * 2048, "text"),  # the cut goes through a character
        ("words".encode("utf-16"), "text"),
        (b"PAR1\x15\x04", "data"),
    ],
)
def test_a_file_is_what_its_first_bytes_say(content: bytes, category: str) -> None:
    kind = kind_of(content[:4096])
    assert kind is not None and kind.category == category


@pytest.mark.parametrize("content", [b"", b" \n", b"\0\1\2\3", np.random.default_rng(0).bytes(300)])
def test_what_is_not_known_is_not_guessed(content: bytes) -> None:
    assert kind_of(content) is None


@given(st.binary(max_size=400))
def test_any_bytes_are_something_or_nothing(content: bytes) -> None:
    kind = kind_of(content)
    assert kind is None or kind.name


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert kind_of_file(tmp_path / "pipe") is None
    assert kind_of_file(tmp_path) is None
    assert kind_of_file(tmp_path / "gone") is None
    (tmp_path / "a").write_bytes(picture("PNG"))
    assert kind_of_file(tmp_path / "a") == kind_of(picture("PNG"))
