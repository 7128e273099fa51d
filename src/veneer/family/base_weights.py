"""The weights of a base, one layer's at a time, read from its files without loading it.

Whatever the files are, a layer has one name: diffusers' dotted path with the network first, such as
``transformer.transformer_blocks.0.attn.to_q``. Of a folder in diffusers' layout those are the names in its files; what
a single file calls them is told by :mod:`veneer.family.single_file_layout`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import veneer.base
from veneer.errors import UserError
from veneer.family.abstract import read_configs
from veneer.family.base_index import find_index, read_index_file
from veneer.family.file_content import check_config, check_content
from veneer.family.hub import fetch
from veneer.family.libraries import silence_libraries
from veneer.family.registry import BUNDLED, FAMILIES, detect_on_hub, family_class
from veneer.family.shards import WeightsFile, find_weights, is_scale
from veneer.family.single_file import check_is_safetensors
from veneer.family.single_file_layout import Place, single_file_layout
from veneer.family.stored_weight import StoredWeight
from veneer.file_kind import GGUF
from veneer.files import is_pickle, user_path
from veneer.weights.formats.contents import content_of
from veneer.weights.formats.names import NETWORKS, memory_path
from veneer.weights.formats.protocol import BaseNames, BaseNetworks, KeyNames
from veneer.weights.safetensors import DTYPES

__all__ = ["BaseWeights"]

_TABLES = re.compile(r"\.(?:token_embedding|position_embedding|shared|embed_tokens|relative_attention_bias|pos_embed)$")
"""Layers whose weight is a table that rows are looked up in."""
_QUANTISED: tuple[tuple[str, str], ...] = (
    ("nf4", r"quant_state\.bitsandbytes__nf4$"),
    ("fp4", r"quant_state\.bitsandbytes__fp4$"),
    ("nf4 or fp4", r"\.(?:absmax|quant_map)$"),
    ("LLM.int8", r"\.SCB$"),
    ("nvfp4", r"\.weight_scale_2$"),
    ("GPTQ or AWQ", r"\.(?:qweight|qzeros)$"),
    ("SVDQuant", r"\.(?:wscales|proj_down)$"),
)
"""Formats of packed numbers, each with a pattern of names that only its tensors have."""


class BaseWeights:
    """The weights of a base's denoiser and text encoders, by name; none is read before it is asked for.

    Args:
        place: a folder in diffusers' layout or a single ``.safetensors`` file.

    Attributes:
        place: the base's folder or file.
        stored: each parameter by its name, ``NETWORK.PATH.weight``, as newer networks have it in memory.

    Raises:
        UserError: it is no base, has pickles or packed numbers only, or a file is damaged.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self.stored: Mapping[str, StoredWeight] = _in_folder(place) if place.is_dir() else _in_file(place)

    @classmethod
    def open(cls, base: str) -> BaseWeights:
        """Find a base and read the headers of its files.

        Args:
            base: ``bundled``, a folder in diffusers' layout, a single ``.safetensors`` file, or a hub id.

        Raises:
            UserError: as of the class, or the hub does not give it.
        """
        return cls(_place_of(base))

    @property
    def files(self) -> tuple[WeightsFile, ...]:
        """The files that have the weights, each once."""
        return tuple({stored.file.path: stored.file for stored in self.stored.values()}.values())

    def find(self, layer: str, part: str = "weight") -> StoredWeight | None:
        """Return where a layer's weight or bias lies; None if the base has none.

        Args:
            layer: its dotted path, network first, with the level ``text_model.`` of text encoders or without.
            part: ``weight`` or ``bias``.
        """
        return self.stored.get(f"{self.own_name(layer)}.{part}")

    def own_name(self, layer: str) -> str:
        """Return a layer's name here: text encoders may have a level more or less, by class and version."""
        return next((name for name in _spellings(layer) if f"{name}.weight" in self.stored), layer)

    def shape(self, layer: str, part: str = "weight") -> tuple[int, ...]:
        """Return the shape of a layer's weight or bias.

        Raises:
            UserError: the base has none.
        """
        return self._require(layer, part).shape

    def dtype(self, layer: str, part: str = "weight") -> torch.dtype:
        """Return the dtype that a layer's weight or bias is stored in.

        Raises:
            UserError: the base has none.
        """
        return self._require(layer, part).dtype

    def read(self, layer: str, part: str = "weight") -> Tensor:
        """Read a layer's weight or bias, as :meth:`StoredWeight.read` does.

        Raises:
            UserError: the base has none, or its file cannot be read.
        """
        return self._require(layer, part).read()

    def layers(self) -> Iterator[str]:
        """Yield the names of all linear layers and convolutions."""
        for name, stored in self.stored.items():
            layer, _, part = name.rpartition(".")
            if part == "weight" and len(stored.shape) > 1 and not _TABLES.search(layer):
                yield layer

    def networks(self) -> BaseNetworks:
        """Return networks on the meta device that have the base's layers, for an adapter file's names to be resolved.

        They compute nothing: each is the base's linear layers, convolutions and norms in empty modules.
        """
        networks: dict[str, nn.Module] = {}
        for name, stored in self.stored.items():
            layer, _, part = name.rpartition(".")
            if part == "weight" and not _TABLES.search(layer):
                network, _, path = layer.partition(".")
                if (module := _empty_layer(stored.shape, f"{layer}.bias" in self.stored)) is not None:
                    _hang(networks.setdefault(network, nn.Module()), path, module)
        return BaseNetworks(networks, self._key_names)

    def _key_names(self) -> KeyNames:
        """Return what adapter files call the layers: what the base's own file calls them, or what its family says."""
        if self.place.is_dir():
            return _names_by_family(self.place)
        weights = {name: stored.place for name, stored in self.stored.items() if name.endswith(".weight")}
        return {"native": {name.removesuffix(".weight"): place.rows or place.layer for name, place in weights.items()}}

    def _require(self, layer: str, part: str) -> StoredWeight:
        if (found := self.find(layer, part)) is None:
            what = f"has no {part} of {layer}"
            raise UserError(what, code="base.no_such_layer", where=self.place, remedy="use the base that it belongs to")
        return found


def _names_by_family(folder: Path) -> KeyNames:
    """Return what the family of a folder in diffusers' layout says; of a family that is not known, nothing."""
    index = find_index(folder)
    pipeline = None if index is None else read_index_file(index).get("_class_name")
    if pipeline not in FAMILIES:
        return {}
    family = family_class(str(pipeline))
    configs = read_configs(str(folder), family.config_names(), family.optional_parts)
    with silence_libraries():
        networks = family.abstract(configs, torch.float32).networks
    return BaseNames.of(networks).key_names


class _Modules(nn.Module):
    """Modules by name, which compute nothing."""


def _hang(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module into a network at its path."""
    *levels, last = path.split(".")
    for level in levels:
        if level not in root._modules:
            root.add_module(level, _Modules())
        root = root.get_submodule(level)
    root.add_module(last, module)


def _empty_layer(shape: tuple[int, ...], has_bias: bool) -> nn.Module | None:
    """Return a layer on the meta device that has a weight of a shape; None: adapters change no such layer."""
    if len(shape) == 1:
        return nn.LayerNorm(shape[0], bias=has_bias, device="meta")
    if len(shape) == 2:
        return nn.Linear(shape[1], shape[0], bias=has_bias, device="meta")
    if len(shape) == 4:
        return nn.Conv2d(shape[1], shape[0], shape[2:], bias=has_bias, device="meta")
    return None


def _spellings(layer: str) -> tuple[str, ...]:
    network, _, path = layer.partition(".")
    return (layer, memory_path(layer), f"{network}.text_model.{path}", f"{network}.{path.removeprefix('text_model.')}")


def _place_of(base: str) -> Path:
    path = veneer.base.path() if base == BUNDLED else user_path(base)
    if path.exists() or path.is_symlink() or is_pickle(path):
        return path
    return fetch(base, family_class(detect_on_hub(base)).part_names())


def _in_file(place: Path) -> dict[str, StoredWeight]:
    """Return the weights of a single file."""
    check_is_safetensors(place)
    if check_content(place) is GGUF:
        what = "is a GGUF file, whose numbers are packed"
        raise UserError(what, code="base.not_a_model", where=place, remedy=_UNPACKED)
    file = WeightsFile.open(place)
    _refuse_quantised(place, file.header.tensors)
    shapes = {name: entry.shape for name, entry in file.header.tensors.items() if not is_scale(name)}
    found = {memory_path(name): _stored(file, own) for name, own in single_file_layout(shapes).items()}
    if not found:
        content = content_of(shapes)
        what = f"is {content.title}" if content else "holds no base"
        remedy = "give a base of Stable Diffusion 1, 2, XL or 3 or of FLUX, or a folder in diffusers' layout"
        raise UserError(f"{what}, of which no layer is known", code="base.not_a_model", where=place, remedy=remedy)
    return _numbers_only(place, found)


def _in_folder(place: Path) -> dict[str, StoredWeight]:
    """Return the weights of the networks in a folder."""
    found: dict[str, StoredWeight] = {}
    networks = [name for name in NETWORKS if (place / name).is_dir()]
    for network in networks:
        for file in _weight_files(place / network):
            own = {memory_path(f"{network}.{name}"): _stored(file, Place(name)) for name in _parameters(file)}
            found |= own
    if not found:
        remedy = f"give a folder with {', '.join(NETWORKS[:3])} and such in it; families are {', '.join(FAMILIES)}"
        what = "holds no networks in diffusers' layout"
        raise UserError(what, code="base.not_a_model", where=place, remedy=remedy)
    return _numbers_only(place, found)


def _weight_files(folder: Path) -> Sequence[WeightsFile]:
    """Open the files that a network is loaded from."""
    if "quantization_config" in (check_config(folder / "config.json") if (folder / "config.json").exists() else {}):
        what = "is quantised, as its config.json says: its numbers are packed"
        raise UserError(what, code="base.quantised", where=folder, remedy=_UNPACKED)
    sets = find_weights([path.name for path in folder.iterdir()])
    if not sets:
        raise UserError("has no weights", code="base.no_weights", where=folder, remedy="use a base that is whole")
    if sets[0].is_pickled:
        what = f"has its weights in {sets[0].name}, a pickle"
        remedy = "save the base by diffusers' save_pretrained, which writes .safetensors"
        raise UserError(what, code="base.pickle", where=folder, remedy=remedy)
    files = [WeightsFile.open(file) for file in sets[0].files(folder)]
    for file in files:
        _refuse_quantised(file.path, file.header.tensors)
    return files


def _parameters(file: WeightsFile) -> list[str]:
    return [name for name in file.header.tensors if not is_scale(name)]


def _stored(file: WeightsFile, place: Place) -> StoredWeight:
    entry = file.header.tensors[place.tensor]
    return StoredWeight(file, place, place.shape(entry.shape), DTYPES[entry.dtype])


_UNPACKED = "give the base in float32, bfloat16, float16 or 8-bit floats"


def _refuse_quantised(file: Path, names: Collection[str]) -> None:
    """Refuse a file of packed numbers, and call their format by its name."""
    for title, pattern in _QUANTISED:
        if (mark := next((name for name in names if re.search(pattern, name)), None)) is not None:
            what = f"is quantised ({title}), as {mark} tells: its numbers are packed"
            raise UserError(what, code="base.quantised", where=file, remedy=_UNPACKED)


def _numbers_only(place: Path, found: dict[str, StoredWeight]) -> dict[str, StoredWeight]:
    """Leave out what is no floating point number, such as positions; refuse weights of integers, which are packed."""
    for name, stored in found.items():
        if name.endswith(".weight") and not stored.dtype.is_floating_point:
            what = f"is quantised: {name} is stored as {str(stored.dtype).removeprefix('torch.')}"
            raise UserError(what, code="base.quantised", where=place, remedy=_UNPACKED)
    return {name: stored for name, stored in found.items() if stored.dtype.is_floating_point}
