"""A prepared network to those who look at it, change it, copy it or call it: peft, accelerate, PyTorch itself."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import peft
import pytest
import torch
from accelerate import Accelerator, cpu_offload
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from peft import inject_adapter_in_model
from torch import Tensor, nn
from torch.nn.parallel import replicate
from torch.nn.utils import parametrize
from transformers.activations import QuickGELUActivation
from transformers.models.t5.modeling_t5 import T5LayerNorm

from tests.networks import NETWORKS, adapt, gradients, worst
from tests.tolerance import rounding
from veneer.engine import MemoryLevel, prepare, undo
from veneer.engine.instance_forward import is_prepared

LEVELS: tuple[MemoryLevel, ...] = ("lean", "leaner")


def small() -> nn.Sequential:
    """Layers of each kind that has weights, frozen; the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(), nn.Flatten(2), nn.Linear(16, 16), nn.LayerNorm(16)]
        layers += [QuickGELUActivation(), T5LayerNorm(16), nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 6)]
        network = nn.Sequential(*layers)
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.5)
    return network.requires_grad_(False)


def picture(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 6, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()


def result(network: nn.Module, x: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The output, and the gradient of the input."""
    x = picture() if x is None else x
    y = network(x)
    return y.detach(), torch.autograd.grad(y.square().sum(), x)[0]


def assert_same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    """The same operations on the same numbers, so the same bits."""
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def attributes(network: nn.Module) -> list[tuple[type, list[str]]]:
    """Classes and names of attributes, but for a class's own ``forward``, which accelerate's hooks leave behind."""
    own = [module.__class__.forward.__get__(module) for module in network.modules()]
    return [
        (type(module), sorted(name for name, value in vars(module).items() if (name, value) != ("forward", forward)))
        for module, forward in zip(network.modules(), own, strict=True)
    ]


@pytest.mark.parametrize("kind", NETWORKS)
def test_classes_and_what_is_printed_stay(kind: str) -> None:
    model = adapt(NETWORKS[kind])
    classes, shown = [type(module) for module in model.modules()], repr(model)
    prepare(model, "leaner")
    assert is_prepared(model)
    assert [type(module) for module in model.modules()] == classes and repr(model) == shown


def test_undo_leaves_the_attributes_that_were_there() -> None:
    network = small()
    before = attributes(network)
    prepare(network, "leaner")
    undo(network)
    assert attributes(network) == before


LINEAR = ["q_proj", "v_proj", "fc1"]
TUNERS: dict[str, Callable[[], Any]] = {
    "lora": lambda: peft.LoraConfig(r=2, target_modules=LINEAR, init_lora_weights=False),
    "dora": lambda: peft.LoraConfig(r=2, target_modules=LINEAR, init_lora_weights=False, use_dora=True),
    "loha": lambda: peft.LoHaConfig(r=2, target_modules=LINEAR, init_weights=False),
    "lokr": lambda: peft.LoKrConfig(r=2, target_modules=LINEAR, init_weights=False),
    "oft": lambda: peft.OFTConfig(r=2, oft_block_size=0, target_modules=LINEAR, init_weights=False),
    "ia3": lambda: peft.IA3Config(target_modules=LINEAR, feedforward_modules=["fc1"], init_ia3_weights=False),
    "glora": lambda: peft.GloraConfig(r=2, target_modules=LINEAR, init_weights=False),
    "whole layers": lambda: peft.LoraConfig(
        r=2, target_modules=["q_proj"], modules_to_save=["fc1"], init_lora_weights=False
    ),
}


def adapted(model: nn.Module, tuner: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return inject_adapter_in_model(TUNERS[tuner](), model).train()


def clip() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return NETWORKS["clip"].make().requires_grad_(False)


@pytest.mark.parametrize("tuner", TUNERS)
def test_adapters_of_peft_learn_the_same_whether_put_in_before_or_after(tuner: str) -> None:
    network = NETWORKS["clip"]
    plain = adapted(clip(), tuner)
    output, expected = gradients(network, plain)
    error = 2 * rounding(lambda wide: gradients(network, wide, torch.float64), plain)[1]
    model = clip()
    prepare(model, "leaner")
    later = adapted(model, tuner)
    assert repr(later) == repr(plain)
    earlier = adapted(clip(), tuner)
    prepare(earlier, "leaner")
    for model in (later, earlier):
        _, found = gradients(network, model)
        assert expected and worst(found, expected) <= error < 1e-2
        undo(model)
        again, found = gradients(network, model)
        assert_same((again, *found.values()), (output, *(expected[name] for name in found)))


@pytest.mark.parametrize("memory", LEVELS)
@pytest.mark.parametrize("first", ["prepared", "hooked"])
def test_accelerate_moves_weights_in_and_out_of_a_prepared_network(memory: MemoryLevel, first: str) -> None:
    """By the backward pass they are tensors without data."""
    plain, network = small(), small()
    cpu_offload(plain, torch.device("cpu"))
    actions = [lambda: prepare(network, memory), lambda: cpu_offload(network, torch.device("cpu"))]
    for action in actions if first == "prepared" else reversed(actions):
        action()
    assert_same(result(network), result(plain))
    for model in (network, plain):
        remove_hook_from_module(model, recurse=True)
    undo(network)
    assert attributes(network) == attributes(plain)
    assert_same(result(network), result(plain))


@pytest.mark.parametrize("last", ["undone", "unhooked"])
@pytest.mark.parametrize("first", ["prepared", "hooked"])
def test_hooks_of_accelerate_leave_what_they_leave_without_us(first: str, last: str) -> None:
    plain, network = small(), small()

    def hook(model: nn.Module) -> None:
        for module in model.modules():
            add_hook_to_module(module, ModelHook())

    before: list[Callable[[], Any]] = [lambda: prepare(network, "leaner"), lambda: hook(network)]
    after: list[Callable[[], Any]] = [lambda: remove_hook_from_module(network, recurse=True), lambda: undo(network)]
    hook(plain)
    expected = result(plain)
    remove_hook_from_module(plain, recurse=True)
    for action in before if first == "prepared" else before[::-1]:
        action()
    assert_same(result(network), expected)
    for action in after if last == "undone" else after[::-1]:
        action()
        assert_same(result(network), expected)
    if last == "undone":
        assert attributes(network) == attributes(plain)
    prepare(network, "leaner")  # once more, over what was left behind
    assert_same(result(network), expected)
    undo(network)
    assert not is_prepared(network) and result(network)


def test_accelerate_wraps_and_unwraps_a_prepared_network() -> None:
    network = small()
    expected = result(network)
    prepare(network, "leaner")
    accelerator: Any = Accelerator(cpu=True)
    wrapped = accelerator.prepare_model(network)
    assert_same(result(wrapped), expected)
    unwrapped = accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
    assert_same(result(unwrapped), expected)
    undo(unwrapped)
    assert_same(result(unwrapped), expected)


@pytest.mark.parametrize("memory", LEVELS)
def test_torch_compile_sees_one_graph_as_of_a_network_that_is_not_prepared(memory: MemoryLevel) -> None:
    def graphs(network: nn.Module) -> tuple[list[int], tuple[Tensor, Tensor]]:
        sizes: list[int] = []

        def compiler(graph: Any, _: object) -> Any:
            sizes.append(len(graph.graph.nodes))
            return graph.forward

        torch._dynamo.reset()
        found = result(torch.compile(network, backend=compiler))
        return sizes, found

    network = small()
    sizes, expected = graphs(network)
    assert len(sizes) == 1
    prepare(network, memory)
    found_sizes, found = graphs(network)
    assert found_sizes == sizes
    assert_same(found, expected)
    network.compile(backend="eager")
    assert_same(result(network), expected)
    undo(network)
    assert_same(result(network), expected)
    torch._dynamo.reset()


def copies(network: nn.Module) -> Iterator[nn.Module]:
    yield copy.deepcopy(network)
    yield pickle.loads(pickle.dumps(network))


@pytest.mark.parametrize("memory", LEVELS)
def test_a_copy_stands_on_its_own(memory: MemoryLevel) -> None:
    network, plain = small(), small()
    prepare(network, memory)
    expected = result(network)
    for twin in copies(network):
        assert is_prepared(twin)
        for model in (twin, plain):
            model.load_state_dict({name: 2 * value for name, value in small().state_dict().items()})
        assert_same(result(twin), result(plain))
        assert_same(result(network), expected)
        twin[0].requires_grad_(True)
        twin(picture()).square().sum().backward()
        assert twin[0].weight.grad is not None and network[0].weight.grad is None
        undo(twin)
        assert is_prepared(network) and not is_prepared(twin)
    twin = copy.deepcopy(network)
    del network
    assert_same(result(twin), expected)


def test_a_copy_of_a_hooked_network_stands_on_its_own() -> None:
    network = small()
    prepare(network, "leaner")
    for module in network.modules():
        add_hook_to_module(module, ModelHook())
    twin, plain = copy.deepcopy(network), small()
    for model in (twin, plain):
        model.load_state_dict({name: 2 * value for name, value in small().state_dict().items()})
    del network
    assert_same(result(twin), result(plain))


def test_a_shallow_copy_says_so_when_its_original_is_gone() -> None:
    network = small()
    prepare(network)
    twin = copy.copy(network)
    assert_same(result(twin), result(network))
    del network
    with pytest.raises(RuntimeError, match=r"use copy\.deepcopy"):
        twin(picture())


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("memory", LEVELS)
def test_replicas_of_data_parallel_use_their_own_weights(memory: MemoryLevel, learns: bool) -> None:
    """PyTorch's own function, but for the copies that it has made on several GPUs."""

    def broadcast(tensors: list[Tensor], devices: list[int], detach: bool = False) -> list[list[Tensor]]:
        return [[(number + 1) * tensor for tensor in tensors] for number, _ in enumerate(devices)]

    module = "torch.nn.parallel.replicate"
    plain, network = small().requires_grad_(learns), small().requires_grad_(learns)
    prepare(network, memory)
    found = []
    for model in (plain, network):
        with (
            mock.patch(f"{module}._broadcast_coalesced_reshape", broadcast),
            mock.patch(f"{module}._get_device_index", lambda device, _: device),
        ):
            replicas = replicate(model, [0, 1])
        x = picture(1)
        y = torch.cat([replica(x) for replica in replicas])
        parameters = list(model.parameters()) if learns else []
        found.append((y, *torch.autograd.grad(y.square().sum(), [x, *parameters])))
    assert_same(found[1], found[0])


@pytest.mark.parametrize("learns", [(), ("4.weight",), ("1.weight", "5.bias", "7.weight", "0.bias")])
@pytest.mark.parametrize("memory", LEVELS)
def test_a_call_with_other_weights_has_their_gradients(memory: MemoryLevel, learns: tuple[str, ...]) -> None:
    """``functional_call`` has put the network's own back by the time of the backward pass."""
    network = small()
    weights = {name: (1.5 * p).requires_grad_(name in learns) for name, p in network.named_parameters()}

    def call() -> tuple[Tensor, ...]:
        x = picture()
        y = torch.func.functional_call(network, weights, (x,))
        return y, *torch.autograd.grad(y.square().sum(), [x, *(weights[name] for name in learns)])

    expected = call()
    prepare(network, memory)
    assert_same(call(), expected)


class Doubled(nn.Module):
    """A parametrisation: twice the weight."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


@pytest.mark.parametrize("first", [True, False], ids=["prepared first", "parametrised first"])
def test_parametrised_layers_are_what_they_are_without_us(first: bool) -> None:
    plain, network = small(), small()
    own = result(plain)
    if first:
        prepare(network, "leaner")
    for model in (plain, network):
        parametrize.register_parametrization(model[4], "weight", Doubled())
        parametrize.register_parametrization(model[1], "weight", Doubled())
    if not first:
        prepare(network, "leaner")
    assert_same(result(network), result(plain))
    for model in (plain, network):
        for place in (1, 4):
            parametrize.remove_parametrizations(model[place], "weight", leave_parametrized=False)
    assert_same(result(network), own)
    undo(network)
    assert attributes(network) == attributes(plain)


def test_hooks_are_called_as_ever() -> None:
    calls: list[list[str]] = []
    for prepared in (False, True):
        network = small()
        if prepared:
            prepare(network, "leaner")
        calls.append([])
        for name, module in network.named_modules():
            module.register_forward_pre_hook(lambda *_, name=name: calls[-1].append(f"before {name}"))
            module.register_forward_hook(lambda *_, name=name: calls[-1].append(f"after {name}"))
        result(network)
    assert calls[0] == calls[1] and len(calls[0]) == 2 * 12


class Loud(nn.Linear):
    """Somebody's layer, whose ``forward`` does more."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_a_subclass_keeps_its_own_forward() -> None:
    network = nn.Sequential(Loud(4, 4), nn.LayerNorm(4)).requires_grad_(False)
    x = torch.randn(2, 4, requires_grad=True)
    expected = result(network, x)
    prepare(network, "leaner")
    assert_same(result(network, x), expected)


def test_arguments_may_be_given_by_name() -> None:
    layers = nn.ModuleList([nn.Linear(4, 4), nn.LayerNorm(4), nn.SiLU()]).requires_grad_(False)
    x = torch.randn(2, 4, requires_grad=True)
    expected = [layer(input=x) for layer in layers]
    prepare(layers, "leaner")
    assert_same(tuple(layer(input=x) for layer in layers), tuple(expected))
