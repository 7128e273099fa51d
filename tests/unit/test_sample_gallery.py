"""Pictures that tell how they were made."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from diffusers import EulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from veneer.sample.files import write_picture
from veneer.sample.gallery import (
    PictureNote,
    gallery_names,
    read_picture_note,
    sampler_name,
    thumbnail,
    write_gallery,
)

NOTE = PictureNote("a cat, zxc", 3, 25, 4.0, "Euler")


def test_a_picture_tells_how_it_was_made(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 8), "red")
    names = write_gallery(tmp_path / "gallery", [[picture]], [NOTE])
    assert names == {"01-a-cat-zxc.png": "a cat, zxc"}
    path = tmp_path / "gallery" / "01-a-cat-zxc.png"
    assert read_picture_note(path) == NOTE
    with Image.open(path) as read:
        assert read.tobytes() == picture.tobytes()


def test_an_earlier_gallery_goes_and_other_pictures_stay(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 8))
    write_gallery(tmp_path, [[picture], [picture]], [NOTE, NOTE])
    picture.save(tmp_path / "mine.png")
    write_gallery(tmp_path, [[picture]], [PictureNote("a dog", 0, 1, 1.0, "DDIM")])
    assert {path.name for path in tmp_path.iterdir()} == {"01-a-dog.png", "mine.png"}


@pytest.mark.parametrize("text", ["", "7", "[]", "{}", '{"prompt": 3}', '{"seed": "x"}', "[" * 100_000])
def test_a_note_that_is_none_is_none(text: str, tmp_path: Path) -> None:
    write_picture(Image.new("RGB", (8, 8)), tmp_path / "a.png", {"veneer.picture": text})
    (tmp_path / "b.png").write_bytes(b"no picture")
    assert read_picture_note(tmp_path / "a.png") is None
    assert read_picture_note(tmp_path / "b.png") is None
    assert read_picture_note(tmp_path / "gone.png") is None


def test_values_of_another_kind_are_no_note(tmp_path: Path) -> None:
    wrong = PictureNote("a", 3, 25, 4.0, sampler=None)  # type: ignore[arg-type]
    write_picture(Image.new("RGB", (8, 8)), tmp_path / "a.png", wrong.texts)
    assert read_picture_note(tmp_path / "a.png") is None


@given(st.lists(st.text(), max_size=20))
def test_every_prompt_has_a_file_name_of_its_own(prompts: list[str]) -> None:
    names = gallery_names(prompts)
    assert len({name.lower() for name in names}) == len(prompts)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.") and len(name) < 60 for name in names)


def test_samplers_have_the_names_that_a1111_gives_them() -> None:
    class Pipeline:
        scheduler = EulerDiscreteScheduler()

    assert sampler_name(Pipeline()) == "Euler"
    Pipeline.scheduler = type("NewScheduler", (), {})()  # type: ignore[assignment]
    assert sampler_name(Pipeline()) == "New"


def test_a_thumbnail_is_small_whatever_it_is_of() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (700, 1000, 3), dtype=np.uint8)
    url = thumbnail(Image.fromarray(noise))
    kind, _, content = url.partition(",")
    data = base64.b64decode(content)
    assert kind == "data:image/jpeg;base64" and len(data) <= 32_000
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.size == (256, 179)
