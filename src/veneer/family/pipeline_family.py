"""What families that diffusers has a pipeline for share: loading, parts, texts' lengths, the autoencoder, settings.

Such a family is made from its parts, by the names that the pipeline has for them: ``unet`` or ``transformer``, ``vae``,
``scheduler``, ``text_encoder``, ``tokenizer`` and so on. A class says how texts become a conditioning, what its
denoiser is told beside them, and which noise process it was trained with.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import torch
from PIL import Image
from torch import Tensor, nn

from veneer.adapter.targets import expand_preset, names_in_blocks
from veneer.config.adapter_config import TargetPreset
from veneer.config.objective_config import Density, TimestepShift
from veneer.engine.quantization import NONE
from veneer.errors import UserError
from veneer.family.abstract import AbstractTokenizer, Config, make_network, make_scheduler
from veneer.family.base_index import INDEX
from veneer.family.libraries import one_line_errors
from veneer.family.networks import LoadOptions, load_file, load_parts, loader_of
from veneer.family.offload import Loader, Offloader
from veneer.family.pipeline_folder import PipelineFolder
from veneer.family.protocol import Conditioning, LatentDistribution, NoiseProcess
from veneer.family.unread import Unread, find_unread, join_unread
from veneer.family.windows import window_tokens
from veneer.weights.formats.protocol import BaseNetworks, KeyNames
from veneer.weights.metadata import BaseLabels

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["PipelineFamily", "check_positive", "shift_of_tokens"]

_SCHEDULE = (
    "prediction_type",
    "num_train_timesteps",
    "beta_schedule",
    "beta_start",
    "beta_end",
    "trained_betas",
    "rescale_betas_zero_snr",
)
"""Of a scheduler's settings, those of the forward process; all others are about sampling."""
_TEXT = (
    "hidden_act",
    "layer_norm_eps",
    "num_attention_heads",
    "num_hidden_layers",
    "dense_act_fn",
    "layer_norm_epsilon",
    "relative_attention_max_distance",
    "rms_norm_eps",
    "rope_parameters",
    "num_key_value_heads",
    "layer_types",
    "sliding_window",
    "attn_logit_softcapping",
    "query_pre_attn_scalar",
)
"""Of a text encoder's settings, those that no weight's shape tells: CLIP's, T5's further ones, language models'."""
_NUMBER = "set it to a number, or leave it out"
_USUAL_SIDE = "right"  # on which texts are filled up
_LONGEST = 60  # characters of a setting that is written out; of a longer one it is a hash


class PipelineFamily:
    """The part of the ``Family`` protocol that such bases have in common, over a base's very modules.

    Args:
        parts: networks, tokenizers and scheduler by the pipeline's names; other parts go into the pipeline as they are.
        load: reads ``autoencoder`` or a text encoder again, to the same bits; None: that cannot be done.
        options: what the pipeline takes beside its parts, where it is not as ``pipeline_options`` has it.

    Raises:
        UserError: the parts do not fit together.
    """

    name: str
    denoiser: str
    default_density: Density = "uniform"
    default_logit_mean: float = 0.0
    default_logit_std: float = 1.0
    tokenizers: Mapping[str, str]
    """The tokenizer's name by its text encoder's, of each."""
    text_connectors: tuple[str, ...] = ()
    """Networks that make what the denoiser is told of what text encoders say, and read no text themselves. They are
    held, quantised and offloaded as text encoders are, which count them among their names."""
    text_tokens: int | None = None
    """Tokens of a caption that are read, marks and a template's words not counted; None: as its tokenizers cut it."""
    default_targets: Mapping[str, tuple[str, ...]]
    """Of each network that an adapter may change, the layers that it changes where a config names none."""
    default_blocks: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    """Of networks whose adapters are confined to some blocks by default, these."""
    target_presets: Mapping[TargetPreset, tuple[str, ...]] = MappingProxyType({})
    """Of presets of the denoiser's layers, the names that they mean; others are found by looking into its blocks."""
    trained_side: int = 128
    """Side of the squares that bases were trained on, in latents, where their configurations do not say it."""
    guidance_argument: str = "guidance_scale"
    """What the pipeline calls a scale of guidance of which 1 is none."""
    guided_batch: bool = True
    folded_layers: tuple[str, ...] = ()
    pipeline_options: Mapping[str, Any] = MappingProxyType({})
    """What the pipeline takes beside its parts."""
    stored_options: tuple[str, ...] = ()
    """Those of them that a base's model_index.json says."""
    left_out: tuple[str, ...] = ()
    """Parts of the pipeline that are not loaded."""
    optional_parts: tuple[str, ...] = ()
    """Text encoders, tokenizers and guides that a base may come without."""
    expert_parts: Mapping[str, Mapping[str, str]] = MappingProxyType({})
    """By expert, of a base that has two denoisers, which part is in the place of which while it is trained."""
    trained_times: tuple[float, float] = (0.0, 1.0)
    autoencoder_overflows: bool = False
    """Whether the autoencoder's activations leave the range of float16: held in it, it computes in float32."""
    guides: tuple[str, ...] = ()
    max_token_windows: int = 1
    multiple: int
    frame_stride: int | None = None
    frame_rate: float | None = None
    noise: NoiseProcess
    reads_checkpoints: bool = False
    """Whether a base is read from one file by diffusers' pipeline as a whole, not part by part."""
    is_large: bool = True
    """Whether text encoders and denoiser need not fit into memory together: a run reads each when it is first called,
    and text encoders are held in the 16 bits that their files have."""
    reference_counts: range = range(1)
    usual_references: int = 0
    text_reads_references: bool = False

    @classmethod
    def load(cls, place: Path, options: LoadOptions) -> Self:
        """Load a base from a diffusers folder or from a single checkpoint file."""
        networks, options = cls._network_classes(), cls._adapted(options)
        own = {name: value for name, value in cls.pipeline_options.items() if name not in cls.stored_options}
        parts = {**dict.fromkeys(cls.left_out), **own}
        if place.is_file():
            pipeline = load_file(cls._pipeline_class(), place, networks, options, **parts)
        else:
            folder = PipelineFolder(place)
            parts |= {name: folder.index[name] for name in cls.stored_options if name in folder.index}
            parts |= cls._other_parts(folder)
            absent = {name for name in cls.optional_parts if folder.lacks(name)}
            networks = {name: kind for name, kind in networks.items() if name not in absent}
            tokenizers = [name for name in cls.tokenizers.values() if name not in absent]
            loaded = load_parts(folder, networks, tokenizers, options)
            pipeline = cls._pipeline_class()(**loaded, **parts, **dict.fromkeys(absent))
        stored = {name: pipeline.config[name] for name in cls.stored_options}
        offloaded = {"autoencoder": "vae", **{name: name for name in (*cls._texts(), cls.denoiser, *cls.guides)}}
        components = {**pipeline.components, "scheduler": cls._scheduler_of(pipeline, place)}
        return cls(components, loader_of(place, offloaded, networks, options), stored)

    @classmethod
    def _other_parts(cls, folder: PipelineFolder) -> dict[str, Any]:
        """Load what the pipeline takes beside networks, tokenizers and the scheduler: nothing, by itself."""
        return {}

    @classmethod
    def _adapted(cls, options: LoadOptions) -> LoadOptions:
        """Return options with what they mean for this family: which networks are text encoders, which are unread."""
        denoiser = () if options.keeps_denoiser else (cls.denoiser,)
        unread = (*cls._texts(), *denoiser) if options.on_demand and cls.is_large else ()
        format = options.text_encoder_quantization or (None if cls.is_large else NONE)
        return replace(
            options,
            networks=(*options.networks, *(cls.guides if cls.denoiser in options.networks else ())),
            text_encoders=cls._texts(),
            text_encoder_quantization=format,
            unread=(*unread, *cls.guides),
        )

    @classmethod
    def _texts(cls) -> tuple[str, ...]:
        """Return the names of all networks that texts pass through before the denoiser."""
        return *cls.tokenizers, *cls.text_connectors

    @classmethod
    def _scheduler_of(cls, pipeline: Any, place: Path) -> Any:
        """Return the scheduler of a base that was loaded from a folder or a file."""
        return pipeline.scheduler

    @classmethod
    def config_names(cls) -> tuple[str, ...]:
        """Return the names of the parts whose configurations :meth:`abstract` needs."""
        return *cls._network_classes(), "scheduler"

    @classmethod
    def part_names(cls) -> tuple[str, ...]:
        """Return the names of all parts that are loaded."""
        return *cls.config_names(), *cls.tokenizers.values()

    @classmethod
    def abstract(cls, configs: Mapping[str, Config], dtype: torch.dtype) -> Self:
        """Return a base on the meta device, from the configurations of its networks and scheduler, and its index."""
        networks = {}
        absent = {name for name in cls.optional_parts if name not in configs}
        for name, kind in cls._network_classes().items():
            if name in absent:
                continue
            with one_line_errors(f"{name}/config.json", "undo what was changed in it, or fetch it again"):
                networks[name] = make_network(kind, configs[name], dtype)
        tokenizers = {
            part: cls._abstract_tokenizer(networks[name]) for name, part in cls.tokenizers.items() if name in networks
        }
        parts = {**dict.fromkeys((*cls.optional_parts, *cls.left_out)), **networks, **tokenizers}
        index = configs.get(INDEX, {})
        stored = {name: index[name] for name in cls.stored_options if name in index}
        return cls({**parts, "scheduler": make_scheduler(configs["scheduler"])}, options=stored)

    @classmethod
    def _abstract_tokenizer(cls, text_encoder: Any) -> AbstractTokenizer:
        """Return a tokenizer of as many tokens as a text encoder reads."""
        return AbstractTokenizer(text_encoder.config.max_position_embeddings, marks=2)

    @classmethod
    def _pipeline_class(cls) -> Any:
        """Return the class of diffusers' pipeline."""
        raise NotImplementedError

    @classmethod
    def _network_classes(cls) -> dict[str, type[Any]]:
        """Return the class of each network by its name in the pipeline."""
        raise NotImplementedError

    def __init__(
        self, parts: Mapping[str, Any], load: Loader | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        self._parts, self._options = dict(parts), {**self.pipeline_options, **(options or {})}
        self._denoiser, self._vae = parts[self.denoiser], parts["vae"]
        self._text_encoders = {name: parts[name] for name in self.tokenizers if parts[name] is not None}
        self._tokenizers = {name: parts[self.tokenizers[name]] for name in self._text_encoders}
        self._check_channels()
        self._check_texts()
        self._scale = self._scaling_factor()
        guides = {name: parts[name] for name in self.guides if parts[name] is not None}
        self.guides = tuple(guides)
        connectors = {name: parts[name] for name in self.text_connectors}
        large = {**self._text_encoders, **connectors, self.denoiser: self._denoiser, **guides}
        self._offloader = Offloader({"autoencoder": self._vae, **large}, load)
        self.on_demand: Mapping[str, nn.Module] = large if self.is_large else {}
        adaptable = {name: one for name, one in self._text_encoders.items() if name in self.default_targets}
        networks = {self.denoiser: self._denoiser, **adaptable}
        self.text_encoders = (*self._text_encoders, *connectors)
        self.networks: Mapping[str, nn.Module] = BaseNetworks(networks, lambda: self.key_names, lambda: self.labels)
        self.token_windows = 1

    def use_expert(self, expert: str | None) -> None:
        """Train one of two denoisers from now on.

        Raises:
            UserError: the base has one.
        """
        if expert is not None:
            what = f"is {expert}, but a {self.name} base has one {self.denoiser}"
            raise UserError(what, code="family.one_denoiser", where="base.expert", remedy="leave it out")

    @property
    def key_names(self) -> KeyNames:
        """No other names than those in memory."""
        return {}

    @property
    def labels(self) -> BaseLabels:
        """What programs and sites call bases of this kind."""
        raise NotImplementedError

    def expand_targets(
        self, network: str, wanted: TargetPreset | None, blocks: Sequence[str]
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the layers' names and the blocks that a preset means, or the default, within some blocks."""
        if wanted is None:
            return names_in_blocks(self.networks[network], self.default_targets[network], blocks), tuple(blocks)
        own = self.target_presets.get(wanted, ()) if network == self.denoiser else ()
        return expand_preset(self.networks[network], wanted, blocks, own)

    @property
    def distilled(self) -> str | None:
        """A sentence of what plain training does to the base, and what to do; None: nothing says it is distilled."""
        return None

    @property
    def inference_batch_size(self) -> int | None:
        """One row of a large base, whose single rows keep a GPU busy; any number of others."""
        return 1 if self.is_large else None

    @property
    def longest_side(self) -> int | None:
        """Any."""
        return None

    @property
    def fewest_steps(self) -> int:
        """Two where the schedule is stretched to end at ``shift_terminal``, which of one step makes NaN; else one."""
        return 2 if self._parts["scheduler"].config.get("shift_terminal") else 1

    @property
    def default_shift(self) -> TimestepShift:
        """The shift that the scheduler paints with; 1 for a base of discrete diffusion, which has none."""
        config = self._parts["scheduler"].config
        if self.noise.prediction != "flow":
            return 1.0
        if config.get("use_dynamic_shifting"):
            return "resolution"
        return float(config.get("shift", config.get("flow_shift", 1.0)))

    def resolution_shift(self, height: int, width: int, frames: int = 1) -> float:
        """Return the shift that the scheduler has for so many tokens, as diffusers' pipelines ask it for one.

        Raises:
            UserError: the scheduler has none.
        """
        config = self._parts["scheduler"].config
        if self.noise.prediction != "flow" or "base_shift" not in config:
            what = f"is resolution, but the scheduler of this {self.name} base has no shift that depends on it"
            raise UserError(what, code="family.no_resolution_shift", where="objective.timestep_shift", remedy=_NUMBER)
        return shift_of_tokens(config, self._tokens(height, width, frames))

    def _tokens(self, height: int, width: int, frames: int) -> int:
        """Return the tokens that the denoiser makes of a picture; here each is a square of ``multiple`` pixels."""
        return (height // self.multiple) * (width // self.multiple)

    @property
    def settings(self) -> dict[str, str]:
        """The forward process, the tokenizers, and of each network what its class would not take by itself."""
        values: dict[str, Any] = {f"scheduler.{key}": self._parts["scheduler"].config.get(key) for key in _SCHEDULE}
        for name in self._text_encoders:
            config = self._text_config(name)
            values |= {f"{name}.{key}": getattr(config, key, None) for key in _TEXT}
        for name in (self.denoiser, "vae", *self.text_connectors):
            values |= {f"{name}.{key}": value for key, value in _chosen(self._parts[name]).items()}
        for name, tokenizer in self._tokenizers.items():
            part = self.tokenizers[name]
            values[f"{part}.vocabulary"] = sorted(tokenizer.get_vocab().items())
            values[f"{part}.length"] = tokenizer.model_max_length
            values[f"{part}.padding"] = tokenizer.pad_token_id
            values[f"{part}.chat_template"] = getattr(tokenizer, "chat_template", None)
            side = getattr(tokenizer, "padding_side", _USUAL_SIDE)
            values[f"{part}.padding_side"] = None if side == _USUAL_SIDE else side
        return {key: _short(value) for key, value in values.items() if value is not None}

    def _scaling_factor(self) -> float:
        """Return what the autoencoder's latents are multiplied by, where one number is all that is done to them."""
        return check_positive(self._vae.config.scaling_factor, "the autoencoder's scaling_factor")

    def _check_channels(self) -> None:
        """Refuse a denoiser that takes other latents than the autoencoder makes."""
        taken, made = self._denoiser.config.in_channels, self._latent_channels()
        if taken != made:
            raise UserError(
                f"the {self.denoiser} takes {taken} channels, the autoencoder makes {made}",
                code="family.not_text_to_image",
                remedy="use a text-to-image base, not an inpainting or depth model",
            )

    def _latent_channels(self) -> int:
        """Return the channels of the latents that the denoiser gets."""
        return int(self._vae.config.latent_channels)

    def _check_texts(self) -> None:
        """Refuse a tokenizer of other files than its text encoder's: it loads, and tells the text encoder nothing."""
        for name in self._text_encoders:
            part = self.tokenizers[name]
            cut = self._tokenizers[name].model_max_length if self.text_tokens is None else 0
            most = getattr(self._text_encoders[name].config, "max_position_embeddings", None)
            self._check_vocabulary(name, part)
            if most is not None and cut > most:
                what = f"the {part} cuts captions at {cut:.3g} tokens, the text encoder reads {most}"
                remedy = f"the folder {part} is not whole, or another base's"
                raise UserError(what, code="family.wrong_tokenizer", remedy=remedy)

    def _check_vocabulary(self, name: str, part: str) -> None:
        """Refuse a tokenizer that has tokens for which its text encoder has no vectors."""
        tokens, vectors = len(self._tokenizers[name]), self._text_config(name).vocab_size
        if tokens > vectors:
            what = f"the {part} has {tokens:,} tokens, the {name} {vectors:,}"
            remedy = f"the folder {part} is another base's, or words were added to it alone: take both from one place"
            raise UserError(what, code="family.wrong_tokenizer", remedy=remedy)

    def _text_config(self, name: str) -> Any:
        """Return the configuration of a text encoder; of a model that sees pictures too, its text's."""
        return self._text_encoders[name].config.get_text_config()

    def _caption_tokenizers(self) -> Sequence[Any]:
        """Return the tokenizers of the text encoders that read whole captions."""
        return list(self._tokenizers.values())

    @property
    def text_length(self) -> int:
        """Tokens of a text that every text encoder reads, in all windows together, marks not counted."""
        return min(self._text_length(tokenizer) for tokenizer in self._caption_tokenizers())

    def _text_length(self, tokenizer: Any) -> int:
        """Return the tokens of a text that are kept, marks not counted."""
        if self.text_tokens is not None:
            return self.text_tokens
        return self.token_windows * (int(tokenizer.model_max_length) - _marks(tokenizer))

    def use_token_windows(self, count: int) -> None:
        """Read texts in so many windows of the text encoders from now on.

        Raises:
            UserError: this family's text encoders read a text in fewer.
        """
        if count > self.max_token_windows:
            what = f"is {count}, but the text encoders of a {self.name} base read a text in {self.max_token_windows}"
            raise UserError(what, code="family.token_windows", where="data.token_windows", remedy="leave it out")
        self.token_windows = count

    def _windows(self, name: str, captions: Sequence[str]) -> list[Tensor]:
        """Return the token ids of captions for a text encoder, (B, L) for each window."""
        device = self._text_encoders[name].device
        return window_tokens(self._tokenizers[name], captions, self.token_windows, device)

    @torch.no_grad()
    def pipeline_prompts(self, prompts: Sequence[str]) -> dict[str, Any]:
        """Return the pipeline's arguments for prompts: itself it reads one window of each."""
        if self.token_windows == 1:
            return {"prompt": list(prompts)}
        text, empty = self.encode_text(prompts).tensors, self.encode_text([""] * len(prompts)).tensors
        names = {"text": "prompt_embeds", "pooled": "pooled_prompt_embeds"}
        told = {names[key]: tensor for key, tensor in text.items()}
        return told | {f"negative_{names[key]}": tensor for key, tensor in empty.items()}

    def pipeline_guidance(self, scale: float) -> dict[str, Any]:
        """Return the pipeline's arguments for a scale of guidance, of which 1 is none."""
        return {self.guidance_argument: scale}

    def pipeline_frames(self, count: int) -> dict[str, Any]:
        """Return nothing: the pipeline paints pictures only."""
        return {}

    def frames_of(self, painted: Any) -> Sequence[Sequence[Image.Image]]:
        """Return each picture in what the pipeline returned as a clip of one frame."""
        return [[picture] for picture in painted.images]

    def encode_text(self, captions: Sequence[str]) -> Conditioning:
        """Turn captions into what the denoiser is told."""
        raise NotImplementedError

    def encode_instructions(self, captions: Sequence[str], references: Sequence[Sequence[Tensor]]) -> Conditioning:
        """Turn captions into what the denoiser is told; a family whose text encoder sees references overrides it."""
        return self.encode_text(captions)

    def encode_references(self, references: Sequence[Tensor]) -> Conditioning:
        """Turn references, (3, H, W), into latents as those of what is painted: the means of their posteriors."""
        return Conditioning.of_references([self.encode_image(pixels[None]).mean for pixels in references])

    def pipeline_references(self, references: Sequence[Image.Image]) -> dict[str, Any]:
        """Return the pipeline's arguments for the references of one prompt."""
        raise NotImplementedError

    def unread(self, texts: Sequence[str]) -> dict[str, Unread]:
        """Return what the text encoders do not see of texts; texts that all of them see whole are left out."""
        return join_unread(
            [find_unread(tokenizer, texts, self._text_length(tokenizer)) for tokenizer in self._caption_tokenizers()]
        )

    @property
    def _pixels_a_latent(self) -> int:
        """Pixels that one latent is wide."""
        return int(2 ** (len(self._vae.config.block_out_channels) - 1))

    @torch.no_grad()
    def encode_image(self, pixels_BCHW: Tensor) -> LatentDistribution:
        """Turn pixels in [-1, 1] into the scaled posterior (Rombach et al. 2022, appendix G)."""
        with self._autoencoder() as vae:
            posterior = vae.encode(pixels_BCHW.to(vae.device, vae.dtype)).latent_dist
        return self._to_latents(posterior.mean.float(), posterior.std.float())

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Turn latents into pixels, clamped to [-1, 1]."""
        with self._autoencoder() as vae:
            pixels_BCHW = self._decoded(vae, self._from_latents(latents).to(vae.device, vae.dtype))
        return pixels_BCHW.float().clamp(-1, 1)

    def _decoded(self, vae: Any, latents: Tensor) -> Tensor:
        """Return what the autoencoder makes of its own latents."""
        return cast(Tensor, vae.decode(latents).sample)

    def _to_latents(self, mean_BCHW: Tensor, std_BCHW: Tensor) -> LatentDistribution:
        """Return what the denoiser is given of the autoencoder's own latents."""
        return LatentDistribution(mean_BCHW * self._scale, std_BCHW * self._scale)

    def _from_latents(self, latents: Tensor) -> Tensor:
        """Return the autoencoder's own latents (B, C, H, W)."""
        return latents / self._scale

    @contextmanager
    def _autoencoder(self) -> Iterator[Any]:
        """Give the autoencoder, in memory and in the dtype that it computes in."""
        self._offloader.restore("autoencoder")
        dtype = self._vae.dtype
        if dtype != torch.float16 or not self.autoencoder_overflows:
            yield self._vae
            return
        with torch.autocast(self._vae.device.type, enabled=False):
            yield self._vae.to(torch.float32)
        self._vae.to(dtype)

    def pipeline(self, *, texts: bool = True) -> Any:
        """Return diffusers' pipeline over these networks; what is injected or merged here is seen there."""
        left_out = () if texts else self.text_encoders
        # all others are in memory, for it may be saved
        self._offloader.restore_others(left_out)
        scheduler = copy.deepcopy(self._parts["scheduler"])  # painting changes it: how many steps, which is next
        parts = {**self._parts, "scheduler": scheduler, **dict.fromkeys(left_out)}
        return self._pipeline_class()(**parts, **self._options)

    def _pipeline_for_text(self) -> Any:
        """Return diffusers' pipeline for its ``encode_prompt``, with all text encoders in memory."""
        for name in self.text_encoders:
            self._offloader.restore(name)
        return self._pipeline_class()(**self._parts, **self._options)

    def offload(self, parts: Sequence[str]) -> None:
        """Take these parts out of memory, and all others back; see :class:`veneer.family.offload.Offloader`."""
        idle = self.guides if parts else [name for name in self.guides if name in self._offloader.unread]
        self._offloader.offload((*parts, *idle))

    def to(self, device: torch.device, dtype: torch.dtype) -> Self:
        """Move and cast all networks in place; those that are not read yet are where they should be once they are."""
        self._offloader.offload(self._offloader.unread)
        self._offloader.to(device, dtype)
        for name, part in self._parts.items():
            if isinstance(part, nn.Module) and name not in self._offloader.unread:
                part.to(device=device, dtype=dtype)
        return self


def shift_of_tokens(config: Mapping[str, Any], tokens: int) -> float:
    """Return a flow scheduler's shift for a picture of so many tokens: exp(mu), mu linear in the tokens.

    Esser et al. 2024, section 5.3.2; ``calculate_shift`` and the scheduler's ``time_shift`` in diffusers. A schedule of
    the linear type takes mu itself as the shift.
    """
    first, last = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    slope = (high - low) / (last - first)
    mu = tokens * slope + (low - slope * first)
    return float(mu) if config.get("time_shift_type") == "linear" else math.exp(mu)


def check_positive(value: object, what: str) -> float:
    """Return a setting that must be a number above 0.

    Raises:
        UserError: it is none.
    """
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        remedy = "it must be a number above 0"
        raise UserError(f"{what} is {value!r:.40}", code="family.invalid_setting", remedy=remedy)
    return value


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
