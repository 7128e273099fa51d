"""Properties of densities, conversions and weights, and that each field of ObjectiveConfig does what it says."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.bases import Defaults
from tests.errors import raises_code
from tests.predictions import eps_of, x0_of
from veneer.config.objective_config import ObjectiveConfig
from veneer.family.diffusion import DiscreteDiffusion
from veneer.family.protocol import Conditioning
from veneer.objective.density import DENSITIES, TimestepDensity
from veneer.objective.loss import Objective
from veneer.objective.weighting import WEIGHTINGS, min_snr

PREDICTIONS = ("epsilon", "v_prediction", "sample")
T = 100
NOTHING = Conditioning({})


def time_of(timestep_idx_B: Tensor) -> Tensor:
    """Each timestep as a time in its middle."""
    return (timestep_idx_B.double() + 0.5) / T


def cosine(prediction: str, zero_terminal_snr: bool = True) -> DiscreteDiffusion:
    """alpha-bar = cos^2, from just below 1 to exactly 0 (or just above)."""
    angle = torch.linspace(0.01, math.pi / 2 - (0 if zero_terminal_snr else 0.01), T, dtype=torch.float64)
    alpha_bar = angle.cos().square()
    if zero_terminal_snr:
        alpha_bar[-1] = 0.0
    return DiscreteDiffusion(alpha_bar.float(), prediction)  # type: ignore[arg-type]


def draw(density: str, numbers: list[float]) -> Tensor:
    return TimestepDensity(density).draw(numbers, [(64, 64, 1)] * len(numbers))


def some_pictures(batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    latent, noise = (torch.randn(batch, 4, 4, 4, generator=generator) for _ in range(2))
    return latent, noise, time_of(torch.tensor([0, T // 2, T - 1])[:batch])


@given(
    st.sampled_from(sorted(DENSITIES)), st.lists(st.floats(0, 1, exclude_max=True), min_size=1), st.integers(1, 1000)
)
def test_every_number_below_one_gives_a_timestep(density: str, numbers: list[float], total: int) -> None:
    t_B = draw(density, numbers)
    assert t_B.dtype == torch.float64 and bool(((t_B >= 0) & (t_B <= 1)).all())
    timestep = DiscreteDiffusion(torch.linspace(0.9, 0.1, total), "epsilon").index(t_B)
    assert timestep.dtype == torch.long
    assert 0 <= int(timestep.min()) <= int(timestep.max()) < total


@given(st.sampled_from(sorted(DENSITIES)))
def test_an_inverse_cdf_rises(density: str) -> None:
    t_B = draw(density, [place / 512 for place in range(512)])
    assert bool((t_B.diff() > 0).all())


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("weighting", sorted(WEIGHTINGS))
def test_the_loss_is_finite_at_zero_terminal_snr(prediction: str, weighting: str) -> None:
    objective = Objective(cosine(prediction), weighting=weighting)
    latent, noise, t_B = some_pictures()
    loss = objective.loss_B(lambda noisy, *_: noisy * 0.5, latent, noise, t_B, NOTHING)
    assert loss.shape == (3,)
    assert bool(loss.isfinite().all())


def test_min_snr_weights_at_zero_snr_are_their_limits() -> None:
    last = time_of(torch.tensor([T - 1]))
    weights = {p: min_snr(cosine(p), last, 5.0).item() for p in PREDICTIONS}
    assert weights == {"epsilon": 1.0, "v_prediction": 0.0, "sample": 0.0}


@given(st.sampled_from(PREDICTIONS), st.floats(0.1, 100))
def test_min_snr_is_between_zero_and_gamma(prediction: str, gamma: float) -> None:
    weight = min_snr(cosine(prediction), time_of(torch.arange(T)), gamma)
    assert bool(((weight >= 0) & (weight <= max(gamma, 1.0) * (1 + 1e-6))).all())
    if prediction != "sample":  # relative to an unweighted loss it only ever takes away
        assert bool((weight <= 1).all())


@given(st.sampled_from(PREDICTIONS), st.integers(0, T - 1))
def test_conversions_undo_the_target(prediction: str, timestep: int) -> None:
    process = cosine(prediction, zero_terminal_snr=False)
    latent, noise, _ = some_pictures()
    t_B = time_of(torch.full((3,), timestep))
    noisy, target = (f(latent, noise, t_B) for f in (process.add_noise, process.target))
    torch.testing.assert_close(x0_of(process, target, noisy, t_B), latent, rtol=1e-4, atol=2e-4)
    torch.testing.assert_close(eps_of(process, target, noisy, t_B), noise, rtol=1e-4, atol=2e-4)


def test_a_conversion_that_would_divide_by_zero_says_so() -> None:
    latent, noise, t_B = some_pictures()
    with pytest.raises(ValueError, match="zero SNR"):
        x0_of(cosine("epsilon"), noise, latent, t_B)
    clean = DiscreteDiffusion(torch.ones(T), "sample")
    with pytest.raises(ValueError, match="without noise"):
        eps_of(clean, latent, latent, t_B)
    x0 = x0_of(cosine("v_prediction"), latent, noise, t_B)
    torch.testing.assert_close(x0[-1], -latent[-1], rtol=0, atol=0)  # v = -x where nothing but noise is left


@given(st.integers(0, 2))
def test_a_picture_is_worth_the_same_alone_as_in_a_batch(place: int) -> None:
    objective = Objective(cosine("v_prediction"), weighting="min_snr")
    latent, noise, t_B = some_pictures()
    distributed = objective.loss_B(lambda noisy, *_: noisy, latent, noise, t_B, NOTHING)
    one = slice(place, place + 1)
    alone = objective.loss_B(lambda noisy, *_: noisy, latent[one], noise[one], t_B[one], NOTHING)
    torch.testing.assert_close(distributed[one], alone, rtol=0, atol=0)


def test_the_loss_is_float32_whatever_the_network_answers() -> None:
    objective = Objective(cosine("epsilon"))
    latent, noise, t_B = some_pictures()
    loss = objective.loss_B(lambda noisy, *_: noisy.bfloat16(), latent, noise, t_B, NOTHING)
    assert loss.dtype == torch.float32


def of_config(base: Any, **values: Any) -> Objective:
    return Objective.from_config(ObjectiveConfig(**values), base)


def base(**values: Any) -> Any:
    """A base whose shift by resolution is a quarter of the height."""
    own = {"noise": cosine("epsilon"), "resolution_shift": lambda height, width, frames=1: height / 4}
    return SimpleNamespace(**{**vars(Defaults(64)), **own, **values})


def test_each_field_of_the_config_changes_the_objective() -> None:
    numbers, sizes, everywhere = [place / 20 for place in range(20)], [(8, 8, 1)] * 20, time_of(torch.arange(T))
    plain, high = of_config(base()), of_config(base(), timestep_density="high_noise")
    capped = of_config(base(), weighting="min_snr")
    tighter = of_config(base(), weighting="min_snr", snr_gamma=1.0)
    assert bool((high.times(numbers, sizes) >= plain.times(numbers, sizes)).all())
    assert not torch.equal(high.times(numbers, sizes), plain.times(numbers, sizes))
    assert torch.equal(plain.weight_B(everywhere), torch.ones(T))
    assert bool((tighter.weight_B(everywhere) <= capped.weight_B(everywhere)).all())
    assert not torch.equal(tighter.weight_B(everywhere), capped.weight_B(everywhere))
    middle = of_config(base(), timestep_density="logit_normal")
    shaped = [{"logit_mean": 0.5}, {"logit_std": 2.0}, {"timestep_shift": 3.0}, {"timestep_shift": "resolution"}]
    others = [of_config(base(), timestep_density="logit_normal", **shape).times(numbers, sizes) for shape in shaped]
    drawn = [plain.times(numbers, sizes), high.times(numbers, sizes), middle.times(numbers, sizes), *others]
    assert len({tuple(times.tolist()) for times in drawn}) == len(drawn)


def test_a_base_names_what_the_config_does_not() -> None:
    own = base(
        default_density="logit_normal", default_logit_mean=0.25, default_logit_std=1.5, default_shift="resolution"
    )
    density = of_config(own).density
    assert (density.name, density.logit_mean, density.logit_std, density.shift_of(12, 8, 1)) == (
        "logit_normal",
        0.25,
        1.5,
        3,
    )
    told = of_config(own, timestep_density="uniform", timestep_shift="none").density
    assert (told.name, told.shift_of(12, 8, 1)) == ("uniform", 1.0)
    assert of_config(own, logit_mean=0.0, logit_std=1.0, timestep_shift=2.0).density.shift_of(12, 8, 1) == 2.0


@pytest.mark.parametrize("name", ["logit_mean", "logit_std"])
def test_the_shape_of_another_density_is_refused(name: str) -> None:
    with raises_code("config.unused_key", f"objective.{name}"):
        of_config(base(), **{name: 0.5})
