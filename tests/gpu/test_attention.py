"""Attention runs by a fused kernel: forward and backward passes work where PyTorch's plain products are forbidden."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from benchmarks import models
from tests.gpu.sizes import Sizes
from veneer.engine import MemoryLevel, prepare, trusted_attention

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


def _gradients_behind_a_slice(tensors: list[Tensor]) -> list[Tensor]:
    """Gradients of query, key and value (B, H, L, D) whose output's gradient is a part of a larger tensor."""
    learning = [tensor.clone().requires_grad_() for tensor in tensors]
    output = functional.scaled_dot_product_attention(*learning).transpose(1, 2).flatten(2)
    joined = torch.cat([output, torch.zeros_like(output)], dim=2)
    weight = torch.randn(joined.shape, generator=torch.Generator().manual_seed(3)).to(joined)
    return list(torch.autograd.grad((joined * weight).sum(), learning))


def test_gradients_are_right_where_the_output_s_is_a_slice(device: torch.device, record_property: Record) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(2, 2, 21, 16, generator=generator).to(device, torch.bfloat16) for _ in range(3)]
    truth = _gradients_behind_a_slice([tensor.double() for tensor in tensors])
    with trusted_attention():
        found = _gradients_behind_a_slice(tensors)
    errors = _relative_errors(found, truth)
    record_property("error", [f"{error:.1e}" for error in errors])
    if device.type == "cuda":
        with sdpa_kernel([SDPBackend.CUDNN_ATTENTION]):
            others = _gradients_behind_a_slice(tensors)
        record_property("cuDNN's", [f"{error:.1e}" for error in _relative_errors(others, truth)])
    assert max(errors) < 2**-5


def _relative_errors(found: list[Tensor], truth: list[Tensor]) -> list[float]:
    return [float((one - true).norm() / true.norm()) for one, true in zip(found, truth, strict=True)]
