"""A process that dies at a chosen call to the file system, as one that is killed or whose machine loses power."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CALLS = ("open", "write", "fsync", "rename", "replace", "mkdir", "unlink", "rmdir", "truncate")


class Killed(BaseException):
    """What no code may catch; after it no call reaches the disk, not even from a ``finally``."""


class Machine:
    """Counts calls that change files; at the chosen one half of what is written arrives, and nothing after it.

    Args:
        dies_at: number of the call, from 1; None: it never dies.
        loses_power: what was not synced when it died is lost as well.
        beneath: calls that touch nothing there are not counted.
    """

    def __init__(self, dies_at: int | None, loses_power: bool, beneath: Path) -> None:
        self.dies_at, self.loses_power, self.beneath = dies_at, loses_power, str(beneath)
        self.calls: list[str] = []
        self.dead = False
        self._open: dict[int, str] = {}
        self._unsynced: set[str] = set()
        self._real: dict[str, Callable[..., Any]] = {name: getattr(os, name) for name in CALLS}

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        if self._is_read(name, arguments) or not self._is_beneath(arguments[0], options):
            return self._real[name](*arguments, **options)
        if self.dead:
            raise Killed
        self.calls.append(name)
        if len(self.calls) == self.dies_at:
            self._die(name, arguments)
        result = self._real[name](*arguments, **options)
        self._follow(name, arguments, result)
        return result

    def _is_read(self, name: str, arguments: tuple[Any, ...]) -> bool:
        return name == "open" and not arguments[1] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)

    def _is_beneath(self, target: Any, options: dict[str, Any]) -> bool:
        if isinstance(target, int):
            # descriptors of folders are opened to be read, and synced or emptied then
            return True if target in self._open else self.beneath in os.readlink(f"/proc/self/fd/{target}")
        if "dir_fd" in options and options["dir_fd"] is not None:
            return self.beneath in os.readlink(f"/proc/self/fd/{options['dir_fd']}")
        return str(os.fspath(target)).startswith(self.beneath)

    def _die(self, name: str, arguments: tuple[Any, ...]) -> None:
        self.dead = True
        if name == "write":
            self._real["write"](arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
        if self.loses_power:
            for path in self._unsynced:
                if os.path.exists(path):
                    self._real["truncate"](path, 0)
        raise Killed

    def _follow(self, name: str, arguments: tuple[Any, ...], result: Any) -> None:
        if name == "open":
            self._open[result] = str(arguments[0])
        elif name == "write":
            self._unsynced.add(self._open.get(arguments[0], ""))
        elif name == "fsync":
            self._unsynced.discard(self._open.get(arguments[0], ""))


@contextmanager
def machine(beneath: Path, dies_at: int | None = None, loses_power: bool = False) -> Iterator[Machine]:
    """Within, ``os`` is the machine's; leaving it dead is no error."""
    here = Machine(dies_at, loses_power, beneath)
    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, _calling(here, name))
        try:
            yield here
        except Killed:
            assert here.dead


def _calling(here: Machine, name: str) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        return here.call(name, *arguments, **options)

    return call
