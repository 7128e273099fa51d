"""From the name of a base to its family: the one table that a new family is entered in."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import veneer.base
from veneer.errors import UserError
from veneer.family.protocol import Family
from veneer.family.silence import silence_libraries
from veneer.files import is_pickle

__all__ = ["BUNDLED", "detect", "detect_on_hub", "load_family", "one_line_errors"]

BUNDLED = "bundled"
_HUB_ID_PARTS = 2  # owner/name
_ALONE = (
    "a single file needs its configs: from the hub, or from the diffusers folder (model_index.json) that it lies in"
)


def _stable_diffusion(source: str, single_file: bool) -> Family:
    import torch
    from diffusers import StableDiffusionPipeline

    from veneer.family.sd import StableDiffusion

    if single_file:
        # a checkpoint has no tokenizer and no configs: they come from a diffusers folder it lies in, or from the hub
        beside = Path(source).parent
        known = {"config": str(beside)} if (beside / "model_index.json").is_file() else {}
        pipeline = StableDiffusionPipeline.from_single_file(source, safety_checker=None, **known)
    else:
        pipeline = StableDiffusionPipeline.from_pretrained(
            source, safety_checker=None, feature_extractor=None, requires_safety_checker=False, **_networks_of(source)
        )
    # of a float16 file transformers makes a float16 network and diffusers a float32 one
    return StableDiffusion(pipeline.to(torch.float32).components, None if single_file else _parts_of(source, pipeline))


def _networks_of(source: str) -> dict[str, Any]:
    """A pipeline's networks with all their weights; left to itself it draws those at random that are not there."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    kinds: dict[str, Any] = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    networks = {}
    for name, kind in kinds.items():
        options = {"subfolder": name, "use_safetensors": True, "output_loading_info": True}
        networks[name], found = kind.from_pretrained(source, **options)
        if lacking := sorted(found["missing_keys"]):
            what = f"{name} has no {lacking[0]}, and {len(lacking) - 1} more weights are missing"
            raise UserError(what, where=source, remedy="fetch the base again")
    return networks


def _parts_of(source: str, pipeline: Any) -> Callable[[str], Any]:
    """Loads a part of a pipeline again, as it was loaded with the rest."""
    places = {"autoencoder": ("vae", type(pipeline.vae)), "text_encoder": ("text_encoder", type(pipeline.text_encoder))}

    def load(name: str) -> Any:
        folder, kind = places[name]
        with silence_libraries(), one_line_errors(source, "it must be there, complete, until the run ends"):
            return kind.from_pretrained(source, subfolder=folder, use_safetensors=True).float()

    return load


# diffusers' pipeline class, as model_index.json names it -> loader
_FAMILIES: Mapping[str, Callable[[str, bool], Family]] = {"StableDiffusionPipeline": _stable_diffusion}


def load_family(base: str) -> Family:
    """Load a base model in float32 on the CPU.

    Args:
        base: ``bundled``, a folder in diffusers' layout, a single ``.safetensors`` file, or a hub id ``owner/name``.

    Raises:
        UserError: if it is none of these, of a family that is not known, or holds pickles only.
    """
    if base == BUNDLED:
        base = str(veneer.base.path())
    path = Path(base).expanduser()
    if is_pickle(path):
        raise UserError(
            f"{path.suffix} is a pickle, which can run code when it is opened",
            where=path,
            remedy="convert it to .safetensors first, in a place you trust",
        )
    if path.is_file():
        if path.suffix != ".safetensors":
            raise UserError("is no model", where=path, remedy="give a diffusers folder or a .safetensors file")
        return _silently(_stable_diffusion, str(path), True)
    if not path.is_dir():
        return _silently(_FAMILIES[detect_on_hub(base)], base, False)
    return _silently(_FAMILIES[detect(path)], str(path), False)


def detect(folder: Path) -> str:
    """Name of the diffusers pipeline in a folder.

    Raises:
        UserError: if the folder holds no pipeline, or one of a family that is not known.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        raise UserError("holds no model_index.json", where=folder, remedy="give a base in diffusers' folder layout")
    try:
        name = json.loads(index.read_text("utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"names no pipeline class ({error})", where=index, remedy="download the base again") from error
    return _known(name, index)


def _known(name: object, where: object) -> str:
    if not isinstance(name, str):
        raise UserError(f"names no pipeline class but {name!r:.40}", where=where, remedy="download the base again")
    if name not in _FAMILIES:
        raise UserError(f"is a {name}", where=where, remedy=f"known are {', '.join(_FAMILIES)}")
    return name


def detect_on_hub(base: str) -> str:
    """Name of the diffusers pipeline of a hub id; its weights are not fetched.

    Raises:
        UserError: it is no hub id, the hub does not give it, or it is of a family that is not known.
    """
    nothing = UserError("is no folder and no file here", where=base, remedy="check base, or give a hub id (owner/name)")
    if len(base.split("/")) != _HUB_ID_PARTS or base.startswith((".", "/", "~")):
        raise nothing
    from diffusers import DiffusionPipeline

    try:
        name = DiffusionPipeline.load_config(base).get("_class_name")
    except OSError as error:  # no network, no such repository, or no permission
        raise UserError(
            "is no folder here, and the hub does not give it", where=base, remedy="check the spelling and the network"
        ) from error
    return _known(name, base)


def _silently(loader: Callable[[str, bool], Family], source: str, single_file: bool) -> Family:
    """Load without the libraries' own bars and notices, and with their failures said in one line."""
    with (
        silence_libraries(),
        one_line_errors(source, _ALONE if single_file else "it must be complete and in safetensors"),
    ):
        return loader(source, single_file)


@contextmanager
def one_line_errors(source: str, remedy: str) -> Iterator[None]:
    """Say in one line whatever a library raises while it reads a base.

    Raises:
        UserError: it raised something: there is no end to what can be wrong in a base's many files, and each reader
            fails in a way of its own.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "")
        if not isinstance(error, OSError | ValueError | RuntimeError):
            reason = f"{type(error).__name__}: {reason}"  # its words alone tell little, such as a missing key
        raise UserError(f"cannot be loaded ({reason})", where=source, remedy=remedy) from error
