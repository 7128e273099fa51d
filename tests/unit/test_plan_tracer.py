"""The memory of tensors without data against sums done by hand, and against real tensors."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from veneer.plan.trace import Peak
from veneer.plan.tracer import MemoryTracer

CPU = torch.device("cpu")
KIB = 1024


class Watch(TorchDispatchMode):
    """The most bytes that real tensors held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, object] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.see(leaf)
        return result

    def see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def gone(_: object) -> None:
            self.now -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def peaks_of(work: Any, *phases: str) -> dict[str, Peak]:
    tracer = MemoryTracer(CPU)
    tracer.begin_phase("all")
    with tracer.tracing():
        work(tracer)
    return tracer.peaks()


def test_a_tensor_is_held_until_nobody_has_it() -> None:
    def work(tracer: MemoryTracer) -> None:
        first = torch.zeros(KIB)
        second = torch.zeros(KIB)
        assert tracer.held == 8 * KIB
        del first
        assert tracer.held == 4 * KIB
        third = torch.zeros(2 * KIB)
        assert tracer.held == 12 * KIB
        del second, third
        assert tracer.held == 0

    assert peaks_of(work)["all"].total == 12 * KIB


def test_a_view_takes_nothing() -> None:
    def work(tracer: MemoryTracer) -> None:
        whole = torch.zeros(4, KIB)
        view = whole.T[:, 1:].unflatten(0, (2, -1))
        del whole
        assert tracer.held == 16 * KIB and view.shape == (2, KIB // 2, 3)

    assert peaks_of(work)["all"].total == 16 * KIB


def test_parts_sum_to_the_whole_and_say_what_each_is() -> None:
    layer = nn.Linear(KIB, KIB, bias=False)  # it trains, so what goes in is kept for its gradient
    tracer = MemoryTracer(CPU)
    tracer.begin_phase("step")
    empty = tracer.without_data(layer)
    tracer.label("weights", empty.parameters())
    with tracer.tracing():
        x = torch.zeros(2, KIB, requires_grad=True)
        tracer.label("batch", [x])
        y = nn.functional.silu(empty(nn.functional.layer_norm(x, (KIB,))))
        assert y.shape == (2, KIB)
    peak = tracer.peaks()["step"]
    assert peak.total == sum(peak.parts.values())
    assert peak.parts == {
        "weights": 4 * KIB * KIB,
        "batch": 8 * KIB,
        "activations: norms": 8 * KIB + 2 * 2 * 4,  # and a mean and a deviation of each row
        "activations: linear layers": 8 * KIB,
        "activations: activation functions": 8 * KIB,
    }


def test_what_no_gradient_needs_is_not_kept() -> None:
    """A frozen layer's gradient needs its weight, not what went in: the norm's result goes."""

    def work(tracer: MemoryTracer) -> None:
        layer = nn.Linear(KIB, KIB, bias=False).requires_grad_(False)
        x = torch.zeros(2, KIB, requires_grad=True)
        tracer.label("given", [layer.weight, x])
        held = tracer.held
        y = layer(nn.functional.layer_norm(x, (KIB,)))
        assert y.shape == (2, KIB)
        assert tracer.held - held == 8 * KIB + 2 * 2 * 4

    peaks_of(work)


def test_what_is_made_while_gradients_flow_is_told_apart() -> None:
    def work(tracer: MemoryTracer) -> None:
        weight = torch.zeros(KIB, KIB, requires_grad=True)
        x = torch.zeros(4, KIB, requires_grad=True)
        tracer.label("weights", [weight, x])
        weight.register_post_accumulate_grad_hook(lambda each: tracer.label("gradients", [each.grad]))
        nn.functional.linear(x, weight).square().sum().backward()

    parts = peaks_of(work)["all"].parts
    assert parts["weights"] == 4 * KIB * KIB + 16 * KIB
    assert parts["gradients"] == 4 * KIB * KIB
    assert parts["backward pass"] >= 16 * KIB


def _blocks() -> nn.Sequential:
    layers = [nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.LayerNorm(64)) for _ in range(4)]
    return nn.Sequential(nn.Conv1d(8, 8, 3, padding=1), *layers)


@pytest.mark.parametrize("recomputed", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_peak_is_that_of_real_tensors(recomputed: bool, dtype: torch.dtype) -> None:
    """The same step on real tensors, each of their storages watched."""

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        x = torch.zeros(2, 8, 64)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            for layer in model.children():
                x = checkpoint(layer, x, use_reentrant=False) if recomputed else layer(x)
        x.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    real = _blocks()
    tracer = MemoryTracer(CPU)
    tracer.begin_phase("step")
    empty = tracer.without_data(real)
    with tracer.tracing():
        step(empty, torch.optim.AdamW(empty.parameters()))
    watch = Watch()
    for parameter in real.parameters():
        watch.see(parameter)
    with watch:
        step(real, torch.optim.AdamW(real.parameters()))
    assert tracer.peaks()["step"].total == watch.peak


def test_a_copy_without_data_leaves_the_original() -> None:
    model = _blocks()
    shared = nn.ModuleList([model, model[1]])
    before = {name: parameter.clone() for name, parameter in shared.named_parameters()}
    tracer = MemoryTracer(CPU)
    copied = tracer.without_data(shared)
    assert [type(p).__name__ for p in copied.parameters()] == ["FakeTensor"] * len(before)
    assert copied[1] is copied[0][1]
    assert tracer.held == sum(p.nbytes for p in before.values())
    assert all(torch.equal(p, before[name]) for name, p in shared.named_parameters())


def test_a_copy_of_the_meta_device_is_on_the_tracer_s_and_shares_what_it_shared() -> None:
    with torch.device("meta"):
        model = nn.ModuleList([nn.Embedding(10, 4), nn.Linear(4, 10, bias=False), nn.BatchNorm1d(4)])
        model[1].weight = model[0].weight
    tracer = MemoryTracer(CPU)
    copied = tracer.without_data(model.to(torch.bfloat16))
    assert copied[1].weight is copied[0].weight
    assert tracer.held == 2 * (40 + 4 * 4) + 8  # the count of batches is an integer
    assert {p.device.type for p in copied.parameters()} == {"cpu"}
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_a_module_may_be_cast_and_moved_while_tensors_are_traced() -> None:
    def work(tracer: MemoryTracer) -> None:
        layer = nn.Linear(8, 8).to(torch.bfloat16).to("cpu", torch.float32)
        assert layer.weight.dtype == torch.float32

    peaks_of(work)


def test_phases_have_their_own_peaks() -> None:
    tracer = MemoryTracer(CPU)
    with tracer.tracing():
        tracer.begin_phase("first")
        kept = torch.zeros(KIB)
        torch.zeros(4 * KIB)
        tracer.begin_phase("second")
        torch.zeros(2 * KIB)
    assert kept.shape == (KIB,)
    assert {name: peak.total for name, peak in tracer.peaks().items()} == {"first": 20 * KIB, "second": 12 * KIB}


def test_what_is_on_another_device_is_not_this_ones() -> None:
    def work(tracer: MemoryTracer) -> None:
        kept = torch.zeros(KIB, device="meta")
        assert tracer.held == 0 and kept.shape == (KIB,)

    peaks_of(work)


def test_weights_that_are_back_take_memory_when_they_are_read() -> None:
    tracer = MemoryTracer(torch.device("cpu"))
    tracer.begin_phase("all")
    with tracer.tracing():
        back = torch.empty(1000)
        tracer.label_reloaded("weights loaded again")
        before = tracer.trace.blocks[:]
        _ = back + 1
    assert [(block.tensor, block.malloc, block.mapped) for block in before] == [(4000, 0, 0)]
    assert [block.mapped for block in tracer.trace.blocks if block.mapped] == [4000]
    assert tracer.peaks()["all"].parts["weights loaded again"] == 4000


@pytest.mark.filterwarnings("error")
def test_no_kernel_is_warned_of_that_is_not_run() -> None:
    def work(_: MemoryTracer) -> None:
        nn.RMSNorm(4)(torch.zeros(2, 4, dtype=torch.bfloat16))

    peaks_of(work)
