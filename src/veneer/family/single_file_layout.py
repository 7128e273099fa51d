"""Where the weights of diffusers' networks lie in a single file, whose names are those of the models' own code.

diffusers converts such a file as a whole, in memory. Here a weight is found without reading any: by the names and
shapes in the file's header alone, which tell how many levels and blocks the networks have.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from veneer.family.key_names.flux import FLUX
from veneer.family.key_names.flux2 import FLUX2
from veneer.family.key_names.ideogram4 import IDEOGRAM4
from veneer.family.key_names.rules import NameTable
from veneer.family.key_names.sd3 import SD3, also_swapped
from veneer.family.native_names import RESNET, TOP_LEVEL
from veneer.weights.formats.fused import Slice, swapped_halves

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Place", "Shapes", "single_file_layout"]

Shapes = Mapping[str, tuple[int, ...]]
"""The shape of each stored tensor by its name."""


@dataclass(frozen=True)
class Place:
    """Where a weight lies in a stored tensor.

    Attributes:
        tensor: the name of the stored tensor.
        rows: those that the weight consists of; None: it is the whole tensor.
        is_transposed: whether the weight is the transpose of what is stored.
        layer: what the file calls the layer, with the network's name in diffusers in place of what comes before.
    """

    tensor: str
    rows: Slice | None = None
    is_transposed: bool = False
    layer: str = ""

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Return the weight's shape, for a stored tensor of a shape."""
        if self.rows is not None:
            stored = (self.rows.length, *stored[1:])
        return stored[::-1] if self.is_transposed else stored

    def take(self, stored: Tensor) -> Tensor:
        """Return a copy of the weight from the stored tensor."""
        found = stored.clone() if self.rows is None else self.rows.take(stored)
        return found.T.contiguous() if self.is_transposed else found

    def put(self, weight: Tensor, stored: Tensor) -> None:
        """Write the weight to where it lies in the stored tensor."""
        found = weight.T if self.is_transposed else weight
        if self.rows is None:
            stored.copy_(found)
        else:
            self.rows.put(found, stored)


_Layout = dict[str, Place]
"""Places by the weights' names in diffusers."""


def single_file_layout(shapes: Shapes) -> dict[str, Place]:
    """Return where each weight of a single file lies, by its name in diffusers with the network's name first.

    Read are Stable Diffusion 1, 2, XL and 3, FLUX.1 and FLUX.2, with text encoders or without, Ideogram 4, and
    denoisers under diffusers' own names. Weights of autoencoders are left out.

    Args:
        shapes: of the file's tensors.
    """
    found: _Layout = {}
    for prefix, network, layout in (*_text_encoders(shapes), *_denoiser(shapes)):
        inner = {name[len(prefix) :]: shape for name, shape in shapes.items() if name.startswith(prefix)}
        for name, place in layout(inner).items():
            layer = f"{network}.{place.tensor.rpartition('.')[0]}"
            rows = place.rows and replace(place.rows, name=layer)
            found[f"{network}.{name}"] = replace(place, tensor=prefix + place.tensor, rows=rows, layer=layer)
    return found


_Part = tuple[str, str, Callable[[Shapes], _Layout]]
"""What begins the stored names of a network, the network's name in diffusers, and how its weights are laid out."""


def _as_stored(shapes: Shapes) -> _Layout:
    """Lay out a network whose stored names are diffusers' own."""
    return {name: Place(name) for name in shapes}


_DENOISER_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")


def _denoiser(shapes: Shapes) -> Iterator[_Part]:
    """Yield the denoiser, if it is of a kind that is known."""
    kinds = (
        ("input_blocks.0.0.weight", "unet", _unet),
        ("vector_in.in_layer.weight", "transformer", _flux),
        ("double_stream_modulation_img.lin.weight", "transformer", _flux2),
        ("joint_blocks.0.x_block.attn.qkv.weight", "transformer", _sd3),
        ("llm_cond_proj.weight", "transformer", _ideogram4),
        ("down_blocks.0.resnets.0.conv1.weight", "unet", _as_stored),
        ("time_text_embed.timestep_embedder.linear_1.weight", "transformer", _as_stored),
    )
    for prefix in _DENOISER_PREFIXES:
        for mark, network, layout in kinds:
            if prefix + mark in shapes:
                yield prefix, network, layout
                return


def _text_encoders(shapes: Shapes) -> Iterator[_Part]:
    """Yield the text encoders of a file."""
    has_second_clip = any(name.startswith("text_encoders.clip_g.") for name in shapes)
    yield "cond_stage_model.transformer.", "text_encoder", _as_stored
    yield "cond_stage_model.model.", "text_encoder", _open_clip_but_last
    yield "conditioner.embedders.0.transformer.", "text_encoder", _as_stored
    yield "conditioner.embedders.0.model.", "text_encoder_2", _open_clip  # the refiner's, which has one
    yield "conditioner.embedders.1.model.", "text_encoder_2", _open_clip
    yield "text_encoders.clip_l.transformer.", "text_encoder", _as_stored
    yield "text_encoders.clip_g.transformer.", "text_encoder_2", _as_stored
    yield "text_encoders.t5xxl.transformer.", f"text_encoder_{3 if has_second_clip else 2}", _as_stored


_CLIP_TOP: Mapping[str, Place] = {
    "text_model.embeddings.token_embedding.weight": Place("token_embedding.weight"),
    "text_model.embeddings.position_embedding.weight": Place("positional_embedding"),
    "text_model.final_layer_norm.weight": Place("ln_final.weight"),
    "text_model.final_layer_norm.bias": Place("ln_final.bias"),
    "text_projection.weight": Place("text_projection", is_transposed=True),
}
_CLIP_LAYER: Mapping[str, str] = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_CLIP_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)[._](weight|bias)")
_LAST_OF_2 = 23
"""The last layer of Stable Diffusion 2's text encoder, which is stored but not used: its states are read before it."""


def _open_clip(shapes: Shapes) -> _Layout:
    """Lay out a text encoder of OpenCLIP: queries, keys and values in one matrix, the projection transposed."""
    found = {name: place for name, place in _CLIP_TOP.items() if place.tensor in shapes}
    for stored, shape in shapes.items():
        if (match := _CLIP_BLOCK.fullmatch(stored)) is None:
            continue
        number, inner, kind = match.groups()
        layer = f"text_model.encoder.layers.{number}"
        if inner == "attn.in_proj":
            names = [f"{layer}.self_attn.{letter}_proj.{kind}" for letter in "qkv"]
            found |= _split(stored, shape[0], shape[0] // 3, names)
        elif inner in _CLIP_LAYER:
            found[f"{layer}.{_CLIP_LAYER[inner]}.{kind}"] = Place(stored)
    return found


def _open_clip_but_last(shapes: Shapes) -> _Layout:
    """Lay out the text encoder of Stable Diffusion 2, which diffusers has without its last layer and projection."""
    unused = f"transformer.resblocks.{_LAST_OF_2}."
    used = {name: shape for name, shape in shapes.items() if not name.startswith(unused) and name != "text_projection"}
    return _open_clip(used)


def _split(stored: str, total: int, size: int, names: list[str]) -> _Layout:
    """Return the places of weights that lie one behind another, each of a size but the last, which has the rest."""
    layer, starts = stored.rpartition(".")[0], [size * place for place in range(len(names))]
    stops = [*starts[1:], total]
    slices = [Slice(layer, start, stop - start, total) for start, stop in zip(starts, stops, strict=True)]
    return {name: Place(stored, part) for name, part in zip(names, slices, strict=True)}


_NATIVE_TOP = {native: own for own, native in TOP_LEVEL.items()}
_NATIVE_RESNET = {native: own for own, native in RESNET.items()}


def _unet(shapes: Shapes) -> _Layout:
    """Lay out the UNet of Stable Diffusion 1, 2 and XL: see :mod:`veneer.family.native_names`."""
    blocks = {**_down(shapes), **_middle(shapes), **_up(shapes)}
    found: _Layout = {}
    for stored in shapes:
        module, _, kind = stored.rpartition(".")
        parts = module.split(".")
        depth = next((depth for depth in (4, 3, 2) if ".".join(parts[:depth]) in blocks), 0)
        block, inner = blocks.get(".".join(parts[:depth])), ".".join(parts[depth:])
        if block is not None:
            own = ".".join(part for part in (block, _NATIVE_RESNET.get(inner, inner)) if part)
            found[f"{own}.{kind}"] = Place(stored)
        elif module in _NATIVE_TOP:
            found[f"{_NATIVE_TOP[module]}.{kind}"] = Place(stored)
    return found


def _down(shapes: Shapes) -> dict[str, str]:
    names: dict[str, str] = {}
    level = place = 0
    for number in _numbers(shapes, "input_blocks")[1:]:  # 0 is the first convolution
        block = f"input_blocks.{number}"
        if f"{block}.0.op.weight" in shapes:
            names[f"{block}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
            level, place = level + 1, 0
        else:
            names |= {f"{block}.{part}": f"down_blocks.{level}.{kind}.{place}" for part, kind in enumerate(_BLOCK)}
            place += 1
    return names


_BLOCK = ("resnets", "attentions")


def _middle(shapes: Shapes) -> dict[str, str]:
    return {
        f"middle_block.{number}": f"mid_block.{_BLOCK[number % 2]}.{number // 2}"
        for number in _numbers(shapes, "middle_block")
    }


def _up(shapes: Shapes) -> dict[str, str]:
    names: dict[str, str] = {}
    level = place = 0
    for number in _numbers(shapes, "output_blocks"):
        block = f"output_blocks.{number}"
        sampler = next((part for part in (1, 2) if f"{block}.{part}.conv.weight" in shapes), None)
        names |= {
            f"{block}.{part}": f"up_blocks.{level}.{kind}.{place}"
            for part, kind in enumerate(_BLOCK)
            if part != sampler
        }
        place += 1
        if sampler is not None:
            names[f"{block}.{sampler}.conv"] = f"up_blocks.{level}.upsamplers.0.conv"
            level, place = level + 1, 0
    return names


def _numbers(shapes: Shapes, stem: str) -> list[int]:
    """Return the numbers of blocks of a kind, rising."""
    pattern = re.compile(rf"{stem}\.(\d+)\.")
    return sorted({int(match[1]) for name in shapes if (match := pattern.match(name))})


def _flux(shapes: Shapes) -> _Layout:
    """Lay out FLUX.1's transformer."""
    return _by_table(FLUX, shapes)


def _flux2(shapes: Shapes) -> _Layout:
    """Lay out FLUX.2's transformer."""
    return _by_table(FLUX2, shapes)


def _ideogram4(shapes: Shapes) -> _Layout:
    """Lay out Ideogram 4's transformer."""
    return _by_table(IDEOGRAM4, shapes)


def _sd3(shapes: Shapes) -> _Layout:
    """Lay out Stable Diffusion 3's transformer, whose positions have no layer."""
    positions = {"pos_embed.pos_embed": Place("pos_embed")} if "pos_embed" in shapes else {}
    layers = {name: shape for name, shape in shapes.items() if name != "pos_embed"}
    last = max(_numbers(shapes, "joint_blocks"), default=0)
    return {**_by_table(SD3, layers, also_swapped(last)), **positions}


def _by_table(table: NameTable, shapes: Shapes, *swapped: str) -> _Layout:
    """Lay out a transformer whose attention has queries, keys and values in one matrix, by the table of its names.

    Args:
        table: of the family.
        shapes: of the stored tensors.
        swapped: further paths of layers whose halves are the other way round.
    """
    found: _Layout = {}
    for stored, shape in shapes.items():
        module, _, kind = stored.rpartition(".")
        paths = table.paths_of(module)
        names = [f"{path}.{'weight' if kind == 'scale' else kind}" for path in paths]
        if len(names) > 1:
            found |= _split(stored, shape[0], _width(shapes, shape[0], len(names)), names)
        else:
            rows = swapped_halves(module, shape[0]) if paths[0] in (*table.swapped, *swapped) else None
            found[names[0]] = Place(stored, rows)
    return found


def _width(shapes: Shapes, total: int, count: int) -> int:
    """Return the rows of each layer but the last of a fused one: queries, keys and values are as wide as the tokens."""
    return total // 3 if count == 3 else shapes["img_in.weight"][0]
