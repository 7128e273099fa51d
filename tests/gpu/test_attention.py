"""Attention runs by a fused kernel: forward and backward passes work where PyTorch's plain products are forbidden."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from benchmarks import models
from tests.gpu.sizes import Sizes
from veneer.engine import MemoryLevel, prepare

Record = Callable[[str, object], None]
FUSED = {
    ("cuda", "float32"): [SDPBackend.EFFICIENT_ATTENTION],
    ("cuda", "bfloat16"): [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION],
    ("cuda", "float16"): [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION],
    ("cpu", "float32"): [SDPBackend.FLASH_ATTENTION],
    ("cpu", "bfloat16"): [SDPBackend.FLASH_ATTENTION],
}
WORDS = ("flash", "fmha", "cudnn", "sdpa", "attention")


@pytest.mark.parametrize("memory", ["exact", "lean"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_no_product_of_all_queries_with_all_keys(
    precision: str, memory: MemoryLevel, device: torch.device, sizes: Sizes, record_property: Record
) -> None:
    base = models.full_size() if sizes.is_full else models.tiny()
    model = models.adapted(base.to(device))
    prepare(model, memory)
    dtype, pixels = getattr(torch, precision), 512 if sizes.is_full else 64
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with sdpa_kernel(FUSED[device.type, precision]), profile(activities=activities) as profiled:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            loss = models.squared_error(model, 1, pixels)
        torch.autograd.backward(loss)
    names = {event.key for event in profiled.key_averages()}
    assert not any("attention_math" in name for name in names)
    kernels = sorted(name for name in names if any(word in name.lower() for word in WORDS))
    record_property("kernels", ", ".join(name[:60] for name in kernels))
    assert any("flash" in name or "efficient" in name or "cudnn" in name for name in kernels)
