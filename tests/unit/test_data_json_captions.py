"""JSON beside pictures, and kohya's metadata files, are read by the keys that their writers use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.errors import raises_code
from veneer.config.source_config import SourceConfig
from veneer.data.sources.json_captions import captions_of
from veneer.data.sources.protocol import Listing
from veneer.data.sources.registry import read_source


def written(folder: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return folder


def listed(path: Path, trigger: str | None = None) -> Listing:
    return read_source(SourceConfig(path=path), trigger)


IMG2DATASET = {"caption": "a cat", "url": "https://x/a.jpg", "key": "000000000", "status": "success", "width": 512}
AI_TOOLKIT = {"caption": "a cat on a mat", "caption_short": "a cat"}
DANBOORU = {"tag_string": "1girl long_hair solo", "tag_string_general": "1girl solo", "rating": "g", "id": 1}
GALLERY_DL = {"category": "x", "tags": ["1girl", "long hair"], "date": "2026-01-01"}


@pytest.mark.parametrize(
    ("record", "captions"),
    [
        (IMG2DATASET, ("a cat",)),
        (AI_TOOLKIT, ("a cat on a mat",)),
        (DANBOORU, ("1girl, long_hair, solo",)),
        (GALLERY_DL, ("1girl, long hair",)),
        ({"caption": "a cat", "tags": "grey, small"}, ("a cat, grey, small",)),  # as kohya's scripts join them
        ({"caption": "", "tags": ["grey"]}, ("grey",)),
        ({"caption": None, "text": "a cat"}, ("a cat",)),
        ({"captions": ["a cat", " a cat ", "a pet"], "tags": []}, ("a cat", "a pet")),
        ({"caption": ["a cat", "a pet"], "tags": "x"}, ("a cat, x", "a pet, x")),
        ({"tags": "a", "tag_string": "b"}, ("a",)),
        ({"text": "  "}, ()),
    ],
)
def test_the_keys_of_many_writers_are_read(tmp_path: Path, record: dict[str, Any], captions: tuple[str, ...]) -> None:
    assert captions_of(record, "here") == captions
    for name in ("a.json", "a.png.JSON"):
        folder = written(tmp_path / name, {"a.png": "-", name: record})
        assert [entry.captions for entry in listed(folder, None if captions else "tok").entries] == [
            captions or ("tok",)
        ]


def test_keys_that_are_not_read_are_named(tmp_path: Path) -> None:
    (note,) = listed(written(tmp_path, {"a.png": "-", "a.json": DANBOORU})).notes
    assert note == f"not read in {tmp_path / 'a.json'} and the like: tag_string_general, rating, id"


@pytest.mark.parametrize("content", [{"about": "a cat"}, ["a cat"], "3", '"a cat"'])
def test_without_a_known_key_it_is_named_as_not_read(tmp_path: Path, content: object) -> None:
    found = listed(written(tmp_path, {"a.png": "-", "a.txt": "a dog", "a.json": content}))
    assert [entry.captions for entry in found.entries] == [("a dog",)]
    assert f"not read, though they look like captions: {tmp_path / 'a.json'}" in found.notes[0]


def test_it_is_read_behind_other_files_of_its_picture(tmp_path: Path) -> None:
    found = listed(written(tmp_path, {"a.png": "-", "a.txt": "a dog", "a.json": {"caption": "a pet"}}))
    assert [entry.captions for entry in found.entries] == [("a dog", "a pet")]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"caption": "a', "not JSON"),
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ({"caption": 5}, "'caption' should be a text or a list of texts"),
        ({"tags": {"general": ["cat"]}}, "'tags' should be a text or a list of texts"),
        (r'{"caption": "a \ud83d"}', "half a character"),
    ],
)
def test_what_cannot_be_read_puts_its_picture_aside(tmp_path: Path, content: object, words: str) -> None:
    found = listed(written(tmp_path, {"a.png": "-", "a.json": content, "b.png": "-", "b.txt": "b"}))
    assert [entry.path.name for entry in found.entries] == ["b.png"]
    (rejected,) = found.rejected
    assert rejected.path.name == "a.png" and words in rejected.reason and "\n" not in rejected.reason


def toml(folder: Path, **keys: object) -> Path:
    lines = [f"{key} = {json.dumps(value)}" for key, value in {"image_dir": "pictures", **keys}.items()]
    return written(folder, {"d.toml": "\n".join(["[[datasets]]", "[[datasets.subsets]]", *lines])}) / "d.toml"


KOHYA = {
    "a": {"caption": "a cat", "tags": "grey, small", "train_resolution": [64, 64]},
    "b.jpg": {"caption": "a dog"},
    "deep/c": {"tags": "1girl, solo"},
}


def test_kohyas_metadata_files_are_read_as_its_scripts_read_them(tmp_path: Path) -> None:
    pictures = {f"pictures/{name}": "-" for name in ("a.png", "b.jpg", "deep/c.webp", "d.png")}
    written(tmp_path, {**pictures, "pictures/a.caption": "not read", "meta.json": {**KOHYA}})
    found = listed(toml(tmp_path, metadata_file="meta.json", num_repeats=3, caption_prefix="art of"))
    assert [(one.path.name, one.captions, one.repeats) for one in found.entries] == [
        ("a.png", ("art of a cat, grey, small",), 3),
        ("b.jpg", ("art of a dog",), 3),
        ("c.webp", ("art of 1girl, solo",), 3),
    ]
    assert [(one.path.name, one.reason) for one in found.rejected] == [("d.png", "meta.json does not name it")]
    assert "a.caption (meta.json speaks for their pictures)" in " ".join(found.notes)
    absolute = {str(tmp_path / "pictures" / "a.png"): {"caption": "a cat", "blip": 1}}
    written(tmp_path, {"meta.json": absolute})
    whole = listed(toml(tmp_path, metadata_file="meta.json"))
    assert [one.captions for one in whole.entries] == [("a cat",)]
    assert f"not read in {tmp_path / 'meta.json'}: blip" in whole.notes


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ({"gone": {"caption": "x"}}, "data.metadata_file_missing"),
        ({"": {"caption": "x"}}, "data.metadata_file_missing"),
        ({"../a": {"caption": "x"}}, "data.metadata_file_missing"),
        ({"/etc/passwd": {"caption": "x"}}, "data.metadata_file_outside"),
        ({"a": "a cat"}, "data.toml_metadata"),
        (["a"], "data.toml_metadata"),
        ("{", "data.captions_not_json"),
        ({"a": {"caption": 4}}, "data.json_caption"),
    ],
)
def test_one_that_is_at_fault_is_refused_in_one_line(tmp_path: Path, content: object, code: str) -> None:
    written(tmp_path, {"pictures/a.png": "-", "meta.json": content, "a.png": "-"})
    with raises_code(code) as caught:
        listed(toml(tmp_path, metadata_file="meta.json"))
    assert "meta.json" in str(caught.value)
    with raises_code("files.not_found"):
        listed(toml(tmp_path, metadata_file="gone.json"))
