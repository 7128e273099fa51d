"""Families x methods x formats: what is written of an adapter, and whether it is read back without any difference."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import FluxPipeline
from torch import Tensor

from tests.adapter_methods import filled, parts_for
from tests.bases import write_tiny_flux, write_tiny_sdxl
from tools.publish import publish
from tools.reference import methods
from veneer.adapter.layers import bias_of, weighted_layers_of
from veneer.adapter.protocol import LayerAdapter
from veneer.adapter.registry import METHODS
from veneer.base import path as bundled
from veneer.errors import UserError
from veneer.family.flux import Flux
from veneer.family.loading import load_base
from veneer.weights.file import AdapterFile, load, save
from veneer.weights.formats.protocol import BaseNames
from veneer.weights.formats.registry import FORMATS
from veneer.weights.formats.tensors import adapter_of

__all__ = ["EXACT", "LAYERS", "base_of", "effect", "layers_of_base", "outcomes", "table", "weights_for"]

LAYERS = {
    "sd": ("unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "text_encoder.encoder.layers.0.mlp.fc1"),
    "sdxl": (
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
        "text_encoder_2.text_model.encoder.layers.0.mlp.fc1",
    ),
    "flux": ("transformer.transformer_blocks.0.attn.to_out.0", "transformer.single_transformer_blocks.0.proj_out"),
}
NORMS = {
    "sd": ("unet.mid_block.attentions.0.transformer_blocks.0.norm1", "unet.conv_norm_out"),
    "sdxl": ("unet.mid_block.attentions.0.norm", "unet.mid_block.resnets.0.norm1"),
    "flux": (),
}
"""Norms with a bias, whose names a family's own code has otherwise than diffusers."""


@cache
def base_of(family: str) -> BaseNames:
    if family == "sd":
        return BaseNames.of(load_base(str(bundled())).networks)
    with TemporaryDirectory() as folder:
        if family == "sdxl":
            return BaseNames.of(load_base(str(write_tiny_sdxl(Path(folder, "base")))).networks)
        place = write_tiny_flux(Path(folder, "base"))
        return BaseNames.of(Flux(FluxPipeline.from_pretrained(place).components).networks)


@cache
def layers_of_base(family: str) -> dict[str, Any]:
    return dict(weighted_layers_of(base_of(family).networks))


def adapter_for(method: str, layer: Any, seed: int) -> LayerAdapter:
    out = len(layer.weight)
    shapes = parts_for(out, 1 if method == "norm" else layer.weight[0].numel())[method]
    parts = filled(shapes, seed)
    parts |= (
        {"alpha": torch.tensor(1.0)} if "alpha" in parts and "oft_blocks" not in parts else {}
    )  # alpha / 2 is exact
    adapter = adapter_of("x", parts, lambda _: None).fitted(tuple(layer.weight.shape))
    assert adapter is not None
    return adapter


def weights_for(family: str, method: str) -> dict[str, LayerAdapter]:
    paths = NORMS[family] if method == "norm" else LAYERS[family]
    every = layers_of_base(family)
    needs_bias = {"full", "norm", "biased"}
    return {
        path: adapter_for(method, every[path], seed)
        for seed, path in enumerate(paths)
        if method not in needs_bias or bias_of(every[path]) is not None
    }


def effect(adapter: LayerAdapter, layer: Any) -> list[Tensor]:
    weight, bias = layer.weight.detach().float(), bias_of(layer)
    change = None if bias is None else adapter.delta_bias(bias.detach().float())
    return [adapter.delta_weight(weight), *([] if change is None else [change])]


_ATTENTION = "transformer.transformer_blocks.0.attn"
FUSED = tuple(f"{_ATTENTION}.{name}" for name in ("to_q", "to_k", "to_v"))
"""Layers of FLUX that are one in files of its own code."""
_TITLES = {"sd": "Stable Diffusion", "sdxl": "XL", "flux": "FLUX", "fused": "FLUX's joined layers"}
EXACT = "exact"


def round_trip(weights: Mapping[str, LayerAdapter], family: str, format: str) -> str:
    """Write an adapter and read it back; return ``exact``, or the code of the refusal, or what is not exact."""
    base, every = base_of(family), layers_of_base(family)
    with TemporaryDirectory() as folder:
        place = Path(folder, FORMATS[format].file_name("mine"))
        try:
            save(AdapterFile(weights), place, format, base)
        except UserError as error:
            return f"`{error.code}`"
        back = load(place, base.networks, base.key_names).weights
    if back.keys() != weights.keys():
        return f"other layers: {sorted(back.keys() ^ weights.keys())}"
    for path, adapter in weights.items():
        pairs = list(zip(effect(adapter, every[path]), effect(back[path], every[path]), strict=True))
        if not all(torch.equal(own, other) and math.isfinite(float(own.abs().sum())) for own, other in pairs):
            return f"not exact: {path}"
    return EXACT


@torch.no_grad()
def outcomes(method: str, format: str) -> Iterator[tuple[str, str]]:
    """Yield what becomes of a method's adapter in a format, for each family, and for FLUX's joined layers."""
    for family in LAYERS:
        weights = weights_for(family, method)
        if format == "peft":  # a folder for each network
            weights = dict(list(weights.items())[:1])
        if weights:  # FLUX's norms of queries and keys have no bias, and the others no weight
            yield family, round_trip(weights, family, format)
    layers = layers_of_base("flux")
    if method != "norm":
        fused = {path: adapter_for(method, layers[path], seed) for seed, path in enumerate(FUSED)}
        yield "fused", round_trip(fused, "flux", format)


def table(cells: Mapping[tuple[str, str], Mapping[str, str]]) -> str:
    """Return the table of the docs, a row a method and a column a format, from what :func:`outcomes` yields of each."""
    lines = [f"| method | {' | '.join(FORMATS)} |", f"| --- |{' --- |' * len(FORMATS)}"]
    for name, method in METHODS.items():
        columns = [_cell(cells[name, format]) for format in FORMATS]
        lines.append(f"| {method.title} (`{name}`) | {' | '.join(columns)} |")
    return "\n".join(lines) + "\n"


def _cell(found: Mapping[str, str]) -> str:
    usual = found["sd"]
    others = [f"{_TITLES[where]}: {told}" for where, told in found.items() if told != usual]
    return "; ".join([usual, *others])


if __name__ == "__main__":
    found = {(method, format): dict(outcomes(method, format)) for method in METHODS for format in FORMATS}
    publish(methods.PAGE, table(found), "matrix")
