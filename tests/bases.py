"""What tests know of bases without loading one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Defaults"]


@dataclass
class Defaults:
    """What a config's defaults depend on, as Stable Diffusion has it.

    Attributes:
        resolution: side of the square that the base was trained on, in pixels.
        denoiser: the name of its denoiser.
        default_targets: of each network.
    """

    resolution: int
    denoiser: str = "unet"
    default_targets: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {
            "unet": ("to_q", "to_k", "to_v", "to_out.0"),
            "text_encoder": ("q_proj", "k_proj", "v_proj", "out_proj"),
        }
    )
