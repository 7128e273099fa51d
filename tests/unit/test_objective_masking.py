"""The masked loss against its closed form, and what it must not change."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.bases import Defaults
from veneer.config.objective_config import ObjectiveConfig
from veneer.family.flow import FlowMatching
from veneer.family.protocol import Conditioning
from veneer.objective.loss import Objective

NOTHING = Conditioning({})
LAYOUTS = {"latents": (4, 6, 5), "patchified": (16, 3, 7), "clip": (4, 3, 6, 5)}
"""Shapes of one picture's latents: channels, frames where there are some, rows, columns."""


def objective(**values: Any) -> Objective:
    own = {"noise": FlowMatching(), "resolution_shift": lambda height, width, frames=1: 1.0}
    return Objective.from_config(ObjectiveConfig(**values), SimpleNamespace(**{**vars(Defaults(64)), **own}))


def batch(layout: str, seed: int = 0, rows: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Clean latents, noise, times, a prediction and a mask."""
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, *LAYOUTS[layout])
    clean, noise, answer = (torch.randn(shape, generator=generator) for _ in range(3))
    mask = torch.rand((rows, 1, *shape[-2:]), generator=generator)
    return clean, noise, torch.rand(rows, generator=generator).double(), answer, mask


def loss(own: Objective, layout: str, mask: Tensor | None, seed: int = 0) -> Tensor:
    clean, noise, t_B, answer, _ = batch(layout, seed)
    return own.loss_B(lambda *_: answer, clean, noise, t_B, NOTHING, mask)


@given(
    st.sampled_from(sorted(LAYOUTS)),
    st.integers(0, 99),
    st.floats(0, 0.99),
    st.booleans(),
    st.sampled_from(["none", "min_snr"]),
)
def test_the_loss_is_its_closed_form(layout: str, seed: int, unmasked: float, normalize: bool, weighting: str) -> None:
    own = objective(unmasked_weight=unmasked, normalize_masked_area=normalize, weighting=weighting)
    clean, noise, t_B, answer, mask = batch(layout, seed)
    error = (answer.double() - (noise - clean).double()).square().numpy()
    weights = (unmasked + (1 - unmasked) * mask.double()).numpy()
    weights = np.broadcast_to(weights if error.ndim == 4 else weights[:, :, None], error.shape)
    total = (error * weights).reshape(2, -1).sum(1)
    expected = total / (weights.reshape(2, -1).sum(1) if normalize else error[0].size)
    torch.testing.assert_close(
        loss(own, layout, mask, seed).double(),
        own.weight_B(t_B).double() * torch.from_numpy(expected),
        rtol=2e-5,
        atol=1e-7,
    )


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("values", [{}, {"unmasked_weight": 0.3}, {"normalize_masked_area": False}])
def test_a_mask_of_ones_gives_the_unmasked_loss_and_gradient_to_the_bit(layout: str, values: dict[str, Any]) -> None:
    clean, noise, t_B, answer, mask = batch(layout)
    results = []
    for each in (None, torch.ones_like(mask)):
        prediction = answer.clone().requires_grad_()
        losses = objective(**values).loss_B(lambda *_: prediction, clean, noise, t_B, NOTHING, each)  # noqa: B023
        losses.sum().backward()
        results.append((losses.detach(), prediction.grad))
    (plain, gradient), (ones, masked_gradient) = results
    assert torch.equal(plain, ones)
    assert gradient is not None and masked_gradient is not None and torch.equal(gradient, masked_gradient)


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_nothing_outside_a_mask_has_a_gradient(layout: str) -> None:
    clean, noise, t_B, answer, mask = batch(layout)
    half = torch.zeros_like(mask)
    half[..., : mask.shape[-1] // 2] = 1
    prediction = answer.requires_grad_()
    objective().loss_B(lambda *_: prediction, clean, noise, t_B, NOTHING, half).sum().backward()
    assert prediction.grad is not None
    assert not prediction.grad[..., mask.shape[-1] // 2 :].any() and prediction.grad[..., : mask.shape[-1] // 2].all()


def test_a_small_mask_counts_as_much_as_a_large_one_if_it_is_normalized() -> None:
    mask = torch.zeros(2, 1, 6, 5)
    mask[0, :, :1], mask[1] = 1, 1
    clean, noise, t_B, _, _ = batch("latents")
    target = FlowMatching().target(clean, noise, t_B)
    by_area, plain = (
        own.loss_B(lambda *_: target + 2, clean, noise, t_B, NOTHING, mask)
        for own in (objective(), objective(normalize_masked_area=False))
    )
    torch.testing.assert_close(by_area, torch.tensor([4.0, 4.0]))
    torch.testing.assert_close(plain, torch.tensor([4.0 / 6, 4.0]))


def test_a_mask_that_a_crop_leaves_nothing_of_is_no_loss() -> None:
    empty = torch.zeros(2, 1, 6, 5)
    assert loss(objective(), "latents", empty).tolist() == [0, 0]
    outside = loss(objective(unmasked_weight=0.5), "latents", empty)
    torch.testing.assert_close(outside, loss(objective(), "latents", None))
