"""A zip of pictures gives what its folder would, whatever else somebody put into it."""

from __future__ import annotations

import io
import json
import os
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.errors import raises_code
from veneer.config.data_config import DataConfig
from veneer.config.source_config import SourceConfig
from veneer.data.preflight import Dataset, survey
from veneer.data.sources.protocol import Listing
from veneer.data.sources.registry import read_source
from veneer.data.transform import load_centered, load_centered_references


def png(number: int = 0) -> bytes:
    content = io.BytesIO()
    image = Image.new("RGB", (16, 16), (number % 256, 99, number // 256))
    image.putpixel((number % 16, number // 16 % 16), (255, 0, 255))
    image.save(content, "PNG")
    return content.getvalue()


def pack(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path


def made(path: Path, members: dict[str, bytes] | list[tuple[str | zipfile.ZipInfo, bytes]]) -> Path:
    pairs = members.items() if isinstance(members, dict) else members
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, content in pairs:
            archive.writestr(name, content)
    return path


def listed(path: Path, trigger: str | None = "tok") -> Listing:
    return read_source(SourceConfig(path=path), trigger)


def seen(dataset: Dataset, root: Path) -> list[object]:
    samples = [*dataset.train.samples, *dataset.held_out.samples]
    return sorted((one.path.relative_to(root).as_posix(), one.id, one.captions, one.repeats) for one in samples)


FOLDERS: dict[str, dict[str, bytes]] = {
    "caption files": {"a.png": png(1), "a.txt": b"a cat\na grey cat", "b/c.PNG": png(2), "b/c.caption": "é".encode()},
    "a list": {"a.png": png(1), "in/b.png": png(2), "metadata.jsonl": b'{"file_name": "in/b.png", "text": "a dog"}'},
    "a table": {"x/a.png": png(1), "x/metadata.csv": b"file_name;text\na.png;a cat", "b.png": png(2), "b.txt": b"b"},
    "of one folder": {f"pictures/{n}.png": png(n) for n in range(12)},
    "json": {"a.png": png(1), "a.json": b'{"caption": "a cat", "tags": ["grey"]}'},
    "what systems leave": {
        "a.png": png(1),
        "__MACOSX/._a.png": b"\0\5\x16\7",
        ".DS_Store": b"x",
        "@eaDir/b.png": png(),
    },
    "masks": {"a.png": png(1), "a-masklabel.png": png(2)},
    "strays": {"a.png": png(1), "b": png(2), "notes.csv": b"a.png,cat", "b.zip": b"PK\5\6" + bytes(18), "c.heic": b"-"},
    "broken pictures": {"a.png": png(1), "b.png": b"", "c.png": png(2)[:60], "d.jpg": b"<html>404", "e.txt": b"\xff"},
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_zip_is_read_as_its_folder_is(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "pictures"
    for file, content in FOLDERS[name].items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)
    archive = pack(folder, tmp_path / "pictures.zip")
    config, packed = (DataConfig(sources=(SourceConfig(path=path),), trigger="tok") for path in (folder, archive))
    expected, found = survey(config), survey(packed)
    assert seen(found, archive) == seen(expected, folder)

    def told(dataset: Dataset, root: Path) -> list[str]:
        notes = [*dataset.notes, *(f"{one.path}: {one.reason}" for one in dataset.train.rejected)]
        # what to do with an archive in the other is not the same
        return [note.replace(str(root), "X").partition(" (name each")[0].partition(" (unpack")[0] for note in notes]

    assert told(found, archive) == told(expected, folder)
    for here, there in zip(expected.train.samples, found.train.samples, strict=True):
        assert torch.equal(load_centered(here, config, (16, 16)), load_centered(there, packed, (16, 16)))


def test_nothing_is_unpacked_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = made(tmp_path / "a.zip", {"a.png": png(), "a.txt": b"a cat"})
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    archive.chmod(0o400)
    survey(DataConfig(sources=(SourceConfig(path=archive),)))
    assert os.listdir(tmp_path) == ["a.zip"]


def test_pairs_may_lie_in_zips(tmp_path: Path) -> None:
    after = made(tmp_path / "after.zip", {"deep/a.png": png(1), "deep/a.txt": b"make it red"})
    before = made(tmp_path / "before.zip", {"deep/a.png": png(2)})
    config = DataConfig(sources=(SourceConfig(path=after, references=(before,)),))
    (sample,) = survey(config).train.samples
    assert [str(one.path) for one in sample.references] == [f"{before}/deep/a.png"]
    row = {"file_name": "a.png", "reference_file_name": "b.png", "text": "make it red"}
    listed_pair = {"a.png": png(1), "b.png": png(2), "metadata.jsonl": json.dumps(row).encode()}
    own = DataConfig(sources=(SourceConfig(path=made(tmp_path / "both.zip", listed_pair)),))
    (other,) = survey(own).train.samples
    assert torch.equal(
        load_centered_references(sample, config, (16, 16))[0], load_centered_references(other, own, (16, 16))[0]
    )


def test_a_zip_may_be_held_out(tmp_path: Path) -> None:
    train, held = (made(tmp_path / f"{number}.zip", {"a.png": png(number)}) for number in (1, 2))
    dataset = survey(DataConfig(sources=(SourceConfig(path=train),), held_out=held, trigger="tok"))
    assert [str(one.path) for one in dataset.held_out.samples] == [f"{held}/a.png"]


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o120777 << 16
    return info


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../out.png", "leads out of the archive"),
        ("a/../../out.png", "leads out of the archive"),
        ("/etc/out.png", "leads out of the archive"),
        ("C:/out.png", "leads out of the archive"),
        ("C:out.png", "leads out of the archive"),
        ("..\\out.png", "leads out of the archive"),
        ("\\\\server\\share\\out.png", "leads out of the archive"),
        ("deep/" * 101 + "out.png", "lies in more than 100 folders"),
        (link("out.png"), "a link, which is not followed"),
        (link("out.txt"), "a link, which is not followed"),
    ],
)
def test_what_leads_out_of_it_is_put_aside(tmp_path: Path, name: str | zipfile.ZipInfo, words: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out.png").write_bytes(png(1))
    content = b"../out.png" if isinstance(name, zipfile.ZipInfo) else png(2)
    path = made(tmp_path / "in" / "a.zip", [("good.png", png(3)), (name, content)])
    found = listed(path)
    assert [entry.path for entry in found.entries] == [path / "good.png"]
    (rejected,) = found.rejected
    assert words in rejected.reason


def test_a_list_cannot_name_what_leads_out_of_it(tmp_path: Path) -> None:
    rows = b'{"file_name": "../out.png", "text": "x"}'
    path = made(tmp_path / "a.zip", {"a.png": png(), "../out.png": png(1), "metadata.jsonl": rows})
    with raises_code("data.metadata_file_outside"):
        listed(path)


def test_names_of_any_kind_are_kept(tmp_path: Path) -> None:
    names = ["a\nb.png", "😀.png", "é" * 127 + "é.png", "x" * 251 + ".png", " .png", "a'b\"c.png", "-rf.png"]
    members: dict[str, bytes] = {}
    for number, name in enumerate(names):
        members |= {name: png(number), f"{name.removesuffix('.png')}.txt": f"caption {number}".encode()}
    found = survey(DataConfig(sources=(SourceConfig(path=made(tmp_path / "a.zip", members)),), held_out=0.0))
    assert {one.captions[0] for one in found.train.samples} == {f"caption {number}" for number in range(len(names))}
    assert not found.train.rejected and not found.notes


def test_of_a_name_that_is_there_twice_the_last_counts_and_it_is_said(tmp_path: Path) -> None:
    path = made(tmp_path / "a.zip", [("a.png", png(1)), ("./a.png", png(2)), ("a.png", png(3))])
    found = survey(DataConfig(sources=(SourceConfig(path=path),), trigger="tok", held_out=0.0))
    alone = survey(DataConfig(sources=(SourceConfig(path=made(tmp_path / "c.zip", {"a.png": png(3)})),), trigger="tok"))
    assert [one.id for one in found.train.samples] == [one.id for one in alone.train.samples]
    (note,) = found.notes
    assert "twice in the archive, and the last of each is read" in note and "a.png" in note


def test_a_nested_archive_is_named(tmp_path: Path) -> None:
    inner = made(tmp_path / "inner.zip", {"b.png": png(2)}).read_bytes()
    found = listed(made(tmp_path / "a.zip", {"a.png": png(1), "more/inner.zip": inner}))
    assert [entry.path.name for entry in found.entries] == ["a.png"]
    assert found.notes == (f"archives among the pictures are not read: {tmp_path}/a.zip/more/inner.zip (unpack them)",)
    with raises_code("data.no_picture", "unpack inner.zip"):
        listed(made(tmp_path / "b.zip", {"inner.zip": inner}))


@pytest.mark.parametrize("content", [b"PK\5\6" + bytes(18), b"PK\3\4", b"PK\3\4" + bytes(100)])
def test_an_archive_without_anything_in_it_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    with raises_code("data.no_picture" if content.startswith(b"PK\5") else "data.broken_archive") as caught:
        listed(tmp_path / "a.zip")
    assert str(tmp_path / "a.zip") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("part", range(10))
def test_one_that_is_cut_short_is_said_to_be(tmp_path: Path, part: int) -> None:
    whole = made(tmp_path / "a.zip", {f"{number}.png": png(number) for number in range(20)}).read_bytes()
    (tmp_path / "a.zip").write_bytes(whole[: max(4, len(whole) * part // 10)])
    with raises_code("data.broken_archive", "cut short"):
        listed(tmp_path / "a.zip")


def test_a_zip_of_the_large_form_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 40)
    path = made(tmp_path / "a.zip", {f"{number}.png": png(number) for number in range(3)})
    assert b"PK\x06\x06" in path.read_bytes()
    found = survey(DataConfig(sources=(SourceConfig(path=path),), trigger="tok"))
    assert len(found.train.samples) == 3 and not found.train.rejected


def test_a_bomb_is_named_and_never_inflated(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", png())
        with archive.open("bomb.png", "w") as member:
            for _ in range(100):
                member.write(bytes(2**20))
    found = survey(DataConfig(sources=(SourceConfig(path=path),), trigger="tok"))
    assert [one.path.name for one in found.train.samples] == ["a.png"]
    (rejected,) = found.train.rejected
    assert rejected.path == path / "bomb.png" and "as a zip bomb does" in rejected.reason


def test_masks_may_lie_in_it_or_in_a_zip_of_their_own(tmp_path: Path) -> None:
    mask = io.BytesIO()
    Image.new("L", (16, 16), 128).save(mask, "PNG")
    beside = made(tmp_path / "a.zip", {"a.png": png(1), "a-masklabel.png": mask.getvalue()})
    masks = made(tmp_path / "masks.zip", {"a.png": mask.getvalue()})
    alone = made(tmp_path / "b.zip", {"a.png": png(1)})
    row = {"file_name": "a.png", "mask_file_name": "m.png", "text": "x"}
    named = {"a.png": png(1), "m.png": mask.getvalue(), "metadata.jsonl": json.dumps(row).encode()}
    sources = (
        SourceConfig(path=beside, masks="beside"),
        SourceConfig(path=alone, masks=masks),
        SourceConfig(path=made(tmp_path / "c.zip", named)),
    )
    for source in sources:
        (sample,) = survey(DataConfig(sources=(source,), trigger="tok", held_out=0.0)).train.samples
        assert sample.mask is not None


def test_a_mask_or_reference_that_leads_out_puts_its_picture_aside(tmp_path: Path) -> None:
    for folder in ("pictures", "others", "outside"):
        (tmp_path / folder).mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "pictures" / name).write_bytes(png(ord(name[0])))
        (tmp_path / "outside" / name).write_bytes(png(9))
    (tmp_path / "others" / "a.png").symlink_to(tmp_path / "outside" / "a.png")
    (tmp_path / "others" / "b.png").write_bytes(png(10))
    for option in ("masks", "references"):
        options = {"path": tmp_path / "pictures", option: tmp_path / "others"}
        found = read_source(SourceConfig.model_validate(options), "tok")
        assert [entry.path.name for entry in found.entries] == ["b.png"]
        assert [one.path.name for one in found.rejected] == ["a.png"]
        followed = read_source(SourceConfig.model_validate({**options, "follow_links": True}), "tok")
        assert [entry.path.name for entry in followed.entries] == ["a.png", "b.png"]
    (tmp_path / "pictures" / "c.png").symlink_to(tmp_path / "outside" / "a.png")
    row = {"file_name": "a.png", "reference_file_name": "c.png", "text": "x"}
    (tmp_path / "pictures" / "metadata.jsonl").write_text(json.dumps(row))
    listing = read_source(SourceConfig(path=tmp_path / "pictures"), None)
    assert not listing.entries
    assert any(one.path.name == "a.png" and "its reference" in one.reason for one in listing.rejected)
