"""Krea 2 (Krea 2026): one stream of a text's and a picture's tokens, told texts by twelve layers of Qwen3-VL."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from veneer.family.abstract import AbstractTokenizer
from veneer.family.key_names.krea2 import krea2_names
from veneer.family.key_names.network import names_in
from veneer.family.packing import PATCH, pack, places, unpack
from veneer.family.protocol import Conditioning
from veneer.family.qwen_latents import QwenLatents
from veneer.family.text_mask import without_padding
from veneer.weights.formats.protocol import KeyNames
from veneer.weights.metadata import BaseLabels

__all__ = ["Krea2"]

_PREFIX = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)
_SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"
"""What the text encoder is given before and behind a caption."""
_DROPPED, _KEPT = 34, 5  # tokens of both; the transformer sees the states of the second alone
_LAYERS = "text_encoder_select_layers"


class Krea2(QwenLatents):
    """A Krea 2 base; its conditioning is ``text`` (B, T, layers, D) and ``mask`` (B, T).

    ``text`` is the text encoder's states after each of several layers, of the caption's tokens and of the five behind
    it. The pipeline fills a caption up to 512 tokens before these five, gives each token the place that it would have
    without that padding, and masks it. Its attention never sees padding, and all tokens of a text have one place in the
    transformer, so the same is computed here without it.
    """

    name = "krea2"
    tokenizers = MappingProxyType({"text_encoder": "tokenizer"})
    text_tokens = 512 - _KEPT
    default_targets = MappingProxyType({"transformer": ("to_q", "to_k", "to_v", "to_gate", "to_out.0")})
    pipeline_options = MappingProxyType({_LAYERS: None, "is_distilled": False, "patch_size": PATCH})
    stored_options = (_LAYERS, "is_distilled", "patch_size")
    folded_layers = ("transformer.text_fusion.layerwise_blocks.",)

    @property
    def distilled(self) -> str | None:
        """What is to be known of Turbo, which paints in few steps; None: the base is Raw."""
        if not self._options["is_distilled"]:
            return None
        return (
            "this is Krea 2 Turbo, distilled to paint in 8 steps, which plain training undoes; "
            "train on krea/Krea-2-Raw and use the adapter with Turbo"
        )

    @property
    def labels(self) -> BaseLabels:
        """Those that musubi-tuner writes, and Civitai's."""
        return BaseLabels(
            "Krea-2",
            "krea2",
            implementation="https://github.com/krea-ai/krea-2",
            module="networks.lora_krea2",
            civitai="Krea 2",
            tags=("krea-2",),
        )

    @property
    def key_names(self) -> KeyNames:
        """The names of the model's own code, which musubi-tuner's files have."""
        return {"kohya": names_in(self.denoiser, self._denoiser, krea2_names)}

    def encode_text(self, captions: Sequence[str]) -> Conditioning:
        """Turn captions into ``text`` and ``mask``, each by itself."""
        self._offloader.restore("text_encoder")
        return Conditioning.cat([self._encode(caption) for caption in captions])

    def _encode(self, caption: str) -> Conditioning:
        text_encoder = self._text_encoders["text_encoder"]
        ids_1L = self._ids(caption).to(text_encoder.device)
        states = text_encoder(input_ids=ids_1L, output_hidden_states=True).hidden_states
        text_1TND = torch.stack([states[layer] for layer in self._layers()], dim=2)[:, _DROPPED:]
        return Conditioning({"text": text_1TND, "mask": torch.ones_like(text_1TND[..., 0, 0], dtype=torch.bool)})

    def _ids(self, caption: str) -> Tensor:
        """Return the tokens of a caption (1, L) between those before and behind it; a long caption loses its end."""
        tokenizer = self._tokenizers["text_encoder"]
        ids_1L: Tensor = tokenizer([_PREFIX + caption + _SUFFIX], return_tensors="pt", verbose=False).input_ids
        end = _DROPPED + self.text_tokens
        return ids_1L if ids_1L.shape[1] <= end + _KEPT else torch.cat([ids_1L[:, :end], ids_1L[:, -_KEPT:]], dim=1)

    def _layers(self) -> Sequence[int]:
        """Return which hidden states are taken, 0 being the embeddings; where none are named, those of Qwen3-VL-4B."""
        named: Sequence[int] | None = self._options[_LAYERS]
        return range(2, 36, 3) if named is None else named

    def pipeline_guidance(self, scale: float) -> dict[str, Any]:
        """Return what the pipeline calls a scale of guidance: how much is added, of which 0 is none."""
        return {"guidance_scale": scale - 1}

    def predict(self, noisy: Tensor, t_B: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the velocity eps - x (B, C, H, W)."""
        rows, columns = (side // PATCH for side in noisy.shape[-2:])
        text_BTND, mask_BT = without_padding(conditioning)
        text_ids = noisy.new_zeros(text_BTND.shape[1], 3, dtype=torch.float32)
        output = self._denoiser(
            hidden_states=pack(noisy).to(self._denoiser.dtype),
            encoder_hidden_states=text_BTND.to(self._denoiser.dtype),
            timestep=t_B.to(self._denoiser.dtype),
            position_ids=torch.cat([text_ids, places(rows, columns, noisy.device)]),
            encoder_attention_mask=mask_BT,
        )
        return unpack(output.sample, rows)

    @classmethod
    def _abstract_tokenizer(cls, text_encoder: Any) -> AbstractTokenizer:
        return AbstractTokenizer(_DROPPED + cls.text_tokens + _KEPT, marks=_DROPPED + _KEPT)

    @classmethod
    def _pipeline_class(cls) -> Any:
        from diffusers import Krea2Pipeline

        return Krea2Pipeline

    @classmethod
    def _network_classes(cls) -> dict[str, type[Any]]:
        from diffusers import AutoencoderKLQwenImage, Krea2Transformer2DModel
        from transformers import Qwen3VLModel

        return {
            "transformer": Krea2Transformer2DModel,
            "vae": AutoencoderKLQwenImage,
            "text_encoder": Qwen3VLModel,
        }
