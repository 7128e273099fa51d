"""Stable Diffusion 1.x and 2.x (Rombach et al. 2022): one UNet, one CLIP text encoder, latents of an autoencoder."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from diffusers import ModelMixin, StableDiffusionPipeline
from torch import Tensor, nn

from veneer.errors import UserError
from veneer.family.offload import Loader, Offloader
from veneer.family.protocol import LatentDistribution, NoiseSchedule

__all__ = ["StableDiffusion"]

_PREDICTIONS = ("epsilon", "v_prediction", "sample")
_SCHEDULE = (
    "prediction_type",
    "num_train_timesteps",
    "beta_schedule",
    "beta_start",
    "beta_end",
    "trained_betas",
    "rescale_betas_zero_snr",
)
"""Of a scheduler's settings, those of the forward process; all others are about painting."""
_TEXT = ("hidden_act", "layer_norm_eps", "num_attention_heads", "num_hidden_layers")
"""Of a text encoder's settings, those that no weight's shape tells."""
_LONGEST = 60  # characters of a setting that are told; of a longer one it is a hash


class StableDiffusion:
    """A Stable Diffusion base, over the very modules of a diffusers pipeline.

    Args:
        pipeline: whose modules.
        load: reads its ``autoencoder`` or ``text_encoder`` again, to the same bits; None: that cannot be done.

    Raises:
        UserError: if the pipeline's parts do not fit together as text-to-image, e.g. an inpainting UNet.
    """

    name = "sd"

    def __init__(self, pipeline: StableDiffusionPipeline, load: Loader | None = None) -> None:
        self._pipeline = pipeline
        self._unet, self._vae = pipeline.unet, pipeline.vae
        self._text_encoder, self._tokenizer = pipeline.text_encoder, pipeline.tokenizer
        if self._unet.config.in_channels != self._vae.config.latent_channels:
            raise UserError(
                f"the UNet takes {self._unet.config.in_channels} channels, the autoencoder makes "
                f"{self._vae.config.latent_channels}",
                remedy="use a text-to-image base, not an inpainting or depth model",
            )
        self._check_text()
        self._scale = _positive(self._vae.config.scaling_factor, "the autoencoder's scaling_factor")
        self._offloader = Offloader({"autoencoder": self._vae, "text_encoder": self._text_encoder}, load)
        self.networks: Mapping[str, nn.Module] = {"unet": self._unet, "text_encoder": self._text_encoder}
        self.noise = _noise_of(pipeline)
        pixels_a_latent = 2 ** (len(self._vae.config.block_out_channels) - 1)
        self.resolution = int(_positive(self._unet.config.sample_size, "the UNet's sample_size")) * pixels_a_latent
        self._marks = int(self._tokenizer.num_special_tokens_to_add())
        self.text_length = int(self._tokenizer.model_max_length) - self._marks
        self.multiple = pixels_a_latent * 2 ** (len(self._unet.config.block_out_channels) - 1)

    @property
    def settings(self) -> dict[str, str]:
        """The forward process, the tokenizer, and of each network what its class would not take by itself."""
        told: dict[str, Any] = {f"scheduler.{key}": self._pipeline.scheduler.config.get(key) for key in _SCHEDULE}
        told |= {f"text_encoder.{key}": getattr(self._text_encoder.config, key, None) for key in _TEXT}
        told |= {f"unet.{key}": value for key, value in _chosen(self._unet).items()}
        told |= {f"vae.{key}": value for key, value in _chosen(self._vae).items()}
        told["tokenizer.vocabulary"] = sorted(self._tokenizer.get_vocab().items())
        told["tokenizer.length"] = self._tokenizer.model_max_length
        told["tokenizer.padding"] = self._tokenizer.pad_token_id
        return {key: _short(value) for key, value in told.items() if value is not None}

    def _check_text(self) -> None:
        """A tokenizer of other files than the text encoder's loads, and tells the text encoder nothing."""
        config = self._text_encoder.config
        cut, most = self._tokenizer.model_max_length, getattr(config, "max_position_embeddings", None)
        if most is not None and cut > most:
            what = f"the tokenizer cuts captions at {cut:.3g} tokens, the text encoder reads {most}"
            raise UserError(what, remedy="the folder tokenizer is not whole, or another base's")

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """Captions to the text encoder's last hidden states, (B, L, D); cut at the tokenizer's length."""
        self._offloader.restore("text_encoder")
        ids = self._tokenizer(
            list(captions),
            padding="max_length",
            max_length=self._tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return cast(Tensor, self._text_encoder(ids.to(self._text_encoder.device))[0])

    def overlong(self, captions: Sequence[str]) -> dict[str, int]:
        """The captions of which the text encoder sees only the beginning, and how many tokens they have."""
        # verbose: it would warn of each, in words of its own
        found = self._tokenizer(list(captions), verbose=False).input_ids if captions else []
        tokens = {caption: len(ids) - self._marks for caption, ids in zip(captions, found, strict=True)}
        return {caption: count for caption, count in tokens.items() if count > self.text_length}

    @torch.no_grad()
    def encode_image(self, pixels_BCHW: Tensor) -> LatentDistribution:
        """Pixels in [-1, 1] to the scaled posterior (Rombach et al. 2022, appendix G)."""
        self._offloader.restore("autoencoder")
        posterior = self._vae.encode(pixels_BCHW.to(self._vae.device, self._vae.dtype)).latent_dist
        return LatentDistribution(posterior.mean.float() * self._scale, posterior.std.float() * self._scale)

    def predict(self, noisy_BCHW: Tensor, timestep_idx_B: Tensor, conditioning_BLD: Tensor) -> Tensor:
        """The UNet's output, (B, C, H, W), in the base's own parameterisation."""
        return cast(Tensor, self._unet(noisy_BCHW, timestep_idx_B, encoder_hidden_states=conditioning_BLD).sample)

    @torch.no_grad()
    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Scaled latents to pixels, clamped to [-1, 1]."""
        self._offloader.restore("autoencoder")
        latents = (latents_BCHW / self._scale).to(self._vae.device, self._vae.dtype)
        return cast(Tensor, self._vae.decode(latents).sample).float().clamp(-1, 1)

    def pipeline(self) -> StableDiffusionPipeline:
        """The pipeline over these networks; what is injected or merged here is seen there."""
        self.offload(())  # it may be saved
        return self._pipeline

    def offload(self, parts: Sequence[str]) -> None:
        """Offload exactly these parts and restore all others; see :class:`veneer.family.offload.Offloader`."""
        self._offloader.offload(parts)

    def to(self, device: torch.device, dtype: torch.dtype) -> StableDiffusion:
        """Move and cast all networks in place."""
        self.offload(())
        self._pipeline.to(device, dtype)
        return self


def _chosen(network: ModelMixin) -> dict[str, Any]:
    """A network's settings but those at its class's default: a release that has new ones leaves these as they are."""
    plain = {name: each.default for name, each in inspect.signature(type(network)).parameters.items()}
    told = {key: value for key, value in network.config.items() if not key.startswith("_") and key != "sample_size"}
    return {key: value for key, value in told.items() if _json(value) != _json(plain.get(key))}


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _short(value: object) -> str:
    text = value if isinstance(value, str) else _json(value)
    return text if len(text) <= _LONGEST else f"sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _positive(value: object, what: str) -> float:
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UserError(f"{what} is {value!r:.40}", remedy="it must be a number above 0")
    return value


def _noise_of(pipeline: StableDiffusionPipeline) -> NoiseSchedule:
    scheduler = pipeline.scheduler
    alphas_T = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(alphas_T, Tensor) or alphas_T.ndim != 1:
        what = f"the scheduler is a {type(scheduler).__name__}, which has no alphas_cumprod"
        raise UserError(what, remedy="use a base of DDPM's kind, whose noise is told by them")
    prediction = scheduler.config.get("prediction_type")
    if prediction not in _PREDICTIONS:
        raise UserError(f"the scheduler predicts {prediction!r}", remedy=f"known are {', '.join(_PREDICTIONS)}")
    return NoiseSchedule(
        alphas_cumprod_T=alphas_T.float(),
        prediction=cast(Literal["epsilon", "v_prediction", "sample"], prediction),
    )
