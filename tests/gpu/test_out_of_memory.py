"""What does not fit on the GPU ends in one line with a remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.gpu.sizes import Sizes
from tests.running import without_rehearsals
from veneer.errors import UserError
from veneer.family.loading import load_base
from veneer.run.faults import OUT_OF_MEMORY
from veneer.run.session import run_training

SHARE = 0.5
"""Of what the loaded base takes, that is free for steps."""


@contextmanager
def _little_memory(base: str, device: torch.device, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave room for the base and for little more; on the CPU, whose memory has no such limit, steps say so."""
    if device.type == "cpu":
        patch.setattr("veneer.train.loop.train_step", _out_of_memory)
        yield
        return
    torch.cuda.empty_cache()
    family = load_base(base)
    needed, total = torch.cuda.memory_allocated(), torch.cuda.get_device_properties(device).total_memory
    del family
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((1 + SHARE) * needed / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def _out_of_memory(*_: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has a total of 79 GiB")


def test_a_run_that_does_not_fit(
    device: torch.device, sizes: Sizes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_rehearsals(monkeypatch)
    config = sizes.config(tmp_path / "run", batch_size=128 if sizes.is_full else 2)
    with _little_memory(sizes.base, device, monkeypatch), pytest.raises(UserError) as caught:
        run_training(config)
    assert caught.value.code == OUT_OF_MEMORY
    assert len(str(caught.value).splitlines()) == 1
    assert "train.memory" in str(caught.value)
