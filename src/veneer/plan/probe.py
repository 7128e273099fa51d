"""Real optimiser steps in a process of their own, whose peak of memory is theirs alone, beside what the plan says.

``python -m veneer.plan.probe`` is that process: a configuration as JSON on its standard input, what it measured as
JSON on its standard output.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass

import torch
from torch import nn

from veneer.config.load import build_config, resolve
from veneer.config.schema import RunConfig
from veneer.data.preflight import read_prior, survey
from veneer.engine.memory_usage import memory_in_use
from veneer.engine.peak_memory import begin_anew
from veneer.errors import UserError
from veneer.family.loading import held_as, load_base
from veneer.family.protocol import device_of
from veneer.malloc import ask, has_asked
from veneer.plan.machine import process_memory
from veneer.plan.memory import ENCODING, LOADING, STEP, Memory, as_text, table
from veneer.plan.rehearsal import look_ahead
from veneer.train.loop import Trainer
from veneer.train.step import train_step

__all__ = ["Probe", "main", "probe"]

_MISTAKE = 2
_LARGE_PAGES = "--large-pages"


@dataclass(frozen=True)
class Probe:
    """What was measured.

    Attributes:
        before: bytes held before the base was loaded: Python and the libraries.
        peaks: bytes that the process had grown by at the fullest moment of each phase, by the phase's name.
        seconds: that a step took.
    """

    before: int
    peaks: Mapping[str, int]
    seconds: float

    @property
    def peak(self) -> int:
        """Of all phases."""
        return max(self.peaks.values())

    def beside(self, memory: Memory) -> str:
        """A table of measured and planned figures: of each phase what the process grows by, and its whole peak."""
        planned = {phase.name: phase.peak - memory.before for phase in memory.phases}
        most = max(planned[name] for name in self.peaks)
        rows = [("probed", "measured", "planned", "error")]
        rows += [_row(name, size, planned[name]) for name, size in self.peaks.items()]
        rows.append(_row("peak", self.peak, most))
        if self.before:
            rows.append(_row("peak with what was held before", self.before + self.peak, memory.before + most))
        return table(rows)


def _row(name: str, measured: int, planned: int) -> tuple[str, str, str, str]:
    return name, as_text(measured), as_text(planned), f"{planned / measured - 1:+.1%}"


def probe(config: RunConfig) -> Probe:
    """Do two steps of a run in a fresh process; the first is not timed, as it makes things ready.

    Raises:
        UserError: what the run would be refused for.
    """
    # it takes its memory as this process does
    command = [sys.executable, "-m", "veneer.plan.probe", *([_LARGE_PAGES] if has_asked() else [])]
    done = subprocess.run(command, input=config.model_dump_json(), capture_output=True, text=True)
    try:
        told = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        remedy = "the plan says what it would have needed" if done.returncode == -9 else None
        raise UserError(f"ended with code {done.returncode}: {last}", where="the probe", remedy=remedy) from None
    if "fault" in told:
        raise UserError(told["fault"])
    return Probe(**told)


def main() -> int:
    """Be the process that probes."""
    if _LARGE_PAGES in sys.argv:
        ask()
    config = build_config(json.loads(sys.stdin.read()), "probe")
    try:
        told = asdict(_measure(config))
    except UserError as fault:
        print(json.dumps({"fault": str(fault)}))
        return _MISTAKE
    print(json.dumps(told))
    return 0


def _measure(config: RunConfig) -> Probe:
    look_ahead(config, known=True, limit=None)  # a run plans first, and all that it imports is imported then
    pictures = survey(config.data)
    if torch.cuda.is_available():
        _warm_up()
    meter = _Meter()
    family = load_base(config.base, **held_as(config))
    meter.note(LOADING)
    config = _with_prior(resolve(config, family))
    with closing(Trainer(config, family, pictures)) as trainer:
        trainer.feed.micros(0)
        meter.note(ENCODING)
        trainer.relieve()
        train_step(trainer.context, 0, trainer.feed.micros(0))
        began = time.perf_counter()
        train_step(trainer.context, 1, trainer.feed.micros(0))
        if device_of(family).type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        meter.note(STEP)
    return Probe(meter.before, meter.peaks, seconds)


def _with_prior(config: RunConfig) -> RunConfig:
    """Pictures of the class may not be painted yet; for a measurement the subject's will do."""
    prior = config.data.prior
    if prior is None or read_prior(config).samples:
        return config
    stand_in = prior.model_copy(update={"path": config.data.sources[0].path})
    return config.model_copy(update={"data": config.data.model_copy(update={"prior": stand_in})})


class _Meter:
    """What the process, or on a GPU PyTorch, holds at most from phase to phase.

    Attributes:
        before: bytes held when this was made.
        peaks: bytes over that, by phase.
    """

    def __init__(self) -> None:
        gc.collect()
        self.before = _peak() if torch.cuda.is_available() else process_memory()
        self.peaks: dict[str, int] = {}
        _reset()

    def note(self, phase: str) -> None:
        """The phase that ends."""
        self.peaks[phase] = _peak() - self.before
        _reset()


def _peak() -> int:
    used = memory_in_use()
    if used is None:
        raise UserError("this system does not tell what memory a process takes", where="--probe")
    return used.peak


def _reset() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        begin_anew()


def _warm_up() -> None:
    """Use each kind of operation once on next to nothing: the libraries take memory of their own when first called."""
    device = torch.device("cuda")
    layers = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU(), nn.Flatten(2))
    layers.extend([nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU()])
    tokens = layers.to(device)(torch.randn(2, 4, 8, 8, device=device)).unflatten(2, (2, 32)).transpose(1, 2)
    nn.functional.scaled_dot_product_attention(tokens, tokens, tokens).sum().backward()
    torch.optim.AdamW(layers.parameters()).step()


if __name__ == "__main__":
    sys.exit(main())
