"""Flow matching against its closed forms and diffusers' scheduler, elementwise; and the loss composed over it."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from tests.predictions import eps_of, x0_of
from veneer.family.flow import FlowMatching
from veneer.family.protocol import Conditioning
from veneer.objective.density import apply_shift
from veneer.objective.loss import Objective

T_B = torch.tensor([0.0, 0.125, 0.5, 0.9, 1.0], dtype=torch.float64)
SHAPES = [(5, 4, 3, 6), (5, 7, 16), (5, 2, 3, 4, 5)]
"""Latents of a picture that is not square, packed tokens, a video."""


def draws(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


@pytest.mark.parametrize("shape", SHAPES)
def test_noising_and_target_are_lipmans(shape: tuple[int, ...]) -> None:
    clean, noise = draws(shape)
    noisy = FlowMatching().add_noise(clean, noise, T_B)
    for row, sigma in enumerate(T_B.tolist()):
        torch.testing.assert_close(noisy[row], (1 - sigma) * clean[row] + sigma * noise[row], rtol=1e-6, atol=1e-6)
    assert torch.equal(FlowMatching().target(clean, noise, T_B), noise - clean)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_noising_and_shift_are_diffusers(shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)
    clean, noise = draws((1000, 4, 2, 2))
    t_B = torch.tensor([apply_shift(step / 1000, shift) for step in range(1000, 0, -1)], dtype=torch.float64)
    torch.testing.assert_close(t_B.float(), scheduler.sigmas, rtol=1e-6, atol=1e-7)
    theirs = scheduler.scale_noise(clean, scheduler.timesteps, noise)
    torch.testing.assert_close(FlowMatching().add_noise(clean, noise, t_B), theirs, rtol=1e-6, atol=1e-6)


def test_the_target_is_the_derivative_of_the_path() -> None:
    clean, noise = (draw.double() for draw in draws((5, 4)))
    process, step = FlowMatching(), 1e-3
    late, early = (process.add_noise(clean, noise, torch.full((5,), t, dtype=torch.float64)) for t in (0.5 + step, 0.5))
    torch.testing.assert_close((late - early) / step, process.target(clean, noise, T_B), rtol=1e-3, atol=1e-3)


def test_shares_and_ratios_are_those_of_the_coefficients() -> None:
    process = FlowMatching()
    alpha_B, sigma_B = process.coefficients(T_B)
    assert alpha_B.dtype == sigma_B.dtype == torch.float32
    torch.testing.assert_close(process.snr(T_B), (alpha_B / sigma_B).square())
    torch.testing.assert_close(process.signal_share(T_B), alpha_B.square() / (alpha_B.square() + sigma_B.square()))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_perfect_answer_gives_latent_and_noise_back(shape: tuple[int, ...]) -> None:
    clean, noise = draws(shape)
    process = FlowMatching()
    noisy, velocity = process.add_noise(clean, noise, T_B), process.target(clean, noise, T_B)
    torch.testing.assert_close(x0_of(process, velocity, noisy, T_B), clean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(eps_of(process, velocity, noisy, T_B), noise, rtol=1e-5, atol=1e-6)


def test_min_snr_weighs_an_error_in_x0_as_in_every_parameterisation() -> None:
    """Hang et al. 2023: an error d in x0 costs min(snr, gamma) d^2, whatever is predicted."""
    process, (clean, noise) = FlowMatching(), draws((5, 4, 3, 6))
    objective = Objective(process, weighting="min_snr", gamma=5.0)
    t_B = T_B[1:]  # without noise a velocity's error says nothing of x0
    sigma_B111 = t_B.float().view(-1, 1, 1, 1)
    wrong = process.target(clean[1:], noise[1:], t_B) + 0.1 / sigma_B111  # x0 is off by 0.1
    loss_B = objective.loss_B(lambda *_: wrong, clean[1:], noise[1:], t_B, Conditioning({}))
    torch.testing.assert_close(loss_B, process.snr(t_B).clamp(max=5.0) * 0.01, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("weighting", ["none", "min_snr"])
def test_the_loss_is_finite_at_both_ends(weighting: str) -> None:
    clean, noise = draws((5, 7, 16))
    loss_B = Objective(FlowMatching(), weighting=weighting).loss_B(
        lambda noisy, *_: noisy * 0.5, clean, noise, T_B, Conditioning({})
    )
    assert loss_B.shape == (5,) and bool(loss_B.isfinite().all())
