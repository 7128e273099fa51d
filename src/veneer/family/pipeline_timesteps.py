"""The times that families of diffusers pipelines are trained at: density, and the shift of their schedulers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from veneer.config.objective_config import Density, TimestepShift
from veneer.errors import UserError
from veneer.family.pipeline_parts import PipelineParts

__all__ = ["PipelineTimesteps", "shift_of_tokens"]

_NUMBER = "set it to a number, or leave it out"


class PipelineTimesteps(PipelineParts):
    """The times of a family, as its scheduler has them where a configuration names none."""

    default_density: Density = "uniform"
    default_logit_mean: float = 0.0
    default_logit_std: float = 1.0
    trained_times: tuple[float, float] = (0.0, 1.0)

    @property
    def default_shift(self) -> TimestepShift:
        """The shift that the scheduler paints with; 1 for a base of discrete diffusion, which has none."""
        config = self._parts["scheduler"].config
        if self.noise.prediction != "flow":
            return 1.0
        if config.get("use_dynamic_shifting"):
            return "resolution"
        return float(config.get("shift", config.get("flow_shift", 1.0)))

    def resolution_shift(self, height: int, width: int, frames: int = 1) -> float:
        """Return the shift that the scheduler has for so many tokens, as diffusers' pipelines ask it for one.

        Raises:
            UserError: the scheduler has none.
        """
        config = self._parts["scheduler"].config
        if self.noise.prediction != "flow" or "base_shift" not in config:
            what = f"is resolution, but the scheduler of this {self.name} base has no shift that depends on it"
            raise UserError(what, code="family.no_resolution_shift", where="objective.timestep_shift", remedy=_NUMBER)
        return shift_of_tokens(config, self._tokens(height, width, frames))

    def _tokens(self, height: int, width: int, frames: int) -> int:
        """Return the tokens that the denoiser makes of a picture; here each is a square of ``multiple`` pixels."""
        return (height // self.multiple) * (width // self.multiple)


def shift_of_tokens(config: Mapping[str, Any], tokens: int) -> float:
    """Return a flow scheduler's shift for a picture of so many tokens: exp(mu), mu linear in the tokens.

    Esser et al. 2024, section 5.3.2; ``calculate_shift`` and the scheduler's ``time_shift`` in diffusers. A schedule of
    the linear type takes mu itself as the shift.
    """
    first, last = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    slope = (high - low) / (last - first)
    mu = tokens * slope + (low - slope * first)
    return float(mu) if config.get("time_shift_type") == "linear" else math.exp(mu)
