"""Find the family of a base: the one table that a new family is entered in."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, cast

import torch

import veneer.base
from veneer.errors import UserError
from veneer.family.abstract import Config
from veneer.family.libraries import one_line_errors, silence_libraries
from veneer.family.networks import LoadOptions
from veneer.family.protocol import Family
from veneer.files import is_pickle

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
]

BUNDLED = "bundled"
_HUB_ID_PARTS = 2  # owner/name
_COMPLETE = "it must be complete and in safetensors"
_ALONE = (
    "a single file needs its configs: from the hub, or from the diffusers folder (model_index.json) that it lies in"
)


class _Entry(NamedTuple):
    """One family's line in the table.

    Attributes:
        loader: ``module:class`` of its :class:`LoadableFamily`, imported when a base of it is loaded.
        checkpoints: what diffusers calls single files of it (``infer_diffusers_model_type``).
        is_trainable: whether its bases can be loaded; else they can only be planned.
    """

    loader: str
    checkpoints: tuple[str, ...] = ()
    is_trainable: bool = True


FAMILIES: Mapping[str, _Entry] = {
    "StableDiffusionPipeline": _Entry("veneer.family.sd:StableDiffusion", ("v1", "v2")),
    "StableDiffusionXLPipeline": _Entry("veneer.family.sdxl:StableDiffusionXL", ("xl_base",)),
    "FluxPipeline": _Entry("veneer.family.flux:Flux", is_trainable=False),
}
"""Each family by its diffusers pipeline's class, as model_index.json names it."""


class LoadableFamily(Protocol):
    """The class of a family, as far as its bases are loaded, or made without weights."""

    denoiser: ClassVar[str]
    """Name of the network that removes noise."""

    @classmethod
    def load(cls, place: Path, options: LoadOptions) -> Family:
        """Load a base from a diffusers folder or from a single checkpoint file."""

    @classmethod
    def config_names(cls) -> tuple[str, ...]:
        """Return the names of the parts whose configurations :meth:`abstract` needs."""

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
    """

    place: Path | None
    base: str
    pipeline: str

    @property
    def family(self) -> type[LoadableFamily]:
        """The class that loads it."""
        return family_class(self.pipeline)

    def load(self, options: LoadOptions) -> Family:
        """Load it, without the libraries' own bars and notices.

        Raises:
            UserError: its files are not complete, do not fit together, or cannot be read; or its family can only be
                planned.
        """
        if not FAMILIES[self.pipeline].is_trainable:
            what, remedy = f"is a {self.pipeline}, which can only be planned", "veneer plan tells what it would take"
            raise UserError(what, code="base.plan_only", where=self.base, remedy=remedy)
        with silence_libraries(), one_line_errors(self.base, _ALONE if self.is_file else _COMPLETE):
            return self.family.load(self.place or _fetch(self.base), options)

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
    path = veneer.base.path() if base == BUNDLED else Path(base).expanduser()
    if is_pickle(path):
        raise UserError(
            f"{path.suffix} is a pickle, which can run code when it is opened",
            code="base.pickle",
            where=path,
            remedy="convert it to .safetensors first, in a place you trust",
        )
    if path.is_dir():
        return Source(path, str(path), detect(path))
    if path.is_file():
        return Source(path, str(path), detect_file(path))
    return Source(None, base, detect_on_hub(base))


def _fetch(hub_id: str) -> Path:
    from diffusers import DiffusionPipeline

    without = dict.fromkeys(("safety_checker", "feature_extractor"))
    return Path(DiffusionPipeline.download(hub_id, use_safetensors=True, **without))


def detect(folder: Path) -> str:
    """Return the name of the diffusers pipeline in a folder.

    Raises:
        UserError: the folder holds no pipeline, or one of a family that is not known.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        remedy = "give a base in diffusers' folder layout"
        raise UserError("holds no model_index.json", code="base.not_found", where=folder, remedy=remedy)
    try:
        name = json.loads(index.read_text("utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _broken_index(f"names no pipeline class ({error})", index) from error
    return _check_known(name, index)


def _broken_index(what: str, where: object) -> UserError:
    return UserError(what, code="base.broken_index", where=where, remedy="download the base again")


def _check_known(name: object, where: object) -> str:
    if not isinstance(name, str):
        raise _broken_index(f"names no pipeline class but {name!r:.40}", where)
    if name not in FAMILIES:
        raise _unknown_family(name, where)
    return name


def _unknown_family(name: str, where: object) -> UserError:
    remedy = f"known are {', '.join(FAMILIES)}"
    return UserError(f"is a {name}", code="base.unknown_family", where=where, remedy=remedy)


def detect_file(file: Path) -> str:
    """Return the name of the diffusers pipeline that a single checkpoint file makes, by the names of its weights.

    Raises:
        UserError: it is no safetensors file, holds no base, or one of a family that is not known.
    """
    if file.suffix != ".safetensors":
        remedy = "give a diffusers folder or a .safetensors file"
        raise UserError("is no model", code="base.not_a_model", where=file, remedy=remedy)
    with silence_libraries(), one_line_errors(str(file), "it must be complete and in safetensors"):
        kind = _kind_of_checkpoint(file)
    for pipeline, entry in FAMILIES.items():
        if kind in entry.checkpoints:
            return pipeline
    raise _unknown_family(f"checkpoint of {kind}", file)


_FALLBACK, _LDM = "v1", "model.diffusion_model.input_blocks."


def _kind_of_checkpoint(file: Path) -> str:
    """Return what diffusers calls such checkpoints; it takes whatever it does not know for Stable Diffusion 1."""
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type
    from safetensors.torch import load_file

    weights = load_file(file)  # they lie in the file, and none is read
    kind = str(infer_diffusers_model_type(weights))
    if kind == _FALLBACK and not any(name.startswith(_LDM) for name in weights):
        what = "holds no base model that is known by the names of its weights"
        raise UserError(what, code="base.not_a_model", where=file, remedy="give a diffusers folder or a checkpoint")
    return kind


def detect_on_hub(base: str) -> str:
    """Return the name of the diffusers pipeline of a hub id; its weights are not fetched.

    Raises:
        UserError: it is no hub id, the hub does not give it, or it is of a family that is not known.
    """
    if len(base.split("/")) != _HUB_ID_PARTS or base.startswith((".", "/", "~")):
        remedy = "check base, or give a hub id (owner/name)"
        raise UserError("is no folder and no file here", code="base.not_found", where=base, remedy=remedy)
    from diffusers import DiffusionPipeline

    try:
        name: Any = DiffusionPipeline.load_config(base).get("_class_name")
    except OSError as error:  # no network, no such repository, or no permission
        what = "is no folder here, and the hub does not give it"
        remedy = "check the spelling and the network"
        raise UserError(what, code="base.not_found", where=base, remedy=remedy) from error
    return _check_known(name, base)
