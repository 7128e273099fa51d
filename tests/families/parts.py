"""Parts that the tiny bases of several families have alike."""

from __future__ import annotations

import json
from pathlib import Path
from string import ascii_letters
from typing import Any

from tests.conftest import write_tiny_tokenizer

__all__ = ["clip_text_encoder", "clip_tokenizer", "letters_of", "t5_text_encoder", "t5_tokenizer", "tiny_autoencoder"]


def tiny_autoencoder(**config: Any) -> Any:
    """An autoencoder of two levels, one latent for each 2 x 2 pixels."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        **config,
    )


def clip_tokenizer(folder: Path, padding: str | None = None) -> Any:
    """CLIP's tokenizer of 16 tokens, written into a folder; ``padding`` is what it fills texts up with."""
    from transformers import CLIPTokenizer

    write_tiny_tokenizer(folder)
    if padding is not None:
        config = folder / "tokenizer_config.json"
        config.write_text(json.dumps({**json.loads(config.read_text("utf-8")), "pad_token": padding}), "utf-8")
    return CLIPTokenizer.from_pretrained(folder)


def clip_text_encoder(tokens: int, width: int, projection: int, **config: Any) -> Any:
    """CLIP's text encoder of three layers with its projection, of which the second last is read."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    ids = {"bos_token_id": tokens - 2, "eos_token_id": tokens - 1, "pad_token_id": tokens - 1}
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "projection_dim": projection}
    layers = {"num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 16}
    return CLIPTextModelWithProjection(CLIPTextConfig(vocab_size=tokens, **ids, **sizes, **layers, **config))


def t5_tokenizer(length: int) -> Any:
    """T5's tokenizer of the letters."""
    from transformers import T5TokenizerFast

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -5.0), ("\u2581", -2.0)]
    letters = [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz,"]
    return T5TokenizerFast(vocab=[*pieces, *letters], extra_ids=0, model_max_length=length)


def letters_of(others: str = ",") -> list[str]:
    """All letters, capital ones too, and other characters."""
    return [*ascii_letters, *others]


def t5_text_encoder(tokens: int, width: int) -> Any:
    """T5's encoder of two layers."""
    from transformers import T5Config, T5EncoderModel

    sizes = {"d_model": width, "d_kv": 6, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    return T5EncoderModel(T5Config(vocab_size=tokens, feed_forward_proj="gated-gelu", **sizes))
