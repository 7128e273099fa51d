"""FLUX.1 (Black Forest Labs 2024): a transformer over squares of 2 x 2 latents and the tokens of T5, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

from torch import Tensor

from veneer.adapter.layers import weighted_layers_of
from veneer.config.objective_config import Density
from veneer.family.abstract import AbstractTokenizer
from veneer.family.key_names.flux import flux_names, linear1_qkv_names, onetrainer_names, x_labs_names
from veneer.family.key_names.network import names_in
from veneer.family.packing import PATCH, pack, places, unpack
from veneer.family.protocol import Conditioning
from veneer.family.shifted_latents import ShiftedLatents
from veneer.family.windows import tokens
from veneer.weights.formats.protocol import KeyNames
from veneer.weights.metadata import BaseLabels

__all__ = ["Flux"]

_T5_LENGTH = 512  # tokens that the base was trained with
_SCHNELL = (
    "the base takes no guidance scale, like FLUX.1 [schnell], which was distilled to paint in 4 steps: plain training "
    "undoes that, so that few steps paint blurs; train FLUX.1 [dev], whose layers are the same"
)
_NAMES = {
    "kohya": flux_names,
    "x-labs": x_labs_names,
    "onetrainer": onetrainer_names,
    "linear1_qkv": linear1_qkv_names,
}
"""What files call the transformer's layers, by who does."""


class Flux(ShiftedLatents):
    """A FLUX.1 base; its conditioning has two tensors.

    ``text`` (B, T, D): T5's last hidden states, those of padding too, for the base was trained without a mask.
    ``pooled`` (B, P): CLIP's state at the text's end.

    A base that takes a guidance scale as an input, distilled from guided sampling, is told 1: any other value would
    train its guidance anew.
    """

    name = "flux"
    default_density: Density = "logit_normal"
    tokenizers = MappingProxyType({"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"})
    default_targets = MappingProxyType(
        {
            "transformer": ("to_q", "to_k", "to_v", "to_out.0"),
            "text_encoder": ("q_proj", "k_proj", "v_proj", "out_proj"),
            "text_encoder_2": ("q", "k", "v", "o"),
        }
    )
    guided_batch = False  # guidance is an input, or none
    left_out = ("image_encoder", "feature_extractor")

    @property
    def distilled(self) -> str | None:
        """What plain training does to [schnell], which is known by taking no guidance scale."""
        return _SCHNELL if self._denoiser.config.get("guidance_embeds") is False else None

    @property
    def labels(self) -> BaseLabels:
        """Those of FLUX.1 [dev], which takes a guidance scale as an input, or of [schnell], which takes none."""
        is_dev = self._denoiser.config.guidance_embeds
        return BaseLabels(
            "flux-1-dev" if is_dev else "flux-1-schnell",
            "flux1",
            implementation="https://github.com/black-forest-labs/flux",
            module="networks.lora_flux",
            webui="Flux",
            civitai="Flux.1 D" if is_dev else "Flux.1 S",
            tags=("flux", "flux-diffusers"),
        )

    @property
    def key_names(self) -> KeyNames:
        """The names of the model's own code, which kohya's files have, and what others' files have in their place.

        kohya counts T5 as the third text encoder, as in Stable Diffusion 3.
        """
        names = {kind: names_in(self.denoiser, self._denoiser, own) for kind, own in _NAMES.items()}
        t5 = weighted_layers_of({"text_encoder_2": self._text_encoders["text_encoder_2"]})
        names["kohya"] |= {path: path.replace("text_encoder_2", "text_encoder_3", 1) for path in t5}
        return names

    def encode_text(self, captions: Sequence[str]) -> Conditioning:
        """Turn captions into ``text`` and ``pooled``; each tokenizer cuts them at its own length."""
        pooled_BP = self._encode("text_encoder", captions).pooler_output
        return Conditioning({"text": self._encode("text_encoder_2", captions)[0], "pooled": pooled_BP})

    def _encode(self, name: str, captions: Sequence[str]) -> Any:
        self._offloader.restore(name)
        text_encoder = self._text_encoders[name]
        return text_encoder(tokens(self._tokenizers[name], captions, text_encoder.device))

    def predict(self, noisy: Tensor, t_B: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the velocity eps - x (B, C, H, W)."""
        rows, columns = (side // PATCH for side in noisy.shape[-2:])
        text_BTD, transformer, dtype = conditioning["text"], self._denoiser, self._denoiser.dtype
        guidance_B = noisy.new_ones(len(noisy)) if transformer.config.guidance_embeds else None
        picture_BLC, places_L3 = self._picture_tokens(noisy, conditioning)
        output = transformer(
            hidden_states=picture_BLC.to(dtype),
            timestep=t_B.to(dtype),
            guidance=guidance_B,
            pooled_projections=conditioning["pooled"].to(dtype),
            encoder_hidden_states=text_BTD.to(dtype),
            txt_ids=text_BTD.new_zeros(text_BTD.shape[1], 3),
            img_ids=places_L3,
        )
        return unpack(output.sample[:, : rows * columns], rows)

    def _picture_tokens(self, noisy: Tensor, conditioning: Conditioning) -> tuple[Tensor, Tensor]:
        """Return the tokens that the transformer sees beside the text's, noisy ones first, and their places."""
        return pack(noisy), self._places(noisy)

    @staticmethod
    def _places(latents_BCHW: Tensor, picture: int = 0) -> Tensor:
        rows, columns = (side // PATCH for side in latents_BCHW.shape[-2:])
        return places(rows, columns, latents_BCHW.device, picture)

    def _latent_channels(self) -> int:
        return PATCH**2 * int(self._vae.config.latent_channels)

    def _caption_tokenizers(self) -> Sequence[Any]:
        """Return T5's: CLIP's one vector is of a caption's beginning only, as when the base was trained."""
        return [self._tokenizers["text_encoder_2"]]

    @classmethod
    def _abstract_tokenizer(cls, text_encoder: Any) -> AbstractTokenizer:
        if hasattr(text_encoder.config, "max_position_embeddings"):
            return super()._abstract_tokenizer(text_encoder)
        return AbstractTokenizer(_T5_LENGTH, marks=1)

    @classmethod
    def _pipeline_class(cls) -> Any:
        from diffusers import FluxPipeline

        return FluxPipeline

    @classmethod
    def _network_classes(cls) -> dict[str, type[Any]]:
        from diffusers import AutoencoderKL, FluxTransformer2DModel
        from transformers import CLIPTextModel, T5EncoderModel

        texts = {"text_encoder": CLIPTextModel, "text_encoder_2": T5EncoderModel}
        return {"transformer": FluxTransformer2DModel, "vae": AutoencoderKL, **texts}
