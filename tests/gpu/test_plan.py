"""The plan's peak beside what PyTorch's allocator held at most."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

import veneer
from benchmarks import models
from tests.gpu.sizes import Sizes
from veneer.config.schema import RunConfig
from veneer.engine import MemoryLevel
from veneer.family.protocol import Family
from veneer.plan.assessment import assess_config, make_plan
from veneer.plan.memory import ENCODING, LOADING, STEP
from veneer.train.loop import Trainer
from veneer.train.step import train_step

Record = Callable[[str, object], None]
GIB = 2**30
CASES = [
    ("sd15", 512, 1, "exact"),
    ("sd15", 512, 4, "lean"),
    ("sdxl", 1024, 1, "lean"),
    ("sdxl", 1024, 1, "checkpoint"),
]


@pytest.mark.parametrize(("name", "pixels", "batch", "memory"), CASES)
def test_planned_and_held(
    name: str,
    pixels: int,
    batch: int,
    memory: MemoryLevel,
    device: torch.device,
    sizes: Sizes,
    tmp_path: Path,
    record_property: Record,
) -> None:
    precision = "bfloat16"
    config = sizes.config(tmp_path, batch_size=batch, memory=memory, precision=precision)
    if sizes.is_full:
        config = config.model_copy(update={"data": config.data.model_copy(update={"resolution": pixels})})
    models.warm_up(device)
    before = _held(device)
    family = models.published_family(name, device) if sizes.is_full else veneer.load_base(config.base)
    config = veneer.resolve(config, family)
    peak = _peak_of_steps(config, family, device) - before
    planned = make_plan(config, family, veneer.survey(config.data)).memory
    assert planned is not None
    most = max(phase.tensors for phase in planned.phases if phase.name in (LOADING, ENCODING, STEP))
    record_property("planned GiB", f"{most / GIB:.3f}")
    for phase in planned.phases:
        parts = {name: round(size / GIB, 2) for name, size in phase.parts.items() if size > GIB // 32}
        record_property(phase.name, f"{phase.tensors / GIB:.3f}, of it {parts}")
    if device.type == "cuda":
        record_property("held GiB", f"{peak / GIB:.3f}")
        assert most == pytest.approx(peak, rel=0.05)


def test_flux_is_planned_alone(sizes: Sizes, record_property: Record) -> None:
    """The bench's figure of its denoiser alone is what this may be held against."""
    if not sizes.is_full:
        pytest.skip("it takes long, and tells nothing without a GPU")
    values: dict[str, Any] = {"base": "flux-dev", "data": {"sources": [{"path": "pictures"}], "resolution": 1024}}
    values["train"] = {"batch_size": 1, "precision": "bfloat16", "memory": "lean", "quantization": "bfloat16"}
    plan = assess_config(veneer.build_config(values, "test"), count_pictures=False, limit=1 << 60).plan
    assert plan.memory is not None
    record_property("planned GiB", f"{plan.memory.step.tensors / GIB:.2f}")


def _held(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    gc.collect()  # what an earlier test held would be given back on the way, and be missing from the peak
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _peak_of_steps(config: RunConfig, family: Family, device: torch.device) -> int:
    """Return the bytes held at the fullest moment of encoding and two steps."""
    with closing(Trainer(config, family, veneer.survey(config.data))) as trainer:
        for step in range(2):
            micros = trainer.batches.micro_batches(0)
            trainer.offload()
            train_step(trainer.context, step, micros)
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
