"""The denoiser and its text encoder, trained together on the latents of drawings and their names."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from . import autoencoder, concepts, drawings, text
from .concepts import Concept
from .drawings import DrawingSet
from .fit import Fit, fit, generator

# at a rate of 1e-3, with moments over 1,000 steps, it diverged after 800 steps
RECIPE = Fit(steps=6500, schedule=7000, batch=32, rate=7e-4, warmup=200, betas=(0.9, 0.98), clip=0.5)
# then the average of the weights goes on, mostly with the drawings that a prompt without a style gets
FINISH = Fit(
    steps=2000, schedule=2000, batch=32, rate=4e-4, warmup=100, decay_from=0.25, betas=(0.9, 0.98), clip=0.5, ema=0.997
)
LEAN = 0.7  # timesteps are T u^LEAN: layout and colour, which are settled at high noise, are the harder part


def make_unet() -> UNet2DConditionModel:
    """The untrained denoiser: self- and cross-attention at all three levels."""
    return UNet2DConditionModel(
        sample_size=drawings.SIZE // 8,
        in_channels=16,
        out_channels=16,
        block_out_channels=(128, 192, 256),
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        layers_per_block=1,
        attention_head_dim=(2, 3, 4),  # diffusers' name for the number of heads: 64 channels each
        cross_attention_dim=text.WIDTH,
        norm_num_groups=32,
    )


def make_scheduler() -> DDIMScheduler:
    """v-prediction with zero terminal SNR (Lin et al. 2024, algorithm 1), so that a white background is reachable."""
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


@dataclass(frozen=True)
class Lessons:
    """What the denoiser is shown: latents (2, N, 16, 8, 8), as drawn and mirrored, and token ids (N, 6, L)."""

    latents: Tensor
    tokens: Tensor
    caption_weights: Tensor  # (6,)
    styles: list[str]  # of each drawing

    def drawing_weights(self, shares: dict[str, float]) -> Tensor:
        """How often each drawing is shown, (N,), for each style to have its share."""
        count = Counter(self.styles)
        return torch.tensor([shares[style] / count[style] for style in self.styles])


class Batch(NamedTuple):
    """What one step sees."""

    latent_BCHW: Tensor
    noise_BCHW: Tensor
    uniform_B: Tensor  # in [0, 1), for the timestep
    tokens_BL: Tensor


def lessons(known: list[Concept], sets: dict[str, DrawingSet], vae: AutoencoderKL, tokenizer: CLIPTokenizer) -> Lessons:
    """Draw, encode and caption every concept in every style that has it."""
    shown = [(concept, style) for style in concepts.STYLES for concept in known if concept.name in sets[style]]
    pictures = drawings.stack(drawings.draw(sets[style].svg(c.name)) for c, style in shown)
    mirrored = np.ascontiguousarray(pictures[:, :, ::-1])
    latents = [
        torch.cat([autoencoder.encode(vae, p) for p in np.array_split(side, 16)]) for side in (pictures, mirrored)
    ]
    weighted = [concepts.captions(c, style) for c, style in shown]
    tokens = [tokenise(tokenizer, [caption for _, caption in row]) for row in weighted]
    return Lessons(
        latents=torch.stack(latents),
        tokens=torch.stack(tokens),
        caption_weights=torch.tensor([w for w, _ in weighted[0]]),
        styles=[style for _, style in shown],
    )


def tokenise(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids (N, L), padded as a pipeline pads them."""
    ids: Tensor = tokenizer(
        captions, padding="max_length", max_length=text.LENGTH, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def train(shown: Lessons, encoder: CLIPTextModel, work: Path) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Train denoiser and text encoder, or go on training them; both come back with their averaged weights."""
    torch.manual_seed(1)
    both = nn.ModuleDict({"unet": make_unet(), "text_encoder": encoder})
    _fit(both, shown, concepts.STYLE_SHARES, RECIPE, stream=3, folder=work / "denoiser")
    _fit(both, shown, concepts.FINISH_SHARES, FINISH, stream=4, folder=work / "finish")
    return both["unet"].eval(), both["text_encoder"].eval()


def _fit(
    both: nn.ModuleDict, shown: Lessons, shares: dict[str, float], recipe: Fit, *, stream: int, folder: Path
) -> None:
    alphas_cumprod, weights = make_scheduler().alphas_cumprod, shown.drawing_weights(shares)

    def loss_of(step: int) -> Tensor:
        return _loss(both, _batch(shown, weights, recipe.batch, generator(step, stream)), alphas_cumprod)

    average = fit(both, loss_of, recipe, folder)
    both.load_state_dict(average, strict=False)  # buffers (position ids) are no parameters


def _batch(shown: Lessons, drawing_weights: Tensor, size: int, random: torch.Generator) -> Batch:
    drawing_B = torch.multinomial(drawing_weights, size, replacement=True, generator=random)
    caption_B = torch.multinomial(shown.caption_weights, size, replacement=True, generator=random)
    side_B = torch.randint(2, (size,), generator=random)
    latent_BCHW = shown.latents[side_B, drawing_B]
    noise_BCHW = torch.randn(latent_BCHW.shape, generator=random)
    return Batch(latent_BCHW, noise_BCHW, torch.rand(size, generator=random), shown.tokens[drawing_B, caption_B])


def _loss(both: nn.ModuleDict, batch: Batch, alphas_cumprod: Tensor) -> Tensor:
    """Mean squared error of the velocity (Salimans and Ho 2022, appendix D) over one batch."""
    timestep_B = (len(alphas_cumprod) * batch.uniform_B**LEAN).long().clamp(max=len(alphas_cumprod) - 1)
    alpha_bar_B111 = alphas_cumprod[timestep_B].view(-1, 1, 1, 1)
    signal, sigma = alpha_bar_B111.sqrt(), (1 - alpha_bar_B111).sqrt()
    context_BLD = both["text_encoder"](batch.tokens_BL).last_hidden_state
    noisy_BCHW = signal * batch.latent_BCHW + sigma * batch.noise_BCHW
    predicted = both["unet"](noisy_BCHW, timestep_B, context_BLD).sample
    velocity = signal * batch.noise_BCHW - sigma * batch.latent_BCHW
    return cast(Tensor, (predicted - velocity).square().mean())
