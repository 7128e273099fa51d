"""What runs on a GPU: every test here has the mark ``gpu``, which is left out by default.

``python -m tools.on_gpu check --out FOLDER`` runs them; with ``--device cpu`` (``VENEER_GPU_TESTS=cpu``) on the CPU
with tiny sizes, so that what is wrong with a test is found without a GPU.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import veneer
from benchmarks import models
from tests.gpu.sizes import Sizes, full_sizes, tiny_sizes
from tools.on_gpu.check import DEVICE

_ORDER = (
    "block_offload",
    "batches",
    "quantized",
    "batched",
    "plan",
    "graphs",
    "resume",
    "out_of_memory",
    "gradients",
    "attention",
    "example",
)
"""The tests by what is least known of a GPU: those that are left when the time is over tell least."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    own = [item for item in items if here in item.path.parents]
    for item in own:
        item.add_marker(pytest.mark.gpu)
    dropped = _further_cases(own) if os.environ.get(DEVICE) == "cpu" else []
    config.hook.pytest_deselected(items=dropped)
    own = sorted((item for item in own if item not in dropped), key=_place)
    items[:] = [*(item for item in items if here not in item.path.parents), *own]


def _place(item: pytest.Item) -> int:
    return _ORDER.index(item.path.stem.removeprefix("test_"))


def _further_cases(items: list[pytest.Item]) -> list[pytest.Item]:
    """Return all but the first and last case of each test, without those in float16, which the CPU is not used with."""
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    kept = []
    for found in cases.values():
        usual = [item for item in found if "[float16" not in item.nodeid and "-float16" not in item.nodeid]
        kept += [usual[0], usual[-1]]
    return [item for item in items if item not in kept]


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device that is tested on."""
    name = os.environ.get(DEVICE, "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA GPU")
    return torch.device(name)


@pytest.fixture(autouse=True)
def memory(device: torch.device) -> Iterator[None]:
    """Give back what a test held, so that the next one has the whole GPU."""
    yield
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


@pytest.fixture(scope="session")
def unet(device: torch.device) -> Any:
    """Stable Diffusion 1.5's denoiser at full size on a GPU, a tiny one on the CPU; float32, and nobody changes it."""
    return models.published_family("sd15", device).networks["unet"] if device.type == "cuda" else models.tiny()


@pytest.fixture(scope="session")
def sizes(device: torch.device, tiny_base: Path, tiny_pictures: Path) -> Sizes:
    """What is trained: full sizes on a GPU, tiny ones on the CPU."""
    if device.type == "cuda":
        return full_sizes(veneer.demo_path())
    return tiny_sizes(str(tiny_base), tiny_pictures)
