"""Weights of offloaded blocks are there whenever they are read, and change no bit of what is computed."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.errors import raises_code
from tests.networks import NETWORKS, Network, adapt_made, gradients
from veneer.engine import MemoryLevel, prepare
from veneer.engine.block_offload import ON_DEVICE, Pass, Prefetcher, find_offload, offload_blocks, spread
from veneer.engine.blocks import repeated_blocks
from veneer.engine.memory_levels import MEMORY_LEVELS
from veneer.engine.quantized import quantize
from veneer.family.offload import without_memory

SLOW = pytest.mark.slow


def deep(kind: str) -> Network:
    """One of the networks, with more blocks of each kind."""
    network = NETWORKS[kind]
    return Network(lambda: _DEEP[kind](network.make()), network.call, network.targets)


def _more(**layers: int) -> Callable[[Any], nn.Module]:
    return lambda model: type(model).from_config({**model.config, **layers})


_DEEP: dict[str, Callable[[Any], nn.Module]] = {
    "sd": _more(layers_per_block=3),
    "sd3": _more(num_layers=5),
    "flux": _more(num_layers=3, num_single_layers=4),
}


def made(network: Network, count: int) -> nn.Module:
    """A network whose blocks are offloaded, with adapters that were put in after."""
    return adapt_made(network, lambda model: offload_blocks(model, count) if count else None)


_CASES = [
    pytest.param(kind, memory, marks=() if (kind, memory) in (("flux", "lean"), ("sd3", "checkpoint")) else SLOW)
    for kind in _DEEP
    for memory in MEMORY_LEVELS
]


@pytest.mark.parametrize(("kind", "memory"), _CASES)
def test_output_and_gradients_keep_their_bits(kind: str, memory: MemoryLevel) -> None:
    """With two passes, so that what is fetched ahead is what the first one needed; all blocks, and three of them."""
    network = deep(kind)
    plain = made(network, 0)
    prepare(plain, memory)
    output, expected = gradients(network, plain)
    for count in (3, len(repeated_blocks(plain))):
        model = made(network, count)
        prepare(model, memory)
        for _ in range(2):
            found_output, found = gradients(network, model)
            assert torch.equal(found_output, output)
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
        with torch.no_grad():
            assert torch.equal(network.call(model, torch.float32), network.call(plain, torch.float32))


@pytest.mark.parametrize("format", ["bfloat16", pytest.param("torchao_int8", marks=SLOW), "bnb_nf4"])
def test_quantised_weights_are_moved_as_they_are_packed(format: str) -> None:
    network = deep("flux")

    def prepared(count: int) -> nn.Module:
        def change(model: nn.Module) -> None:
            quantize(model, format)
            if count:
                offload_blocks(model, count)

        model = adapt_made(network, change)
        prepare(model, "lean")
        return model

    output, expected = gradients(network, prepared(0))
    found_output, found = gradients(network, prepared(7))
    assert torch.equal(found_output, output)
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


def test_gradients_accumulate_over_batches_of_several_sizes() -> None:
    network = deep("flux")
    sums = []
    for count in (0, 5):
        model = made(network, count)
        for dtype in (torch.float32, torch.float32):
            for _ in range(2):
                network.call(model, dtype).square().mean().backward()
        sums.append([parameter.grad for parameter in model.parameters() if parameter.requires_grad])
    assert all(torch.equal(one, other) for one, other in zip(*sums, strict=True))


def test_weights_are_out_of_place_but_for_two_blocks_at_any_time() -> None:
    network = deep("flux")
    model = network.make()
    handle = offload_blocks(model, 7)
    blocks = list(repeated_blocks(model).values())
    assert all(_is_away(block) for block in blocks)
    assert handle.nbytes == sum(p.nbytes for block in blocks for p in block.parameters())
    seen = []
    for block in blocks:
        block.register_forward_pre_hook(lambda *_: seen.append([not _is_away(each) for each in blocks]))
    network.call(model, torch.float32)
    assert [row.index(True) for row in seen] == list(range(7))
    assert all(sum(row) == 1 for row in seen)  # the next one is copied as late as it may
    assert len(handle._prefetcher.present) == ON_DEVICE


def _is_away(block: nn.Module) -> bool:
    away = [bool(parameter.isnan().all()) for parameter in block.parameters()]
    assert all(away) or not any(away)
    return all(away)


def test_a_weight_that_was_not_fetched_is_no_silent_pass() -> None:
    network = deep("flux")
    model = network.make()
    handle = offload_blocks(model, 7)
    for hook in handle._hooks[:2]:  # those of the first block
        hook.remove()
    assert network.call(model, torch.float32).isnan().any()


def test_undo_puts_the_very_memory_back() -> None:
    model = NETWORKS["sd3"].make()
    model = _DEEP["sd3"](model)
    before = {name: (parameter.data_ptr(), parameter.clone()) for name, parameter in model.named_parameters()}
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    handle = offload_blocks(model, 3)
    assert find_offload(model) is handle
    NETWORKS["sd3"].call(model, torch.float32)
    handle.undo()
    handle.undo()
    assert find_offload(model) is None
    for name, parameter in model.named_parameters():
        assert parameter.data_ptr() == before[name][0]
        assert torch.equal(parameter, before[name][1])
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks


def test_what_blocks_share_stays() -> None:
    class Block(nn.Module):
        def __init__(self, shared: nn.Linear) -> None:
            super().__init__()
            self.own, self.shared = nn.Linear(4, 4), shared

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.shared(self.own(x))
            return y

    shared = nn.Linear(4, 4)
    network = nn.Sequential(nn.ModuleList([Block(shared) for _ in range(3)]))
    handle = offload_blocks(network, 3)
    assert not shared.weight.isnan().any()
    assert handle.nbytes == 3 * 4 * (16 + 4)


def test_a_tensor_that_a_block_hands_on_is_not_its_own() -> None:
    """Its gradient comes when the block's are done already: fetching then would take another block's weights away."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
            return self.layer(x + other), other

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Block() for _ in range(5)])

        def forward(self, x: Tensor, other: Tensor) -> Tensor:
            for block in self.blocks:
                x, other = block(x, other)
            return x + other

    torch.manual_seed(0)
    plain = Chain().requires_grad_(False)
    away = copy.deepcopy(plain)
    needed: list[tuple[int, Pass]] = []
    handle = offload_blocks(away, 5)
    handle.need = _recorded(handle.need, needed)  # type: ignore[method-assign]
    results = []
    for model in (plain, away):
        x = torch.ones(2, 4, requires_grad=True)
        model(x, x * 2).sum().backward()
        results.append(x.grad)
    assert torch.equal(results[0], results[1])
    assert needed == [(n, "forward") for n in range(5)] + [(n, "backward") for n in reversed(range(5))]


def _recorded(need: Callable[[int, Pass], None], calls: list[tuple[int, Pass]]) -> Callable[[int, Pass], None]:
    def recorded(number: int, kind: Pass) -> None:
        calls.append((number, kind))
        need(number, kind)

    return recorded


def test_a_network_with_blocks_away_is_not_copied() -> None:
    model = _DEEP["sd3"](NETWORKS["sd3"].make())
    offload_blocks(model, 3)
    with raises_code("engine.copied_offload"):
        copy.deepcopy(model)


def test_more_blocks_than_there_are_are_refused() -> None:
    model = _DEEP["sd3"](NETWORKS["sd3"].make())
    with raises_code("engine.offload_blocks", match="has 5 repeated blocks"):
        offload_blocks(model, 6)


def test_weights_that_are_not_read_yet_are_refused() -> None:
    model = _DEEP["sd3"](NETWORKS["sd3"].make())
    with raises_code("engine.offload_blocks", match="not read yet"):
        offload_blocks(without_memory(model.to("meta"), None, torch.float32), 3)


def test_offloading_comes_once_and_before_adapters() -> None:
    with raises_code("engine.offload_blocks", match="carries an adapter"):
        offload_blocks(made(deep("sd3"), 0), 3)
    model = _DEEP["sd3"](NETWORKS["sd3"].make())
    offload_blocks(model, 3)
    with raises_code("engine.offload_blocks", match="already"):
        offload_blocks(model, 3)


@given(st.integers(1, 80), st.data())
def test_offloaded_blocks_are_spread_evenly(total: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, total))
    places = spread(count, total)
    gaps = [after - before for before, after in itertools.pairwise(places)]
    assert len(set(places)) == count
    assert 0 <= places[0] <= places[-1] < total
    assert not gaps or max(gaps) - min(gaps) <= 1


class Recorded:
    """Weights that are only a state, and that check what is done to them."""

    nbytes = 1

    def __init__(self) -> None:
        self.state, self.begins = "away", 0

    def begin(self) -> None:
        assert self.state == "away"
        self.state, self.begins = "coming", self.begins + 1

    def finish(self) -> None:
        assert self.state in ("coming", "there")
        self.state = "there"

    def release(self) -> None:
        assert self.state != "away"
        self.state = "away"

    def restore(self) -> None:
        raise AssertionError


@given(st.integers(3, 8), st.lists(st.tuples(st.integers(0, 7), st.sampled_from(["forward", "backward", "inference"]))))
@settings(max_examples=100, deadline=None)
def test_whatever_is_needed_in_whatever_order_is_there(count: int, needs: list[tuple[int, Pass]]) -> None:
    weights = [Recorded() for _ in range(count)]
    prefetcher = Prefetcher(weights)
    for block, kind in needs:
        prefetcher.need(block % count, kind)
        assert weights[block % count].state == "there"
        assert sum(each.state != "away" for each in weights) <= ON_DEVICE
        assert {n for n, each in enumerate(weights) if each.state != "away"} == prefetcher.present


@given(st.permutations(range(6)), st.integers(1, 3), st.booleans())
@settings(max_examples=50, deadline=None)
def test_once_an_order_was_seen_each_block_is_fetched_ahead(order: list[int], passes: int, paints: bool) -> None:
    """Steps, with pictures painted between them or not, in an order that is not the one of the code."""
    weights = [Recorded() for _ in range(6)]
    prefetcher = Prefetcher(weights)
    step: list[tuple[int, Pass]] = [(n, "forward") for n in order] + [(n, "backward") for n in reversed(order)]
    painting: list[tuple[int, Pass]] = [(n, "inference") for n in order] * 2 if paints else []
    for block, kind in (step + painting) * 2:
        prefetcher.need(block, kind)
    for block, kind in (step + painting) * passes:
        assert weights[block].state != "away"
        prefetcher.need(block, kind)


def test_the_usual_order_needs_no_lesson() -> None:
    weights = [Recorded() for _ in range(6)]
    prefetcher = Prefetcher(weights)
    needs: list[tuple[int, Pass]] = [(n, "forward") for n in range(6)] + [(n, "backward") for n in reversed(range(6))]
    for place, (block, kind) in enumerate(needs * 2):
        assert weights[block].state != "away" or place == 0
        prefetcher.need(block, kind)


def test_a_lack_of_memory_half_way_leaves_nothing_half_there() -> None:
    class Full(Recorded):
        def begin(self) -> None:
            super().begin()
            if is_full:
                raise torch.OutOfMemoryError

    is_full = False
    weights = [Full() for _ in range(4)]
    prefetcher = Prefetcher(weights)
    prefetcher.need(0, "forward")
    is_full = True
    with pytest.raises(torch.OutOfMemoryError):
        prefetcher.need(3, "forward")
    assert [each.state for each in weights] == ["away"] * 4
    is_full = False
    prefetcher.need(3, "forward")
    assert weights[3].state == "there"
