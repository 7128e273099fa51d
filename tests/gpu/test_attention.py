"""Attention runs by a fused kernel: forward and backward passes work where PyTorch's plain products are forbidden."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
    ("cuda", "bfloat16"): [SDPBackend.FLASH_ATTENTION],
    ("cuda", "float16"): [SDPBackend.FLASH_ATTENTION],
    ("cpu", "float32"): [SDPBackend.FLASH_ATTENTION],
    ("cpu", "bfloat16"): [SDPBackend.FLASH_ATTENTION],
}


@pytest.mark.parametrize(
    ("precision", "memory"), [("float32", "exact"), ("float16", "lean"), ("bfloat16", "exact"), ("bfloat16", "lean")]
)
def test_no_product_of_all_queries_with_all_keys(
    precision: str, memory: MemoryLevel, device: torch.device, sizes: Sizes, unet: Any, record_property: Record
) -> None:
    model = models.adapted(unet)
    prepare(model, memory)
    dtype, pixels = getattr(torch, precision), 512 if sizes.is_full else 64
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with sdpa_kernel(FUSED[device.type, precision]), profile(activities=activities) as profiled:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            loss = models.squared_error(model, 1, pixels)
        torch.autograd.backward(loss)
    names = {event.key for event in profiled.key_averages()}
    assert not any("attention_math" in name for name in names)
    kernels = sorted(name for name in names if name.startswith("aten::_scaled_dot_product_"))
    record_property("kernels", ", ".join(kernels))
    assert any("flash" in name or "efficient" in name for name in kernels)
