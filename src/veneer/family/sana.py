"""Sana (Xie et al. 2024, arXiv 2410.10629): linear attention over latents of 32 x 32 pixels, told texts by Gemma 2."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor

from veneer.config.objective_config import Density
from veneer.data.transform import Geometry
from veneer.family.abstract import AbstractTokenizer
from veneer.family.flow import flow_of
from veneer.family.libraries import silence_libraries
from veneer.family.offload import Loader
from veneer.family.pipeline_family import PipelineFamily
from veneer.family.protocol import Conditioning, LatentDistribution
from veneer.family.text_mask import cut_to_longest, without_padding
from veneer.weights.metadata import BaseLabels

__all__ = ["Sana"]

_TEXT_LENGTH = 300  # states that the transformer is told: that of the begin mark, and the last ones of the rest
_TIMES = 1000  # what sigma is multiplied by, beside the transformer's own timestep_scale
_INSTRUCTION = "complex_human_instruction"
"""The pipeline's argument of what stands before a prompt in the text encoder."""


class Sana(PipelineFamily):
    """A Sana base; its conditioning is ``text`` (B, L, D), Gemma's last hidden states, and ``mask`` (B, L).

    A caption, in small letters, stands behind the pipeline's long instruction; of the states that of the begin mark and
    those from the instruction's last token on are kept. The transformer masks the padding, so it is left out.

    The autoencoder has no deviation: a picture is one latent.
    """

    name = "sana"
    denoiser = "transformer"
    default_density: Density = "logit_normal"
    tokenizers = MappingProxyType({"text_encoder": "tokenizer"})
    text_tokens = _TEXT_LENGTH - 2  # of the instruction the begin mark and the last token are among them
    default_targets = MappingProxyType({"transformer": ("to_q", "to_k", "to_v", "to_out.0")})

    def __init__(
        self, parts: Mapping[str, Any], load: Loader | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(parts, load, options)
        # as the pipeline sets it with the first text: it is a setting of the base, which must not change in a run
        self._tokenizers["text_encoder"].padding_side = "right"
        self.noise = flow_of(parts["scheduler"])
        config = self._denoiser.config
        self.multiple = self._pixels_a_latent * int(config.patch_size)
        self.resolution = self._pixels_a_latent * int(config.sample_size)

    @property
    def labels(self) -> BaseLabels:
        """Those of Sana; no program knows its sizes apart."""
        source = "https://github.com/NVlabs/Sana"
        return BaseLabels("sana", None, implementation=source, tags=("sana", "sana-diffusers"))

    def encode_text(self, captions: Sequence[str]) -> Conditioning:
        """Turn captions into ``text`` and ``mask``, as long as the longest of them."""
        device = self._text_encoders["text_encoder"].device
        with silence_libraries():
            text_BLD, mask_BL, _, _ = self._pipeline_for_text().encode_prompt(
                list(captions),
                do_classifier_free_guidance=False,
                device=device,
                max_sequence_length=_TEXT_LENGTH,
                complex_human_instruction=_instruction(),
            )
        return cut_to_longest(Conditioning({"text": text_BLD, "mask": mask_BL.bool()}))

    def pipeline_prompts(self, prompts: Sequence[str]) -> dict[str, Any]:
        """Return the pipeline's arguments: it paints at the size that is asked for, not at the nearest of its own."""
        return {**super().pipeline_prompts(prompts), "use_resolution_binning": False}

    def condition(self, text: Conditioning, geometries: Sequence[Geometry]) -> Conditioning:
        """Return the texts: this transformer is told nothing of sizes and crops."""
        return text

    def predict(self, noisy: Tensor, t_B: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the velocity eps - x (B, C, H, W)."""
        dtype, (text_BLD, mask_BL) = self._denoiser.dtype, without_padding(conditioning)
        output = self._denoiser(
            noisy.to(dtype),
            encoder_hidden_states=text_BLD.to(dtype),
            encoder_attention_mask=None if mask_BL is None else mask_BL.to(dtype),
            timestep=(_TIMES * t_B).float() * self._denoiser.config.timestep_scale,
        )
        return cast(Tensor, output.sample)

    @torch.no_grad()
    def encode_image(self, pixels_BCHW: Tensor) -> LatentDistribution:
        """Turn pixels in [-1, 1] into the scaled latent, whose deviation is 0."""
        with self._autoencoder() as vae:
            latents = vae.encode(pixels_BCHW.to(vae.device, vae.dtype)).latent.float()
        return self._to_latents(latents, torch.zeros_like(latents))

    @property
    def _pixels_a_latent(self) -> int:
        return int(2 ** (len(self._vae.config.encoder_block_out_channels) - 1))

    @classmethod
    def _abstract_tokenizer(cls, text_encoder: Any) -> AbstractTokenizer:
        return AbstractTokenizer(_TEXT_LENGTH, marks=1)

    @classmethod
    def _pipeline_class(cls) -> Any:
        from diffusers import SanaPipeline

        return SanaPipeline

    @classmethod
    def _network_classes(cls) -> dict[str, type[Any]]:
        from diffusers import AutoencoderDC, SanaTransformer2DModel
        from transformers import Gemma2Model

        return {"transformer": SanaTransformer2DModel, "vae": AutoencoderDC, "text_encoder": Gemma2Model}


def _instruction() -> list[str]:
    """Return what stands before a prompt where the pipeline is called without further words."""
    from diffusers import SanaPipeline

    lines: list[str] = inspect.signature(SanaPipeline.__call__).parameters[_INSTRUCTION].default
    return lines
