"""The average over the steps: its numbers, and who sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.training_utils import EMAModel
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.errors import raises_code
from tests.training import tiny_config, trainer_on
from veneer.family.protocol import Family
from veneer.train.ema import ExponentialMovingAverage, decay_at
from veneer.train.events import CheckpointDue, Finished, SampleDue, StepDone
from veneer.train.loop import Trainer


def random_walk(steps: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(4, 3, generator=generator) for _ in range(steps + 1)]


def averaged(values: list[Tensor], decay: float) -> Tensor:
    """What ``ExponentialMovingAverage`` makes of a parameter that has these values one after another."""
    parameter = nn.Parameter(values[0].clone())
    average = ExponentialMovingAverage({"w": parameter}, decay)
    for step, value in enumerate(values[1:], 1):
        parameter.data.copy_(value)
        average.update(step)
    return average.state_dict()["average.w"]


@given(decay=st.floats(0.01, 0.9999), steps=st.integers(1, 60))
def test_closed_form(decay: float, steps: int) -> None:
    """In float64: the k-th value weighs (1 - d_k) times the decays after it."""
    values = random_walk(steps)
    decays = [min(decay, (1 + k) / (10 + k)) for k in range(1, steps + 1)]
    expected = values[0].double()
    for weight, value in zip(decays, values[1:], strict=True):
        expected = weight * expected + (1 - weight) * value.double()
    torch.testing.assert_close(averaged(values, decay).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decay", [0.3, 0.9, 0.999])
def test_as_diffusers_has_it(decay: float) -> None:
    """Its warm-up counts from the first update if it is told to begin before it."""
    values = random_walk(40)
    parameter = nn.Parameter(values[0].clone())
    theirs = EMAModel([parameter], decay=decay, update_after_step=-1)
    for value in values[1:]:
        parameter.data.copy_(value)
        theirs.step([parameter])
    torch.testing.assert_close(averaged(values, decay), theirs.shadow_params[0], rtol=1e-6, atol=1e-6)


def test_as_torch_has_it_once_warm() -> None:
    """A decay that the warm-up never holds back: 2/11 is its first."""
    values = random_walk(20)
    layer = nn.Linear(3, 4, bias=False)
    layer.weight.data.copy_(values[0])
    theirs = AveragedModel(layer, multi_avg_fn=get_ema_multi_avg_fn(0.15))
    theirs.update_parameters(layer)  # which copies, the first time
    for value in values[1:]:
        layer.weight.data.copy_(value)
        theirs.update_parameters(layer)
    torch.testing.assert_close(averaged(values, 0.15), theirs.module.weight.data, rtol=0, atol=0)


def test_the_decay_warms_up() -> None:
    assert [decay_at(0.5, step) for step in (1, 2, 8, 9)] == [2 / 11, 3 / 12, 0.5, 0.5]


def test_lent_and_given_back() -> None:
    parameter = nn.Parameter(torch.tensor([1.0, -0.0]))
    average = ExponentialMovingAverage({"w": parameter}, 0.5)
    parameter.data.copy_(torch.tensor([3.0, 1e-45]))
    average.update(1)
    with pytest.raises(ZeroDivisionError), average.in_place():
        torch.testing.assert_close(parameter.data, torch.tensor([1 + 2 * 9 / 11, 0.0]))
        raise ZeroDivisionError
    assert parameter.view(torch.int32).tolist() == torch.tensor([3.0, 1e-45]).view(torch.int32).tolist()


def test_off_it_does_nothing() -> None:
    parameter = nn.Parameter(torch.ones(2))
    average = ExponentialMovingAverage({"w": parameter}, None)
    average.update(1)
    with average.in_place():
        assert parameter.tolist() == [1.0, 1.0]
    assert average.state_dict() == {}


def factors_of(trainer: Trainer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trainer.injection.named_parameters()}


def test_the_average_is_what_is_painted_and_saved(family: Family, tiny_pictures: Path) -> None:
    """Followed from outside: the adapter after each step, the average where samples are due, and at the end."""
    config = tiny_config(
        tiny_pictures, train={"max_steps": 4, "ema_decay": 0.7, "checkpoint_every": 1}, sample={"every": 2}
    )
    steps, shown, states, last = [], {}, [], None
    with trainer_on(config, family, moved=False) as trainer:
        start = factors_of(trainer)
        for event in trainer.run():
            if isinstance(event, StepDone):
                steps.append(factors_of(trainer))
            if isinstance(event, SampleDue):
                shown[event.step] = factors_of(trainer)
            if isinstance(event, CheckpointDue):
                states.append(trainer.state_dict())
            if isinstance(event, Finished):
                last = {
                    f"{path}.lora_{k}.weight": t
                    for path, f in event.weights.items()
                    for k, t in (("A", f.down), ("B", f.up))
                }
    assert last is not None and shown.keys() == {0, 2, 4}
    for name, first in start.items():
        expected = averaged([first, *(step[name] for step in steps)], 0.7)
        assert torch.equal(last[name], expected) and torch.equal(shown[4][name], expected)
        assert torch.equal(shown[2][name], averaged([first, steps[0][name], steps[1][name]], 0.7))
        # a checkpoint holds the adapter itself and its average, also where a sample was due just before
        for step, state in zip(steps, states, strict=True):
            assert torch.equal(state[f"adapter.{name}"], step[name])
        assert torch.equal(states[3][f"average.{name}"], expected)
        assert not torch.equal(expected, steps[3][name])


def test_looking_at_the_average_changes_no_step(family: Family, tiny_pictures: Path) -> None:
    finals = []
    for every in (0, 1):
        config = tiny_config(tiny_pictures, train={"ema_decay": 0.7}, sample={"every": every})
        with trainer_on(config, family, moved=False) as trainer:
            assert isinstance(list(trainer.run())[-1], Finished)
            finals.append(trainer.state_dict())
    assert finals[0].keys() == finals[1].keys()
    assert all(torch.equal(finals[0][name], finals[1][name]) for name in finals[0])


def test_a_state_is_not_taken_while_the_average_is_lent(family: Family, tiny_pictures: Path) -> None:
    config = tiny_config(tiny_pictures, train={"ema_decay": 0.7}, sample={"every": 1})
    with trainer_on(config, family) as trainer:
        events = trainer.run()
        assert any(isinstance(event, SampleDue) and event.step == 1 for event in events)
        with pytest.raises(AssertionError):
            trainer.state_dict()
        events.close()
        trainer.state_dict()


def test_a_skipped_step_is_not_taken_in(family: Family, tiny_pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(tiny_pictures, train={"ema_decay": 0.7, "on_nonfinite": "skip", "max_steps": 1})
    with trainer_on(config, family) as trainer:  # its parameters were moved away from where the average began
        before = trainer.state_dict()
        no_number = torch.full((2,), float("nan"), requires_grad=True)
        monkeypatch.setattr(trainer.context.objective.__class__, "loss_B", lambda *_: no_number)
        list(trainer.run())
        after = trainer.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if name != "step")


def test_an_average_may_begin_or_end_at_a_resume(family: Family, tiny_pictures: Path) -> None:
    plain, smooth = (tiny_config(tiny_pictures, train={"ema_decay": ema}) for ema in (None, 0.7))
    states: dict[Any, dict[str, Tensor]] = {}
    for config in (plain, smooth):
        with trainer_on(config, family) as trainer:
            list(trainer.run())
            states[config] = trainer.state_dict()
    with trainer_on(smooth, family, moved=False) as trainer:
        trainer.load_state_dict(states[plain])
        for name, parameter in trainer.injection.named_parameters():
            assert torch.equal(trainer.state_dict()[f"average.{name}"], parameter)
    with trainer_on(plain, family, moved=False) as trainer:
        trainer.load_state_dict(states[smooth])
        assert trainer.state_dict().keys() == states[plain].keys()


def test_half_an_average_is_refused_and_changes_nothing(family: Family, tiny_pictures: Path) -> None:
    config = tiny_config(tiny_pictures, train={"ema_decay": 0.7})
    with trainer_on(config, family) as trainer:
        state = trainer.state_dict()
        lost = next(name for name in state if name.startswith("average."))
        adapter = lost.replace("average.", "adapter.")
        state[adapter].add_(1)
        with raises_code("checkpoint.other_run", f"of another run: {lost} is missing"):
            trainer.load_state_dict({name: tensor for name, tensor in state.items() if name != lost})
        assert not torch.equal(trainer.state_dict()[adapter], state[adapter])
