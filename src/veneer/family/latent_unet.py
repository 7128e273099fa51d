"""What Stable Diffusion and its descendants share: a UNet in an autoencoder's latents, led by CLIP text encoders.

A family of this kind is made from its parts, by the names that diffusers' pipelines have for them: ``unet``, ``vae``,
``scheduler``, ``text_encoder``, ``tokenizer`` and so on. It says how texts become a conditioning and what the UNet is
told beside them.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from veneer.config.schema import Density
from veneer.errors import UserError
from veneer.family.diffusion import DiscreteDiffusion
from veneer.family.networks import LoadOptions, load_pipeline, loader_of
from veneer.family.offload import Loader, Offloader
from veneer.family.protocol import LatentDistribution
from veneer.weights.formats.protocol import KeyNames

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["LatentUNet", "diffusion_of", "tokens"]

_UNET_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
_TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
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
_LONGEST = 60  # characters of a setting that is written out; of a longer one it is a hash


class LatentUNet:
    """The part of the ``Family`` protocol that such bases have in common, over a base's very modules.

    Args:
        parts: networks, tokenizers and scheduler by the pipeline's names; other parts go into the pipeline as they are.
        load: reads ``autoencoder`` or a text encoder again, to the same bits; None: that cannot be done.
        options: what the pipeline takes beside its parts, where it is not as ``pipeline_options`` has it.

    Raises:
        UserError: the parts do not fit together as text-to-image, e.g. an inpainting UNet.
    """

    name: str
    denoiser = "unet"
    default_density: Density = "uniform"
    tokenizers: Mapping[str, str]
    """The tokenizer's name by its text encoder's."""
    pipeline_options: Mapping[str, Any] = MappingProxyType({})
    """What the pipeline takes beside its parts."""
    stored_options: tuple[str, ...] = ()
    """Those of them that a base's model_index.json says."""
    left_out: tuple[str, ...] = ()
    """Parts of the pipeline that are not loaded."""

    @classmethod
    def load(cls, place: Path, options: LoadOptions) -> Self:
        """Load a base from a diffusers folder or from a single checkpoint file."""
        networks = cls._network_classes()
        own = {name: value for name, value in cls.pipeline_options.items() if name not in cls.stored_options}
        parts = {**dict.fromkeys(cls.left_out), **own}
        pipeline = load_pipeline(cls._pipeline_class(), place, networks, options, **parts)
        stored = {name: pipeline.config[name] for name in cls.stored_options}
        offloaded = {"autoencoder": "vae", **{name: name for name in cls.tokenizers}}
        components = {**pipeline.components, "scheduler": cls._scheduler_of(pipeline, place)}
        return cls(components, loader_of(place, offloaded, networks, options.dtype), stored)

    @classmethod
    def _scheduler_of(cls, pipeline: Any, place: Path) -> Any:
        """Return the scheduler of a base that was loaded from a folder or a file."""
        return pipeline.scheduler

    @classmethod
    def _network_classes(cls) -> dict[str, type[Any]]:
        from diffusers import AutoencoderKL, UNet2DConditionModel

        return {"unet": UNet2DConditionModel, "vae": AutoencoderKL, **cls._text_encoder_classes()}

    @classmethod
    def _text_encoder_classes(cls) -> dict[str, type[Any]]:
        """Return the class of each text encoder by its name."""
        raise NotImplementedError

    def __init__(
        self, parts: Mapping[str, Any], load: Loader | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        self._parts, self._options = dict(parts), {**self.pipeline_options, **(options or {})}
        self._unet, self._vae = parts["unet"], parts["vae"]
        self._text_encoders = {name: parts[name] for name in self.tokenizers}
        self._tokenizers = {name: parts[tokenizer] for name, tokenizer in self.tokenizers.items()}
        self._check_channels()
        self._check_texts()
        self._scale = _positive(self._vae.config.scaling_factor, "the autoencoder's scaling_factor")
        self._offloader = Offloader({"autoencoder": self._vae, **self._text_encoders}, load)
        self.networks: Mapping[str, nn.Module] = {self.denoiser: self._unet, **self._text_encoders}
        texts = dict.fromkeys(self._text_encoders, _TEXT_TARGETS)
        self.default_targets: Mapping[str, tuple[str, ...]] = {self.denoiser: _UNET_TARGETS, **texts}
        self.noise = diffusion_of(parts["scheduler"])
        pixels_a_latent = 2 ** (len(self._vae.config.block_out_channels) - 1)
        self.resolution = int(_positive(self._unet.config.sample_size, "the UNet's sample_size")) * pixels_a_latent
        self.multiple = pixels_a_latent * 2 ** (len(self._unet.config.block_out_channels) - 1)
        lengths = [int(one.model_max_length) - _marks(one) for one in self._tokenizers.values()]
        self.text_length = min(lengths)

    @property
    def key_names(self) -> KeyNames:
        """No other names than those in memory."""
        return {}

    @property
    def settings(self) -> dict[str, str]:
        """The forward process, the tokenizers, and of each network what its class would not take by itself."""
        values: dict[str, Any] = {f"scheduler.{key}": self._parts["scheduler"].config.get(key) for key in _SCHEDULE}
        for name, text_encoder in self._text_encoders.items():
            values |= {f"{name}.{key}": getattr(text_encoder.config, key, None) for key in _TEXT}
        values |= {f"unet.{key}": value for key, value in _chosen(self._unet).items()}
        values |= {f"vae.{key}": value for key, value in _chosen(self._vae).items()}
        for name, tokenizer in self._tokenizers.items():
            part = self.tokenizers[name]
            values[f"{part}.vocabulary"] = sorted(tokenizer.get_vocab().items())
            values[f"{part}.length"] = tokenizer.model_max_length
            values[f"{part}.padding"] = tokenizer.pad_token_id
        return {key: _short(value) for key, value in values.items() if value is not None}

    def _check_channels(self) -> None:
        taken, made = self._unet.config.in_channels, self._vae.config.latent_channels
        if taken != made:
            raise UserError(
                f"the UNet takes {taken} channels, the autoencoder makes {made}",
                code="family.not_text_to_image",
                remedy="use a text-to-image base, not an inpainting or depth model",
            )

    def _check_texts(self) -> None:
        """Refuse a tokenizer of other files than its text encoder's: it loads, and tells the text encoder nothing."""
        for name, part in self.tokenizers.items():
            cut = self._tokenizers[name].model_max_length
            most = getattr(self._text_encoders[name].config, "max_position_embeddings", None)
            if most is not None and cut > most:
                what = f"the {part} cuts captions at {cut:.3g} tokens, the text encoder reads {most}"
                remedy = f"the folder {part} is not whole, or another base's"
                raise UserError(what, code="family.wrong_tokenizer", remedy=remedy)

    def overlong(self, captions: Sequence[str]) -> dict[str, int]:
        """Return the captions of which a text encoder sees only the beginning, and how many tokens they have."""
        counts: dict[str, int] = {}
        for tokenizer in self._tokenizers.values():
            most = int(tokenizer.model_max_length) - _marks(tokenizer)
            # verbose: it would warn of each, in words of its own
            ids = tokenizer(list(captions), verbose=False).input_ids if captions else []
            lengths = {caption: len(own) - _marks(tokenizer) for caption, own in zip(captions, ids, strict=True)}
            counts |= {text: max(length, counts.get(text, 0)) for text, length in lengths.items() if length > most}
        return counts

    @torch.no_grad()
    def encode_image(self, pixels_BCHW: Tensor) -> LatentDistribution:
        """Turn pixels in [-1, 1] into the scaled posterior (Rombach et al. 2022, appendix G)."""
        with self._autoencoder() as vae:
            posterior = vae.encode(pixels_BCHW.to(vae.device, vae.dtype)).latent_dist
        return LatentDistribution(posterior.mean.float() * self._scale, posterior.std.float() * self._scale)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Turn scaled latents (B, C, H, W) into pixels, clamped to [-1, 1]."""
        with self._autoencoder() as vae:
            pixels_BCHW = vae.decode((latents / self._scale).to(vae.device, vae.dtype)).sample
        return cast(Tensor, pixels_BCHW).float().clamp(-1, 1)

    @contextmanager
    def _autoencoder(self) -> Iterator[Any]:
        """Give the autoencoder, in memory and in the dtype that it computes in."""
        self._offloader.restore("autoencoder")
        yield self._vae

    def pipeline(self) -> Any:
        """Return diffusers' pipeline over these networks; what is injected or merged here is seen there."""
        self.offload(())  # it may be saved
        return self._pipeline_class()(**self._parts, **self._options)

    @classmethod
    def _pipeline_class(cls) -> Any:
        """Return the class of diffusers' pipeline."""
        raise NotImplementedError

    def offload(self, parts: Sequence[str]) -> None:
        """Take these parts out of memory, and all others back; see :class:`veneer.family.offload.Offloader`."""
        self._offloader.offload(parts)

    def to(self, device: torch.device, dtype: torch.dtype) -> Self:
        """Move and cast all networks in place."""
        self.pipeline().to(device, dtype)
        return self


def tokens(tokenizer: Any, captions: Sequence[str], device: torch.device) -> Tensor:
    """Return captions' token ids (B, L), each padded to the tokenizer's length or cut there."""
    length = tokenizer.model_max_length
    ids = tokenizer(list(captions), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return cast(Tensor, ids.input_ids).to(device)


def diffusion_of(scheduler: Any) -> DiscreteDiffusion:
    """Return the forward process that a diffusers scheduler was made for.

    Raises:
        UserError: it is not of DDPM's kind, or predicts something unknown.
    """
    alphas_T = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(alphas_T, Tensor) or alphas_T.ndim != 1:
        what = f"the scheduler is a {type(scheduler).__name__}, which has no alphas_cumprod"
        remedy = "use a base of DDPM's kind, whose noise is told by them"
        raise UserError(what, code="family.wrong_scheduler", remedy=remedy)
    prediction = scheduler.config.get("prediction_type")
    if prediction not in _PREDICTIONS:
        remedy = f"known are {', '.join(_PREDICTIONS)}"
        raise UserError(f"the scheduler predicts {prediction!r}", code="family.wrong_scheduler", remedy=remedy)
    alphas_T = alphas_T.float().clone()
    if scheduler.config.get("rescale_betas_zero_snr"):
        alphas_T[-1] = 0.0  # some schedulers have a tiny number there, which they can divide by (Lin et al. 2024)
    return DiscreteDiffusion(alphas_T, cast(Literal["epsilon", "v_prediction", "sample"], prediction))


def _marks(tokenizer: Any) -> int:
    """Return how many tokens mark a text's beginning and end."""
    return int(tokenizer.num_special_tokens_to_add())


def _chosen(network: Any) -> dict[str, Any]:
    """Return a network's settings but those at its class's default: new ones of a later release leave these alone."""
    defaults = {name: one.default for name, one in inspect.signature(type(network)).parameters.items()}
    values = {key: value for key, value in network.config.items() if not key.startswith("_") and key != "sample_size"}
    return {key: value for key, value in values.items() if _json(value) != _json(defaults.get(key))}


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _short(value: object) -> str:
    text = value if isinstance(value, str) else _json(value)
    return text if len(text) <= _LONGEST else f"sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _positive(value: object, what: str) -> float:
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        remedy = "it must be a number above 0"
        raise UserError(f"{what} is {value!r:.40}", code="family.invalid_setting", remedy=remedy)
    return value
