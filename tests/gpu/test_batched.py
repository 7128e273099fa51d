"""Two adapters in one batch give what each gives alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import veneer
from benchmarks import models
from tests.gpu.sizes import Sizes

Record = Callable[[str, object], None]
TOLERANCE = {"float32": 2e-3, "bfloat16": 6e-2, "float16": 8e-3}
"""Largest difference over the largest number: the dtype's rounding; float32's is TF32's in convolutions."""


@pytest.mark.parametrize("precision", TOLERANCE)
@torch.inference_mode()
def test_each_row_is_as_alone(precision: str, device: torch.device, sizes: Sizes, record_property: Record) -> None:
    dtype = getattr(torch, precision)
    family = veneer.load_base(sizes.base, dtype=dtype)
    unet = family.networks[family.denoiser]
    bank = veneer.AdapterBank({family.denoiser: unet})
    for name, weights in models.adapters({family.denoiser: unet}, 2).items():
        bank.add(name, {path: layer.to(device, dtype) for path, layer in weights.items()})
    inputs = models.denoiser_inputs(unet, 1, family.resolution)

    def paint(*rows: str | None) -> torch.Tensor:
        many = [tensor.expand(len(rows), *tensor.shape[1:]) for tensor in inputs]
        with bank.rows(rows):
            output: torch.Tensor = unet(many[0], many[1], many[2]).sample
        return output.float()

    base, together = paint(None), paint("a0", "a1", None)
    for row, alone in enumerate((paint("a0"), paint("a1"), base)):
        error = float((together[row] - alone[0]).abs().max() / alone.abs().max())
        record_property(f"row {row}", f"{error:.1e}")
        assert error <= TOLERANCE[precision]
    assert float((together[0] - base[0]).abs().max()) > 1e-2 * float(base.abs().max())
