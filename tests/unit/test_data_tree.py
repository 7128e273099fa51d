from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from tests.errors import raises_code
from veneer.config.source_config import SourceConfig
from veneer.data.sources.protocol import Listing
from veneer.data.sources.registry import read_source

CONFIG = "base: bundled\noutput:\n  dir: x\ndata:\n  sources: [{path: pictures}]\n"
LOG = '{"event": "Surveyed", "seconds": 0.1, "train": 3}\n'


def write(folder: Path, name: str, content: str = "-") -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def listed(folder: Path) -> Listing:
    return read_source(SourceConfig(path=folder), "tok")


def names(folder: Path) -> list[str]:
    return [entry.path.relative_to(folder).as_posix() for entry in listed(folder).entries]


@pytest.mark.parametrize(
    "folder",
    [
        "@eaDir",
        "@eaDir/a.png",
        "#recycle",
        "$RECYCLE.BIN",
        ".AppleDouble",
        "System Volume Information",
        "lost+found",
        "deep/@eaDir",
        "__MACOSX",
        "@Recycle",
        ".@__thumb",
        "#snapshot",
    ],
)
def test_folders_that_systems_and_network_storage_make_are_passed_over(tmp_path: Path, folder: str) -> None:
    write(tmp_path, "a.png")
    write(tmp_path, f"{folder}/SYNOPHOTO_THUMB_XL.jpg")
    found = listed(tmp_path)
    assert [entry.path for entry in found.entries] == [tmp_path / "a.png"]
    assert (found.rejected, found.notes) == ((), ())


def test_such_a_folder_is_read_if_it_is_the_one_that_was_named_and_so_are_like_names(tmp_path: Path) -> None:
    write(tmp_path, "@eaDir/a.png")
    write(tmp_path, "@artist/b.png")
    assert names(tmp_path / "@eaDir") == ["a.png"]
    assert names(tmp_path) == ["@artist/b.png"]


@pytest.mark.parametrize(
    "config",
    [
        "job: extension\nconfig: {name: my_lora}\n",  # ai-toolkit
        "base_model: x\ndata: here\n",
        CONFIG,  # our own, which a user wrote for these pictures
        "{ no yaml",
        "",
    ],
)
def test_a_configuration_beside_pictures_makes_them_no_results_of_a_run(tmp_path: Path, config: str) -> None:
    write(tmp_path, "a.png")
    write(tmp_path, "more/b.png")
    write(tmp_path, "more/config.yaml", config)
    found = listed(tmp_path)
    assert [entry.path.name for entry in found.entries] == ["a.png", "b.png"] and not found.rejected


@pytest.mark.parametrize(
    "left",
    [
        {"run.jsonl": LOG},
        {"config.yaml": CONFIG, "plan.json": "{}"},
        {"config.yaml": CONFIG, "samples/step-10.png": "-"},
        {"config.yaml": CONFIG, "pytorch_lora_weights.safetensors": "-"},
    ],
)
def test_results_of_a_run_are_told_by_what_a_run_leaves(tmp_path: Path, left: dict[str, str]) -> None:
    write(tmp_path, "a.png")
    write(tmp_path, "any name/sheet.png")
    for name, content in left.items():
        write(tmp_path, f"any name/{name}", content)
    found = listed(tmp_path)
    assert [entry.path.name for entry in found.entries] == ["a.png"]
    assert {one.reason for one in found.rejected} == {f"in the results of a run ({tmp_path / 'any name'})"}


@pytest.mark.parametrize("log", ["", "[1]", "text", '{"event": 1}', "[" * 100_000])
def test_anothers_log_of_the_same_name_is_none_of_a_run(tmp_path: Path, log: str) -> None:
    write(tmp_path, "more/b.png")
    write(tmp_path, "more/run.jsonl", log)
    assert names(tmp_path) == ["more/b.png"]


def test_in_a_folder_that_a_run_wrote_to_what_it_painted_is_left_out(tmp_path: Path) -> None:
    for name in ("a.png", "sheet.png", "samples/b.png", "more/c.png"):
        write(tmp_path, name)
    write(tmp_path, "run.jsonl", LOG)
    assert names(tmp_path) == ["a.png", "more/c.png"]


def encoded(kind: str) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (16, 16)).save(content, kind)
    return content.getvalue()


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a", "PNG"), ("a.jpg_large", "JPEG"), ("a.jpe", "JPEG"), ("a.webp!d", "WEBP"), ("a.gif.1", "GIF")],
)
def test_pictures_without_a_pictures_ending_are_named(tmp_path: Path, name: str, kind: str) -> None:
    write(tmp_path, "b.png")
    (tmp_path / name).write_bytes(encoded(kind))
    (rejected,) = listed(tmp_path).rejected
    assert rejected.path == tmp_path / name
    assert rejected.reason.startswith("its name does not end as that of a picture, but it is a ")
    write(tmp_path, "metadata.jsonl", json.dumps({"file_name": name, "text": "a cat"}))
    assert name in names(tmp_path) and not any(one.path.name == name for one in listed(tmp_path).rejected)


@pytest.mark.parametrize(("name", "content"), [("a.zip", b"PK\x05\x06"), ("train.arrow", b"ARROW1\0\0")])
def test_where_pictures_are_packed_it_is_said(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with raises_code("data.no_picture") as caught:
        listed(tmp_path)
    assert name in str(caught.value.remedy)


@pytest.mark.parametrize("left", [{"run.jsonl": LOG}, {"config.yaml": CONFIG, "samples/step-10.png": "-"}, {}])
def test_results_of_a_run_are_told_in_a_zip_as_in_a_folder(tmp_path: Path, left: dict[str, str]) -> None:
    place = tmp_path / "pictures.zip"
    with zipfile.ZipFile(place, "w") as archive:
        for name in ("a.png", "runs/sheet.png"):
            archive.writestr(name, "-")
        for name, content in left.items():
            archive.writestr(f"runs/{name}", content)
    found = listed(place)
    assert [entry.path.name for entry in found.entries] == (["a.png"] if left else ["a.png", "sheet.png"])
    assert {one.reason for one in found.rejected} == (
        {f"in the results of a run ({place / 'runs'})"} if left else set()
    )
