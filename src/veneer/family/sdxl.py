"""Stable Diffusion XL (Podell et al. 2023): one UNet, two text encoders, size and crop as further conditions."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor

from veneer.data.transform import Geometry
from veneer.family.latent_unet import LatentUNet
from veneer.family.protocol import Conditioning
from veneer.family.windows import join_windows
from veneer.weights.formats.protocol import KeyNames
from veneer.weights.metadata import BaseLabels

__all__ = ["StableDiffusionXL"]

_FORCE_ZEROS = "force_zeros_for_empty_prompt"
_LABELS = BaseLabels(
    "stable-diffusion-xl-v1-base",
    "sdxl_base_v1-0",
    implementation="https://github.com/Stability-AI/generative-models",
    webui="SDXL",
    civitai="SDXL 1.0",
    tags=("stable-diffusion-xl", "stable-diffusion-xl-diffusers"),
)


class StableDiffusionXL(LatentUNet):
    """An SDXL base; its conditioning has three tensors.

    ``text`` (B, L, D): the hidden states before the last layer of both text encoders, side by side. ``pooled`` (B, P):
    the second one's projected state at the text's end. ``time_ids`` (B, 6): heights and widths of the picture, of the
    crop's top left corner and of the crop.

    The base was trained to paint without a text from zeros (``force_zeros_for_empty_prompt``), so that is what an empty
    caption is.
    """

    name = "sdxl"
    tokenizers = MappingProxyType({"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"})
    pipeline_options = MappingProxyType({"add_watermarker": False, _FORCE_ZEROS: True})
    stored_options = (_FORCE_ZEROS,)
    left_out = ("image_encoder", "feature_extractor")
    autoencoder_overflows = True

    @property
    def settings(self) -> dict[str, str]:
        """As for Stable Diffusion, and what an empty caption is."""
        return {**super().settings, f"pipeline.{_FORCE_ZEROS}": str(self._options[_FORCE_ZEROS])}

    @property
    def key_names(self) -> KeyNames:
        """kohya's names of the UNet's layers, which are those of the model's own code, not of diffusers'."""
        return {"kohya": self._native_names()}

    @property
    def labels(self) -> BaseLabels:
        """Those of SDXL 1.0, whatever it predicts: no program has others."""
        return _LABELS

    def encode_text(self, captions: Sequence[str]) -> Conditioning:
        """Turn captions into ``text`` and ``pooled``, which is of the first window; cut where the windows end."""
        for name in self._text_encoders:
            self._offloader.restore(name)
        outputs = [self._hidden_states(name, captions) for name in self._text_encoders]
        states = [join_windows([window.hidden_states[-2] for window in windows]) for windows in outputs]
        text_BLD, pooled_BP = torch.cat(states, dim=-1), outputs[-1][0].text_embeds
        if self._options[_FORCE_ZEROS]:
            is_text_B = torch.tensor([bool(caption) for caption in captions], device=text_BLD.device)
            text_BLD, pooled_BP = text_BLD * is_text_B[:, None, None], pooled_BP * is_text_B[:, None]
        return Conditioning({"text": text_BLD, "pooled": pooled_BP})

    def _hidden_states(self, name: str, captions: Sequence[str]) -> list[Any]:
        """Return a text encoder's output for each window."""
        text_encoder = self._text_encoders[name]
        return [text_encoder(ids_BL, output_hidden_states=True) for ids_BL in self._windows(name, captions)]

    def condition(self, text: Conditioning, geometries: Sequence[Geometry]) -> Conditioning:
        """Join to texts the size and crop of each picture (Podell et al. 2023, section 2.2)."""
        rows = [(*one.original, *one.top_left, *one.target) for one in geometries]
        # bfloat16 would round them
        time_ids_B6 = torch.tensor(rows, dtype=torch.float32, device=text["pooled"].device)
        return text.joined_to({"time_ids": time_ids_B6})

    def predict(self, noisy: Tensor, t_B: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the UNet's output (B, C, H, W), in the base's own parameterisation."""
        added = {"text_embeds": conditioning["pooled"], "time_ids": conditioning["time_ids"]}
        text_BLD, index_B = conditioning["text"], self.noise.index(t_B)
        return cast(
            Tensor, self._denoiser(noisy, index_B, encoder_hidden_states=text_BLD, added_cond_kwargs=added).sample
        )

    @classmethod
    def _pipeline_class(cls) -> Any:
        from diffusers import StableDiffusionXLPipeline

        return StableDiffusionXLPipeline

    @classmethod
    def _text_encoder_classes(cls) -> dict[str, type[Any]]:
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

        return {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
