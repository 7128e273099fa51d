"""Keep the figures of benchmarks and quote them on a page: each has a file of results and a section."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tools.publish import publish
from veneer.files import atomic_write

__all__ = ["PAGE", "figures_of", "keep", "machine", "show"]

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
_RESULTS = Path(__file__).parent / "results"


def figures_of(name: str) -> dict[str, Any]:
    """Return a benchmark's last figures; none before its first run."""
    path = _RESULTS / f"{name}.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def keep(name: str, figures: dict[str, Any]) -> None:
    """Write a benchmark's figures."""
    atomic_write(_RESULTS / f"{name}.json", (json.dumps(figures, indent=1) + "\n").encode())


def show(name: str, text: str) -> None:
    """Put a benchmark's section into the page, and print it."""
    publish(PAGE, text, name)
    print(text)


def machine() -> str:
    """Describe the machine that figures are taken on, in a line."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "peft"))
    return f"{device}, {torch.get_num_threads()} thread(s), float32, {packages}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
