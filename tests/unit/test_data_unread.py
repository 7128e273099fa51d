from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from veneer.config.data_config import DataConfig
from veneer.config.source_config import SourceConfig
from veneer.data.preflight import survey
from veneer.data.sources.registry import read_source


def write(folder: Path, name: str, content: bytes = b"-") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def notes(folder: Path) -> str:
    return "\n".join(read_source(SourceConfig(path=folder), "tok").notes)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", b'{"about": "a cat"}'),
        ("a.png.json", b'["a cat"]'),
        ("a.yaml", b"caption: a cat"),
        ("a.md", b"a cat"),
        ("a.description", "ein Kätzchen".encode()),
        ("a.docx", b"PK\x03\x04"),
        ("a.xmp", b"<x:xmpmeta/>"),
        ("captions.json", b'{"a.png": "a cat"}'),
        ("data.json", b'{"a.png": "a cat"}'),
        ("meta_cap.json", b"{}"),
        ("captions.txt", b"a.png a cat"),
        ("captions.parquet", b"PAR1\0"),
        ("train-00000-of-00001.parquet", b"PAR1\0"),
        ("captions.csv", b"image,caption\na.png,a cat"),
        ("metadata.tsv", b"file_name\ttext"),
        ("captions/a.txt", b"a cat"),
        ("b.txt", b"a cat"),
        ("b.caption", b"a cat"),
        ("prompts.jsonl", b"{}"),
    ],
)
def test_whatever_looks_like_captions_and_is_not_read_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    write(tmp_path, "a.png")
    file = write(tmp_path, name, content)
    assert f"not read, though they look like captions: {file} (" in notes(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("README.txt", b"about"),
        ("LICENSE.txt", b"about"),
        ("readme.md", b"about"),
        ("config.json", b'{"lr": 1}'),
        ("config.yaml", b"job: extension"),
        ("a.npz", b"PK\x03\x04\0\xff"),  # latents that kohya's scripts cache
        ("a.safetensors", b"\x08\0\0\0\0\0\0\0{}      "),
        ("a.psd", b"8BPS\0\x01"),
        ("Thumbs.db", b"\xd0\xcf\x11\xe0"),
        ("desktop.ini", b"[x]"),
    ],
)
def test_what_does_not_look_like_captions_is_not(tmp_path: Path, name: str, content: bytes) -> None:
    write(tmp_path, "a.png")
    write(tmp_path, name, content)
    assert notes(tmp_path) == ""


def test_many_are_named_in_one_sentence(tmp_path: Path) -> None:
    for number in range(5):
        write(tmp_path, f"{number}.png")
        write(tmp_path, f"{number}.json", b"{}")
    assert "2.json and 2 more (captions are read from .txt" in notes(tmp_path)
    assert len(read_source(SourceConfig(path=tmp_path), "tok").notes) == 1


def test_caption_files_for_whose_pictures_a_list_speaks_are_named(tmp_path: Path) -> None:
    write(tmp_path, "a.png")
    write(tmp_path, "a.txt", b"a dog")
    write(tmp_path, "metadata.jsonl", b'{"file_name": "a.png", "text": "a cat"}')
    assert f"{tmp_path / 'a.txt'} ({tmp_path / 'metadata.jsonl'} speaks for their pictures)" in notes(tmp_path)


def test_the_files_of_a_run_below_are_none(tmp_path: Path) -> None:
    write(tmp_path, "a.png")
    write(tmp_path, "runs/x/run.jsonl", b'{"event": "Surveyed", "seconds": 0.1}\n')
    write(tmp_path, "runs/x/samples/prompts.txt")
    assert notes(tmp_path) == ""


def test_they_are_among_the_notes_on_a_dataset_whether_trained_on_or_held_out(tmp_path: Path) -> None:
    for number, name in enumerate(("train", "held")):
        (tmp_path / name).mkdir()
        Image.new("RGB", (16, 16), (0, 99 * number, 0)).save(tmp_path / name / "a.png")
        write(tmp_path / name, "a.json", b"{}")
    config = DataConfig(sources=(SourceConfig(path=tmp_path / "train"),), held_out=tmp_path / "held", trigger="tok")
    said = "\n".join(survey(config).notes)
    assert str(tmp_path / "train/a.json") in said and str(tmp_path / "held/a.json") in said


def test_what_cannot_be_read_is_passed_over_without_waiting(tmp_path: Path) -> None:
    write(tmp_path, "a.png")
    write(tmp_path, "b.png")
    os.mkfifo(tmp_path / "a.md")
    os.mkfifo(tmp_path / "b.txt")
    (tmp_path / "a.nfo").symlink_to(tmp_path / "gone")
    found = read_source(SourceConfig(path=tmp_path), "tok")
    assert [entry.path.name for entry in found.entries] == ["a.png"] and not found.notes
    (rejected,) = found.rejected
    assert rejected.path.name == "b.png" and "b.txt: cannot be read: it is a named pipe" in rejected.reason
