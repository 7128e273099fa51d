from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.errors import raises_code
from veneer.config.data_config import DataConfig
from veneer.config.source_config import SourceConfig
from veneer.data.preflight import survey
from veneer.data.sources.protocol import Entry, Listing
from veneer.data.sources.registry import SOURCES, read_source
from veneer.data.tags import TagRules


def touch(folder: Path, *names: str) -> None:
    """Files that need not be pictures: no picture is opened here."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"-")


def write_metadata(folder: Path, *rows: object) -> None:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", "utf-8")


def listed(folder: Path, trigger: str | None = None) -> Listing:
    return read_source(SourceConfig(path=folder), trigger)


def captions(folder: Path, trigger: str | None = None) -> dict[str, tuple[str, ...]]:
    return {entry.path.relative_to(folder).as_posix(): entry.captions for entry in listed(folder, trigger).entries}


def refused(code: str, folder: Path, trigger: str | None = None) -> str:
    with raises_code(f"data.{code}") as caught:
        listed(folder, trigger)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_captions_in_metadata(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.JPG", "deep/c.webp")
    rows = [
        {"file_name": "b.JPG", "text": " a cat ", "mood": "unknown columns are no concern of ours"},
        "",
        {"file_name": "a.png", "text": ["a dog", "a hound", "a dog"]},
        {"file_name": "./deep/c.webp", "text": "line\N{LINE SEPARATOR}end"},
    ]
    write_metadata(tmp_path, *rows)
    assert captions(tmp_path) == {
        "a.png": ("a dog", "a hound"),
        "b.JPG": ("a cat",),
        "deep/c.webp": ("line\N{LINE SEPARATOR}end",),
    }


def test_several_lines_for_one_picture_are_several_captions(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    write_metadata(tmp_path, *({"file_name": "a.png", "text": text} for text in ("a dog", "a hound")))
    assert captions(tmp_path) == {"a.png": ("a dog", "a hound")}


def test_captions_in_text_files(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "deep/b.jpeg", "README.txt", "notes.md")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa caf\xc3\xa9\r\n\r\n  a bar\r\n")
    (tmp_path / "deep" / "b.txt").write_text("a cat")
    assert captions(tmp_path) == {"a.png": ("a café", "a bar"), "deep/b.jpeg": ("a cat",)}


def test_a_list_speaks_for_its_folder_and_those_below(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "listed/b.png", "listed/deep/c.png")
    (tmp_path / "a.txt").write_text("a cat")
    write_metadata(tmp_path / "listed", *({"file_name": name, "text": name} for name in ("b.png", "deep/c.png")))
    assert captions(tmp_path) == {
        "a.png": ("a cat",),
        "listed/b.png": ("b.png",),
        "listed/deep/c.png": ("deep/c.png",),
    }


def test_the_nearest_list_wins_and_the_others_are_asked_too(tmp_path: Path) -> None:
    touch(tmp_path, "deep/a.png", "deep/b.png")
    write_metadata(tmp_path, *({"file_name": f"deep/{name}.png", "text": "far"} for name in "ab"))
    write_metadata(tmp_path / "deep", {"file_name": "a.png", "text": "near"})
    assert captions(tmp_path) == {"deep/a.png": ("near",), "deep/b.png": ("far",)}


def test_pictures_that_no_line_names_are_left_out_and_said_to_be(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png", "b.txt")
    write_metadata(tmp_path, {"file_name": "a.png", "text": "a cat"})
    found = listed(tmp_path)
    assert [entry.path.name for entry in found.entries] == ["a.png"]
    assert [(one.path.name, one.reason) for one in found.rejected] == [("b.png", "no line of metadata.jsonl names it")]


def test_a_list_may_name_a_picture_without_an_ending(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "picture")
    write_metadata(tmp_path, *({"file_name": name, "text": "a cat"} for name in ("a.png", "picture")))
    assert set(captions(tmp_path)) == {"a.png", "picture"}


def test_hidden_files_are_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "._a.png", ".thumbs/b.png", "__MACOSX/c.png")
    assert set(captions(tmp_path, "tok")) == {"a.png"}


def test_pictures_of_kinds_that_are_not_read_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.HEIC")
    reasons = [one.reason for one in listed(tmp_path, "tok").rejected]
    assert reasons == [".HEIC files are not read: save it as PNG or JPEG"]


def test_what_a_run_painted_is_not_trained_on(tmp_path: Path) -> None:
    config = "base: bundled\noutput:\n  dir: runs/one\ndata:\n  sources: [{path: pictures}]\n"
    touch(tmp_path, "a.png", "config.yaml", "runs/one/config.yaml", "runs/one/samples/b.png")
    for folder in (tmp_path, tmp_path / "runs/one"):
        (folder / "config.yaml").write_text(config)
    found = listed(tmp_path, "tok")
    assert [entry.path.name for entry in found.entries] == ["a.png"], "the user's own config.yaml is no run's"
    assert [one.reason for one in found.rejected] == [f"in the results of a run ({tmp_path / 'runs/one'})"]


def test_a_link_to_the_folder_itself_ends(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    touch(tmp_path.parent / f"{tmp_path.name}-elsewhere", "b.png")
    (tmp_path / "again").symlink_to(tmp_path)
    (tmp_path / "elsewhere").symlink_to(tmp_path.parent / f"{tmp_path.name}-elsewhere")
    assert set(captions(tmp_path, "tok")) == {"a.png"}
    (left_out,) = read_source(SourceConfig(path=tmp_path), "tok").rejected
    assert left_out.path == tmp_path / "elsewhere" and "out of the folder: follow_links: true" in left_out.reason
    followed = read_source(SourceConfig(path=tmp_path, follow_links=True), "tok")
    assert [one.path.relative_to(tmp_path).as_posix() for one in followed.entries] == ["a.png", "elsewhere/b.png"]
    assert not followed.rejected


def test_order_is_by_path(tmp_path: Path) -> None:
    touch(tmp_path, "b.png", "a/z.png", "a.png", "c.png")
    assert list(captions(tmp_path, "tok")) == ["a/z.png", "a.png", "b.png", "c.png"]


def test_repeats_are_the_sources(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    assert [entry.repeats for entry in read_source(SourceConfig(path=tmp_path, repeats=3), "tok").entries] == [3]


def test_folders_that_are_none(tmp_path: Path) -> None:
    assert refused("no_such_folder", tmp_path / "gone") == f"{tmp_path / 'gone'}: no such folder"
    assert "no picture in this folder; endings that are read: .avif .bmp" in refused("no_picture", tmp_path)
    touch(tmp_path, "a.png")
    assert "is a file, but should be a folder" in refused("not_a_folder", tmp_path / "a.png")


@pytest.mark.parametrize(
    ("row", "message", "code"),
    [
        ('{"file_name": "a.png"', "metadata.jsonl:2: not JSON", "metadata_not_json"),
        ("[" * 100_000, "metadata.jsonl:2: not JSON", "metadata_not_json"),
        ("[1]", "metadata.jsonl:2: should be an object", "metadata_not_object"),
        ({"text": "a cat"}, "metadata.jsonl:2: no 'file_name'", "metadata_field_missing"),
        (
            {"image": "a.png", "text": "a cat"},
            "metadata.jsonl:2: no 'file_name'; call 'image' 'file_name'",
            "metadata_field_missing",
        ),
        ({"file_name": "a.png"}, "metadata.jsonl:2: no 'text'", "metadata_field_missing"),
        (
            {"file_name": "a.png", "caption": "a cat"},
            "metadata.jsonl:2: no 'text'; call 'caption' 'text'",
            "metadata_field_missing",
        ),
        (
            {"file_name": "a.png", "txt": "a cat"},
            "metadata.jsonl:2: no 'text'; call 'txt' 'text'",
            "metadata_field_missing",
        ),
        (
            {"file_name": "gone.png", "text": "a cat"},
            "metadata.jsonl:2: no such file: gone.png",
            "metadata_file_missing",
        ),
        (
            {"file_name": "../a.png", "text": "a cat"},
            "metadata.jsonl:2: ../a.png leads out of its folder",
            "metadata_file_outside",
        ),
        (
            {"file_name": "/etc/passwd", "text": "a cat"},
            "metadata.jsonl:2: /etc/passwd leads out of its folder",
            "metadata_file_outside",
        ),
        (
            {"file_name": 4, "text": "a cat"},
            "metadata.jsonl:2: 'file_name' should be the name of a file",
            "metadata_file_name",
        ),
        (
            {"file_name": "a\0.png", "text": "a cat"},
            "metadata.jsonl:2: 'file_name' should be the name of a file",
            "metadata_file_name",
        ),
        (
            {"file_name": "a.png", "text": 4},
            "metadata.jsonl:2: 'text' should be a caption or a list of captions",
            "metadata_caption",
        ),
        (
            {"file_name": "a.png", "text": ["a", 4]},
            "metadata.jsonl:2: 'text' should be a caption or a list",
            "metadata_caption",
        ),
    ],
)
def test_a_faulty_line_is_named(tmp_path: Path, row: object, message: str, code: str) -> None:
    touch(tmp_path, "a.png", "b.png")
    write_metadata(tmp_path, {"file_name": "b.png", "text": "a dog"}, row)
    assert message in refused(code, tmp_path, "tok")


def test_captions_that_are_not_utf_8(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    (tmp_path / "a.txt").write_bytes("a café".encode("latin-1"))
    (rejected,) = read_source(SourceConfig(path=tmp_path), "tok").rejected
    assert rejected.path == tmp_path / "a.png"
    assert rejected.reason == f"its caption file {tmp_path / 'a.txt'}: not UTF-8 at byte 5; save it as UTF-8"
    (tmp_path / "metadata.jsonl").write_bytes('{"file_name": "a.png", "text": "é"}'.encode("utf-16-le"))
    with raises_code("files.not_utf8") as caught:
        listed(tmp_path, "tok")
    assert caught.value.where == str(tmp_path / "metadata.jsonl")


def test_a_picture_without_caption_needs_a_trigger(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{letter}.png" for letter in "abcde"))
    (tmp_path / "b.txt").write_text("a cat")
    (tmp_path / "a.txt").write_text(" \n")
    message = refused("no_caption", tmp_path)
    assert "4 of 5 pictures have no caption: " in message
    assert "a.txt, " in message and "d.png and 1 more; write a .txt beside each, or give" in message
    assert "--trigger" in message
    assert captions(tmp_path, "tok") == {
        "a.png": ("tok",),
        "b.png": ("a cat, tok",),
        "c.png": ("tok",),
        "d.png": ("tok",),
        "e.png": ("tok",),
    }


@pytest.mark.parametrize("nothing", [None, "", " ", [], [""]])
def test_a_line_without_caption_needs_a_trigger(tmp_path: Path, nothing: object) -> None:
    touch(tmp_path, "a.png")
    write_metadata(tmp_path, {"file_name": "a.png", "text": nothing})
    assert "1 of 1 pictures have no caption" in refused("no_caption", tmp_path)
    assert "metadata.jsonl:1" in refused("no_caption", tmp_path)
    assert captions(tmp_path, "tok") == {"a.png": ("tok",)}


def test_files_that_may_be_meant_as_captions_are_named_where_none_is_found(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    (tmp_path / "a.json").write_text("{}")
    message = refused("no_caption", tmp_path)
    assert f"write a .txt beside each (not read, though they look like captions: {tmp_path / 'a.json'} (" in message


def test_half_a_character_is_refused_and_a_whole_one_is_not(tmp_path: Path) -> None:
    """JSON may write an emoji as the two halves of its UTF-16 pair; one alone is no text."""
    touch(tmp_path, "a.png")
    (tmp_path / "metadata.jsonl").write_text(r'{"file_name": "a.png", "text": "a \ud83d\ude00"}')
    assert captions(tmp_path) == {"a.png": ("a \U0001f600",)}
    for text in (r'"a \ud83d"', r'["a cat", "\ude00 a"]'):
        (tmp_path / "metadata.jsonl").write_text(f'\n{{"file_name": "a.png", "text": {text}}}')
        assert r"metadata.jsonl:2: 'text' has half a character, \ud" in refused("half_character", tmp_path, "tok")


def test_half_a_character_in_a_text_file_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    (tmp_path / "a.txt").write_bytes(b"a \xed\xa0\xbd")
    assert "not UTF-8 at byte 2" in read_source(SourceConfig(path=tmp_path), "tok").rejected[0].reason


class _Inventory:
    """A kind of source for a file that has nothing in common with a folder."""

    def list_pictures(self, config: SourceConfig) -> Listing | None:
        path = config.path
        if path.suffix != ".inventory":
            return None
        rows = [line.split("=") for line in path.read_text().splitlines()]
        return Listing(tuple(Entry(Path(name), (text,) if text else (), captions_at=f"{path}") for name, text in rows))


def test_another_kind_of_source_needs_its_class_and_a_place_in_the_registry(tmp_path: Path) -> None:
    path, sources = tmp_path / "all.inventory", (_Inventory(), *SOURCES)
    path.write_text("a.png=a cat\nb.png=")
    config = SourceConfig(path=path, repeats=2)
    found = read_source(config, "tok", sources).entries
    assert [(one.path.name, one.captions, one.repeats) for one in found] == [
        ("a.png", ("a cat, tok",), 2),
        ("b.png", ("tok",), 2),
    ]
    with raises_code("data.no_caption"):
        read_source(config, None, sources)
    with raises_code("data.not_a_folder"):
        read_source(config, "tok")
    touch(tmp_path, "a.png")
    assert read_source(SourceConfig(path=tmp_path), "tok", sources) == listed(tmp_path, "tok")


def write_toml(path: Path, text: str) -> Path:
    path.write_text(text, "utf-8")
    return path


def test_a_dataset_file_of_kohyas_scripts(tmp_path: Path) -> None:
    """Keys are inherited, folders are relative to the file, folders below and other endings are not read."""
    touch(tmp_path, "birds/a.png", "birds/b.jpg", "birds/b.txt", "birds/below/c.png", "cats/d.png", "cats/e.png")
    (tmp_path / "birds/a.caption").write_text("a red bird\n")
    (tmp_path / "cats/d.png.txt").write_text("a grey cat")
    path = write_toml(
        tmp_path / "dataset.TOML",
        """
        [general]
        shuffle_caption = true
        num_repeats = 2
        [[datasets]]
        resolution = 512
        class_tokens = "zk bird"
        [[datasets.subsets]]
        image_dir = "birds"
        caption_prefix = "zk"
        [[datasets]]
        [[datasets.subsets]]
        image_dir = 'cats'
        num_repeats = 5
        caption_extension = ".txt"
        class_tokens = "cat"
        caption_suffix = "drawn"
        """,
    )
    found = read_source(SourceConfig(path=path, repeats=3), None)
    assert [(one.path.name, one.captions, one.repeats) for one in found.entries] == [
        ("a.png", ("zk a red bird",), 6),
        ("b.jpg", ("zk zk bird",), 6),
        ("d.png", ("a grey cat drawn",), 15),
        ("e.png", ("cat drawn",), 15),
    ]
    ours, whole, unread = found.notes
    assert ours.endswith("these count for a whole run, so set them there: resolution = 512 as data.resolution=512")
    assert whole.startswith("captions without ',' are one tag")
    assert str(tmp_path / "birds/b.txt") in unread and "caption_extension is '.caption'" in unread


def test_what_a_kohya_file_says_of_tags_is_done_and_what_it_says_of_a_run_is_named(tmp_path: Path) -> None:
    """Each folder's own words count for its own pictures; of what the file is silent of, the source's."""
    touch(tmp_path, "one/a.png", "one/a.caption", "two/b.png", "two/b.caption")
    for name in ("one/a", "two/b"):
        (tmp_path / f"{name}.caption").write_text("zk;red;round;small", "utf-8")
    path = tmp_path / "dataset.toml"
    path.write_text(
        """
        [general]
        flip_aug = true
        color_aug = false
        random_crop = true
        caption_dropout_rate = 0.1
        enable_bucket = true
        [[datasets]]
        resolution = [832, 1216]
        [[datasets.subsets]]
        image_dir = "one"
        shuffle_caption = true
        keep_tokens = 1
        caption_separator = ";"
        caption_tag_dropout_rate = 0.25
        [[datasets.subsets]]
        image_dir = "two"
        """,
        "utf-8",
    )
    found = read_source(SourceConfig(path=path, tag_orders=3), None)
    one, two = found.entries
    assert [tags.rules for tags in one.tags] == [TagRules(";", shuffle=True, keep=1, dropout=0.25, orders=3)]
    assert two.tags == () and two.captions == ("zk;red;round;small",)
    ours, others = found.notes
    for told in ("caption_dropout_rate = 0.1 as data.caption_dropout=0.1", "flip_aug = true as data.flip=true"):
        assert told in ours
    assert "random_crop = true as data.crop=random" in ours and "color_aug" not in ours
    assert "resolution = [832, 1216] as data.resolution=832x1216" in ours and others.endswith(": enable_bucket")


SUBSET = '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "."\n'


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("= 1", "not_toml"),
        ("a = " + "[" * 100_000, "not_toml"),
        ("[general]\n", "toml_without_subsets"),
        ("[[datasets]]\n", "toml_without_subsets"),
        ("datasets = 4", "toml_wrong_type"),
        ("datasets = [4]", "toml_wrong_type"),
        ("general = 4\n" + SUBSET, "toml_wrong_type"),
        ("[[datasets]]\nsubsets = 4", "toml_wrong_type"),
        (SUBSET.replace("image_dir", "image_dirs"), "toml_without_folder"),
        (SUBSET.replace('"."', "4"), "toml_wrong_type"),
        (SUBSET.replace('"."', '"gone"'), "no_such_folder"),
        (SUBSET + "num_repeats = true", "toml_wrong_type"),
        (SUBSET + "num_repeats = 0", "toml_wrong_value"),
        (SUBSET + "shuffle_caption = 1", "toml_wrong_type"),
        (SUBSET + 'caption_tag_dropout_rate = "a"', "toml_wrong_type"),
        (SUBSET + "caption_tag_dropout_rate = 2", "toml_wrong_value"),
        (SUBSET + "keep_tokens = -1", "toml_wrong_value"),
        (SUBSET + 'caption_extension = "txt"', "toml_wrong_value"),
        (SUBSET + 'caption_extension = "./x"', "toml_wrong_value"),
        (SUBSET + "is_reg = true", "toml_unsupported"),
        (SUBSET, "no_caption"),
    ],
)
def test_a_faulty_dataset_file_is_refused(tmp_path: Path, text: str, code: str) -> None:
    touch(tmp_path, "a.png")
    message = refused(code, write_toml(tmp_path / "dataset.toml", text))
    assert str(tmp_path) in message


def test_a_dataset_file_trains_as_its_folders_do(tiny_pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "birds"
    folder.mkdir()
    for picture in tiny_pictures.glob("*.png"):
        shutil.copy(picture, folder)
        (folder / f"{picture.stem}.txt").write_text(picture.stem)
    path = write_toml(
        tmp_path / "dataset.toml",
        f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{folder}'\ncaption_extension = '.txt'\nnum_repeats = 2",
    )
    got = survey(DataConfig(sources=(SourceConfig(path=path),)))
    wanted = survey(DataConfig(sources=(SourceConfig(path=folder, repeats=2),)))
    assert got.train.fingerprint() == wanted.train.fingerprint() and got.train.samples
