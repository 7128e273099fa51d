"""Compare LoRA with full fine-tuning and with bottleneck adapters, on the same pictures and steps.

python -m tools.baselines train    each method at three rates, chosen on training pictures set aside, then the score
                                   on the 64 held-out ones; goes on where it was stopped
python -m tools.baselines time     the denoiser with each method in it, in turn
python -m tools.baselines          both

Figures go to figures.json beside this file, and as a table into docs/baselines.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import veneer
from benchmarks.page import machine
from benchmarks.timing import interleaved, ratio
from tools.publish import publish
from veneer.config.schema import RunConfig
from veneer.data.buckets import Buckets
from veneer.data.loader import DrawSchedule
from veneer.data.preflight import Dataset
from veneer.evaluate.comparison import Losses, paired_difference
from veneer.evaluate.heldout import heldout_losses
from veneer.evaluate.results import Score
from veneer.family.cache import Encoder
from veneer.family.protocol import Conditioning, Family
from veneer.files import atomic_write
from veneer.objective.loss import Objective
from veneer.train.batches import BatchBuilder

from .methods import LORA, METHODS, Taught, Teach, merged

FIGURES = Path(__file__).parent / "figures.json"
PAGE = Path(__file__).parents[2] / "docs" / "baselines.md"
SETTINGS = {"steps": 100, "batch": 4, "draws": 8}
BASE, MERGED = "base", "LoRA, merged"
BATCHES = (1, 8)


def main() -> None:
    """Train, score and time every method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["train", "time"], nargs="?", help="default: both")
    part = parser.parse_args().part
    if part != "time":
        train_all(FIGURES)
    if part != "train":
        time_all(FIGURES)
    figures = read(FIGURES)
    if finished(figures):
        publish(PAGE, table(figures))
        print(table(figures))


def read(path: Path) -> dict[str, Any]:
    """Read what is measured so far; nothing of it if it was measured with other settings."""
    told: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return told if told.get("settings") == SETTINGS else {"settings": SETTINGS, "losses": {}, "tried": {}}


def _keep(path: Path, figures: dict[str, Any]) -> None:
    atomic_write(path, (json.dumps(figures, indent=1) + "\n").encode())


def finished(figures: dict[str, Any]) -> bool:
    """Check whether every method is scored, and all are timed."""
    return all(name in figures["losses"] for name in (BASE, *METHODS)) and "seconds" in figures


def train_all(path: Path) -> None:
    """Do the trainings that are not done yet, and record each as it ends."""
    figures = read(path)
    family = veneer.load_base("bundled")
    choosing, final = _config(0.2), _config(str(veneer.demo_path() / "held_out"))
    for name in METHODS:
        tried = figures["tried"].setdefault(name, {})
        for rate in METHODS[name].rates:
            if f"{rate:g}" not in tried:
                tried[f"{rate:g}"] = float(_taught_losses(family, name, choosing, rate)[0].mean())
                _keep(path, figures)
                print(f"{name}, rate {rate:g}: {tried[f'{rate:g}']:.4f} on training pictures set aside", flush=True)
        if name not in figures["losses"]:
            losses, count = _taught_losses(family, name, final, best_rate(tried))
            figures["losses"][name] = _by_picture(losses)
            figures.setdefault("parameters", {})[name] = count
            _keep(path, figures)
    if BASE not in figures["losses"]:
        figures["losses"][BASE] = _by_picture(heldout_losses(final, family, veneer.survey(final.data).held_out))
        _keep(path, figures)


def best_rate(tried: dict[str, float]) -> float:
    """Return the rate of the lowest loss."""
    return float(min(tried, key=lambda rate: tried[rate]))


def _by_picture(losses: Losses) -> list[float]:
    """Average each picture's draws, which are not independent."""
    return [round(float(loss), 7) for loss in losses.mean(axis=1)]


def _config(held_out: float | str) -> RunConfig:
    data = {"sources": [{"path": str(veneer.demo_path() / "train")}], "held_out": held_out}
    train = {"max_steps": SETTINGS["steps"], "batch_size": SETTINGS["batch"]}
    mapping = {"base": "bundled", "data": data, "train": train, "validation": {"draws": SETTINGS["draws"]}}
    return veneer.build_config(mapping, origin="the baselines' config")


def _taught_losses(family: Family, name: str, config: RunConfig, rate: float) -> tuple[Losses, int]:
    """Train one method, measure it on what the config holds out, and leave the base as it was."""
    pictures = veneer.survey(config.data)
    with METHODS[name].teach(family.networks) as taught:
        train(family, config, pictures, taught, rate)
        count = sum(parameter.numel() for parameter in taught.parameters)
        return heldout_losses(config, family, pictures.held_out), count


def train(family: Family, config: RunConfig, pictures: Dataset, taught: Taught, rate: float) -> None:
    """Train with AdamW at Veneer's defaults, on the pictures, noise and timesteps of Veneer's own loop."""
    config = veneer.resolve(config, family)
    objective = Objective.from_config(config.objective, family)
    encoder = Encoder(family, config.data, config.seed)
    draws = DrawSchedule(pictures.train, Buckets.of(config.data, family), config.seed, config.train.batch_size)
    batches = BatchBuilder(config, objective, encoder, draws, None, torch.device("cpu"))
    decay, most = config.train.optimizer.weight_decay, config.train.max_grad_norm
    optimizer = torch.optim.AdamW(taught.parameters, lr=rate, weight_decay=decay)
    for step in range(config.train.max_steps):
        for micro in batches.micro_batches(step):
            assert isinstance(micro.text, Conditioning)
            conditioning = family.condition(micro.text, micro.geometries)
            loss_B = objective.loss_B(family.predict, micro.latents, micro.noise, micro.t_B, conditioning)
            torch.autograd.backward((micro.weight_B * loss_B).sum())
        if most is not None:
            nn.utils.clip_grad_norm_(taught.parameters, most)
        optimizer.step()
        optimizer.zero_grad()


def time_all(path: Path, rounds: int = 31) -> None:
    """Time the denoiser's forward pass with each method in it; what is in the matrices changes no time."""
    figures = read(path)
    teaches: dict[str, Teach] = {**{name: method.teach for name, method in METHODS.items()}, MERGED: merged}
    with ExitStack() as stack:
        families = {name: veneer.load_base("bundled") for name in (BASE, *teaches)}
        for name, teach in teaches.items():
            stack.enter_context(teach(families[name].networks))
        ways = {size: {name: _forward(family, size) for name, family in families.items()} for size in BATCHES}
        figures["seconds"] = {str(size): interleaved(ways[size], rounds) for size in BATCHES}
    figures["machine"] = machine()
    _keep(path, figures)


def _forward(family: Family, size: int) -> Callable[[], object]:
    latent_BCHW, t_B = torch.full((size, 16, 8, 8), 0.1), torch.full((size,), 0.5)
    conditioning = family.encode_text(["an ant emoji"] * size)

    @torch.no_grad()
    def forward() -> object:
        return family.predict(latent_BCHW, t_B, conditioning)

    return forward


def table(figures: dict[str, Any]) -> str:
    """Return the figures as the page has them."""
    heads = ["method", "trained parameters", "rate", "held-out loss", "against the base", f"against {LORA}"]
    heads += [f"time, {size} picture{'s' if size > 1 else ''}" for size in BATCHES]
    lines = [heads, ["---", *("---:" for _ in heads[1:])], _row(figures, BASE, "0", "")]
    for name in METHODS:
        lines.append(_row(figures, name, f"{figures['parameters'][name]:,}", f"{best_rate(figures['tried'][name]):g}"))
    lines.append([MERGED, "", "", "", "", "", *_times(figures, MERGED)])
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    tried = "; ".join(f"{name}: {_tried(figures['tried'][name])}" for name in METHODS)
    pictures, settings = len(figures["losses"][BASE]), figures["settings"]
    return (
        f"{settings['steps']} steps of {settings['batch']} pictures, one seed; losses on {pictures} pictures held out, "
        f"{settings['draws']} draws of noise each. Times are over the base's, quartiles in brackets, on "
        f"{figures['machine']}.\n\n{rows}\n\nLoss on training pictures set aside, by rate: {tried}.\n"
    )


def _tried(tried: dict[str, float]) -> str:
    return ", ".join(f"{rate} {loss:.4f}" for rate, loss in tried.items())


def _row(figures: dict[str, Any], name: str, count: str, rate: str) -> list[str]:
    loss = f"{np.mean(figures['losses'][name]):.4f}"
    gaps = [_gap(figures, name, other) for other in (BASE, LORA)]
    return [name, count, rate, loss, *gaps, *_times(figures, name)]


def _gap(figures: dict[str, Any], name: str, other: str) -> str:
    if name == other:
        return ""
    score = gap(figures, name, other)
    return f"{score.mean:+.4f} [{score.low:+.4f}, {score.high:+.4f}]"


def gap(figures: dict[str, Any], name: str, other: str) -> Score:
    """Return one method's loss less another's, by picture; below 0 it is better."""
    first, second = (np.array(figures["losses"][each])[:, None] for each in (name, other))
    return paired_difference(first, second)


def _times(figures: dict[str, Any], name: str) -> list[str]:
    seconds = [figures["seconds"][str(size)] for size in BATCHES]
    return ["1" if name == BASE else str(ratio(each[name], each[BASE])) for each in seconds]


if __name__ == "__main__":
    main()
