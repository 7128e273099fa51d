"""The mathematics of LoRA against closed forms, worked out in numpy, and against peft."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
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

from tests.equations import lora_forward
from tests.tolerance import distance, output_error
from veneer.adapter.inject import Injection, inject
from veneer.adapter.lora import LoraFactors, LoraSpec, delta_weight
from veneer.adapter.merge import merge

SPEC = LoraSpec(rank=3, alpha=7.0, targets=("to_q", "to_k", "to_v", "to_out.0", "conv1", "proj_in"))
width = st.integers(1, 9)
strength = st.sampled_from([0.25, 1.0, 3.0, 16.0])
seeds = st.integers(0, 2**31)


def draw(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def correlate(x: np.ndarray, weight: np.ndarray, stride: int, padding: int) -> np.ndarray:
    """A convolution as its definition has it, one output place after another."""
    padded = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    height, width = weight.shape[2:]
    rows = range(0, padded.shape[2] - height + 1, stride)
    columns = range(0, padded.shape[3] - width + 1, stride)
    windows = [[padded[:, :, row : row + height, column : column + width] for column in columns] for row in rows]
    return np.einsum("yxbikl,oikl->boyx", np.array(windows), weight)


@given(out=width, into=width, rank=width, batch=st.integers(1, 4), alpha=strength, seed=seeds)
@settings(max_examples=60, deadline=None)
def test_linear_is_the_closed_form(out: int, into: int, rank: int, batch: int, alpha: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, weight, bias = draw(generator, batch, into), draw(generator, out, into), draw(generator, out)
    factors = LoraFactors(draw(generator, rank, into), draw(generator, out, rank), alpha)
    a, b = factors.down.numpy(), factors.up.numpy()
    expected = x.numpy() @ weight.numpy().T + bias.numpy() + alpha / rank * (x.numpy() @ a.T @ b.T)
    np.testing.assert_allclose(lora_forward(x, weight, bias, factors).numpy(), expected, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(delta_weight(factors).numpy(), alpha / rank * b @ a, rtol=1e-11, atol=1e-11)


@given(
    channels=st.tuples(width, width),
    rank=width,
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    side=st.integers(3, 6),
    alpha=strength,
    seed=seeds,
)
@settings(max_examples=60, deadline=None)
def test_convolution_is_the_closed_form(
    channels: tuple[int, int],
    rank: int,
    kernel: tuple[int, int],
    stride: int,
    padding: int,
    side: int,
    alpha: float,
    seed: int,
) -> None:
    out, into = channels
    generator = torch.Generator().manual_seed(seed)
    x, weight = draw(generator, 2, into, side, side), draw(generator, out, into, *kernel)
    factors = LoraFactors(draw(generator, rank, into, *kernel), draw(generator, out, rank, 1, 1), alpha)
    delta = alpha / rank * np.einsum("or,rikl->oikl", factors.up[:, :, 0, 0].numpy(), factors.down.numpy())
    expected = correlate(x.numpy(), weight.numpy() + delta, stride, padding)
    actual = lora_forward(x, weight, None, factors, stride=stride, padding=padding)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(delta_weight(factors).numpy(), delta, rtol=1e-11, atol=1e-11)


def peft_layer(layer: nn.Module, rank: int, alpha: int) -> LoraLayer:
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=["0"], init_lora_weights=False)
    (wrapped,) = inject_adapter_in_model(config, nn.Sequential(layer).double())
    assert isinstance(wrapped, LoraLayer)
    return wrapped.double()


@pytest.mark.parametrize("kernel", [None, 1, 3])
@given(out=width, into=width, rank=width, batch=st.integers(1, 4), seed=seeds)
@settings(max_examples=25, deadline=None)
def test_agrees_with_peft(kernel: int | None, out: int, into: int, rank: int, batch: int, seed: int) -> None:
    layer = nn.Linear(into, out) if kernel is None else nn.Conv2d(into, out, kernel, stride=2, padding=1)
    wrapped = peft_layer(layer, rank, alpha=5)
    factors = LoraFactors(wrapped.lora_A["default"].weight.detach(), wrapped.lora_B["default"].weight.detach(), 5.0)
    assert layer.bias is not None
    x = draw(torch.Generator().manual_seed(seed), batch, into, *(() if kernel is None else (5, 5)))
    geometry = {} if kernel is None else {"stride": 2, "padding": 1}
    actual = lora_forward(x, layer.weight.detach(), layer.bias.detach(), factors, **geometry)
    torch.testing.assert_close(actual, wrapped(x).detach(), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(delta_weight(factors), wrapped.get_delta_weight("default"), rtol=1e-11, atol=1e-11)


@pytest.fixture
def unet(tiny_base: Path) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(tiny_base, subfolder="unet")


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(2, 4, 8, 8, generator=generator)
    return noisy, torch.tensor([3, 700]), torch.randn(2, 5, 32, generator=generator)


def run(unet: UNet2DConditionModel) -> Tensor:
    noisy, timestep, text = inputs()
    return unet(noisy.to(unet.dtype), timestep, text.to(unet.dtype)).sample


def fill(injection: Injection, size: float = 0.1) -> None:
    """Give B some numbers, as training would."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in injection.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * size)


def digest(module: nn.Module) -> dict[str, str]:
    named = module.state_dict()
    return {
        name: hashlib.sha256(t.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, t in named.items()
    }


def frozen_digest(module: nn.Module) -> set[tuple[str, str]]:
    """Of all but A and B, by the name each has without an adapter."""
    return {(n.replace(".base_layer", ""), h) for n, h in digest(module).items() if "lora_" not in n}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_delta_is_zero_at_the_start(unet: UNet2DConditionModel, dtype: torch.dtype) -> None:
    unet.to(dtype)
    with torch.no_grad():
        before = run(unet)
        injection = inject({"unet": unet}, {"unet": SPEC}, seed=0)
        after = run(unet)
    assert torch.equal(before, after)
    assert all(torch.count_nonzero(delta_weight(each)) == 0 for each in injection.weights().values())
    assert all(torch.count_nonzero(each.down) for each in injection.weights().values())


def train(unet: UNet2DConditionModel, injection: Injection, steps: int) -> Iterator[float]:
    optimizer = torch.optim.AdamW(injection.parameters(), lr=1e-2)
    goal = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (run(unet) - goal).square().mean()
        loss.backward()
        optimizer.step()
        yield loss.item()


def test_training_changes_a_and_b_alone(unet: UNet2DConditionModel) -> None:
    before = frozen_digest(unet)
    unet.requires_grad_(True)
    injection = inject({"unet": unet}, {"unet": SPEC}, seed=0)
    start = injection.weights()
    losses = list(train(unet, injection, 4))
    assert losses[-1] < losses[0]
    assert frozen_digest(unet) == before
    trained = {id(parameter) for parameter in injection.parameters()}
    assert len(trained) == 2 * len(start) > 0
    for name, parameter in unet.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad == (id(parameter) in trained), name
    for path, each in injection.weights().items():
        assert not torch.equal(each.down, start[path].down), path
        assert torch.count_nonzero(each.up), path


def test_gradient_checkpointing_gives_the_same_gradients(unet: UNet2DConditionModel) -> None:
    injection = inject({"unet": unet}, {"unet": SPEC}, seed=0)
    fill(injection)
    unet.train()

    def gradients() -> list[Tensor]:
        return list(torch.autograd.grad(run(unet).square().sum(), injection.parameters()))

    plain = gradients()
    unet.enable_gradient_checkpointing()
    assert unet.is_gradient_checkpointing
    for one, other in zip(plain, gradients(), strict=True):
        assert torch.equal(one, other)
        assert torch.count_nonzero(one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_merged_is_unmerged_and_undone_is_the_base(unet: UNet2DConditionModel, dtype: torch.dtype) -> None:
    unet.to(dtype)
    before, base, error = digest(unet), run(unet), output_error(run, unet, dtype)
    kinds = [type(module) for module in unet.modules()]
    injection = inject({"unet": unet}, {"unet": SPEC}, seed=0)
    fill(injection)
    unmerged = run(unet)
    injection.eject()
    merged = merge({"unet": unet}, [(injection.weights(), 1.0)])
    # nothing but the base's own layers runs: merged, it costs what the base costs
    assert [type(module) for module in unet.modules()] == kinds
    assert distance({"": run(unet)}, {"": unmerged}) <= error
    assert distance({"": unmerged}, {"": base}) > 5 * error
    merged.undo()
    assert digest(unet) == before
    assert torch.equal(run(unet), base)


@torch.no_grad()
def test_injected_layers_are_the_pure_function(unet: UNet2DConditionModel) -> None:
    injection = inject({"unet": unet}, {"unet": SPEC}, seed=0)
    fill(injection)
    generator = torch.Generator().manual_seed(4)
    for path, factors in injection.weights().items():
        layer = unet.get_submodule(path.removeprefix("unet."))
        assert isinstance(layer, LoraLayer)
        inner = layer.get_base_layer()
        linear = isinstance(inner, nn.Linear)
        x = torch.randn(2, factors.down.shape[1], *(() if linear else (6, 6)), generator=generator)
        geometry = {} if linear else {"stride": inner.stride, "padding": inner.padding}
        expected = lora_forward(x, inner.weight, inner.bias, factors, **geometry)
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-6)


def test_a_is_normal_with_deviation_one_over_rank() -> None:
    network = nn.Sequential(nn.Linear(4096, 64))
    injection = inject({"unet": network}, {"unet": LoraSpec(rank=8, alpha=8, targets=("0",))}, seed=5)
    a = injection.weights()["unet.0"].down
    error = 1 / 8 / (a.numel()) ** 0.5
    assert abs(a.mean().item()) < 4 * error
    assert abs(a.std().item() - 1 / 8) < 4 * error  # the deviation's own standard error is smaller by the root of 2
