"""A plan beside the memory that a machine has: whether the run fits, and what would make it fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from weakref import WeakKeyDictionary

import torch

from veneer.config.schema import RunConfig
from veneer.data.bucket_table import BucketTable
from veneer.data.buckets import Buckets
from veneer.data.preflight import Dataset
from veneer.family.protocol import Family, device_of
from veneer.plan.abstract import abstract_base
from veneer.plan.cpu.process import growth_after_loading
from veneer.plan.machine import free_memory, process_memory
from veneer.plan.memory import WEIGHTS, Memory
from veneer.plan.pictures import PictureCounts
from veneer.plan.plan import Plan
from veneer.plan.rehearsal import RunInputs, module_count, rehearse, tensors_of, unread_parts
from veneer.plan.remedies import Remedy, find_remedies, verdict
from veneer.plan.weight_files import read_weight_files

__all__ = ["Assessment", "assess_config", "assess_run", "make_plan", "plan_loaded"]

Planner = Callable[[RunConfig], Plan]
_NO_METADATA: Mapping[str, str] = MappingProxyType({})
_Key = tuple[str, int, "PictureCounts | None", frozenset[tuple[str, str]]]
_CACHE: WeakKeyDictionary[Family, dict[_Key, Plan]] = WeakKeyDictionary()
"""Plans of the bases that are loaded: a rehearsal takes seconds, and remedies and later runs ask for the same ones."""


@dataclass(frozen=True)
class Assessment:
    """A plan beside the memory of the machine that it is for.

    Attributes:
        plan: the run's.
        free: bytes that there are.
        remedies: changes that would make it fit, if it does not.
    """

    plan: Plan
    free: int
    remedies: tuple[Remedy, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether there is enough memory."""
        return _memory(self.plan).peak <= self.free

    @property
    def verdict(self) -> str:
        """One line: the memory that is needed, and the memory that there is."""
        return verdict(_memory(self.plan), self.free)

    @property
    def warning(self) -> str | None:
        """One line for a run that does not fit: the verdict and the remedies."""
        if self.fits:
            return None
        return f"{self.verdict}; would fit: {', '.join(map(str, self.remedies))}" if self.remedies else self.verdict


def assess_config(config: RunConfig, *, count_pictures: bool, limit: int | None) -> Assessment:
    """Assess a run whose base need not be loaded, nor be on this machine if its architecture is published.

    Args:
        config: the run.
        count_pictures: whether its pictures are there to be counted.
        limit: bytes that it may take; None: what this machine has free.

    Raises:
        UserError: the config does not fit the base, or the base or the pictures are not there.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pictures, listed = PictureCounts.from_folders(config) if count_pictures else (None, ())
    inputs = RunInputs(device, pictures, listed)

    def plan_changed(changed: RunConfig) -> Plan:
        return rehearse(changed, partial(abstract_base, changed), replace(inputs, memory_only=True))

    plan = _in_process(rehearse(config, partial(abstract_base, config), inputs), process_memory)
    return _assess(config, plan, plan_changed, free_memory(device) if limit is None else limit)


def assess_run(config: RunConfig, family: Family, dataset: Dataset, metadata: Mapping[str, str]) -> Assessment:
    """Assess a run that this process is about to start, on this machine.

    Args:
        config: the run.
        family: its base, which is left as it was.
        dataset: its pictures.
        metadata: what the adapter's file will hold beside the weights.
    """

    def plan_changed(changed: RunConfig) -> Plan:
        return plan_loaded(changed, family, dataset, metadata)

    plan = make_plan(config, family, dataset, metadata)
    return _assess(config, plan, plan_changed, free_memory(device_of(family)))


def make_plan(
    config: RunConfig, family: Family, dataset: Dataset | None = None, metadata: Mapping[str, str] = _NO_METADATA
) -> Plan:
    """Return the plan of a run that this process is about to do: parameters, file size, memory, disk, steps.

    Args:
        config: the run.
        family: its base, from ``load_base``, which is left as it was.
        dataset: its pictures, from ``survey``; None: they are not counted.
        metadata: what the adapter's file will hold beside the weights.

    Raises:
        UserError: the config does not fit the base.
    """

    def before_loading() -> int:
        files = read_weight_files(config.base, _weight_bytes(family), unread_parts(config, family))
        return max(0, process_memory() - growth_after_loading(files, module_count(family)))

    return _in_process(plan_loaded(config, family, dataset, metadata), before_loading)


def plan_loaded(
    config: RunConfig, family: Family, dataset: Dataset | None = None, metadata: Mapping[str, str] = _NO_METADATA
) -> Plan:
    """Return the plan of a run on a base that is loaded, as if the process held nothing else.

    Args:
        config: the run.
        family: its base, which is left as it was.
        dataset: its pictures; None: they are not counted.
        metadata: what the adapter's file will hold beside the weights.

    Raises:
        UserError: the config does not fit the base.
    """
    pictures = None if dataset is None else PictureCounts.from_dataset(dataset, config)
    plans = _CACHE.setdefault(family, {})
    settings = config.model_dump_json(exclude={"output": {"dir"}})
    key = settings, _weight_bytes(family), pictures, frozenset(metadata.items())
    if key not in plans:
        inputs = RunInputs(device_of(family), pictures, metadata=metadata)
        plans[key] = rehearse(config, lambda tracer: tracer.without_data(family), inputs)
    if dataset is None:
        return plans[key]
    # of pictures of the same numbers and sizes others may be meant each time
    return replace(plans[key], buckets=BucketTable.of(dataset.train.samples, Buckets.of(config.data, family)))


def _weight_bytes(family: Family) -> int:
    return sum(tensor.nbytes for network in family.networks.values() for tensor in tensors_of(network))


def _assess(config: RunConfig, plan: Plan, planner: Planner, free: int) -> Assessment:
    """Hold a plan against the memory that is free, and look for remedies if it does not fit."""
    assessment, before = Assessment(plan, free), _memory(plan).before
    if assessment.fits:
        return assessment
    blocks = _memory(plan).blocks if _memory(plan).device != "cpu" else 0
    weights = sum(size for part, size in _memory(plan).step.parts.items() if part.startswith(WEIGHTS))
    remedies = find_remedies(config, lambda changed: _memory(planner(changed)).on_top_of(before), free, blocks, weights)
    return replace(assessment, remedies=tuple(remedies))


def _in_process(plan: Plan, before_loading: Callable[[], int]) -> Plan:
    """Add to a plan what its process held before the run, which is measured after the rehearsal."""
    memory = _memory(plan)
    return replace(plan, memory=memory.on_top_of(before_loading()) if memory.device == "cpu" else memory)


def _memory(plan: Plan) -> Memory:
    assert plan.memory is not None, "a rehearsal finds it"
    return plan.memory
