"""Shards that a server has: read through once, then by parts, and not at all where nothing has changed."""

from __future__ import annotations

import io
import json
import re
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest
from PIL import Image

from tests.errors import raises_code
from veneer.config.data_config import DataConfig
from veneer.config.source_config import SourceConfig
from veneer.data import remote
from veneer.data.manifest import Sample
from veneer.data.preflight import Dataset, survey
from veneer.data.remote import ForwardFile, RemotePart


def picture(number: int) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").rotate(7 * number).resize((16 + number, 16)).convert("RGB").save(file, "PNG")
    return file.getvalue()


def shard(*numbers: int, broken: bytes = b"") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for number in numbers:
            for name, content in ((f"{number}.png", picture(number)), (f"{number}.txt", f"a cat {number}".encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        for name, content in (("broken.png", broken), ("broken.txt", b"a cat")) if broken else ():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


@dataclass
class Files:
    """What a server has, and what it was asked for."""

    address: str = ""
    contents: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    fails: int = 0
    gives_parts: bool = True

    def whole(self) -> list[str]:
        """Return the files that were asked for from beginning to end."""
        return [path for method, path, part in self.asked if method == "GET" and part is None]

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        part = handler.headers.get("Range")
        self.asked.append((handler.command, handler.path, part))
        content = self.contents.get(handler.path)
        if content is None or self.fails:
            self.fails = max(self.fails - 1, 0)
            handler.send_error(503 if content is not None else 404)
            return
        status = 200
        if part is not None and self.gives_parts:
            first, last = map(int, re.findall(r"\d+", part))
            content, status = content[first : last + 1], 206
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(content)))
        handler.send_header("ETag", f'"{hash(self.contents[handler.path])}"')
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(content)


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Iterator[Files]:
    kept = Files()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kept.answer(self)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setattr(remote.time, "sleep", lambda _: None)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    kept.address = f"http://127.0.0.1:{server.server_port}"
    yield kept
    server.shutdown()
    thread.join()
    server.server_close()


def surveyed(place: str, cache: Path, **keys: Any) -> Dataset:
    source = SourceConfig(path=place, **keys)  # type: ignore[arg-type]
    return survey(DataConfig(sources=(source,), held_out=0.0, cache=cache))


def told(samples: tuple[Sample, ...]) -> list[tuple[object, ...]]:
    return [(one.id, one.captions, one.width, one.height) for one in samples]


def test_shards_by_url_are_what_they_are_on_disk(files: Files, tmp_path: Path) -> None:
    local = tmp_path / "local"
    local.mkdir()
    for number, numbers in enumerate([(0, 1, 2), (3, 4), (5,)]):
        content = shard(*numbers, broken=b"-" if number == 1 else b"")
        files.contents[f"/s-{number}.tar"] = content
        (local / f"s-{number}.tar").write_bytes(content)
    there = surveyed(f"{files.address}/s-{{0..2}}.tar", tmp_path / "cache").train
    here = surveyed(str(local), tmp_path / "cache").train
    assert told(there.samples) == told(here.samples) and len(there.samples) == 6
    assert [one.location.read() for one in there.samples] == list(map(picture, range(6)))
    assert [(one.path.name, one.reason) for one in there.rejected] == [(o.path.name, o.reason) for o in here.rejected]
    assert sorted(files.whole()) == [f"/s-{number}.tar" for number in range(3)], "each is read through once"
    kept = sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*") if file.is_file())
    assert kept < 6 * 1000, "nothing but the index is on disk"


def test_a_second_start_reads_nothing_but_what_has_changed(files: Files, tmp_path: Path) -> None:
    files.contents = {"/a.tar": shard(0, 1), "/b.tar": shard(2, 3)}
    place = f"{files.address}/{{a,b}}.tar"
    first = surveyed(place, tmp_path).train
    files.asked.clear()
    assert told(surveyed(place, tmp_path).train.samples) == told(first.samples)
    assert files.whole() == []
    files.contents["/b.tar"] = shard(2, 4)
    again = surveyed(place, tmp_path).train
    assert files.whole() == ["/b.tar"]
    assert [one.captions for one in again.samples] == [(f"a cat {number}",) for number in (0, 1, 2, 4)]


def test_a_torn_index_is_read_anew(files: Files, tmp_path: Path) -> None:
    files.contents["/a.tar"] = shard(0, 1)
    place = f"{files.address}/a.tar"
    first = surveyed(place, tmp_path).train
    (index,) = (tmp_path / "shard-index").iterdir()
    lines = index.read_bytes().splitlines(keepends=True)
    for torn in (b"".join(lines[:-1]), b"".join(lines)[:-30], lines[0] + lines[-1], b"\x00" * 9):
        index.write_bytes(torn)
        files.asked.clear()
        assert told(surveyed(place, tmp_path).train.samples) == told(first.samples)
        assert files.whole() == ["/a.tar"]


def test_a_server_in_trouble_is_asked_again(files: Files, tmp_path: Path) -> None:
    files.contents["/a.tar"] = shard(0)
    files.fails = 2
    (sample,) = surveyed(f"{files.address}/a.tar", tmp_path).train.samples
    files.fails = 3
    assert sample.location.read() == picture(0)
    files.fails = 9
    with pytest.raises(OSError, match="503"):
        sample.location.read()
    with raises_code("files.unreadable", "404"):
        surveyed(f"{files.address}/missing.tar", tmp_path)
    files.fails, files.gives_parts = 0, False
    with pytest.raises(OSError, match="no parts"):
        sample.location.read()
    with raises_code("data.unknown_url"):
        surveyed(f"{files.address}/a.zip", tmp_path)


def test_a_shard_that_breaks_off_is_named(files: Files, tmp_path: Path) -> None:
    files.contents["/a.tar"] = shard(0, 1)[:2500]
    found = surveyed(f"{files.address}/a.tar", tmp_path).train
    assert [one.captions for one in found.samples] == [("a cat 0",)]
    assert [one.path.name for one in found.rejected] == ["a.tar"]


def test_places_that_fsspec_knows(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/streams/a.tar", shard(0, 1))
    try:
        samples = surveyed("memory://streams/a.tar", tmp_path).train.samples
        assert [one.location.read() for one in samples] == [picture(0), picture(1)]
        assert all(isinstance(one.location, RemotePart) for one in samples)
    finally:
        memory.rm("/streams", recursive=True)


def test_a_stream_is_read_as_a_file_is() -> None:
    content = bytes(range(256)) * 20
    file = ForwardFile(io.BytesIO(content))
    assert file.read(600) == content[:600]
    assert file.seek(88) == 88 and file.read(1000) == content[88:1088] and file.tell() == 1088
    assert file.seek(3000) == 3000 and file.seek(2999) == 2999 and file.read(2) == content[2999:3001]
    assert file.seek(10**6) == len(content) and file.read(5) == b""
    with pytest.raises(OSError):
        file.seek(0)


def test_an_index_is_plain(files: Files, tmp_path: Path) -> None:
    """A line of JSON for each picture, between one on the shard and one that says that it is whole."""
    files.contents["/a.tar"] = shard(0, 1)
    surveyed(f"{files.address}/a.tar", tmp_path)
    (index,) = (tmp_path / "shard-index").iterdir()
    lines = [json.loads(line) for line in index.read_text().splitlines()]
    assert lines[0]["url"] == f"{files.address}/a.tar" and lines[-1] == {"pictures": 2}
    assert [line[0] for line in lines[1:-1]] == ["0.png", "1.png"]


def test_a_run_does_not_end_where_no_index_can_be_kept(files: Files, tmp_path: Path) -> None:
    files.contents["/a.tar"] = shard(0)
    (tmp_path / "cache").write_text("no folder")
    assert len(surveyed(f"{files.address}/a.tar", tmp_path / "cache").train.samples) == 1
