"""The denoiser and its text encoder, trained together on the latents of drawings and their names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

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

    def drawing_weights(self, step: int) -> Tensor:
        """How often each drawing is shown in a step, (N,)."""
        shares = concepts.STYLE_SHARES if step < concepts.LATER else concepts.LATER_SHARES
        return torch.tensor([shares[style] for style in self.styles])


def lessons(known: list[Concept], sets: dict[str, DrawingSet], vae: AutoencoderKL, tokenizer: CLIPTokenizer) -> Lessons:
    """Draw, encode and caption every concept in every style."""
    shown = [(concept, style) for style in concepts.STYLES for concept in known]
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
    alphas_cumprod = make_scheduler().alphas_cumprod
    average = fit(both, lambda step: _loss(both, shown, alphas_cumprod, step), RECIPE, work / "denoiser")
    both.load_state_dict(average, strict=False)  # buffers (position ids) are no parameters
    return both["unet"].eval(), both["text_encoder"].eval()


def _loss(both: nn.ModuleDict, shown: Lessons, alphas_cumprod: Tensor, step: int) -> Tensor:
    """Mean squared error of the velocity (Salimans and Ho 2022, appendix D) over one batch."""
    random = generator(step, stream=3)
    drawing_B = torch.multinomial(shown.drawing_weights(step), RECIPE.batch, replacement=True, generator=random)
    caption_B = torch.multinomial(shown.caption_weights, RECIPE.batch, replacement=True, generator=random)
    side_B = torch.randint(2, (RECIPE.batch,), generator=random)
    latent_BCHW = shown.latents[side_B, drawing_B]
    noise_BCHW = torch.randn(latent_BCHW.shape, generator=random)
    uniform_B = torch.rand(RECIPE.batch, generator=random)
    timestep_B = (len(alphas_cumprod) * uniform_B**LEAN).long().clamp(max=len(alphas_cumprod) - 1)
    alpha_bar_B111 = alphas_cumprod[timestep_B].view(-1, 1, 1, 1)
    signal, sigma = alpha_bar_B111.sqrt(), (1 - alpha_bar_B111).sqrt()
    context_BLD = both["text_encoder"](shown.tokens[drawing_B, caption_B]).last_hidden_state
    predicted = both["unet"](signal * latent_BCHW + sigma * noise_BCHW, timestep_B, context_BLD).sample
    velocity = signal * noise_BCHW - sigma * latent_BCHW
    return cast(Tensor, (predicted - velocity).square().mean())
