"""Measure what a million pictures cost before the first step: listing, splitting, bucketing and drawing them.

python -m benchmarks.manifest                 measure every size, write results, page and docs/manifest.png
python -m benchmarks.manifest --size 10000    one size, in this process, which prints its figures
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from veneer.config.data_config import DataConfig
from veneer.config.source_config import SourceConfig
from veneer.data.buckets import Buckets
from veneer.data.duplicates import THUMB
from veneer.data.loader import DrawSchedule
from veneer.data.manifest import content_id
from veneer.data.preflight import Dataset, survey
from veneer.data.remote import RemoteState
from veneer.data.seen import Look, Seen
from veneer.data.sources.shard_index import ShardIndex
from veneer.data.sources.webdataset_shard import PackedPicture, ShardContent

NAME = "manifest"
SIZES = (10_000, 100_000, 1_000_000)
SECONDS, GIGABYTES = 60, 2.0
"""Bars for a million."""
PLOT = Path(__file__).parents[1] / "docs" / "manifest.png"
_SHARD = 10_000
_URL = "https://shards.example/{}.tar"
_STEPS, _BATCH = 100, 4
_STATE = RemoteState(1, "the same")
LIST, BUCKET, DRAW, HASH = "list, compare and split", "bucket", f"draw {_STEPS} steps", "fingerprint"


def main() -> None:
    """Measure, store the figures, publish and draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int)
    options = parser.parse_args()
    if options.size:
        print(json.dumps(measure(options.size)))
        return
    from benchmarks.page import keep, machine, show  # which import PyTorch, of which a million pictures need nothing

    figures = {"machine": machine(), "sizes": [_measure_alone(size) for size in SIZES]}
    keep(NAME, figures)
    draw(figures)
    show(NAME, section(figures))


def _measure_alone(size: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.manifest", "--size", str(size)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def measure(size: int) -> dict[str, float]:
    """Return the seconds of each stage and the process's peak memory in GB, for so many pictures."""
    with tempfile.TemporaryDirectory() as folder, mock.patch("veneer.data.sources.webdataset.remote_state") as state:
        state.return_value = _STATE
        source = SourceConfig(path=Path(_URL.format(f"{{0..{(size - 1) // _SHARD}}}")))
        config = DataConfig(sources=(source,), cache=Path(folder))
        write_index(size, config)
        figures: dict[str, float] = {"size": size}
        dataset: Dataset = _timed(figures, LIST, lambda: survey(config))
        schedule = _timed(figures, BUCKET, lambda: DrawSchedule(dataset.train, Buckets((512,), 64), 0, _BATCH))
        _timed(figures, DRAW, lambda: [schedule.micro_batch(step) for step in range(_STEPS)])
        _timed(figures, HASH, dataset.train.fingerprint)
        figures["GB"] = _peak_memory() / 1e9
        assert len(dataset.train.samples) + len(dataset.held_out.samples) == size
        return figures


def _peak_memory() -> int:
    """Return the most memory that this process has held, in bytes; what it was forked from counts for getrusage."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _timed(figures: dict[str, float], name: str, call: Callable[[], Any]) -> Any:
    start = time.process_time()
    result = call()
    figures[name] = time.process_time() - start
    return result


def write_index(size: int, config: DataConfig) -> None:
    """Write indexes of shards as reading them would: made-up pictures of usual shapes, one in a hundred a copy."""
    index, source = ShardIndex(config.cache), config.sources[0]
    for start in range(0, size, _SHARD):
        count = min(_SHARD, size - start)
        shard = ShardContent([_picture(start + place, thumb) for place, thumb in enumerate(thumbs(count, start))])
        index.get_or_read(_URL.format(start // _SHARD), _STATE, source, lambda shard=shard: shard)  # type: ignore[misc]


def _picture(number: int, thumb: NDArray[np.uint8]) -> PackedPicture:
    content = content_id(str(number).encode())
    width, height = ((512, 768), (1024, 768), (640, 640), (1920, 1080), (700 + number % 300, 900))[number % 5]
    seen = Seen(content, width, height, thumb.tobytes(), (), Look((), 0.5, False))
    name = f"{number:09d}"
    caption = f"a picture of thing {number}, seen from place {number % 977} in the light of the morning"
    return PackedPicture(f"{name}.jpg", 512 * number, 200_000, (caption,), f"{name}.txt", seen)


def thumbs(count: int, seed: int) -> NDArray[np.uint8]:
    """Return thumbnails (count, 8, 8, 3) whose amplitudes fall with the frequency, as those of photographs do."""
    random = np.random.default_rng(seed)
    frequency = np.sqrt(np.fft.fftfreq(THUMB)[:, None] ** 2 + np.fft.fftfreq(THUMB)[None] ** 2)
    noise = np.fft.fft2(random.standard_normal((count, 4, THUMB, THUMB)))
    waves = np.fft.ifft2(noise / np.maximum(frequency, 1 / THUMB)).real
    waves /= waves.std()
    light = np.moveaxis(waves[:, :1] + 0.35 * waves[:, 1:], 1, -1)
    contrast, brightness = random.uniform(20, 80, (count, 1, 1, 1)), random.normal(120, 35, (count, 1, 1, 1))
    made = np.clip(light * contrast + brightness, 0, 255)
    copies = count // 100
    made[:copies] = np.clip(made[copies : 2 * copies] + random.integers(-8, 9, (copies, THUMB, THUMB, 3)), 0, 255)
    return made.astype(np.uint8)


def section(figures: dict[str, Any]) -> str:
    """Write the page's section from the figures."""
    if not figures:
        return "Not measured yet.\n"
    stages = [LIST, BUCKET, DRAW, HASH]
    rows = [
        "Made-up pictures by the index of their shards, one in a hundred of which looks like another; each size in a "
        "process of its own. Seconds are the processor's, for other work ran beside it; memory is the process's with "
        f"all that it imports. On {figures['machine']}.",
        "",
        "![Seconds and gigabytes against the number of pictures, on logarithmic axes](manifest.png)",
        "",
        f"| pictures | {' | '.join(f'{stage}, s' for stage in stages)} | in all, s | peak memory, GB |",
        "| --- |" + " --- |" * (len(stages) + 2),
    ]
    for one in figures["sizes"]:
        seconds = [one[stage] for stage in stages]
        told = " | ".join(f"{value:.2f}" for value in (*seconds, sum(seconds)))
        rows.append(f"| {one['size']:,} | {told} | {one['GB']:.2f} |")
    largest = figures["sizes"][-1]["size"]
    if largest < SIZES[-1]:
        rows += ["", f"{SIZES[-1]:,} have not been measured to the end: the largest measured is {largest:,}."]
    return "\n".join([*rows, ""])


def draw(figures: dict[str, Any]) -> None:
    """Draw seconds and memory against the number of pictures."""
    from matplotlib.figure import Figure

    sizes: list[dict[str, float]] = figures["sizes"]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    numbers = [one["size"] for one in sizes]
    seconds, memory = figure.subplots(1, 2)
    totals = [sum(one[stage] for stage in (LIST, BUCKET, DRAW, HASH)) for one in sizes]
    for stage in (LIST, BUCKET, DRAW, HASH):
        seconds.loglog(numbers, [max(one[stage], 1e-3) for one in sizes], marker=".", lw=1, label=stage)
    seconds.loglog(numbers, totals, marker="o", color="black", label="in all")
    seconds.loglog(numbers, [totals[-1] * n / numbers[-1] for n in numbers], ls=":", color="grey", label="linear")
    seconds.axhline(SECONDS, color="tab:red", lw=0.8)
    seconds.set(xlabel="pictures", ylabel="seconds of the processor")
    seconds.legend(fontsize="x-small")
    memory.loglog(numbers, [one["GB"] for one in sizes], marker="o", color="black")
    memory.axhline(GIGABYTES, color="tab:red", lw=0.8)
    memory.set(xlabel="pictures", ylabel="peak memory, GB")
    figure.savefig(PLOT, dpi=110)


if __name__ == "__main__":
    main()
