"""Recorded passes: gradients and losses are those of the pass itself, whatever is accumulated, moved or refused.

The recorder here does the work again on the recorded inputs, as a CUDA graph does on its addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.recording import Recorder
from tests.training import bits_of, tiny_config, trainer_on
from veneer.engine.cuda_graph import GraphedBackward
from veneer.family.protocol import Family
from veneer.train import loop
from veneer.train.events import StepDone, Warned
from veneer.train.step import add_gradients, train_step


@pytest.fixture
def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(3, 4, generator=generator)), nn.Parameter(torch.randn(3, generator=generator))]


def backward(parameters: list[nn.Parameter], inputs: Mapping[str, Tensor]) -> Tensor:
    weight, bias = parameters
    loss_B = (inputs["x"] @ weight.T + bias).square().mean(dim=1)
    torch.autograd.backward(loss_B.sum())
    return loss_B.detach()


def inputs_of(seed: int, rows: int = 2) -> dict[str, Tensor]:
    return {"x": torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed))}


def found_by(run: Callable[[Mapping[str, Tensor]], Tensor], parameters: list[nn.Parameter], *inputs: Any) -> list[Any]:
    """The losses of each micro-batch, and the gradients of their sum."""
    for parameter in parameters:
        parameter.grad = None
    losses = [run(one).tolist() for one in inputs]
    return [losses, *(parameter.grad.tolist() for parameter in parameters if parameter.grad is not None)]


@pytest.mark.parametrize("seeds", [(1,), (1, 2, 3)])
def test_a_step_has_the_same_losses_and_gradients(parameters: list[nn.Parameter], seeds: tuple[int, ...]) -> None:
    run = partial(backward, parameters)
    graphed = GraphedBackward(run, parameters, recorder := Recorder(parameters))
    for first in (0, 10, 20):
        micros = [inputs_of(first + seed) for seed in seeds]
        assert found_by(graphed, parameters, *micros) == found_by(run, parameters, *micros)
    assert recorder.counts == {"warm_up": 1, "record": 1, "replay": 3 * len(seeds), "release": 0}


def test_each_shape_is_recorded_once(parameters: list[nn.Parameter]) -> None:
    run = partial(backward, parameters)
    graphed = GraphedBackward(run, parameters, recorder := Recorder(parameters))
    for _ in range(2):
        micros = [inputs_of(1, rows=2), inputs_of(2, rows=3)]
        assert found_by(graphed, parameters, *micros) == found_by(run, parameters, *micros)
    assert (recorder.counts["record"], recorder.counts["warm_up"]) == (2, 1)


def test_passes_of_all_shapes_read_the_inputs_that_they_have_in_common_from_one_place() -> None:
    weight = nn.Parameter(torch.ones(3))

    def run(inputs: Mapping[str, Tensor]) -> Tensor:
        loss_B = (inputs["x"] * weight).sum(dim=1) * inputs["scale"]
        torch.autograd.backward(loss_B.sum())
        return loss_B.detach()

    graphed = GraphedBackward(run, [weight], Recorder([weight]))
    for step in range(3):
        micros = [
            {"x": torch.full((rows, 3), 1.0 + step + rows), "scale": torch.tensor(float(rows))} for rows in (1, 2)
        ]
        assert found_by(graphed, [weight], *micros) == found_by(run, [weight], *micros)
    assert len(graphed._inputs) == 3
    graphed.release()
    assert not graphed._inputs


def test_gradients_that_are_there_are_added_to(parameters: list[nn.Parameter]) -> None:
    """Also those that somebody else has set, as an exchange between processes does."""
    run = partial(backward, parameters)
    graphed = GraphedBackward(run, parameters, Recorder(parameters))
    found = []
    for way in (run, graphed):
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        way(inputs_of(1))
        found.append([parameter.grad for parameter in parameters])
    for one, other in zip(*found, strict=True):
        assert one is not None and other is not None and torch.equal(one, other)


def test_parameters_that_have_moved_are_recorded_again(parameters: list[nn.Parameter]) -> None:
    run = partial(backward, parameters)
    graphed = GraphedBackward(run, parameters, recorder := Recorder(parameters))
    graphed(inputs_of(1))
    parameters[0].data = parameters[0].data.clone() + 1
    assert found_by(graphed, parameters, inputs_of(2)) == found_by(run, parameters, inputs_of(2))
    assert (recorder.counts["record"], recorder.counts["release"]) == (2, 1)


def test_what_cannot_be_recorded_is_done(parameters: list[nn.Parameter]) -> None:
    run = partial(backward, parameters)
    graphed = GraphedBackward(run, parameters, recorder := Recorder(parameters, RuntimeError("it waits\nfor the GPU")))
    for seed in (1, 2):
        micros = [inputs_of(seed), inputs_of(seed + 10)]
        assert found_by(graphed, parameters, *micros) == found_by(run, parameters, *micros)
    assert graphed.fault == "it waits"
    assert (recorder.counts["record"], recorder.counts["release"]) == (1, 1)


def test_memory_that_runs_out_is_no_reason_to_go_on(parameters: list[nn.Parameter]) -> None:
    recorder = Recorder(parameters, torch.OutOfMemoryError("20 GiB"))
    graphed = GraphedBackward(partial(backward, parameters), parameters, recorder)
    with pytest.raises(torch.OutOfMemoryError):
        graphed(inputs_of(1))


def test_released_passes_are_recorded_again(parameters: list[nn.Parameter]) -> None:
    run = partial(backward, parameters)
    graphed = GraphedBackward(run, parameters, recorder := Recorder(parameters))
    graphed(inputs_of(1))
    graphed.release()
    graphed.release()
    assert recorder.counts["release"] == 1
    assert found_by(graphed, parameters, inputs_of(2)) == found_by(run, parameters, inputs_of(2))
    assert recorder.counts["record"] == 2


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_training_ends_in_the_same_bits(family: Family, tiny_pictures: Path, accumulate: int) -> None:
    config = tiny_config(tiny_pictures, train={"gradient_accumulation_steps": accumulate})
    ends = []
    for is_graphed in (False, True):
        with trainer_on(config, family) as trainer:
            context = trainer.context
            recorder = Recorder(context.parameters)
            graphs = GraphedBackward(partial(add_gradients, context), context.parameters, recorder)
            context = replace(context, graphs=graphs) if is_graphed else context
            for step in range(3):
                train_step(context, step, trainer.batches.micro_batches(step))
            assert graphs.fault is None
            ends.append(bits_of(trainer.injection.weights()))
    for name, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][name]), name


def test_a_run_says_once_that_nothing_could_be_recorded(family: Family, tiny_pictures: Path) -> None:
    config = tiny_config(tiny_pictures, train={"max_steps": 3})
    with trainer_on(config, family) as trainer:
        context = trainer.context
        recorder = Recorder(context.parameters, RuntimeError("it waits"))
        graphs = GraphedBackward(partial(add_gradients, context), context.parameters, recorder)
        trainer.context = replace(context, graphs=graphs)
        events = list(trainer.run())
    assert [event.code for event in events if isinstance(event, Warned)] == ["train.no_cuda_graph"]
    assert sum(isinstance(event, StepDone) for event in events) == 3


@pytest.mark.parametrize(
    ("sections", "device", "sizes", "expected"),
    [
        ({}, "cuda", 1, True),
        ({}, "cuda", 33, True),
        ({}, "cuda", 41, False),
        ({}, "cpu", 1, False),
        ({"train": {"cuda_graphs": False}}, "cuda", 1, False),
        ({"adapter": {"dropout": 0.1}}, "cuda", 1, False),
        ({"adapter": {"text_encoders": {"text_encoder": {}}}}, "cuda", 1, False),
    ],
)
def test_graphs_are_for_steps_that_are_the_same_each_time(
    family: Family,
    tiny_pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    sections: dict[str, Any],
    device: str,
    sizes: int,
    expected: bool,
) -> None:
    with trainer_on(tiny_config(tiny_pictures), family) as trainer:
        monkeypatch.setattr(loop, "device_of", lambda _: torch.device(device))
        graphs = loop.graphs_for(tiny_config(tiny_pictures, **sections), trainer.context, sizes)
    assert (graphs is not None) == expected
