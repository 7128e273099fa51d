"""Checkpoints on disk: whole or not there, whatever happens while they are written or afterwards."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.crash import CALLS, machine
from tests.errors import raises_code
from veneer.errors import UserError
from veneer.weights.checkpoint import (
    MANIFEST,
    STATE,
    Checkpoint,
    Provenance,
    checkpoints_in,
    clear_checkpoints,
    newest_checkpoint,
    prune_checkpoints,
    read_checkpoint,
    write_checkpoint,
)

PROVENANCE = Provenance(
    {"seed": 0, "data": {"sources": [{"path": "é"}]}, "rate": 1e-4},
    {"base": "ab"},
    "0.1.0",
    1,
    {"scheduler.name": "ddim"},
)


def state(step: int) -> dict[str, Tensor]:
    """As a trainer's: whole numbers among floating ones."""
    return {"step": torch.tensor(step), "adapter.w": torch.arange(6.0).view(2, 3) + step, "scaler.n": torch.tensor(0.5)}


def write(folder: Path, step: int, keep: int = 2) -> Path:
    path = write_checkpoint(folder, step, state(step), PROVENANCE)
    prune_checkpoints(folder, path, keep)
    return path


def is_state_of(found: Checkpoint | None, step: int) -> bool:
    expected = state(step)
    return (
        found is not None
        and found.step == step
        and found.state.keys() == expected.keys()
        and all(torch.equal(found.state[name], expected[name]) for name in expected)
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "checkpoints", 100)
    assert path == tmp_path / "checkpoints" / "step-000000100"
    assert names(path) == [MANIFEST, STATE]
    found = read_checkpoint(path)
    assert is_state_of(found, 100)
    assert found.provenance == PROVENANCE and found.path == path


def test_equal_states_give_equal_bytes(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one", 3), write(tmp_path / "two", 3)
    for name in (STATE, MANIFEST):
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_the_newest_is_by_number_not_by_name_or_time(tmp_path: Path) -> None:
    for step in (10**10, 2, 300):
        write_checkpoint(tmp_path, step, state(step), PROVENANCE)
    for other in ("step-1", "step-000000999x", ".step-000000999.tmp", "notes"):
        (tmp_path / other).mkdir()
    assert [path.name for path in checkpoints_in(tmp_path)] == ["step-000000002", "step-000000300", "step-10000000000"]
    found, faults = newest_checkpoint(tmp_path)
    assert is_state_of(found, 10**10) and faults == ()


def test_nothing_is_found_where_nothing_is(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "none") == (None, ())
    clear_checkpoints(tmp_path / "none")


def test_any_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    for name in (STATE, MANIFEST):
        content = (path / name).read_bytes()
        for place in range(len(content)):
            torn = bytearray(content)
            torn[place] ^= 1 << place % 8
            (path / name).write_bytes(torn)
            with raises_code("checkpoint.damaged") as caught:
                read_checkpoint(path)
            assert "\n" not in str(caught.value) and str(path) in str(caught.value)
        (path / name).write_bytes(content)
    assert is_state_of(read_checkpoint(path), 1)


@pytest.mark.parametrize("name", [STATE, MANIFEST])
def test_any_cut_is_noticed(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, 1)
    content = (path / name).read_bytes()
    for length in range(len(content)):
        (path / name).write_bytes(content[:length])
        with pytest.raises(UserError):
            read_checkpoint(path)
    (path / name).unlink()
    with raises_code("checkpoint.damaged", f"has no {name}"):
        read_checkpoint(path)


@pytest.mark.parametrize("content", [b"[]", b"null", b"{}", b'{"sha256": "x"}', b"\xff", b"[" * 10_000], ids=range(6))
def test_a_manifest_that_is_none(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path, 1)
    (path / MANIFEST).write_bytes(content)
    with raises_code("checkpoint.damaged", "manifest.json is damaged"):
        read_checkpoint(path)


def test_a_checkpoint_of_a_later_format_is_not_guessed_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("veneer.weights.checkpoint._FORMAT", 3)
        path = write(tmp_path, 1)
    with raises_code("checkpoint.newer_format", "format 3, and 2 is known; update Veneer"):
        read_checkpoint(path)


def test_a_missing_checkpoint_is_said_to_be_missing(tmp_path: Path) -> None:
    with raises_code("checkpoint.not_found", "no such checkpoint"):
        read_checkpoint(tmp_path / "step-000000001")


def test_a_damaged_one_is_passed_over_with_the_reason(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step, keep=3)
    (tmp_path / "step-000000003" / MANIFEST).unlink()
    content = (tmp_path / "step-000000002" / STATE).read_bytes()
    (tmp_path / "step-000000002" / STATE).write_bytes(content[:-1] + b"!")
    found, faults = newest_checkpoint(tmp_path)
    assert is_state_of(found, 1)
    assert [str(fault).split(": ", 1)[1][:25] for fault in faults] == [
        "has no manifest.json, so ",
        "state.safetensors is dama",
    ]


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        write(tmp_path, step, keep=2)
    assert names(tmp_path) == ["step-000000003", "step-000000004"]
    write(tmp_path, 5, keep=1)
    assert names(tmp_path) == ["step-000000005"]


def test_a_damaged_later_one_does_not_count_among_the_kept(tmp_path: Path) -> None:
    """A run that passed step 9 over as damaged went on from step 1."""
    for step in (1, 9):
        write(tmp_path, step)
    (tmp_path / "step-000000009" / STATE).write_bytes(b"")
    write(tmp_path, 2, keep=1)
    assert names(tmp_path) == ["step-000000002"]


def test_a_damaged_one_is_replaced_by_the_same_step(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    (path / STATE).write_bytes(b"")
    (path / "more").mkdir()
    assert is_state_of(read_checkpoint(write(tmp_path, 1)), 1)
    assert names(path) == [MANIFEST, STATE]


def test_clearing_leaves_what_is_not_ours(tmp_path: Path) -> None:
    write(tmp_path / "checkpoints", 1)
    (tmp_path / "checkpoints" / ".step-000000002.tmp").mkdir()
    (tmp_path / "checkpoints" / "other.ckpt").touch()
    clear_checkpoints(tmp_path / "checkpoints")
    assert names(tmp_path / "checkpoints") == ["other.ckpt"]
    (tmp_path / "checkpoints" / "other.ckpt").unlink()
    clear_checkpoints(tmp_path / "checkpoints")
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_state_that_is_not_finite_is_no_checkpoint(tmp_path: Path, value: float) -> None:
    with raises_code("checkpoint.not_finite", "tensor adapter.w holds NaN or infinity"):
        write_checkpoint(tmp_path / "c", 2, {**state(2), "adapter.w": torch.tensor([value])}, PROVENANCE)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("loses_power", [False, True], ids=["killed", "power cut"])
def test_dying_at_any_call_costs_no_checkpoint(tmp_path: Path, loses_power: bool) -> None:
    """Three checkpoints are there; dying while the fourth is written, and two removed, leaves the third or the fourth.

    What the dead one left behind is in nobody's way: the next life writes the same checkpoint.
    """
    dies_at, finished = 0, False
    while not finished:
        dies_at += 1
        folder = tmp_path / str(dies_at) / "checkpoints"
        for step in (1, 2, 3):
            write(folder, step, keep=3)
        with machine(folder, dies_at, loses_power) as here:
            write(folder, 4)
        finished = not here.dead
        found, faults = newest_checkpoint(folder)
        assert faults == ()
        assert is_state_of(found, 4) or (is_state_of(found, 3) and not finished)
        write(folder, 4)
        assert names(folder) == ["step-000000003", "step-000000004"]
        assert is_state_of(newest_checkpoint(folder)[0], 4)
    assert dies_at > 15 and {"write", "fsync", "rename", "mkdir", "unlink", "rmdir"} <= set(here.calls) <= set(CALLS)


def test_everything_is_synced_before_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with machine(tmp_path) as here:
        write_checkpoint(tmp_path / "checkpoints", 1, state(1), PROVENANCE)
    file = ["open", "write", "fsync"]
    # mkdir of the parent, which is there; the folder beside; two files; that folder; its new name; two folders above
    assert here.calls == ["mkdir", "mkdir", *file, *file, "fsync", "rename", "fsync", "fsync"]


@pytest.mark.parametrize("call", ["open", "write", "fsync", "rename", "mkdir"])
def test_a_disk_that_is_full_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    write(tmp_path, 1)
    with monkeypatch.context() as patch:

        def full(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        real = os.open
        is_write = lambda flags: flags & (os.O_WRONLY | os.O_RDWR)  # noqa: E731
        if call == "open":
            patch.setattr(os, call, lambda p, flags, *a, **k: full() if is_write(flags) else real(p, flags, *a, **k))
        else:
            patch.setattr(os, call, full)
        with pytest.raises(UserError, match="step-000000002: cannot be written: No space left on device"):
            write_checkpoint(tmp_path, 2, state(2), PROVENANCE)
    assert names(tmp_path) == ["step-000000001"]
    assert is_state_of(newest_checkpoint(tmp_path)[0], 1)


def test_a_manifest_is_for_people_too(tmp_path: Path) -> None:
    told = json.loads((write(tmp_path, 7) / MANIFEST).read_text("utf-8"))
    provenance = told["provenance"]
    assert (told["step"], provenance["version"], provenance["hashes"]) == (7, "0.1.0", {"base": "ab"})
    assert provenance["config"]["data"]["sources"][0]["path"] == "é"
    assert set(told["files"]) == {STATE}
