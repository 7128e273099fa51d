"""The denoiser and its text encoder, trained together on the latents of drawings and their names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from . import autoencoder, concepts, drawings, text, varied
from .concepts import Concept
from .design import Design
from .drawings import DrawingSet, Pictures
from .engine import Batch, Engine
from .fit import Pace, Task, fit
from .varied import Scenes

OUTLINE = 0.03  # of outlined styles, of a drawing's width
_AT_ONCE = 512  # pictures that are encoded at once
LEAN = 0.7  # timesteps are T u^LEAN: layout and colour, which are settled at high noise, are the harder part


def make_unet(design: Design) -> UNet2DConditionModel:
    """The untrained denoiser: self- and cross-attention at all levels."""
    levels = len(design.unet_channels)
    return UNet2DConditionModel(
        sample_size=design.pixels // autoencoder.FACTOR,
        in_channels=autoencoder.CHANNELS,
        out_channels=autoencoder.CHANNELS,
        block_out_channels=design.unet_channels,
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        layers_per_block=1,
        attention_head_dim=design.unet_heads,  # diffusers' name for the number of heads: 64 channels each
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
    """What the denoiser is shown.

    Attributes:
        latents: (2, N, 16, H, W), as drawn and mirrored.
        tokens: ids (N, 6, L), of each caption.
        caption_weights: (6,).
        styles: of each drawing, as the shares name them.
    """

    latents: Tensor
    tokens: Tensor
    caption_weights: Tensor
    styles: list[str]

    def drawing_weights(self, shares: Mapping[str, float]) -> Tensor:
        """How often each drawing is shown, (N,), for each style to have its share."""
        count = Counter(self.styles)
        return torch.tensor([shares[style] / count[style] for style in self.styles])

    def to(self, engine: Engine) -> Lessons:
        """The same on a device; on a GPU with latents in bfloat16."""
        if not engine.is_gpu:
            return self
        latents, tokens = self.latents.to(engine.device, torch.bfloat16), self.tokens.to(engine.device)
        return replace(self, latents=latents, tokens=tokens, caption_weights=self.caption_weights.to(engine.device))


def lessons(
    design: Design, known: list[Concept], sets: dict[str, DrawingSet], vae: AutoencoderKL, tokenizer: CLIPTokenizer
) -> Lessons:
    """Draw, encode and caption every concept in every style that has it."""
    shown = concepts.shown(known, sets, design.styles)
    pictures = drawings.stack(drawings.draw(sets[style].svg(c.name), design.pixels) for c, style in shown)
    mirrored = np.ascontiguousarray(pictures[:, :, ::-1])
    latents = [
        torch.cat([autoencoder.encode(vae, p) for p in np.array_split(side, 16)]) for side in (pictures, mirrored)
    ]
    weighted = [concepts.captions([c], design.styles[style]) for c, style in shown]
    return Lessons(
        latents=torch.stack(latents),
        tokens=_tokens(tokenizer, weighted),
        caption_weights=torch.tensor([w for w, _ in weighted[0]]),
        styles=[style for _, style in shown],
    )


def _tokens(tokenizer: CLIPTokenizer, weighted: list[list[tuple[float, str]]]) -> Tensor:
    """Ids (N, 6, L)."""
    flat = [caption for row in weighted for _, caption in row]
    number = {caption: place for place, caption in enumerate(dict.fromkeys(flat))}
    ids = tokenise(tokenizer, list(number))
    return ids[torch.tensor([number[caption] for caption in flat])].view(len(weighted), -1, text.LENGTH)


def lesson_svgs(design: Design, known: list[Concept], sets: dict[str, DrawingSet]) -> list[str]:
    """Every concept in every style that has it; outlined styles a little smaller, for the outline to have room."""
    return [
        sets[concepts.set_of(style)].svg(
            concept.name, **({"outline": OUTLINE, "margin": 2 * OUTLINE} if style.endswith(concepts.OUTLINED) else {})
        )
        for concept, style in concepts.shown(known, sets, design.styles)
    ]


def varied_lessons(
    design: Design,
    known: list[Concept],
    sets: dict[str, DrawingSet],
    layers: Pictures,
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
) -> Lessons:
    """Encode and caption every concept in every style as it is, and pictures that are made of them.

    Args:
        design: with the count of such pictures.
        known: the concepts.
        sets: the drawings.
        layers: of :func:`lesson_svgs`.
        vae: on the device where pictures are made.
        tokenizer: of captions.
    """
    shown = concepts.shown(known, sets, design.styles)
    count = Counter(style for _, style in shown)
    weights = torch.tensor([design.shares[style] / count[style] for _, style in shown])
    rows = varied.varied_rows(shown, weights, dict(design.styles), design.varied, seed=5)
    plain = [concepts.captions([concept], design.styles[style]) for concept, style in shown]
    on_device = torch.from_numpy(np.asarray(layers)).to(vae.device)
    scenes = (varied.as_drawn(torch.arange(len(shown))), rows.scenes)
    sides = (scenes, tuple(varied.mirrored(scene) for scene in scenes))
    return Lessons(
        latents=torch.stack([torch.cat([_latents(vae, on_device, scene) for scene in side]) for side in sides]),
        tokens=_tokens(tokenizer, plain + rows.captions),
        caption_weights=torch.tensor([w for w, _ in plain[0]]),
        styles=[style for _, style in shown] + [concepts.VARIED] * design.varied,
    )


@torch.no_grad()
def _latents(vae: AutoencoderKL, layers: Tensor, scenes: Scenes) -> Tensor:
    """Mean latents of scenes, some at a time; in bfloat16 on a GPU, where they stay."""
    autocast = Engine(vae.device).autocast(is_own_choice=False)
    dtype = torch.bfloat16 if vae.device.type == "cuda" else torch.float32
    parts = []
    for begin in range(0, len(scenes.ground_B3), _AT_ONCE):
        pictures = varied.paint(layers, scenes.part(slice(begin, begin + _AT_ONCE), vae.device))
        with autocast:
            parts.append(vae.encode(pictures).latent_dist.mean.to(dtype))
    return torch.cat(parts)


def tokenise(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids (N, L), padded as a pipeline pads them."""
    ids: Tensor = tokenizer(
        captions, padding="max_length", max_length=text.LENGTH, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def train(
    design: Design,
    shown: Lessons,
    encoder: CLIPTextModel,
    work: Path,
    engine: Engine | None = None,
    pace_of: Callable[[str], Pace] | None = None,
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Train denoiser and text encoder, or go on training them; both come back with their averaged weights."""
    engine = engine or Engine()
    torch.manual_seed(1)
    both = both_of(design, encoder).to(engine.device)
    shown = shown.to(engine)
    phases = (
        (design.denoiser, design.shares, 3, "denoiser"),
        (design.finish, design.finish_shares, 4, "finish"),
    )
    for recipe, shares, stream, name in phases:
        task = _task(both, shown, shown.drawing_weights(shares).to(engine.device), recipe.batch, stream, engine)
        average = fit(task, recipe, work / name, engine, None if pace_of is None else pace_of(name))
        both.load_state_dict(average, strict=False)  # buffers (position ids) are no parameters
    return both["unet"].eval(), both["text_encoder"].eval()


def both_of(design: Design, encoder: CLIPTextModel) -> nn.ModuleDict:
    """The two networks that are trained together."""
    return nn.ModuleDict({"unet": make_unet(design), "text_encoder": encoder})


def _task(both: nn.ModuleDict, shown: Lessons, weights: Tensor, size: int, stream: int, engine: Engine) -> Task:
    alphas_cumprod = make_scheduler().alphas_cumprod.to(engine.device)
    autocast = engine.autocast(is_own_choice=False)

    def loss_of(batch: Batch) -> Tensor:
        with autocast:
            return _loss(both, batch, alphas_cumprod)

    return Task(both, lambda step: _batch(shown, weights, size, engine.generator(step, stream)), loss_of)


def _batch(shown: Lessons, drawing_weights: Tensor, size: int, random: torch.Generator) -> Batch:
    """What one step sees: latents, noise, uniform numbers for timesteps, and tokens."""
    device = random.device
    drawing_B = torch.multinomial(drawing_weights, size, replacement=True, generator=random)
    caption_B = torch.multinomial(shown.caption_weights, size, replacement=True, generator=random)
    side_B = torch.randint(2, (size,), generator=random, device=device)
    latent_BCHW = shown.latents[side_B, drawing_B].float()
    noise_BCHW = torch.randn(latent_BCHW.shape, generator=random, device=device)
    uniform_B = torch.rand(size, generator=random, device=device)
    tokens_BL = shown.tokens[drawing_B, caption_B]
    return {"latent": latent_BCHW, "noise": noise_BCHW, "uniform": uniform_B, "tokens": tokens_BL}


def _loss(both: nn.ModuleDict, batch: Batch, alphas_cumprod: Tensor) -> Tensor:
    """Mean squared error of the velocity (Salimans and Ho 2022, appendix D) over one batch."""
    latent_BCHW, noise_BCHW = batch["latent"], batch["noise"]
    timestep_B = (len(alphas_cumprod) * batch["uniform"] ** LEAN).long().clamp(max=len(alphas_cumprod) - 1)
    alpha_bar_B111 = alphas_cumprod[timestep_B].view(-1, 1, 1, 1)
    signal, sigma = alpha_bar_B111.sqrt(), (1 - alpha_bar_B111).sqrt()
    context_BLD = both["text_encoder"](batch["tokens"]).last_hidden_state
    noisy_BCHW = signal * latent_BCHW + sigma * noise_BCHW
    predicted = both["unet"](noisy_BCHW, timestep_B, context_BLD).sample
    velocity = signal * noise_BCHW - sigma * latent_BCHW
    return cast(Tensor, (predicted.float() - velocity).square().mean())
