"""Measure the peak memory of loading a FLUX-shaped transformer of 3 billion random weights in nf4.

python -m benchmarks.loading               write the weights, load them in processes of their own, write the page
python -m benchmarks.loading --way at_once one way, in this process, from the folder of --folder: prints its bytes

The folder takes 5.9 GB of disk and is removed; nothing holds more than a few GB of memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks import models
from benchmarks.page import figures_of, keep, machine, show
from veneer.engine.memory_usage import read_memory_usage
from veneer.engine.peak_memory import PeakMemory
from veneer.engine.quantized import parameter_count
from veneer.family.abstract import make_network as on_meta
from veneer.family.networks import LoadOptions, load_network, make_network
from veneer.family.offload import Offloader

NAME = "loading"
PROCESS = 1_500_000_000
SHARD = 1_000_000_000
CONFIG = {"num_layers": 4, "num_single_layers": 11, "guidance_embeds": True}
"""FLUX.1 [dev] with fewer blocks, each as wide as its own: 2.9 of 11.9 billion weights."""
WHAT = {
    "at_once": "when the base is loaded",
    "on_demand": "made without weights, read when it is first called",
}
_NETWORK, _FORMAT = "transformer", "bnb_nf4"


def main() -> None:
    """Measure, store the figures and publish them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--way", choices=tuple(WHAT))
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.way is not None:
        print(json.dumps(measure(options.way, options.folder)))
        return
    with tempfile.TemporaryDirectory() as folder:
        shard = write_weights(Path(folder))
        figures = {way: _in_a_process_of_its_own(way, folder) for way in WHAT}
    keep(NAME, {"machine": machine(), "shard": shard, **figures})
    show(NAME, section(figures_of(NAME)))


def _in_a_process_of_its_own(way: str, folder: str) -> Any:
    command = [sys.executable, "-m", "benchmarks.loading", "--way", way, "--folder", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def write_weights(folder: Path, config: Mapping[str, Any] = CONFIG, size: int = SHARD) -> int:
    """Write random bfloat16 weights (seed 0) in shards of so many bytes at most; return the largest one's bytes."""
    network: Any = on_meta(_kind(), config, torch.bfloat16)
    (folder / _NETWORK).mkdir()
    network.save_config(folder / _NETWORK)
    shards = _shards(network, size)
    torch.manual_seed(0)
    index: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        name = f"diffusion_pytorch_model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {key: torch.randn(shape).mul_(0.02).bfloat16() for key, shape in names.items()}
        save_file(tensors, folder / _NETWORK / name, {"format": "pt"})
        index |= dict.fromkeys(names, name)
    text = json.dumps({"metadata": {}, "weight_map": index})
    (folder / _NETWORK / "diffusion_pytorch_model.safetensors.index.json").write_text(text, "utf-8")
    return max(file.stat().st_size for file in (folder / _NETWORK).glob("*.safetensors"))


def _shards(network: nn.Module, size: int) -> list[dict[str, torch.Size]]:
    shards: list[dict[str, torch.Size]] = [{}]
    taken = 0
    for name, weight in network.state_dict().items():
        if taken + weight.nbytes > size and shards[-1]:
            shards.append({})
            taken = 0
        shards[-1][name] = weight.shape
        taken += weight.nbytes
    return shards


def _kind() -> Any:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel


def measure(way: str, folder: Path) -> dict[str, int]:
    """Measure the bytes of the weights as they are held, and of the process at its peak while they are loaded."""
    models.quiet()
    options = LoadOptions(torch.float32, _FORMAT, (_NETWORK,))
    network = partial(load_network, _kind(), folder, _NETWORK, options)
    peak = PeakMemory(torch.device("cpu"))
    if way == "at_once":
        loaded = network()
    else:
        loaded = make_network(_kind(), folder, _NETWORK, options)
        Offloader({_NETWORK: loaded}, lambda _: network()).restore(_NETWORK)
    most = peak.bytes()
    if most is None:
        raise SystemExit("this system cannot reset the peak of a process's memory; Linux can")
    held: list[Tensor] = [*loaded.parameters(), *loaded.buffers()]
    found = {"count": parameter_count(loaded), "weights": sum(tensor.nbytes for tensor in held), "peak": most}
    return {**found, "after": read_memory_usage().current}


def section(figures: dict[str, Any]) -> str:
    """Write the page's section from the figures."""
    if not figures:
        return "Not measured yet.\n"
    rows = [
        f"A FLUX-shaped transformer of {figures['at_once']['count']:,} random weights in bfloat16, in shards of at "
        f"most {figures['shard'] / 1e9:.2f} GB, loaded in nf4 for training, each way in a process of its own, on "
        f"{figures['machine']}. The peak is all that the process holds, Python and its libraries too; the bar is the "
        f"weights as they are held, one shard, and {PROCESS / 1e9:.1f} GB of process.",
        "",
        "| its weights are read | held in nf4, GB | peak, GB | bar, GB |",
        "| --- | --- | --- | --- |",
    ]
    for way, text in WHAT.items():
        own = figures[way]
        bar = own["weights"] + figures["shard"] + PROCESS
        rows.append(f"| {text} | {own['weights'] / 1e9:.2f} | {own['peak'] / 1e9:.2f} | {bar / 1e9:.2f} |")
    whole = 2 * figures["at_once"]["count"] / 1e9
    return "\n".join([*rows, "", f"In bfloat16 they take {whole:.2f} GB, in float32 {2 * whole:.2f}.", ""])


if __name__ == "__main__":
    main()
