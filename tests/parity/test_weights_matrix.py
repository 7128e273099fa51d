"""Families x methods x formats, judged by readers that are not Veneer's: they compute the W + delta W that was written.

Diffusers' ``load_lora_weights`` and peft's ``from_pretrained`` find layers and numbers by themselves. LyCORIS' modules
get the tensors of one layer; that ComfyUI and kohya's scripts know the layers' names is held against their own tables
(``tests/unit/test_weights_comfy.py``).
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.adapter_methods import filled, parts_for
from tests.bases import write_tiny_flux, write_tiny_sdxl
from tools.reference.methods import formats_of
from veneer.adapter.layers import weighted_layers_of
from veneer.adapter.protocol import LayerAdapter, WeightedLayer
from veneer.adapter.registry import METHODS
from veneer.family.layer_names import names_of_base
from veneer.verbs.other_readers import NOT_JUDGED, read_back
from veneer.weights.file import AdapterFile, save
from veneer.weights.formats.protocol import BaseNames
from veneer.weights.formats.registry import FORMATS
from veneer.weights.formats.tensors import adapter_of

_BLOCK = "unet.mid_block.attentions.0.transformer_blocks.0"
LAYERS = {
    "sd": (f"{_BLOCK}.attn1.to_q", f"{_BLOCK}.ff.net.2", "text_encoder.encoder.layers.0.self_attn.out_proj"),
    "sdxl": (f"{_BLOCK}.attn2.to_k", "text_encoder_2.text_model.encoder.layers.0.self_attn.out_proj"),
    "flux": ("transformer.transformer_blocks.0.attn.to_out.0", "transformer.single_transformer_blocks.0.proj_out"),
}
ALPHA = 1.3  # of rank 2, so that alpha / r is no number that floats have
NO_READER = set(NOT_JUDGED["LyCORIS"])
"""Methods that no reader here computes; the functions of LyCORIS are held against in another file."""
CELLS = [(method, format_name) for method in METHODS for format_name in formats_of(METHODS[method])]


@pytest.fixture(scope="module")
def bases(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, BaseNames]:
    folder = tmp_path_factory.mktemp("bases")
    places = {"sd": tiny_base, "sdxl": write_tiny_sdxl(folder / "sdxl"), "flux": write_tiny_flux(folder / "flux")}
    return {family: names_of_base(str(place)) for family, place in places.items()}


def adapter_for(method: str, layer: WeightedLayer, seed: int) -> LayerAdapter:
    out, width = layer.weight.shape
    parts = filled(parts_for(out, width)[method], seed)
    parts.pop("diff_b", None)  # of layers without a bias, as most are
    if method == "dokr":  # LyCORIS makes magnitudes of outputs alone
        parts["dora_scale"] = torch.rand(out, 1) + 0.5
    if "alpha" in parts and "oft_blocks" not in parts:
        parts["alpha"] = torch.tensor(ALPHA)
    return adapter_of("x", parts, lambda _: None)


@pytest.mark.slow
@pytest.mark.parametrize("family", LAYERS)
@pytest.mark.parametrize(("method", "format_name"), [cell for cell in CELLS if cell[0] not in ("norm", "biased")])
def test_the_format_s_own_reader_computes_what_was_written(
    bases: dict[str, BaseNames],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    format_name: str,
    family: str,
) -> None:
    monkeypatch.setattr("veneer.verbs.other_readers.NOT_JUDGED", {})  # who is said not to read them does not
    base = bases[family]
    layers = weighted_layers_of(base.networks)
    weights = {path: adapter_for(method, layers[path], seed) for seed, path in enumerate(LAYERS[family])}
    place = tmp_path / FORMATS[format_name].file_name("x")
    save(AdapterFile(weights), place, format_name, base)
    judge = read_back(place, format_name, weights, base)[0]
    assert judge.agrees == (method not in NO_READER), f"{judge.reader}: {judge.finding}"
