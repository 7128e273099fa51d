"""Find the family of a base: the one table that a new family is entered in."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol, cast

import torch

import veneer.base
from veneer.config.base_name import components_of, expert_of
from veneer.errors import UserError
from veneer.family.abstract import Config
from veneer.family.assembled import Assembly, denoiser_class, fits_published, is_assembled, real_place
from veneer.family.base_index import find_index
from veneer.family.file_content import fetch_again
from veneer.family.hub import fetch, read_index
from veneer.family.libraries import one_line_errors, silence_libraries
from veneer.family.networks import LoadOptions
from veneer.family.other_folder import explain_folder
from veneer.family.pipeline_folder import PipelineFolder
from veneer.family.protocol import Family
from veneer.family.published import is_published
from veneer.family.single_file import check_is_safetensors, check_is_whole, kind_of_checkpoint
from veneer.files import is_pickle, user_path

__all__ = [
    "BUNDLED",
    "FAMILIES",
    "LoadableFamily",
    "Source",
    "detect",
    "detect_file",
    "detect_on_hub",
    "family_class",
    "find",
    "load_family",
    "place_of",
]

BUNDLED = "bundled"


class _Entry(NamedTuple):
    """One family's line in the table.

    Attributes:
        loader: ``module:class`` of its :class:`LoadableFamily`, imported when a base of it is loaded.
        checkpoints: what single files of it are called (``kind_of_checkpoint``).
    """

    loader: str
    checkpoints: tuple[str, ...] = ()


FAMILIES: Mapping[str, _Entry] = {
    "StableDiffusionPipeline": _Entry("veneer.family.sd:StableDiffusion", ("v1", "v2")),
    "StableDiffusionXLPipeline": _Entry("veneer.family.sdxl:StableDiffusionXL", ("xl_base",)),
    "LTXPipeline": _Entry("veneer.family.ltx_video:LtxVideo", ("ltx-video", "ltx-video-0.9.1")),
    "LTX2Pipeline": _Entry("veneer.family.ltx2:Ltx2", ("ltx2-dev",)),
    "WanPipeline": _Entry("veneer.family.wan:Wan", ("wan-t2v-1.3B", "wan-t2v-14B", "wan-i2v-14B")),
    "QwenImagePipeline": _Entry("veneer.family.qwen_image:QwenImage", ("qwen-image",)),
    "QwenImageEditPipeline": _Entry("veneer.family.qwen_image_edit:QwenImageEdit"),
    "QwenImageEditPlusPipeline": _Entry("veneer.family.qwen_image_edit:QwenImageEditPlus"),
    "Krea2Pipeline": _Entry("veneer.family.krea2:Krea2", ("krea2",)),
    "FluxPipeline": _Entry("veneer.family.flux:Flux", ("flux-dev", "flux-schnell")),
    "FluxKontextPipeline": _Entry("veneer.family.flux_kontext:FluxKontext"),
    "PixArtSigmaPipeline": _Entry("veneer.family.pixart:PixArtSigma"),
    "AuraFlowPipeline": _Entry("veneer.family.auraflow:AuraFlow", ("auraflow",)),
    "SanaPipeline": _Entry("veneer.family.sana:Sana", ("sana",)),
    "StableDiffusion3Pipeline": _Entry("veneer.family.sd3:StableDiffusion3", ("sd3", "sd35_medium", "sd35_large")),
    "ZImagePipeline": _Entry("veneer.family.z_image:ZImage", ("z-image-turbo",)),
    "Lumina2Pipeline": _Entry("veneer.family.lumina2:Lumina2", ("lumina2",)),
    "HiDreamImagePipeline": _Entry("veneer.family.hidream:HiDream", ("hidream",)),
    "Flux2Pipeline": _Entry("veneer.family.flux2:Flux2Dev", ("flux-2-dev",)),
    "Flux2KleinPipeline": _Entry("veneer.family.flux2:Flux2Klein", ("flux-2-klein",)),
    "ChromaPipeline": _Entry("veneer.family.chroma:Chroma", ("chroma",)),
    "ErnieImagePipeline": _Entry("veneer.family.ernie_image:ErnieImage", ("ernie-image",)),
    "AnimaModularPipeline": _Entry("veneer.family.anima:Anima", ("anima",)),
    "Ideogram4Pipeline": _Entry("veneer.family.ideogram4:Ideogram4", ("ideogram4",)),
}
"""Each family by its diffusers pipeline's class, as model_index.json names it."""

_IMAGE_TO_VIDEO: Mapping[str, str] = {
    "WanImageToVideoPipeline": "train the text-to-video base of its size; TI2V-5B, which is both, as WanPipeline",
    "LTXImageToVideoPipeline": "its weights are text to video's too: call it LTXPipeline there",
    "LTXConditionPipeline": "its weights are text to video's too: call it LTXPipeline there",
}
"""What to do with bases that animate a picture, by their pipeline: their first frame is no part of training here."""


class LoadableFamily(Protocol):
    """The class of a family, as far as its bases are loaded, or made without weights."""

    denoiser: ClassVar[str]
    """Name of the network that removes noise."""
    reads_checkpoints: ClassVar[bool]
    """Whether a base is read from one file by diffusers' pipeline as a whole, not part by part."""
    optional_parts: ClassVar[tuple[str, ...]]
    """Names of the parts that a base may come without."""
    expert_parts: ClassVar[Mapping[str, Mapping[str, str]]]
    """By expert, of a base that has two denoisers, which part is in the place of which while it is trained."""

    @classmethod
    def load(cls, place: Path, options: LoadOptions) -> Family:
        """Load a base from a diffusers folder or from a single checkpoint file."""

    @classmethod
    def config_names(cls) -> tuple[str, ...]:
        """Return the names of the parts whose configurations :meth:`abstract` needs."""

    @classmethod
    def part_names(cls) -> tuple[str, ...]:
        """Return the names of all parts that are loaded."""

    @classmethod
    def abstract(cls, configs: Mapping[str, Config], dtype: torch.dtype) -> Family:
        """Return a base on the meta device.

        Args:
            configs: the configuration of each part by the pipeline's name of the part.
            dtype: of its networks.
        """


def family_class(pipeline: str) -> type[LoadableFamily]:
    """Return the class of the family of a key of ``FAMILIES``."""
    module, _, name = FAMILIES[pipeline].loader.partition(":")
    return cast(type[LoadableFamily], getattr(importlib.import_module(module), name))


@dataclass(frozen=True)
class Source:
    """A base that was found.

    Attributes:
        place: its folder or file; None: it is on the hub, and was not fetched.
        base: how it was asked for, or its hub id.
        pipeline: a key of ``FAMILIES``.
        expert: which denoiser is trained, of a base that has two.
    """

    place: Path | None
    base: str
    pipeline: str
    expert: str | None = None

    @property
    def family(self) -> type[LoadableFamily]:
        """The class that loads it."""
        return family_class(self.pipeline)

    def load(self, options: LoadOptions) -> Family:
        """Load it, without the libraries' own bars and notices.

        Raises:
            UserError: its files are not complete, do not fit together, or cannot be read.
        """
        with silence_libraries():
            if self.is_file:
                family = self._load_file(options)
            else:
                family = self._load_folder(self.place or fetch(self.base, self.family.part_names()), options)
        family.use_expert(self.expert)
        return family

    def _load_folder(self, folder: Path, options: LoadOptions) -> Family:
        where = self.base if is_assembled(folder) else str(folder)
        with one_line_errors(where, "its parts are each whole, but do not fit together: take all from one base"):
            try:
                return self.family.load(folder, options)
            except UserError as fault:
                place = None if fault.where is None else real_place(Path(str(fault.where)))
                raise UserError(fault.what, code=fault.code, where=place, remedy=fault.remedy) from fault

    def _load_file(self, options: LoadOptions) -> Family:
        assert self.place is not None
        check_is_whole(self.place)
        with one_line_errors(self.base, _configs_needed(self.place)):
            return self.family.load(self.place, options)

    @property
    def is_file(self) -> bool:
        """Whether it is a single checkpoint file."""
        return self.place is not None and self.place.is_file()


def load_family(base: str, options: LoadOptions | None = None) -> Family:
    """Load a base model on the CPU.

    Args:
        base: ``bundled``, a folder in diffusers' layout, a single ``.safetensors`` file, or a hub id ``owner/name``.
        options: dtype and quantisation; None: float32.

    Raises:
        UserError: it is none of these, of a family that is not known, holds pickles only, or is broken.
    """
    return find(base).load(options or LoadOptions())


def find(base: str) -> Source:
    """Find a base and its family; neither weights are read nor anything but a hub's model_index.json is fetched.

    Args:
        base: as in :func:`load_family`.

    Raises:
        UserError: there is no such base, it is a pickle, or of a family that is not known.
    """
    path, expert = veneer.base.path() if str(base) == BUNDLED else user_path(base), expert_of(base)
    if path.is_dir():
        source = Source(path, str(path), detect(path), expert)
    elif path.exists() or path.is_symlink() or is_pickle(path):
        source = Source(path, str(path), detect_file(path), expert)
    else:
        source = Source(None, str(base), detect_on_hub(base), expert)
    return _with_expert(source, components_of(base))


def place_of(base: str) -> Path | None:
    """Return where all of a base lies: its folder or file, or the folder of links to its parts; None: on the hub.

    Raises:
        UserError: as of :func:`find`.
    """
    path = veneer.base.path() if str(base) == BUNDLED else user_path(base)
    if (components_of(base) or expert_of(base)) and not is_published(base):
        return find(base).place
    if path.is_file():
        with suppress(UserError):  # what is no base is a file all the same
            return find(base).place
    return path if path.exists() else None


def _with_expert(source: Source, components: Mapping[str, str]) -> Source:
    """Return a base of two denoisers with the one that is trained in the denoiser's place, and the other in its own."""
    swapped = source.family.expert_parts.get(source.expert or "", {})
    if not swapped:
        return _assembled(source, components)
    place = source.place or fetch(source.base, source.family.part_names())
    own = {name: str(place / other) for name, other in swapped.items() if (place / other).is_dir()}
    if place.is_dir() and len(own) < len(swapped):  # it has one denoiser, which is told when it is loaded
        return _assembled(source, components)
    given = {swapped.get(name, name): path for name, path in components.items()}
    return _assembled(replace(source, place=place), {**own, **given})


def _assembled(source: Source, components: Mapping[str, str]) -> Source:
    """Return a base as a folder of links to its parts, if they lie in several places or in a file of other names."""
    is_whole_file = source.is_file and source.family.reads_checkpoints
    if not components and (is_whole_file or not source.is_file):
        return source
    if is_whole_file:
        what = "is a checkpoint whose parts cannot be taken from elsewhere"
        remedy = "give it as a diffusers folder, or leave base.components out"
        raise UserError(what, code="base.unknown_component", where=source.base, remedy=remedy)
    place = source.place
    if place is None:
        place = fetch(source.base, [name for name in source.family.part_names() if name not in components])
    places = {name: user_path(path) for name, path in components.items()}
    return replace(source, place=Assembly(place, places, source.pipeline, source.family).folder())


def _configs_needed(file: Path) -> str:
    if find_index(file.parent) is not None:
        return f"it is read with the configurations in {file.parent}, which must be those of its base"
    return "a single file needs its configs: from the hub, or from the diffusers folder (model_index.json) it lies in"


def detect(folder: Path) -> str:
    """Return the name of the diffusers pipeline in a folder.

    Raises:
        UserError: the folder holds no pipeline, or one of a family that is not known.
    """
    if find_index(folder) is None:
        raise explain_folder(folder)
    opened = PipelineFolder(folder)
    return _check_known(opened.index.get("_class_name"), opened.index_file)


def _check_known(name: object, where: object) -> str:
    if isinstance(name, list):
        what = f"names a pipeline of its own code, {name!r:.80}, which is not run"
        raise UserError(what, code="base.unknown_family", where=where, remedy=_known())
    if not isinstance(name, str):
        what = "names no pipeline class" + ("" if name is None else f" but {name!r:.40}")
        raise UserError(what, code="base.broken_index", where=where, remedy=fetch_again(Path(str(where))))
    if name in _IMAGE_TO_VIDEO:
        what = f"is a {name}: a base of image to video, which is not trained on a first frame"
        raise UserError(what, code="base.image_to_video", where=where, remedy=_IMAGE_TO_VIDEO[name])
    if name not in FAMILIES:
        raise _unknown_family(name, where)
    return name


def _unknown_family(name: str, where: object) -> UserError:
    return UserError(f"is a {name}", code="base.unknown_family", where=where, remedy=_known())


def _known() -> str:
    return f"known are {', '.join(FAMILIES)}"


def detect_file(file: Path) -> str:
    """Return the name of the diffusers pipeline that a single checkpoint file makes, by the names of its weights.

    Raises:
        UserError: it is no safetensors file, holds no base, or one of a family that is not known.
    """
    check_is_safetensors(file)
    with silence_libraries():
        kind = kind_of_checkpoint(file)
    pipelines = [pipeline for pipeline, entry in FAMILIES.items() if kind in entry.checkpoints]
    if not pipelines:
        raise _unknown_family(f"checkpoint of {kind}", file)
    if family_class(pipelines[0]).reads_checkpoints:
        return pipelines[0]
    return _pipeline_around(file, pipelines) or _fitting(file, pipelines) or pipelines[0]


def _pipeline_around(file: Path, pipelines: Sequence[str]) -> str | None:
    """Return the pipeline of the diffusers folder that a file lies in, if it has such a denoiser."""
    if find_index(file.parent) is None:
        return None
    pipeline = detect(file.parent)
    kinds = {denoiser_class(family_class(each)) for each in pipelines}
    return pipeline if denoiser_class(family_class(pipeline)) in kinds else None


def _fitting(file: Path, pipelines: Sequence[str]) -> str | None:
    """Return the pipeline of whose published denoisers one has the weights of a file, where several have such files."""
    if len(pipelines) == 1:
        return None
    with silence_libraries():
        fitting = (each for each in pipelines if fits_published(file, each, family_class(each)))
        return next(fitting, None)


def detect_on_hub(base: str) -> str:
    """Return the name of the diffusers pipeline of a hub id; its weights are not fetched.

    Raises:
        UserError: it is no hub id, the hub does not give it, or it is of a family that is not known.
    """
    return _check_known(read_index(base).get("_class_name"), base)
