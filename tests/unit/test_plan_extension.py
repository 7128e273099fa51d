"""A base with few of its equal blocks says what the whole takes: all phases and parts, to the byte."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import veneer.plan.extension as extension
from veneer.config.load import build_config
from veneer.plan.abstract import abstract_base
from veneer.plan.extension import Run, find_runs
from veneer.plan.plan import Plan
from veneer.plan.rehearsal import RunInputs, rehearse
from veneer.plan.trace import Block, Repeats, Trace, peaks
from veneer.plan.tracer import MemoryTracer

CPU = torch.device("cpu")
GPU = RunInputs(CPU, for_gpu=True)
SMALL: dict[str, Any] = {"batch_size": 1, "precision": "bfloat16", "quantization": "bnb_nf4", "memory": "lean"}


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(width, width)


class _Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = _Attention(width)


def _network(*widths: int) -> nn.Module:
    network = nn.Module()
    network.blocks = nn.ModuleList(_Layer(width) for width in widths)
    network.embedders = nn.ModuleList(nn.Sequential(nn.Linear(2, 2)) for _ in range(12))
    return network


def test_a_run_ends_where_blocks_differ() -> None:
    assert find_runs(_network(*[4] * 10, *[6] * 9)) == (Run("blocks", 0, 10), Run("blocks", 10, 9))
    assert find_runs(_network(*[4] * 7, *[6] * 7)) == ()
    assert find_runs(_network(*[4, 6] * 8)) == ()


def test_a_run_ends_where_an_adapter_begins() -> None:
    adapted = [f"blocks.{number}.attn.to_q" for number in range(8)]
    assert find_runs(_network(*[4] * 20), adapted) == (Run("blocks", 0, 8), Run("blocks", 8, 12))


def test_five_blocks_of_a_run_are_kept() -> None:
    run = Run("blocks", 10, 9)
    assert run.kept == (10, 11, 12, 17, 18)
    assert list(run.left_out) == [13, 14, 15, 16]
    assert run.example == "blocks.12"


def test_what_a_block_hands_on_counts_once_and_what_it_keeps_for_each() -> None:
    """Five blocks of nine: each keeps 10 and hands on 100, which goes when the next one has made its own."""
    events, blocks, owners, visits = list[int](), list[Block](), list[int](), list[tuple[int, int]]()
    handed = None
    for owner in range(5):
        visits.append((len(events), owner))
        for size in (10, 100):
            blocks.append(Block(size))
            owners.append(owner)
            events.append(len(blocks))
        if handed is not None:
            events.append(-handed)
        handed = len(blocks)
    trace = Trace(events, blocks, [("step", 0)])
    (peak,) = peaks(trace, ["kept", "handed"] * 5, Repeats(owners, visits, [4])).values()
    assert peak.parts == {"kept": 90, "handed": 200}


@pytest.mark.slow
def test_small_bases_are_rehearsed_whole() -> None:
    for name in ("sd15", "sdxl"):
        config = build_config({"base": name, "data": {"sources": [{"path": "pictures"}]}}, "test")
        watched = extension.Extension(config)
        abstract_base(config, MemoryTracer(CPU, watched.shorten))
        assert watched.whole is not None
        assert not watched.runs


def _plans(base: str, inputs: RunInputs, patch: pytest.MonkeyPatch, **sections: Any) -> tuple[Plan, Plan]:
    """Return the plan from few blocks, and from all of them."""
    config = build_config({"base": base, "data": {"sources": [{"path": "pictures"}]}, **sections}, "test")
    make: Callable[[MemoryTracer], Any] = partial(abstract_base, config)
    short = rehearse(config, make, inputs)
    with patch.context() as patched:
        patched.setattr(extension, "_LEAST", 10**6)
        return short, rehearse(config, make, inputs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "sections"),
    [
        ("flux-dev", {"train": SMALL}),
        ("flux-dev", {"train": SMALL, "adapter": {"blocks": ["transformer_blocks"], "rank": 64}}),
        ("flux-dev", {"train": SMALL | {"offload_blocks": 57}}),
        ("pixart-sigma", {"train": SMALL | {"memory": "checkpoint", "gradient_accumulation_steps": 2}}),
        ("sd35-medium", {"train": SMALL | {"memory": "leaner"}}),
        ("wan21-1.3b", {"train": SMALL | {"memory": "exact", "quantization": "bfloat16"}}),
        ("ltx-video-2b", {"train": {"batch_size": 2}, "adapter": {"target_modules": "attention_mlp"}}),
        ("z-image", {"train": SMALL | {"ema_decay": 0.9}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_few_blocks_tell_what_all_of_them_take(base: str, sections: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    short, whole = _plans(base, GPU, monkeypatch, **sections)
    assert short == whole


@pytest.mark.slow
def test_of_a_process_only_holes_in_the_heap_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    short, whole = _plans("pixart-sigma", RunInputs(CPU), monkeypatch)
    assert short.memory is not None and whole.memory is not None
    for one, other in zip(short.memory.phases, whole.memory.phases, strict=True):
        assert replace(one, process=None) == replace(other, process=None)
        assert one.process == pytest.approx(other.process, rel=5e-3)
