"""Shards as webdataset's own writer makes them, and tars that are at fault."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import webdataset
from PIL import Image

from tests.errors import raises_code
from veneer.config.data_config import DataConfig
from veneer.config.source_config import SourceConfig
from veneer.data.preflight import survey
from veneer.data.sources.protocol import Listing
from veneer.data.sources.registry import read_source


def picture(number: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16 + number, 16), (number * 20 % 256, 90, 30)).save(file, kind)
    return file.getvalue()


def listed(path: Path, trigger: str | None = None, **keys: Any) -> Listing:
    return read_source(SourceConfig(path=path, **keys), trigger)


def pack(path: Path, *members: tuple[str, bytes] | tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def test_shards_of_webdatasets_own_writer(tmp_path: Path) -> None:
    """Same pictures, to the byte, with the same captions in the same order as the library itself reads them."""
    with webdataset.ShardWriter(f"{tmp_path}/s-%03d.tar", maxcount=4, verbose=0) as writer:
        for number in range(10):
            caption = f"a cat {number}"
            text: dict[str, Any] = {"txt": caption} if number % 2 else {"json": {"caption": caption}}
            kind = ("png", "jpg", "webp")[number % 3]
            content = picture(number, {"jpg": "JPEG"}.get(kind, kind))
            writer.write({"__key__": f"deep/n{number:03d}", kind: content, "cls": number, **text})
    theirs = list(webdataset.WebDataset([str(one) for one in sorted(tmp_path.iterdir())], shardshuffle=False))
    entries = listed(tmp_path).entries
    assert len(entries) == len(theirs) == 10
    for entry, sample in zip(entries, theirs, strict=True):
        field = next(name for name in ("png", "jpg", "webp") if name in sample)
        caption = sample["txt"].decode() if "txt" in sample else json.loads(sample["json"])["caption"]
        assert entry.location.read() == sample[field]
        assert (*entry.captions,) == (caption,)
        assert str(entry.path) == f"{sample['__url__']}/{sample['__key__']}.{field}"
    assert listed(tmp_path).notes == (f"{tmp_path}: members of these fields are not read: .cls",)
    pattern = listed(tmp_path / "s-{000..002}.tar")
    assert pattern.entries == entries
    assert len(listed(tmp_path / "s-001.tar").entries) == 4
    assert len(survey(DataConfig(sources=(SourceConfig(path=tmp_path),), held_out=0.0)).train.samples) == 10


def test_both_kinds_of_captions_count_and_lines_are_captions_of_their_own(tmp_path: Path) -> None:
    text = "a cat\r\n\na hound\n".encode("utf-8-sig")
    shard = pack(tmp_path / "a.tar", ("1.txt", text), ("1.json", b'{"caption": "a dog"}'), ("1.png", b"-"))
    assert [one.captions for one in listed(shard).entries] == [("a cat", "a hound", "a dog")]
    assert [one.captions for one in listed(shard, captions="whole").entries] == [("a cat a hound", "a dog")]
    assert [one.captions for one in listed(shard, columns={"text": "json"}).entries] == [("a dog",)]


def test_names_with_dots_of_their_own(tmp_path: Path) -> None:
    shard = pack(tmp_path / "a.tar", ("a.v2.JPG", b"-"), ("a.v2.txt", b"a cat"), ("__meta__/x.txt", b"-"))
    assert [(one.location.member, one.captions) for one in listed(shard).entries] == [("a.v2.JPG", ("a cat",))]


def test_of_several_pictures_of_one_name_one_is_asked_for(tmp_path: Path) -> None:
    shard = pack(tmp_path / "a.tar", ("a.jpg", b"1"), ("a.png", b"2"), ("a.txt", b"a cat"))
    with raises_code("data.several_pictures", "columns: {image: jpg}"):
        listed(shard)
    assert [one.location.read() for one in listed(shard, columns={"image": "png"}).entries] == [b"2"]


def test_compressed_shards_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz"):
        pass
    for path in (tmp_path, tmp_path / "a.tar.gz"):
        with raises_code("data.shards_compressed"):
            listed(path)


def special(name: str, kind: bytes, linkname: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, linkname
    return info


def test_hostile_members_are_named_and_nothing_outside_is_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture(1))
    folder = tmp_path / "shards"
    folder.mkdir()
    pack(
        folder / "a.tar",
        ("good.png", picture(2)),
        special("link.png", tarfile.SYMTYPE, str(secret)),
        special("hard.png", tarfile.LNKTYPE, "../secret.png"),
        special("device.png", tarfile.CHRTYPE),
        special("pipe.png", tarfile.FIFOTYPE),
        ("/abs.png", picture(3)),
        ("../out.png", picture(3)),
        ("twice.png", picture(4)),
        ("twice.png", picture(5)),
        ("bad.png", picture(6)),
        ("bad.txt", b"\xff\xfe\xfd"),
    )
    found = listed(folder, "tok")
    assert [one.location.member for one in found.entries] == ["good.png", "twice.png"]
    reasons = {one.path.name: one.reason for one in found.rejected}
    assert reasons.keys() == {f"{n}.png" for n in ("link", "hard", "device", "pipe", "abs", "out", "twice", "bad")}
    assert all("\n" not in reason for reason in reasons.values())


def test_a_sparse_member_is_named(tmp_path: Path) -> None:
    info = tarfile.TarInfo("s.png")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "512"}
    content = b"0\n".ljust(512, b"\0")
    info.size = len(content)
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(content))
    assert "sparse" in listed(tmp_path / "a.tar", "tok").rejected[0].reason


@pytest.mark.parametrize("tenth", range(10))
def test_a_shard_cut_short_gives_what_is_whole_and_is_named(tmp_path: Path, tenth: int) -> None:
    pictures = [(f"{number}.png", picture(number)) for number in range(8)]
    whole = pack(tmp_path / "a.tar", *pictures).read_bytes().rstrip(b"\0")
    cut = len(whole) * tenth // 10
    (tmp_path / "a.tar").write_bytes(whole[:cut])
    found = listed(tmp_path / "a.tar", "tok")
    assert any(one.path == tmp_path / "a.tar" for one in found.rejected)
    assert [one.location.member for one in found.entries] == [name for name, _ in pictures[: len(found.entries)]]
    good = [one for one in found.entries if one.location.offset + one.location.size <= cut]  # type: ignore[operator]
    assert [one.location.read() for one in good] == [content for _, content in pictures[: len(good)]]
    assert len(found.entries) - len(good) <= 1


def test_a_broken_header_ends_no_shard_in_silence(tmp_path: Path) -> None:
    pack(tmp_path / "a.tar", ("0.png", picture(0)), ("1.png", picture(1)), ("2.png", picture(2)))
    content = bytearray((tmp_path / "a.tar").read_bytes())
    content[1024 : 1024 + 300] = b"x" * 300
    (tmp_path / "a.tar").write_bytes(content)
    found = listed(tmp_path / "a.tar", "tok")
    assert len(found.entries) == 1
    assert [one.path.name for one in found.rejected] == ["a.tar"] and "1,024" in found.rejected[0].reason


def test_missing_shards_are_counted(tmp_path: Path) -> None:
    pack(tmp_path / "s-00.tar", ("0.png", b"-"))
    with raises_code("data.no_such_shard", "2 of 3 shards are not there"):
        listed(tmp_path / "s-{00..02}.tar", "tok")
    with raises_code("data.no_picture"):
        listed(pack(tmp_path / "empty.tar", ("a.cls", b"1")), "tok")


def grey(level: int) -> bytes:
    file = io.BytesIO()
    mask = Image.new("L", (16, 16), 255)
    mask.paste(level, (0, 0, 8, 16))
    mask.save(file, "PNG")
    return file.getvalue()


def test_members_beside_pictures_are_their_masks_if_they_are_asked_for(tmp_path: Path) -> None:
    """As webdataset's writer packs ``mask.png`` beside ``png``; without ``masks`` they are named as not read."""
    with webdataset.ShardWriter(f"{tmp_path}/s-%03d.tar", verbose=0) as writer:
        for number, name in enumerate(("mask.png", "masklabel.png", None)):
            masks = {} if name is None else {name: grey(0)}
            writer.write({"__key__": f"n{number}", "png": picture(number), "txt": f"a cat {number}", **masks})
        writer.write({"__key__": "n3", "png": picture(3), "txt": "a", "mask.png": grey(0), "masklabel.png": grey(0)})
    found = listed(tmp_path, masks="beside")
    assert [one.mask is not None for one in found.entries] == [True, True, False]
    assert [one.mask.read() for one in found.entries if one.mask] == [grey(0)] * 2
    (rejected,) = found.rejected
    assert rejected.path.name == "n3.png" and "several masks" in rejected.reason
    plain = listed(tmp_path)
    assert [one.mask for one in plain.entries] == [None] * 4 and "mask.png" in "".join(plain.notes)
    with raises_code("data.masks_by_url"):
        listed(Path("memory://s-000.tar"), masks="beside")


def test_a_mask_in_a_shard_is_learned_by(tmp_path: Path) -> None:
    members = [("a.png", picture(0)), ("a.txt", b"a cat"), ("a.mask.png", grey(0))]
    shard = pack(tmp_path / "s.tar", *members)
    data = DataConfig.model_validate({"sources": [{"path": str(shard), "masks": "beside"}], "held_out": 0})
    (sample,) = survey(data).train.samples
    assert sample.mask is not None and sample.mask.share == 0.5
