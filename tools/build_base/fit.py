"""One resumable training loop for both networks: batch keyed by step, AdamW, linear decay, EMA, a log of losses."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .engine import Batch, Engine

PROBED = range(5, 25)
"""Steps of a timed fit whose speed tells how many there can be."""
MARGIN = 0.97
"""Share of the time left that is planned with."""


@dataclass(frozen=True)
class Fit:
    """How one network is trained."""

    steps: int  # that are run; at most, where the time is given
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

    def of_steps(self, steps: int) -> Fit:
        """The same with another count of steps, the schedule in proportion."""
        return replace(self, steps=steps, schedule=max(1, round(steps * self.schedule / self.steps)))


@dataclass(frozen=True)
class Task:
    """What is trained.

    Attributes:
        module: the network.
        batch_of: of a step: all that its loss depends on, on the device.
        loss_of: of a batch: a number.
    """

    module: nn.Module
    batch_of: Callable[[int], Batch]
    loss_of: Callable[[Batch], Tensor]


@dataclass(frozen=True)
class Pace:
    """How long a fit may take and how often its state is written.

    Attributes:
        seconds: of the whole fit: so many steps are made as fit in at the speed of the first; None: the recipe's steps.
        save_seconds: between two states; None: the recipe's steps between them.
        saved: called with the averaged weights after each state that is not the last.
    """

    seconds: float | None = None
    save_seconds: float | None = None
    saved: Callable[[dict[str, Tensor]], None] | None = None


@dataclass
class State:
    """All that a training goes on from.

    Attributes:
        parameters: by name.
        average: their moving averages.
        optimizer: with its moments.
        step: how many are done.
        steps: how many there will be, once a timed fit has chosen; 0: not yet.
    """

    parameters: dict[str, nn.Parameter]
    average: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    step: int = 0
    steps: int = 0


def rate_at(step: int, recipe: Fit) -> float:
    """Learning rate of a step: linear warm-up, constant, linear to zero."""
    fall_from = recipe.decay_from * recipe.schedule
    fall = (recipe.schedule - step) / (recipe.schedule - fall_from)
    return recipe.rate * min(1.0, (step + 1) / recipe.warmup, max(fall, 0.0))


def fit(
    task: Task, recipe: Fit, folder: Path, engine: Engine | None = None, pace: Pace | None = None
) -> dict[str, Tensor]:
    """Train a task's module, going on from ``folder`` if it holds a state; return the EMA weights.

    A timed fit ends in its weights whatever happens: where the steps take longer than was thought, with fewer of them.
    The count that was chosen is part of the state, and so is the same after a restart.
    """
    engine, pace = engine or Engine(), pace or Pace()
    folder.mkdir(parents=True, exist_ok=True)
    state = _begin(task.module, recipe, folder)
    backward = engine.backward(task.loss_of, list(state.parameters.values()))
    clock, log = _Clock(pace, engine), _Log(folder)
    with engine.tuned():
        while (recipe := clock.recipe_of(recipe, state)).steps > state.step and not clock.is_over:
            rate = rate_at(state.step, recipe)
            log.take(*_step(task, state, recipe, rate, backward))
            if state.step % recipe.log_every == 0:
                log.write(state.step, rate)
            if clock.is_time_to_save(state, recipe):
                _save(folder, state)
                if pace.saved is not None:
                    pace.saved(state.average)
    _save(folder, state)
    log.close(state.step, rate_at(max(0, state.step - 1), recipe), backward)
    return state.average


def _begin(module: nn.Module, recipe: Fit, folder: Path) -> State:
    parameters = dict(module.named_parameters())
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=recipe.rate, betas=recipe.betas, weight_decay=recipe.weight_decay, fused=True
    )
    average = {name: p.detach().clone() for name, p in parameters.items()}
    state = State(parameters, average, optimizer)
    _restore(folder, state)
    return state


def _step(
    task: Task, state: State, recipe: Fit, rate: float, backward: Callable[[Batch], Tensor]
) -> tuple[Tensor, Tensor]:
    """Do one step; return loss and gradient norm, which nobody has waited for."""
    state.optimizer.param_groups[0]["lr"] = rate
    loss = backward(task.batch_of(state.step)).clone()
    parameters = list(state.parameters.values())
    norm = nn.utils.clip_grad_norm_(parameters, recipe.clip)
    state.optimizer.step()
    state.optimizer.zero_grad()
    weight = 1 - min(recipe.ema, (1 + state.step) / (10 + state.step))
    torch._foreach_lerp_(list(state.average.values()), [p.detach() for p in parameters], weight)
    state.step += 1
    return loss, norm


class _Clock:
    """Counts the steps that fit into the time, and says when a state is due."""

    def __init__(self, pace: Pace, engine: Engine) -> None:
        self._pace, self._engine = pace, engine
        self._began = self._saved = time.monotonic()
        self._probed = 0.0
        self._first: int | None = None

    @property
    def is_over(self) -> bool:
        """Whether a timed fit has to end."""
        return self._pace.seconds is not None and time.monotonic() - self._began > self._pace.seconds

    def recipe_of(self, recipe: Fit, state: State) -> Fit:
        """Return the recipe with the count of steps that was chosen, which is chosen when enough are done."""
        if self._pace.seconds is None:
            return recipe
        if self._first is None:
            self._first = state.step
        done = state.step - self._first
        if not state.steps and done in (PROBED.start, PROBED.stop):
            self._engine.wait()
            if done == PROBED.start:
                self._probed = time.monotonic()
            else:
                state.steps = min(recipe.steps, state.step + self._more())
        return recipe.of_steps(state.steps) if state.steps else recipe

    def _more(self) -> int:
        now = time.monotonic()
        left = (self._pace.seconds or 0.0) - (now - self._began)
        return max(0, int(MARGIN * left * len(PROBED) / (now - self._probed)))

    def is_time_to_save(self, state: State, recipe: Fit) -> bool:
        """Whether a state is to be written, which is not the last."""
        if state.step == recipe.steps:
            return False
        if self._pace.save_seconds is None:
            return state.step % recipe.save_every == 0
        if time.monotonic() - self._saved < self._pace.save_seconds:
            return False
        self._saved = time.monotonic()
        return True


class _Log:
    """Means of losses and gradient norms, a line of JSON after every few steps; they are read from the device then."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "log.jsonl"
        self._losses: list[Tensor] = []
        self._norms: list[Tensor] = []
        self._since = time.monotonic()

    def take(self, loss: Tensor, norm: Tensor) -> None:
        """Keep one step's numbers."""
        self._losses.append(loss)
        self._norms.append(norm)

    def write(self, step: int, rate: float) -> None:
        """Write the means since the last line."""
        means = {"loss": _mean(self._losses), "gradient_norm": _mean(self._norms)}
        seconds, self._since = round(time.monotonic() - self._since, 1), time.monotonic()
        self._line({"step": step, **means, "rate": rate, "seconds": seconds})
        self._losses, self._norms = [], []

    def close(self, step: int, rate: float, backward: Callable[[Batch], Tensor]) -> None:
        """Write what is left, and why no CUDA graph could be recorded, if so."""
        if self._losses:
            self.write(step, rate)
        if fault := getattr(backward, "fault", None):
            self._line({"no CUDA graph": fault})

    def _line(self, row: dict[str, Any]) -> None:
        with self._file.open("a") as log:
            log.write(json.dumps(row) + "\n")
        print(row, flush=True)


def _mean(numbers: list[Tensor]) -> float:
    return round(sum(number.item() for number in numbers) / len(numbers), 6)


def _save(folder: Path, state: State) -> None:
    tensors = {f"model.{n}": p.detach() for n, p in state.parameters.items()}
    tensors |= {f"ema.{n}": p for n, p in state.average.items()}
    for name, parameter in state.parameters.items():
        tensors |= {f"adam.{k}.{name}": v for k, v in state.optimizer.state[parameter].items()}
    tensors["step"] = torch.tensor(state.step)
    if state.steps:
        tensors["steps"] = torch.tensor(state.steps)
    beside = folder / "state.safetensors.tmp"
    save_file({k: v.contiguous() for k, v in tensors.items()}, beside)
    os.replace(beside, folder / "state.safetensors")


def _restore(folder: Path, state: State) -> None:
    path = folder / "state.safetensors"
    if not path.exists():
        return
    tensors = load_file(path)
    with torch.no_grad():
        for name, parameter in state.parameters.items():
            parameter.copy_(tensors[f"model.{name}"])
            state.average[name].copy_(tensors[f"ema.{name}"])
            moments = {k: tensors[f"adam.{k}.{name}"] for k in ("step", "exp_avg", "exp_avg_sq")}
            state.optimizer.state[parameter] = {k: v.to(parameter.device, copy=True) for k, v in moments.items()}
    state.step = int(tensors["step"])
    if "steps" in tensors:
        state.steps = int(tensors["steps"])
    print(f"going on from step {state.step} of {folder}", flush=True)
