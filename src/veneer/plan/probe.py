"""A probe: real optimiser steps in a process of their own, whose peak of memory stands beside the planned one.

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
from veneer.engine.memory_usage import read_memory_usage
from veneer.engine.peak_memory import reset_peak
from veneer.errors import UserError
from veneer.family.loading import load_run_base
from veneer.family.protocol import device_of
from veneer.malloc import large_pages_requested, request_large_pages
from veneer.plan.assessment import assess_config
from veneer.plan.machine import process_memory
from veneer.plan.memory import ENCODING, LOADING, STEP, Memory
from veneer.plan.text import format_bytes, format_table
from veneer.train.loop import Trainer
from veneer.train.step import train_step

__all__ = ["Probe", "main", "probe"]

_MISTAKE = 2
_KILLED = -9  # by SIGKILL, which Windows does not have
_LARGE_PAGES = "--large-pages"
_ERROR = "error"


@dataclass(frozen=True)
class Probe:
    """The memory and the time of real steps.

    Attributes:
        before: bytes that the process held before the base was loaded: Python and the libraries.
        peaks: bytes beyond that at the fullest moment of each phase, by the phase's name.
        seconds: duration of a step.
    """

    before: int
    peaks: Mapping[str, int]
    seconds: float

    @property
    def peak(self) -> int:
        """The largest of all phases' peaks."""
        return max(self.peaks.values())

    def beside(self, memory: Memory) -> str:
        """Return a table of measured and planned memory: the growth of the process in each phase, and its peak."""
        planned = {phase.name: phase.peak - memory.before for phase in memory.phases}
        most = max(planned[name] for name in self.peaks)
        rows = [("probe", "measured", "planned", "error")]
        rows += [_row(name, size, planned[name]) for name, size in self.peaks.items()]
        rows.append(_row("peak", self.peak, most))
        if self.before:
            rows.append(_row("peak with what was held before", self.before + self.peak, memory.before + most))
        return format_table(rows)


def _row(name: str, measured: int, planned: int) -> tuple[str, str, str, str]:
    return name, format_bytes(measured), format_bytes(planned), f"{planned / measured - 1:+.1%}"


def probe(config: RunConfig) -> Probe:
    """Do two steps of a run in a fresh process; the first is not timed, since it initialises libraries.

    Raises:
        UserError: the run would be refused, or the process did not end well.
    """
    # it allocates memory as this process does
    command = [sys.executable, "-m", "veneer.plan.probe", *([_LARGE_PAGES] if large_pages_requested() else [])]
    ended = subprocess.run(command, input=config.model_dump_json(), capture_output=True, text=True)
    try:
        report = json.loads(ended.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise _crashed(ended) from None
    if _ERROR in report:
        raise UserError(**report[_ERROR])
    return Probe(**report)


def _crashed(ended: subprocess.CompletedProcess[str]) -> UserError:
    last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
    killed = ended.returncode == _KILLED
    return UserError(
        f"ended with code {ended.returncode}: {last}",
        code="plan.probe_crashed",
        where="the probe",
        remedy="the plan says what it would have needed" if killed else None,
    )


def main() -> int:
    """Measure the configuration on the standard input, and print the result."""
    if _LARGE_PAGES in sys.argv:
        request_large_pages()
    config = build_config(json.loads(sys.stdin.read()), "probe")
    try:
        result = asdict(_measure(config))
    except UserError as error:
        print(json.dumps({_ERROR: {name: getattr(error, name) for name in ("what", "code", "where", "remedy")}}))
        return _MISTAKE
    print(json.dumps(result))
    return 0


def _measure(config: RunConfig) -> Probe:
    assess_config(config, count_pictures=True, limit=None)  # as a run does first; it imports most libraries
    pictures = survey(config.data)
    if torch.cuda.is_available():
        _warm_up()
    meter = _Meter()
    family = load_run_base(config)
    meter.record(LOADING)
    config = _with_prior(resolve(config, family))
    with closing(Trainer(config, family, pictures)) as trainer:
        trainer.batches.micro_batches(0)
        meter.record(ENCODING)
        trainer.offload()
        train_step(trainer.context, 0, trainer.batches.micro_batches(0))
        began = time.perf_counter()
        train_step(trainer.context, 1, trainer.batches.micro_batches(0))
        if device_of(family).type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        meter.record(STEP)
    return Probe(meter.before, meter.peaks, seconds)


def _with_prior(config: RunConfig) -> RunConfig:
    """Return a config whose class pictures exist: if they are not made yet, the subject's stand in for them."""
    prior = config.data.prior
    if prior is None or read_prior(config).samples:
        return config
    stand_in = prior.model_copy(update={"path": config.data.sources[0].path})
    return config.model_copy(update={"data": config.data.model_copy(update={"prior": stand_in})})


class _Meter:
    """The peak of the process, or on a GPU of PyTorch, from phase to phase.

    Attributes:
        before: bytes held when this was made.
        peaks: bytes over that, by phase.
    """

    def __init__(self) -> None:
        gc.collect()
        self.before = _peak() if torch.cuda.is_available() else process_memory()
        self.peaks: dict[str, int] = {}
        _reset()

    def record(self, phase: str) -> None:
        """Record the peak of the phase that ends."""
        self.peaks[phase] = _peak() - self.before
        _reset()


def _peak() -> int:
    return read_memory_usage().peak


def _reset() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        reset_peak()


def _warm_up() -> None:
    """Use each kind of operation once on next to nothing, since libraries take memory when they are first called."""
    device = torch.device("cuda")
    layers = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU(), nn.Flatten(2))
    layers.extend([nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU()])
    tokens = layers.to(device)(torch.randn(2, 4, 8, 8, device=device)).unflatten(2, (2, 32)).transpose(1, 2)
    nn.functional.scaled_dot_product_attention(tokens, tokens, tokens).sum().backward()
    torch.optim.AdamW(layers.parameters()).step()


if __name__ == "__main__":
    sys.exit(main())
