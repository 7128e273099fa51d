"""PixArt-Sigma (Chen et al. 2024, arXiv 2403.04692): a transformer that predicts noise, told texts by T5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

from torch import Tensor

from veneer.data.transform import Geometry
from veneer.errors import UserError
from veneer.family.abstract import AbstractTokenizer
from veneer.family.diffusion import DiscreteDiffusion
from veneer.family.latent_unet import diffusion_of
from veneer.family.libraries import silence_libraries
from veneer.family.offload import Loader
from veneer.family.pipeline_family import PipelineFamily
from veneer.family.protocol import Conditioning
from veneer.family.text_mask import cut_to_longest, without_padding
from veneer.weights.metadata import BaseLabels

__all__ = ["PixArtSigma"]

_TEXT_LENGTH = 300  # tokens that the pipeline reads, the end mark among them
_NO_SIZES = MappingProxyType({"resolution": None, "aspect_ratio": None})
"""What PixArt-alpha's transformers are told of a picture's size, and Sigma's are not."""


class PixArtSigma(PipelineFamily):
    """A PixArt-Sigma base; its conditioning is ``text`` (B, L, D), T5's last hidden states, and ``mask`` (B, L).

    T5 reads captions in small letters, and its padding is masked in both networks, so it is left out. The transformer
    answers with the noise and, in further channels, with a variance that nobody trains or uses.
    """

    name = "pixart_sigma"
    denoiser = "transformer"
    tokenizers = MappingProxyType({"text_encoder": "tokenizer"})
    text_tokens = _TEXT_LENGTH - 1
    default_targets = MappingProxyType({"transformer": ("to_q", "to_k", "to_v", "to_out.0")})
    autoencoder_overflows = True
    noise: DiscreteDiffusion

    def __init__(
        self, parts: Mapping[str, Any], load: Loader | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(parts, load, options)
        if self._denoiser.use_additional_conditions:
            what = "the transformer is told a picture's size, as PixArt-alpha's is, and this pipeline tells it nothing"
            raise UserError(what, code="family.other_conditions", remedy="use a PixArt-Sigma base")
        self.noise = diffusion_of(parts["scheduler"])
        config = self._denoiser.config
        self.multiple = self._pixels_a_latent * int(config.patch_size)
        self.resolution = self._pixels_a_latent * int(config.sample_size)

    @property
    def labels(self) -> BaseLabels:
        """Those of PixArt-Sigma."""
        return BaseLabels(
            "pixart-sigma",
            None,
            implementation="https://github.com/PixArt-alpha/PixArt-sigma",
            civitai="PixArt E",
            tags=("pixart-sigma", "pixart_sigma-diffusers"),
            diffusers_reads=False,
        )

    def encode_text(self, captions: Sequence[str]) -> Conditioning:
        """Turn captions into ``text`` and ``mask``, as long as the longest of them."""
        device = self._text_encoders["text_encoder"].device
        with silence_libraries():
            text_BLD, mask_BL, _, _ = self._pipeline_for_text().encode_prompt(
                list(captions), do_classifier_free_guidance=False, device=device, max_sequence_length=_TEXT_LENGTH
            )
        return cut_to_longest(Conditioning({"text": text_BLD, "mask": mask_BL.bool()}))

    def pipeline_prompts(self, prompts: Sequence[str]) -> dict[str, Any]:
        """Return the pipeline's arguments: at the size that is asked for, not the nearest of its own, and as they are.

        Where ftfy and bs4 are installed the pipeline would take from them what looks like a file's name or number.
        """
        return {**super().pipeline_prompts(prompts), "use_resolution_binning": False, "clean_caption": False}

    def condition(self, text: Conditioning, geometries: Sequence[Geometry]) -> Conditioning:
        """Return the texts: this transformer is told nothing of sizes and crops."""
        return text

    def predict(self, noisy: Tensor, t_B: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the predicted noise (B, C, H, W), without the variance that the pipeline drops too."""
        dtype, (text_BLD, mask_BL) = self._denoiser.dtype, without_padding(conditioning)
        output = self._denoiser(
            noisy.to(dtype),
            encoder_hidden_states=text_BLD.to(dtype),
            encoder_attention_mask=None if mask_BL is None else mask_BL.to(dtype),
            timestep=self.noise.index(t_B),
            added_cond_kwargs=dict(_NO_SIZES),
        )
        return cast(Tensor, output.sample)[:, : noisy.shape[1]]

    @classmethod
    def _abstract_tokenizer(cls, text_encoder: Any) -> AbstractTokenizer:
        return AbstractTokenizer(_TEXT_LENGTH, marks=1)

    @classmethod
    def _pipeline_class(cls) -> Any:
        from diffusers import PixArtSigmaPipeline

        return PixArtSigmaPipeline

    @classmethod
    def _network_classes(cls) -> dict[str, type[Any]]:
        from diffusers import AutoencoderKL, PixArtTransformer2DModel
        from transformers import T5EncoderModel

        return {"transformer": PixArtTransformer2DModel, "vae": AutoencoderKL, "text_encoder": T5EncoderModel}
