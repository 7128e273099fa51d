"""The workspace of convolutions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from veneer.plan.cpu.workspace import KERNEL, Workspace, workspace
from veneer.plan.memory import STEP
from veneer.plan.tracer import MemoryTracer


def _workspace_of(channels: int, side: int) -> tuple[list[int], object]:
    weight = torch.zeros(channels, channels, 3, 3)
    given = torch.zeros(2, channels, side, side)
    how = ((1, 1), (1, 1), (1, 1), False, (0, 0), 1)
    sizes, kernel = workspace(torch.ops.aten.convolution.default, (given, weight, None, *how), torch.zeros_like(given))
    return list(sizes), kernel


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")
def test_a_convolution_copies_its_weight_what_goes_in_and_what_comes_out() -> None:
    sizes, kernel = _workspace_of(64, 16)
    picture = 4 * 2 * 64 * 16 * 16
    assert sizes == [4 * 64 * 64 * 9, picture, picture]
    assert kernel is not None and kernel == _workspace_of(64, 16)[1] != _workspace_of(64, 8)[1]


def test_other_operations_take_nothing() -> None:
    assert workspace(torch.ops.aten.mul.Tensor, (torch.zeros(2), 2), torch.zeros(2)) == Workspace()


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")
def test_the_tracer_records_workspace_beside_the_tensors() -> None:
    layer = nn.Conv2d(64, 64, 3, padding=1, bias=False)
    tracer = MemoryTracer(torch.device("cpu"))
    tracer.begin_phase(STEP)
    empty = tracer.without_data(layer)
    with tracer.tracing():
        x = torch.zeros(2, 64, 16, 16)
        first, second = empty(x), empty(x)
    assert first.shape == second.shape == x.shape
    weight, picture = 4 * 64 * 64 * 9, 4 * 2 * 64 * 16 * 16
    taken = [block.malloc for block in tracer.trace.blocks if block.malloc]
    assert sorted(taken) == sorted([picture, KERNEL, *2 * [weight, picture, picture, picture]])
    assert [block.mapped for block in tracer.trace.blocks if block.mapped] == [weight]  # once
    assert tracer.peaks()[STEP].total == weight + 3 * picture
    ends = [event for event in tracer.trace.events if event < 0]
    assert len(ends) == len(set(ends))
