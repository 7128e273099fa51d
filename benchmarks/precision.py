"""Measure what a frozen base weighs in each format, what unpacking costs, and how much of the base's skill is left.

python -m benchmarks.precision            measure, write results and page
python -m benchmarks.precision --only bundled --quick --no-page
                                          a part of it, coarsely, and nothing written
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn

import veneer
from benchmarks import models
from benchmarks.page import ROOT, figures_of, keep, machine
from benchmarks.timing import interleaved, ratio
from tools.publish import publish
from veneer.data.preflight import Dataset, survey
from veneer.engine.quantization import FORMATS, NONE
from veneer.engine.quantized import parameter_count, quantize
from veneer.evaluate.comparison import Losses, paired_difference
from veneer.evaluate.heldout import choose_pictures, heldout_losses
from veneer.family.published import read_published
from veneer.plan.tracer import MemoryTracer
from veneer.train.loop import Trainer
from veneer.train.step import train_step

__all__ = ["NAME", "PAGE", "full_size", "main", "section", "weights_of"]

NAME = "precision"
PAGE = ROOT / "docs" / "precision.md"
_ALL = (NONE, *FORMATS)
_PARTS = ("full", "bundled")
_SIDE = 64


def main() -> None:
    """Measure, store the figures and publish them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=_PARTS, help="one of the two parts")
    parser.add_argument("--quick", action="store_true", help="two pictures and one round: to see that it runs")
    parser.add_argument("--no-page", action="store_true", help="print, write nothing")
    asked = parser.parse_args()
    models.quiet()
    figures = figures_of(NAME) | {"machine": machine()}
    if asked.only != "bundled":
        figures["full"] = {format: weights_of(full_size, format) for format in _ALL}
    if asked.only != "full":
        figures["bundled"] = _bundled(pictures=2 if asked.quick else 64, rounds=1 if asked.quick else 5)
    if not asked.no_page:
        keep(NAME, figures)
        publish(PAGE, section(figures), NAME)
    print(section(figures))


def full_size() -> nn.Module:
    """Make Stable Diffusion 1.5's UNet without numbers."""
    with torch.device("meta"):
        made: nn.Module = UNet2DConditionModel.from_config(dict(read_published("sd15").parts["unet"]))
    return made


def weights_of(make: Callable[[], nn.Module], format: str) -> dict[str, int]:
    """Count the bytes of a network's packed weights in a format, and of all else.

    Args:
        make: the network, on the meta device.
        format: a key of ``FORMATS``, or ``none``.
    """
    plain = make()
    whole = sum(parameter.nbytes for parameter in plain.parameters())
    tracer = MemoryTracer(torch.device("cpu"))
    with tracer.tracing():
        held = tracer.without_data(plain)
        quantize(held, format)
    packed = sum(buffer.nbytes for buffer in held.buffers() if buffer.dtype == torch.uint8)
    assert parameter_count(held) * 4 == whole
    return {"packed": packed, "rest": sum(parameter.nbytes for parameter in held.parameters())}


def _bundled(pictures: int, rounds: int) -> dict[str, Any]:
    """Measure held-out losses of the bundled base in each format, and the seconds of a training step."""
    bases = {format: veneer.load_base("bundled", format) for format in _ALL}
    dataset = survey(_config(NONE, pictures).data)
    held_out = choose_pictures(dataset.held_out, pictures)
    losses = {format: heldout_losses(_config(format, pictures), base, held_out) for format, base in bases.items()}
    steps = {format: _step(format, base, dataset, pictures) for format, base in bases.items()}
    seconds = interleaved(steps, rounds)
    return {"losses": {format: _beside(found, losses[NONE]) for format, found in losses.items()}, "seconds": seconds}


def _config(format: str, pictures: int) -> veneer.RunConfig:
    demo = veneer.demo_path()
    values: dict[str, Any] = {
        "base": "bundled",
        "data": {"sources": [{"path": str(demo / "train")}], "held_out": str(demo / "held_out"), "resolution": _SIDE},
        "train": {"quantization": format, "batch_size": 4, "memory": "lean"},
        "validation": {"pictures": pictures},
    }
    return veneer.build_config(values, "benchmark")


def _beside(losses: Losses, full: Losses) -> dict[str, float]:
    found = paired_difference(losses, full)
    return {"base": found.base, "difference": found.mean, "low": found.low, "high": found.high}


def _step(format: str, base: Any, dataset: Dataset, pictures: int) -> Callable[[], object]:
    """Return a step on pictures that are encoded already; the trainer is left open as long as the base is there."""
    trainer = Trainer(_config(format, pictures), base, dataset)
    micros = trainer.batches.micro_batches(0)
    return lambda: train_step(trainer.context, 0, micros)


def section(figures: dict[str, Any]) -> str:
    """Write a table for each part that was measured."""
    parts = {"full": _weights, "bundled": _skill}
    tables = ["\n".join(part(figures)) for name, part in parts.items() if name in figures]
    return ("\n\n".join(tables) or "Not measured yet.") + "\n"


def _weights(figures: dict[str, Any]) -> list[str]:
    full = figures["full"]
    whole = sum(full[NONE].values())
    rows = [(format, full[format]["packed"], full[format]["rest"], sum(full[format].values())) for format in _ALL]
    return [
        "Stable Diffusion 1.5's UNet, in MB (10^6 bytes), counted:",
        "",
        "| `train.quantization` | packed weights | all else | together | of float32 |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| `{format}` | {packed / 1e6:,.1f} | {rest / 1e6:,.1f} | {both / 1e6:,.1f} | {both / whole:.3f} |"
            for format, packed, rest, both in rows
        ),
    ]


def _skill(figures: dict[str, Any]) -> list[str]:
    losses, seconds = figures["bundled"]["losses"], figures["bundled"]["seconds"]
    return [
        f"The bundled base, on {figures['machine']}. Held-out loss of the base itself beside float32's "
        f"({losses[NONE]['base']:.4f}), with a 95 % interval over pictures; a training step of batch 4:",
        "",
        "| `train.quantization` | loss over float32's | step, ms | over float32's |",
        "| --- | --- | --- | --- |",
        *(_row(format, losses[format], seconds[format], seconds[NONE]) for format in _ALL),
    ]


def _row(format: str, loss: dict[str, float], seconds: list[float], plain: list[float]) -> str:
    difference = f"{loss['difference']:+.5f} ({loss['low']:+.5f} to {loss['high']:+.5f})"
    return f"| `{format}` | {difference} | {median(seconds) * 1e3:,.0f} | {ratio(seconds, plain)} |"


if __name__ == "__main__":
    main()
