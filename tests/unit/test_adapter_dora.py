"""DoRA's plan and numbers: what they refuse and describe. Its mathematics is in the parity tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.errors import raises_code
from veneer.adapter.apply import apply_adapter
from veneer.adapter.dora import DoraFactors, DoraSpec
from veneer.adapter.inject import inject
from veneer.adapter.lora import LoraFactors, LoraSpec
from veneer.adapter.merge import merge
from veneer.adapter.registry import from_tensors, to_tensors
from veneer.engine.quantized import quantize
from veneer.weights.file import FILE_NAME, AdapterFile, load, save
from veneer.weights.formats.diffusers import METADATA_KEY
from veneer.weights.formats.kohya import KOHYA
from veneer.weights.formats.protocol import BaseNames


def lora(out: int = 6, into: int = 6, conv: bool = False) -> LoraFactors:
    generator = torch.Generator().manual_seed(0)
    kernel, place = ((3, 3), (1, 1)) if conv else ((), ())
    down = torch.randn(2, into, *kernel, generator=generator)
    return LoraFactors(down, torch.randn(out, 2, *place, generator=generator), 3.0)


def dora(axis: int = 0, conv: bool = False) -> DoraFactors:
    """Numbers of a layer with as many inputs as outputs, where a shape alone could be taken for either."""
    places = (1, 1) if conv else ()
    return DoraFactors(lora(conv=conv), torch.rand(*((6, 1) if axis == 0 else (1, 6)), *places) + 0.5)


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"unet": nn.ModuleDict({"x": nn.Linear(6, 6), "y": nn.Linear(6, 6)})}


def test_peft_and_back() -> None:
    spec = DoraSpec(rank=8, alpha=2.5, targets=("to_k", "to_q"), dropout=0.25)
    config = spec.to_peft()
    assert config.use_dora and (config.r, config.lora_alpha) == (8, 2.5)
    assert DoraSpec.from_peft(config) == spec
    for plan, other in ((LoraSpec, config), (DoraSpec, LoraConfig(target_modules=["to_q"]))):
        with raises_code("adapter.unsupported_peft_config") as error:
            plan.from_peft(other)
        assert "use_dora" in str(error.value)


@pytest.mark.parametrize("shape", [(6,), (5, 1), (1, 5), (6, 6), (6, 1, 1, 1), ()])
def test_refuses_magnitudes_that_do_not_fit(shape: tuple[int, ...]) -> None:
    with raises_code("adapter.bad_factors") as error:
        DoraFactors(lora(), torch.ones(shape))
    assert str(error.value).endswith("are neither of the outputs nor of the inputs of (6, 6)")


def test_refuses_a_layer_with_an_output_of_zeros() -> None:
    nets = networks()
    with torch.no_grad():
        nets["unet"].x.weight[3] = 0
    before = dict(nets["unet"].named_modules())
    with raises_code("adapter.zero_direction") as error:
        inject(nets, {"unet": DoraSpec(2, 2.0, ("y", "x"))}, 0)
    assert "unet.x has an output whose weights are all zero" in str(error.value)
    assert dict(nets["unet"].named_modules()) == before
    inject(nets, {"unet": DoraSpec(2, 2.0, ("y",))}, 0)


def test_a_slice_of_zeros_stays_one_when_merged() -> None:
    weight = torch.zeros(6, 6)
    untrained = DoraFactors(LoraFactors(torch.ones(2, 6), torch.zeros(6, 2), 2.0), torch.zeros(6, 1))
    assert torch.equal(untrained.delta_weight(weight), weight)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("conv", [False, True])
def test_tensors_and_back_to_the_bit(axis: int, conv: bool) -> None:
    weights = {"unet.a.b": dora(axis, conv), "unet.c": lora()}
    back = from_tensors(to_tensors(weights))
    assert back.keys() == weights.keys()
    for path, each in weights.items():
        assert type(back[path]) is type(each)
        state = back[path].state_dict()
        assert all(torch.equal(state[part], tensor) for part, tensor in each.state_dict().items())


def test_it_counts_and_describes_itself() -> None:
    each = dora()
    assert each.parameter_count == 2 * 6 + 6 * 2 + 6
    assert each.hyperparameters == {"rank": 2, "alpha": 3.0}
    assert not each.is_untrained and each.low_rank() is None
    assert DoraFactors(LoraFactors(torch.ones(2, 6), torch.zeros(6, 2), 2.0), torch.ones(6, 1)).is_untrained


def test_load_wants_its_own_method() -> None:
    for spec, other in ((DoraSpec(2, 2.0, ("x",)), lora()), (LoraSpec(2, 2.0, ("x",)), dora())):
        injection = inject(networks(), {"unet": spec}, 0)
        with raises_code("adapter.other_method") as error:
            injection.load({"unet.x": other})
        assert "unet.x has a " in str(error.value)


def test_load_takes_the_strength_of_the_file() -> None:
    nets = networks()
    injection = inject(nets, {"unet": DoraSpec(2, 1.5, ("x",))}, 0)
    numbers, x = dora(), torch.randn(3, 6)
    injection.load({"unet.x": numbers})
    adapted = nets["unet"].x(x)
    injection.eject()
    merge(nets, [({"unet.x": numbers}, 1.0)])
    torch.testing.assert_close(nets["unet"].x(x), adapted)


def test_magnitudes_over_inputs_are_merged_and_refused_elsewhere(tmp_path: Path) -> None:
    numbers, nets = {"unet.x": dora(axis=1)}, networks()
    before = nets["unet"].x.weight.clone()
    merged = merge(nets, [(numbers, 1.0)])
    direction = before + numbers["unet.x"].lora.delta_weight(before)
    torch.testing.assert_close(nets["unet"].x.weight, direction * (numbers["unet.x"].magnitude / direction.norm(dim=0)))
    merged.undo()
    assert torch.equal(nets["unet"].x.weight, before)
    injection = inject(networks(), {"unet": DoraSpec(2, 2.0, ("x",))}, 0)
    held = networks()
    quantize(held["unet"], "torchao_int8")
    for act in (
        lambda: injection.load(numbers),
        lambda: save(AdapterFile(numbers), tmp_path / FILE_NAME),
        lambda: apply_adapter(held, numbers).__enter__(),
    ):
        with raises_code("adapter.magnitudes_over_inputs"):
            act()
    assert not list(tmp_path.iterdir()) and not held["unet"].x._forward_hooks


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
def test_kohya_s_shape_says_which_axis(axis: int, conv: bool, tmp_path: Path) -> None:
    numbers = dora(axis, conv)
    layer = nn.Conv2d(6, 6, 3) if conv else nn.Linear(6, 6)
    networks = {"unet": nn.ModuleDict({"x": layer})}
    tensors = KOHYA.write({"unet.x": numbers}, BaseNames(networks))[0].tensors
    sides = (6, 1) if axis == 0 else (1, 6)
    assert tuple(tensors["lora_unet_x.dora_scale"].shape) == (*sides, 1, 1) if conv else sides
    assert tensors["lora_unet_x.alpha"] == 3.0
    save_file(tensors, tmp_path / "x.safetensors")
    read = load(tmp_path / "x.safetensors", networks).weights["unet.x"]
    assert isinstance(read, DoraFactors) and read.axis == axis


def test_peft_s_magnitudes_are_of_outputs_in_any_shape(tmp_path: Path) -> None:
    """Of a convolution they are (1, out, 1, 1), which in kohya's files would be over inputs."""
    save(AdapterFile({"unet.x": dora(conv=True), "unet.y": dora()}), tmp_path / FILE_NAME)
    read = load(tmp_path).weights
    assert [each.axis for each in read.values() if isinstance(each, DoraFactors)] == [0, 0]


def file_of(tmp_path: Path, tensors: dict[str, Tensor], **config: object) -> Path:
    path = tmp_path / "x.safetensors"
    prefixed = {f"unet.{key}": value for key, value in config.items()}
    save_file(tensors, path, {METADATA_KEY: json.dumps(prefixed)} if config else None)
    return path


def test_a_file_is_whole_and_its_config_of_one_mind_with_it(tmp_path: Path) -> None:
    pair = {"unet.x.lora_A.weight": lora().down, "unet.x.lora_B.weight": lora().up}
    whole = {**pair, "unet.x.lora_magnitude_vector": torch.ones(6)}
    for tensors, config, code in [
        (
            {"unet.x.lora_A.weight": lora().down, "unet.x.lora_magnitude_vector": torch.ones(6)},
            {},
            "adapter.missing_part",
        ),
        (whole, {"r": 2, "lora_alpha": 2}, "weights.config_contradicts"),
        (pair, {"r": 2, "lora_alpha": 2, "use_dora": True}, "weights.config_contradicts"),
        ({**pair, "unet.x.lora_magnitude_vector": torch.ones(5)}, {}, "adapter.bad_factors"),
        ({**whole, "unet.x.lora_magnitude_vector.weight": torch.ones(6)}, {}, "weights.tensor_twice"),
    ]:
        with raises_code(code):
            load(file_of(tmp_path, tensors, **config))
    assert load(file_of(tmp_path, whole)).weights["unet.x"].method.name == "dora"
    told = load(file_of(tmp_path, whole, r=2, lora_alpha=7, use_dora=True)).weights["unet.x"]
    assert told.hyperparameters["alpha"] == 7


def test_one_network_has_one_method_in_a_file(tmp_path: Path) -> None:
    with raises_code("weights.mixed_methods") as error:
        save(AdapterFile({"unet.x": dora(), "unet.y": lora()}), tmp_path / FILE_NAME)
    assert "DoRA and LoRA" in str(error.value)
    save(AdapterFile({"unet.x": dora(), "text_encoder.y": lora()}), tmp_path / FILE_NAME)
    assert {path: each.method.name for path, each in load(tmp_path).weights.items()} == {
        "unet.x": "dora",
        "text_encoder.y": "lora",
    }
