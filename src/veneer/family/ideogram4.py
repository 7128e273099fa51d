"""Ideogram 4 (Ideogram 2026): one packed sequence of a text's tokens and a picture's, over FLUX.2's autoencoder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from veneer.config.objective_config import Density, TimestepShift
from veneer.data.transform import Geometry
from veneer.family.abstract import AbstractTokenizer
from veneer.family.batch_norm_latents import BatchNormLatents
from veneer.family.chat import AbstractChatTokenizer
from veneer.family.key_names.ideogram4 import ideogram4_names
from veneer.family.key_names.network import names_in
from veneer.family.offload import Loader
from veneer.family.packing import PATCH, places
from veneer.family.protocol import Conditioning
from veneer.family.text_mask import without_padding
from veneer.weights.formats.protocol import KeyNames
from veneer.weights.metadata import BaseLabels

__all__ = ["Ideogram4"]

_LENGTH = 2048  # tokens of a text with its template that the pipeline reads
_BASE_SIDE = 512  # side of the squares whose times have no shift, in pixels


class Ideogram4(BatchNormLatents):
    """An Ideogram 4 base; its conditioning is ``text`` (B, T, D) and ``mask`` (B, T), true where a token is.

    ``text`` has of each token 13 layers of Qwen3-VL's states, the layers of one channel side by side. Guidance is by a
    second transformer, which is given the picture's tokens alone; it is not trained.
    """

    name = "ideogram4"
    denoiser = "transformer"
    guides = ("unconditional_transformer",)
    guided_batch = False
    default_density: Density = "logit_normal"
    default_logit_std = 1.5
    text_tokens: int | None = _LENGTH
    tokenizers = MappingProxyType({"text_encoder": "tokenizer"})
    default_targets = MappingProxyType({"transformer": ("to_q", "to_k", "to_v", "to_out.0")})
    left_out = ("prompt_enhancer_head",)

    def __init__(
        self, parts: Mapping[str, Any], load: Loader | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(parts, load, options)
        template = self._tokenizers["text_encoder"](self._in_template(""), add_special_tokens=False)["input_ids"]
        self.text_tokens = _LENGTH - len(template)

    @property
    def labels(self) -> BaseLabels:
        """Those that musubi-tuner writes."""
        return BaseLabels(
            "Ideogram-4",
            "ideogram4",
            implementation="https://github.com/ideogram-oss/ideogram4",
            module="networks.lora_ideogram4",
            civitai="Ideogram 4",
            tags=("ideogram4",),
        )

    @property
    def key_names(self) -> KeyNames:
        """The names of the model's own code, the only ones that ComfyUI reads."""
        return {"kohya": names_in(self.denoiser, self._denoiser, ideogram4_names)}

    @property
    def default_shift(self) -> TimestepShift:
        """By the picture's size: the pipeline has it, not the scheduler."""
        return "resolution"

    def resolution_shift(self, height: int, width: int, frames: int = 1) -> float:
        """Return sqrt(pixels / 512^2), which moves the mean of logit(t) by half of the logarithm of that.

        Source: diffusers ``pipelines/ideogram4/pipeline_ideogram4.py``, ``_resolution_aware_mu``.
        """
        return math.sqrt(height * width) / _BASE_SIDE

    def encode_text(self, captions: Sequence[str]) -> Conditioning:
        """Turn captions into ``text`` and ``mask``, each by itself, without the padding that the pipeline masks."""
        self._offloader.restore("text_encoder")
        return Conditioning.cat([self._encode(self._ids(self._cut(caption))) for caption in captions])

    def _encode(self, ids_T: Tensor) -> Conditioning:
        text_encoder = self._text_encoders["text_encoder"]
        ids_1T = ids_T[None].to(text_encoder.device)
        positions_1T = torch.arange(len(ids_T), device=ids_1T.device)[None]
        read_layers = self._pipeline_class()._get_text_encoder_hidden_states
        states_N1TD = torch.stack(read_layers(text_encoder, ids_1T, None, positions_1T))
        text_1TD = states_N1TD.permute(1, 2, 3, 0).flatten(2)
        return Conditioning({"text": text_1TD, "mask": torch.ones_like(ids_1T, dtype=torch.bool)})

    def _ids(self, caption: str) -> Tensor:
        """Return the tokens of a caption in its template (T,)."""
        tokenizer = self._tokenizers["text_encoder"]
        ids = tokenizer(self._in_template(caption), return_tensors="pt", add_special_tokens=False)
        ids_T: Tensor = ids["input_ids"][0, :_LENGTH]
        return ids_T

    def _cut(self, caption: str) -> str:
        """Return what is read of a caption: the pipeline refuses one that is too long."""
        if len(self._ids(caption)) < _LENGTH or isinstance(self._tokenizers["text_encoder"], AbstractTokenizer):
            return caption
        found = self.unread([caption])
        return found[caption].read if caption in found else caption

    def _in_template(self, caption: str) -> str:
        """Return the text that the language model reads for a caption."""
        messages = [{"role": "user", "content": [{"type": "text", "text": caption}]}]
        tokenizer = self._tokenizers["text_encoder"]
        return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))

    def condition(self, text: Conditioning, geometries: Sequence[Geometry]) -> Conditioning:
        """Return the texts: this transformer is told nothing of sizes and crops."""
        return text

    def predict(self, noisy: Tensor, t_B: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the velocity eps - x (B, C, H, W); the transformer's time is 1 - sigma and its answer x - eps."""
        text_BTD, mask_BT = without_padding(conditioning)
        length, dtype = text_BTD.shape[1], self._denoiser.dtype
        tokens_BLC = noisy.flatten(2).transpose(1, 2)
        output = self._denoiser(
            hidden_states=F.pad(tokens_BLC, (0, 0, length, 0)).to(dtype),
            timestep=(1 - t_B.float()).to(dtype),
            encoder_hidden_states=F.pad(text_BTD, (0, 0, 0, tokens_BLC.shape[1])).to(dtype),
            **_layout(_all_there(text_BTD) if mask_BT is None else mask_BT, noisy.shape[2], noisy.shape[3]),
        )
        answer: Tensor = output.sample[:, length:].transpose(1, 2).unflatten(2, noisy.shape[2:])
        return -answer

    def pipeline_prompts(self, prompts: Sequence[str]) -> dict[str, Any]:
        """Return the pipeline's arguments: it fills texts up to the longest here and not to 2048 tokens."""
        cut = [self._cut(prompt) for prompt in prompts]
        return {"prompt": cut, "max_sequence_length": max(len(self._ids(prompt)) for prompt in cut)}

    def pipeline_guidance(self, scale: float) -> dict[str, Any]:
        """Return the pipeline's arguments for one scale in all steps; its own is 7, and 3 in the last three."""
        return {"guidance_scale": scale, "guidance_schedule": None}

    def _patchify(self, latents_BCHW: Tensor) -> Tensor:
        """Return squares as channels in the order (y, x, c)."""
        squares: Tensor = super()._patchify(latents_BCHW).unflatten(1, (-1, PATCH**2))
        return squares.transpose(1, 2).flatten(1, 2)

    def _unpatchify(self, grid_BCHW: Tensor) -> Tensor:
        squares: Tensor = grid_BCHW.unflatten(1, (PATCH**2, -1))
        return super()._unpatchify(squares.transpose(1, 2).flatten(1, 2))

    @classmethod
    def _abstract_tokenizer(cls, text_encoder: Any) -> AbstractTokenizer:
        return AbstractChatTokenizer(_LENGTH)

    @classmethod
    def _pipeline_class(cls) -> Any:
        from diffusers import Ideogram4Pipeline

        return Ideogram4Pipeline

    @classmethod
    def _network_classes(cls) -> dict[str, type[Any]]:
        from diffusers import Ideogram4Transformer2DModel
        from transformers import Qwen3VLModel

        transformers = dict.fromkeys(("transformer", "unconditional_transformer"), Ideogram4Transformer2DModel)
        return {**transformers, "vae": cls._autoencoder_class(), "text_encoder": Qwen3VLModel}


def _all_there(text_BTD: Tensor) -> Tensor:
    return torch.ones(text_BTD.shape[:2], dtype=torch.bool, device=text_BTD.device)


def _layout(mask_BT: Tensor, rows: int, columns: int) -> dict[str, Tensor]:
    """Return where each token of texts and a picture behind them is, what it attends to, and what it is.

    The pipeline fills texts at their beginning, here it is their end: padding attends to itself alone and no place
    depends on it.

    Args:
        mask_BT: true where a text has a token.
        rows: of the picture's tokens.
        columns: of the picture's tokens.
    """
    from diffusers.models.transformers import transformer_ideogram4 as own

    count, device = rows * columns, mask_BT.device
    text_T3 = torch.arange(mask_BT.shape[1], device=device)[:, None].expand(-1, 3)
    picture_L3 = places(rows, columns, device).long() + own.IMAGE_POSITION_OFFSET
    segments, indicators = torch.ones_like(mask_BT, dtype=torch.long), mask_BT * own.LLM_TOKEN_INDICATOR
    return {
        "position_ids": torch.cat([text_T3, picture_L3]).expand(len(mask_BT), -1, -1),
        "segment_ids": F.pad(segments.where(mask_BT, own.SEQUENCE_PADDING_INDICATOR), (0, count), value=1),
        "indicator": F.pad(indicators, (0, count), value=own.OUTPUT_IMAGE_INDICATOR),
    }
