"""A base in few bits trains on the GPU, and its weights are read there as on the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import pytest
import torch

import veneer
from tests.gpu.sizes import Sizes
from veneer.engine.quantization import FORMATS
from veneer.family.loading import load_options
from veneer.train.events import StepDone

Record = Callable[[str, object], None]
STEPS = 5


def _installed(name: str) -> None:
    if not FORMATS[name].is_installed:
        pytest.skip(f"{FORMATS[name].library} is not installed")


@pytest.mark.parametrize("name", FORMATS)
def test_a_weight_is_read_as_on_the_cpu(name: str, device: torch.device) -> None:
    _installed(name)
    weight = torch.randn(96, 128, generator=torch.Generator().manual_seed(0))
    form, shape = FORMATS[name], (96, 128)
    here = form.unpack(form.pack(weight), shape, torch.float32)
    there = form.unpack(form.pack(weight.to(device)), shape, torch.float32).cpu()
    # one step of the finest grid, where a number lies between two
    assert float((here - there).abs().max()) <= 0.1 * float((here - weight).abs().max())


@pytest.mark.parametrize("name", FORMATS)
def test_a_base_in_few_bits_trains(
    name: str, device: torch.device, sizes: Sizes, tmp_path: Path, record_property: Record
) -> None:
    _installed(name)
    losses = {form: _losses(form, sizes, tmp_path) for form in ("none", name)}
    record_property("loss", f"{fmean(losses[name]):.4f} beside {fmean(losses['none']):.4f} without")
    assert all(map(math.isfinite, losses[name]))
    assert fmean(losses[name]) == pytest.approx(fmean(losses["none"]), rel=0.2)


def _losses(form: str, sizes: Sizes, folder: Path) -> list[float]:
    precision = "bfloat16" if sizes.is_full else "float32"
    config = sizes.config(folder, max_steps=STEPS, quantization=form, precision=precision)
    family = veneer.load_base(config.base, **load_options(config))
    events = veneer.train_adapter(veneer.resolve(config, family), family, veneer.survey(config.data))
    return [event.loss for event in events if isinstance(event, StepDone)]
