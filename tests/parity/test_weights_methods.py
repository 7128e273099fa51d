"""Files of LyCORIS and peft: what is read is read to its own delta W, the rest called by name."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from lycoris.modules import dylora, locon
from peft.tuners.oft import layer as oft
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.errors import raises_code
from veneer.adapter.merge import merge
from veneer.weights.file import AdapterFile, info, load, save
from veneer.weights.formats.protocol import BaseNames

LINEAR, CONV = nn.Linear(32, 32), nn.Conv2d(32, 32, 3)


def saved(module: nn.Module, folder: Path) -> Path:
    """Write a module of LyCORIS as its trainer does, with numbers that are not zero."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    state: dict[str, Tensor] = getattr(module, "custom_state_dict", lambda: None)() or module.state_dict()
    tensors = {f"lora_unet_x.{name}": tensor.detach().clone().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / "x.safetensors")
    return folder / "x.safetensors"


READ: list[tuple[type[Any], nn.Module, dict[str, bool]]] = [
    (locon.LoConModule, LINEAR, {}),
    (locon.LoConModule, CONV, {}),
    (locon.LoConModule, CONV, {"use_tucker": True}),
    (locon.LoConModule, LINEAR, {"use_scalar": True}),
    (locon.LoConModule, LINEAR, {"rs_lora": True}),
    (locon.LoConModule, LINEAR, {"weight_decompose": True, "wd_on_out": True}),
    (locon.LoConModule, CONV, {"weight_decompose": True, "wd_on_out": True}),
    (locon.LoConModule, CONV, {"weight_decompose": True, "wd_on_out": False}),
    (locon.LoConModule, CONV, {"use_tucker": True, "weight_decompose": True, "wd_on_out": False}),
]


@pytest.mark.parametrize("case", range(len(READ)))
def test_what_lycoris_writes_is_read_to_its_own_delta(case: int, tmp_path: Path) -> None:
    kind, layer, options = READ[case]
    module = kind("lora_unet_x", layer, 1.0, 4, 2.0, **options)
    read = load(saved(module, tmp_path), {"unet": nn.ModuleDict({"x": layer})}).weights["unet.x"]
    weight = layer.weight
    assert isinstance(weight, Tensor)
    torch.testing.assert_close(
        weight + read.delta_weight(weight), module.get_merged_weight(1.0)[0], rtol=1e-5, atol=1e-5
    )


def test_dylora_is_written_as_a_lora(tmp_path: Path) -> None:
    path = saved(dylora.DyLoraModule("lora_unet_x", LINEAR, 1.0, 4, 2.0), tmp_path)
    tensors = load_file(path)
    read = load(path, {"unet": nn.ModuleDict({"x": LINEAR})}).weights["unet.x"]
    expected = 0.5 * tensors["lora_unet_x.lora_up.weight"] @ tensors["lora_unet_x.lora_down.weight"]
    torch.testing.assert_close(read.delta_weight(LINEAR.weight), expected)


class Model(nn.Module):
    """Two layers of 64."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.a(x))
        return out


PEFT: dict[str, tuple[str, dict[str, Any]]] = {
    "AdaLoraConfig": ("AdaLoRA", {"total_step": 10}),
    "VeraConfig": ("VeRA", {}),
    "HRAConfig": ("HRA", {}),
    "FourierFTConfig": ("FourierFT", {}),
    "RandLoraConfig": ("RandLoRA", {}),
}


@pytest.mark.parametrize("name", PEFT)
def test_peft_s_other_methods_are_called_by_name(name: str) -> None:
    title, options = PEFT[name]
    with tempfile.TemporaryDirectory() as folder:
        peft.get_peft_model(Model(), getattr(peft, name)(target_modules=["a"], **options)).save_pretrained(folder)
        with raises_code("weights.unsupported_method", match=f"of the method {title}"):
            info(Path(folder))


class Mixed(nn.Module):
    """A linear layer, a convolution, and one of 1 x 1."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.c, self.t = nn.Linear(32, 48), nn.Conv2d(32, 48, 3, padding=1), nn.Conv2d(32, 48, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.a(x)
        return out


READ_OF_PEFT: list[tuple[str, dict[str, Any]]] = [
    ("LoHaConfig", {"r": 4, "alpha": 6}),
    ("LoHaConfig", {"r": 4, "alpha": 6, "use_effective_conv2d": True}),
    ("LoHaConfig", {"r": 4, "alpha": 6, "alpha_pattern": {"a": 9}, "rank_pattern": {"c": 2}}),
    ("LoKrConfig", {"r": 4, "alpha": 6}),
    ("LoKrConfig", {"r": 2, "alpha": 6, "decompose_both": True, "decompose_factor": 8, "use_effective_conv2d": True}),
    ("LoKrConfig", {"r": 64, "alpha": 6}),
    ("IA3Config", {"feedforward_modules": []}),
    ("IA3Config", {"feedforward_modules": ["a"], "target_modules": ["a"]}),
    ("OFTConfig", {"oft_block_size": 4, "target_modules": ["a"]}),
    ("OFTConfig", {"oft_block_size": 8, "target_modules": ["a"], "block_share": True}),
    ("OFTConfig", {"oft_block_size": 4, "target_modules": ["a"], "use_cayley_neumann": False}),
    ("OFTConfig", {"oft_block_size": 4, "target_modules": ["a"], "num_cayley_neumann_terms": 3}),
    ("OFTConfig", {"oft_block_size": 4, "target_modules": ["a"], "num_cayley_neumann_terms": 7}),
    ("OFTConfig", {"oft_block_size": 4, "target_modules": ["a"], "num_cayley_neumann_terms": 2}),
    ("OFTConfig", {"oft_block_size": 4, "target_modules": ["a"], "coft": True, "eps": 0.1}),
    ("BOFTConfig", {"boft_block_size": 4}),
    ("LoraConfig", {"r": 4, "lora_alpha": 6, "lora_bias": True}),
    ("LoraConfig", {"r": 4, "lora_alpha": 6, "lora_bias": True, "use_rslora": True}),
]
WRITTEN_FOR_PEFT = [case for case, (name, _) in enumerate(READ_OF_PEFT) if name in ("LoHaConfig", "LoraConfig")]


def of_peft(case: int, folder: Path) -> tuple[Any, Mixed]:
    """Write an adapter of peft with numbers that are not zero; return it, and its base."""
    name, options = READ_OF_PEFT[case]
    config = getattr(peft, name)(**{"target_modules": ["a", "c", "t"], **options})
    model = peft.get_peft_model(Mixed(), config)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(str(folder))
    return model, Mixed()


@pytest.mark.parametrize("case", range(len(READ_OF_PEFT)))
@torch.no_grad()
def test_what_peft_writes_is_read_to_what_peft_merges(case: int, tmp_path: Path) -> None:
    model, base = of_peft(case, tmp_path)
    weights = load(tmp_path, {"unet": base}).weights
    merged = model.merge_and_unload()
    ours = Mixed()
    merge({"unet": ours}, [(weights, 1.0)])
    for own, theirs in zip(ours.parameters(), merged.parameters(), strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", WRITTEN_FOR_PEFT)
@torch.no_grad()
def test_what_is_written_for_peft_is_what_peft_reads(case: int, tmp_path: Path) -> None:
    model, base = of_peft(case, tmp_path / "one")
    adapter = load(tmp_path / "one", {"unet": base})
    save(AdapterFile(adapter.weights), tmp_path / "peft", "peft", BaseNames.of({"unet": base}))
    given = load_file(tmp_path / "one" / "adapter_model.safetensors")
    written = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    assert given.keys() == written.keys() and all(torch.equal(given[name], written[name]) for name in given)
    again = peft.PeftModel.from_pretrained(Mixed(), str(tmp_path / "peft")).merge_and_unload()
    for own, theirs in zip(again.parameters(), model.merge_and_unload().parameters(), strict=True):
        assert torch.equal(own, theirs)


@torch.no_grad()
def test_oft_of_onetrainer_turns_as_its_own_formula_does(tmp_path: Path) -> None:
    """OneTrainer, ``OFTModule``: its rotations are peft's of five terms, of linear layers (x R) and kernels (W R)."""
    rotation = oft.OFTRotationModule(8, 6, 4, 32, use_cayley_neumann=True, num_cayley_neumann_terms=5)
    shared = oft.OFTRotationModule(1, 6, 4, 288, block_share=True)
    torch.manual_seed(1)
    for module in (rotation, shared):
        module.weight.copy_(torch.randn_like(module.weight) * 0.1)
    base, factor = Mixed(), 1 / (2 * 3**0.5)
    tensors = {"lora_unet_a.oft_R.weight": rotation.weight / factor, "lora_unet_c.oft_R.weight": shared.weight}
    save_file({**tensors, "lora_unet_a.oft_R.scaled_oft": torch.tensor(True)}, tmp_path / "x.safetensors")
    weights = load(tmp_path / "x.safetensors", {"unet": base}).weights
    x = torch.randn(3, 32)
    turned = base.a.weight + weights["unet.a"].delta_weight(base.a.weight)
    torch.testing.assert_close(x @ turned.T, rotation(x) @ base.a.weight.T)
    block = shared.get_weight()[:4, :4]
    expected = torch.einsum("ork,kc->orc", base.c.weight.reshape(48, -1, 4), block).reshape(base.c.weight.shape)
    torch.testing.assert_close(base.c.weight + weights["unet.c"].delta_weight(base.c.weight), expected)


def test_a_series_of_older_releases_of_peft_is_refused(tmp_path: Path) -> None:
    of_peft(next(case for case, (name, _) in enumerate(READ_OF_PEFT) if name == "OFTConfig"), tmp_path)
    path = tmp_path / "adapter_config.json"
    config = {key: value for key, value in json.loads(path.read_text()).items() if key != "peft_version"}
    path.write_text(json.dumps(config))
    with raises_code("weights.unsupported_method", "a release of peft whose OFT was another one"):
        load(tmp_path, {"unet": Mixed()})


def test_numbers_of_a_convolution_that_only_peft_s_patterns_tell_are_refused(tmp_path: Path) -> None:
    model = peft.get_peft_model(Mixed(), peft.IA3Config(target_modules=["a", "c"], feedforward_modules=["c"]))
    model.save_pretrained(str(tmp_path))
    with raises_code("weights.unsupported_method", "of the convolution's inputs or of its outputs"):
        load(tmp_path, {"unet": Mixed()})


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}, {"alpha_pattern": {"a": 3}}])
def test_peft_s_own_lora_is_read(options: dict[str, Any], tmp_path: Path) -> None:
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["a"], init_lora_weights=False, **options)
    model = peft.get_peft_model(Model(), config)
    model.save_pretrained(str(tmp_path))
    base = Model()
    own = {name.replace("base_layer.", ""): tensor for name, tensor in model.base_model.model.state_dict().items()}
    base.load_state_dict({name: tensor for name, tensor in own.items() if "lora_" not in name})
    read = load(tmp_path, {"unet": base}).weights["unet.a"]
    merged = model.merge_and_unload().a.weight
    weight = base.a.weight.detach()
    torch.testing.assert_close(weight + read.delta_weight(weight), merged.detach(), rtol=1e-5, atol=1e-5)
