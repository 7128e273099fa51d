"""Results that are made from what is known, against those of PyTorch's own mode for tensors without data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import veneer.plan.known_results as known_results
from veneer.plan.known_results import KnownResults
from veneer.plan.trace import Peak
from veneer.plan.tracer import MemoryTracer

CASES: Mapping[str, Callable[[Tensor], Any]] = {
    "sum": lambda x: x + 1,
    "of another dtype": lambda x: (x + 1).to(torch.bfloat16) * x,
    "integer and float are two": lambda x: (x.long() * 2, x.long() * 2.0),
    "product": lambda x: x @ x.transpose(1, 2),
    "views": lambda x: (x.view(-1), x[:, 1:], x.unsqueeze(0).expand(5, -1, -1, -1), x.permute(2, 0, 1), x.detach()),
    "pieces": lambda x: (*x.chunk(2), *x.unbind(1), *x.split([1, 1])),
    "in place": lambda x: x.clone().mul_(2).add_(1).zero_(),
    "several results": lambda x: (F.layer_norm(x, [4]), torch.max(x, dim=1)),
    "attention": lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None]),
    "channels last": lambda x: F.conv2d(x[None].contiguous(memory_format=torch.channels_last), torch.ones(2, 2, 1, 1)),
    "list": lambda x: (torch.cat([x, x]), torch.stack([x, x, x])),
    "index": lambda x: x[x.new_zeros(3, dtype=torch.long)],
    "complex": lambda x: torch.view_as_complex(x.reshape(2, 3, 2, 2)).conj(),
    "number": lambda x: torch.tensor(2.0) * x,
}


class Answered(TorchDispatchMode):
    """Asks the results that are known first, and compares what they say with the fake mode's own."""

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()
        self.results, self.count = KnownResults(mode), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        self.count += known_results._MAKERS.get(known_results._key(func, args, kwargs or {}) or ()) is not None
        return self.results.call(func, args, kwargs or {})


def _of_another_release(*parts: object) -> Tensor:
    raise AttributeError("_make_subclass")


def facts_of(result: Any, argument: Tensor) -> list[object]:
    """Return all that can be told of tensors: their form, their storage, and whether it is the argument's."""
    own = argument.untyped_storage()._cdata
    return [
        (
            one.shape,
            one.stride(),
            one.storage_offset(),
            one.dtype,
            one.device,
            one.untyped_storage().nbytes(),
            one.untyped_storage()._cdata == own,
            one.is_conj(),
            one.requires_grad,
        )
        for one in tree_leaves(result)
    ]


@pytest.mark.parametrize("case", CASES)
def test_a_known_result_is_that_of_the_mode(case: str) -> None:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        x = torch.ones(2, 3, 4)
        wanted = facts_of(CASES[case](x), x)
        answered = Answered(mode)
        with answered:
            assert facts_of(CASES[case](x), x) == wanted
            assert facts_of(CASES[case](x), x) == wanted
    assert answered.count or case in ("number",)


def test_another_mode_has_results_of_its_own() -> None:
    for _ in range(2):
        mode = FakeTensorMode()
        with mode:
            x: Any = torch.ones(2)
            with Answered(mode):
                y: Any = x + 1
        assert y.fake_mode is mode


def test_where_tensors_without_data_are_made_otherwise_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_results, "_MAKERS", {})
    monkeypatch.setattr(known_results, "_without_data", _of_another_release)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        x = torch.ones(2, 3, 4)
        with Answered(mode) as answered:
            assert [(x + 1).shape for _ in range(2)] == [(2, 3, 4)] * 2
    assert answered.count == 0 and set(known_results._MAKERS.values()) == {None}


def test_what_depends_on_data_is_not_known() -> None:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode, Answered(mode) as answered:
        x = torch.ones(2)
        before = answered.count
        for _ in range(2):
            with pytest.raises(Exception, match="nonzero"):
                x.nonzero()
    assert answered.count == before


def test_no_result_is_made_of_an_operation_whose_shape_depends_on_data() -> None:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        x = torch.ones(2)
        assert known_results._maker(mode, torch.ops.aten.nonzero.default, (x,), torch.ones(1, 1)) is None
        assert known_results._maker(mode, torch.ops.aten.relu.default, (x,), torch.ones(2)) is not None


def test_a_step_holds_what_it_holds_where_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def peaks() -> Mapping[str, Peak]:
        tracer = MemoryTracer(torch.device("cpu"))
        tracer.begin_phase("step")
        with tracer.tracing():
            net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(), nn.Flatten(), nn.Linear(288, 4))
            optimizer = torch.optim.AdamW(net.parameters())
            for _ in range(2):
                net(torch.zeros(2, 3, 8, 8)).square().mean().backward()
                optimizer.step()
        return tracer.peaks()

    known = peaks()
    monkeypatch.setattr(KnownResults, "call", lambda self, func, args, kwargs: func(*args, **kwargs))
    assert known == peaks()
