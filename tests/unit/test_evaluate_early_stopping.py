"""The best adapter so far, and the patience with those after it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from veneer.adapter.lora import LoraFactors
from veneer.evaluate.early_stopping import EarlyStopping


def factors(number: float) -> dict[str, LoraFactors]:
    return {"unet.a.to_q": LoraFactors(torch.full((2, 3), number), torch.full((3, 2), number), alpha=1.5)}


def losses(mean: float) -> Any:
    return mean + np.array([[-0.1, 0.1], [0.2, -0.2], [0.0, 0.0]])


def selection(*means: float, patience: int = 2) -> EarlyStopping:
    found = EarlyStopping(patience, "a measure")
    for place, mean in enumerate(means, start=1):
        found.observe(place, losses(mean), factors(mean))
    return found


def test_the_lowest_mean_is_the_best_and_the_earliest_of_equal_ones() -> None:
    found = EarlyStopping(0, "a measure")
    told = [found.observe(step, losses(mean), factors(mean)) for step, mean in enumerate((3.0, 1.0, 2.0, 1.0))]
    assert told == [True, True, False, False]
    assert found.best is not None and found.best.step == 1 and found.wait == 2
    assert torch.equal(found.best.weights["unet.a.to_q"].down, factors(1.0)["unet.a.to_q"].down)


@pytest.mark.parametrize(
    ("means", "patience", "exhausted"),
    [((1.0, 2.0), 2, False), ((1.0, 2.0, 3.0), 2, True), ((1.0, 2.0, 0.5, 3.0), 2, False), ((1.0, 2.0, 3.0), 0, False)],
)
def test_patience_counts_scores_in_a_row_without_a_better_one(
    means: tuple[float, ...], patience: int, exhausted: bool
) -> None:
    assert selection(*means, patience=patience).should_stop is exhausted


def test_a_missed_score_is_not_a_better_one() -> None:
    found = selection(1.0, 2.0)
    found.observe_failure()
    assert found.should_stop and found.best is not None and found.best.step == 1


def test_the_difference_to_the_best_has_an_interval() -> None:
    difference = selection(1.0, 2.0).difference_to_best(losses(2.0), seed=0)
    assert (difference.mean, difference.low, difference.high) == pytest.approx((1.0, 1.0, 1.0))
    assert difference.verdict == "worse"


def test_its_state_comes_back_bit_for_bit() -> None:
    found, again = selection(2.0, 1.0, 3.0), EarlyStopping(2, "a measure")
    state = found.state_dict()
    assert again.load_state_dict(state)
    assert again.wait == found.wait == 1 and not again.should_stop
    assert again.best is not None and found.best is not None and again.best.step == 2
    assert np.array_equal(again.best.losses, found.best.losses)
    assert again.best.weights["unet.a.to_q"].alpha == 1.5
    after = again.state_dict()
    assert after.keys() == state.keys() and all(torch.equal(after[name], state[name]) for name in state)
    again.observe(9, losses(5.0), factors(5.0))
    assert again.should_stop


def test_before_the_first_score_there_is_nothing_to_remember() -> None:
    empty = EarlyStopping(2, "a measure")
    assert empty.state_dict() == {}
    assert empty.load_state_dict({"adapter.x": torch.zeros(1)}) and empty.best is None


def test_losses_of_another_measure_are_not_compared_with() -> None:
    other = EarlyStopping(2, "another measure")
    assert not other.load_state_dict(selection(1.0).state_dict())
    assert other.best is None and other.wait == 0
