"""Several processes that find each other as a launcher's do, forked from the test: modules and base cost nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from veneer.cli.main import main

_PATIENCE = 120.0  # seconds


@dataclass
class Member:
    """One process.

    Attributes:
        pid: its id.
        folder: of what it says.
        code: its exit code, or minus the signal that killed it; None while it runs.
    """

    pid: int
    folder: Path
    code: int | None = None

    @property
    def out(self) -> str:
        return (self.folder / "out").read_text()

    @property
    def err(self) -> str:
        return (self.folder / "err").read_text()

    @property
    def result(self) -> Any:
        """What its work returned."""
        return json.loads((self.folder / "result").read_text())

    @property
    def is_running(self) -> bool:
        """Whether it has not ended yet; its exit code is known once it has."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is None

    def send(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.is_running:
            os.kill(self.pid, number)

    def wait(self) -> int:
        until = time.monotonic() + _PATIENCE
        while self.is_running:
            if time.monotonic() > until:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise AssertionError(f"process {self.pid} hangs; it said: {self.out} {self.err}")
            else:
                time.sleep(0.005)
        assert self.code is not None
        return self.code


def begin(count: int, folder: Path, work: Callable[[int], Any]) -> list[Member]:
    """Start so many processes of one thread; each does ``work(rank)`` and ends with 0, or with 1 after a traceback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    members = []
    for rank in range(count):
        place = folder / f"{port}-{rank}"
        place.mkdir(parents=True)
        for name in ("out", "err"):
            (place / name).touch()
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the others of its threads do nothing
            pid = os.fork()
        if pid == 0:
            _live(place, {**told, "MASTER_ADDR": "127.0.0.1"}, lambda rank=rank: work(rank))
        members.append(Member(pid, place))
    return members


def distributed(count: int, folder: Path, work: Callable[[int], Any]) -> list[Member]:
    """The same, ended."""
    members = begin(count, folder, work)
    for member in members:
        member.wait()
    return members


def commands(arguments: list[str], prepare: Callable[[int], None] = lambda rank: None) -> Callable[[int], Any]:
    """Work: a command line; ``prepare`` comes before it, in the process."""

    def work(rank: int) -> None:
        prepare(rank)
        sys.exit(main(arguments))

    return work


def _live(place: Path, environment: dict[str, Any], work: Callable[[], Any]) -> None:
    code = 1
    try:
        os.environ.update({name: str(value) for name, value in environment.items()})
        for name, descriptor in (("out", 1), ("err", 2)):
            os.dup2(os.open(place / name, os.O_WRONLY | os.O_APPEND), descriptor)
        sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", 1, closefd=False) for descriptor in (1, 2))
        for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
            signal.signal(number, handler)
        torch.set_num_threads(1)  # the threads of a pool are not forked
        (place / "result").write_text(json.dumps(work()))
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
