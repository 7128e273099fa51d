"""What Stable Diffusion and its descendants share: a UNet in an autoencoder's latents, led by CLIP text encoders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from torch import Tensor

from veneer.config.data_config import MAX_TOKEN_WINDOWS
from veneer.errors import UserError
from veneer.family.diffusion import DiscreteDiffusion
from veneer.family.native_names import native_names
from veneer.family.offload import Loader
from veneer.family.pipeline_family import PipelineFamily
from veneer.family.pipeline_latents import check_positive
from veneer.family.shards import Shards
from veneer.weights.formats.protocol import KeyNames

__all__ = ["LatentUNet", "diffusion_of"]

_UNET_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
_TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
_PREDICTIONS = ("epsilon", "v_prediction", "sample")
_PREDICTS_V, _ZERO_SNR = "v_pred", "ztsnr"
"""What single files hold beside their weights if they predict v, and if their noise ends at zero SNR."""


class LatentUNet(PipelineFamily):
    """A base of this kind, without what its texts become."""

    denoiser = "unet"
    max_token_windows = MAX_TOKEN_WINDOWS
    noise: DiscreteDiffusion
    is_large = False
    reads_checkpoints = True

    def __init__(
        self, parts: Mapping[str, Any], load: Loader | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        self.default_targets = {self.denoiser: _UNET_TARGETS, **dict.fromkeys(self.tokenizers, _TEXT_TARGETS)}
        super().__init__(parts, load, options)
        self.noise = diffusion_of(parts["scheduler"])
        unet = self._denoiser.config
        self.resolution = int(check_positive(unet.sample_size, "the UNet's sample_size")) * self._pixels_a_latent
        # latents need not halve evenly at each level: the UNet doubles them to the sizes that it came down by
        self.multiple = self._pixels_a_latent

    @property
    def key_names(self) -> KeyNames:
        """The names of the UNet's own code, which some tools' files have; kohya's are diffusers'."""
        return {"native": self._native_names()}

    def _native_names(self) -> dict[str, str]:
        """Return the names of the UNet's own code by the layers' paths, both with the network's prefix."""
        return {f"unet.{path}": f"unet.{name}" for path, name in native_names(self._denoiser, norms=True).items()}

    @classmethod
    def _scheduler_of(cls, pipeline: Any, place: Path) -> Any:
        """Return the base's scheduler; a single file may say by the names of empty tensors that it predicts v."""
        names = Shards([place]).shapes.keys() if place.is_file() else ()
        changes: dict[str, Any] = {}
        if _PREDICTS_V in names:
            changes["prediction_type"] = "v_prediction"
        elif (told := cls._prediction_of(pipeline, place)) is not None:
            changes["prediction_type"] = told
        if _ZERO_SNR in names:  # sampling must then begin at the last timestep (Lin et al. 2024, section 3.3)
            changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        return type(pipeline.scheduler).from_config(pipeline.scheduler.config, **changes)

    @classmethod
    def _prediction_of(cls, pipeline: Any, place: Path) -> str | None:
        """Return what a base predicts that its weights tell; None: its configuration does."""
        return None

    @classmethod
    def _network_classes(cls) -> dict[str, type[Any]]:
        from diffusers import AutoencoderKL, UNet2DConditionModel

        return {"unet": UNet2DConditionModel, "vae": AutoencoderKL, **cls._text_encoder_classes()}

    @classmethod
    def _text_encoder_classes(cls) -> dict[str, type[Any]]:
        """Return the class of each text encoder by its name."""
        raise NotImplementedError


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
