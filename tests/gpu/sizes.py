"""The sizes that the tests on a GPU have there, and on the CPU, where they are tried."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import veneer
from veneer.config.schema import RunConfig

__all__ = ["Sizes", "full_sizes", "tiny_sizes"]


@dataclass(frozen=True)
class Sizes:
    """What the example trains.

    Attributes:
        is_full: whether it is of the size that people train.
        base: what ``load_base`` takes.
        pictures: the folder to train on.
        held_out: a share of it, or another folder.
        steps: how many.
    """

    is_full: bool
    base: str
    pictures: Path
    held_out: float | str
    steps: int

    def config(self, output: Path, **train: Any) -> RunConfig:
        """Return the example's settings."""
        settings: dict[str, Any] = {"max_steps": self.steps, "batch_size": 8, "learning_rate": 1e-3, **train}
        values = {
            "base": self.base,
            "output": {"dir": str(output)},
            "data": {"sources": [{"path": str(self.pictures)}], "held_out": self.held_out},
            "train": settings,
            "sample": {"guidance": 2.5, "steps": 25 if self.is_full else 1},
            "validation": {} if self.is_full else {"draws": 1},
            "tracking": {"trackers": []},
        }
        return veneer.build_config(values, origin="test")


def full_sizes(demo: Path) -> Sizes:
    """Return the example's own."""
    return Sizes(True, "bundled", demo / "train", str(demo / "held_out"), 300)


def tiny_sizes(base: str, pictures: Path) -> Sizes:
    """Return those of the tests' own base."""
    return Sizes(False, base, pictures, 0.25, 3)
