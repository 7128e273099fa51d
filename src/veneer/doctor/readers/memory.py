"""The memory of a run by its plan: as it was, and after each change that would reduce it."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial

import torch

from veneer.config.schema import RunConfig
from veneer.data.preflight import Dataset
from veneer.doctor.evidence import Evidence, MemoryEstimate
from veneer.doctor.finding import apply_change
from veneer.doctor.readers.base import base_folder
from veneer.doctor.rules.memory import memory_changes, suspects_memory
from veneer.plan.abstract import abstract_base
from veneer.plan.memory import Memory
from veneer.plan.pictures import PictureCounts
from veneer.plan.rehearsal import RunInputs, rehearse

__all__ = ["estimate_memory"]

_MEMORY_KEYS = ("train.memory", "train.batch_size", "train.precision", "adapter.rank")
"""Keys that change the plan's peak; the changes that go with them, such as more passes, do not."""


def estimate_memory(evidence: Evidence, dataset: Dataset | None) -> MemoryEstimate | None:
    """Return the plan's memory of a run that may have ended for want of it; None for others and without its base.

    Where memory was scarce it is also planned after each change that would reduce it.
    """
    config = evidence.config
    if not suspects_memory(evidence.ending) or not base_folder(config.base).is_dir():
        return None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    inputs = RunInputs(device, None if dataset is None else PictureCounts.from_dataset(dataset, config))
    plan = _plan(config, inputs)
    memory = MemoryEstimate(plan.peak, dict(plan.step.parts), _total_memory(device), {})
    if evidence.ending.how == "cut off" and not memory.is_scarce:
        return memory  # nothing need be changed
    changes = [change for change in memory_changes(config) if change.key in _MEMORY_KEYS]
    peaks = {change.override: _plan(apply_change(config, change), inputs).peak for change in changes}
    return replace(memory, peak_after=peaks)


def _plan(config: RunConfig, inputs: RunInputs) -> Memory:
    memory = rehearse(config, partial(abstract_base, config), inputs).memory
    assert memory is not None, "a rehearsal plans memory"
    return memory


def _total_memory(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows has no such call
        return None
