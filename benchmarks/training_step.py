"""Time a whole training step with its data: veneer's trainer beside diffusers' text-to-image LoRA example.

python -m benchmarks.training_step             measure, write results and page
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from PIL import Image

import veneer
from benchmarks import models, peers
from benchmarks.page import figures_of, keep, machine, show
from benchmarks.timing import interleaved, ratio
from veneer.config.schema import RunConfig
from veneer.family.protocol import Family
from veneer.family.sd import StableDiffusion
from veneer.train.events import StepDone
from veneer.train.loop import train

NAME = "training_step"
BAR = 0.62
PIXELS, STORED = 512, 640
PEER, EXACT, LEAN = "diffusers' example", "veneer, exact", "veneer, lean"
WHAT = {
    PEER: "diffusers' `train_text_to_image_lora.py`",
    EXACT: "`veneer train`, `train.memory=exact`: latents and text kept, no engine",
    LEAN: "`veneer train`, `train.memory=lean`",
}
MEMORY = {EXACT: "exact", LEAN: "lean"}


def main() -> None:
    """Measure, store the figures and publish them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    models.quiet()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), parser.parse_args().rounds)
    keep(NAME, figures)
    show(NAME, section(figures_of(NAME)))


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """Time each way's steps, and what only a picture's first step does."""
    pipeline: Any = models.full_size_pipeline()
    pictures = _pictures(folder)
    steps = {PEER: peers.text_to_image_steps(models.beside(pipeline), pictures, PIXELS)}
    for way, memory in MEMORY.items():
        family = StableDiffusion(models.beside(pipeline).components)
        steps[way] = own_steps(config_in(folder, memory), family)
    return {
        "machine": machine(),
        "seconds": interleaved({way: lambda it=it: next(it) for way, it in steps.items()}, rounds),  # type: ignore[misc]
    }


def _pictures(folder: Path) -> list[tuple[Path, str]]:
    """Write one picture of the demo, enlarged, with its caption: the untimed round is then the one that encodes it."""
    return [(write_picture(folder, 0, STORED), "a castle")]


def write_picture(folder: Path, number: int, side: int) -> Path:
    """Write the picture of this number of the demo, enlarged, with its caption."""
    place = folder / "pictures" / f"castle{number}.png"
    place.parent.mkdir(exist_ok=True)
    with Image.open(sorted((veneer.demo_path() / "train").glob("*.png"))[number]) as picture:
        picture.convert("RGB").resize((side, side)).save(place)
    place.with_suffix(".txt").write_text("a castle")
    return place


def config_in(
    folder: Path,
    memory: str,
    pixels: int = PIXELS,
    train: Mapping[str, Any] = MappingProxyType({}),
    adapter: Mapping[str, Any] = MappingProxyType({}),
) -> RunConfig:
    """Configure the example's settings: batch 1, rank 4, AdamW at 1e-4, gradients clipped to 1; and what is given."""
    return veneer.build_config(
        {
            "base": "bundled",  # named only; the networks are given
            "output": {"dir": str(folder / "run")},
            "data": {
                "sources": [{"path": str(folder / "pictures")}],
                "held_out": 0.0,
                "resolution": pixels,
            },
            "adapter": dict(adapter),
            "train": {"max_steps": 10_000, "batch_size": 1, "memory": memory, "checkpoint_every": 0, **train},
            "sample": {"every": 0},
            "validation": {"every": 0},
        },
        origin="benchmark",
    )


def own_steps(config: RunConfig, family: Family) -> Iterator[float]:
    """Yield the loss of each step, from the trainer's events."""
    for event in train(config, family, veneer.survey(config.data)):
        if isinstance(event, StepDone):
            yield event.loss


def section(figures: dict[str, Any]) -> str:
    """Write the page's section from the figures."""
    if not figures:
        return "Not measured yet.\n"
    seconds = figures["seconds"]
    rows = [
        f"Stable Diffusion 1.5's size, {PIXELS} pixels, batch 1, on {figures['machine']}; {len(seconds[PEER])} steps:",
        "",
        "| a step | seconds | over diffusers' example |",
        "| --- | --- | --- |",
    ]
    for way, text in WHAT.items():
        rows.append(f"| {text} | {_middle(seconds[way]):.2f} | {ratio(seconds[way], seconds[PEER])} |")
    best = ratio(seconds[LEAN], seconds[PEER]).middle
    rows += ["", f"Bar: `lean` {best:.3f} of {BAR} allowed.", ""]
    return "\n".join(rows)


def _middle(seconds: Sequence[float]) -> float:
    return sorted(seconds)[len(seconds) // 2]


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
