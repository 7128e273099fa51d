"""LTX-2 and 2.3 (Lightricks 2026): one transformer with a stream of tokens for clips and a narrow one for their sound.

Clips are trained and their sound is not: the streams are isolated, as in Lightricks' own trainer where it is given no
sound, and no layer of the sound's stream is adapted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from veneer.config.adapter_config import TargetPreset
from veneer.family.abstract import AbstractTokenizer
from veneer.family.key_names.ltx2 import ltx2_names
from veneer.family.key_names.network import dotted_in_comfy, names_in
from veneer.family.ltx_video import LtxVideo
from veneer.family.offload import Loader
from veneer.family.protocol import Conditioning
from veneer.family.text_mask import without_padding
from veneer.weights.formats.protocol import KeyNames
from veneer.weights.metadata import BaseLabels

__all__ = ["Ltx2"]

_TEXT_LENGTH = 1024  # tokens that the pipeline gives the connectors
_SIDE = "left"  # on which the pipeline fills texts up
_TIMES = 1000  # the transformer is told 1000 sigma
_ATTENTION = tuple(f"{attn}.{layer}" for attn in ("attn1", "attn2") for layer in ("to_q", "to_k", "to_v", "to_out.0"))
_GATES = ("attn1.to_gate_logits", "attn2.to_gate_logits")
_MLP = ("ff.net.0.proj", "ff.net.2")
_DISTILLED = (
    "its scheduler is that of LTX-2's distilled checkpoints, which paint in 8 steps without guidance: plain training "
    "undoes that; train the base that is not distilled, whose adapters the distilled one takes too"
)


class Ltx2(LtxVideo):
    """An LTX-2 base; its conditioning is ``text`` (B, 1024, D), what connectors make of a text for the clip's stream.

    Gemma reads a text behind its padding, and the connectors read the states of all its layers. They put learned
    registers in the padding's place, so the transformer reads all 1024 vectors: ``mask`` (B, 1024) is all ones, but of
    connectors without registers.
    """

    name = "ltx2"
    text_connectors = ("connectors",)
    guides = ("audio_vae",)
    encodes_prompts_apart = False  # the connectors are called behind it
    left_out = ("vocoder",)
    text_tokens = _TEXT_LENGTH - 1  # the first one marks the beginning
    trained_side = 24
    frame_rate = 24.0
    default_targets = MappingProxyType({"transformer": _ATTENTION})
    target_presets: Mapping[TargetPreset, tuple[str, ...]] = MappingProxyType(
        {
            "attention": (*_ATTENTION, *_GATES),
            "attention_mlp": (*_ATTENTION, *_GATES, *_MLP),
            "all_linear": (*_ATTENTION, *_GATES, *_MLP),
        }
    )

    def __init__(
        self, parts: Mapping[str, Any], load: Loader | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(parts, load, options)
        self._connectors = parts["connectors"]
        self._tokenizers["text_encoder"].padding_side = _SIDE  # as the pipeline does when it reads a text

    @property
    def distilled(self) -> str | None:
        """What plain training does to a distilled checkpoint; None: its scheduler shifts times by the clip's size.

        Source: diffusers ``scripts/convert_ltx2_to_diffusers.py``.
        """
        return None if self._parts["scheduler"].config.get("use_dynamic_shifting") else _DISTILLED

    @property
    def labels(self) -> BaseLabels:
        """Those of the version."""
        version = "2" if self._denoiser.config.use_prompt_embeddings else "2.3"
        return BaseLabels(
            f"ltx-{version}",
            None,
            implementation="https://github.com/Lightricks/LTX-2",
            civitai="LTXV2" if version == "2" else "LTXV 2.3",
            tags=("ltx-2", "text-to-video"),
        )

    @property
    def key_names(self) -> KeyNames:
        """The names of the model's own code, which ComfyUI's files have."""
        network = (self.denoiser, self._denoiser, ltx2_names)
        return {"kohya": names_in(*network), "comfy": dotted_in_comfy(*network)}

    def encode_text(self, captions: Sequence[str]) -> Conditioning:
        """Turn captions into ``text`` and ``mask``, as the pipeline does."""
        for name in self.text_encoders:
            self._offloader.restore(name)
        text_encoder, tokenizer = self._text_encoders["text_encoder"], self._tokenizers["text_encoder"]
        stripped = [caption.strip() for caption in captions]
        tokens = tokenizer(stripped, padding="max_length", max_length=_TEXT_LENGTH, truncation=True)
        both = (tokens.input_ids, tokens.attention_mask)
        ids_BL, mask_BL = (torch.tensor(each, device=text_encoder.device) for each in both)
        # the model below the one that is called as a whole, which would tell the next token's probabilities as well
        states = text_encoder.model(ids_BL, attention_mask=mask_BL, output_hidden_states=True).hidden_states
        states_BLDN = torch.stack(states, dim=-1).to(self._connectors.dtype)
        text_BLD, _, told_BL = self._connectors(states_BLDN, mask_BL, padding_side=_SIDE)
        return Conditioning({"text": text_BLD, "mask": told_BL})

    def predict(self, noisy: Tensor, t_B: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the velocity eps - x (B, C, T, H, W); it does not depend on the sound, of which there is one token."""
        text_BLD, mask_BL = without_padding(conditioning)
        dtype, (frames, height, width), time_B = self._denoiser.dtype, noisy.shape[2:], (t_B * _TIMES).float()
        output = self._denoiser(
            hidden_states=noisy.flatten(2).transpose(1, 2).to(dtype),
            encoder_hidden_states=text_BLD.to(dtype),
            encoder_attention_mask=None if mask_BL is None else mask_BL.to(dtype),
            **self._silence(noisy),
            timestep=time_B,
            sigma=time_B,
            num_frames=frames,
            height=height,
            width=width,
            fps=self._rate(conditioning),
            isolate_modalities=True,
        )
        velocity_BCTHW: Tensor = output.sample.transpose(1, 2).unflatten(2, (frames, height, width))
        return velocity_BCTHW

    def _silence(self, noisy: Tensor) -> dict[str, Any]:
        """Return what the sound's stream is given: one token of zeros, and zeros for its text."""
        config, like = self._denoiser.config, {"dtype": self._denoiser.dtype, "device": noisy.device}
        width = config.caption_channels if config.use_prompt_embeddings else config.audio_cross_attention_dim
        return {
            "audio_hidden_states": torch.zeros(len(noisy), 1, config.audio_in_channels, **like),
            "audio_encoder_hidden_states": torch.zeros(len(noisy), 1, width, **like),
            "audio_num_frames": 1,
        }

    def _rate(self, conditioning: Conditioning) -> Tensor | float:
        """Return the frames a second of each clip (B, 1, 1), by which the transformer places frames in time."""
        rates_B = self._frame_rates(conditioning)
        return self.frame_rate if rates_B is None else rates_B.view(-1, 1, 1)

    def pipeline_guidance(self, scale: float) -> dict[str, Any]:
        """Return the pipeline's arguments for a scale of guidance by the text, of the clip and its sound.

        By itself the pipeline guides in two further ways: away from a clip that skips attention in a block, and from
        one that does not hear its sound.
        """
        return {
            **dict.fromkeys(("guidance_scale", "audio_guidance_scale"), scale),
            **dict.fromkeys(("stg_scale", "audio_stg_scale", "guidance_rescale", "audio_guidance_rescale"), 0.0),
            **dict.fromkeys(("modality_scale", "audio_modality_scale"), 1.0),
        }

    def pipeline_frames(self, count: int) -> dict[str, Any]:
        """Return the pipeline's arguments for clips of so many frames, as latents: their sound would be decoded too."""
        return {"num_frames": count, "output_type": "latent"}

    @torch.no_grad()
    def frames_of(self, painted: Any) -> Sequence[Sequence[Image.Image]]:
        """Return the frames of each clip, decoded from its latents as the pipeline does."""
        from diffusers.video_processor import VideoProcessor

        with self._autoencoder() as vae:
            pixels = self._decoded(vae, painted.frames.to(vae.device, vae.dtype))
        clips: list[list[Image.Image]] = VideoProcessor().postprocess_video(pixels, output_type="pil")
        return clips

    @classmethod
    def _abstract_tokenizer(cls, text_encoder: Any) -> AbstractTokenizer:
        return AbstractTokenizer(_TEXT_LENGTH, marks=1)

    @classmethod
    def _pipeline_class(cls) -> Any:
        from diffusers import LTX2Pipeline

        return LTX2Pipeline

    @classmethod
    def _network_classes(cls) -> dict[str, type[Any]]:
        from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video, LTX2VideoTransformer3DModel
        from diffusers.pipelines.ltx2 import LTX2TextConnectors
        from transformers import Gemma3ForConditionalGeneration

        networks = {"transformer": LTX2VideoTransformer3DModel, "vae": AutoencoderKLLTX2Video}
        texts = {"text_encoder": Gemma3ForConditionalGeneration, "connectors": LTX2TextConnectors}
        return {**networks, **texts, "audio_vae": AutoencoderKLLTX2Audio}
