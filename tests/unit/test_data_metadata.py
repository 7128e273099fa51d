from __future__ import annotations

import csv
import io
import json
import tempfile
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.errors import raises_code
from veneer.config.source_config import SourceConfig
from veneer.data.sources.metadata import MetadataSource
from veneer.data.sources.protocol import Listing
from veneer.data.sources.registry import read_source


def write(folder: Path, name: str, content: str = "-") -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode())


def listed(folder: Path) -> Listing:
    return read_source(SourceConfig(path=folder), None)


def captions(folder: Path) -> dict[str, tuple[str, ...]]:
    return {entry.path.relative_to(folder).as_posix(): entry.captions for entry in listed(folder).entries}


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("name", ["metadata.csv", "METADATA.CSV"])
def test_a_table_is_read_as_the_lines_are(tmp_path: Path, name: str, delimiter: str) -> None:
    write(tmp_path, "a.png")
    write(tmp_path, "deep/b.png")
    table = io.StringIO()
    rows = csv.writer(table, delimiter=delimiter)
    rows.writerows(
        [["file_name", "mood", "text"], ["deep/b.png", "", 'a "cat", grey;\ttwo\nlines'], ["a.png", "x", " a dog "]]
    )
    write(tmp_path, name, "\ufeff" + table.getvalue())
    assert captions(tmp_path) == {"a.png": ("a dog",), "deep/b.png": ('a "cat", grey;\ttwo\nlines',)}


@given(st.lists(st.text().filter(lambda text: text.strip() and "\0" not in text), min_size=1, max_size=4))
def test_any_caption_comes_back_from_a_table(texts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = io.StringIO()
        rows = csv.writer(table)
        rows.writerow(["file_name", "text"])
        for number, text in enumerate(texts):
            write(folder, f"{number}.png")
            rows.writerow([f"{number}.png", text])
        write(folder, "metadata.csv", table.getvalue())
        listing = MetadataSource().list_pictures(SourceConfig(path=folder))  # before syntax of prompts is looked for
        assert listing is not None
        found = {entry.path.name: entry.captions for entry in listing.entries}
        assert found == {f"{number}.png": (text.strip(),) for number, text in enumerate(texts)}


@pytest.mark.parametrize(
    ("table", "code", "words"),
    [
        ("file_name,text\na.png,a cat, grey\n", "metadata_not_csv", "metadata.csv:2: has more values"),
        ("file_name,text\na.png\n", "metadata_not_csv", "metadata.csv:2: has fewer values"),
        ('file_name,text\na.png,"a cat\n', "metadata_not_csv", "not CSV"),
        ('file_name,text\na.png,"a" cat\n', "metadata_not_csv", "not CSV"),
        (
            "image,text\na.png,a cat\n",
            "metadata_field_missing",
            "metadata.csv:2: no 'file_name'; call 'image' 'file_name'",
        ),
        ("file_name,caption\na.png,a cat\n", "metadata_field_missing", "call 'caption' 'text'"),
        ("file_name,text\nb.png,a cat\n", "metadata_file_missing", "metadata.csv:2: no such file: b.png"),
        ("file_name,text\n,a cat\n", "metadata_file_name", "metadata.csv:2"),
        ("file_name,text\na.png,\n", "no_caption", "metadata.csv:2"),
        ("", "no_usable", ""),
    ],
)
def test_a_faulty_row_is_named(tmp_path: Path, table: str, code: str, words: str) -> None:
    write(tmp_path, "a.png")
    write(tmp_path, "metadata.csv", table)
    if not table:
        assert [one.reason for one in listed(tmp_path).rejected] == ["no line of metadata.csv names it"]
        return
    with raises_code(f"data.{code}", words):
        listed(tmp_path)


def test_several_lists_of_a_folder_are_all_read_and_said_to_be(tmp_path: Path) -> None:
    write(tmp_path, "a.png")
    write(tmp_path, "b.png")
    write(tmp_path, "metadata.jsonl", '{"file_name": "a.png", "text": "a cat"}')
    write(tmp_path, "metadata.csv", "file_name,text\na.png,a hound\nb.png,a dog\na.png,a cat")
    assert captions(tmp_path) == {"a.png": ("a hound", "a cat"), "b.png": ("a dog",)}
    (note,) = listed(tmp_path).notes
    assert note.startswith("several lists for one folder, all of which are read: ")


def line(name: str) -> str:
    return json.dumps({"file_name": name, "text": "a cat"})


@pytest.mark.parametrize("name", ["images\\a.png", ".\\images\\a.png", "images\\deep\\b.png", "IMAGES\\A.PNG"])
def test_a_backslash_parts_folders_as_on_windows(tmp_path: Path, name: str) -> None:
    write(tmp_path, "images/a.png")
    write(tmp_path, "images/deep/b.png")
    write(tmp_path, "metadata.jsonl", line(name))
    (entry,) = listed(tmp_path).entries
    assert entry.path.name == ("b.png" if "deep" in name else "a.png")


def test_a_backslash_is_a_letter_where_there_is_such_a_file(tmp_path: Path) -> None:
    write(tmp_path, "images/a.png")
    write(tmp_path, "images\\a.png")
    write(tmp_path, "metadata.jsonl", line("images\\a.png"))
    assert set(captions(tmp_path)) == {"images\\a.png"}


@pytest.mark.parametrize(
    "name", ["..\\a.png", "images\\..\\..\\a.png", "C:\\images\\a.png", "C:a\\b.png", "\\\\nas\\x\\a.png"]
)
def test_no_way_leads_out_by_backslashes(tmp_path: Path, name: str) -> None:
    write(tmp_path, "a.png")
    write(tmp_path, "inside/b.png")
    write(tmp_path, "inside/metadata.jsonl", line(name))
    with raises_code("data.metadata_file_outside"):
        listed(tmp_path / "inside")


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_names_meet_in_nfc_and_nfd(tmp_path: Path, forms: tuple[str, str]) -> None:
    file, row = (unicodedata.normalize(form, "Käfer/é.png") for form in forms)
    write(tmp_path, file)
    write(tmp_path, "metadata.jsonl", line(row))
    assert captions(tmp_path) == {file: ("a cat",)}


def test_two_files_of_like_names_are_not_guessed_between(tmp_path: Path) -> None:
    write(tmp_path, "a.png")
    write(tmp_path, "A.png")
    write(tmp_path, "metadata.jsonl", line("a.PNG"))
    with raises_code("data.metadata_file_missing"):
        listed(tmp_path)


def test_a_list_may_name_a_picture_in_a_hidden_folder(tmp_path: Path) -> None:
    write(tmp_path, "a.png")
    write(tmp_path, ".cache/b.png")
    write(tmp_path, "metadata.jsonl", "\n".join(map(line, ("a.png", ".cache/b.png"))))
    assert set(captions(tmp_path)) == {"a.png", ".cache/b.png"}
