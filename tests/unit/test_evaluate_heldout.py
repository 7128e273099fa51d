"""Held-out losses: the same numbers each time, an adapter that does nothing scores exactly zero."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training import bits_of, tiny_config, tiny_run
from veneer.adapter.inject import inject
from veneer.adapter.spec import Factors
from veneer.data.manifest import Manifest
from veneer.data.preflight import survey
from veneer.errors import UserError
from veneer.evaluate.heldout import evaluate, heldout_losses
from veneer.family.base import Family
from veneer.family.registry import load_family
from veneer.plan.account import specs_of
from veneer.train.events import Finished


@pytest.fixture(scope="module")
def family(tiny_base: Path) -> Family:
    return load_family(str(tiny_base))


@pytest.fixture(scope="module")
def trained(family: Family, tiny_pictures: Path) -> Factors:
    last = tiny_run(tiny_config(tiny_pictures, train={"steps": 12}), family)[-1]
    assert isinstance(last, Finished)
    return last.factors


def null_adapter(config: Any, family: Family) -> Factors:
    injection = inject(family.networks, specs_of(config.adapter), seed=0)
    try:
        return injection.factors()
    finally:
        injection.eject()


@pytest.mark.parametrize("adapter", [{}, {"text_encoder": {}}], ids=["unet", "both"])
def test_an_adapter_that_does_nothing_scores_exactly_zero(
    family: Family, tiny_pictures: Path, adapter: dict[str, Any]
) -> None:
    config = tiny_config(tiny_pictures, adapter=adapter)
    score = evaluate(config, family, survey(config.data), null_adapter(config, family))
    assert (score.mean, score.low, score.high) == (0.0, 0.0, 0.0)
    assert score.base == score.adapter > 0


def test_two_evaluations_are_equal_to_the_bit(family: Family, tiny_pictures: Path, trained: Factors) -> None:
    config = tiny_config(tiny_pictures)
    dataset = survey(config.data)
    first = heldout_losses(config, family, dataset.held_out)
    torch.manual_seed(5)
    assert np.array_equal(heldout_losses(config, family, dataset.held_out), first)
    assert evaluate(config, family, dataset, trained) == evaluate(config, family, dataset, trained)


def test_a_trained_adapter_changes_the_loss_and_leaves_the_base(
    family: Family, tiny_pictures: Path, trained: Factors
) -> None:
    before = bits_of(family.networks)
    config = tiny_config(tiny_pictures)
    score = evaluate(config, family, survey(config.data), trained)
    assert score.mean != 0 and score.mean == pytest.approx(score.adapter - score.base)
    assert score.low <= score.mean <= score.high
    after = bits_of(family.networks)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_row_a_picture_and_a_column_a_draw(family: Family, tiny_pictures: Path) -> None:
    config = tiny_config(tiny_pictures, evaluate={"draws": 5})
    held_out = survey(config.data).held_out
    losses = heldout_losses(config, family, held_out)
    assert losses.shape == (len(held_out.samples), 5) and losses.dtype == np.float64
    assert bool(np.isfinite(losses).all())
    one = heldout_losses(config, family, Manifest(held_out.samples[1:2]))
    assert np.array_equal(one[0], losses[1])  # a picture's losses are its own


@pytest.mark.parametrize("draws", [1, 4, 8])
def test_timesteps_are_spread_over_all_of_time(family: Family, tiny_pictures: Path, draws: int) -> None:
    """One in each of as many equal parts as there are draws, for every picture."""
    config = tiny_config(tiny_pictures, evaluate={"draws": draws})
    seen: list[list[int]] = []

    class Spy:
        def __getattr__(self, name: str) -> Any:
            return getattr(family, name)

        def predict(self, noisy: torch.Tensor, timestep: torch.Tensor, conditioning: torch.Tensor) -> torch.Tensor:
            seen.append(timestep.tolist())
            return family.predict(noisy, timestep, conditioning)

    heldout_losses(config, Spy(), survey(config.data).held_out)
    for timesteps in seen:
        assert [t * draws // 1000 for t in timesteps] == list(range(draws))
    assert len({tuple(timesteps) for timesteps in seen}) == len(seen) > 1


def test_what_was_trained_with_does_not_change_the_measure(family: Family, tiny_pictures: Path) -> None:
    """Other objectives, schedules and augmentations are measured with the same rod; another seed is another rod."""
    plain = tiny_config(tiny_pictures)
    held_out = survey(plain.data).held_out
    losses = heldout_losses(plain, family, held_out)
    others: dict[str, Any] = {
        "objective": {"weighting": "min_snr", "timesteps": "high_noise"},
        "data": {"flip": True, "crop": "random", "caption_dropout": 0.9},
        "train": {"steps": 50, "batch": 1},
    }
    assert np.array_equal(heldout_losses(tiny_config(tiny_pictures, **others), family, held_out), losses)
    assert not np.array_equal(heldout_losses(tiny_config(tiny_pictures, seed=1), family, held_out), losses)


def test_it_is_measured_in_the_precision_that_was_trained_in(family: Family, tiny_pictures: Path) -> None:
    exact, rough = (tiny_config(tiny_pictures, train={"precision": p}) for p in ("float32", "bfloat16"))
    held_out = survey(exact.data).held_out
    losses = heldout_losses(exact, family, held_out)
    assert not np.array_equal(heldout_losses(rough, family, held_out), losses)
    np.testing.assert_allclose(heldout_losses(rough, family, held_out), losses, rtol=0.05)


def test_no_held_out_picture_is_a_mistake_of_the_config(family: Family, tiny_pictures: Path, trained: Factors) -> None:
    config = tiny_config(tiny_pictures, data={"held_out": 0.0})
    dataset = survey(config.data)
    assert dataset.held_out.samples == ()
    with pytest.raises(UserError, match=r"data\.held_out"):
        evaluate(config, family, dataset, trained)
