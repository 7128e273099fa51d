"""Time the ways to another adapter on a loaded pipeline: a row of the bank, merging, and what diffusers offers.

python -m benchmarks.switching            measure on both bases, write results and page
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import veneer
from benchmarks import models, peers
from benchmarks.page import figures_of, keep, machine, show
from benchmarks.timing import Seconds, interleaved, ratio

NAME = "switching"
FUSE, HOTSWAP, SET = "diffusers, load and fuse", "diffusers, hotswap", "diffusers, set_adapters"
BANK, BANK_FILE, MERGE, MERGE_FILE = "bank", "bank, from its file", "merge", "merge, from its file"
WHAT = {
    FUSE: "diffusers: `load_lora_weights(file)`, `fuse_lora()`",
    HOTSWAP: "diffusers: `load_lora_weights(file, hotswap=True)`, not fused",
    SET: "diffusers: `set_adapters(name)`, both loaded before, not fused",
    BANK: "veneer: `bank.rows([name])`, both in the bank before",
    BANK_FILE: "veneer: `load_adapter(file)`, `bank.add`, `bank.rows([name])`",
    MERGE: "veneer: `merged.undo()`, `merge(networks, ...)`, both in memory before",
    MERGE_FILE: "veneer: `merged.undo()`, `load_adapter(file)`, `merge(networks, ...)`",
}
TITLES = {"bundled": "The bundled base", "full": "Stable Diffusion 1.5's denoiser at full size"}


def main() -> None:
    """Measure, store the figures and publish them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    models.quiet()
    figures = figures_of(NAME) | {"machine": machine()}
    for base in TITLES:
        pipeline: Any = models.bundled()
        if base == "full":
            pipeline.unet = models.full_size()
        with tempfile.TemporaryDirectory() as folder:
            figures[base] = _measure(pipeline, Path(folder), rounds)
        keep(NAME, figures)
    show(NAME, section(figures))


def _measure(pipeline: Any, folder: Path, rounds: int) -> Seconds:
    adapters = models.adapters({"unet": pipeline.unet}, 2)
    files = peers.write(adapters, folder)
    fusing = models.beside(pipeline)
    return interleaved(
        {FUSE: lambda: _fuse(fusing, files["a0"])} | _theirs(pipeline, files) | _ours(pipeline, files),
        rounds,
        undo={FUSE: lambda: _unfuse(fusing)},
    )


def _fuse(pipeline: Any, file: str) -> None:
    pipeline.load_lora_weights(file)
    pipeline.fuse_lora()


def _unfuse(pipeline: Any) -> None:
    pipeline.unfuse_lora()
    pipeline.unload_lora_weights()


def _theirs(pipeline: Any, files: dict[str, str]) -> dict[str, Callable[[], object]]:
    """Return diffusers' other ways, from one of two adapters to the other."""
    swapped: Any = models.beside(pipeline)
    loaded: Any = models.beside(pipeline)
    swapped.load_lora_weights(files["a0"], adapter_name="one")
    peers.load_all(loaded, files)
    turn, other = _turns(files), _turns(files)
    return {
        HOTSWAP: lambda: swapped.load_lora_weights(files[next(turn)], adapter_name="one", hotswap=True),
        SET: lambda: loaded.set_adapters(next(other)),
    }


def _ours(pipeline: Any, files: dict[str, str]) -> dict[str, Callable[[], object]]:
    """Return our ways from one of two adapters to the other, each over a network of its own."""
    networks = {"unet": models.beside(pipeline).unet}
    adapters = {name: veneer.load_adapter(Path(file)).weights for name, file in files.items()}
    bank, turns = veneer.AdapterBank(networks), {way: _turns(files) for way in (BANK, BANK_FILE, MERGE, MERGE_FILE)}
    for name, factors in adapters.items():
        bank.add(name, factors)
    targets = [{"unet": models.beside(pipeline).unet} for _ in range(2)]
    merged = [veneer.merge(target, []) for target in targets]

    def choose(name: str) -> None:
        with bank.rows([name]):
            pass

    def choose_from_file() -> None:
        name = next(turns[BANK_FILE])
        bank.remove(name)
        bank.add(name, veneer.load_adapter(Path(files[name])).weights)
        choose(name)

    def swap(place: int, factors: Any) -> None:
        merged[place].undo()
        merged[place] = veneer.merge(targets[place], [(factors, 1.0)])

    return {
        BANK: lambda: choose(next(turns[BANK])),
        BANK_FILE: choose_from_file,
        MERGE: lambda: swap(0, adapters[next(turns[MERGE])]),
        MERGE_FILE: lambda: swap(1, veneer.load_adapter(Path(files[next(turns[MERGE_FILE])])).weights),
    }


def _turns(files: dict[str, str]) -> Iterator[str]:
    return itertools.cycle(files)


def section(figures: dict[str, Any]) -> str:
    """Write the page's section from the figures."""
    return "\n".join([f"On {figures['machine']}.\n", *(_table(figures[base], TITLES[base]) for base in TITLES)])


def _table(seconds: Seconds, title: str) -> str:
    rows = [
        f"{title}; adapters of rank 4 on the attention:",
        "",
        "| switch | milliseconds | over diffusers' load and fuse |",
    ]
    rows.append("| --- | --- | --- |")
    for name, taken in seconds.items():
        rows.append(f"| {WHAT[name]} | {1e3 * sorted(taken)[len(taken) // 2]:.1f} | {ratio(taken, seconds[FUSE])} |")
    return "\n".join([*rows, ""])


if __name__ == "__main__":
    main()
