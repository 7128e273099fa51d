"""The autoencoder: pixels to latents of 16 channels and an eighth of their side, trained on drawings of several sets.

So that a style that it never saw (line art) survives it, half of the training drawings are drawn once more with
a black outline around every shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from . import drawings, varied
from .design import Design
from .drawings import DrawingSet, Pictures
from .engine import Batch, Engine
from .fit import Pace, Task, fit

SETS = ("noto", "twemoji", "fxemoji", "fluent-emoji-flat")
MORE_SETS = (*SETS, "emojione", "noto-v1", "fluent-emoji-high-contrast")
LOG_VARIANCE = -12.0  # of the finished posterior
HELD_OUT = 0.06  # share of the names that no training picture shows, in any set
FACTOR, CHANNELS = 8, 16  # of latents


def make(design: Design) -> AutoencoderKL:
    """The untrained network."""
    return AutoencoderKL(
        block_out_channels=design.autoencoder_channels,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=8,
        sample_size=design.pixels,
        scaling_factor=1.0,
    )


def held_out(name: str) -> bool:
    """Whether a name is kept from the autoencoder's training."""
    return drawings.share(name, "autoencoder") < HELD_OUT


def sets_of(design: Design) -> tuple[str, ...]:
    """The sets that the autoencoder sees."""
    return MORE_SETS if design.is_varied else SETS


def training_svgs(design: Design, sets: dict[str, DrawingSet]) -> Iterator[str]:
    """Every training drawing, and once more with an outline around its shapes."""
    known = set(sets["noto"].names())
    for set_name in sets_of(design):
        chosen = sets[set_name]
        for name in chosen.names():
            if held_out(name) or (set_name.startswith("fluent") and name not in known):
                continue
            yield chosen.svg(name)
            outline = 0.015 + 0.02 * drawings.share(name, f"outline {set_name}")
            margin = 0.2 * drawings.share(name, f"margin {set_name}")
            yield chosen.svg(name, outline=outline, margin=margin)


def training_pictures(
    design: Design, sets: dict[str, DrawingSet], cache: Path, most: int = 0, processes: int | None = None
) -> Pictures:
    """All training drawings, drawn once, then read from the cache.

    Args:
        design: of the base.
        sets: the drawings.
        cache: folder that keeps them.
        most: how many; 0: all.
        processes: that draw those that are varied.

    Returns:
        uint8 (N, H, W, 3) on white, or layers where they are varied.
    """
    path = cache / ("autoencoder-layers.npy" if design.is_varied else "autoencoder-pictures.npy")
    svgs = drawings.thinned(list(training_svgs(design, sets)), most)
    if design.is_varied:
        return drawings.draw_layers(svgs, design.pixels, path, processes)
    if not path.exists():
        np.save(path, drawings.stack(drawings.draw(svg, design.pixels) for svg in svgs))
    return cast(Pictures, np.load(path))


def augmented(pictures: Pictures, size: int, random: torch.Generator) -> Tensor:
    """A batch (B, 3, H, W) in [-1, 1]: mirrored, shifted by up to 4 pixels, some with their colours exchanged."""
    side = pictures.shape[1]
    chosen = torch.randint(len(pictures), (size,), generator=random)
    batch = torch.from_numpy(pictures[chosen.numpy()]).permute(0, 3, 1, 2).float() / 127.5 - 1
    batch = torch.nn.functional.pad(batch, (4, 4, 4, 4), value=1.0)
    out = []
    for picture in batch:
        top, left, mirror, recolour = torch.rand(4, generator=random).tolist()
        y, x = int(9 * top), int(9 * left)
        picture = picture[:, y : y + side, x : x + side]
        picture = picture.flip(-1) if mirror < 0.5 else picture
        out.append(picture[torch.randperm(3, generator=random)] if recolour < 0.3 else picture)
    return torch.stack(out).contiguous(memory_format=torch.channels_last)


def train(
    design: Design, pictures: Pictures, work: Path, engine: Engine | None = None, pace: Pace | None = None
) -> AutoencoderKL:
    """Train the autoencoder, or go on training it; returns it with latents of zero mean and unit deviation."""
    engine = engine or Engine()
    torch.manual_seed(0)
    model = make(design).to(
        engine.device, memory_format=torch.preserve_format if engine.is_gpu else torch.channels_last
    )
    average = fit(_task(design, model, pictures, engine), design.autoencoder, work / "autoencoder", engine, pace)
    model.load_state_dict(average, strict=True)
    model = model.to(memory_format=torch.contiguous_format)
    return standardised(model.eval(), _some(design, pictures))


def _task(design: Design, model: AutoencoderKL, pictures: Pictures, engine: Engine) -> Task:
    recipe, side = design.autoencoder, design.pixels // FACTOR
    autocast = engine.autocast(native_bfloat16())
    layers = torch.from_numpy(np.asarray(pictures)).to(engine.device) if design.is_varied else None

    def batch_of(step: int) -> Batch:
        if layers is None:
            batch = augmented(pictures, recipe.batch, engine.generator(step, stream=1))
        else:
            batch = varied.of_autoencoder(layers, recipe.batch, engine.generator(step, stream=1))
        random = engine.generator(step, stream=2)
        noise = torch.randn((recipe.batch, CHANNELS, side, side), generator=random, device=engine.device)
        return {"pictures": batch, "noise": noise}

    def loss_of(batch: Batch) -> Tensor:
        with autocast:
            posterior = model.encode(batch["pictures"]).latent_dist
            decoded = model.decode(posterior.mean + posterior.std * batch["noise"]).sample
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        return cast(Tensor, (decoded.float() - batch["pictures"]).square().mean() + design.kl_weight * kl)

    return Task(model, batch_of, loss_of)


def _some(design: Design, pictures: Pictures) -> Pictures:
    """Every fourth training picture, some 1,000 of those that are varied; on white."""
    if not design.is_varied:
        return pictures[::4]
    return drawings.on_white(pictures[:: max(4, len(pictures) // 1000)])


@torch.no_grad()
def standardised(model: AutoencoderKL, pictures: Pictures) -> AutoencoderKL:
    """Fold each latent channel's mean and deviation into the 1 x 1 convolutions around the latents.

    The posterior's own deviation is dropped (it becomes 0.002): it kept the latents smooth while they were learned,
    but to whoever trains on them it would only be noise that no picture holds.
    """
    latents = torch.cat([encode(model, part) for part in np.array_split(pictures, min(16, len(pictures)))])
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
    """Mean latents (N, 16, H / 8, W / 8) of uint8 pictures, on the model's device."""
    return cast(Tensor, model.encode(as_tensor(pictures).to(model.device)).latent_dist.mean)


@torch.no_grad()
def psnr(model: AutoencoderKL, pictures: Pictures) -> Tensor:
    """Peak signal-to-noise ratio in dB of each picture's reconstruction, (N,)."""
    wanted = as_tensor(pictures).to(model.device)
    got = model.decode(encode(model, pictures)).sample.clamp(-1, 1)
    return cast(Tensor, -10 * ((got - wanted) / 2).square().mean((1, 2, 3)).log10())
