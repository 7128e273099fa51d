"""Krea 2, with fewer heads for keys and values than for queries, as the published bases have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.families import FamilyCase
from tests.families.qwen_parts import decode, encode, tiny_autoencoder, tiny_tokenizer

__all__ = ["CASE", "write_tiny_krea2"]

LAYERS = (0, 1, 2)
"""Of the text encoder's states, those that the tiny base takes; published ones take twelve."""


def write_tiny_krea2(folder: Path, *, is_distilled: bool = False) -> Path:
    """Write a Krea 2 pipeline of random weights (seed 0), one token for each 8 x 8 pixels."""
    from diffusers import FlowMatchEulerDiscreteScheduler, Krea2Pipeline

    tokenizer = tiny_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = {
            "text_encoder": tiny_text_encoder(len(tokenizer)),
            "vae": tiny_autoencoder(),
            "transformer": tiny_transformer(),
        }
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, max_image_seq_len=6400)
    options = {"text_encoder_select_layers": LAYERS, "is_distilled": is_distilled}
    Krea2Pipeline(**networks, tokenizer=tokenizer, scheduler=scheduler, **options).save_pretrained(folder)
    return folder


def tiny_transformer() -> Any:
    """Return one whose modulations, which start at zero, are random too."""
    from diffusers import Krea2Transformer2DModel

    transformer = Krea2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        attention_head_dim=12,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=40,
        timestep_embed_dim=16,
        text_hidden_dim=24,
        num_text_layers=len(LAYERS),
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=32,
        axes_dims_rope=(4, 4, 4),
    )
    for name, parameter in transformer.named_parameters():
        if "scale_shift_table" in name or "norm" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return transformer


def tiny_text_encoder(vocabulary: int) -> Any:
    """Return a Qwen3-VL of two layers, and two of vision."""
    from transformers import Qwen3VLConfig, Qwen3VLModel

    text = {
        "vocab_size": vocabulary,
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 2048,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5e6,
            "mrope_interleaved": True,
            "mrope_section": [2, 1, 1],
        },
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 24,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }
    ids = dict(zip(("vision_start", "vision_end", "image", "video"), range(vocabulary - 4, vocabulary), strict=True))
    config = Qwen3VLConfig(text_config=text, vision_config=vision, **{f"{k}_token_id": v for k, v in ids.items()})
    return Qwen3VLModel(config)


def packed(pipeline: Any, latents: Tensor) -> Tensor:
    tokens: Tensor = pipeline._pack_latents(latents, *latents.shape)
    return tokens


def unpacked(pipeline: Any, tokens: Tensor, like: Tensor) -> Tensor:
    height, width = (side * pipeline.vae_scale_factor for side in like.shape[-2:])
    latents: Tensor = pipeline._unpack_latents(tokens, height, width)
    return latents.squeeze(2)


def velocity(pipeline: Any, latents: Tensor, sigma_B: Tensor, captions: Sequence[str]) -> Tensor:
    text, mask = pipeline.encode_prompt(list(captions), "cpu")
    rows, columns = (side // 2 for side in latents.shape[-2:])
    tokens = pipeline.transformer(
        hidden_states=packed(pipeline, latents),
        encoder_hidden_states=text,
        timestep=sigma_B,
        position_ids=pipeline.prepare_position_ids(text.shape[1], rows, columns, torch.device("cpu")),
        encoder_attention_mask=mask,
        return_dict=False,
    )[0]
    return unpacked(pipeline, tokens, latents)


def paint(pipeline: Any, latents: Tensor, captions: Sequence[str], steps: int) -> Tensor:
    height, width = (side * pipeline.vae_scale_factor for side in latents.shape[-2:])
    tokens = pipeline(
        list(captions),
        height=height,
        width=width,
        num_inference_steps=steps,
        guidance_scale=0.0,
        latents=packed(pipeline, latents),
        output_type="latent",
    ).images
    return unpacked(pipeline, tokens, latents)


CASE = FamilyCase(
    pipeline="Krea2Pipeline",
    write=write_tiny_krea2,
    encode=encode,
    decode=decode,
    velocity=velocity,
    paint=paint,
    published={"krea2-raw": "krea2"},
    key_tables=("krea2",),
    tolerance=1e-5,
)
