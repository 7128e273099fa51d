"""A training that goes on from a saved state ends in the bits of one that was never stopped."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

import veneer
from tests.gpu.sizes import Sizes
from veneer.config.schema import RunConfig
from veneer.engine import MemoryLevel
from veneer.family.protocol import Family
from veneer.train.loop import Trainer

Record = Callable[[str, object], None]
STEPS = 6


@pytest.mark.parametrize("memory", ["exact", "lean", "checkpoint"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_resume_to_the_same_bits(
    precision: str, memory: MemoryLevel, device: torch.device, sizes: Sizes, tmp_path: Path, record_property: Record
) -> None:
    config = sizes.config(tmp_path, max_steps=STEPS, precision=precision, memory=memory)
    family = veneer.load_base(config.base)
    config = veneer.resolve(config, family)
    with _deterministic() as complaints:
        whole = _state(config, family, STEPS, None)
        half = _state(config, family, STEPS // 2, None)
        resumed = _state(config, family, STEPS, half)
        record_property("not deterministic", ", ".join(sorted(complaints())) or "nothing")
    differing = [name for name, tensor in whole.items() if not torch.equal(tensor, resumed[name])]
    assert not differing, f"{len(differing)} of {len(whole)} differ, the first is {differing[0]}"


def _state(config: RunConfig, family: Family, steps: int, start: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Return the state after so many steps in all."""
    with closing(Trainer(config, family, veneer.survey(config.data))) as trainer:
        if start is not None:
            trainer.load_state_dict(start)
        for _ in trainer.run():
            if trainer.steps_done >= steps:
                break
        return trainer.state_dict()


@contextmanager
def _deterministic() -> Iterator[Callable[[], set[str]]]:
    """Ask PyTorch for kernels that always give the same bits; yield what names those that it has none for."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield lambda: {str(w.message).partition(" does not")[0] for w in caught if "determinis" in str(w.message)}
        finally:
            torch.use_deterministic_algorithms(False)
