"""Wan 2.1 and 2.2 (Wan team 2025): a transformer over clips, of which a picture is one of a single frame."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor

from veneer.config.objective_config import Density
from veneer.data.transform import Geometry
from veneer.errors import UserError
from veneer.family.abstract import AbstractTokenizer
from veneer.family.channel_statistics import ChannelStatistics
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
_EXPANDED, _BOUNDARY = "expand_timesteps", "boundary_ratio"
_USUAL_BOUNDARY = 0.875  # of 2.2's text to video, where a base in single files does not say it
_LARGE_LATENT = (
    16  # pixels a latent of 2.2's autoencoder; its bases were trained on 704 x 1280, the others on 480 x 832
)


class Wan(VideoFamily):
    """A Wan base that paints from texts; its latents are (B, C, T, H, W), of a picture with T = 1.

    Its conditioning is ``text`` (B, L, D), UMT5's last hidden states without padding, and ``mask`` (B, L).

    A base of 2.2 with one transformer (``expand_timesteps``) is told the time of each token. Of one with two, which
    remove much noise and little, ``transformer`` is the one that is trained; the other one paints with it.
    """

    name = "wan"
    denoiser = "transformer"
    tokenizers = MappingProxyType({"text_encoder": "tokenizer"})
    text_tokens = _TEXT_LENGTH - 1  # the last one marks the end
    trained_side = 80
    default_density: Density = "logit_normal"
    default_targets = MappingProxyType({"transformer": ("to_q", "to_k", "to_v", "to_out.0")})
    pipeline_options = MappingProxyType({_EXPANDED: False, _BOUNDARY: None})
    stored_options = (_EXPANDED, _BOUNDARY)
    guides: tuple[str, ...] = ("transformer_2",)
    optional_parts = ("transformer_2",)
    expert_parts = MappingProxyType({"low_noise": {"transformer": "transformer_2", "transformer_2": "transformer"}})
    guided_batch = False  # two passes

    def __init__(
        self, parts: Mapping[str, Any], load: Loader | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(parts, load, options)
        self._expert: str | None = None
        self.noise = FlowMatching()
        side = self.trained_side * 3 // 4 if self._pixels_a_latent == _LARGE_LATENT else self.trained_side
        self.resolution = self._pixels_a_latent * side
        self.multiple = self._pixels_a_latent * int(self._denoiser.config.patch_size[-1])
        self.frame_stride = int(self._vae.config.scale_factor_temporal)
        self.frame_rate = 24.0 if self._pixels_a_latent == _LARGE_LATENT else 16.0

    def use_expert(self, expert: str | None) -> None:
        """Train the transformer for much noise or the one for little, of a base of 2.2 with two.

        Its times are those that the pipeline gives it: from ``boundary_ratio`` on, or below.
        """
        if not self.guides:
            super().use_expert(expert)
            return
        if expert is None:
            what, remedy = "has two transformers, one for each range of noise", "base.expert=high_noise, or low_noise"
            raise UserError(what, code="family.two_denoisers", where="model_index.json", remedy=remedy)
        self._expert = expert
        boundary = self._options[_BOUNDARY] = self._options[_BOUNDARY] or _USUAL_BOUNDARY
        self.trained_times = (boundary, 1.0) if expert == "high_noise" else (0.0, boundary)

    def pipeline(self, *, texts: bool = True) -> Any:
        """Return diffusers' pipeline, with each transformer in its own place."""
        pipeline = super().pipeline(texts=texts)
        if self._expert == "low_noise":
            swapped = {"transformer": pipeline.transformer_2, "transformer_2": pipeline.transformer}
            pipeline.register_modules(**swapped)
        return pipeline

    @property
    def settings(self) -> dict[str, str]:
        """As of all pipelines, whether each token has a time of its own, and which of two transformers is trained."""
        own = {f"pipeline.{_EXPANDED}": str(self._options[_EXPANDED])}
        if self._expert is not None:
            own |= {"expert": self._expert, f"pipeline.{_BOUNDARY}": str(self._options[_BOUNDARY])}
        return {**super().settings, **own}

    @property
    def labels(self) -> BaseLabels:
        """Those of the version and size."""
        is_large_latent, width = self._pixels_a_latent == _LARGE_LATENT, self._denoiser.config.num_attention_heads
        size = {(False, 12): "1.3B", (False, 40): "14B", (True, 24): "5B"}.get((is_large_latent, width), "")
        version = "2.2" if is_large_latent or self._expert else "2.1"
        expert = f"-{self._expert.replace('_', '-')}" if self._expert else ""
        return BaseLabels(
            f"wan{version}" + (f"-t2v-{size.lower()}{expert}" if size else expert),
            None,
            implementation=f"https://github.com/Wan-Video/Wan{version}",
            module="networks.lora_wan",
            civitai=self._civitai(size),
            tags=("wan", "text-to-video"),
        )

    def _civitai(self, size: str) -> str:
        if self._expert is not None:
            return "Wan Video 2.2 T2V-A14B"
        return f"Wan Video {size} t2v" if size and self._pixels_a_latent != _LARGE_LATENT else "Wan Video 2.2 TI2V-5B"

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

    def _statistics(self) -> ChannelStatistics:
        return ChannelStatistics.of_config(self._vae.config)

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

        networks = {"transformer": WanTransformer3DModel, "transformer_2": WanTransformer3DModel}
        return {**networks, "vae": AutoencoderKLWan, "text_encoder": UMT5EncoderModel}


def _cleaned(caption: str) -> str:
    """Return a caption as the pipeline reads it: entities of HTML resolved, spaces joined."""
    from diffusers.pipelines.wan.pipeline_wan import prompt_clean

    cleaned: str = prompt_clean(caption)
    return cleaned
