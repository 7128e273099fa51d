"""What the tiny bases of Qwen-Image, Krea 2 and Anima have in common: Qwen's tokenizer and autoencoder."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

__all__ = ["EDIT_PREFIX", "PREFIX", "SUFFIX", "decode", "encode", "tiny_autoencoder", "tiny_tokenizer"]

PREFIX = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, "
    "spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)
EDIT_PREFIX = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects, "
    "background), then explain how the user's text instruction should alter or modify the image. Generate a new image "
    "that meets the user's requirements while maintaining consistency with the original input where appropriate."
    "<|im_end|>\n<|im_start|>user\n"
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"
_MARKS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


def tiny_tokenizer() -> Any:
    """Return Qwen's tokenizer with a token for each byte, and one for each word of the pipelines' sentences.

    So these have as many tokens as with the published one: 34 before a caption, or 64 before an instruction, and 5
    behind them.
    """
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    words = re.findall(r"'s| ?[A-Za-z]+|\),| \(", re.sub(r"<\|\w+\|>", "\n", PREFIX + EDIT_PREFIX + SUFFIX))
    spelt = [word.replace(" ", "\u0120") for word in words]
    merges = [(word[:end], word[end]) for word in spelt for end in range(1, len(word))]
    merges = list(dict.fromkeys([*merges, ("\u0120", "user")]))  # "user" is one before the space is joined to it
    names = ["<|endoftext|>", *sorted(ByteLevel.alphabet()), *("".join(merge) for merge in merges)]
    vocabulary = {name: number for number, name in enumerate(names)}
    return Qwen2Tokenizer(vocab=vocabulary, merges=merges, extra_special_tokens=list(_MARKS), model_max_length=131072)


def tiny_autoencoder() -> Any:
    """Return one of 4 x 4 pixels and 4 channels, whose means and deviations are all different."""
    from diffusers import AutoencoderKLQwenImage

    return AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[-0.75, -0.7, 0.1, 0.96],
        latents_std=[2.8, 1.45, 1.2, 3.26],
    )


def _statistics(pipeline: Any) -> tuple[Tensor, Tensor]:
    config = pipeline.vae.config
    mean, std = (torch.tensor(value).view(1, -1, 1, 1, 1) for value in (config.latents_mean, config.latents_std))
    return mean, std


def encode(pipeline: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """As ``encode_vae_image`` of diffusers' modular pipelines does it."""
    mean, std = _statistics(pipeline)
    posterior = pipeline.vae.encode(pixels.unsqueeze(2)).latent_dist
    return ((posterior.mode() - mean) / std).squeeze(2), (posterior.std / std).squeeze(2)


def decode(pipeline: Any, latents: Tensor) -> Tensor:
    """As the pipelines do it."""
    mean, std = _statistics(pipeline)
    pixels: Tensor = pipeline.vae.decode(latents.unsqueeze(2) / (1.0 / std) + mean, return_dict=False)[0]
    return pixels[:, :, 0]
