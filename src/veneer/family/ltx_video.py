"""LTX-Video (Lightricks 2024): a small transformer over strongly compressed clips, of which a picture is one frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor

from veneer.config.objective_config import Density
from veneer.data.transform import Geometry
from veneer.family.abstract import AbstractTokenizer
from veneer.family.channel_statistics import ChannelStatistics
from veneer.family.flow import FlowMatching
from veneer.family.key_names.ltx_video import ltx_video_names
from veneer.family.key_names.network import dotted_in_comfy, names_in
from veneer.family.offload import Loader
from veneer.family.protocol import Conditioning
from veneer.family.video import VideoFamily
from veneer.weights.formats.protocol import KeyNames
from veneer.weights.metadata import BaseLabels

__all__ = ["LtxVideo"]

_TEXT_LENGTH = 128  # tokens that the pipeline gives the transformer
_RATE = "frame_rate"
_TIMES = 1000  # the transformer is told 1000 sigma


class LtxVideo(VideoFamily):
    """An LTX-Video base; its conditioning is ``text`` (B, L, D), T5's last hidden states, and ``mask`` (B, L).

    T5 reads a text with its padding, unmasked; the states of the padding are left out, for the transformer masks them.
    """

    name = "ltx_video"
    denoiser = "transformer"
    tokenizers = MappingProxyType({"text_encoder": "tokenizer"})
    text_tokens = _TEXT_LENGTH - 1  # the last one marks the end
    trained_side = 16
    frame_rate = 25.0
    default_density: Density = "logit_normal"
    default_targets = MappingProxyType({"transformer": ("to_q", "to_k", "to_v", "to_out.0")})

    def __init__(
        self, parts: Mapping[str, Any], load: Loader | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(parts, load, options)
        self.noise = FlowMatching()
        self.multiple = self._pixels_a_latent
        self.frame_stride = int(self._vae.temporal_compression_ratio)
        self.resolution = self._pixels_a_latent * self.trained_side

    @property
    def labels(self) -> BaseLabels:
        """Those of LTX-Video."""
        return BaseLabels(
            "ltx-video-2b",
            None,
            implementation="https://github.com/Lightricks/LTX-Video",
            civitai="LTXV",
            tags=("ltx-video", "text-to-video"),
        )

    @property
    def key_names(self) -> KeyNames:
        """The names of the model's own code, which ComfyUI's files have."""
        network = (self.denoiser, self._denoiser, ltx_video_names)
        return {"kohya": names_in(*network), "comfy": dotted_in_comfy(*network)}

    def encode_text(self, captions: Sequence[str]) -> Conditioning:
        """Turn captions into ``text`` and ``mask``, as the pipeline does but for the padding."""
        self._offloader.restore("text_encoder")
        text_encoder, tokenizer = self._text_encoders["text_encoder"], self._tokenizers["text_encoder"]
        tokens = tokenizer(list(captions), padding="max_length", max_length=_TEXT_LENGTH, truncation=True)
        length = max(sum(row) for row in tokens.attention_mask)
        states_BLD = text_encoder(torch.tensor(tokens.input_ids, device=text_encoder.device))[0]
        mask_BL = torch.tensor(tokens.attention_mask, dtype=states_BLD.dtype, device=states_BLD.device)[:, :length]
        return Conditioning({"text": states_BLD[:, :length] * mask_BL[..., None], "mask": mask_BL})

    def condition(self, text: Conditioning, geometries: Sequence[Geometry]) -> Conditioning:
        """Join to the texts of clips their ``frame_rate`` (B,), by which the transformer places frames in time."""
        if all(geometry.frames == 1 for geometry in geometries):
            return text
        rates = [geometry.frame_rate or self.frame_rate for geometry in geometries]
        return text.joined_to({_RATE: torch.tensor(rates, device=text["text"].device)})

    def predict(self, noisy: Tensor, t_B: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the velocity eps - x (B, C, T, H, W)."""
        dtype, (frames, height, width) = self._denoiser.dtype, noisy.shape[2:]
        output = self._denoiser(
            hidden_states=noisy.flatten(2).transpose(1, 2).to(dtype),
            encoder_hidden_states=conditioning["text"].to(dtype),
            timestep=(t_B * _TIMES).float(),
            encoder_attention_mask=conditioning["mask"].to(dtype),
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=(self._seconds_a_latent(conditioning), *[self._pixels_a_latent] * 2),
        )
        velocity_BCTHW: Tensor = output.sample.transpose(1, 2).unflatten(2, (frames, height, width))
        return velocity_BCTHW

    def _seconds_a_latent(self, conditioning: Conditioning) -> Tensor | float:
        """Return how long a frame of latents is, of each clip (B, 1, 1, 1, 1)."""
        rates_B = self._frame_rates(conditioning)
        if rates_B is None:
            return self.frame_stride / self.frame_rate
        return (self.frame_stride / rates_B.double()).float().view(-1, 1, 1, 1, 1)

    def _frame_rates(self, conditioning: Conditioning) -> Tensor | None:
        """Return the frames a second of each clip (B,); None: they are all those that the base was trained on."""
        return conditioning.tensors.get(_RATE)

    def _statistics(self) -> ChannelStatistics:
        vae = self._vae
        return ChannelStatistics(vae.latents_mean, vae.latents_std / vae.config.scaling_factor)

    def _decoded(self, vae: Any, latents: Tensor) -> Tensor:
        """Decode at time 0 where the autoencoder is told one, as the pipeline does by itself."""
        time_B = latents.new_zeros(len(latents)) if vae.config.timestep_conditioning else None
        return cast(Tensor, vae.decode(latents, time_B).sample)

    @property
    def _pixels_a_latent(self) -> int:
        return int(self._vae.spatial_compression_ratio)

    @classmethod
    def _abstract_tokenizer(cls, text_encoder: Any) -> AbstractTokenizer:
        return AbstractTokenizer(_TEXT_LENGTH, marks=1)

    @classmethod
    def _pipeline_class(cls) -> Any:
        from diffusers import LTXPipeline

        return LTXPipeline

    @classmethod
    def _network_classes(cls) -> dict[str, type[Any]]:
        from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel
        from transformers import T5EncoderModel

        networks = {"transformer": LTXVideoTransformer3DModel, "vae": AutoencoderKLLTXVideo}
        return {**networks, "text_encoder": T5EncoderModel}
