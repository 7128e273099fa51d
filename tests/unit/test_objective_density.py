"""Densities of timesteps and their shifts against closed forms, torch and diffusers' scheduler."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from hypothesis import given
from hypothesis import strategies as st

from veneer.family.pipeline_timesteps import shift_of_tokens
from veneer.objective.density import DENSITIES, TimestepDensity, apply_shift, logit_normal

GRID = [(place + 0.5) / 10_000 for place in range(10_000)]
SHIFTS = st.floats(0.01, 100)


def share_below(density: TimestepDensity, t: float) -> float:
    """The exact share, from an even grid."""
    return float((density.draw(GRID, [(64, 64, 1)] * len(GRID)) < t).double().mean())


def normal_cdf(value: float) -> float:
    return 0.5 * math.erfc(-value / math.sqrt(2))


def logit(t: float) -> float:
    return math.log(t / (1 - t))


@pytest.mark.parametrize("t", [0.25, 0.5, 0.75])
def test_densities_are_what_they_say(t: float) -> None:
    """Uniform p(t < s) = s, high noise s^2, logit-normal Phi((logit s - mean) / std)."""
    assert share_below(TimestepDensity("uniform"), t) == pytest.approx(t, abs=1e-4)
    assert share_below(TimestepDensity("high_noise"), t) == pytest.approx(t**2, abs=1e-4)
    for mean, std in ((0.0, 1.0), (0.5, 1.5), (-1.0, 0.5)):
        expected = normal_cdf((logit(t) - mean) / std)
        assert share_below(TimestepDensity("logit_normal", mean, std), t) == pytest.approx(expected, abs=1e-4)


@given(st.floats(0, 1, exclude_max=True), st.floats(-3, 3), st.floats(0.1, 3))
def test_logit_normal_is_torchs(number: float, mean: float, std: float) -> None:
    """sigmoid(mean + std Phi^-1(u)), which is what diffusers' scripts draw: sigmoid of a normal number."""
    expected = torch.sigmoid(mean + std * torch.special.ndtri(torch.tensor(number, dtype=torch.float64)))
    assert logit_normal(number, mean, std) == pytest.approx(float(expected), rel=1e-9, abs=1e-300)


@given(SHIFTS, st.floats(0, 1, exclude_max=True), st.sampled_from(sorted(DENSITIES)))
def test_every_time_is_in_range_and_the_ends_stay(shift: float, number: float, density: str) -> None:
    (t,) = TimestepDensity(density, 0.5, 5.0, lambda height, width, frames: shift).draw([number], [(8, 8, 1)]).tolist()
    assert 0 <= t <= 1
    assert (apply_shift(0.0, shift), apply_shift(1.0, shift)) == (0, pytest.approx(1))


@given(SHIFTS, SHIFTS, st.floats(0, 1))
def test_two_shifts_are_one(first: float, second: float, t: float) -> None:
    both = apply_shift(apply_shift(t, first), second)
    assert both == pytest.approx(apply_shift(t, first * second), rel=1e-9, abs=1e-12)


@given(SHIFTS, st.floats(0.001, 0.999), st.floats(-2, 2))
def test_a_shift_of_a_logit_normal_moves_its_mean(shift: float, number: float, mean: float) -> None:
    shifted = apply_shift(logit_normal(number, mean, 1.5), shift)
    assert shifted == pytest.approx(logit_normal(number, mean + math.log(shift), 1.5), rel=1e-9)


def test_each_picture_of_a_batch_has_the_shift_of_its_size() -> None:
    density = TimestepDensity("uniform", shift_of=lambda height, width, frames: height * width / 64)
    drawn = density.draw([0.25, 0.5, 0.75], [(8, 8, 1), (16, 8, 1), (8, 32, 1)])
    assert drawn.tolist() == [0.25, apply_shift(0.5, 2), apply_shift(0.75, 4)]
    assert drawn.dtype == torch.float64


@pytest.mark.parametrize("name", DENSITIES)
@pytest.mark.parametrize(("low", "high"), [(0.875, 1.0), (0.0, 0.875), (0.2, 0.3)])
def test_a_cut_density_has_the_proportions_of_the_whole_one(name: str, low: float, high: float) -> None:
    shape = name, 0.3, 1.2, lambda height, width, frames: 3.0
    whole, cut = TimestepDensity(*shape), TimestepDensity(*shape, within=(low, high))
    drawn = cut.draw(GRID, [(64, 64, 1)] * len(GRID))
    assert low <= drawn.min() and drawn.max() <= high
    middle = 0.4 * low + 0.6 * high
    inside = share_below(whole, high) - share_below(whole, low)
    wanted = (share_below(whole, middle) - share_below(whole, low)) / inside
    assert share_below(cut, middle) == pytest.approx(wanted, abs=3 / (inside * len(GRID)))


@given(st.floats(0, 1, exclude_max=True), st.sampled_from(sorted(DENSITIES)))
def test_no_time_of_a_cut_density_is_outside(number: float, name: str) -> None:
    (t,) = (
        TimestepDensity(name, 0.0, 5.0, lambda height, width, frames: 7.0, (0.875, 1.0))
        .draw([number], [(8, 8, 1)])
        .tolist()
    )
    assert 0.875 <= t <= 1


def test_a_time_has_the_same_bits_alone_as_in_a_batch() -> None:
    density, numbers = TimestepDensity("logit_normal", 0.1, 1.3, lambda height, width, frames: 3.1582), GRID[::7]
    together = density.draw(numbers, [(8, 8, 1)] * len(numbers))
    alone = [density.draw([number], [(8, 8, 1)]) for number in numbers]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("tokens", [256, 1000, 4096, 6400])
def test_the_shift_of_a_resolution_is_diffusers(kind: str, tokens: int) -> None:
    """FLUX's pipeline: ``calculate_shift``, then ``time_shift`` over an even grid."""
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, max_shift=1.15, time_shift_type=kind)
    config = scheduler.config
    mu = calculate_shift(
        tokens, config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift
    )
    even = torch.linspace(1, 0.01, 100, dtype=torch.float64)
    scheduler.set_timesteps(sigmas=even.numpy(), mu=mu)
    shift = shift_of_tokens(config, tokens)
    expected = torch.tensor([apply_shift(t, shift) for t in even.tolist()])
    torch.testing.assert_close(scheduler.sigmas[:-1], expected, rtol=1e-5, atol=1e-6)
