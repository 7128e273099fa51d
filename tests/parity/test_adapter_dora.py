"""The mathematics of DoRA against its closed form, worked out in numpy, and against peft."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from tests.networks import NETWORKS, Network, gradients, worst
from tests.tolerance import AS_NEAR, distance, output_error, rounding
from veneer.adapter.apply import apply_adapter
from veneer.adapter.dora import DoraFactors, DoraSpec
from veneer.adapter.inject import Injection, inject
from veneer.adapter.lora import LoraFactors
from veneer.adapter.merge import merge
from veneer.engine import MemoryLevel, prepare
from veneer.engine.memory_levels import MEMORY_LEVELS
from veneer.engine.quantized import quantize

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "conv1", "proj_in")
SPEC = DoraSpec(rank=3, alpha=7.0, targets=TARGETS)
width = st.integers(1, 9)
seeds = st.integers(0, 2**31)


def draw(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def factors(generator: torch.Generator, shape: tuple[int, ...], rank: int, axis: int = 0) -> DoraFactors:
    """Numbers of one layer, float64, alpha 5."""
    places = (1,) * (len(shape) - 2)
    lora = LoraFactors(draw(generator, rank, *shape[1:]), draw(generator, shape[0], rank, *places), 5.0)
    magnitude = draw(generator, *((shape[0], 1) if axis == 0 else (1, shape[1])), *places)
    return DoraFactors(lora, magnitude)


def closed_form(weight: np.ndarray, given_: DoraFactors) -> np.ndarray:
    """W' of eq. 5, slice after slice along the axis of the magnitudes."""
    lora = given_.lora
    delta = lora.scale * np.einsum("or,r...->o...", lora.up.flatten(1).numpy(), lora.down.numpy())
    direction = np.moveaxis(weight + delta, given_.axis, 0)
    magnitudes = given_.magnitude.flatten().numpy()
    scaled = [m * part / np.sqrt((part**2).sum()) for m, part in zip(magnitudes, direction, strict=True)]
    return np.moveaxis(np.stack(scaled), 0, given_.axis)


@given(out=width, into=width, rank=width, kernel=st.sampled_from([0, 1, 3]), axis=st.integers(0, 1), seed=seeds)
@settings(max_examples=80, deadline=None)
def test_delta_weight_is_the_closed_form(out: int, into: int, rank: int, kernel: int, axis: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (out, into, *((kernel, kernel) if kernel else ()))
    weight, numbers = draw(generator, *shape), factors(generator, shape, rank, axis)
    expected = closed_form(weight.numpy(), numbers) - weight.numpy()
    np.testing.assert_allclose(numbers.delta_weight(weight).numpy(), expected, rtol=1e-9, atol=1e-9)
    assert numbers.squared_norm(weight) == pytest.approx(float((expected**2).sum()), rel=1e-9)


def peft_layer(layer: nn.Module, rank: int, dropout: float = 0.0) -> LoraLayer:
    options = {"r": rank, "lora_alpha": 5, "lora_dropout": dropout, "use_dora": True, "init_lora_weights": False}
    (wrapped,) = inject_adapter_in_model(LoraConfig(target_modules=["0"], **options), nn.Sequential(layer).double())
    assert isinstance(wrapped, LoraLayer)
    return wrapped.double()


def of_peft(wrapped: LoraLayer) -> DoraFactors:
    a, b = wrapped.lora_A["default"].weight.detach(), wrapped.lora_B["default"].weight.detach()
    lora = LoraFactors(a, b, 5.0)
    magnitude = wrapped.lora_magnitude_vector["default"].weight.detach()
    return DoraFactors(lora, magnitude.reshape(-1, *(1 for _ in lora.shape[1:])))


@pytest.mark.parametrize("kernel", [None, 1, 3])
@given(out=width, into=width, rank=width, batch=st.integers(1, 4), seed=seeds)
@settings(max_examples=25, deadline=None)
def test_agrees_with_peft(kernel: int | None, out: int, into: int, rank: int, batch: int, seed: int) -> None:
    layer = nn.Linear(into, out) if kernel is None else nn.Conv2d(into, out, kernel, stride=2, padding=1)
    wrapped = peft_layer(layer, rank)
    generator = torch.Generator().manual_seed(seed)
    magnitude = wrapped.lora_magnitude_vector["default"].weight
    magnitude.data = magnitude.data * (1 + 0.3 * draw(generator, *magnitude.shape))
    x = draw(generator, batch, into, *(() if kernel is None else (5, 5)))
    numbers, adapted = of_peft(wrapped), wrapped(x).detach()
    merged = copy.deepcopy(layer)
    merged.weight.data += numbers.delta_weight(merged.weight.data)
    torch.testing.assert_close(merged(x).detach(), adapted, rtol=1e-9, atol=1e-9)
    wrapped.merge(safe_merge=True)
    torch.testing.assert_close(merged.weight.data, wrapped.get_base_layer().weight.data, rtol=1e-9, atol=1e-9)


def filled(network: nn.Module, spec: DoraSpec, seed: int = 2) -> Injection:
    """The network with a DoRA in it that has been moved from its start, as training would."""
    injection = inject({"unet": network}, {"unet": spec}, seed=0)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in injection.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter * (1 + 0.2 * noise) if "magnitude" in name else parameter + 0.1 * noise)
    return injection


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["sd, all of it", "clip"])
def test_gradients_are_those_of_peft_s_own_dora(kind: str, dropout: float) -> None:
    """Of A, B and m, with alpha unlike the rank: the same numbers in a network that peft alone put its layers in."""
    network = NETWORKS[kind]
    ours, theirs = network.make(), network.make()
    theirs.load_state_dict(ours.state_dict())
    injection = filled(ours, DoraSpec(3, 7.0, network.targets, dropout))
    config = LoraConfig(r=3, lora_alpha=7, lora_dropout=dropout, target_modules=list(network.targets), use_dora=True)
    inject_adapter_in_model(config, theirs)
    theirs.load_state_dict(ours.state_dict())
    theirs.train(ours.training)
    for name, parameter in theirs.named_parameters():
        parameter.requires_grad_("lora_" in name)
    output, found = gradients(network, ours)
    expected_output, expected = gradients(network, theirs)
    assert torch.equal(output, expected_output)
    assert found.keys() == expected.keys() and len(found) == len(injection.parameters())
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
    assert any("magnitude" in name and gradient.any() for name, gradient in found.items())


@pytest.mark.parametrize("kind", ["sd, all of it", "clip", "flux"])
def test_gradients_are_the_same_at_every_level_of_memory(kind: str) -> None:
    """Against the truth in float64: no level is further from it than peft in float32 is, but for luck."""
    network = NETWORKS[kind]
    model = network.make()
    filled(model, DoraSpec(3, 7.0, network.targets))
    truth_output, truth = gradients(network, copy.deepcopy(model).double(), torch.float64)
    _, reference = gradients(network, model)
    output_error, error = allowed(network, model)
    for memory in MEMORY_LEVELS:
        prepared = prepare(model, memory)
        found_output, found = gradients(network, model)
        prepared.undo()
        assert found.keys() == reference.keys(), memory
        assert worst({"": found_output}, {"": truth_output}) <= output_error, memory
        assert worst(found, truth) <= error, memory
        assert distance(found, truth) <= AS_NEAR * distance(reference, truth), memory


def allowed(network: Network, model: nn.Module) -> tuple[float, float]:
    """How far output and gradients in float32 may be from the truth."""
    return rounding(lambda wide: gradients(network, wide, torch.float64), model)


@pytest.mark.parametrize("memory", MEMORY_LEVELS)
def test_levels_draw_peft_s_masks(memory: MemoryLevel) -> None:
    network = NETWORKS["sd, all of it"]
    model = network.make().train()
    filled(model, DoraSpec(3, 7.0, network.targets, dropout=0.5))
    output, reference = gradients(network, model)
    output_error, error = allowed(network, model)
    prepare(model, memory)
    found_output, found = gradients(network, model)
    assert worst({"": found_output}, {"": output}) <= 2 * output_error
    assert worst(found, reference) <= 2 * error


@pytest.fixture
def unet(tiny_base: Path) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(tiny_base, subfolder="unet")


def run(unet: UNet2DConditionModel) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    noisy, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 5, 32, generator=generator)
    output: Tensor = unet(noisy.to(unet.dtype), torch.tensor([3, 700]), text.to(unet.dtype)).sample
    return output


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_it_starts_as_the_base_to_the_bit(unet: UNet2DConditionModel, dtype: torch.dtype) -> None:
    unet.to(dtype)
    before = run(unet)
    injection = inject({"unet": unet}, {"unet": SPEC}, seed=0)
    assert torch.equal(run(unet), before)
    assert {parameter.dtype for parameter in injection.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_merged_is_unmerged_and_undone_is_the_base(unet: UNet2DConditionModel, dtype: torch.dtype) -> None:
    unet.to(dtype)
    base, state = run(unet), {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    error = output_error(run, unet, dtype)
    injection = filled(unet, SPEC)
    unmerged = run(unet)
    injection.eject()
    merged = merge({"unet": unet}, [(injection.weights(), 1.0)])
    assert distance({"": run(unet)}, {"": unmerged}) <= error
    assert distance({"": unmerged}, {"": base}) > 5 * error
    merged.undo()
    assert all(torch.equal(tensor, state[name]) for name, tensor in unet.state_dict().items())
    assert torch.equal(run(unet), base)


@torch.no_grad()
def test_strengths_weigh_what_it_adds(unet: UNet2DConditionModel) -> None:
    """W0 + w (W' - W0), of W0 for each of several adapters, so that their order does not matter."""
    injection = filled(unet, SPEC)
    injection.eject()
    weights, name = injection.weights(), next(iter(injection.weights()))
    layer = unet.get_submodule(name.removeprefix("unet."))
    before = layer.weight.clone()
    delta = weights[name].delta_weight(before)
    for adapters in ([(weights, 0.5), (weights, -2.0)], [(weights, -2.0), (weights, 0.5)]):
        merged = merge({"unet": unet}, adapters)
        torch.testing.assert_close(layer.weight, before - 1.5 * delta, rtol=1e-5, atol=1e-5)
        merged.undo()


@pytest.mark.parametrize("format", ["torchao_int8", "bnb_nf4"])
def test_a_quantised_base_trains_and_is_applied_beside(unet: UNet2DConditionModel, format: str) -> None:
    """As peft computes it on the weights that the quantised ones read as, in a base that is loaded in full."""
    spec = DoraSpec(3, 7.0, ("to_q", "to_k", "to_v", "to_out.0"))
    quantize(unet, format)
    full = UNet2DConditionModel.from_config(unet.config)
    full.load_state_dict(unet.state_dict())
    base = run(unet).detach()
    one, other = filled(unet, spec), filled(full, spec)
    torch.testing.assert_close(run(unet), run(full), rtol=1e-4, atol=1e-4)
    found = torch.autograd.grad(run(unet).square().sum(), one.parameters())
    expected = torch.autograd.grad(run(full).square().sum(), other.parameters())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    adapted = run(unet).detach()
    one.eject()
    assert torch.equal(run(unet), base)
    with torch.no_grad(), apply_adapter({"unet": unet}, one.weights()):
        torch.testing.assert_close(run(unet), adapted, rtol=1e-4, atol=1e-4)
    assert torch.equal(run(unet), base)
