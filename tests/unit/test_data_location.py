"""Bytes are read from files, parts of files and members of zips alike, by many at the same time, and never too many."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from veneer.data.location import AT_LOCATION, Location
from veneer.data.manifest import Sample
from veneer.data.sources.protocol import Entry
from veneer.data.unreadable import Unreadable

CONTENTS = {f"folder {number}/{number}.bin": random.Random(number).randbytes(997 * number) for number in range(1, 9)}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "all.zip"
    write(path)
    return path


def write(path: Path, method: int = zipfile.ZIP_DEFLATED, contents: dict[str, bytes] = CONTENTS) -> None:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in contents.items():
            file.writestr(name, content)


def test_a_file_a_part_and_a_member_give_their_bytes(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "whole").write_bytes(b"0123456789")
    places = {Location(tmp_path / "whole"): b"0123456789", Location(tmp_path / "whole", None, 2, 3): b"234"}
    places |= {Location(archive, name): content for name, content in CONTENTS.items()}
    for place, content in places.items():
        assert place.read() == place.read(len(content)) == content
        assert place.head(2) == content[:2]
        assert pickle.loads(pickle.dumps(place)) == place
        with pytest.raises(Unreadable, match="too large"):
            place.read(len(content) - 1)


def test_it_names_the_place_and_has_an_order() -> None:
    places = [Location(Path("a.png")), Location(Path("b.zip"), "x/1.png"), Location(Path("b.zip"), "x/2.png")]
    assert sorted(reversed(places)) == places
    assert [str(place) for place in places] == ["a.png", "b.zip/x/1.png", "b.zip/x/2.png"]
    assert places[1].path == Path("b.zip/x/1.png")


def test_a_part_that_is_not_there_is_told(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"0123")
    with pytest.raises(Unreadable, match="cut short: 2 bytes"):
        Location(tmp_path / "short", "a", 2, 4).read()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_many_threads_read_one_archive(tmp_path: Path, method: int) -> None:
    write(tmp_path / "a.zip", method)
    names = [*CONTENTS] * 20
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda name: Location(tmp_path / "a.zip", name).read(), names)
    assert list(found) == [CONTENTS[name] for name in names]


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork")
def test_forked_processes_read_what_their_parent_opened(archive: Path) -> None:
    places = [Location(archive, name) for name in CONTENTS]
    assert [place.read() for place in places] == [*CONTENTS.values()]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(Location.read, places * 5) == [*CONTENTS.values()] * 5


def test_the_directory_is_read_once_until_the_file_changes(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[object] = []
    true = zipfile.ZipFile.__init__

    def counted(self: zipfile.ZipFile, *args: object, **keywords: object) -> None:
        opened.append(self)
        true(self, *args, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(zipfile.ZipFile, "__init__", counted)
    for _ in range(3):
        assert [Location(archive, name).read() for name in CONTENTS] == [*CONTENTS.values()]
    assert len(opened) == 1
    beside = archive.with_name("new.zip")
    write(beside, contents={"folder 1/1.bin": b"new"})
    os.replace(beside, archive)
    assert Location(archive, "folder 1/1.bin").read() == b"new"
    with pytest.raises(Unreadable, match=r"no longer in .*all\.zip"):
        Location(archive, "folder 2/2.bin").read()


def corrupted(change: Callable[[bytearray], None]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        content = bytearray(path.read_bytes())
        change(content)
        path.write_bytes(content)

    return apply


def field(record: bytes, at: int, value: bytes) -> Callable[[Path], None]:
    """Change some bytes of the first record of a kind."""

    def change(content: bytearray) -> None:
        start = content.index(record) + at
        content[start : start + len(value)] = value

    return corrupted(change)


DIRECTORY = b"PK\x01\x02"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (field(DIRECTORY, 8, b"\x01\x00"), "encrypted"),
        (field(DIRECTORY, 10, b"\x0c\x00"), "method 12, which is not read"),
        (field(DIRECTORY, 24, b"\x00\x00\x00\x10"), "would grow from"),
        (field(DIRECTORY, 24, b"\x00\x00\x00\x00"), "not those that the archive's directory tells of"),
        (field(DIRECTORY, 24, b"\x05\x00\x00\x01"), "not those that the archive's directory tells of"),
        (field(DIRECTORY, 16, b"\0\0\0\0"), "not those that the archive's directory tells of"),
        (field(b"PK\x03\x04", 0, b"no"), "points to where it is not"),
        (field(DIRECTORY, 38, b"\0\0\xff\xa1"), "a link, which is not followed"),
        (field(DIRECTORY, 38, b"\0\0\xff\x11"), "no regular file"),
        (field(b"PK\x03\x04", 45, b"\xff" * 9), "broken: "),
        (corrupted(lambda content: content.__delitem__(slice(-30, None))), "cut short"),
        (corrupted(lambda content: content.__setitem__(slice(None), b"no archive")), "broken: "),
        (field(b"PK\x05\x06", 12, b"\xff\xff\xff\x0f"), "its directory has"),
    ],
)
def test_what_is_wrong_with_an_archive_is_told(archive: Path, spoil: Callable[[Path], None], words: str) -> None:
    spoil(archive)
    with pytest.raises(Unreadable, match=words):
        Location(archive, "folder 1/1.bin").read()


def test_members_that_share_bytes_are_a_bomb(archive: Path) -> None:
    content = archive.read_bytes()
    first, second = (content.index(DIRECTORY, place) for place in (0, content.index(DIRECTORY) + 1))
    field(DIRECTORY, 42, content[second + 42 : second + 46])(archive)
    assert first < second
    for number in (1, 2):
        with pytest.raises(Unreadable, match="as in a zip bomb"):
            Location(archive, f"folder {number}/{number}.bin").read()
    assert Location(archive, "folder 3/3.bin").read() == CONTENTS["folder 3/3.bin"]


def test_never_more_is_inflated_than_the_directory_tells_of(archive: Path) -> None:
    write(archive, contents={"a.bin": bytes(2**25)})
    field(DIRECTORY, 24, (1000).to_bytes(4, "little"))(archive)
    with pytest.raises(Unreadable, match="not those"):
        Location(archive, "a.bin").read()
    assert Location(archive, "a.bin").head(10) == bytes(10)


@pytest.mark.parametrize(
    ("raw", "utf8", "name"),
    [
        ("é\n😀".encode(), True, "é\n😀"),
        ("é😀".encode(), False, "é😀"),  # as macOS writes it
        (b"\x82", False, "é"),  # cp437, as DOS does
        (b"a\\b.png", False, "a/b.png"),
    ],
)
def test_names_are_read_in_the_encoding_that_they_have(tmp_path: Path, raw: bytes, utf8: bool, name: str) -> None:
    info = zipfile.ZipInfo("x" * len(raw))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(info, b"content")
    content = (tmp_path / "a.zip").read_bytes().replace(b"x" * len(raw), raw)
    (tmp_path / "a.zip").write_bytes(content)
    if utf8:
        field(DIRECTORY, 8, b"\x00\x08")(tmp_path / "a.zip")
    assert Location(tmp_path / "a.zip", name).read() == b"content"


def test_a_path_that_is_left_out_is_the_locations_own() -> None:
    place = Location(Path("a.tar"), "b/1.jpg", 512, 10)
    sample = Sample("1", AT_LOCATION, ("a cat",), 8, 8, 1, location=place)
    given = Sample("1", Path("a.tar/b/1.jpg"), ("a cat",), 8, 8, 1, location=place)
    assert sample == given and repr(sample) == repr(given)
    assert sample.path == given.path and pickle.loads(pickle.dumps(sample)) == given
    assert (sample.given_path, given.given_path) == (AT_LOCATION, given.path)
    assert Entry(AT_LOCATION, (), location=place).revised(repeats=2) == Entry(given.path, (), 2, location=place)
    with pytest.raises(AttributeError, match="has no 'colour'"):
        _ = sample.colour  # type: ignore[attr-defined]
