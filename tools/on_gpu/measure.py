"""Measure the cases of groups, one after another in this process: ``python -m tools.on_gpu.measure``, of the bench.

Each case's figures are a line of JSON as soon as it ends; one that fails, by memory or otherwise, has its fault there.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import models, peers
from benchmarks.timing import seconds_of_steps
from benchmarks.training_step import config_in, own_steps, write_picture
from tools.on_gpu.groups import GROUPS, PEFT, Group
from tools.on_gpu.sizes import DENOISERS
from veneer.engine.cuda_graph import GraphedBackward
from veneer.engine.memory_levels import MEMORY_LEVELS, prepare
from veneer.engine.quantized import quantization_of, quantize
from veneer.family.protocol import Family

__all__ = ["main", "measure"]

RANK = 16
WARM_UP, COUNT, LIMIT = 3, 12, 1.5
_DTYPE = torch.bfloat16

Step = Callable[[], object]
Case = tuple[str, Callable[..., Step]]
"""A way's name, and what makes its step; the step holds all that it needs."""


def main() -> None:
    """Measure the groups that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("groups", nargs="+", choices=tuple(GROUPS))
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    given = parser.parse_args()
    models.quiet()
    torch.backends.cuda.enable_cudnn_sdp(False)  # for peers as for Veneer, which never uses it: FLUX fails with it
    place = Place(torch.device(given.device), given.file)
    for name in given.groups:
        place.write({"begins": name})
        try:
            measure(GROUPS[name], place)
        except Exception as fault:
            place.write({"group": name, "way": "all", "error": _in_a_line(fault)})


@dataclass(frozen=True)
class Place:
    """Where cases are measured, and the file that takes their figures."""

    device: torch.device
    file: Path

    @property
    def is_full(self) -> bool:
        """Whether sizes are full: on a GPU."""
        return self.device.type == "cuda"

    def write(self, figures: dict[str, Any]) -> None:
        """Append a line."""
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(figures) + "\n")


def measure(group: Group, place: Place) -> None:
    """Measure each way of a group."""
    with tempfile.TemporaryDirectory() as folder:
        cases = _of_batches if group.gib is not None else _of_denoiser if group.base in DENOISERS else _of_base
        for way, make in cases(group, place, Path(folder)):
            began = time.perf_counter()
            figures = _case(make, place) if group.gib is None else _largest_batch(make, place, group.gib)
            took = round(time.perf_counter() - began, 1)
            place.write({"group": group.name, "way": way, **figures, "took": took})


def _case(make: Callable[..., Step], place: Place) -> dict[str, Any]:
    _release(place)
    try:
        step = make()
        seconds = seconds_of_steps(step, WARM_UP if place.is_full else 1, COUNT if place.is_full else 2, LIMIT)
    except Exception as fault:  # memory that runs out, and what a compiler cannot do, are findings
        return {"error": _in_a_line(fault)}
    return {"seconds": median(seconds), "all": [round(each, 5) for each in seconds], "peak": _peak(place)}


def _in_a_line(fault: Exception) -> str:
    return f"{type(fault).__name__}: {' '.join(str(fault).split())}"[:400]


def _release(place: Place) -> None:
    gc.collect()
    torch._dynamo.reset()
    if place.is_full:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak(place: Place) -> int | None:
    return torch.cuda.max_memory_allocated() if place.is_full else None


def _of_base(group: Group, place: Place, folder: Path) -> Iterator[Case]:
    """Yield ways to train Stable Diffusion and SDXL: trainers with their data, and the plain step of peft."""
    pixels = group.pixels if place.is_full else 64
    for number in range(group.batch):
        write_picture(folder, number, pixels)
    family = models.published_family(group.base, place.device, place.is_full)
    if group.base == "sd15" and not group.is_compiled:
        for memory in ("exact", "lean"):
            yield f"veneer train, {memory}, base in float32", _trainer(family, folder, memory, group, pixels)
    family.to(place.device, _DTYPE)
    yield PEFT, lambda: _peft(family, group, pixels)
    if group.base == "sd15" and not group.is_compiled:
        yield "diffusers' example", lambda: _example(family, folder, group.batch, pixels)
    for memory in MEMORY_LEVELS[: 2 if group.is_compiled else None]:
        yield f"veneer, {memory}", _trainer(family, folder, memory, group, pixels)
    if not group.is_compiled:
        quantize(family.networks[family.denoiser], "bfloat16")
        for memory in MEMORY_LEVELS:
            yield f"veneer train, {memory}, base held in bfloat16", _trainer(family, folder, memory, group, pixels)


def _trainer(family: Family, folder: Path, memory: str, group: Group, pixels: int) -> Callable[[], Step]:
    def make() -> Step:
        train = {"batch_size": group.batch, "precision": "bfloat16"}
        train["quantization"] = quantization_of(family.networks[family.denoiser])
        config = config_in(folder, memory, pixels, train, {"rank": RANK})
        steps = own_steps(config, family)
        if not group.is_compiled:
            return lambda: next(steps)
        next(steps)  # its adapters are put in, and compiled with the rest
        _compile(family.networks[family.denoiser])
        return lambda: next(steps)

    return make


def _compile(network: Any) -> None:
    network.compile_repeated_blocks()


def _peft(family: Family, group: Group, pixels: int) -> Step:
    unet = models.twin(family.networks[family.denoiser])
    weight, config = next(unet.parameters()), unet.config
    side, rows = pixels // 8, group.batch
    latents = torch.randn(rows, 4, side, side).to(weight)
    states = torch.randn(rows, 77, config.cross_attention_dim).to(weight)
    added = {}
    if group.base == "sdxl":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        added = {"text_embeds": torch.randn(rows, pooled).to(weight), "time_ids": torch.ones(rows, 6).to(weight)}
    pipeline: Any = family.pipeline()
    scheduler = pipeline.scheduler.config
    steps = peers.latent_steps(unet, scheduler, latents, states, added, RANK)
    if group.is_compiled:
        next(steps)
        _compile(unet)
    return lambda: next(steps)


def _example(family: Family, folder: Path, batch: int, pixels: int) -> Step:
    pipeline = models.beside(family.pipeline())
    pictures = [(path, "a castle") for path in sorted((folder / "pictures").glob("*.png"))]
    steps = peers.text_to_image_steps(pipeline, pictures, pixels, batch, RANK)
    return lambda: next(steps)


def _of_denoiser(group: Group, place: Place, folder: Path) -> Iterator[Case]:
    """Yield peft's adapters on a transformer alone, as they come and prepared at each level."""
    from peft import LoraConfig, inject_adapter_in_model

    pixels = group.pixels if place.is_full else 64
    denoiser = DENOISERS[group.base](place.device, _DTYPE, pixels, place.is_full)
    config = LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights=False, target_modules=list(denoiser.targets))
    network = inject_adapter_in_model(config, denoiser.network).train()
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.data = parameter.data.float()

    def backward(_: Mapping[str, Tensor]) -> Tensor:
        with torch.autocast(place.device.type, dtype=_DTYPE):
            loss = denoiser.call(network).float().square().mean()
        torch.autograd.backward(loss)
        return loss.detach()

    yield PEFT, lambda: _denoiser_step(backward, learning, is_fused=False)
    for memory in MEMORY_LEVELS:
        prepared = prepare(network, memory)
        graphed = GraphedBackward(backward, learning) if place.is_full else backward
        yield f"veneer, {memory}", partial(_denoiser_step, graphed, learning, place.is_full)
        if isinstance(graphed, GraphedBackward):
            graphed.release()
            if graphed.fault is not None:
                place.write({"group": group.name, "fault": f"no CUDA graph, {memory}: {graphed.fault}"})
        prepared.undo()


def _denoiser_step(
    backward: Callable[[Mapping[str, Tensor]], Tensor], learning: list[nn.Parameter], is_fused: bool
) -> Step:
    optimizer = torch.optim.AdamW(learning, lr=1e-4, fused=is_fused or None)

    def step() -> float:
        optimizer.zero_grad()
        loss = backward({})
        nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        return loss.item()  # as a training does, which shows it

    return step


def _of_batches(group: Group, place: Place, folder: Path) -> Iterator[Case]:
    """Yield ways to do a step of a batch of any size: peft's adapters on the UNet, as they come and prepared."""
    pixels = group.pixels if place.is_full else 64
    base = models.published_family(group.base, place.device, place.is_full).networks["unet"].to(_DTYPE)
    for memory in MEMORY_LEVELS:
        model = models.adapted(base, RANK)
        prepare(model, memory)
        yield PEFT if memory == "exact" else f"engine, {memory}", partial(_batch_step, model, pixels)


def _batch_step(model: nn.Module, pixels: int, rows: int) -> Step:
    def step() -> None:
        with torch.autocast(next(model.parameters()).device.type, dtype=_DTYPE):
            loss = models.squared_error(model, rows, pixels)
        torch.autograd.backward(loss)

    return step


def _largest_batch(make: Callable[..., Step], place: Place, gib: float) -> dict[str, Any]:
    """Return the largest batch whose step fits, found by doubling and then bisection."""
    if place.is_full:
        whole = torch.cuda.get_device_properties(place.device).total_memory
        torch.cuda.set_per_process_memory_fraction(gib * 2**30 / whole)
    most = 512 if place.is_full else 4
    fits, low, high = partial(_fits, make, place), 0, 1
    while high <= most and fits(high):
        low, high = high, 2 * high
    while low < most and high - low > max(1, low // 16):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return {"batch": low}


def _fits(make: Callable[..., Step], place: Place, rows: int) -> bool:
    _release(place)
    try:
        make(rows)()
    except torch.OutOfMemoryError:
        return False
    return True


if __name__ == "__main__":
    main()
