"""How near a plan's memory comes to what a process takes: every case planned, then measured in a process of its own.

``python -m tools.plan_accuracy`` plans and probes the bundled base and a Stable Diffusion 1.5 of full size with random
weights, at batch 1 and 4, with and without checkpointing, and writes figures.json beside this file and the table of
docs/plan.md. It needs some 10 GB of memory and 5 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

import veneer
from tools.publish import publish
from veneer.config.schema import RunConfig
from veneer.family.published import read_published
from veneer.malloc import request_large_pages
from veneer.plan.assessment import assess_config
from veneer.plan.probe import probe
from veneer.plan.text import format_bytes

__all__ = ["FIGURES", "PAGE", "cases", "error", "measure", "table", "write_full_size", "write_pictures"]

FIGURES = Path(__file__).parent / "figures.json"
PAGE = Path(__file__).parents[2] / "docs" / "plan.md"
_PICTURES = 8
_PIXELS = 256


def write_full_size(folder: Path) -> None:
    """A Stable Diffusion 1.5 of the published architecture, its weights drawn at random, in float32."""
    torch.manual_seed(0)
    parts = read_published("sd15").parts
    UNet2DConditionModel.from_config(dict(parts["unet"])).save_pretrained(folder / "unet")
    AutoencoderKL.from_config(dict(parts["vae"])).save_pretrained(folder / "vae")
    CLIPTextModel(CLIPTextConfig.from_dict(dict(parts["text_encoder"]))).save_pretrained(folder / "text_encoder")
    own = veneer.base_path()
    for part in ("tokenizer", "scheduler"):
        shutil.copytree(own / part, folder / part)
    settings = json.loads((own / "tokenizer" / "tokenizer_config.json").read_text())
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 77}))
    shutil.copy(own / "model_index.json", folder)


def write_pictures(folder: Path) -> None:
    """Pictures of noise, each with a caption."""
    folder.mkdir()
    for number in range(_PICTURES):
        pixels = np.random.default_rng(number).integers(0, 256, (_PIXELS, _PIXELS, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("noise")


def cases(bases: dict[str, tuple[str, int]], pictures: Path) -> Iterator[tuple[str, RunConfig]]:
    """The runs to plan, by a name; ``bases`` are places and sides in pixels by what they are called."""
    for name, (base, side) in bases.items():
        for batch in (1, 4):
            for memory in ("exact", "checkpoint"):
                values: dict[str, Any] = {
                    "base": base,
                    "data": {"sources": [{"path": str(pictures)}], "resolution": side},
                    "train": {"batch_size": batch, "memory": memory},
                }
                yield f"{name}, {side} pixels, batch {batch}, {memory}", veneer.build_config(values, "case")


def measure(config: RunConfig) -> dict[str, Any]:
    """Planned and measured bytes of one run."""
    memory = assess_config(config, count_pictures=True, limit=None).plan.memory
    assert memory is not None
    found = probe(config)
    planned = {phase.name: phase.peak - memory.before for phase in memory.phases if phase.name in found.peaks}
    tensors = max(phase.tensors for phase in memory.phases if phase.name in found.peaks)
    measured = {"before": found.before, "measured": dict(found.peaks), "seconds": found.seconds}
    return {"tensors": tensors, "planned": planned, **measured}


def error(of: Mapping[str, Any], held: int = 0) -> float:
    """Of the planned peak, as a share of the measured one; ``held`` is added to both."""
    return float((held + max(of["planned"].values())) / (held + max(of["measured"].values())) - 1)


def table(figures: Mapping[str, Any]) -> str:
    """The figures as the page has them."""
    lines = ["| run | tensors | planned | measured | error | of the process |", "| --- | --- | --- | --- | --- | --- |"]
    for name, of in figures["cases"].items():
        sizes = (of["tensors"], max(of["planned"].values()), max(of["measured"].values()))
        errors = (error(of), error(of, of["before"]))
        lines.append(
            f"| {name} | {' | '.join(map(format_bytes, sizes))} | {' | '.join(f'{each:+.1%}' for each in errors)} |"
        )
    return "\n".join([*lines, "", f"Measured with {figures['machine']}.", ""])


def main() -> None:
    """Plan and measure the cases, all or those asked for; the figures of the others stay."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="keep the full-size base here")
    parser.add_argument("--only", default="", help="measure the cases alone whose names have this in them")
    arguments = parser.parse_args()
    request_large_pages()  # as the command line does
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.work or Path(temporary)
        if not arguments.only.startswith("bundled") and not (folder / "sd15").exists():
            write_full_size(folder / "sd15")
        write_pictures(Path(temporary) / "pictures")
        bases = {"bundled base": ("bundled", 64), "SD 1.5": (str(folder / "sd15"), _PIXELS)}
        found = {
            name: measure(config)
            for name, config in cases(bases, Path(temporary) / "pictures")
            if arguments.only in name
        }
    _keep(found)


def _keep(found: Mapping[str, Any]) -> None:
    machine = f"PyTorch {torch.__version__} on the CPU, {torch.get_num_threads()} threads of {os.cpu_count()} cores"
    before = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    kept = before.get("cases", {}) if before.get("machine") == machine else {}
    figures = {"machine": machine, "cases": {**kept, **found}}
    FIGURES.write_text(json.dumps(figures, indent=2) + "\n")
    publish(PAGE, table(figures))
    print(table(figures))


if __name__ == "__main__":
    main()
