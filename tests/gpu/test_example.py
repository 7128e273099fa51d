"""The example learns on the GPU in each precision, and the script itself ends well."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import veneer
from tests.gpu.sizes import Sizes
from tools.on_gpu.places import ROOT
from veneer.train.events import Finished, StepDone, StepSkipped

Record = Callable[[str, object], None]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_the_example_learns(
    precision: str, device: torch.device, sizes: Sizes, tmp_path: Path, record_property: Record
) -> None:
    config = sizes.config(tmp_path, precision=precision, max_steps=min(sizes.steps, 100))
    family = veneer.load_base(config.base)
    config, dataset = veneer.resolve(config, family), veneer.survey(config.data)
    events = list(veneer.train_adapter(config, family, dataset))
    losses = [event.loss for event in events if isinstance(event, StepDone)]
    skipped = sum(isinstance(event, StepSkipped) for event in events)
    (weights,) = [event.weights for event in events if isinstance(event, Finished)]
    score = veneer.score_adapter(config, family, dataset, weights)
    record_property("score", str(score))
    record_property("skipped", skipped)
    assert len(losses) == config.train.max_steps
    assert all(map(math.isfinite, (*losses, score.mean, score.adapter)))
    # float16 begins with a scale that is too large on purpose
    assert skipped <= (10 if precision == "float16" else 0)
    assert not sizes.is_full or score.verdict == "better"


def test_the_script_ends_well(device: torch.device, sizes: Sizes, tmp_path: Path) -> None:
    options = [] if sizes.is_full else ["--base", sizes.base, "--data", str(sizes.pictures), "--steps", "2"]
    command = [sys.executable, "lora_complete_example.py", "--output", str(tmp_path / "out"), *options]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert {"test_image.png", "sheet.png", veneer.FILE_NAME} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert not sizes.is_full or "memory on cuda" in ended.stdout
