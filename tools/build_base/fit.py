"""One resumable training loop for both networks: batch keyed by step, AdamW, linear decay, EMA, a log of losses."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


@dataclass(frozen=True)
class Fit:
    """How one network is trained."""

    steps: int  # that are run
    batch: int
    rate: float
    schedule: int  # the step at which the rate would reach zero; the average of the weights does the last of its work
    warmup: int = 100  # steps
    decay_from: float = 0.4  # share of the schedule after which the rate falls linearly to zero
    weight_decay: float = 0.01
    ema: float = 0.999
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0  # gradient norm
    log_every: int = 50
    save_every: int = 250


def rate_at(step: int, recipe: Fit) -> float:
    """Learning rate of a step: linear warm-up, constant, linear to zero."""
    fall_from = recipe.decay_from * recipe.schedule
    fall = (recipe.schedule - step) / (recipe.schedule - fall_from)
    return recipe.rate * min(1.0, (step + 1) / recipe.warmup, max(fall, 0.0))


def generator(step: int, stream: int) -> torch.Generator:
    """The random numbers of one step; nothing carries over from step to step, so a restart changes nothing."""
    return torch.Generator().manual_seed(stream * 1_000_003 + step)


def fit(module: nn.Module, loss_of: Callable[[int], Tensor], recipe: Fit, folder: Path) -> dict[str, Tensor]:
    """Train ``module`` on ``loss_of(step)``, going on from ``folder`` if it holds a state; return the EMA weights."""
    folder.mkdir(parents=True, exist_ok=True)
    parameters = dict(module.named_parameters())
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=recipe.rate, betas=recipe.betas, weight_decay=recipe.weight_decay, fused=True
    )
    average = {name: p.detach().clone() for name, p in parameters.items()}
    start = _restore(folder, parameters, average, optimizer)
    running, norm, since = 0.0, 0.0, time.monotonic()
    for step in range(start, recipe.steps):
        optimizer.param_groups[0]["lr"] = rate_at(step, recipe)
        loss = loss_of(step)
        torch.autograd.backward(loss)
        norm += nn.utils.clip_grad_norm_(parameters.values(), recipe.clip).item()
        optimizer.step()
        optimizer.zero_grad()
        weight = 1 - min(recipe.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(average.values()), [p.detach() for p in parameters.values()], weight)
        running += loss.item()
        done = step + 1
        if done % recipe.log_every == 0:
            means = {"loss": running / recipe.log_every, "gradient_norm": norm / recipe.log_every}
            _log(folder, done, means, rate_at(step, recipe), time.monotonic() - since)
            running, norm, since = 0.0, 0.0, time.monotonic()
        if done % recipe.save_every == 0 or done == recipe.steps:
            _save(folder, done, parameters, average, optimizer)
    return average


def _log(folder: Path, step: int, means: dict[str, float], rate: float, seconds: float) -> None:
    rounded = {name: round(value, 6) for name, value in means.items()}
    row = {"step": step, **rounded, "rate": rate, "seconds": round(seconds, 1)}
    with (folder / "log.jsonl").open("a") as log:
        log.write(json.dumps(row) + "\n")
    print(row, flush=True)


def _save(
    folder: Path,
    step: int,
    parameters: dict[str, nn.Parameter],
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    tensors = {f"model.{n}": p.detach() for n, p in parameters.items()}
    tensors |= {f"ema.{n}": p for n, p in average.items()}
    for name, parameter in parameters.items():
        tensors |= {f"adam.{k}.{name}": v for k, v in optimizer.state[parameter].items()}
    tensors["step"] = torch.tensor(step)
    beside = folder / "state.safetensors.tmp"
    save_file({k: v.contiguous() for k, v in tensors.items()}, beside)
    os.replace(beside, folder / "state.safetensors")


def _restore(
    folder: Path, parameters: dict[str, nn.Parameter], average: dict[str, Tensor], optimizer: torch.optim.Optimizer
) -> int:
    path = folder / "state.safetensors"
    if not path.exists():
        return 0
    tensors = load_file(path)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"model.{name}"])
            average[name].copy_(tensors[f"ema.{name}"])
            keys = ("step", "exp_avg", "exp_avg_sq")
            optimizer.state[parameter] = {k: tensors[f"adam.{k}.{name}"].clone() for k in keys}
    step = int(tensors["step"])
    print(f"going on from step {step} of {folder}", flush=True)
    return step
