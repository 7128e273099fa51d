"""Wan 2.1 and 2.2 (Wan team 2025): a transformer over clips, of which a picture is one of a single frame."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor

from veneer.config.schema import Density
from veneer.data.transform import Geometry
from veneer.errors import UserError
from veneer.family.abstract import AbstractTokenizer
from veneer.family.flow import FlowMatching
from veneer.family.key_names.network import dotted_in_comfy, names_in
from veneer.family.key_names.wan import wan_names
from veneer.family.offload import Loader
from veneer.family.protocol import Conditioning
from veneer.family.video import VideoFamily
from veneer.weights.formats.protocol import KeyNames
from veneer.weights.metadata import BaseLabels

__all__ = ["Wan"]

_TEXT_LENGTH = 512  # tokens that the pipeline gives the transformer, zeros behind the text
_TIMES = 1000  # the transformer is told 1000 sigma
_EXPANDED = "expand_timesteps"
_LARGE_LATENT = (
    16  # pixels a latent of 2.2's autoencoder; its bases were trained on 704 x 1280, the others on 480 x 832
)


class Wan(VideoFamily):
    """A Wan base that paints from texts; its latents are (B, C, T, H, W), of a picture with T = 1.

    Its conditioning is ``text`` (B, L, D), UMT5's last hidden states without padding, and ``mask`` (B, L).

    A base of 2.2 with one transformer (``expand_timesteps``) is told the time of each token.
    """

    name = "wan"
    denoiser = "transformer"
    tokenizers = MappingProxyType({"text_encoder": "tokenizer"})
    text_tokens = _TEXT_LENGTH - 1  # the last one marks the end
    trained_side = 80
    default_density: Density = "logit_normal"
    default_targets = MappingProxyType({"transformer": ("to_q", "to_k", "to_v", "to_out.0")})
    pipeline_options = MappingProxyType({_EXPANDED: False, "boundary_ratio": None})
    stored_options = (_EXPANDED, "boundary_ratio")
    left_out = ("transformer_2",)
    guided_batch = False  # two passes

    def __init__(
        self, parts: Mapping[str, Any], load: Loader | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(parts, load, options)
        if self._options["boundary_ratio"] is not None:
            what, remedy = "has two transformers, one for each range of noise", "use a base with one: 2.1, or 2.2's 5B"
            raise UserError(what, code="family.two_denoisers", where="model_index.json", remedy=remedy)
        self.noise = FlowMatching()
        side = self.trained_side * 3 // 4 if self._pixels_a_latent == _LARGE_LATENT else self.trained_side
        self.resolution = self._pixels_a_latent * side
        self.multiple = self._pixels_a_latent * int(self._denoiser.config.patch_size[-1])

    @property
    def settings(self) -> dict[str, str]:
        """As of all pipelines, and whether each token has a time of its own."""
        return {**super().settings, f"pipeline.{_EXPANDED}": str(self._options[_EXPANDED])}

    @property
    def labels(self) -> BaseLabels:
        """Those of the version and size."""
        is_large_latent, width = self._pixels_a_latent == _LARGE_LATENT, self._denoiser.config.num_attention_heads
        size = {(False, 12): "1.3B", (False, 40): "14B", (True, 24): "5B"}.get((is_large_latent, width), "")
        version = "2.2" if is_large_latent else "2.1"
        return BaseLabels(
            f"wan{version}" + (f"-t2v-{size.lower()}" if size else ""),
            None,
            implementation=f"https://github.com/Wan-Video/Wan{version}",
            module="networks.lora_wan",
            civitai=f"Wan Video {size} t2v" if size and not is_large_latent else "Wan Video 2.2 TI2V-5B",
            tags=("wan", "text-to-video"),
        )

    @property
    def key_names(self) -> KeyNames:
        """The names of the model's own code, which ComfyUI and musubi-tuner's files have."""
        network = (self.denoiser, self._denoiser, wan_names)
        return {"kohya": names_in(*network), "comfy": dotted_in_comfy(*network)}

    def encode_text(self, captions: Sequence[str]) -> Conditioning:
        """Turn captions into ``text`` and ``mask``, as the pipeline does but for its padding."""
        self._offloader.restore("text_encoder")
        text_encoder, tokenizer = self._text_encoders["text_encoder"], self._tokenizers["text_encoder"]
        cleaned = [_cleaned(caption) for caption in captions]
        tokens = tokenizer(cleaned, padding="max_length", max_length=_TEXT_LENGTH, truncation=True)
        both = (tokens.input_ids, tokens.attention_mask)
        ids_BL, mask_BL = (torch.tensor(each, device=text_encoder.device) for each in both)
        states_BLD = text_encoder(ids_BL, mask_BL).last_hidden_state
        length = max(sum(row) for row in tokens.attention_mask)
        mask_BL = mask_BL[:, :length].to(states_BLD.dtype)
        return Conditioning({"text": states_BLD[:, :length] * mask_BL[..., None], "mask": mask_BL})

    def condition(self, text: Conditioning, geometries: Sequence[Geometry]) -> Conditioning:
        """Return the texts: this transformer is told nothing of sizes and crops."""
        return text

    def predict(self, noisy: Tensor, t_B: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the velocity eps - x (B, C, T, H, W)."""
        text_BLD, dtype = conditioning["text"], self._denoiser.dtype
        padding = _TEXT_LENGTH - text_BLD.shape[1]
        output = self._denoiser(
            hidden_states=noisy.to(dtype),
            timestep=self._model_time(noisy, t_B),
            encoder_hidden_states=torch.nn.functional.pad(text_BLD, (0, 0, 0, padding)).to(dtype),
        )
        return cast(Tensor, output.sample)

    def _model_time(self, noisy: Tensor, t_B: Tensor) -> Tensor:
        """Return 1000 sigma (B,), or of each token (B, L) where the base was trained so."""
        time_B = (t_B * _TIMES).float()
        if not self._options[_EXPANDED]:
            return time_B
        patches = self._denoiser.config.patch_size
        tokens = math.prod(side // patch for side, patch in zip(noisy.shape[2:], patches, strict=True))
        return time_B[:, None].expand(-1, tokens)

    def _statistics(self) -> tuple[Tensor, Tensor]:
        config = self._vae.config
        return torch.tensor(config.latents_mean), torch.tensor(config.latents_std)

    def _latent_channels(self) -> int:
        return int(self._vae.config.z_dim)

    @property
    def _pixels_a_latent(self) -> int:
        return int(self._vae.config.scale_factor_spatial)

    @classmethod
    def _abstract_tokenizer(cls, text_encoder: Any) -> AbstractTokenizer:
        return AbstractTokenizer(_TEXT_LENGTH, marks=1)

    @classmethod
    def _pipeline_class(cls) -> Any:
        from diffusers import WanPipeline

        return WanPipeline

    @classmethod
    def _network_classes(cls) -> dict[str, type[Any]]:
        from diffusers import AutoencoderKLWan, WanTransformer3DModel
        from transformers import UMT5EncoderModel

        return {"transformer": WanTransformer3DModel, "vae": AutoencoderKLWan, "text_encoder": UMT5EncoderModel}


def _cleaned(caption: str) -> str:
    """Return a caption as the pipeline reads it: entities of HTML resolved, spaces joined."""
    from diffusers.pipelines.wan.pipeline_wan import prompt_clean

    cleaned: str = prompt_clean(caption)
    return cleaned
