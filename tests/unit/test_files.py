"""Paths mean what users mean; text files are read or refused by name; files are written whole or not at all."""

from __future__ import annotations

import inspect
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

import veneer
from tests.errors import raises_code
from veneer import files
from veneer.files import (
    atomic_write,
    open_home,
    opens_paths,
    read_utf8,
    remove_folder,
    user_path,
    write_folder,
    write_synced,
)


def test_writes_whole_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    atomic_write(path, b"one")
    atomic_write(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == ["file"]


def test_two_that_write_the_same_file_do_not_write_into_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one process, or of two that have the same number in two containers."""
    write, used = files.write_synced, []

    def other_comes_between(path: Path, content: bytes) -> None:
        used.append(path)
        if len(used) == 1:
            atomic_write(tmp_path / "file", b"other")
        write(path, content)

    monkeypatch.setattr(files, "write_synced", other_comes_between)
    atomic_write(tmp_path / "file", b"one")
    assert len(set(used)) == 2 and os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"one"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    atomic_write(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with raises_code("files.unwritable") as caught:
        atomic_write(path, b"new")
    assert str(caught.value) == f"{path}: cannot be written: No space left on device"
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_syncs_before_it_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (calls.append("sync"), fsync(descriptor))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("rename"), replace(a, b))[1])
    atomic_write(tmp_path / "file", b"x")
    assert calls == ["sync", "rename"]


def test_says_so_when_the_folder_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with raises_code("files.unwritable"):
        atomic_write(tmp_path / "file" / "inside", b"x")


def test_a_folder_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "above" / "folder"
    write_folder(path, {"one": b"1", "two": b"x" * (2**24 + 1)})
    assert sorted(os.listdir(path)) == ["one", "two"] and os.listdir(path.parent) == ["folder"]
    assert (path / "two").read_bytes() == b"x" * (2**24 + 1)
    write_folder(path, {"three": b""})
    assert os.listdir(path) == ["three"] and os.listdir(path.parent) == ["folder"]


def test_a_folder_that_fails_leaves_the_old_one_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "folder", {"one": b"1"})

    def full(descriptor: int, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with raises_code("files.unwritable"):
        write_folder(tmp_path / "folder", {"two": b"2"})
    assert os.listdir(tmp_path) == ["folder"] and os.listdir(tmp_path / "folder") == ["one"]


def test_a_write_that_is_cut_short_by_the_system_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: write(descriptor, bytes(content)[:3]))
    write_synced(tmp_path / "file", b"0123456789")
    assert (tmp_path / "file").read_bytes() == b"0123456789"


def test_a_folder_is_removed_name_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "folder", {"one": b"1"})
    monkeypatch.setattr("shutil.rmtree", lambda path, ignore_errors: None)
    remove_folder(tmp_path / "folder")
    assert os.listdir(tmp_path) == [".folder.old"]


def test_text_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfa caption")
    assert read_utf8(tmp_path / "a") == "a caption"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-32-be"])
@given(text=st.text(st.characters(exclude_characters="\0\ufeff", codec="utf-8")))
def test_text_is_read_by_its_byte_order_mark(encoding: str, text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        mark = "" if encoding in ("utf-8-sig", "utf-16", "utf-32") else "\ufeff"
        Path(folder, "a").write_bytes((mark + text).encode(encoding))
        assert read_utf8(Path(folder, "a")) == text


@pytest.mark.parametrize(
    "content",
    [
        "a cat".encode("utf-16-le"),
        "caf\xe9".encode("utf-16-le"),
        b"\xff\xfea",
        b"\xff\xfe\0\0a",
        b"\xff\xfe\0\xd8a\0",
        b"a\0",
    ],
)
def test_text_of_another_encoding_without_a_mark_or_a_broken_one(tmp_path: Path, content: bytes) -> None:
    """Letters of ASCII in UTF-16 are letters in UTF-8 as well, each with a NUL behind it."""
    (tmp_path / "a").write_bytes(content)
    with raises_code("files.not_utf8"):
        read_utf8(tmp_path / "a")


def test_text_that_is_not_utf_8(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("café".encode("latin-1"))
    with raises_code("files.not_utf8") as caught:
        read_utf8(tmp_path / "a")
    assert str(caught.value) == f"{tmp_path / 'a'}: not UTF-8 at byte 3; save it as UTF-8"


def test_text_that_is_not_there(tmp_path: Path) -> None:
    with raises_code("files.not_found") as caught:
        read_utf8(tmp_path / "a")
    assert str(caught.value).endswith("no such file")
    with raises_code("files.unreadable") as caught:
        read_utf8(tmp_path)
    assert "cannot be read: " in str(caught.value)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def test_a_users_path(home: Path) -> None:
    assert user_path("~") == user_path(Path("~")) == home
    assert user_path("~/a b/c") == home / "a b/c"
    assert user_path("a/~/b") == Path("a/~/b")
    assert open_home("~/sd") == str(home / "sd") and open_home("owner/name") == "owner/name"


@pytest.mark.skipif(os.name == "nt", reason="it asks the list of users")
def test_another_users_home_folder() -> None:
    import pwd

    assert user_path("~root/x") == Path(pwd.getpwnam("root").pw_dir, "x")


@pytest.mark.parametrize(
    ("path", "code", "words"),
    [
        ("~nobody_of_that_name/x", "files.no_home", "~nobody_of_that_name is nobody's home folder"),
        ("", "files.no_path", "is empty"),
        ("a\0b", "files.no_path", "zero byte"),
    ],
)
def test_what_is_no_path(path: str, code: str, words: str) -> None:
    with raises_code(code, words):
        user_path(path)


def test_functions_and_dataclasses_take_text_and_open_home(home: Path) -> None:
    @opens_paths
    def function(prompt: str, file: Path, *more: Path, out: Path | None = None, data: tuple[Path, ...] = ()) -> object:
        return prompt, file, more, out, data

    expected = ("~", home / "a", (home / "b",), home / "c", (home, Path("d")))
    assert function("~", "~/a", "~/b", out="~/c", data=("~", "d")) == expected  # type: ignore[arg-type]
    assert function("p", Path("x")) == ("p", Path("x"), (), None, ())

    @opens_paths
    @dataclass(frozen=True)
    class Options:
        name: str = "~"
        folder: Path | None = None

    assert Options(folder="~/x") == Options("~", home / "x")  # type: ignore[arg-type]
    assert function.__name__ == "function" and Options.__name__ == "Options"


def test_paths_in_tuples_are_opened_and_their_fields_keep_their_names(home: Path) -> None:
    class Weighted(NamedTuple):
        file: Path
        strength: float

    @opens_paths
    def function(adapters: list[tuple[Path, float]]) -> list[tuple[Path, float]]:
        return adapters

    (plain, named) = function([("~/a", 0.5), Weighted("~/b", 2.0)])  # type: ignore[arg-type,list-item]
    assert plain == (home / "a", 0.5) and isinstance(named, Weighted) and named.file == home / "b"


def test_each_public_argument_that_is_a_path_is_opened() -> None:
    """Of every name of the package; a new one is not forgotten."""
    for name in veneer.__all__:
        value = getattr(veneer, name)
        call = value.__init__ if inspect.isclass(value) else value
        if not callable(call) or name in ("Interrupted", "Progress"):  # which users catch, and which take none
            continue
        takes = any(
            re.search(r"\bPath\b", str(each.annotation)) for each in inspect.signature(call).parameters.values()
        )
        assert not takes or call.__code__.co_name == "opening", name
