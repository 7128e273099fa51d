"""The objective against diffusers' schedulers and the original authors' formulas, elementwise."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.training_utils import compute_snr
from torch import Tensor

from tests.predictions import eps_of, x0_of
from veneer.family.diffusion import DiscreteDiffusion, velocity
from veneer.family.protocol import Conditioning
from veneer.objective.loss import Objective
from veneer.objective.weighting import min_snr

TOTAL = 1000
NOTHING = Conditioning({})
PREDICTIONS = ("epsilon", "v_prediction", "sample")


def ddim(prediction: str, zero_terminal_snr: bool = False) -> DDIMScheduler:
    return DDIMScheduler(
        num_train_timesteps=TOTAL,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction,
        rescale_betas_zero_snr=zero_terminal_snr,
        clip_sample=False,
    )


def process_of(scheduler: DDIMScheduler) -> DiscreteDiffusion:
    return DiscreteDiffusion(scheduler.alphas_cumprod, scheduler.config.prediction_type)


def time_of(timestep_idx_B: Tensor) -> Tensor:
    """Each timestep as a time in its middle."""
    return (timestep_idx_B.double() + 0.5) / TOTAL


def draws(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, noise, and every 37th timestep with both ends."""
    timestep_idx_B = torch.cat([torch.arange(0, TOTAL - 1, 37), torch.tensor([TOTAL - 1])])
    generator = torch.Generator().manual_seed(seed)
    shape = (len(timestep_idx_B), 4, 8, 8)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator), timestep_idx_B


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_noising_is_diffusers_noising(zero_terminal_snr: bool) -> None:
    scheduler = ddim("epsilon", zero_terminal_snr)
    latent, noise, timestep = draws()
    ours = process_of(scheduler).add_noise(latent, noise, time_of(timestep))
    torch.testing.assert_close(ours, scheduler.add_noise(latent, noise, timestep), rtol=0, atol=0)


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_velocity_is_diffusers_velocity(zero_terminal_snr: bool) -> None:
    scheduler = ddim("v_prediction", zero_terminal_snr)
    latent, noise, timestep = draws()
    ours = process_of(scheduler).target(latent, noise, time_of(timestep))
    torch.testing.assert_close(ours, scheduler.get_velocity(latent, noise, timestep), rtol=0, atol=0)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_x0_is_what_a_sampler_reads_from_a_prediction(prediction: str, zero_terminal_snr: bool) -> None:
    scheduler = ddim(prediction, zero_terminal_snr)
    scheduler.set_timesteps(TOTAL)
    noisy, answer, timestep = draws()
    if prediction == "epsilon" and zero_terminal_snr:  # the last timestep says nothing about x0
        noisy, answer, timestep = noisy[:-1], answer[:-1], timestep[:-1]
    ours = x0_of(process_of(scheduler), answer, noisy, time_of(timestep))
    theirs = [
        scheduler.step(one, int(t), z).pred_original_sample for one, t, z in zip(answer, timestep, noisy, strict=True)
    ]
    torch.testing.assert_close(ours, torch.stack(theirs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_answer_gives_latent_and_noise_back(prediction: str) -> None:
    process = process_of(ddim(prediction))
    latent, noise, timestep = draws()
    t_B = time_of(timestep)
    noisy, answer = (f(latent, noise, t_B) for f in (process.add_noise, process.target))
    # dividing by alpha (0.068 at the last timestep) or sigma (0.029 at the first) magnifies float32's rounding
    torch.testing.assert_close(x0_of(process, answer, noisy, t_B), latent, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(eps_of(process, answer, noisy, t_B), noise, rtol=1e-5, atol=2e-5)


def test_snr_is_diffusers_snr() -> None:
    scheduler = DDPMScheduler(num_train_timesteps=TOTAL)
    process = DiscreteDiffusion(scheduler.alphas_cumprod, "epsilon")
    everywhere = torch.arange(TOTAL)
    torch.testing.assert_close(process.snr(time_of(everywhere)), compute_snr(scheduler, everywhere), rtol=1e-4, atol=0)


@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
@pytest.mark.parametrize(("prediction", "plus"), [("epsilon", 0), ("v_prediction", 1)])
def test_min_snr_is_the_formula_of_the_examples(prediction: str, plus: int, gamma: float) -> None:
    """min(snr, gamma) / (snr + 1 for v), as diffusers' training examples and the authors' repository have it."""
    scheduler = ddim(prediction)
    everywhere = torch.arange(TOTAL)
    theirs = compute_snr(scheduler, everywhere)
    expected = theirs.clamp(max=gamma) / (theirs + plus)
    torch.testing.assert_close(
        min_snr(process_of(scheduler), time_of(everywhere), gamma), expected, rtol=1e-4, atol=1e-7
    )


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_min_snr_weighs_one_error_in_x0_alike_in_every_parameterisation(prediction: str) -> None:
    """Hang et al. 2023: whatever is predicted, an error d in x0 costs min(snr, gamma) d^2."""
    process = process_of(ddim(prediction))
    latent, noise, timestep = draws()
    latent, noise = latent.double(), noise.double()
    process = DiscreteDiffusion(process.alphas_cumprod_T.double(), process.prediction)
    noisy = process.add_noise(latent, noise, time_of(timestep))
    wrong_x0 = latent + 0.1
    alpha, sigma = (f.view(-1, 1, 1, 1) for f in _alpha_sigma(process, timestep))
    wrong_eps = (noisy - alpha * wrong_x0) / sigma  # the eps that goes with that x0
    answer = {"epsilon": wrong_eps, "sample": wrong_x0, "v_prediction": velocity(wrong_x0, wrong_eps, alpha, sigma)}
    objective = Objective(process, weighting="min_snr", gamma=5.0)
    loss = objective.loss_B(lambda *_: answer[process.prediction], latent, noise, time_of(timestep), NOTHING)
    torch.testing.assert_close(
        loss, process.snr(time_of(timestep)).clamp(max=5.0) * 0.01, rtol=1e-3, atol=1e-6, check_dtype=False
    )


def _alpha_sigma(process: DiscreteDiffusion, timestep: Tensor) -> tuple[Tensor, Tensor]:
    alpha_bar = process.alphas_cumprod_T[timestep]
    return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
