"""Several processes that train one adapter, step by step together, to the bits of one process alone.

What is shared out is the micro-batch: of a step's ``gradient_accumulation_steps`` forward and backward passes, process
k of N does those numbered k, k + N, k + 2N ... Each sends its gradients as they are, and every process adds all of them
up in the order of the micro-batches, as the autograd of one process would; then each takes the same optimiser step. A
floating-point sum depends on its order, so the usual way, ``DistributedDataParallel`` (which accelerate uses as well),
ends in other bits for each number of processes: it adds up in the order in which its buckets and its ring come round.

Whatever else the processes have to tell each other goes through one kind of exchange, in which all take part. So a
process that fails says so in the next one, wherever the others are by then, and none waits for it any more. How a fault
of one ends a whole run, and what its user reads of it, is :mod:`veneer.run.distributed`.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from veneer.config.train_config import TrainConfig
from veneer.errors import UserError

__all__ = ["ALONE", "PATIENCE", "GradientSum", "PeerFailed", "PeerLost", "ProcessGroup", "connect", "launched"]

PATIENCE = timedelta(minutes=30)
"""How long the first process waits for the others, which have no more to do than it has. They wait for it as long as it
takes, for it paints, measures and writes alone. All notice at once when one dies."""
_LONG = timedelta(days=30)
_FRAME = 1024  # bytes of a message that go at first; longer ones take a second round
_PIECE = 2**22  # numbers of a gradient exchanged at a time: all processes' are held at once
_SIGNALS = (signal.SIGINT, signal.SIGTERM)

T = TypeVar("T")


class PeerLost(ConnectionError):
    """Another process is gone without a message, or hangs."""

    def __init__(self, what: str, note: str | None = None) -> None:
        self._what = what
        super().__init__(what + (f"; {note}" if note else ""))

    def with_note(self, note: str) -> PeerLost:
        """Return the same fault with a note about what of the run is kept."""
        return PeerLost(self._what, note)


class PeerFailed(Exception):
    """Another process ends with a fault, so this one does.

    Attributes:
        rank: of the other one.
        report: of the fault, as the other one gave it to ``leave``.
    """

    def __init__(self, rank: int, report: Mapping[str, Any]) -> None:
        self.rank, self.report = rank, report
        super().__init__(f"process {rank}: {report}")


@dataclass(frozen=True)
class _Groups:
    """How processes reach each other.

    Attributes:
        messages: group for messages, by way of the CPU.
        tensors: group for gradients.
        device: where the latter takes them.
        patience: of the first process with the others.
    """

    messages: dist.ProcessGroup
    tensors: dist.ProcessGroup
    device: torch.device
    patience: timedelta


class ProcessGroup:
    """All processes of a run, as one of them sees them.

    Args:
        rank: this one's number, from 0.
        count: how many they are.
        groups: that reach the others; None where there are none.

    Attributes:
        rank: as above.
        count: as above.
    """

    def __init__(self, rank: int = 0, count: int = 1, groups: _Groups | None = None) -> None:
        self.rank, self.count, self._groups = rank, count, groups
        self._has_left = False

    @property
    def is_first(self) -> bool:
        """True in the process that writes files, prints and paints."""
        return self.rank == 0

    @property
    def turns(self) -> slice:
        """The slice of a step's micro-batches that are this process's."""
        return slice(self.rank, None, self.count)

    def check_split(self, train: TrainConfig) -> None:
        """Check that each process has as many micro-batches as the others.

        Raises:
            UserError: it has not.
        """
        if train.gradient_accumulation_steps % self.count:
            passes = f"{train.gradient_accumulation_steps} forward passes a step"
            raise UserError(
                f"{passes} cannot be shared out evenly to {self.count} processes",
                code="distributed.uneven_steps",
                where="train.gradient_accumulation_steps",
                remedy=f"use {_nearest_split(train, self.count)}",
            )

    def all_gather(self, value: Any = None) -> list[Any]:
        """Return the values that all processes give here, in the processes' order.

        Args:
            value: as JSON has it.

        Raises:
            PeerFailed: another process has ended instead.
            PeerLost: another has died, or hangs.
        """
        return [message["value"] for message in self._exchange({"value": value})]

    def first(self, work: Callable[[], T]) -> T:
        """Let the first process do alone what only one should; return its result, as JSON has it, in all of them."""
        if self._groups is None:
            return work()
        result: T = self.all_gather(work() if self.is_first else None)[0]
        return result

    def leave(self, report: Mapping[str, Any]) -> None:
        """Tell the others, at their next exchange, that this process ends; the report, as JSON has it, says why."""
        if not self._has_left:
            with suppress(PeerFailed, PeerLost):
                self._exchange({"fault": report})

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Return every process's tensor, bit for bit, in the order of the processes; all are of one shape."""
        if self._groups is None:
            return [tensor]
        sent = tensor.to(self._groups.device)
        received = [torch.empty_like(sent) for _ in range(self.count)]
        with self._noticing_loss():
            dist.all_gather(received, sent, group=self._groups.tensors)
        return [own.to(tensor.device) for own in received]

    def undisturbed(self) -> AbstractContextManager[None]:
        """Let SIGINT and SIGTERM wait within: one amid an exchange would leave the others without an answer."""
        return nullcontext() if self._groups is None else _holding_signals()

    def _exchange(self, message: Mapping[str, Any]) -> list[dict[str, Any]]:
        if self._groups is None:
            return [dict(message)]
        with self.undisturbed(), self._noticing_loss():
            # the patience of the first; the others' is the group's
            dist.monitored_barrier(self._groups.messages, self._groups.patience)
            messages = [json.loads(text) for text in self._gather_texts(json.dumps(message).encode())]
            for rank, received in enumerate(messages):
                if "fault" in received:
                    self._has_left = True
                    raise PeerFailed(rank, received["fault"])
        return messages

    def _gather_texts(self, text: bytes) -> list[bytes]:
        """Return all processes' texts: exchange their lengths and beginnings, then, if one is longer, all of them."""
        head = len(text).to_bytes(8, "big")
        frames = self._gather_frames((head + text)[:_FRAME], _FRAME)
        longest = max(int.from_bytes(frame[:8], "big") for frame in frames) + 8
        if longest > _FRAME:
            frames = self._gather_frames(head + text, longest)
        return [frame[8 : 8 + int.from_bytes(frame[:8], "big")] for frame in frames]

    def _gather_frames(self, content: bytes, size: int) -> list[bytes]:
        assert self._groups is not None
        sent = torch.frombuffer(bytearray(content.ljust(size, b"\0")), dtype=torch.uint8)
        received = [torch.empty_like(sent) for _ in range(self.count)]
        dist.all_gather(received, sent, group=self._groups.messages)
        return [frame.numpy().tobytes() for frame in received]

    @contextmanager
    def _noticing_loss(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            assert self._groups is not None
            self._has_left = True
            minutes = self._groups.patience.total_seconds() / 60
            what = f"another process of this run is gone, or has not answered for {minutes:g} minutes"
            raise PeerLost(what) from error


ALONE = ProcessGroup()
"""The one process of a run that no launcher started."""


class GradientSum:
    """The gradients of a step's micro-batches, added up in their order whoever computed them.

    Args:
        parameters: whose gradients.
        processes: that compute them.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], processes: ProcessGroup) -> None:
        self._parameters, self._processes = parameters, processes
        self._sums: list[Tensor] = []  # of pieces

    def add(self) -> None:
        """Take the gradients that each process has now, of one micro-batch, and add them in the processes' order."""
        if self._processes.count == 1:
            return  # autograd adds each to the sum of those before by itself
        own_N = torch.cat([gradient.flatten() for gradient in self._taken()])
        pieces = torch.split(own_N, _PIECE)
        before: Sequence[Tensor | None] = self._sums or [None] * len(pieces)
        self._sums = [self._added(total, own) for total, own in zip(before, pieces, strict=True)]

    def apply(self) -> None:
        """Set the parameters' gradients to the sum."""
        if not self._sums:
            return
        sums = torch.split(torch.cat(self._sums), [parameter.numel() for parameter in self._parameters])
        for parameter, total in zip(self._parameters, sums, strict=True):
            # a tensor of its own with the parameter's strides, as autograd makes them: a norm's bits depend on them
            parameter.grad = torch.empty_like(parameter).copy_(total.view(parameter.shape))

    def _taken(self) -> Iterator[Tensor]:
        for parameter in self._parameters:
            assert parameter.grad is not None, "every factor of an adapter takes part in every forward pass"
            yield parameter.grad
            parameter.grad = None

    def _added(self, total: Tensor | None, own: Tensor) -> Tensor:
        parts = self._processes.gather(own)
        # the very first is no sum: zero plus it would lose the sign of its zeros
        total = parts.pop(0) if total is None else total
        for part in parts:
            total += part
        return total


def launched() -> tuple[int, int]:
    """Return this process's number and how many there are, as a launcher such as torchrun sets them."""
    try:
        rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError):
        return 0, 1
    return (rank, count) if count > 1 else (0, 1)


@contextmanager
def connect(patience: timedelta = PATIENCE) -> Iterator[ProcessGroup]:
    """Connect to the other processes that a launcher started, if one did; on GPUs, take this process's own for "cuda".

    Args:
        patience: how long to look for the others, and how long the first waits for them at each exchange.

    Raises:
        PeerLost: they cannot be found.
    """
    rank, count = launched()
    if count == 1:
        yield ALONE
        return
    try:
        groups = _groups(patience)
    except RuntimeError as error:
        raise PeerLost(f"the {count} processes of this run do not find each other: {error}") from error
    try:
        yield ProcessGroup(rank, count, groups)
    finally:
        dist.destroy_process_group()


def _groups(patience: timedelta) -> _Groups:
    """Return gloo groups; tensors go by NCCL where each process has a GPU of its own."""
    gpus, place = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", "0"))
    if gpus:
        torch.cuda.set_device(place % gpus)
    own_gpu = 0 < int(os.environ.get("LOCAL_WORLD_SIZE", "1")) <= gpus and dist.is_nccl_available()
    dist.init_process_group("nccl" if own_gpu else "gloo", timeout=patience)
    tensors = dist.group.WORLD
    assert tensors is not None
    messages = dist.new_group(backend="gloo", timeout=_LONG)
    return _Groups(messages, tensors, torch.device("cuda" if own_gpu else "cpu"), patience)


def _nearest_split(train: TrainConfig, count: int) -> str:
    """Return the nearest way to share a step out: the same pictures in smaller batches, else more of them."""
    pictures = train.batch_size * train.gradient_accumulation_steps
    ways = [
        n for n in range(count, pictures + 1, count) if pictures % n == 0 and n >= train.gradient_accumulation_steps
    ]
    if ways:
        return f"train.gradient_accumulation_steps={ways[0]} train.batch_size={pictures // ways[0]}"
    more = -(-train.gradient_accumulation_steps // count) * count
    text = f"train.gradient_accumulation_steps={more} train.batch_size={train.batch_size}"
    return f"{text}, which makes {more * train.batch_size} pictures a step of {pictures}"


@contextmanager
def _holding_signals() -> Iterator[None]:
    """Only note signals to stop within; at the end they do what they do elsewhere."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        held.append(number)

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    ours = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    for number in ours:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])
        for noted in held:
            signal.raise_signal(noted)
