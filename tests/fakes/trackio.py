"""As much of Trackio 0.43 as Veneer calls, with its parameters and its rules.

It asks for an older Pillow than the one that the tests are pinned to, so it cannot be installed beside them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

DATABASE: dict[str, Run] = {}
"""Runs by name."""


class Image:
    def __init__(self, value: Any, caption: str | None = None) -> None:
        self.content = Path(value).read_bytes()


class Run:
    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, Any]]] = []
        self.inits: list[dict[str, Any]] = []
        self.finished = 0

    def log(self, metrics: dict[str, Any], step: int | None = None) -> None:
        assert step is not None
        self.rows.append((step, metrics))


def init(
    project: str,
    name: str | None = None,
    group: str | None = None,
    space_id: str | None = None,
    server_url: str | None = None,
    dataset_id: str | None = None,
    bucket_id: str | None = None,
    config: dict[str, Any] | None = None,
    resume: str = "never",
    settings: Any = None,
    private: bool | None = None,
    embed: bool = True,
) -> Run:
    assert name is not None and (resume == "allow" or name not in DATABASE)
    run = DATABASE.setdefault(name, Run())
    run.inits.append({"project": project, "config": config, "embed": embed})
    return run


def finish() -> None:
    next(reversed(DATABASE.values())).finished += 1
