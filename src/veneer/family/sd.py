"""Stable Diffusion 1.x and 2.x (Rombach et al. 2022): one UNet, one CLIP text encoder, latents of an autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from torch import Tensor

from veneer.data.transform import Geometry
from veneer.family.latent_unet import LatentUNet
from veneer.family.protocol import Conditioning
from veneer.family.windows import join_windows
from veneer.weights.metadata import BaseLabels

__all__ = ["StableDiffusion"]

_WIDTH_OF_1, _WIDTH_OF_2 = 768, 1024  # of the text encoder's states, by which 1.x and 2.x are known
_TELLING, _SPREAD_OF_V = "up_blocks.3.attentions.2.transformer_blocks.0.norm1.bias", 0.09
"""The weight that tells bases of 2.x apart, and its deviation from where on one predicts v; as ComfyUI has it."""
_TAGS = ("stable-diffusion", "stable-diffusion-diffusers")
_LABELS = {
    (_WIDTH_OF_1, "epsilon"): BaseLabels("stable-diffusion-v1", "sd_v1", clip_skip=1, webui="SD1", civitai="SD 1.5"),
    (_WIDTH_OF_1, "v_prediction"): BaseLabels("stable-diffusion-v1", "sd_v1_v", webui="SD1", civitai="SD 1.5"),
    (_WIDTH_OF_2, "epsilon"): BaseLabels("stable-diffusion-v2-512", "sd_v2", is_v2=True, webui="SD2", civitai="SD 2.1"),
    (_WIDTH_OF_2, "v_prediction"): BaseLabels(
        "stable-diffusion-v2-768-v", "sd_v2_v", is_v2=True, webui="SD2", civitai="SD 2.1 768"
    ),
}
"""By the width of texts and what is predicted; of other sizes are bases that no other program loads."""


class StableDiffusion(LatentUNet):
    """A Stable Diffusion base; its conditioning is ``text``, the text encoder's last hidden states (B, L, D)."""

    name = "sd"
    tokenizers = MappingProxyType({"text_encoder": "tokenizer"})
    pipeline_options = MappingProxyType({"requires_safety_checker": False})
    left_out = ("safety_checker", "feature_extractor")

    @property
    def labels(self) -> BaseLabels:
        """Those of 1.x or 2.x by the width of its texts; a base of another size is neither."""
        width = self._denoiser.config.cross_attention_dim
        labels = _LABELS.get((width, self.noise.prediction), BaseLabels("stable-diffusion", None))
        return replace(labels, tags=_TAGS)

    def encode_text(self, captions: Sequence[str]) -> Conditioning:
        """Turn captions into the text encoder's last hidden states; cut where its windows end."""
        self._offloader.restore("text_encoder")
        text_encoder = self._text_encoders["text_encoder"]
        states = [text_encoder(ids_BL)[0] for ids_BL in self._windows("text_encoder", captions)]
        return Conditioning({"text": join_windows(states)})

    def condition(self, text: Conditioning, geometries: Sequence[Geometry]) -> Conditioning:
        """Return the texts: this UNet is told nothing of sizes and crops."""
        return text

    def predict(self, noisy: Tensor, t_B: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the UNet's output (B, C, H, W), in the base's own parameterisation."""
        index_B = self.noise.index(t_B)
        return cast(Tensor, self._denoiser(noisy, index_B, encoder_hidden_states=conditioning["text"]).sample)

    @classmethod
    def _prediction_of(cls, pipeline: Any, place: Path) -> str | None:
        """Return what a single file of 2.x predicts: diffusers reads each with the configuration of 2.1, which is v's.

        The 512-pixel bases of 2.x predict noise, and learn nothing but errors as v. Where the file lies in a diffusers
        folder, that folder's scheduler tells.
        """
        alone = place.is_file() and not (place.parent / "model_index.json").is_file()
        weight = dict(pipeline.unet.named_parameters()).get(_TELLING)
        if not alone or weight is None or pipeline.unet.config.cross_attention_dim != _WIDTH_OF_2:
            return None
        return "v_prediction" if float(weight.detach().float().std(correction=0)) > _SPREAD_OF_V else "epsilon"

    @classmethod
    def _pipeline_class(cls) -> Any:
        from diffusers import StableDiffusionPipeline

        return StableDiffusionPipeline

    @classmethod
    def _text_encoder_classes(cls) -> dict[str, type[Any]]:
        from transformers import CLIPTextModel

        return {"text_encoder": CLIPTextModel}
