"""ERNIE-Image: Ministral 3 without a template, and FLUX.2's autoencoder with an epsilon of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.families import FamilyCase
from tests.families.chat_tokenizers import mistral_tokenizer
from tests.families.flux2 import statistics, tiny_autoencoder

__all__ = ["CASE", "write_tiny_ernie"]

EPSILON = 1e-5


def write_tiny_ernie(folder: Path) -> Path:
    """Write an ERNIE-Image of random weights (seed 0), one token for each 4 x 4 pixels; the same bits each time."""
    from diffusers import ErnieImagePipeline, ErnieImageTransformer2DModel, FlowMatchEulerDiscreteScheduler

    tokenizer = mistral_tokenizer()
    tokenizer.model_max_length, tokenizer.chat_template = 96, None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text_encoder = _tiny_ministral(len(tokenizer))
        vae = tiny_autoencoder()
        transformer = ErnieImageTransformer2DModel(
            hidden_size=32,
            num_attention_heads=2,
            num_layers=2,
            ffn_hidden_size=48,
            in_channels=16,
            out_channels=16,
            text_in_dim=24,
            rope_axes_dim=(4, 6, 6),
        )
        for layer in (transformer.adaLN_modulation[-1], transformer.final_linear):  # zero in a new one
            torch.nn.init.normal_(layer.weight, std=0.2)
            torch.nn.init.normal_(layer.bias, std=0.2)
    parts = {"vae": vae, "transformer": transformer, "text_encoder": text_encoder, "tokenizer": tokenizer}
    ErnieImagePipeline(**parts, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0)).save_pretrained(folder)
    return folder


def _tiny_ministral(vocabulary: int) -> Any:
    from transformers import Ministral3Config, Mistral3Config, Mistral3Model, PixtralVisionConfig

    text = Ministral3Config(
        vocab_size=vocabulary,
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=8,
        pad_token_id=5,
    )
    vision = PixtralVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    return Mistral3Model(Mistral3Config(text_config=text, vision_config=vision, image_token_index=8)).eval()


def encode(pipeline: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    posterior = pipeline.vae.encode(pixels).latent_dist
    mean, std = statistics(pipeline.vae, EPSILON)
    return (pipeline._patchify_latents(posterior.mean) - mean) / std, pipeline._patchify_latents(posterior.std) / std


def decode(pipeline: Any, latents: Tensor) -> Tensor:
    mean, std = statistics(pipeline.vae, EPSILON)
    pixels: Tensor = pipeline.vae.decode(pipeline._unpatchify_latents(latents * std + mean)).sample
    return pixels


def velocity(pipeline: Any, latents: Tensor, sigma_B: Tensor, captions: Sequence[str]) -> Tensor:
    texts = pipeline.encode_prompt(list(captions), "cpu")
    text_bth, text_lens = pipeline._pad_text(texts, "cpu", latents.dtype, pipeline.transformer.config.text_in_dim)
    answer: Tensor = pipeline.transformer(
        hidden_states=latents, timestep=1000 * sigma_B, text_bth=text_bth, text_lens=text_lens, return_dict=False
    )[0]
    return answer


def paint(pipeline: Any, latents: Tensor, captions: Sequence[str], steps: int) -> Tensor:
    height, width = (side * pipeline.vae_scale_factor for side in latents.shape[-2:])
    painted: Tensor = pipeline(
        list(captions),
        height=height,
        width=width,
        num_inference_steps=steps,
        guidance_scale=1.0,
        latents=latents,
        output_type="latent",
    ).images
    return painted


CASE = FamilyCase(
    pipeline="ErnieImagePipeline",
    write=write_tiny_ernie,
    encode=encode,
    decode=decode,
    velocity=velocity,
    paint=paint,
    published={"ernie-image": "ernie-image"},
    tolerance=1e-6,
)
