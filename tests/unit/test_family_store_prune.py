"""What is pruned is what was meant, whoever reads the folder meanwhile, and nothing is torn by a kill on the way."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.unit.test_family_store_shard import fill, held, in_process, refused, same, shards_in, tensors_of
from veneer.family import store_shard
from veneer.family.store import Store
from veneer.family.store_prune import newest_within, prune, usage
from veneer.family.store_shard import ENTRY_BYTES, Entry, Shard


def only(store: Store, numbers: range) -> set[bytes]:
    return {store.digest(("posterior", number)) for number in numbers}


def test_a_list_counts_entries_and_bytes_by_kind(tmp_path: Path) -> None:
    assert usage(tmp_path) == []
    store = fill(tmp_path, range(5))
    store.get_or_compute(("text", "a cat"), lambda: tensors_of(9))
    Store(tmp_path, "other", "sdxl").get_or_compute(("text", "a cat"), lambda: tensors_of(9))
    first, second = sorted(usage(tmp_path), key=lambda base: base.name)
    assert (first.entries, second.entries) == ({"posterior": 5, "text": 1}, {"text": 1})
    assert (second.name, second.base) == ("sdxl", "other")
    assert sum(first.sizes.values()) <= sum(path.stat().st_size for path in shards_in(tmp_path / first.folder))
    assert 0 < first.first <= first.last <= time.time()


def test_entries_that_are_not_kept_are_gone_and_the_others_are_not(tmp_path: Path) -> None:
    store = fill(tmp_path, range(20))
    kept = only(store, range(0, 20, 3))
    before = sum(path.stat().st_size for path in shards_in(tmp_path))
    done = prune(tmp_path, lambda _, entry: entry.digest in kept)
    assert (done.removed, done.kept) == (13, 7)
    after = sum(path.stat().st_size for path in shards_in(tmp_path))
    assert before > after and abs(before - after - done.freed) < 64 * 7
    assert held(tmp_path, range(0, 20, 3)) == 7
    assert held(tmp_path, range(1, 20, 3)) == 0


def test_a_folder_of_which_nothing_is_kept_is_gone(tmp_path: Path) -> None:
    fill(tmp_path, range(4))
    assert prune(tmp_path, lambda *_: False).removed == 4
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_is_open_reads_on_and_writes_on(tmp_path: Path) -> None:
    fill(tmp_path, range(6))
    store = Store(tmp_path, "base")
    found = store.get_or_compute(("posterior", 0), refused)
    kept = only(store, range(3))
    prune(tmp_path, lambda _, entry: entry.digest in kept)
    assert same(found, tensors_of(0))
    unopened = fill(tmp_path, range(0))
    for number in range(3):
        assert same(store.get_or_compute(("posterior", number), refused), tensors_of(number))
        assert same(unopened.get_or_compute(("posterior", number), refused), tensors_of(number))
    store.get_or_compute(("posterior", 7), lambda: tensors_of(7))
    assert held(tmp_path, range(7, 8)) == 1


def test_a_shard_that_is_written_to_is_left_alone(tmp_path: Path) -> None:
    fill(tmp_path, range(4))
    (path,) = shards_in(tmp_path)
    with Shard(path).locked():
        done = prune(tmp_path, lambda *_: False)
    assert (done.in_use, done.removed, done.kept) == (1, 0, 4)
    assert held(tmp_path, range(4)) == 4


def test_those_written_last_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moment = iter(range(1000, 2000))
    monkeypatch.setattr(store_shard.time, "time", lambda: next(moment))
    fill(tmp_path, range(10))
    (shard,) = map(Shard, shards_in(tmp_path))
    shard.refresh()
    size = sum(shard.entry(row).length for row in (7, 8, 9))
    prune(tmp_path, newest_within(tmp_path, size))
    assert held(tmp_path, range(7, 10)) == 3 and held(tmp_path, range(7)) == 0


def test_an_entry_that_is_there_twice_is_kept_once(tmp_path: Path) -> None:
    store, other = fill(tmp_path, range(2)), fill(tmp_path, range(2))
    content = store_shard.encode_tensors(tensors_of(1))
    other.append(store.digest(("posterior", 1)), "posterior", content)
    assert prune(tmp_path, lambda *_: True).removed == 1
    assert held(tmp_path, range(2)) == 2


def test_what_a_kill_left_goes(tmp_path: Path) -> None:
    store = fill(tmp_path, range(3))
    orphan = store.folder / "0123456789abcdef.shard"
    orphan.write_bytes(b"without an index")
    prune(tmp_path, lambda *_: True)
    assert not orphan.exists() and held(tmp_path, range(3)) == 3


def test_a_line_of_the_index_has_its_length() -> None:
    entry = Entry(b"d" * 16, b"c" * 16, 2**40, 2**33, "instruction", 2**31)
    assert len(entry.packed()) == ENTRY_BYTES and Entry.unpacked(entry.packed(), 0) == entry


@pytest.mark.slow
def test_kills_while_pruning_lose_nothing_that_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_shard, "SHARD_BYTES", 20_000)
    chance, numbers = random.Random(1), range(300)
    for _ in range(20):
        store = fill(tmp_path, numbers)
        kept = only(store, range(0, 300, 2))
        child = in_process(lambda kept=kept: prune(tmp_path, lambda _, entry: entry.digest in kept))
        time.sleep(chance.uniform(0.0, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert held(tmp_path, range(0, 300, 2)) == 150
    prune(tmp_path, lambda _, entry: entry.digest in kept)
    assert usage(tmp_path)[0].entries == {"posterior": 150}
