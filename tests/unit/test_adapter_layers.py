"""Layers have the names that files have for them, whatever their network is wrapped in."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.errors import raises_code
from veneer.adapter.apply import apply_adapter
from veneer.adapter.inject import inject
from veneer.adapter.layers import is_compiled, layers_under
from veneer.adapter.lora import LoraFactors, LoraSpec
from veneer.adapter.merge import merge
from veneer.adapter.stack import AdapterStack
from veneer.engine.adapter_bank import AdapterBank
from veneer.weights.file import AdapterFile, load, save

SPEC = {"unet": LoraSpec(2, 2.0, ("to_q",))}
PATHS = ["blocks.0.to_q", "blocks.0.to_out.0", "blocks.1.to_q", "blocks.1.to_out.0"]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_out = nn.Linear(4, 4), nn.ModuleList([nn.Linear(4, 4)])

    def forward(self, x: Tensor) -> Tensor:
        return self.to_out[0](self.to_q(x).relu())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def make() -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net()


def compiled(network: nn.Module) -> nn.Module:
    return torch.compile(network, backend="eager")  # type: ignore[return-value]


def blocks_compiled(network: Any) -> nn.Module:
    """As accelerate's regional compilation has it."""
    for place, block in enumerate(network.blocks):
        network.blocks[place] = compiled(block)
    return network  # type: ignore[no-any-return]


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "torch.compile": compiled,
    "blocks compiled": blocks_compiled,
    "both": lambda network: nn.DataParallel(compiled(network)),
    "deep copy": lambda network: copy.deepcopy(nn.DataParallel(network)),
}
X = torch.linspace(-1, 1, 12).view(3, 4)


def trained(network: nn.Module) -> Any:
    """An adapter in a network, as after training."""
    injection = inject({"unet": network}, SPEC, 0)
    for name, parameter in injection.named_parameters():
        if ".lora_B." in name:
            nn.init.constant_(parameter, 0.5)
    return injection


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrapper_is_no_part_of_a_name(wrap: Callable[[nn.Module], nn.Module]) -> None:
    network = wrap(make())
    assert [path for path, _ in layers_under(network)] == PATHS
    inject({"unet": network}, SPEC, 0)
    assert [path for path, _ in layers_under(network)] == PATHS


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_an_adapter_in_a_wrapped_network_is_the_one_of_the_network(
    wrap: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    plain, network = make(), wrap(make())
    before = network(X)  # compiled before the adapter comes
    expected, own = trained(plain), trained(network)
    assert own.weights().keys() == {"unet.blocks.0.to_q", "unet.blocks.1.to_q"}
    assert torch.equal(network(X), plain(X)) and not torch.equal(network(X), before)
    with own.disabled():
        assert torch.equal(network(X), before)
    save(AdapterFile(own.weights()), tmp_path / "wrapped.safetensors")
    save(AdapterFile(expected.weights()), tmp_path / "plain.safetensors")
    assert (tmp_path / "wrapped.safetensors").read_bytes() == (tmp_path / "plain.safetensors").read_bytes()
    network(X).sum().backward()
    assert all(parameter.grad is not None for parameter in own.parameters())
    own.eject()
    assert torch.equal(network(X), before)
    assert not any("peft_config" in vars(module) for module in network.modules())


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_an_adapter_of_a_file_is_merged_into_a_wrapped_network(
    wrap: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    save(AdapterFile(trained(make()).weights()), tmp_path / "a.safetensors")
    plain, network = make(), wrap(make())
    before = network(X)
    weights = load(tmp_path / "a.safetensors", {"unet": network}).weights
    merge({"unet": plain}, [(weights, 1.0)])
    merged = merge({"unet": network}, [(weights, 1.0)])
    assert torch.equal(network(X), plain(X)) and not torch.equal(network(X), before)
    merged.undo()
    assert torch.equal(network(X), before)
    with apply_adapter({"unet": network}, weights):
        assert torch.equal(network(X), plain(X))
    stack = AdapterStack({"unet": network})
    stack.add("a", weights)
    assert torch.equal(network(X), plain(X))
    stack.clear()
    assert torch.equal(network(X), before)


@pytest.fixture
def one_process(tmp_path: Path) -> Any:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_an_adapter_is_not_put_into_a_network_whose_gradients_are_gathered_already() -> None:
    network = nn.parallel.DistributedDataParallel(make())
    with raises_code("adapter.wrapped_network", "unet is in DistributedDataParallel already"):
        inject({"unet": network}, SPEC, 0)
    weights = trained(make()).weights()
    merge({"unet": network}, [(weights, 1.0)])  # whose weights are the same in each process


@pytest.mark.usefixtures("one_process")
def test_weights_that_are_split_up_are_refused() -> None:
    from torch.distributed.fsdp import fully_shard

    network = fully_shard(make(), mesh=torch.distributed.init_device_mesh("cpu", (1,)))
    with raises_code("adapter.sharded_network", "a network is wrapped in FSDPNet"):
        inject({"unet": network}, SPEC, 0)
    with raises_code("adapter.sharded_network"):
        merge({"unet": network}, [(trained(make()).weights(), 1.0)])


def test_rows_of_a_batch_need_a_network_that_takes_it_whole_and_is_not_compiled() -> None:
    with raises_code("adapter.wrapped_network", "unet is in DataParallel, which splits a batch up"):
        AdapterBank({"unet": nn.DataParallel(make())})
    bank = AdapterBank({"unet": compiled(make())})
    bank.add("a", trained(make()).weights())
    with raises_code("adapter.compiled"), bank.rows(["a"]):
        pass


def test_an_adapter_beside_a_compiled_networks_layers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its hooks would not be seen, and the adapter left out."""
    monkeypatch.setattr("veneer.adapter.apply.is_mergeable", lambda adapter, layer: False)
    weights = trained(make()).weights()
    for wrap in (compiled, blocks_compiled):
        with raises_code("adapter.compiled"), apply_adapter({"unet": wrap(make())}, weights):
            pass
    with apply_adapter({"unet": make()}, weights):
        pass


def test_nothing_is_merged_into_a_weight_that_is_elsewhere() -> None:
    network = make()
    network.blocks[0].to_q.to("meta")
    weights = {"unet.blocks.0.to_q": LoraFactors(torch.ones(2, 4), torch.ones(4, 2), 2.0)}
    with raises_code("adapter.offloaded_base", "the weight of unet.blocks.0.to_q is not in memory"):
        merge({"unet": network}, [(weights, 1.0)])


def test_what_is_compiled_is_known_in_place_too() -> None:
    network = make()
    assert not is_compiled(network)
    network.blocks[0].compile(backend="eager")
    assert is_compiled(network) and is_compiled(compiled(make())) and is_compiled(blocks_compiled(make()))
