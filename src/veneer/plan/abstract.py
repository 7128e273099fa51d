"""Abstract bases: modules of the right shapes whose tensors have no data, which a plan computes with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import torch
from diffusers import AutoencoderKL, DDIMScheduler, FluxTransformer2DModel, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

import veneer.base
from veneer.config.schema import Density
from veneer.data.transform import Geometry
from veneer.family.diffusion import DiscreteDiffusion
from veneer.family.flow import FlowMatching
from veneer.family.libraries import one_line_errors
from veneer.family.offload import Offloader
from veneer.family.protocol import Conditioning, Family, LatentDistribution
from veneer.family.published import PUBLISHED, Published
from veneer.family.registry import BUNDLED, detect, detect_on_hub, load_family
from veneer.family.sd import StableDiffusion
from veneer.plan.tracer import MemoryTracer

__all__ = ["abstract_base", "abstract_folder", "abstract_published"]

_CLIP_TOKENS, _T5_TOKENS = 77, 512


def abstract_base(base: str, tracer: MemoryTracer, dtype: torch.dtype) -> Family:
    """Any base that ``base`` may name, from its configurations where that is enough.

    Args:
        base: a key of ``PUBLISHED``, or what ``load_family`` takes.
        tracer: records its weights.
        dtype: as for :func:`abstract_published`.

    Raises:
        UserError: it is not there, or of a family that is not known.
    """
    place = veneer.base.path() if base == BUNDLED else Path(base).expanduser()
    if place.is_dir():
        detect(place)  # refuses what is no Stable Diffusion
        return abstract_folder(place, tracer)
    if base in PUBLISHED:
        return abstract_published(base, tracer, dtype)
    if not place.exists() and detect_on_hub(base):
        return abstract_folder(base, tracer)
    return tracer.without_data(load_family(base))


def abstract_published(name: str, tracer: MemoryTracer, dtype: torch.dtype) -> Family:
    """A published architecture, a key of ``PUBLISHED``, on the ledger's device.

    Args:
        name: which.
        tracer: records its weights.
        dtype: of the frozen weights of what Veneer only plans; what it trains is loaded in float32.
    """
    published = PUBLISHED[name]
    return cast(Family, _KINDS[published.kind](published, tracer, dtype))


def abstract_folder(place: str | Path, tracer: MemoryTracer) -> Family:
    """A Stable Diffusion pipeline of a folder or of the hub from its configurations; no weights are read.

    Raises:
        UserError: they are not whole, or do not fit together.
    """
    where = {"pretrained_model_name_or_path": str(place)}
    with one_line_errors(str(place), "it must be complete"):
        unet = UNet2DConditionModel.load_config(subfolder="unet", **where)
        vae = AutoencoderKL.load_config(subfolder="vae", **where)
        text_encoder = CLIPTextConfig.from_pretrained(str(place), subfolder="text_encoder")
        scheduler = DDIMScheduler.from_pretrained(subfolder="scheduler", **where)
        return _assemble(tracer, unet, vae, text_encoder, scheduler)


def _stable_diffusion(published: Published, tracer: MemoryTracer, dtype: torch.dtype) -> Family:
    text_encoder = CLIPTextConfig(**published.text_encoders[0])
    scheduler = DDIMScheduler(prediction_type=published.prediction, beta_schedule="scaled_linear")
    return _assemble(tracer, published.denoiser, published.autoencoder, text_encoder, scheduler)


def _assemble(tracer: MemoryTracer, unet: Any, vae: Any, text_encoder: Any, scheduler: Any) -> Family:
    """Stable Diffusion's own family over parts without numbers, in float32 as every base is loaded."""
    parts = SimpleNamespace(
        unet=_made(tracer, torch.float32, lambda: UNet2DConditionModel.from_config(unet)),
        vae=_made(tracer, torch.float32, lambda: AutoencoderKL.from_config(vae)),
        text_encoder=_made(tracer, torch.float32, lambda: CLIPTextModel(text_encoder)),
        tokenizer=_Tokens(text_encoder.max_position_embeddings),
        scheduler=tracer.without_data(scheduler),
    )
    return StableDiffusion(vars(parts))


def _made(tracer: MemoryTracer, dtype: torch.dtype, make: Callable[[], nn.Module]) -> Any:
    with torch.device("meta"):
        module = make()
    return tracer.materialise(module.eval(), dtype)


class _Tokens:
    """A tokenizer for captions of which only their number matters."""

    def __init__(self, length: int) -> None:
        self.model_max_length = length

    def num_special_tokens_to_add(self) -> int:
        """The beginning and the end."""
        return 2

    def __call__(self, captions: Sequence[str], **settings: object) -> Any:
        return SimpleNamespace(input_ids=torch.zeros(len(captions), self.model_max_length, dtype=torch.long))


class _Planned:
    """What the families that are only planned have in common; they follow the ``Family`` protocol.

    Args:
        published: the architecture.
        tracer: records its weights.
        dtype: that its frozen weights are held in.
        denoiser: its class.
        text_encoders: their classes, with their configurations' classes.
    """

    name = "planned"
    denoiser = "unet"
    default_density: Density = "uniform"

    def __init__(
        self,
        published: Published,
        tracer: MemoryTracer,
        dtype: torch.dtype,
        denoiser: Any,
        text_encoders: Sequence[tuple[Any, Any]],
    ) -> None:
        self._dtype = dtype
        self._denoiser = _made(tracer, dtype, lambda: denoiser.from_config(published.denoiser))
        self._vae = _made(tracer, dtype, lambda: AutoencoderKL.from_config(published.autoencoder))
        self._text_encoders = [
            _made(tracer, dtype, partial(made, config(**of)))
            for (made, config), of in zip(text_encoders, published.text_encoders, strict=True)
        ]
        names = ("text_encoder", "text_encoder_2")
        self.networks: Mapping[str, nn.Module] = {
            self.denoiser: self._denoiser,
            **dict(zip(names, self._text_encoders, strict=True)),
        }
        attention = {self.denoiser: ("to_q", "to_k", "to_v", "to_out.0")}
        self.default_targets = attention | dict.fromkeys(names, ("q_proj", "k_proj", "v_proj", "out_proj"))
        texts = dict(zip(names, self._text_encoders, strict=True))
        self._offloader = Offloader({"autoencoder": self._vae, **texts}, None)
        self.resolution = published.resolution
        self.multiple = 16

    @torch.no_grad()
    def encode_image(self, pixels_BCHW: Tensor) -> LatentDistribution:
        """As :class:`StableDiffusion` does it."""
        posterior = self._vae.encode(pixels_BCHW.to(self._dtype)).latent_dist
        return LatentDistribution(posterior.mean.float(), posterior.std.float())

    @torch.no_grad()
    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """As :class:`StableDiffusion` does it."""
        return cast(Tensor, self._vae.decode(latents_BCHW.to(self._dtype)).sample).float().clamp(-1, 1)

    def pipeline(self) -> object:
        """None that paints."""
        return self

    def to(self, device: torch.device, dtype: torch.dtype) -> Any:
        """It is where it was planned to be."""
        return self

    def condition(self, text: Conditioning, geometries: Sequence[Geometry]) -> Conditioning:
        """Return the texts: sizes and crops are computed where they are read."""
        return text

    def offload(self, parts: Sequence[str]) -> None:
        """As :class:`StableDiffusion` does it."""
        self._offloader.offload(parts)

    def _ids(self, captions: Sequence[str], length: int) -> Tensor:
        return torch.zeros(len(captions), length, dtype=torch.long, device=self._denoiser.device)


class _StableDiffusionXL(_Planned):
    """Podell et al. 2023: two text encoders side by side, size and crop as further conditions."""

    name = "sdxl"

    def __init__(self, published: Published, tracer: MemoryTracer, dtype: torch.dtype) -> None:
        encoders = ((CLIPTextModel, CLIPTextConfig), (CLIPTextModelWithProjection, CLIPTextConfig))
        super().__init__(published, tracer, dtype, UNet2DConditionModel, encoders)
        prediction = cast(Literal["epsilon", "v_prediction"], published.prediction)
        self.noise = DiscreteDiffusion(torch.linspace(0.999, 0.001, 1000), prediction)

    def encode_text(self, captions: Sequence[str]) -> Conditioning:
        """Both encoders' states before the last layer, side by side, (B, 77, 2048)."""
        ids = self._ids(captions, _CLIP_TOKENS)
        hidden = [encoder(ids, output_hidden_states=True).hidden_states[-2] for encoder in self._text_encoders]
        return Conditioning({"text": torch.cat(hidden, dim=-1)})

    def predict(self, noisy_BCHW: Tensor, t_B: Tensor, conditioning: Conditioning) -> Tensor:
        """The UNet's output, (B, 4, H, W)."""
        batch, conditioning_BLD = noisy_BCHW.shape[0], conditioning["text"]
        added = {"text_embeds": conditioning_BLD.new_zeros(batch, 1280), "time_ids": noisy_BCHW.new_zeros(batch, 6)}
        result = self._denoiser(
            noisy_BCHW.to(self._dtype),
            self.noise.index(t_B),
            encoder_hidden_states=conditioning_BLD.to(self._dtype),
            added_cond_kwargs=added,
        )
        return cast(Tensor, result.sample)


class _Flux(_Planned):
    """Black Forest Labs 2024: a transformer over squares of 2 x 2 latents and the tokens of T5, side by side."""

    name = "flux"
    denoiser = "transformer"

    def __init__(self, published: Published, tracer: MemoryTracer, dtype: torch.dtype) -> None:
        encoders = ((CLIPTextModel, CLIPTextConfig), (T5EncoderModel, T5Config))
        super().__init__(published, tracer, dtype, FluxTransformer2DModel, encoders)
        self.noise = FlowMatching()

    def encode_text(self, captions: Sequence[str]) -> Conditioning:
        """T5's states, (B, 512, 4096); CLIP's one vector a caption is computed and left out, as it holds little."""
        clip, t5 = self._text_encoders
        clip(self._ids(captions, _CLIP_TOKENS))
        return Conditioning({"text": cast(Tensor, t5(self._ids(captions, _T5_TOKENS)).last_hidden_state)})

    def predict(self, noisy_BCHW: Tensor, t_B: Tensor, conditioning: Conditioning) -> Tensor:
        """The transformer's output, (B, 16, H, W)."""
        batch, _, height, width = noisy_BCHW.shape
        conditioning_BLD = conditioning["text"]
        squares = nn.functional.pixel_unshuffle(noisy_BCHW, 2).flatten(2).transpose(1, 2).to(self._dtype)
        result = self._denoiser(
            hidden_states=squares,
            encoder_hidden_states=conditioning_BLD.to(self._dtype),
            pooled_projections=squares.new_zeros(batch, 768),
            timestep=t_B.to(self._dtype),
            guidance=squares.new_ones(batch),
            img_ids=squares.new_zeros(squares.shape[1], 3),
            txt_ids=squares.new_zeros(conditioning_BLD.shape[1], 3),
        )
        sample = cast(Tensor, result.sample).transpose(1, 2)
        return nn.functional.pixel_shuffle(sample.reshape(batch, -1, height // 2, width // 2), 2)


_KINDS: Mapping[str, Callable[[Published, MemoryTracer, torch.dtype], Any]] = {
    "StableDiffusionPipeline": _stable_diffusion,
    "StableDiffusionXLPipeline": _StableDiffusionXL,
    "FluxPipeline": _Flux,
}
