"""Processes that do one thing together: words, gradients, faults."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import veneer.train.distributed
from tests.distributed import begin, distributed
from tests.errors import raises_code
from veneer.config.train_config import TrainConfig
from veneer.train.distributed import ALONE, GradientSum, PeerFailed, PeerLost, ProcessGroup, connect, launched


def joined(work: Callable[[ProcessGroup], Any], patience: float = 60) -> Callable[[int], Any]:
    """Work among all processes."""

    def here(rank: int) -> Any:
        with connect(timedelta(seconds=patience)) as processes:
            return work(processes)

    return here


def test_one_process_needs_nothing() -> None:
    assert launched() == (0, 1)
    with connect() as processes:
        assert processes is ALONE
    assert ALONE.all_gather({"a": 1}) == [{"a": 1}] and ALONE.first(lambda: 3) == 3
    assert list(range(4))[ALONE.turns] == [0, 1, 2, 3] and ALONE.is_first
    ALONE.leave({"kind": "bug"})


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({"RANK": "1", "WORLD_SIZE": "3"}, (1, 3)), ({"RANK": "0", "WORLD_SIZE": "1"}, (0, 1)), ({"RANK": "x"}, (0, 1))],
)
def test_a_launcher_tells_in_the_environment(
    environment: dict[str, str], expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launched() == expected


def test_words_and_turns(tmp_path: Path) -> None:
    """Short words, long ones, and ones that only some have."""

    def work(processes: ProcessGroup) -> Any:
        rank = processes.rank
        long = processes.all_gather("ä" * 3000 * rank)
        found = processes.first(lambda: {"by": rank})
        infinite = processes.all_gather(float("inf") if rank else None)
        numbers = processes.gather(torch.tensor([-0.0, float(rank), 1e-45]))
        bits = [each.view(torch.int32).tolist() for each in numbers]
        return [rank, processes.count, list(range(6))[processes.turns], [len(w) for w in long], found, infinite, bits]

    bits = [[-(2**31), torch.tensor(float(k)).view(torch.int32).item(), 1] for k in range(3)]
    members = distributed(3, tmp_path, joined(work))
    for rank, member in enumerate(members):
        assert member.code == 0, member.err
        expected = [rank, 3, [rank, rank + 3], [0, 3000, 6000], {"by": 0}, [None, float("inf"), float("inf")], bits]
        assert member.result == expected


def micro_gradients() -> tuple[nn.Linear, list[Tensor]]:
    """A layer and the inputs of six micro-batches, of scales that make a sum depend on its order."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(7, 5)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer, [torch.randn(3, 7, generator=generator) * 10 ** (n % 3) for n in range(6)]


def bits_of(parameters: Any) -> list[list[int]]:
    return [parameter.grad.view(torch.int32).flatten().tolist() for parameter in parameters]


@pytest.mark.parametrize("count", [2, 3])
def test_gradients_have_the_bits_of_autograds_own_sum(
    tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many processes, in pieces or not; and another order would have given other bits."""
    monkeypatch.setattr(veneer.train.distributed, "_PIECE", 8)
    layer, micros = micro_gradients()
    for micro in micros:
        layer(micro).square().mean().backward()
    expected = bits_of(layer.parameters())
    layer.zero_grad()
    for micro in reversed(micros):
        layer(micro).square().mean().backward()
    assert bits_of(layer.parameters()) != expected

    def work(processes: ProcessGroup) -> Any:
        own, inputs = micro_gradients()
        parameters = list(own.parameters())
        gradients = GradientSum(parameters, processes)
        for micro in inputs[processes.turns]:
            own(micro).square().mean().backward()
            gradients.add()
        gradients.apply()
        return bits_of(parameters)

    for member in distributed(count, tmp_path, joined(work)):
        assert member.code == 0, member.err
        assert member.result == expected


def test_alone_autograd_sums_by_itself() -> None:
    layer, micros = micro_gradients()
    gradients = GradientSum(list(layer.parameters()), ALONE)
    layer(micros[0]).sum().backward()
    before = layer.weight.grad
    gradients.add()
    gradients.apply()
    assert layer.weight.grad is before


def test_a_fault_of_one_ends_all_wherever_they_are(tmp_path: Path) -> None:
    def work(processes: ProcessGroup) -> Any:
        if processes.rank == 1:
            processes.leave({"kind": "mistake", "text": "no"})
            processes.leave({"kind": "mistake", "text": "a second time says nothing"})
            return None
        with pytest.raises(PeerFailed) as caught:
            processes.all_gather("a word") if processes.rank == 0 else processes.first(lambda: None)
        processes.leave({"kind": "mistake", "text": "nor is there anybody left to hear it"})
        return [caught.value.rank, caught.value.report]

    first, second, third = distributed(3, tmp_path, joined(work))
    assert [first.code, second.code, third.code] == [0, 0, 0], first.err + second.err + third.err
    assert first.result == third.result == [1, {"kind": "mistake", "text": "no"}]


@pytest.mark.parametrize("dies", [0, 1])
def test_one_that_dies_is_noticed_at_once(tmp_path: Path, dies: int) -> None:
    def work(processes: ProcessGroup) -> Any:
        processes.all_gather()
        if processes.rank == dies:
            os.kill(os.getpid(), signal.SIGKILL)
        with pytest.raises(PeerLost, match="another process of this run is gone"):
            processes.first(lambda: None)
        processes.leave({"kind": "bug", "text": "does not wait"})

    began = time.monotonic()
    members = distributed(2, tmp_path, joined(work))
    codes = [member.code for member in members]
    assert codes == [-9 if rank == dies else 0 for rank in range(2)], members[1 - dies].err
    assert time.monotonic() - began < 30


@pytest.mark.slow
def test_one_that_hangs_is_given_up(tmp_path: Path) -> None:
    def work(processes: ProcessGroup) -> Any:
        processes.all_gather()
        if processes.rank == 1:
            time.sleep(3)
            os._exit(0)
        with pytest.raises(PeerLost, match=r"has not answered for 0\.025 minutes"):
            processes.all_gather()

    first, second = distributed(2, tmp_path, joined(work, patience=1.5))
    assert first.code == second.code == 0, first.err


def test_a_wait_for_the_first_may_be_long(tmp_path: Path) -> None:
    def work(processes: ProcessGroup) -> Any:
        return processes.first(lambda: time.sleep(2) or "done")

    members = distributed(2, tmp_path, joined(work, patience=1))
    assert [member.code for member in members] == [0, 0], members[1].err
    assert members[1].result == "done"


def test_a_signal_in_a_meeting_comes_after_it(tmp_path: Path) -> None:
    """Both get one while the second waits for the first; both hear each other, and only then what the signal does."""

    def work(processes: ProcessGroup) -> Any:
        seen = []

        def handle(number: int, frame: object) -> None:
            seen.append(number)
            raise InterruptedError

        signal.signal(signal.SIGTERM, handle)
        if processes.rank == 0:
            time.sleep(1.5)
        heard: list[Any] = []
        try:
            heard = processes.all_gather(processes.rank)
        except InterruptedError:
            assert processes.rank == 1
        assert signal.getsignal(signal.SIGTERM) is handle
        return [seen, heard, processes.all_gather("again")]

    first, second = begin(2, tmp_path, joined(work))
    time.sleep(0.8)
    os.kill(second.pid, signal.SIGTERM)
    assert (first.wait(), second.wait()) == (0, 0), first.err + second.err
    assert first.result == [[], [0, 1], ["again", "again"]]
    assert second.result == [[signal.SIGTERM], [], ["again", "again"]]


def test_processes_that_do_not_find_each_other_say_so(tmp_path: Path) -> None:
    def work(rank: int) -> Any:
        if rank == 0:
            with pytest.raises(PeerLost, match="the 2 processes of this run do not find each other"):
                joined(lambda processes: None, patience=1)(rank)

    assert distributed(2, tmp_path, work)[0].code == 0


@pytest.mark.parametrize(
    ("batch", "accumulate", "count", "remedy"),
    [
        (4, 1, 2, "use train.gradient_accumulation_steps=2 train.batch_size=2"),
        (4, 1, 4, "use train.gradient_accumulation_steps=4 train.batch_size=1"),
        (2, 3, 2, "use train.gradient_accumulation_steps=6 train.batch_size=1"),
        (3, 1, 2, "use train.gradient_accumulation_steps=2 train.batch_size=3, which makes 6 pictures a step of 3"),
        (1, 3, 2, "use train.gradient_accumulation_steps=4 train.batch_size=1, which makes 4 pictures a step of 3"),
    ],
)
def test_a_step_that_cannot_be_shared_out_is_refused_with_numbers(
    batch: int, accumulate: int, count: int, remedy: str
) -> None:
    train = TrainConfig(batch_size=batch, gradient_accumulation_steps=accumulate)
    with raises_code("distributed.uneven_steps") as caught:
        ProcessGroup(0, count).check_split(train)
    assert str(caught.value).endswith(remedy) and caught.value.where == "train.gradient_accumulation_steps"
    numbers = dict(part.split("=") for part in remedy.split(",")[0].split()[1:])
    ProcessGroup(1, count).check_split(TrainConfig(**{key[6:]: int(value) for key, value in numbers.items()}))
    ALONE.check_split(train)
