"""The grammar of tensors' names in adapter files: what tools put before, between and behind a layer's path.

A name is wrappers, the network, the layer's path, and an ending that says which part of an adapter the tensor is:
``base_model.model.unet.`` + ``mid_block.attentions.0.proj_in`` + ``.lora_A.default.weight``. The path is the base's
own, with dots or underscores, or that of the model's original code; :mod:`veneer.weights.formats.layers` looks it up.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from veneer.adapter.part_names import PART_NAMES

__all__ = [
    "DENOISER",
    "NETWORKS",
    "TEXT_ENCODERS",
    "Reading",
    "TensorName",
    "file_path",
    "has_root",
    "memory_path",
    "parse_name",
    "readings",
]

TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
NETWORKS = ("unet", "transformer", *TEXT_ENCODERS)
"""What diffusers' files, and the rest after them, call the networks of a base."""
DENOISER = "denoiser"
"""The network of names that say it is the denoiser, and not what it is called."""
_LEVEL = "text_model."
"""A level of text encoders' layer names: files have it, networks in memory have it or not, by class and version."""
_SHORT, _LONG = "text_encoder.", f"text_encoder.{_LEVEL}"
# transformers 5 dropped the level from this network; files keep it, for every reader knows it and only new ones know
# the other

_ADAPTER_NAME = r"(?:\.(?!(?:weight|bias|alpha)$)[^.]+)?"
_PARTS = {part: pattern for names in PART_NAMES.values() for part, pattern in names.spellings.items()}
_ENDING = "|".join(f"(?P<{part}>{pattern.replace('NAME', _ADAPTER_NAME)})" for part, pattern in _PARTS.items())
_NAME_END = re.compile(f"(?=[._])(?:{_ENDING})$")  # every ending begins so, and no other place need be tried
_ROOTED = {part for names in PART_NAMES.values() for part in names.rooted}
_LISTS = {part for names in PART_NAMES.values() for part in names.lists}
_LONGEST_ENDING = 120  # characters: the end of a name in which its ending is looked for
_INNER = re.compile(
    r"\.(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|base_layer|processor|lora)(?=\.|$)"
)
"""Levels that a layer's own path never has: of compilers, of sharding, of peft, of diffusers' first adapters."""
_SURE = ("base_model.model", "module", "_orig_mod", "_fsdp_wrapped_module", "pipeline", "pipe")
"""Wrappers that no network has as a level of its own at its top."""
_UNSURE = ("model", "transformer")
"""Wrappers that a network may have as a level of its own."""


def _by_spelling(spellings: Mapping[str, str]) -> dict[str, str]:
    """Return the networks by their spellings, from spellings in one text by network."""
    return {spelling: network for network, text in spellings.items() for spelling in text.split()}


_ROOTS = _by_spelling(
    {
        DENOISER: "lycoris",
        "unet": "lora_unet lycoris_unet lora_prior_unet oft_unet",
        "transformer": "lora_transformer",
        "text_encoder": "lora_te lora_te1 lora_prior_te lycoris_te lycoris_te1 lora_text_encoder lora_text_encoder_1",
        "text_encoder_2": "lora_te2 lycoris_te2 lora_text_encoder_2",
        "text_encoder_3": "lora_te3 lycoris_te3 lora_text_encoder_3",
    }
)
"""What tools call the networks in names with underscores."""
_ROOT = re.compile(f"({'|'.join(sorted(_ROOTS, key=len, reverse=True))})_")
_DOTTED = {name: name for name in NETWORKS} | _ROOTS
_DOTTED |= _by_spelling(
    {
        DENOISER: "model.diffusion_model diffusion_model diffusion denoiser dit",
        "text_encoder": "text_encoder_1 te te1 clip_l clip_h text_encoders.clip_l text_encoders.clip_h "
        "cond_stage_model conditioner.embedders.0",
        "text_encoder_2": "te2 clip_g text_encoders.clip_g conditioner.embedders.1",
        "text_encoder_3": "te3 t5 t5xxl text_encoders.t5xxl",
    }
)
"""What tools call the networks in names with dots. T5 is kohya's third text encoder, whatever its number in a base."""
_UNDERSCORED = re.compile(r"_orig_mod_|module_|base_model_model_|model_diffusion_model_|diffusion_model_|model_")


@dataclass(frozen=True)
class TensorName:
    """A tensor's name, taken apart.

    Attributes:
        layer: the file's name for the layer, without the wrappers that it surely has.
        part: which part of an adapter it is, as ``Method.endings`` calls it; of a list with its place: ``part.0``.
        format: the format whose names are like it.
    """

    layer: str
    part: str
    format: str


@dataclass(frozen=True)
class Reading:
    """One way to understand a file's name for a layer.

    Attributes:
        network: that the name says; None: it says none.
        path: within the network, in the file's spelling.
        has_dots: whether the path's levels are set apart by dots, not by underscores.
        is_sure: whether nothing was taken off that may belong to the path.
    """

    network: str | None
    path: str
    has_dots: bool = True
    is_sure: bool = True


def parse_name(name: str) -> TensorName | None:
    """Return what a tensor's name says; None where its ending is no adapter's part."""
    found = _NAME_END.search(name, max(1, len(name) - _LONGEST_ENDING))
    if found is None or found.lastgroup is None:
        return None
    head, part = name[: found.start()], found.lastgroup
    if part in _ROOTED and not has_root(name):
        return None
    if part in _LISTS:
        part += name[name.rindex(".") :]
    return TensorName(_plain(head), part, _format_of(head))


def has_root(name: str) -> bool:
    """Check whether a name begins as those of adapters with underscores do."""
    return _ROOT.match(name) is not None


def _plain(head: str) -> str:
    """Return a layer's name without what surely does not belong to it."""
    inner = _INNER.sub("", head)
    sure = [reading for reading in readings(inner) if reading.is_sure][-1]
    if not sure.has_dots:
        return inner
    return sure.path if sure.network in (None, DENOISER) else f"{sure.network}.{sure.path}"


def _format_of(head: str) -> str:
    if _ROOT.match(head):
        return "kohya"
    if head.startswith("base_model.model."):
        return "peft"
    if head.startswith(("diffusion_model.", "model.diffusion_model.")):
        return "native"
    return "attn_processor" if ".processor." in head else "diffusers"


def readings(layer: str) -> Iterator[Reading]:
    """Yield the ways to understand a file's name for a layer, the whole name first, then with less and less before."""
    network, path, is_sure = None, layer, True
    yield Reading(network, path)
    while True:
        if network is None and (root := _ROOT.match(path)):
            yield from _underscored(_ROOTS[root.group(1)], path[root.end() :])
            return
        before = next((each for each in _PREFIXES if path.startswith(f"{each}.")), None)
        if before is None:
            return
        is_sure = is_sure and (before in _SURE or (network is None and before != "model"))
        network = network or _DOTTED.get(before)
        path = path[len(before) + 1 :]
        yield Reading(network, path, is_sure=is_sure)


_PREFIXES = sorted({*_SURE, *_UNSURE, *_DOTTED}, key=len, reverse=True)


def _underscored(network: str, path: str) -> Iterator[Reading]:
    """Yield the readings of a name with underscores, of which some tools have one too many at its beginning or end."""
    while True:
        yield from (Reading(network, each, has_dots=False) for each in (path, path.strip("_")))
        if (wrapper := _UNDERSCORED.match(path)) is None:
            return
        path = path[wrapper.end() :]


def file_path(path: str) -> str:
    """Return a layer's full path as files have it."""
    return _LONG + path.removeprefix(_SHORT) if path.startswith(_SHORT) and not path.startswith(_LONG) else path


def memory_path(path: str) -> str:
    """Return a layer's full path as newer networks have it."""
    return _SHORT + path.removeprefix(_LONG) if path.startswith(_LONG) else path
