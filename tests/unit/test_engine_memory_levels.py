"""A prepared network, and that it is itself again afterwards."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from diffusers import UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import veneer
from benchmarks.saved_tensors import saved_tensor_bytes
from tests.errors import raises_code
from tests.networks import NETWORKS, Network, adapt, gradients, worst
from tests.tolerance import rounding
from veneer.engine import MemoryLevel, prepare, recompute, undo

LEVELS: tuple[MemoryLevel, ...] = ("exact", "lean", "leaner", "checkpoint")


def anatomy(model: nn.Module) -> list[Any]:
    """All that a network is: classes, attributes, hooks, bits."""
    parts: list[Any] = []
    for name, module in model.named_modules():
        attributes = {key: value for key, value in vars(module).items() if not key.startswith("_") or "check" in key}
        hooks = len(module._forward_hooks), len(module._forward_pre_hooks), dict(module._forward_hooks_always_called)
        parts.append((name, type(module), attributes.keys(), attributes.get("gradient_checkpointing"), hooks))
    bits = {name: (value.clone(), id(value)) for name, value in model.state_dict(keep_vars=True).items()}
    return [parts, bits]


def allowed(network: Network, model: nn.Module) -> float:
    """How far the gradients of two right computations in float32 may be from each other."""
    return 2 * rounding(lambda wide: gradients(network, wide, torch.float64), model)[1]


def same(one: list[Any], other: list[Any]) -> bool:
    bits = [(one[1][name], other[1].get(name)) for name in one[1]]
    return one[0] == other[0] and all(b is not None and torch.equal(a[0], b[0]) and a[1] == b[1] for a, b in bits)


@pytest.mark.parametrize("memory", LEVELS)
@pytest.mark.parametrize("kind", NETWORKS)
def test_undo_leaves_no_trace(kind: str, memory: MemoryLevel) -> None:
    network = NETWORKS[kind]
    model = adapt(network)
    before, (output, reference) = anatomy(model), gradients(network, model)
    prepared = prepare(model, memory)
    assert prepared.memory == memory
    assert same(anatomy(model), before) == (memory == "exact")
    gradients(network, model)
    prepared.undo()
    prepared.undo()
    assert same(anatomy(model), before)
    again, found = gradients(network, model)
    assert torch.equal(again, output) and all(torch.equal(found[name], reference[name]) for name in reference)


@pytest.mark.parametrize("memory", LEVELS)
@pytest.mark.parametrize("kind", NETWORKS)
def test_without_gradients_the_bits_are_the_same(kind: str, memory: MemoryLevel) -> None:
    network = NETWORKS[kind]
    model = adapt(network)
    with torch.no_grad():
        before = network.call(model, torch.float32)
        prepare(model, memory)
        assert torch.equal(network.call(model, torch.float32), before)


def test_what_learns_beside_adapters_learns_the_same() -> None:
    """Norms, biases and a whole block that are not frozen, and a network with no adapters at all."""
    network = NETWORKS["sd"]
    model = adapt(network)
    for name, parameter in model.named_parameters():
        if "norm" in name or "down_blocks.0" in name or name.endswith("bias"):
            parameter.requires_grad_(True)
    _, reference = gradients(network, model)
    assert len(reference) > 50
    prepared = prepare(model, "leaner")
    assert worst(gradients(network, model)[1], reference) <= allowed(network, model)
    prepared.undo()
    whole = network.make().train()
    _, reference = gradients(network, whole)
    prepare(whole, "leaner")
    assert worst(gradients(network, whole)[1], reference) <= allowed(network, whole)


def test_a_frozen_network_passes_its_inputs_gradient_on() -> None:
    model = NETWORKS["sd"].make().requires_grad_(False)
    noisy, text = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 24)

    def run(model: Any, dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
        x = noisy.to(dtype).requires_grad_()
        y = model(x, torch.tensor([3]), text.to(dtype)).sample
        return y.detach(), {"x": torch.autograd.grad(y.square().sum(), x)[0]}

    error = 2 * rounding(lambda wide: run(wide, torch.float64), model)[1]
    _, expected = run(model, torch.float32)
    for memory in LEVELS:
        prepared = prepare(model, memory)
        assert worst(run(model, torch.float32)[1], expected) <= error < 1e-2
        prepared.undo()


def test_adapters_may_come_and_go_while_it_is_prepared() -> None:
    network = NETWORKS["sd"]
    model: Any = network.make().requires_grad_(False)
    kinds = [type(module) for module in model.modules()]
    prepared = prepare(model, "lean")
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "conv1"], init_lora_weights=False))
    model.train()
    _, found = gradients(network, model)
    prepared.undo()
    _, reference = gradients(network, model)
    assert worst(found, reference) <= allowed(network, model)
    assert all(type(module).__module__.partition(".")[0] != "veneer" for module in model.modules())
    prepared = prepare(model, "lean")
    model.unload_lora()
    prepared.undo()
    assert [type(module) for module in model.modules()] == kinds


def test_checkpointing_by_the_network_s_own_switch() -> None:
    network = NETWORKS["sd"]
    model: Any = adapt(network)
    _, reference = gradients(network, model)
    prepared = prepare(model, "leaner")
    model.enable_gradient_checkpointing()
    _, found = gradients(network, model)
    assert worst(found, reference) <= allowed(network, model)
    model.disable_gradient_checkpointing()
    prepared.undo()
    model.enable_gradient_checkpointing()
    prepare(model, "checkpoint").undo()
    assert model.is_gradient_checkpointing, "it was on before"


def test_it_is_saved_loaded_moved_and_copied_as_ever(tmp_path: Path) -> None:
    network = NETWORKS["sd"]
    model: Any = network.make().requires_grad_(False)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    prepared = prepare(model, "lean")
    assert model.state_dict().keys() == state.keys()
    model.save_pretrained(tmp_path)
    loaded = UNet2DConditionModel.from_pretrained(tmp_path)
    assert type(loaded.conv_in) is nn.Conv2d
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    model.load_state_dict(state)
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    assert all(".lora_" in name for name in get_peft_model_state_dict(model))
    _, expected = gradients(network, model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        _, found = gradients(network, twin)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    error = allowed(network, model)
    wide, truth = gradients(network, model.to(torch.float64), torch.float64)
    assert wide.dtype == torch.float64 and worst(expected, truth) <= error
    prepared.undo()


def test_an_error_inside_leaves_nothing_open() -> None:
    network = NETWORKS["sd"]
    model = adapt(network)
    _, reference = gradients(network, model)
    prepare(model, "lean")
    with pytest.raises((RuntimeError, TypeError, ValueError, AttributeError)):
        model(torch.randn(1, 4, 8, 8), torch.tensor([3]), torch.randn(1, 5, 3))
    assert torch._C._autograd._top_saved_tensors_default_hooks(False) is None
    assert worst(gradients(network, model)[1], reference) <= allowed(network, model)


def nothing_is_open() -> bool:
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return hooks is None and torch.overrides._get_current_function_mode() is None and not recompute._CONTEXTS.stack


@pytest.mark.parametrize("kind", ["sd", "sd3"])
def test_an_interrupted_call_leaves_nothing_open(kind: str) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    network = NETWORKS[kind]
    model: Any = adapt(network)
    _, reference = gradients(network, model)
    prepare(model, "lean")
    last = list(model.modules())[-1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        network.call(model, torch.float32)
    assert nothing_is_open()
    assert torch.func.grad(torch.sin)(torch.tensor(0.0)) == 1
    last.remove()
    assert worst(gradients(network, model)[1], reference) <= allowed(network, model)


def test_layers_that_were_wrapped_meanwhile_are_plain_again() -> None:
    """As accelerate's hooks do it, by which diffusers moves layers from the CPU and back one by one."""
    network = NETWORKS["sd, all of it"]
    model = adapt(network)
    output, reference = gradients(network, model)
    prepared = prepare(model, "leaner")
    modules = list(model.modules())
    for module in modules:
        add_hook_to_module(module, ModelHook())
    assert worst(gradients(network, model)[1], reference) <= allowed(network, model)
    prepared.undo()
    for _ in ("with the hooks", "with what they leave behind"):
        again, found = gradients(network, model)
        assert torch.equal(again, output) and all(torch.equal(found[name], reference[name]) for name in reference)
        for module in modules:
            remove_hook_from_module(module)
    prepare(model, "leaner")
    assert worst(gradients(network, model)[1], reference) <= allowed(network, model)


def test_a_layer_that_became_another_meanwhile_is_left_as_it_is() -> None:
    """A parametrisation makes its weight of another that learns, and its class one of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 4, 1)).requires_grad_(False)
    plain = copy.deepcopy(model)
    prepare(model, "lean")
    x, found = torch.randn(2, 3, 6, 6, requires_grad=True), []
    for each in (model, plain):
        parametrizations.weight_norm(each[2]).parametrizations.requires_grad_(True)
        each(x).square().sum().backward()
        found.append([p.grad for p in each[2].parametrizations.parameters()])
    assert len(found[0]) == 2
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("memory", LEVELS)
def test_a_copy_can_be_undone_and_prepared_anew(memory: MemoryLevel) -> None:
    network = NETWORKS["clip"]
    model = adapt(network)
    before = anatomy(model)[0]
    prepared = prepare(model, memory)
    _, expected = gradients(network, model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        undo(twin)
        assert anatomy(twin)[0] == before
        undo(twin)
        again = prepare(twin, memory)
        assert all(torch.equal(expected[name], gradient) for name, gradient in gradients(network, twin)[1].items())
        again.undo()
        assert anatomy(twin)[0] == before
    undo(model)
    assert anatomy(model)[0] == before
    prepared.undo()


def test_a_network_that_is_let_go_is_freed_at_once() -> None:
    model = prepared = None
    gc.disable()
    try:
        model = NETWORKS["clip"].make()
        held = weakref.ref(model)
        prepared = prepare(model, "lean")
        del model, prepared
        assert held() is None
    finally:
        gc.enable()


def test_its_call_has_the_signature_it_had() -> None:
    model = NETWORKS["sd"].make()
    before = inspect.signature(model.forward)
    prepare(model, "lean")
    assert inspect.signature(model.forward) == before


@pytest.mark.parametrize("memory", LEVELS)
def test_hooks_around_a_call_get_what_is_kept(memory: MemoryLevel) -> None:
    """PyTorch asks the innermost alone, and who asks for all on the CPU, or for all to be dropped, must get it."""
    network = NETWORKS["sd"]
    model = adapt(network)
    prepare(model, memory)
    _, expected = gradients(network, model)
    packed: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        _, found = gradients(network, model)
    assert len(packed) > 20
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("memory", LEVELS[:3])
def test_a_call_that_is_recomputed_whole_keeps_its_input_alone(memory: MemoryLevel) -> None:
    network = NETWORKS["sd"]
    model: Any = adapt(network)
    prepare(model, memory)
    noisy, text = torch.randn(1, 4, 8, 8, requires_grad=True), torch.randn(1, 5, 24)
    calls: list[object] = []
    model.register_forward_pre_hook(lambda *arguments: calls.append(None))

    def call(noisy: Tensor) -> Tensor:
        sample: Tensor = model(noisy, torch.tensor([3]), text).sample
        return sample

    expected = torch.autograd.grad(call(noisy).square().sum(), noisy)[0]
    whole: Any = checkpoint
    found = torch.autograd.grad(whole(call, noisy, use_reentrant=False).square().sum(), noisy)[0]
    assert torch.equal(found, expected)
    assert len(calls) == 3
    assert saved_tensor_bytes(lambda: whole(call, noisy, use_reentrant=False)) < 0.05 * saved_tensor_bytes(
        lambda: call(noisy)
    )


def test_a_second_derivative_is_an_error() -> None:
    network = NETWORKS["sd"]
    model = adapt(network)
    prepare(model, "lean")
    loss = network.call(model, torch.float32).square().sum()
    learns = [p for p in model.parameters() if p.requires_grad]
    first = torch.autograd.grad(loss, learns, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        torch.autograd.backward([gradient.square().sum() for gradient in first])


def test_two_networks_at_two_levels_in_one_graph() -> None:
    network = NETWORKS["clip"]
    both = nn.ModuleList([adapt(network), adapt(NETWORKS["sd"])])

    def step(both: Any, dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
        both.zero_grad()
        text = network.call(both[0], dtype)[..., :24]
        loss = both[1](torch.ones(2, 4, 8, 8, dtype=dtype), torch.tensor([3, 4]), text).sample.square().mean()
        loss.backward()
        return loss.detach(), {name: p.grad.clone() for name, p in both.named_parameters() if p.grad is not None}

    error = 2 * rounding(lambda wide: step(wide, torch.float64), both)[1]
    _, reference = step(both, torch.float32)
    prepare(both[0], "leaner")
    prepare(both[1], "lean")
    assert worst(step(both, torch.float32)[1], reference) <= error < 1e-2


def test_what_cannot_be_prepared_is_refused_in_one_line() -> None:
    model = adapt(NETWORKS["sd"])
    with raises_code("engine.unknown_memory_level") as caught:
        prepare(model, "tiny")
    assert str(caught.value) == "memory is 'tiny'; use exact, lean, leaner, checkpoint"
    prepare(model)
    with raises_code("engine.already_prepared") as caught:
        prepare(model)
    assert str(caught.value) == "the network is prepared already; undo that first: veneer.engine.undo(network)"
    bare = nn.Sequential(nn.Flatten())
    prepare(bare)
    with raises_code("engine.already_prepared"):
        prepare(bare)
    plain = nn.Sequential(nn.Linear(2, 2))
    with raises_code("engine.no_blocks") as caught:
        prepare(plain, "checkpoint")
    assert str(caught.value) == "Sequential has no blocks to recompute; use leaner"
    assert type(plain[0]) is nn.Linear


def test_prepare_is_public() -> None:
    assert veneer.prepare is prepare
