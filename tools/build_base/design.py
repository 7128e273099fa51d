"""The bases that can be made: sizes of pictures and networks, and how long each is trained.

``large`` is for a GPU. By arithmetic and by what was measured on the CPU, over the bundled base's own figures:

- 96 pixels, not 128: a step of the denoiser takes 1.64 times as long (at 128: 2.8), so that the example stays under
  four minutes on two cores. The bundled autoencoder, as it is, gives drawings of 96 pixels that it never saw 28.0 dB
  (Noto) and 25.8 dB (OpenMoji), against 25.7 and 24.2 at 64: there are more pixels, and not so many more edges.
- The denoiser is the bundled one at 12 x 12: 23.3 of 29 million parameters that fit into 60 MB. Two levels instead of
  three would have 17 to 21 million and cost as much or more; narrower ones at 16 x 16 cost 2.1 times as much.
- Prediction of the velocity with zero terminal SNR, as before, each timestep weighted alike. Min-SNR's weights (Hang et
  al. 2023) would be zero at the last timestep, where a white ground is decided.
- The rates are the bundled base's: they were stable with batches of 8 and 32, whose gradients are noisier.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from . import concepts
from .fit import Fit

__all__ = ["DESIGNS", "LARGE", "SMALL", "TINY", "Design"]

_MANY = 1_000_000
"""Steps of a fit that its time ends."""


@dataclass(frozen=True)
class Design:
    """A base to be made.

    Attributes:
        name: of the design.
        pixels: side of a picture.
        autoencoder_channels: of its four levels.
        kl_weight: of the mean KL a latent number, beside the mean squared error a colour value in [-1, 1].
        autoencoder: how it is trained.
        unet_channels: of each level.
        unet_heads: of attention, at each level.
        denoiser: how it is trained, with its text encoder.
        finish: how its averaged weights go on, mostly with the drawings that a prompt without a style gets.
        styles: what a drawing's caption says of its style; a prompt that names none gets Noto's.
        shares: how often each style is shown.
        finish_shares: the same, while the weights are finished.
        varied: how many pictures are made of drawings that are varied, on coloured grounds, or two side by side.
    """

    name: str
    pixels: int
    autoencoder_channels: tuple[int, ...]
    kl_weight: float
    autoencoder: Fit
    unet_channels: tuple[int, ...]
    unet_heads: tuple[int, ...]
    denoiser: Fit
    finish: Fit
    styles: Mapping[str, str]
    shares: Mapping[str, float]
    finish_shares: Mapping[str, float]
    varied: int = 0

    @property
    def is_varied(self) -> bool:
        """Whether drawings are varied, and so kept with their transparency."""
        return self.varied > 0


SMALL = Design(
    name="small",
    pixels=64,
    autoencoder_channels=(32, 48, 96, 128),
    kl_weight=2e-3,
    autoencoder=Fit(steps=5750, schedule=7500, batch=8, rate=1.0e-3, weight_decay=1e-4),
    unet_channels=(128, 192, 256),
    unet_heads=(2, 3, 4),
    # at a rate of 1e-3, with moments over 1,000 steps, it diverged after 800 steps
    denoiser=Fit(steps=6500, schedule=7000, batch=32, rate=7e-4, warmup=200, betas=(0.9, 0.98), clip=0.5),
    finish=Fit(
        steps=2000,
        schedule=2000,
        batch=32,
        rate=4e-4,
        warmup=100,
        decay_from=0.25,
        betas=(0.9, 0.98),
        clip=0.5,
        ema=0.997,
    ),
    styles=MappingProxyType(concepts.STYLES),
    shares=MappingProxyType(concepts.STYLE_SHARES),
    finish_shares=MappingProxyType(concepts.FINISH_SHARES),
)
"""The bundled base."""

LARGE = replace(
    SMALL,
    name="large",
    pixels=96,
    autoencoder_channels=(32, 64, 96, 128),
    kl_weight=1e-3,
    autoencoder=replace(SMALL.autoencoder, steps=_MANY, schedule=_MANY, batch=64, warmup=200),
    denoiser=replace(SMALL.denoiser, steps=_MANY, schedule=_MANY, batch=256, decay_from=0.5),
    finish=replace(SMALL.finish, steps=_MANY, schedule=_MANY, batch=256),
    styles=MappingProxyType(concepts.MORE_STYLES),
    shares=MappingProxyType(concepts.MORE_SHARES),
    finish_shares=MappingProxyType(concepts.MORE_FINISH_SHARES),
    varied=24_000,
)
"""A better one, in five minutes of a GPU."""

TINY = replace(
    LARGE,
    name="tiny",
    pixels=32,
    autoencoder_channels=(8, 8, 8, 8),
    autoencoder=replace(LARGE.autoencoder, batch=4, warmup=2),
    unet_channels=(32, 32, 32),
    unet_heads=(1, 1, 1),
    denoiser=replace(LARGE.denoiser, batch=4, warmup=2),
    finish=replace(LARGE.finish, batch=4, warmup=2),
    varied=16,
)
"""The large one with every size as small as it can be: for trying all of it on the CPU."""

DESIGNS = {design.name: design for design in (SMALL, LARGE, TINY)}
