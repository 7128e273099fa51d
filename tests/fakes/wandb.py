"""As much of wandb 0.31 as Veneer calls, with its parameters and its rules; a server that keeps what it is told.

The package itself brings twenty others and a program of its own, too much for the tests of an extra.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

SERVER: dict[str, Run] = {}
"""Runs by id."""


class Settings:
    def __init__(self, *, console: str = "auto") -> None:
        self.console = console


class Image:
    def __init__(self, data_or_path: Any, mode: str | None = None, caption: str | None = None) -> None:
        self.content = Path(data_or_path).read_bytes()


class Run:
    def __init__(self, id: str) -> None:
        self.id, self.url, self.dir = id, f"https://example.org/{id}", ""
        self.rows: list[tuple[int, dict[str, Any]]] = []
        self.summary: dict[str, Any] = {}
        self.inits: list[dict[str, Any]] = []
        self.exit_codes: list[int | None] = []

    def log(self, data: dict[str, Any], step: int | None = None, commit: bool | None = None) -> None:
        assert step is not None
        if self.rows and step < self.rows[-1][0]:
            raise AssertionError(f"wandb would drop step {step} with a warning: {self.rows[-1][0]} was told")
        self.rows.append((step, data))

    def finish(self, exit_code: int | None = None) -> None:
        self.exit_codes.append(exit_code)


def init(
    entity: str | None = None,
    project: str | None = None,
    dir: str | None = None,
    id: str | None = None,
    name: str | None = None,
    notes: str | None = None,
    tags: Any = None,
    config: dict[str, Any] | str | None = None,
    *,
    resume: bool | str | None = None,
    settings: Settings | None = None,
) -> Run:
    assert id is not None and (resume == "allow" or id not in SERVER)
    run = SERVER.setdefault(id, Run(id))
    run.inits.append({"project": project, "name": name, "dir": dir, "config": config, "settings": settings})
    return run
