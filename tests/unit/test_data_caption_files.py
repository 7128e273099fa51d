from __future__ import annotations

import string
import tempfile
import unicodedata
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veneer.config.source_config import SourceConfig
from veneer.data.sources.caption_files import CAPTION_ENDINGS
from veneer.data.sources.protocol import Listing
from veneer.data.sources.registry import read_source


def written(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode())
    return folder


def listed(folder: Path, trigger: str | None = "tok", **options: object) -> Listing:
    return read_source(SourceConfig.model_validate({"path": folder, **options}), trigger)


def captions(folder: Path, trigger: str | None = None, **options: object) -> list[tuple[str, ...]]:
    return [entry.captions for entry in listed(folder, trigger, **options).entries]


@pytest.mark.parametrize("ending", [".txt", ".TXT", ".caption", ".Caption", ".cap", ".captions", ".tags", ".text"])
@pytest.mark.parametrize("whole_name", [False, True])
def test_captions_are_found_under_every_usual_name(tmp_path: Path, ending: str, whole_name: bool) -> None:
    """kohya's default is .caption, booru downloaders write a.png.txt; all were dropped where a trigger was given."""
    written(tmp_path, {"a.png": "-", f"{'a.png' if whole_name else 'a'}{ending}": "a red bird"})
    found = listed(tmp_path)
    assert [entry.captions for entry in found.entries] == [("a red bird, tok",)]
    assert found.notes == ()


letters = st.sampled_from([*string.ascii_letters, *"-_ .é猫ßÅñ"])
stems = st.text(letters, min_size=1, max_size=8).filter(lambda stem: stem[0] not in ". " and stem[-1] not in ". ")
forms = st.sampled_from(["NFC", "NFD"])


@given(
    stem=stems,
    ending=st.sampled_from(CAPTION_ENDINGS),
    upper=st.booleans(),
    whole=st.booleans(),
    forms=st.tuples(forms, forms),
)
def test_a_caption_file_of_any_usual_name_meets_its_picture(
    stem: str, ending: str, upper: bool, whole: bool, forms: tuple[str, str]
) -> None:
    """Whatever the name, its ending's letters, and the form of Unicode in which each of both is written."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        beside = f"{stem}.jpg" if whole else stem
        picture, text = (
            unicodedata.normalize(form, text) for form, text in zip(forms, (f"{stem}.jpg", beside), strict=True)
        )
        written(folder, {picture: "-", f"{text}{ending.upper() if upper else ending}": "a red bird"})
        found = listed(folder)
        assert [entry.captions for entry in found.entries] == [("a red bird, tok",)]
        assert found.notes == ()


def test_of_like_names_the_most_exact_one_is_the_pictures(tmp_path: Path) -> None:
    files = {"a.png": "-", "A.png": "-", "a.txt": "small", "A.txt": "capital", "B.png": "-", "b.txt": "b"}
    assert captions(written(tmp_path, files)) == [("capital",), ("b",), ("small",)]


def test_one_caption_file_speaks_for_all_pictures_of_its_name(tmp_path: Path) -> None:
    files = {"a.png": "-", "a.jpg": "-", "a.txt": "a cat", "c.png.jpg": "-", "c.png.txt": "a dog"}
    assert captions(written(tmp_path, files)) == [("a cat",), ("a cat",), ("a dog",)]


def test_several_caption_files_of_one_picture_are_all_read_and_said_to_be(tmp_path: Path) -> None:
    files = {"a.png": "-", "a.caption": "a cat", "a.txt": "cat, grey", "a.png.txt": "a cat", "b.png": "-", "b.txt": "b"}
    found = listed(written(tmp_path, files), None)
    assert [entry.captions for entry in found.entries] == [("cat, grey", "a cat"), ("b",)]
    (note,) = found.notes
    assert note.startswith("3 caption files are beside a picture that has others, and all are read")
    assert "a.txt" in note and "a.png.txt" in note and "a.caption" in note


LINES = "A red bird sits on a branch.\n\nThe garden is blurred,\r\nlit\fby a\N{LINE SEPARATOR}low sun.\n"


def test_each_line_is_a_caption_and_a_note_says_so(tmp_path: Path) -> None:
    written(tmp_path, {"a.png": "-", "a.txt": LINES, "b.png": "-", "b.txt": "one line\n"})
    found = listed(tmp_path, None)
    assert found.entries[0].captions == (
        "A red bird sits on a branch.",
        "The garden is blurred,",
        "lit",
        "by a",
        "low sun.",
    )
    (note,) = found.notes
    assert note == (
        "1 caption files have several lines, each taken as a caption of its own (captions: whole makes them one): "
        f"{tmp_path / 'a.txt'}"
    )


def test_the_whole_file_may_be_one_caption(tmp_path: Path) -> None:
    written(
        tmp_path, {"a.png": "-", "a.txt": LINES, "b.png": "-", "b.txt": "again\nagain", "c.png": "-", "c.txt": "\n"}
    )
    found = listed(tmp_path, captions="whole")
    whole = "A red bird sits on a branch. The garden is blurred, lit by a low sun, tok"
    assert [entry.captions for entry in found.entries] == [(whole,), ("again again, tok",), ("tok",)]
    assert not any("lines" in note for note in found.notes)


def test_an_empty_caption_file_is_named_and_so_are_pictures_that_have_the_trigger_alone(tmp_path: Path) -> None:
    written(tmp_path, {"a.png": "-", "a.txt": " \n\n", "b.png": "-", "b.txt": "a cat", "c.png": "-"})
    empty, alone = listed(tmp_path).notes
    assert empty == f"1 caption files are empty: {tmp_path / 'a.txt'}"
    assert alone == (f"2 of 3 pictures have no caption but the trigger: {tmp_path / 'a.txt'}, {tmp_path / 'c.png'}")


def test_a_trigger_alone_for_all_pictures_needs_no_word(tmp_path: Path) -> None:
    written(tmp_path, {"a.png": "-", "b.png": "-"})
    assert listed(tmp_path).notes == ()


def test_a_dataset_file_of_kohyas_scripts_reads_and_names_caption_files_alike(tmp_path: Path) -> None:
    files = {"a.jpg": "-", "a.CAPTION": "one\ntwo", "b.jpg": "-", "b.txt": "not read by kohya's scripts either"}
    toml = "[[datasets]]\n[[datasets.subsets]]\nimage_dir = '.'\nclass_tokens = 'bird'\n"
    written(tmp_path, {**files, "dataset.toml": toml})
    found = listed(tmp_path / "dataset.toml", None)
    assert [entry.captions for entry in found.entries] == [("one", "two"), ("bird",)]
    lines, unread = found.notes
    assert "several lines" in lines and "a.CAPTION" in lines
    assert "b.txt" in unread and "caption_extension is '.caption'" in unread
    assert captions(tmp_path / "dataset.toml", captions="whole") == [("one two",), ("bird",)]
