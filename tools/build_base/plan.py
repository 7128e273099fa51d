"""What there is time for on a GPU, by arithmetic: multiplications counted, speed as measured with another network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from . import autoencoder, denoiser, text
from .build import AUTOENCODER_SHARE, FINISH_SHARE, JUDGING, JUDGING_SHARE
from .design import Design

__all__ = ["ASSUMED", "Phase", "phases", "plan_table"]

ASSUMED = 50e12
"""Operations a second in bfloat16. A step of Stable Diffusion 1.5's size at 512 pixels, batch 4, had 150e12 on an H200;
these networks have a third of its channels."""
STARTING = 35.0
"""Seconds until the first step: imports, drawing with 16 processes at 8 ms a drawing, the first use of CUDA."""
_ROWS = 2  # of which operations are counted: a single one of one pixel is refused
ENCODING = 12.0
"""Seconds in which the denoiser's pictures are encoded and its captions tokenised."""


@dataclass(frozen=True)
class Phase:
    """A part of the time.

    Attributes:
        name: of the part.
        seconds: that it has.
        batch: pictures a step; 0: no training.
        operations: of a step, forward and backward.
    """

    name: str
    seconds: float
    batch: int = 0
    operations: float = 0.0

    @property
    def step_seconds(self) -> float:
        """Seconds a step, by arithmetic."""
        return self.operations / ASSUMED

    @property
    def steps(self) -> int:
        """Steps that fit in."""
        return int(self.seconds / self.step_seconds) if self.operations else 0


def phases(design: Design, seconds: float) -> list[Phase]:
    """Divide a time as :func:`build.build` does."""
    judging = min(JUDGING, JUDGING_SHARE * seconds)
    starting = min(STARTING, 0.2 * seconds)
    encoding = min(ENCODING, 0.05 * seconds)
    training = seconds - judging - starting
    coding = AUTOENCODER_SHARE * training
    rest = training - coding - encoding
    both = 3 * denoiser_operations(design)
    return [
        Phase("imports and drawing", starting),
        Phase(
            "autoencoder",
            coding,
            design.autoencoder.batch,
            3 * autoencoder_operations(design) * design.autoencoder.batch,
        ),
        Phase("latents and captions", encoding),
        Phase("denoiser", (1 - FINISH_SHARE) * rest, design.denoiser.batch, both * design.denoiser.batch),
        Phase("finish", FINISH_SHARE * rest, design.finish.batch, both * design.finish.batch),
        Phase("writing and measuring", judging),
    ]


def autoencoder_operations(design: Design) -> float:
    """Operations of one picture's way there and back."""
    with torch.device("meta"):
        model = autoencoder.make(design)
        picture = torch.empty(_ROWS, 3, design.pixels, design.pixels)
    return _counted(lambda: model.decode(model.encode(picture).latent_dist.mean))


def denoiser_operations(design: Design) -> float:
    """Operations of one prediction, without the text encoder's few."""
    with torch.device("meta"):
        model = denoiser.make_unet(design)
        side = design.pixels // autoencoder.FACTOR
        latent = torch.empty(_ROWS, autoencoder.CHANNELS, side, side)
        context, timestep = torch.empty(_ROWS, text.LENGTH, text.WIDTH), torch.zeros(_ROWS, dtype=torch.long)
    return _counted(lambda: model(latent, timestep, context))


def _counted(run: Callable[[], Any]) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops()) / _ROWS


def plan_table(design: Design, seconds: float) -> str:
    """Return the phases as a table, and what the whole weighs."""
    lines = ["| phase | seconds | batch | TFLOP a step | ms a step | steps | pictures |", "| --- " * 7 + "|"]
    for phase in phases(design, seconds):
        cells = [phase.name, f"{phase.seconds:.0f}"]
        if phase.batch:
            cells += [str(phase.batch), f"{phase.operations / 1e12:.2f}", f"{1e3 * phase.step_seconds:.1f}"]
            cells += [f"{phase.steps:,}", f"{phase.steps * phase.batch:,}"]
        else:
            cells += [""] * 5
        lines.append(f"| {' | '.join(cells)} |")
    millions = parameters(design) / 1e6
    lines.append(
        f"\n{millions:.1f} million parameters, {2 * millions:.1f} MB in float16; {ASSUMED / 1e12:.0f} TFLOP/s assumed."
    )
    return "\n".join(lines)


def parameters(design: Design) -> int:
    """Count the parameters of the autoencoder, the denoiser and a text encoder of 2,048 words."""
    with torch.device("meta"):
        networks = [autoencoder.make(design), denoiser.make_unet(design)]
    words = 2048 * text.WIDTH + text.LENGTH * text.WIDTH + 2 * 12 * text.WIDTH**2
    return words + sum(int(p.numel()) for network in networks for p in network.parameters())
