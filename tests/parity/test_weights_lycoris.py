"""Files of every LyCORIS method: read to the delta W of LyCORIS' own modules, and written for its readers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lycoris.modules import boft, diag_oft, full, get_module, glora, ia3, loha, lokr, make_module, norms
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from veneer.adapter.layers import weighted_layers_of
from veneer.adapter.merge import merge
from veneer.adapter.protocol import LayerAdapter
from veneer.adapter.registry import from_tensors, to_tensors
from veneer.weights.file import AdapterFile, load, save
from veneer.weights.formats.protocol import BaseNames

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


class Case(NamedTuple):
    """A module of LyCORIS on a layer."""

    kind: type[Any]
    layer: str
    options: dict[str, Any]
    alpha: float = 2.0


def layers() -> dict[str, nn.Module]:
    torch.manual_seed(1)
    return {
        "linear": nn.Linear(32, 48),
        "conv": nn.Conv2d(32, 48, 3, padding=1),
        "thin": nn.Conv2d(32, 48, 1),
        "layer_norm": nn.LayerNorm(32),
        "group_norm": nn.GroupNorm(4, 32),
    }


CASES = {
    f"{kind.__name__}-{layer}-{'-'.join(options) or 'plain'}": Case(kind, layer, options)
    for kind, names, variants in [
        (loha.LohaModule, ("linear", "conv", "thin"), ({}, {"weight_decompose": True}, {"rs_lora": True})),
        (loha.LohaModule, ("linear",), ({"use_scalar": True}, {"weight_decompose": True, "wd_on_out": False})),
        (loha.LohaModule, ("conv",), ({"use_tucker": True}, {"use_tucker": True, "weight_decompose": True})),
        (loha.LohaModule, ("conv",), ({"weight_decompose": True, "wd_on_out": False},)),
        (lokr.LokrModule, ("linear", "conv", "thin"), ({}, {"full_matrix": True}, {"factor": 4})),
        (lokr.LokrModule, ("linear", "conv"), ({"decompose_both": True, "factor": 16}, {"weight_decompose": True})),
        (lokr.LokrModule, ("conv",), ({"use_tucker": True}, {"use_tucker": True, "weight_decompose": True})),
        (lokr.LokrModule, ("linear",), ({"use_scalar": True}, {"weight_decompose": True, "wd_on_out": False})),
        (lokr.LokrModule, ("linear",), ({"unbalanced_factorization": True}, {"rs_lora": True, "factor": 2})),
        (diag_oft.DiagOFTModule, ("linear", "conv"), ({}, {"rescaled": True}, {"constraint": 1e-3})),
        (boft.ButterflyOFTModule, ("linear", "conv"), ({}, {"rescaled": True}, {"constraint": 1e-3})),
        (glora.GLoRAModule, ("linear", "thin"), ({}, {"use_scalar": True})),
        (ia3.IA3Module, ("linear", "conv"), ({}, {"train_on_input": True})),
        (full.FullModule, ("linear", "conv"), ({},)),
        (norms.NormModule, ("layer_norm", "group_norm"), ({},)),
    ]
    for layer in names
    for options in variants
}


def trained(case: Case, layer: nn.Module) -> Any:
    """A module with numbers that are not zero."""
    options = dict(case.options)
    if case.kind is norms.NormModule:
        module = case.kind("lora_unet_x", layer, 1.0)
    else:
        rank = 6 if case.kind is boft.ButterflyOFTModule else 4  # 48 outputs are 8 blocks of 6, and 8 is a power of 2
        module = case.kind("lora_unet_x", layer, 1.0, rank, case.alpha, **options)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return module.eval()


def state_of(module: Any) -> dict[str, Tensor]:
    if isinstance(module, full.FullModule):  # it holds the difference until it is put in place of the layer
        return {"lora_unet_x.diff": module.weight.detach().clone(), "lora_unet_x.diff_b": module.bias.detach().clone()}
    state = module.custom_state_dict() or module.state_dict()
    return {f"lora_unet_x.{name}": tensor.detach().clone().contiguous() for name, tensor in state.items()}


@torch.no_grad()
def reference(module: Any, layer: Any) -> tuple[Tensor, Tensor | None]:
    """What LyCORIS' own module adds to the weight and to the bias.

    ``get_diff_weight`` of LoHa and LoKr multiplies by alpha/r twice; ``forward``, with which it trains, does so once.
    """
    if not isinstance(module, loha.LohaModule | lokr.LokrModule):
        delta, bias = module.get_diff_weight(1.0)
        return delta.reshape(layer.weight.shape), bias
    delta = module.get_weight(tuple(layer.weight.shape)) * module.scalar
    if module.wd:
        return module.apply_weight_decompose(layer.weight + delta) - layer.weight, None
    return delta, None


def read(tensors: dict[str, Tensor], layer: nn.Module, folder: Path) -> LayerAdapter:
    save_file(tensors, folder / "x.safetensors")
    return load(folder / "x.safetensors", {"unet": nn.ModuleDict({"x": layer})}).weights["unet.x"]


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_what_lycoris_writes_is_read_to_its_own_delta(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    layer: Any = layers()[case.layer]
    module = trained(case, layer)
    adapter = read(state_of(module), layer, tmp_path)
    delta, bias = reference(module, layer)
    assert adapter.shape == tuple(layer.weight.shape) and not adapter.is_untrained
    torch.testing.assert_close(adapter.delta_weight(layer.weight), delta, **CLOSE)
    own = adapter.delta_bias(layer.bias)
    assert (own is None) == (bias is None)
    if own is not None:
        torch.testing.assert_close(own, bias, **CLOSE)
    expected = float(delta.double().square().sum())
    assert adapter.squared_norm(layer.weight) == pytest.approx(expected, rel=1e-4)
    if adapter.method.is_additive:
        assert adapter.squared_norm() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_the_layer_with_it_merged_does_what_lycoris_forward_does(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    layer: Any = layers()[case.layer]
    module = trained(case, layer)
    adapter = read(state_of(module), layer, tmp_path)
    x = torch.randn(2, 32, 5, 5) if "conv" in name or "thin" in name or "group" in name else torch.randn(3, 32)
    expected, before = module(x), (layer.weight.clone(), layer.bias.clone())
    merged = merge({"unet": nn.ModuleDict({"x": layer})}, [({"unet.x": adapter}, 1.0)])
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)
    merged.undo()
    assert torch.equal(layer.weight, before[0]) and torch.equal(layer.bias, before[1])


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_what_is_written_for_kohya_is_what_lycoris_wrote_and_reads(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    layer: Any = layers()[case.layer]
    module = trained(case, layer)
    given = state_of(module)
    networks = {"unet": nn.ModuleDict({"x": layer})}
    adapter = read(given, layer, tmp_path)
    again = from_tensors(to_tensors({"unet.x": adapter}))["unet.x"]
    save(AdapterFile({"unet.x": again}), tmp_path / "y.safetensors", "kohya", BaseNames.of(networks))
    written = load_file(tmp_path / "y.safetensors")
    same = {part: tensor for part, tensor in given.items() if not part.endswith((".alpha", ".dora_scale"))}
    assert written.keys() == given.keys()
    assert all(torch.equal(written[part], tensor) for part, tensor in same.items())
    back = load(tmp_path / "y.safetensors", networks).weights["unet.x"]
    assert torch.equal(back.delta_weight(layer.weight), adapter.delta_weight(layer.weight))
    kind, parts = get_module(written, "lora_unet_x")
    assert kind is case.kind
    if case.kind is ia3.IA3Module or case.options.get("unbalanced_factorization") or "wd_on_out" in case.options:
        return  # LyCORIS' own reader of these cannot read what LyCORIS writes
    if case.kind is lokr.LokrModule and case.options.get("use_tucker"):
        return  # it takes the layer's outputs for the rank there
    loaded = make_module(kind, parts, "lora_unet_x", layer)
    delta, _ = reference(loaded, layer)
    torch.testing.assert_close(back.delta_weight(layer.weight), delta, **CLOSE)


def test_norms_are_layers_that_files_name_and_no_targets() -> None:
    model = nn.ModuleDict(layers())
    assert {path.partition(".")[2] for path in weighted_layers_of({"net": model})} == set(layers())
