"""The autoencoder: 64 x 64 pixels to 8 x 8 latents of 16 channels, trained on drawings of four sets.

So that a style that it never saw (line art) survives it, half of the training drawings are drawn once more with
a black outline around every shape.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from . import drawings
from .drawings import DrawingSet, Pictures
from .fit import Fit, fit, generator

SETS = ("noto", "twemoji", "fxemoji", "fluent-emoji-flat")
RECIPE = Fit(steps=5750, schedule=7500, batch=8, rate=1.0e-3, weight_decay=1e-4)
KL_WEIGHT = 2e-3  # of the mean KL a latent number, beside the mean squared error a colour value in [-1, 1]
LOG_VARIANCE = -12.0  # of the finished posterior
HELD_OUT = 0.06  # share of the names that no training picture shows, in any set


def make() -> AutoencoderKL:
    """The untrained network."""
    return AutoencoderKL(
        block_out_channels=(32, 48, 96, 128),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        sample_size=drawings.SIZE,
        scaling_factor=1.0,
    )


def held_out(name: str) -> bool:
    """Whether a name is kept from the autoencoder's training."""
    return drawings.share(name, "autoencoder") < HELD_OUT


def training_pictures(sets: dict[str, DrawingSet], cache: Path) -> Pictures:
    """All training pictures, uint8 (N, 64, 64, 3); drawn once, then read from the cache."""
    path = cache / "autoencoder-pictures.npy"
    if not path.exists():
        known = set(sets["noto"].names())
        pictures = []
        for set_name in SETS:
            chosen = sets[set_name]
            for name in chosen.names():
                if held_out(name) or (set_name == "fluent-emoji-flat" and name not in known):
                    continue
                pictures.append(drawings.draw(chosen.svg(name)))
                outline = 0.015 + 0.02 * drawings.share(name, f"outline {set_name}")
                margin = 0.2 * drawings.share(name, f"margin {set_name}")
                pictures.append(drawings.draw(chosen.svg(name, outline=outline, margin=margin)))
        np.save(path, drawings.stack(pictures))
    return cast(Pictures, np.load(path))


def augmented(pictures: Pictures, step: int) -> Tensor:
    """A batch (B, 3, 64, 64) in [-1, 1]: mirrored, shifted by up to 4 pixels, some with their colours exchanged."""
    random = generator(step, stream=1)
    chosen = torch.randint(len(pictures), (RECIPE.batch,), generator=random)
    batch = torch.from_numpy(pictures[chosen.numpy()]).permute(0, 3, 1, 2).float() / 127.5 - 1
    batch = torch.nn.functional.pad(batch, (4, 4, 4, 4), value=1.0)
    out = []
    for picture in batch:
        top, left, mirror, recolour = torch.rand(4, generator=random).tolist()
        y, x = int(9 * top), int(9 * left)
        picture = picture[:, y : y + drawings.SIZE, x : x + drawings.SIZE]
        picture = picture.flip(-1) if mirror < 0.5 else picture
        out.append(picture[torch.randperm(3, generator=random)] if recolour < 0.3 else picture)
    return torch.stack(out).contiguous(memory_format=torch.channels_last)


def train(sets: dict[str, DrawingSet], work: Path) -> AutoencoderKL:
    """Train the autoencoder, or go on training it; returns it with latents of zero mean and unit deviation."""
    torch.manual_seed(0)
    pictures = training_pictures(sets, work)
    model = make().to(memory_format=torch.channels_last)

    def loss_of(step: int) -> Tensor:
        batch = augmented(pictures, step)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=native_bfloat16()):
            posterior = model.encode(batch).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator(step, stream=2))
            decoded = model.decode(posterior.mean + posterior.std * noise).sample
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        return cast(Tensor, (decoded.float() - batch).square().mean() + KL_WEIGHT * kl)

    average = fit(model, loss_of, RECIPE, work / "autoencoder")
    model.load_state_dict(average, strict=True)
    model = model.to(memory_format=torch.contiguous_format)
    return standardised(model.eval(), pictures)


@torch.no_grad()
def standardised(model: AutoencoderKL, pictures: Pictures) -> AutoencoderKL:
    """Fold each latent channel's mean and deviation into the 1 x 1 convolutions around the latents.

    The posterior's own deviation is dropped (it becomes 0.002): it kept the latents smooth while they were learned,
    but to whoever trains on them it would only be noise that no picture holds.
    """
    latents = torch.cat([encode(model, part) for part in np.array_split(pictures[::4], 16)])
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    channels = len(mean)
    quant, post = model.quant_conv, model.post_quant_conv
    assert quant is not None and post is not None
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight *= std[None, :, None, None]
    quant.weight[:channels] /= std[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mean) / std
    quant.weight[channels:] = 0  # the log variances
    quant.bias[channels:] = LOG_VARIANCE
    return model


def native_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 itself; elsewhere autocast would only be slower."""
    return bool(torch.cpu._is_avx512_bf16_supported())


def as_tensor(pictures: Pictures) -> Tensor:
    """uint8 (N, H, W, 3) to float (N, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def encode(model: AutoencoderKL, pictures: Pictures) -> Tensor:
    """Mean latents (N, 16, 8, 8) of uint8 pictures."""
    return cast(Tensor, model.encode(as_tensor(pictures)).latent_dist.mean)


@torch.no_grad()
def psnr(model: AutoencoderKL, pictures: Pictures) -> Tensor:
    """Peak signal-to-noise ratio in dB of each picture's reconstruction, (N,)."""
    wanted = as_tensor(pictures)
    got = model.decode(encode(model, pictures)).sample.clamp(-1, 1)
    return cast(Tensor, -10 * ((got - wanted) / 2).square().mean((1, 2, 3)).log10())
