"""HiDream-I1."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.families import FamilyCase
from tests.families.flux import decode, encode
from tests.families.parts import clip_tokenizer, t5_tokenizer, tiny_autoencoder

__all__ = ["CASE", "llama_tokenizer", "write_tiny_hidream"]


def llama_tokenizer() -> Any:
    """Llama 3's tokenizer without merges: each byte is a token; it begins each text with a mark."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    first, last = "<|begin_of_text|>", "<|end_of_text|>"
    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet()), first, last]
    vocabulary = {letter: place for place, letter in enumerate(letters)}
    model = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    model.pre_tokenizer, model.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    mark = processors.TemplateProcessing(single=f"{first} $A", special_tokens=[(first, vocabulary[first])])
    model.post_processor = mark
    return PreTrainedTokenizerFast(tokenizer_object=model, bos_token=first, eos_token=last, model_max_length=131072)


def write_tiny_hidream(folder: Path) -> Path:
    """Write a HiDream-I1 pipeline of random weights (seed 0), one token for each 4 x 4 pixels; the same bits each time.

    Pictures that are not square are filled up to 64 tokens. Two blocks share the states of Llama's last layer.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, HiDreamImagePipeline

    tokenizers = {
        "tokenizer": clip_tokenizer(folder / "tokenizer"),
        "tokenizer_2": clip_tokenizer(folder / "tokenizer_2", padding="!"),
        "tokenizer_3": t5_tokenizer(512),
        "tokenizer_4": llama_tokenizer(),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = _networks({name: len(tokenizer) for name, tokenizer in tokenizers.items()})
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    HiDreamImagePipeline(**networks, **tokenizers, scheduler=scheduler).save_pretrained(folder)
    return folder


def _networks(vocabularies: dict[str, int]) -> dict[str, Any]:
    from diffusers import HiDreamImageTransformer2DModel
    from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5EncoderModel

    t5: dict[str, Any] = {"d_model": 20, "d_kv": 6, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    llama: dict[str, Any] = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3, "head_dim": 8}
    llama |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    return {
        "transformer": HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            caption_channels=[20, 24],
            text_emb_dim=16 + 24,
            axes_dims_rope=(8, 4, 4),
            max_resolution=(16, 16),
            llama_layers=[0, 1, 2, 2],
        ),
        "vae": tiny_autoencoder(
            latent_channels=4,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        "text_encoder": _long_clip(vocabularies["tokenizer"], 32, 16, "quick_gelu"),
        "text_encoder_2": _long_clip(vocabularies["tokenizer_2"], 48, 24, "gelu"),
        "text_encoder_3": T5EncoderModel(
            T5Config(vocab_size=vocabularies["tokenizer_3"], feed_forward_proj="gated-gelu", **t5)
        ),
        "text_encoder_4": LlamaForCausalLM(LlamaConfig(vocab_size=vocabularies["tokenizer_4"], **llama)),
    }


def _long_clip(tokens: int, width: int, projection: int, activation: str) -> Any:
    """CLIP's text encoder with 248 places for tokens."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    ids = {"bos_token_id": tokens - 2, "eos_token_id": tokens - 1, "pad_token_id": tokens - 1}
    sizes: dict[str, Any] = {"hidden_size": width, "intermediate_size": 2 * width, "projection_dim": projection}
    layers: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 248}
    config = CLIPTextConfig(vocab_size=tokens, hidden_act=activation, **ids, **sizes, **layers)
    return CLIPTextModelWithProjection(config)


def velocity(pipeline: Any, latents: Tensor, sigma_B: Tensor, captions: Sequence[str]) -> Tensor:
    t5, _, llama, _, pooled, _ = pipeline.encode_prompt(list(captions), do_classifier_free_guidance=False)
    answer: Tensor = pipeline.transformer(
        hidden_states=latents,
        timesteps=1000 * sigma_B,
        encoder_hidden_states_t5=t5,
        encoder_hidden_states_llama3=llama,
        pooled_embeds=pooled,
        return_dict=False,
    )[0]
    return -answer


def paint(pipeline: Any, latents: Tensor, captions: Sequence[str], steps: int) -> Tensor:
    height, width = (side * pipeline.vae_scale_factor for side in latents.shape[-2:])
    pipeline.default_sample_size = latents.shape[-1]  # whose area it paints, whatever it is asked for
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
    pipeline="HiDreamImagePipeline",
    write=write_tiny_hidream,
    encode=encode,
    decode=decode,
    velocity=velocity,
    paint=paint,
    published={"hidream-i1-full": "hidream-i1"},
    tolerance=1e-5,  # the experts' answers are added in another order
)
