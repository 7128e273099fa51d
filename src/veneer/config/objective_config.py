"""The section ``objective`` of a config: the loss."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Tag

from veneer.config.section import Section
from veneer.config.values import Positive, Share, number_or_word

__all__ = ["Density", "ObjectiveConfig", "TimestepShift"]

Density = Literal["uniform", "high_noise", "logit_normal"]
TimestepShift = Annotated[
    Annotated[Positive, Tag("number")] | Annotated[Literal["resolution", "none"], Tag("word")],
    Discriminator(number_or_word),
]


class ObjectiveConfig(Section):
    """The loss: the base's own parameterisation x density of timesteps x weighting."""

    timestep_density: Density | None = None
    """Density the timesteps are drawn from; default: the base's own. ``high_noise`` prefers the early steps of sampling
    (layout, colour), ``logit_normal`` the middle ones (Esser et al. 2024, section 3.1)."""
    logit_mean: float | None = None
    """Mean of logit(t) under ``logit_normal``: below 0 prefers late steps of sampling (detail); default: the base's
    own."""
    logit_std: Positive | None = None
    """Standard deviation of logit(t) under ``logit_normal``; default: the base's own."""
    timestep_shift: TimestepShift | None = None
    """Shift s of the timesteps that were drawn, s t / (1 + (s - 1) t) (Esser et al. 2024, eq. 23): above 1 towards the
    noise. ``resolution``: the one that the base's scheduler has for the picture's size; ``none``: 1; default: the
    base's own."""
    weighting: Literal["none", "min_snr"] = "none"
    """Weight of each timestep's loss."""
    snr_gamma: Positive = 5.0
    """Cap of the signal-to-noise ratio (Hang et al. 2023, Min-SNR, section 3.4)."""
    unmasked_weight: Share = 0.0
    """Of pictures with a mask, the weight of the loss outside of it: 0 learns nothing there, 0.1 keeps backgrounds from
    drifting."""
    normalize_masked_area: bool = True
    """Of pictures with a mask, whether the loss is a mean over the mask, so that small masks count as much as large
    ones, or over the whole picture."""
