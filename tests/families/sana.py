"""Sana, with a scheduler of DPM's kind as published."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.families import FamilyCase
from tests.families.parts import letters_of

__all__ = ["CASE", "gemma_tokenizer", "instruction", "write_tiny_sana"]


def write_tiny_sana(folder: Path, **scheduler: Any) -> Path:
    """Write a Sana pipeline of random weights (seed 0), one latent for each 32 x 32 pixels; the same bits each time.

    Args:
        folder: the base's.
        scheduler: settings of its scheduler, where they are not as published.
    """
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel
    from transformers import Gemma2Config, Gemma2Model

    tokenizer = gemma_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = {
            "transformer": SanaTransformer2DModel(
                in_channels=4,
                out_channels=4,
                num_attention_heads=2,
                attention_head_dim=12,
                num_layers=2,
                num_cross_attention_heads=2,
                cross_attention_head_dim=12,
                cross_attention_dim=24,
                caption_channels=16,
                sample_size=4,
            ),
            "vae": AutoencoderDC(
                latent_channels=4,
                attention_head_dim=8,
                encoder_block_types=("ResBlock",) * 5 + ("EfficientViTBlock",),
                decoder_block_types=("ResBlock",) * 5 + ("EfficientViTBlock",),
                encoder_block_out_channels=(4, 4, 4, 8, 8, 16),
                decoder_block_out_channels=(4, 4, 4, 8, 8, 16),
                encoder_layers_per_block=(1,) * 6,
                decoder_layers_per_block=(1,) * 6,
                encoder_qkv_multiscales=((), (), (), (), (), (5,)),
                decoder_qkv_multiscales=((), (), (), (), (), (5,)),
                downsample_block_type="conv",
                upsample_block_type="interpolate",
                scaling_factor=0.41407,
            ),
            "text_encoder": Gemma2Model(
                Gemma2Config(
                    vocab_size=len(tokenizer),
                    hidden_size=16,
                    intermediate_size=32,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    num_key_value_heads=1,
                    head_dim=8,
                    query_pre_attn_scalar=8,
                )
            ),
        }
    settings = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0, **scheduler}
    pipeline = SanaPipeline(**networks, tokenizer=tokenizer, scheduler=DPMSolverMultistepScheduler(**settings))
    pipeline.save_pretrained(folder)
    return folder


def gemma_tokenizer() -> Any:
    """Gemma's tokenizer of letters, which marks the beginning of a text."""
    from tokenizers.processors import TemplateProcessing
    from transformers import GemmaTokenizer

    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581", *letters_of("\n.,:;'-()>/")]
    ids = {word: place for place, word in enumerate(words)}
    tokenizer = GemmaTokenizer(vocab=ids, model_max_length=8192)
    marks = [("<bos>", ids["<bos>"])]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=marks)
    return tokenizer


def instruction() -> list[str]:
    """What the pipeline puts before a prompt."""
    from diffusers import SanaPipeline

    lines: list[str] = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    return lines


def encode(pipeline: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    latents = pipeline.vae.encode(pixels, return_dict=False)[0] * pipeline.vae.config.scaling_factor
    return latents, torch.zeros_like(latents)


def decode(pipeline: Any, latents: Tensor) -> Tensor:
    pixels: Tensor = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor, return_dict=False)[0]
    return pixels


def velocity(pipeline: Any, latents: Tensor, sigma_B: Tensor, captions: Sequence[str]) -> Tensor:
    text, mask, _, _ = pipeline.encode_prompt(
        list(captions), do_classifier_free_guidance=False, complex_human_instruction=instruction()
    )
    answer: Tensor = pipeline.transformer(
        latents,
        encoder_hidden_states=text,
        encoder_attention_mask=mask,
        timestep=1000 * sigma_B * pipeline.transformer.config.timestep_scale,
        return_dict=False,
    )[0]
    return answer


def paint(pipeline: Any, latents: Tensor, captions: Sequence[str], steps: int) -> Tensor:
    """Paint with Euler's steps, which the published scheduler does not make."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    height, width = (side * pipeline.vae_scale_factor for side in latents.shape[-2:])
    painted: Tensor = pipeline(
        list(captions),
        height=height,
        width=width,
        num_inference_steps=steps,
        guidance_scale=1.0,
        latents=latents,
        use_resolution_binning=False,
        output_type="latent",
    ).images
    return painted


CASE = FamilyCase(
    pipeline="SanaPipeline",
    write=write_tiny_sana,
    encode=encode,
    decode=decode,
    velocity=velocity,
    paint=paint,
    published={"sana-600m": "sana-600m", "sana-1600m": "sana-1600m"},
    tolerance=1e-5,
)
