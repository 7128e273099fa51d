"""Measure what converting a large adapter takes, beside reading and writing the same file: seconds.

Run: python -m benchmarks.convert [MEGABYTES]
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from veneer.adapter.layers import layers_of
from veneer.adapter.lora import LoraFactors
from veneer.family.layer_names import published_names
from veneer.verbs.convert import convert_adapter
from veneer.weights.file import AdapterFile
from veneer.weights.file import save as save_adapter

_REPEATS = 3


def main(megabytes: int = 200) -> None:
    """Print a table: each conversion of an SDXL adapter of so many megabytes, in seconds and as a multiple."""
    base = published_names("sdxl")
    layers = {path: layer for path, layer in layers_of(base.networks).items() if path.startswith("unet.")}
    numbers = sum(layer.weight.shape[0] + layer.weight[0].numel() for layer in layers.values())
    rank = max(1, round(megabytes * 1e6 / 4 / numbers))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for alpha in (rank / 2, rank / 3):
            weights = {path: _factors(layer, rank, alpha) for path, layer in layers.items()}
            for source in ("kohya", "diffusers"):
                save_adapter(AdapterFile(weights), folder / f"{source}.safetensors", source, base)
            del weights
            _measure(folder, alpha / rank)


def _factors(layer: torch.nn.Linear | torch.nn.Conv2d, rank: int, alpha: float) -> LoraFactors:
    out, *inside = layer.weight.shape
    return LoraFactors(torch.randn(rank, *inside), torch.randn(out, rank, *(1 for _ in inside[1:])), alpha)


def _measure(folder: Path, strength: float) -> None:
    for source, to in (("kohya", "diffusers"), ("kohya", "peft"), ("kohya", "comfy"), ("diffusers", "kohya")):
        file, out = folder / f"{source}.safetensors", folder / "out.safetensors"
        place = folder / "peft" if to == "peft" else out
        plain = _seconds(partial(_copy, file, out), out)
        taken = _seconds(partial(convert_adapter, file, place, to, base="sdxl"), place)
        print(
            f"{file.stat().st_size / 1e6:.0f} MB, alpha/r {strength:.3f}, {source} to {to}: "
            f"read and write {plain[0]:.2f} s ({plain[1]:.2f} s of the processor), convert {taken[0]:.2f} s "
            f"({taken[1]:.2f} s), {taken[0] / plain[0]:.2f} times"
        )


def _copy(file: Path, out: Path) -> None:
    """Read a file with the library and write it again, so that it is on the disk."""
    with out.open("wb") as copy:
        copy.write(save(load_file(file)))
        os.fsync(copy.fileno())


def _seconds(work: Callable[[], object], place: Path) -> tuple[float, float]:
    """Return the shortest time of a few, of the clock and of the processor."""
    times = []
    for _ in range(_REPEATS):
        for each in [*place.rglob("*"), place] if place.is_dir() else [place]:
            each.rmdir() if each.is_dir() else each.unlink(missing_ok=True)
        start, used = time.perf_counter(), time.process_time()
        work()
        times.append((time.perf_counter() - start, time.process_time() - used))
    return min(times)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
