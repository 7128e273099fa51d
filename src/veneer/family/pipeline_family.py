"""What families that diffusers has a pipeline for share: here how they are made of their parts, or without weights.

Each further theme has a module of its own: ``pipeline_text``, ``pipeline_latents``, ``pipeline_timesteps``,
``pipeline_painting``, ``pipeline_adapters`` and ``pipeline_settings``, over the parts that ``pipeline_parts`` names.

Such a family is made from its parts, by the names that the pipeline has for them: ``unet`` or ``transformer``, ``vae``,
``scheduler``, ``text_encoder``, ``tokenizer`` and so on. A class says how texts become a conditioning, what its
denoiser is told beside them, and which noise process it was trained with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from veneer.engine.quantization import NONE
from veneer.errors import UserError
from veneer.family.abstract import AbstractTokenizer, Config, make_network, make_scheduler
from veneer.family.base_index import INDEX
from veneer.family.libraries import one_line_errors
from veneer.family.networks import LoadOptions, load_file, load_parts, loader_of
from veneer.family.offload import Loader, Offloader
from veneer.family.pipeline_adapters import PipelineAdapters
from veneer.family.pipeline_folder import PipelineFolder
from veneer.family.pipeline_latents import PipelineLatents
from veneer.family.pipeline_painting import PipelinePainting
from veneer.family.pipeline_settings import PipelineSettings
from veneer.family.pipeline_timesteps import PipelineTimesteps
from veneer.weights.formats.protocol import BaseNetworks

if TYPE_CHECKING:
    from typing_extensions import Self


__all__ = ["PipelineFamily"]


class PipelineFamily(PipelineLatents, PipelineTimesteps, PipelinePainting, PipelineAdapters, PipelineSettings):
    """The part of the ``Family`` protocol that such bases have in common, over a base's very modules.

    Args:
        parts: networks, tokenizers and scheduler by the pipeline's names; other parts go into the pipeline as they are.
        load: reads ``autoencoder`` or a text encoder again, to the same bits; None: that cannot be done.
        options: what the pipeline takes beside its parts, where it is not as ``pipeline_options`` has it.

    Raises:
        UserError: the parts do not fit together.
    """

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
    frame_stride: int | None = None
    frame_rate: float | None = None
    reads_checkpoints: bool = False
    """Whether a base is read from one file by diffusers' pipeline as a whole, not part by part."""

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
    def distilled(self) -> str | None:
        """A sentence of what plain training does to the base, and what to do; None: nothing says it is distilled."""
        return None

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
