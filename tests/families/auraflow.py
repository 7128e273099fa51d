"""AuraFlow, whose texts are padded with zeros that the transformer attends to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.families import FamilyCase
from tests.families.parts import letters_of, tiny_autoencoder

__all__ = ["CASE", "velocity", "write_tiny_auraflow"]


def write_tiny_auraflow(folder: Path) -> Path:
    """Write an AuraFlow pipeline of random weights (seed 0), a patch for each 4 x 4 pixels; the same bits each time."""
    from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel, FlowMatchEulerDiscreteScheduler
    from transformers import UMT5Config, UMT5EncoderModel

    tokenizer = llama_tokenizer()
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 4}
    ids = {"pad_token_id": 1, "eos_token_id": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = {
            "transformer": AuraFlowTransformer2DModel(
                sample_size=8,
                num_mmdit_layers=2,
                num_single_dit_layers=2,
                attention_head_dim=12,
                num_attention_heads=2,
                joint_attention_dim=16,
                caption_projection_dim=24,
                pos_embed_max_size=16 * 16,
            ),
            "vae": tiny_autoencoder(latent_channels=4, scaling_factor=0.13025),
            "text_encoder": UMT5EncoderModel(
                UMT5Config(vocab_size=len(tokenizer), feed_forward_proj="gated-gelu", **sizes, **ids)
            ),
        }
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.73)
    AuraFlowPipeline(**networks, tokenizer=tokenizer, scheduler=scheduler).save_pretrained(folder)
    return folder


def llama_tokenizer() -> Any:
    """Llama's tokenizer of letters, which marks the end of a text, as Pile-T5's does."""
    from tokenizers.processors import TemplateProcessing
    from transformers import LlamaTokenizerFast

    words = ["<unk>", "<pad>", "</s>", "<s>", "\u2581", *letters_of()]
    ids = {word: place for place, word in enumerate(words)}
    tokenizer = LlamaTokenizerFast(vocab=ids, merges=[], pad_token="<pad>", model_max_length=2048)
    marks = [("</s>", ids["</s>"])]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=marks)
    return tokenizer


def encode(pipeline: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    scale, posterior = pipeline.vae.config.scaling_factor, pipeline.vae.encode(pixels).latent_dist
    return posterior.mean * scale, posterior.std * scale


def decode(pipeline: Any, latents: Tensor) -> Tensor:
    pixels: Tensor = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    return pixels


def velocity(
    pipeline: Any, latents: Tensor, sigma_B: Tensor, captions: Sequence[str], max_sequence_length: int = 256
) -> Tensor:
    options = {"do_classifier_free_guidance": False, "max_sequence_length": max_sequence_length}
    text = torch.cat([pipeline.encode_prompt([caption], **options)[0] for caption in captions])
    answer: Tensor = pipeline.transformer(latents, encoder_hidden_states=text, timestep=sigma_B, return_dict=False)[0]
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
    pipeline="AuraFlowPipeline",
    write=write_tiny_auraflow,
    encode=encode,
    decode=decode,
    velocity=velocity,
    paint=paint,
    published={"auraflow": "auraflow"},
)
