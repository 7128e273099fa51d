"""Profile a step at ``lean`` at 512 pixels: what it spends its time on, and how fast each part runs.

python -m benchmarks.profile_step              measure, write results and page
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import veneer
from benchmarks import models
from benchmarks.page import figures_of, keep, machine, show
from benchmarks.timing import timed

NAME = "profile_step"
PIXELS = 512
ATTENTION, CONVOLUTION, PRODUCT, REST, ENCODER = "attention", "convolution", "product", "rest", "encoder"
WHAT = {
    ATTENTION: "attention's softmax and products, one kernel of PyTorch's",
    CONVOLUTION: "convolutions by oneDNN",
    PRODUCT: "matrix products: linear layers, adapters, convolutions made products",
    REST: "all else: norms, activations, copies, Python",
}
_KERNELS = {
    "_scaled_dot_product": ATTENTION,
    "convolution": CONVOLUTION,
    "conv2d": CONVOLUTION,
    "aten::mm": PRODUCT,
    "aten::addmm": PRODUCT,
    "aten::bmm": PRODUCT,
}


def main() -> None:
    """Measure, store the figures and publish them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixels", type=int, default=PIXELS)
    pixels = parser.parse_args().pixels
    models.quiet()
    keep(NAME, {"machine": machine(), "pixels": pixels} | measure(pixels))
    show(NAME, section(figures_of(NAME)))


def measure(pixels: int) -> dict[str, Any]:
    """Measure each part of the second of two steps, and encoding a picture; count the forward passes' operations."""
    base = models.full_size()
    unet, encoder = models.adapted(base), models.autoencoder()
    picture = torch.randn(1, 3, pixels, pixels)
    veneer.prepare(unet, "lean")
    models.squared_error(unet, 1, pixels).backward()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        models.squared_error(unet, 1, pixels).backward()
    seconds: dict[str, float] = defaultdict(float)
    for event in profiled.key_averages():
        seconds[_part(event.key)] += event.self_cpu_time_total / 1e6
    encoded = _operations(lambda: encoder.encode(picture))
    seconds[ENCODER] = timed(lambda: encoder.encode(picture))
    denoised = _operations(lambda: models.squared_error(base, 1, pixels))
    return {"seconds": dict(seconds), "operations": denoised | {ENCODER: sum(encoded.values())}}


def _part(kernel: str) -> str:
    return next((part for name, part in _KERNELS.items() if name in kernel), REST)


def _operations(forward: Callable[[], object]) -> dict[str, int]:
    """Count the operations of one forward pass: of attention's products, and of all others."""
    attention: list[int] = []
    plain = functional.scaled_dot_product_attention

    def counting(query: Tensor, key: Tensor, *rest: Any, **named: Any) -> Tensor:
        attention.append(4 * query.numel() * key.shape[-2])
        return plain(query, key, *rest, **named)

    with (
        torch.no_grad(),
        mock.patch.object(functional, "scaled_dot_product_attention", counting),
        FlopCounterMode(display=False) as counter,
    ):
        forward()
    counted = counter.get_flop_counts()["Global"]
    others = sum(number for kernel, number in counted.items() if "scaled_dot_product" not in str(kernel))
    return {ATTENTION: sum(attention), PRODUCT: others}


def section(figures: dict[str, Any]) -> str:
    """Write the page's section from the figures."""
    if not figures:
        return "Not measured yet.\n"
    seconds, operations = figures["seconds"], figures["operations"]
    whole = sum(seconds[part] for part in WHAT)
    rows = [
        f"A step at `lean`, {figures['pixels']} pixels, batch 1, under PyTorch's profiler, on {figures['machine']}.",
        "",
        "| what | seconds | share |",
        "| --- | --- | --- |",
        *(f"| {text} | {seconds[part]:.2f} | {seconds[part] / whole:.1%} |" for part, text in WHAT.items()),
        "",
        _rates(seconds, operations),
        "",
    ]
    return "\n".join(rows)


def _rates(seconds: dict[str, float], operations: dict[str, int]) -> str:
    """Compute how fast each part runs.

    The gradient of a product's input is as much work as the product; attention's backward pass is five products for the
    forward pass' two.
    """
    attention = 3.5 * operations[ATTENTION] / seconds[ATTENTION]
    others = 2 * operations[PRODUCT] / (seconds[CONVOLUTION] + seconds[PRODUCT])
    encoder = operations[ENCODER] / seconds[ENCODER]
    counted = operations[ATTENTION] + operations[PRODUCT]
    return (
        f"Counted: {counted / 1e9:,.0f} GFLOP in the denoiser's forward pass, of them "
        f"{operations[ATTENTION] / 1e9:,.0f} in attention; {operations[ENCODER] / 1e9:,.0f} in the autoencoder's "
        f"encoder. Attention ran at {attention / 1e9:,.0f} GFLOP/s, convolutions and matrix products at "
        f"{others / 1e9:,.0f}, the encoder at {encoder / 1e9:,.0f} ({seconds[ENCODER]:.2f} s)."
    )


if __name__ == "__main__":
    main()
