"""Z-Image (Tongyi Lab 2025): one transformer over the tokens of a picture and those of a text that Qwen3 has read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.utils.rnn import pad_sequence

from veneer.config.objective_config import Density
from veneer.family.abstract import AbstractTokenizer
from veneer.family.chat import AbstractChatTokenizer, tokens_before
from veneer.family.key_names.network import names_in
from veneer.family.key_names.z_image import z_image_names
from veneer.family.offload import Loader
from veneer.family.protocol import Conditioning
from veneer.family.shifted_latents import ShiftedLatents
from veneer.weights.formats.protocol import KeyNames
from veneer.weights.metadata import BaseLabels

__all__ = ["ZImage"]

_LENGTH = 512  # tokens that the pipeline reads of a text in its template (``encode_prompt``'s default)
_TURBO_SHIFT = 3.0
"""Of the scheduler that Z-Image-Turbo was published with; Z-Image's is 6."""
_DISTILLED = (
    "its scheduler has the shift 3 of Z-Image-Turbo (Z-Image's is 6), which is distilled to paint in 8 steps: plain "
    "training undoes that; train Tongyi-MAI/Z-Image, and use the adapter on either"
)


class ZImage(ShiftedLatents):
    """A Z-Image base; its conditioning is ``text`` (B, T, D) and ``mask`` (B, T), true where a token is.

    Qwen3 reads a caption in its conversation's template, with thinking allowed, which adds no word to it. Of its states
    those before the last layer are taken, the template's too, and those of padding are left out. The transformer fills
    each row up to a multiple of 32 tokens by itself.
    """

    name = "z_image"
    tokenizers = MappingProxyType({"text_encoder": "tokenizer"})
    text_tokens = _LENGTH
    default_density: Density = "logit_normal"
    default_shift = 2.0  # as musubi-tuner trains; its schedulers paint with 6 and 3
    default_targets = MappingProxyType({"transformer": ("to_q", "to_k", "to_v", "to_out.0")})
    default_blocks = MappingProxyType(
        {"transformer": ("layers",)}
    )  # not the refiners, which see one of text and picture

    def __init__(
        self, parts: Mapping[str, Any], load: Loader | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(parts, load, options)
        self.text_tokens = _LENGTH - tokens_before(self._tokenizers["text_encoder"], self._in_template)

    @property
    def distilled(self) -> str | None:
        """What plain training does to Turbo; None: it is not, or its files do not tell.

        Transformer and autoencoder of both have one configuration, and weights of the same names and shapes: their
        schedulers alone tell them apart. A single file has none, and gets the base's.
        """
        return _DISTILLED if self._parts["scheduler"].config.get("shift") == _TURBO_SHIFT else None

    @property
    def labels(self) -> BaseLabels:
        """Those that musubi-tuner writes, and Civitai's."""
        return BaseLabels(
            "Z-Image",
            "z_image",
            implementation="https://github.com/Tongyi-MAI/Z-Image",
            module="networks.lora_zimage",
            civitai="ZImageTurbo" if self.distilled else "ZImageBase",
            tags=("z-image",),
        )

    @property
    def key_names(self) -> KeyNames:
        """The names of the model's own code; musubi's files have diffusers' paths in underscores."""
        return {"kohya": names_in(self.denoiser, self._denoiser, z_image_names)}

    def encode_text(self, captions: Sequence[str]) -> Conditioning:
        """Turn captions into ``text`` and ``mask``, as the pipeline's ``encode_prompt`` does."""
        self._offloader.restore("text_encoder")
        text_encoder, tokenizer = self._text_encoders["text_encoder"], self._tokenizers["text_encoder"]
        read = tokenizer(
            [self._in_template(caption) for caption in captions],
            padding="max_length",
            max_length=_LENGTH,
            truncation=True,
            return_tensors="pt",
        )
        mask_BT = read.attention_mask.to(text_encoder.device).bool()
        ids_BT = read.input_ids.to(text_encoder.device)
        output = text_encoder(input_ids=ids_BT, attention_mask=mask_BT, output_hidden_states=True)
        return Conditioning(_at_the_front(output.hidden_states[-2], mask_BT))

    def _in_template(self, caption: str) -> str:
        """Return the text that the language model reads for a caption."""
        messages = [{"role": "user", "content": caption}]
        options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": True}
        return str(self._tokenizers["text_encoder"].apply_chat_template(messages, **options))

    def predict(self, noisy: Tensor, t_B: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the velocity eps - x (B, C, H, W): the transformer answers x - eps, at the time 1 - sigma."""
        dtype = self._denoiser.dtype
        pictures = list(noisy.unsqueeze(2).to(dtype))  # of one frame each
        texts = [text_TD.to(dtype) for text_TD in _rows(conditioning["text"], conditioning["mask"])]
        output = self._denoiser(pictures, (1 - t_B).float(), texts).sample
        return -torch.stack(output).squeeze(2)

    def pipeline_guidance(self, scale: float) -> dict[str, Any]:
        """Return what the pipeline calls a scale of guidance: how much is added, of which 0 is none."""
        return {"guidance_scale": scale - 1}

    @classmethod
    def _abstract_tokenizer(cls, text_encoder: Any) -> AbstractTokenizer:
        return AbstractChatTokenizer(_LENGTH)

    @classmethod
    def _pipeline_class(cls) -> Any:
        from diffusers import ZImagePipeline

        return ZImagePipeline

    @classmethod
    def _network_classes(cls) -> dict[str, type[Any]]:
        from diffusers import AutoencoderKL, ZImageTransformer2DModel
        from transformers import Qwen3Model

        return {"transformer": ZImageTransformer2DModel, "vae": AutoencoderKL, "text_encoder": Qwen3Model}


def _at_the_front(states_BTD: Tensor, mask_BT: Tensor) -> dict[str, Tensor]:
    """Return the states of tokens as ``text`` and ``mask``, in front of each row, up to the longest row's end."""
    if isinstance(states_BTD, FakeTensor):  # a plan's, which has no numbers: all tokens are taken to be there
        return {"text": states_BTD, "mask": mask_BT}
    rows = [states_TD[mask_T] for states_TD, mask_T in zip(states_BTD, mask_BT, strict=True)]
    masks = [torch.ones_like(row[:, 0], dtype=torch.bool) for row in rows]
    return {"text": pad_sequence(rows, batch_first=True), "mask": pad_sequence(masks, batch_first=True)}


def _rows(text_BTD: Tensor, mask_BT: Tensor) -> list[Tensor]:
    """Return the states of each row's tokens (T, D)."""
    if isinstance(mask_BT, FakeTensor):
        return list(text_BTD)
    return [text_TD[:length] for text_TD, length in zip(text_BTD, mask_BT.sum(dim=1).tolist(), strict=True)]
