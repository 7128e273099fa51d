"""Folders that are named as kohya's scripts have them are read as there, where nothing else can be meant."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from PIL import Image

from veneer.config.data_config import DataConfig
from veneer.config.source_config import SourceConfig
from veneer.data.preflight import survey
from veneer.data.sources.protocol import Listing
from veneer.data.sources.registry import read_source


def made(root: Path, *names: str) -> Path:
    """Write empty files, whose captions are read and whose pictures are not opened."""
    for name in names:
        name, _, text = name.partition("=")
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def listed(root: Path, trigger: str | None = None, **options: object) -> Listing:
    return read_source(SourceConfig.model_validate({"path": root, **options}), trigger)


def read(listing: Listing) -> dict[str, tuple[int, tuple[str, ...]]]:
    return {entry.path.name: (entry.repeats, entry.captions) for entry in listing.entries}


KOHYA = ("10_sks cat/a.png", "10_sks cat/b.png", "10_sks cat/b.txt=a photo of a cat", "3_dog_of mine/deep/c.png")


def test_the_number_is_repeats_and_the_rest_is_the_caption_where_there_is_none(tmp_path: Path) -> None:
    found = listed(made(tmp_path, *KOHYA))
    assert read(found) == {
        "a.png": (10, ("sks cat",)),
        "b.png": (10, ("a photo of a cat",)),
        "c.png": (3, ("dog_of mine",)),
    }
    (note,) = found.notes
    assert f"{tmp_path / '10_sks cat'} (10 repeats, 'sks cat'), {tmp_path / '3_dog_of mine'} (3 repeats" in note
    assert "numbered_folders: false" in note


def test_they_count_with_the_sources_own_repeats_and_the_trigger(tmp_path: Path) -> None:
    found = read(listed(made(tmp_path, *KOHYA), "tok", repeats=2))
    assert found["a.png"] == (20, ("sks cat, tok",))
    assert found["c.png"] == (6, ("dog_of mine, tok",))


def test_they_are_names_where_this_is_asked_for(tmp_path: Path) -> None:
    found = listed(made(tmp_path, *KOHYA), "tok", numbered_folders=False)
    assert {entry.repeats for entry in found.entries} == {1}
    assert read(found)["a.png"][1] == ("tok",)
    assert not any("number" in note for note in found.notes)


def test_they_may_lie_below_other_folders_and_in_a_zip(tmp_path: Path) -> None:
    root = made(tmp_path / "project", *(f"img/{name}" for name in KOHYA), "log/x.txt", "model/y.txt")
    with zipfile.ZipFile(tmp_path / "project.zip", "w") as archive:
        for file in sorted(root.rglob("*")):
            archive.write(file, file.relative_to(root))
    assert read(listed(root)) == read(listed(tmp_path / "project.zip")) != {}
    assert read(listed(root))["a.png"] == (10, ("sks cat",))


def test_pictures_of_the_class_are_not_trained_on_and_it_is_said_what_to_do(tmp_path: Path) -> None:
    found = listed(made(tmp_path, *(f"img/{name}" for name in KOHYA), "reg/1_cat/r.png", "reg/1_cat/s.png"))
    assert set(read(found)) == {"a.png", "b.png", "c.png"}
    assert f"2 pictures of the class are not trained on, such as those in {tmp_path / 'reg/1_cat'}" in found.notes[1]
    assert f"data.prior.path={tmp_path / 'reg/1_cat'}" in found.notes[1]


def test_a_list_may_say_the_captions(tmp_path: Path) -> None:
    rows = '{"file_name": "5_cat/a.png", "text": "a cat"}\n{"file_name": "5_cat/b.png", "text": ""}'
    made(tmp_path, "5_cat/a.png", "5_cat/b.png", f"metadata.jsonl={rows}")
    assert read(listed(tmp_path)) == {"a.png": (5, ("a cat",)), "b.png": (5, ("cat",))}


@pytest.mark.parametrize("other", ["a picture.png", "other/x.png", "0_more/x.png", "_more/x.png", "1more/x.png"])
def test_where_not_all_pictures_lie_in_such_folders_none_is_read_and_it_is_said(tmp_path: Path, other: str) -> None:
    found = listed(made(tmp_path, *KOHYA, other), "tok")
    assert {entry.repeats for entry in found.entries} == {1}
    assert any("10_sks cat: the number is not read as repeats, since" in note for note in found.notes)


@pytest.mark.parametrize("names", [("2023_summer", "2024_winter"), ("01_front", "02_side"), ("a", "b"), ("1-a", "2-b")])
def test_other_numbers_are_names(tmp_path: Path, names: tuple[str, str]) -> None:
    found = listed(made(tmp_path, *(f"{name}/{name}.png" for name in names)), "tok")
    assert {entry.repeats for entry in found.entries} == {1} and not found.notes


def test_without_a_name_behind_the_number_there_is_no_caption(tmp_path: Path) -> None:
    assert read(listed(made(tmp_path, "4_/a.png"), "tok")) == {"a.png": (4, ("tok",))}


def test_pictures_and_repeats_reach_the_dataset(tmp_path: Path) -> None:
    for number, name in enumerate(("2_cat", "5_dog")):
        (tmp_path / name).mkdir()
        Image.new("RGB", (16, 16), (90 * number, 9, 9)).save(tmp_path / name / "a.png")
    found = survey(DataConfig(sources=(SourceConfig(path=tmp_path),), held_out=0.0))
    assert [(one.captions, one.repeats) for one in found.train.samples] == [(("cat",), 2), (("dog",), 5)]
