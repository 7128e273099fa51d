"""Blocks whose weights wait in pinned memory: the same bits as without, however the copies are timed."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import veneer
from tests.gpu.sizes import Sizes
from veneer.engine import MemoryLevel
from veneer.engine.block_offload import ON_DEVICE, offload_blocks
from veneer.engine.blocks import repeated_blocks
from veneer.engine.memory_levels import MEMORY_LEVELS
from veneer.engine.quantization import FORMATS
from veneer.family.loading import load_options
from veneer.train.events import Finished, Warned

Record = Callable[[str, object], None]
STEPS = 4


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    """Ask PyTorch for kernels that always give the same bits."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


class Block(nn.Module):
    """A large weight with little to compute, or a small one with much."""

    def __init__(self, width: int, inner: int, device: torch.device) -> None:
        super().__init__()
        self.into, self.out = (nn.Linear(*sizes, device=device) for sizes in ((width, inner), (inner, width)))
        self.learned = nn.Parameter(torch.zeros(width, device=device))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(torch.nn.functional.silu(self.into(x)))
        return x + y * (1 + self.learned)


class Chain(nn.Module):
    def __init__(self, count: int, width: int, inner: int, device: torch.device) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(width, inner, device) for _ in range(count)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize(("rows", "inner"), [(1, 16384), (16384, 256)])
def test_no_copy_overtakes_a_computation(
    rows: int, inner: int, device: torch.device, sizes: Sizes, record_property: Record
) -> None:
    """Where copies are slower than what is computed, and where they are faster; forty steps on the same numbers."""
    width, inner = (1024, inner) if sizes.is_full else (32, 64)
    torch.manual_seed(0)
    plain = Chain(8, width, inner, device)
    away = Chain(8, width, inner, device)
    away.load_state_dict(plain.state_dict())
    learned = [[block.learned for block in model.blocks] for model in (plain, away)]
    for model in (plain, away):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("learned" in name)
    # what learns stays where it is: here it is no adapter that is put in later
    for block in away.blocks:
        block.learned = None
    handle = offload_blocks(away, 8)
    for block, parameter in zip(away.blocks, learned[1], strict=True):
        block.learned = parameter
    seconds = []
    for model in (plain, away):
        began = time.perf_counter()
        for step in range(40 if sizes.is_full else 2):
            x = torch.randn(rows if sizes.is_full else 4, width, device=device, generator=_generator(device, step))
            model(x).square().mean().backward()
        seconds.append(time.perf_counter() - began)
    record_property("time over that without", f"{seconds[1] / seconds[0]:.2f}")
    for one, other in zip(*learned, strict=True):
        assert one.grad is not None and other.grad is not None
        assert torch.equal(one.grad, other.grad) and bool(one.grad.isfinite().all())
    assert len(handle._prefetcher.present) <= ON_DEVICE


def _generator(device: torch.device, seed: int) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


@pytest.mark.parametrize("memory", MEMORY_LEVELS)
def test_the_same_adapter(memory: MemoryLevel, device: torch.device, sizes: Sizes, tmp_path: Path) -> None:
    without, with_it = (_trained(sizes, tmp_path, count, memory=memory) for count in (0, _count(sizes)))
    assert _differing(without, with_it) == []


@pytest.mark.parametrize("format", ["bnb_nf4", "torchao_int8"])
def test_the_same_adapter_on_packed_weights(format: str, device: torch.device, sizes: Sizes, tmp_path: Path) -> None:
    if not FORMATS[format].is_installed:
        pytest.skip(f"{FORMATS[format].library} is not installed")
    without, with_it = (_trained(sizes, tmp_path, n, quantization=format) for n in (0, _count(sizes)))
    assert _differing(without, with_it) == []


def test_the_weights_are_not_on_the_gpu(device: torch.device, sizes: Sizes, record_property: Record) -> None:
    if device.type != "cuda":
        pytest.skip("it is about a GPU's memory")
    held = []
    for count in (0, _count(sizes)):
        gc.collect()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        family = veneer.load_base(sizes.base, offload_blocks=count)
        held.append(torch.cuda.memory_allocated() - before)
        blocks = repeated_blocks(family.networks[family.denoiser])
        size = sum(parameter.numel() * 4 for block in blocks.values() for parameter in block.parameters())
        del family, blocks
    record_property("held MiB", f"{held[0] >> 20} and {held[1] >> 20}, of blocks {size >> 20}")
    assert held[0] - held[1] >= 0.95 * size


def _count(sizes: Sizes) -> int:
    family = veneer.load_base(sizes.base)
    return len(repeated_blocks(family.networks[family.denoiser]))


def _trained(sizes: Sizes, folder: Path, count: int, **train: object) -> dict[str, Tensor]:
    config = sizes.config(folder, max_steps=STEPS, cuda_graphs=False, offload_blocks=count, **train)
    family = veneer.load_base(config.base, **load_options(config))
    found: dict[str, Tensor] = {}
    for event in veneer.train_adapter(veneer.resolve(config, family), family, veneer.survey(config.data)):
        assert not isinstance(event, Warned) or event.code == "train.offload_blocks_on_cpu", event
        if isinstance(event, Finished):
            found = {f"{path}.{part}": t for path, own in event.weights.items() for part, t in own.state_dict().items()}
    return found


def _differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    assert one.keys() == other.keys() and one
    return [name for name in one if not torch.equal(one[name], other[name])]
