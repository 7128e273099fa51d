"""Flow matching along straight paths (Lipman et al. 2023): x_sigma = (1 - sigma) x + sigma eps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from veneer.errors import UserError
from veneer.family.noise import mix

__all__ = ["FlowMatching", "flow_of"]

_PREDICTS_FLOW = "flow_prediction"


@dataclass(frozen=True)
class FlowMatching:
    """The forward process of a base that learned a velocity; a ``NoiseProcess``, whose time t is sigma."""

    @property
    def prediction(self) -> Literal["flow"]:
        """The velocity eps - x; a family whose network answers with another sign turns it."""
        return "flow"

    def coefficients(self, t_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha_t = 1 - sigma and sigma, each float32 (B,)."""
        sigma_B = t_B.double()
        return (1 - sigma_B).float(), sigma_B.float()

    def signal_share(self, t_B: Tensor) -> Tensor:
        """Return (1 - sigma)^2 / ((1 - sigma)^2 + sigma^2), float32 (B,)."""
        sigma_B = t_B.double()
        signal_B = (1 - sigma_B).square()
        return (signal_B / (signal_B + sigma_B.square())).float()

    def snr(self, t_B: Tensor) -> Tensor:
        """Return ((1 - sigma) / sigma)^2, float32 (B,); infinite without noise."""
        sigma_B = t_B.double()
        return ((1 - sigma_B) / sigma_B).square().float()

    def add_noise(self, clean: Tensor, noise: Tensor, t_B: Tensor) -> Tensor:
        """Return x_sigma = (1 - sigma) x + sigma eps (Lipman et al. 2023, eq. 22 with sigma_min = 0)."""
        return mix(self.coefficients(t_B), clean, noise)

    def target(self, clean: Tensor, noise: Tensor, t_B: Tensor) -> Tensor:
        """Return d x_sigma / d sigma = eps - x (Lipman et al. 2023, eq. 23 with time reversed)."""
        return noise - clean


def flow_of(scheduler: Any) -> FlowMatching:
    """Return the forward process of a scheduler that integrates a velocity; those of DPM and UniPC can do so too.

    Raises:
        UserError: it is set to predict something else.
    """
    prediction = scheduler.config.get("prediction_type", _PREDICTS_FLOW)  # flow matching's own have no such setting
    if prediction != _PREDICTS_FLOW:
        what = f"the scheduler predicts {prediction!r}, and this base's transformer a flow"
        remedy = f"take its own scheduler, whose prediction_type is {_PREDICTS_FLOW}"
        raise UserError(what, code="family.wrong_scheduler", remedy=remedy)
    return FlowMatching()
