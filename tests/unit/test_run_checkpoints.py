"""What a message says of a run's newest checkpoint is so, in the first process and in the others."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from veneer.run.checkpoints import CheckpointManager
from veneer.run.folder import CHECKPOINTS


def manager(folder: Path, *, is_first: bool) -> CheckpointManager:
    config = SimpleNamespace(train=SimpleNamespace(keep_checkpoints=2))
    run: Any = SimpleNamespace(folder=folder, config=config, provenance=None)
    processes: Any = SimpleNamespace(is_first=is_first)
    return CheckpointManager(run, None, lambda event: None, processes)


def test_the_first_process_knows_that_there_is_none(tmp_path: Path) -> None:
    assert manager(tmp_path, is_first=True).last_in_words == "there is no checkpoint yet"


def test_another_process_does_not_deny_what_the_first_may_be_writing(tmp_path: Path) -> None:
    """It has no way to know: the first writes its last one while the others end."""
    words = manager(tmp_path, is_first=False).last_in_words
    assert words == f"if the first process could write a checkpoint, it is in {tmp_path / CHECKPOINTS}"


@pytest.mark.parametrize("steps", [[3], [3, 12]])
def test_another_process_names_what_is_there(tmp_path: Path, steps: list[int]) -> None:
    for step in steps:
        (tmp_path / CHECKPOINTS / f"step-{step:09d}").mkdir(parents=True)
    words = manager(tmp_path, is_first=False).last_in_words
    assert words == f"the last checkpoint is {tmp_path / CHECKPOINTS / f'step-{steps[-1]:09d}'}"
