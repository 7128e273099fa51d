"""Qwen-Image (Wu et al. 2025, arXiv 2508.02324), 2512 too: a transformer of two streams, told texts by Qwen2.5-VL."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from veneer.family.abstract import AbstractTokenizer
from veneer.family.key_names.network import names_in
from veneer.family.key_names.qwen_image import qwen_image_names
from veneer.family.packing import PATCH, pack, unpack
from veneer.family.protocol import Conditioning
from veneer.family.qwen_latents import QwenLatents
from veneer.family.text_mask import without_padding
from veneer.weights.formats.protocol import KeyNames
from veneer.weights.metadata import BaseLabels

__all__ = ["QwenImage"]

_TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
"""What the text encoder is given in place of a caption; the caption stands where the braces are."""
_DROPPED = 34  # tokens of the template before the caption, whose states the transformer does not see


class QwenImage(QwenLatents):
    """A Qwen-Image base; its conditioning is ``text`` (B, T, D), states of the captions' tokens, and ``mask`` (B, T).

    A caption is given to the text encoder within the sentence that the pipeline has for it. Of its last hidden states,
    after the final norm, those of the sentence before the caption are dropped, those behind it are kept. The pipeline
    reads 512 tokens, of which the five behind a caption are the first to be lost.
    """

    name = "qwen_image"
    tokenizers = MappingProxyType({"text_encoder": "tokenizer"})
    text_tokens = 512
    guidance_argument = "true_cfg_scale"
    default_targets = MappingProxyType(
        {
            "transformer": (
                "to_q",
                "to_k",
                "to_v",
                "to_out.0",
                "add_q_proj",
                "add_k_proj",
                "add_v_proj",
                "to_add_out",
            )
        }
    )

    @property
    def labels(self) -> BaseLabels:
        """Those that musubi-tuner writes, and Civitai's."""
        return BaseLabels(
            "Qwen-Image",
            "qwen_image",
            implementation="https://github.com/QwenLM/Qwen-Image",
            module="networks.lora_qwen_image",
            civitai="Qwen",
            tags=("qwen-image",),
        )

    @property
    def key_names(self) -> KeyNames:
        """No names but diffusers': the model's own code was published there."""
        return {"kohya": names_in(self.denoiser, self._denoiser, qwen_image_names)}

    def encode_text(self, captions: Sequence[str]) -> Conditioning:
        """Turn captions into ``text`` and ``mask``, each by itself, so that none is padded in the text encoder."""
        self._offloader.restore("text_encoder")
        return Conditioning.cat([self._encode(caption) for caption in captions])

    def _encode(self, caption: str) -> Conditioning:
        text_encoder, tokenizer = self._text_encoders["text_encoder"], self._tokenizers["text_encoder"]
        most = _DROPPED + self.text_tokens
        ids = tokenizer([_TEMPLATE.format(caption)], max_length=most, truncation=True, return_tensors="pt").input_ids
        # the logits of the last token alone: nobody looks at them
        states = text_encoder(ids.to(text_encoder.device), output_hidden_states=True, logits_to_keep=1).hidden_states
        text_1TD = states[-1][:, _DROPPED:]
        return Conditioning({"text": text_1TD, "mask": torch.ones_like(text_1TD[..., 0], dtype=torch.bool)})

    def pipeline_prompts(self, prompts: Sequence[str]) -> dict[str, Any]:
        """Return the pipeline's arguments; it guides only if it is given something to guide away from, here a blank."""
        return {**super().pipeline_prompts(prompts), "negative_prompt": [" "] * len(prompts)}

    def predict(self, noisy: Tensor, t_B: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the velocity eps - x (B, C, H, W); the tokens of references stand behind the noisy ones."""
        pictures = (noisy, *conditioning.references)
        shapes = [(1, *(side // PATCH for side in picture.shape[-2:])) for picture in pictures]
        text_BTD, mask_BT = without_padding(conditioning)
        output = self._denoiser(
            hidden_states=torch.cat([pack(picture.to(noisy)) for picture in pictures], dim=1).to(self._denoiser.dtype),
            timestep=t_B.to(self._denoiser.dtype),
            encoder_hidden_states=text_BTD.to(self._denoiser.dtype),
            encoder_hidden_states_mask=mask_BT,
            img_shapes=[shapes] * len(noisy),
        )
        _, rows, columns = shapes[0]
        return unpack(output.sample[:, : rows * columns], rows)

    @classmethod
    def _abstract_tokenizer(cls, text_encoder: Any) -> AbstractTokenizer:
        return AbstractTokenizer(_DROPPED + cls.text_tokens, marks=_DROPPED)

    @classmethod
    def _pipeline_class(cls) -> Any:
        from diffusers import QwenImagePipeline

        return QwenImagePipeline

    @classmethod
    def _network_classes(cls) -> dict[str, type[Any]]:
        from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
        from transformers import Qwen2_5_VLForConditionalGeneration

        return {
            "transformer": QwenImageTransformer2DModel,
            "vae": AutoencoderKLQwenImage,
            "text_encoder": Qwen2_5_VLForConditionalGeneration,
        }
