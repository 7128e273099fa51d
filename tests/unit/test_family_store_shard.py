"""Shards lose nothing, tear nothing and serve nothing wrong, whoever writes to them, is killed, or damages them."""

from __future__ import annotations

import errno
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from veneer.family import store_shard
from veneer.family.store import Store
from veneer.family.store_shard import ENTRY_BYTES, Shard, encode_tensors

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.uint8]


def tensors_of(number: int, size: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(number)
    return {"mean": torch.randn(size, 2, generator=generator), "std": torch.tensor(float(number))}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def refused() -> dict[str, Tensor]:
    raise AssertionError("was computed again")


def held(folder: Path, numbers: range) -> int:
    """How many of these a new store of the folder has, each of which must be right."""
    store, missing = Store(folder, "base"), list[int]()
    for number in numbers:
        right = tensors_of(number)
        found = store.get_or_compute(
            ("posterior", number), lambda number=number, right=right: missing.append(number) or right
        )
        assert same(found, right)
    return len(numbers) - len(missing)


def fill(folder: Path, numbers: range) -> Store:
    store = Store(folder, "base")
    for number in numbers:
        store.get_or_compute(("posterior", number), lambda number=number: tensors_of(number))
    return store


def shards_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.shard"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 5), (1, 4, 8, 8)])
def test_tensors_have_their_bits_types_and_shapes(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    made = {"it": (torch.rand(shape) * 2).to(dtype), "other": torch.arange(3)}
    Store(tmp_path, "base").get_or_compute(("text", "a cat"), lambda: made)
    found = Store(tmp_path, "base").get_or_compute(("text", "a cat"), refused)
    assert same(found, made) and found["it"].dtype == dtype and found["it"].shape == shape


def test_many_entries_are_few_files(tmp_path: Path) -> None:
    fill(tmp_path, range(50))
    assert len(shards_in(tmp_path)) == 1
    assert held(tmp_path, range(50)) == 50


def test_a_full_shard_gets_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_shard, "SHARD_BYTES", 1000)
    fill(tmp_path, range(20))
    assert len(shards_in(tmp_path)) > 2 and all(path.stat().st_size < 2000 for path in shards_in(tmp_path))
    assert held(tmp_path, range(20)) == 20


def test_what_another_store_writes_is_found_without_opening_anew(tmp_path: Path) -> None:
    one, other = fill(tmp_path, range(1)), fill(tmp_path, range(1))
    for number in range(1, 6):
        right = tensors_of(number)
        one.get_or_compute(("posterior", number), lambda right=right: right)
        assert same(other.get_or_compute(("posterior", number), refused), right)


def test_tensors_stay_when_their_shard_is_removed_or_grows(tmp_path: Path) -> None:
    fill(tmp_path, range(3))
    store = Store(tmp_path, "base")
    found = store.get_or_compute(("posterior", 2), refused)
    fill(tmp_path, range(3, 9))
    for path in tmp_path.rglob("*.*"):
        path.unlink()
    assert same(found, tensors_of(2))
    found["mean"].zero_()  # writes to no file


def test_what_is_written_into_a_tensor_changes_no_file(tmp_path: Path) -> None:
    fill(tmp_path, range(1))
    Store(tmp_path, "base").get_or_compute(("posterior", 0), refused)["mean"].zero_()
    assert held(tmp_path, range(1)) == 1


@pytest.mark.parametrize("suffix", [".shard", ".index"])
def test_a_damaged_byte_anywhere_gives_no_wrong_tensor(tmp_path: Path, suffix: str) -> None:
    """Each byte of one entry of four turned over, by one byte at a time."""
    fill(tmp_path, range(4))
    (path,) = tmp_path.rglob(f"*{suffix}")
    whole, (shard,) = path.read_bytes(), shards_in(tmp_path)
    begun = Shard(shard)
    begun.refresh()
    entry = begun.entry(1)
    place = range(entry.offset, entry.end, 5) if suffix == ".shard" else range(ENTRY_BYTES, 2 * ENTRY_BYTES)
    index = shard.with_suffix(".index").read_bytes()
    for byte in place:
        path.write_bytes(whole[:byte] + bytes([whole[byte] ^ 0xFF]) + whole[byte + 1 :])
        assert held(tmp_path, range(4)) >= 3
        for each in shards_in(tmp_path):
            if each != shard:
                each.unlink()
                each.with_suffix(".index").unlink()
        shard.with_suffix(".index").write_bytes(index)
        shard.write_bytes(whole if suffix == ".shard" else shard.read_bytes())


def test_a_damaged_entry_is_written_anew_once(tmp_path: Path) -> None:
    fill(tmp_path, range(4))
    (shard,) = shards_in(tmp_path)
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert held(tmp_path, range(4)) == 3
    assert held(tmp_path, range(4)) == 4


@pytest.mark.parametrize("cut", [1, 30, ENTRY_BYTES - 1])
def test_a_torn_line_is_cut_off_with_its_entry(tmp_path: Path, cut: int) -> None:
    fill(tmp_path, range(4))
    (shard,) = shards_in(tmp_path)
    size = shard.stat().st_size
    os.truncate(shard.with_suffix(".index"), 4 * ENTRY_BYTES - cut)
    assert held(tmp_path, range(4)) == 3
    assert held(tmp_path, range(4)) == 4
    assert shards_in(tmp_path) == [shard] and shard.stat().st_size == size


def test_a_full_disk_leaves_what_was_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third entry gets half of its bytes onto the disk; it is kept in memory, and the next one is not tried."""
    store, write = fill(tmp_path, range(2)), os.write
    (shard,) = shards_in(tmp_path)
    size = shard.stat().st_size

    def full(descriptor: int, content: memoryview) -> int:
        if len(content) < 40:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, content[: len(content) // 2])

    with monkeypatch.context() as patch:
        patch.setattr(store_shard.os, "write", full)
        for number in (2, 3):
            made = tensors_of(number)
            store.get_or_compute(("posterior", number), lambda made=made: made)
            assert same(store.get_or_compute(("posterior", number), refused), made)
    assert store.fault is not None and "No space left" in str(store.fault)
    assert shard.stat().st_size == size
    assert held(tmp_path, range(4)) == 2


def test_a_locked_shard_is_passed_over(tmp_path: Path) -> None:
    fill(tmp_path, range(2))
    (path,) = shards_in(tmp_path)
    with Shard(path).locked():
        fill(tmp_path, range(4))
        assert len(shards_in(tmp_path)) == 2
    assert held(tmp_path, range(4)) == 4


def in_process(work: Callable[[], Any]) -> int:
    """Start work in a process of its own; its number."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def test_the_lock_of_a_dead_process_does_not_block(tmp_path: Path) -> None:
    fill(tmp_path, range(2))
    (path,) = shards_in(tmp_path)

    def hold() -> None:
        with Shard(path).locked():
            (tmp_path / "held").touch()
            time.sleep(60)

    child = in_process(hold)
    while not (tmp_path / "held").exists():
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    fill(tmp_path, range(4))
    assert shards_in(tmp_path) == [path] and held(tmp_path, range(4)) == 4


def test_processes_that_write_at_once_lose_and_tear_nothing(tmp_path: Path) -> None:
    """Four of them store overlapping parts of a hundred entries."""
    children = [in_process(lambda first=first: fill(tmp_path, range(first, first + 40))) for first in (0, 20, 40, 60)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0, 0]
    assert held(tmp_path, range(100)) == 100
    assert len(shards_in(tmp_path)) <= 8


@pytest.mark.slow
def test_twenty_kills_give_no_wrong_tensor_and_lose_nothing(tmp_path: Path) -> None:
    """Entries of 0.5 to 8 MiB, so that most kills strike within one; what was there before each is there after."""
    chance, total = random.Random(0), range(400)

    def sized(number: int) -> dict[str, Tensor]:
        return tensors_of(number, size=65536 * (1 + number % 16))

    def work() -> None:
        store = Store(tmp_path, "base")
        for number in total:
            made = sized(number)
            assert same(store.get_or_compute(("posterior", number), lambda made=made: made), made)

    whole = 0
    for _ in range(20):
        child = in_process(work)
        time.sleep(chance.uniform(0.05, 0.6))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        store = Store(tmp_path, "base")
        found = [
            number
            for number in total
            if (place := store._read(store.digest(("posterior", number)))) and same(place, sized(number))
        ]
        assert len(found) >= whole and found == list(range(len(found)))
        whole = len(found)
    os.waitpid(in_process(work), 0)
    shards = [Shard(path) for path in shards_in(tmp_path)]
    rows = [entry for shard in shards for entry in (shard.refresh() and shard.entries())]
    assert len(rows) == len({entry.digest for entry in rows}) == len(total)
    stored = sum(len(encode_tensors(sized(number))) for number in total)
    assert stored <= sum(path.stat().st_size for path in shards_in(tmp_path)) < stored + 64 * len(total)


def test_what_a_kill_left_behind_takes_no_room(tmp_path: Path) -> None:
    fill(tmp_path, range(1))
    (path,) = shards_in(tmp_path)
    with path.open("ab") as file:
        file.write(b"left by a process that was killed" * 1000)
    fill(tmp_path, range(2))
    shard = Shard(path)
    shard.refresh()
    assert len(shard) == 2 and path.stat().st_size == shard.entry(1).end
