"""ERNIE-Image (Baidu 2026): one stream of a picture's tokens and a text's behind them, over FLUX.2's autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor

from veneer.config.objective_config import Density
from veneer.data.transform import Geometry
from veneer.family.abstract import AbstractTokenizer
from veneer.family.batch_norm_latents import BatchNormLatents
from veneer.family.protocol import Conditioning
from veneer.family.text_mask import without_padding
from veneer.weights.metadata import BaseLabels

__all__ = ["ErnieImage"]

_PLANNED_LENGTH = 512  # tokens of a caption in a plan; the published tokenizer reads as many as there are
_TIMES = 1000  # the transformer's time is the noise's share times this
_TRAINED_EPSILON = 1e-5
_KEY_OF_TURBO = "lora_rank"
_DISTILLED = (
    "its transformer's configuration has the lora_rank of ERNIE-Image-Turbo, which is distilled to paint in 8 steps: "
    "plain training undoes that; train baidu/ERNIE-Image, and use the adapter on either"
)


class ErnieImage(BatchNormLatents):
    """An ERNIE-Image base; its conditioning is ``text`` (B, T, D) and ``mask`` (B, T), true where a token is.

    ``text`` is Ministral 3's states before its last layer, of the caption's tokens behind a mark, without a template.
    """

    name = "ernie_image"
    denoiser = "transformer"
    default_density: Density = "logit_normal"
    tokenizers = MappingProxyType({"text_encoder": "tokenizer"})
    default_targets = MappingProxyType({"transformer": ("to_q", "to_k", "to_v", "to_out.0")})
    left_out = ("pe", "pe_tokenizer")  # which write a prompt anew

    @property
    def distilled(self) -> str | None:
        """What plain training does to Turbo, told by a key that its configuration alone has; None: it is none."""
        return _DISTILLED if _KEY_OF_TURBO in self._denoiser.config else None

    @property
    def labels(self) -> BaseLabels:
        """Those that musubi-tuner writes."""
        return BaseLabels(
            "ERNIE-Image",
            "ernie_image",
            implementation="https://github.com/baidu/ERNIE-Image",
            module="networks.lora_ernie_image",
            civitai="Ernie",
            tags=("ernie-image",),
        )

    def encode_text(self, captions: Sequence[str]) -> Conditioning:
        """Turn captions into ``text`` and ``mask``, each by itself, as the pipeline does."""
        self._offloader.restore("text_encoder")
        return Conditioning.cat([self._encode(caption) for caption in captions])

    def _encode(self, caption: str) -> Conditioning:
        text_encoder, tokenizer = self._text_encoders["text_encoder"], self._tokenizers["text_encoder"]
        ids: list[int] = tokenizer([caption], truncation=True).input_ids[0]
        ids = ids or [tokenizer.bos_token_id or 0]
        ids_1T = torch.tensor([ids], device=text_encoder.device)
        text_1TD = text_encoder(input_ids=ids_1T, output_hidden_states=True).hidden_states[-2]
        return Conditioning({"text": text_1TD, "mask": torch.ones_like(ids_1T, dtype=torch.bool)})

    def condition(self, text: Conditioning, geometries: Sequence[Geometry]) -> Conditioning:
        """Return the texts: this transformer is told nothing of sizes and crops."""
        return text

    def predict(self, noisy: Tensor, t_B: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the velocity eps - x (B, C, H, W)."""
        dtype = self._denoiser.dtype
        text_BTD, mask_BT = without_padding(conditioning)
        lengths = torch.full((len(noisy),), text_BTD.shape[1], device=noisy.device)
        output = self._denoiser(
            hidden_states=noisy.to(dtype),
            timestep=(_TIMES * t_B.float()).to(dtype),
            text_bth=text_BTD.to(dtype),
            text_lens=lengths if mask_BT is None else mask_BT.sum(dim=1),
        )
        return cast(Tensor, output.sample)

    @property
    def _epsilon(self) -> float:
        """What the base was trained with: the pipeline has it in its code, the published configuration has 1e-4."""
        return _TRAINED_EPSILON

    @classmethod
    def _abstract_tokenizer(cls, text_encoder: Any) -> AbstractTokenizer:
        return AbstractTokenizer(_PLANNED_LENGTH, marks=1)

    @classmethod
    def _pipeline_class(cls) -> Any:
        from diffusers import ErnieImagePipeline

        return ErnieImagePipeline

    @classmethod
    def _network_classes(cls) -> dict[str, type[Any]]:
        from diffusers import ErnieImageTransformer2DModel
        from transformers import Mistral3Model

        networks = {"transformer": ErnieImageTransformer2DModel, "vae": cls._autoencoder_class()}
        return {**networks, "text_encoder": Mistral3Model}
