"""Measure the peak memory of training beyond the weights: an adapter beside the whole network.

python -m benchmarks.peak_memory                measure each way in a process of its own, write results and page
python -m benchmarks.peak_memory --way lean     one way, in this process: prints its bytes
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

import torch

import veneer
from benchmarks import models
from benchmarks.page import figures_of, keep, machine, show
from veneer.engine.memory_usage import read_memory_usage
from veneer.engine.peak_memory import PeakMemory

NAME = "peak_memory"
BAR = 0.33
PIXELS, STEPS = 256, 2
FULL, PEFT = "full", "exact"
WHAT = {
    FULL: "all of the network trained",
    PEFT: "peft's adapters in diffusers",
    "lean": "the same adapters, prepared at `lean`",
    "leaner": "prepared at `leaner`",
    "checkpoint": "prepared at `checkpoint`",
}


def main() -> None:
    """Measure, store the figures and publish them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--way", choices=tuple(WHAT))
    way = parser.parse_args().way
    if way is not None:
        print(json.dumps(measure(way)))
        return
    keep(NAME, {"machine": machine()} | {way: _in_a_process_of_its_own(way) for way in WHAT})
    show(NAME, section(figures_of(NAME)))


def _in_a_process_of_its_own(way: str) -> Any:
    command = [sys.executable, "-m", "benchmarks.peak_memory", "--way", way]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(way: str) -> dict[str, int]:
    """Measure the bytes of the frozen weights, of the process before the first step, and at its peak over two steps."""
    models.quiet()
    unet: Any = models.full_size()
    weights = sum(parameter.nbytes for parameter in unet.parameters())
    if way == FULL:
        unet.requires_grad_(True).train()
    else:
        base, unet = unet, models.adapted(unet)
        del base
        veneer.prepare(unet, way)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW([parameter for parameter in unet.parameters() if parameter.requires_grad], lr=1e-5)
    peak, before = PeakMemory(torch.device("cpu")), read_memory_usage()
    for _ in range(STEPS):
        models.squared_error(unet, 1, PIXELS).backward()
        optimizer.step()
        optimizer.zero_grad()
    most = peak.bytes()
    if most is None:
        raise SystemExit("this system cannot reset the peak of a process's memory; Linux can")
    return {"weights": weights, "before": before.current, "peak": most}


def section(figures: dict[str, Any]) -> str:
    """Write the page's section from the figures."""
    if not figures:
        return "Not measured yet.\n"
    rows = [
        f"Stable Diffusion 1.5's denoiser at full size, {PIXELS} pixels, batch 1, {STEPS} steps of AdamW, each way in "
        f"a process of its own, on {figures['machine']}. Beyond the weights is all that the process holds but them, "
        "Python and its libraries too; what the steps add is the peak less what the process held before the first.",
        "",
        "| what is trained | peak, GiB | beyond the weights, GiB | over training all | added by steps, likewise |",
        "| --- | --- | --- | --- | --- |",
    ]
    full = figures[FULL]
    for way, text in WHAT.items():
        own = figures[way]
        rows.append(
            f"| {text} | {own['peak'] / 2**30:.2f} | {_beyond(own) / 2**30:.2f} | {_beyond(own) / _beyond(full):.3f} | "
            f"{_added(own) / _added(full):.3f} |"
        )
    said = "; ".join(f"`{way}` {_beyond(figures[way]) / _beyond(full):.3f}" for way in ("lean", "leaner"))
    return "\n".join([*rows, "", f"Bar: {said} of {BAR} allowed.", ""])


def _beyond(figures: dict[str, int]) -> int:
    return figures["peak"] - figures["weights"]


def _added(figures: dict[str, int]) -> int:
    return figures["peak"] - figures["before"]


if __name__ == "__main__":
    main()
