"""Find a network's weights in a file whose names are not its own: a model's own code's, or those of other programs.

Where a weight lies is told by names and shapes in the file's header; no number is read. The names are, in this order,
the network's own with something before them, those of :mod:`veneer.family.single_file_layout`, and whatever diffusers
converts: its converter is run on the numbers of rows in place of the weights, which shows the rows that each weight is
made of. So each weight is read by itself, and 8-bit numbers with their scale.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from veneer.family.shards import WeightsFile, is_scale
from veneer.family.single_file_layout import Place, Shapes, single_file_layout
from veneer.family.stored_weight import StoredWeight
from veneer.weights.formats.fused import Slice
from veneer.weights.safetensors import DTYPES

__all__ = ["foreign_weights", "has_several_parts"]

_DENOISER = r"(?:model\.)?diffusion_model\.(?:net\.)?|net\."
_PARTS = re.compile(
    rf"(?:{_DENOISER})?llm_adapter\.|{_DENOISER}|(?:first_stage_model|vae|text_encoders\.\w+(?:\.transformer)?"
    r"|cond_stage_model\.transformer|conditioner\.embedders\.0\.transformer)\."
)
"""What begins the names of a part in a file that has several; ``llm_adapter`` is Anima's conditioner."""
_LEVELS = ("", "text_model.", "model.", "language_model.", "model.language_model.", "transformer.", "encoder.")
"""Levels that names of a network may have in a file and not in memory."""
_UNUSED = re.compile(
    r"(?:^|\.)(?:text_projection(?:\.weight)?|logit_scale|lm_head\.weight|position_ids|spiece_model|tekken_model"
    r"|(?:\w+_)?iter|ema_decay)$|^(?:decoder|visual|vision_tower|vision_model|multi_modal_projector|model\.visual)\."
)
"""Tensors of a text encoder's file that the text encoder has no place for, such as what turns states into words."""
_SAME_NETWORK: Mapping[str, str] = {"AutoencoderKLQwenImage": "AutoencoderKLWan"}
"""Classes that diffusers has no converter for, whose networks are those of another one, to the names."""
_STRIDE, _STEP = 3, 7  # of the second numbering, whose outcome tells whether a converter computes with what it is given


def foreign_weights(network: nn.Module, config: Mapping[str, Any], file: WeightsFile) -> dict[str, StoredWeight] | None:
    """Return where a file has each weight of a network, by the network's own names; None: it does not have them all.

    Args:
        network: with its shapes; its weights may be on the meta device.
        config: its configuration.
        file: which may have other parts as well, or all parts of a base.
    """
    shapes = {name: entry.shape for name, entry in file.header.tensors.items() if not is_scale(name)}
    own = _shapes_of(network)
    for prefix in _prefixes(shapes):
        inner = {name[len(prefix) :]: shape for name, shape in shapes.items() if _part_of(name) == prefix}
        for places in _layouts(network, config, own, inner):
            if places is not None and _fit(places, own, inner):
                moved = {name: _moved(place, prefix) for name, place in places.items()}
                return {name: _stored(file, place, own[name]) for name, place in moved.items()}
    return None


def has_several_parts(names: Collection[str]) -> bool:
    """Return whether a file has other parts of a base beside its denoiser."""
    return any(part and not re.fullmatch(_DENOISER, part) for part in map(_part_of, names))


def _shapes_of(network: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def _prefixes(shapes: Shapes) -> list[str]:
    """Return what begins the names of parts of a file."""
    return list(dict.fromkeys(map(_part_of, shapes)))


def _part_of(name: str) -> str:
    """Return what begins the names of the part that a tensor is of; of a file that has one part it may be nothing."""
    match = _PARTS.match(name)
    return match[0] if match else ""


def _layouts(
    network: nn.Module, config: Mapping[str, Any], own: Shapes, inner: Shapes
) -> Iterator[dict[str, Place] | None]:
    for level in _LEVELS:
        yield _named(network, own, inner, level)
    laid = single_file_layout(inner)
    yield {name.partition(".")[2]: place for name, place in laid.items() if name.startswith(("transformer.", "unet."))}
    yield _converted(type(network), config, own, inner)


def _named(network: nn.Module, own: Shapes, inner: Shapes, level: str) -> dict[str, Place] | None:
    """Return the places of weights under the network's own names; one that modules share lies under one of them."""
    by_tensor: dict[int, str] = {}
    tensors = network.state_dict(keep_vars=True)
    for name, tensor in tensors.items():
        for stored in (level + name, name.removeprefix(level)):
            if stored in inner:
                by_tensor[id(tensor)] = stored
    names = {name: by_tensor.get(id(tensor)) for name, tensor in tensors.items()}
    if any(name is None for name in names.values()):
        return None
    unused = inner.keys() - set(names.values())
    if any(not _UNUSED.search(name) for name in unused):
        return None
    return {name: Place(stored) for name, stored in names.items() if stored is not None}


def _converted(kind: type[Any], config: Mapping[str, Any], own: Shapes, inner: Shapes) -> dict[str, Place] | None:
    """Return the places that diffusers' converter takes weights from; None: it has none, or does more than place them.

    Each tensor is replaced by the numbers of its rows. A converter that computed with them would give other numbers for
    another numbering, so it is run on two.
    """
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    entry = SINGLE_FILE_LOADABLE_CLASSES.get(_SAME_NETWORK.get(kind.__name__, kind.__name__))
    if entry is None:
        return None
    starts = dict(zip(inner, accumulate(map(_rows, inner.values()), initial=0), strict=False))
    try:
        first, second = (
            entry["checkpoint_mapping_fn"](checkpoint=_numbered(inner, starts, *line), config=dict(config))
            for line in ((1, 0), (_STRIDE, _STEP))
        )
    except Exception:  # whatever a converter does with tensors that it was not written for
        return None
    if not own.keys() <= first.keys():
        return None
    found: dict[str, Place] = {}
    for name in own:
        numbers = first[name].flatten()
        if not torch.equal(second[name].flatten(), numbers * _STRIDE + _STEP):
            return None
        if (place := _place(numbers, inner, starts)) is None:
            return None
        found[name] = place
    return found


def _rows(shape: tuple[int, ...]) -> int:
    return shape[0] if shape else 1


def _numbered(shapes: Shapes, starts: Mapping[str, int], stride: int, step: int) -> dict[str, Tensor]:
    """Return the numbers of each tensor's rows, in a tensor of as many axes with one number a row."""
    return {
        name: (torch.arange(starts[name], starts[name] + _rows(shape)) * stride + step).reshape(
            shape[:1] + (1,) * (len(shape) - 1)
        )
        for name, shape in shapes.items()
    }


def _place(numbers: Tensor, shapes: Shapes, starts: dict[str, int]) -> Place | None:
    """Return the rows of one stored tensor that have these numbers; None: they are of several, or in another order."""
    lowest = int(numbers.min())
    stored = next((name for name in reversed(starts) if starts[name] <= lowest), None)
    if stored is None:
        return None
    total, offset, length = _rows(shapes[stored]), int(numbers[0]) - starts[stored], len(numbers)
    rows = Slice(stored.rpartition(".")[0], offset, length, total)
    expected = torch.cat([torch.arange(start, start + count) for start, count in rows.spans]) + starts[stored]
    if length > total or not torch.equal(expected, numbers):
        return None
    return Place(stored) if (offset, length) == (0, total) else Place(stored, rows)


def _fit(places: Mapping[str, Place], own: Shapes, inner: Shapes) -> bool:
    """Return whether places are those of all weights, as large as these are."""
    if places.keys() != own.keys():
        return False
    return all(_flat(place.shape(inner[place.tensor])) == _flat(own[name]) for name, place in places.items())


def _flat(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without axes of one: a matrix may be stored as a convolution of one pixel."""
    return tuple(side for side in shape if side != 1)


def _moved(place: Place, prefix: str) -> Place:
    return Place(prefix + place.tensor, place.rows, place.is_transposed, place.layer)


def _stored(file: WeightsFile, place: Place, shape: tuple[int, ...]) -> StoredWeight:
    return StoredWeight(file, place, shape, DTYPES[file.header.tensors[place.tensor].dtype])
