"""Anima, in the folder that diffusers' modular pipeline writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.families import FamilyCase
from tests.families.parts import letters_of
from tests.families.qwen_parts import decode, encode, tiny_autoencoder, tiny_tokenizer
from veneer.family.anima import complete_transformer

__all__ = ["CASE", "open_anima", "tiny_parts", "write_tiny_anima"]


def write_tiny_anima(folder: Path) -> Path:
    """Write an Anima pipeline of random weights (seed 0), one token for each 8 x 8 pixels."""
    from diffusers import AnimaModularPipeline

    pipeline = AnimaModularPipeline()
    pipeline.update_components(**tiny_parts())
    pipeline.save_pretrained(str(folder), overwrite_modular_index=True)
    return folder


def tiny_parts() -> dict[str, Any]:
    """Return all parts that the folder has."""
    from diffusers import AnimaTextConditioner, FlowMatchEulerDiscreteScheduler
    from transformers import Qwen3Config, Qwen3Model

    tokenizer, t5_tokenizer = tiny_tokenizer(), tiny_t5_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=3,
            num_key_value_heads=1,
            head_dim=8,
            max_position_embeddings=2048,
        )
        return {
            "tokenizer": tokenizer,
            "t5_tokenizer": t5_tokenizer,
            "text_encoder": Qwen3Model(config),
            "text_conditioner": AnimaTextConditioner(
                source_dim=24,
                target_dim=16,
                model_dim=16,
                num_layers=2,
                num_attention_heads=2,
                target_vocab_size=len(t5_tokenizer) + 2,
            ),
            "vae": tiny_autoencoder(),
            "transformer": tiny_transformer(),
            "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        }


def tiny_t5_tokenizer() -> Any:
    """Return T5's tokenizer of the letters and the characters of tags."""
    from transformers import T5TokenizerFast

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -5.0), ("\u2581", -2.0)]
    letters = [(letter, -3.0) for letter in letters_of(",_@")]
    return T5TokenizerFast(vocab=[*pieces, *letters], extra_ids=0, model_max_length=512)


def tiny_transformer() -> Any:
    """Return one of two blocks, whose modulations are random as all weights are."""
    from diffusers import CosmosTransformer3DModel

    return CosmosTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=24,
        num_layers=2,
        mlp_ratio=2.0,
        text_embed_dim=16,
        adaln_lora_dim=8,
        max_size=(4, 60, 60),
        rope_scale=(1.0, 4.0, 4.0),
        concat_padding_mask=True,
        extra_pos_embed_type=None,
    )


def open_anima(folder: Path, kind: Any) -> Any:
    """Open a pipeline as diffusers does, which does not read the parts by itself."""
    pipeline = kind.from_pretrained(str(folder))
    pipeline.load_components()
    complete_transformer()
    return pipeline


def velocity(pipeline: Any, latents: Tensor, sigma_B: Tensor, captions: Sequence[str]) -> Tensor:
    """By diffusers' own steps: texts, the conditioner, the latents and the mask, and the denoiser without guidance."""
    height, width = (side * pipeline.vae_scale_factor for side in latents.shape[-2:])
    output: Tensor = pipeline.transformer(
        hidden_states=latents.unsqueeze(2),
        timestep=sigma_B,
        padding_mask=latents.new_zeros(1, 1, height, width),
        encoder_hidden_states=text_of(pipeline, captions),
        return_dict=False,
    )[0]
    return output.squeeze(2)


def text_of(pipeline: Any, captions: Sequence[str]) -> Tensor:
    """Return what diffusers tells the transformer of a batch of captions."""
    from diffusers.modular_pipelines.anima.before_denoise import AnimaTextConditioningStep
    from diffusers.modular_pipelines.anima.encoders import AnimaTextEncoderStep

    told = AnimaTextEncoderStep.encode_prompt(pipeline, list(captions), prepare_unconditional_embeds=False)
    own = {name: tensor for name, tensor in told.items() if tensor is not None}
    types = {"conditioning_dtype": torch.float32, "output_dtype": torch.float32}
    text: Tensor = AnimaTextConditioningStep._condition_prompt_embeds(pipeline, **own, device="cpu", **types)
    return text


def paint(pipeline: Any, latents: Tensor, captions: Sequence[str], steps: int) -> Tensor:
    from diffusers import ClassifierFreeGuidance

    pipeline.update_components(guider=ClassifierFreeGuidance(guidance_scale=1.0))
    height, width = (side * pipeline.vae_scale_factor for side in latents.shape[-2:])
    sizes = {"height": height, "width": width, "num_inference_steps": steps}
    found: Tensor = pipeline(prompt=list(captions), latents=latents.unsqueeze(2), **sizes, output="latents")
    return found.squeeze(2)


CASE = FamilyCase(
    pipeline="AnimaModularPipeline",
    write=write_tiny_anima,
    encode=encode,
    decode=decode,
    velocity=velocity,
    paint=paint,
    published={"anima": "anima"},
    open=open_anima,
    key_tables=("anima",),
    tolerance=1e-5,
)
