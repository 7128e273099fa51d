"""A step by CUDA graphs gives the bits of one without, takes less time, and one that cannot be recorded is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import pytest
import torch
from torch import Tensor

import veneer
from tests.gpu.sizes import Sizes
from veneer.engine import MemoryLevel
from veneer.engine.memory_levels import MEMORY_LEVELS
from veneer.family.protocol import Family
from veneer.train.events import Warned
from veneer.train.loop import Trainer

Record = Callable[[str, object], None]
STEPS = 8


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    """Ask PyTorch for kernels that always give the same bits."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("precision", "memory"),
    [("float32", "lean"), ("float16", "checkpoint"), *(("bfloat16", memory) for memory in MEMORY_LEVELS)],
)
def test_the_same_adapter(
    precision: str, memory: MemoryLevel, device: torch.device, sizes: Sizes, tmp_path: Path, record_property: Record
) -> None:
    family = veneer.load_base(sizes.base)
    without, slow, _ = _trained(family, sizes, tmp_path, precision, memory, False)
    graphed, fast, warnings = _trained(family, sizes, tmp_path, precision, memory, True)
    record_property("time over that without", f"{fast / slow:.2f}")
    assert not warnings
    assert _differing(without, graphed) == []


def test_a_pass_that_waits_is_done_without(
    device: torch.device, sizes: Sizes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = veneer.load_base(sizes.base)
    without, _, _ = _trained(family, sizes, tmp_path, "float32", "lean", False)
    predict = family.predict

    def waiting(noisy: Tensor, *others: object) -> Tensor:
        assert noisy.sum().item() < 1e9
        return predict(noisy, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(family, "predict", waiting)
    found, _, warnings = _trained(family, sizes, tmp_path, "float32", "lean", True)
    assert [warning.code for warning in warnings] == (["train.no_cuda_graph"] if device.type == "cuda" else [])
    assert _differing(without, found) == []


def _differing(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> list[str]:
    return [name for name, tensor in first.items() if not torch.equal(tensor, second[name])]


def _trained(
    family: Family, sizes: Sizes, folder: Path, precision: str, memory: MemoryLevel, has_graphs: bool
) -> tuple[dict[str, Tensor], float, Sequence[Warned]]:
    """Return the state after some steps, the seconds of the last ones, and the warnings on the way."""
    config = sizes.config(folder, max_steps=STEPS, precision=precision, memory=memory, cuda_graphs=has_graphs)
    config = veneer.resolve(config, family)
    with closing(Trainer(config, family, veneer.survey(config.data))) as trainer:
        warnings, ends = [], []
        for event in trainer.run():
            warnings += [event] if isinstance(event, Warned) else []
            ends.append(time.perf_counter())
            if trainer.steps_done >= STEPS:
                break
        return trainer.state_dict(), ends[-1] - ends[-4], warnings
