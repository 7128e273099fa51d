"""What the doctor wants to know of a run, gathered from its folder."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

import veneer.base
from veneer.adapter.protocol import AdapterWeights, LayerAdapter
from veneer.config.load import load_config
from veneer.config.schema import RunConfig
from veneer.data.manifest import Manifest
from veneer.data.preflight import Dataset, survey
from veneer.data.sources.registry import read_source
from veneer.data.sources.tree import find_pictures
from veneer.doctor.curve import stretches_of
from veneer.doctor.diagnosis import Diagnosis, diagnose
from veneer.doctor.evidence import (
    Captions,
    Copies,
    Effect,
    Ending,
    Evidence,
    Memory,
    Moved,
    Pictures,
    Scored,
)
from veneer.doctor.finding import with_change
from veneer.doctor.measure import effect_of, measure
from veneer.doctor.rules.endings import may_be_out_of_memory, memory_changes
from veneer.doctor.rules.pictures import STYLE_WORDS
from veneer.errors import UserError
from veneer.evaluate.results import Evaluation, Score, read_evaluation
from veneer.family.loading import load_base
from veneer.family.registry import BUNDLED
from veneer.plan.memory import Memory as PlannedMemory
from veneer.plan.rehearsal import Pictures as Shown
from veneer.plan.rehearsal import rehearse
from veneer.plan.sketch import sketch_folder
from veneer.run.events import Surveyed
from veneer.run.folder import CHECKPOINTS, CONFIG, LOG
from veneer.run.log import events_in
from veneer.run.status import RunStatus, is_running, status_after
from veneer.weights.checkpoint import checkpoints_in
from veneer.weights.file import FILE_NAME, AdapterFile, load

__all__ = ["doctor_run", "gather"]

_QUICKLY = 400
"""Pictures that are looked at again unasked: a second or two."""
_NEARLY_ALL = 0.9
_TAKING_MEMORY = ("train.memory", "train.batch_size", "train.precision", "adapter.rank")
"""Keys that the plan's peak depends on; what goes with them, such as more passes, leaves it as it is."""
_EXAMPLES = 3

Line = Mapping[str, Any]


def doctor_run(folder: Path, *, measured: bool = False) -> tuple[Diagnosis, Evidence]:
    """Say what ails the run in a folder, and by which evidence.

    Args:
        folder: of the run.
        measured: load the base, and measure what the run did not.

    Raises:
        UserError: it is no run's folder; or base or pictures are wanted to measure and not here.
    """
    evidence = gather(folder, measured=measured)
    return diagnose(evidence), evidence


def gather(folder: Path, *, measured: bool = False) -> Evidence:
    """Read a run's folder, as :func:`doctor_run` does."""
    config, log = _read(folder)
    dataset = _dataset(config, log.pictures, measured)
    adapter = load(folder) if (folder / FILE_NAME).is_file() else AdapterFile({})
    factors = adapter.weights
    found = read_evaluation(folder)
    steps = config.train.max_steps
    evidence = Evidence(
        config=config,
        ending=log.ending(steps, is_running=is_running(folder)) if log.is_there else _unlogged(adapter),
        stretches=stretches_of(log.steps),
        skipped=log.skipped,
        overflowed=log.overflowed,
        pictures=_pictures(config, log.pictures, dataset),
        captions=_captions(config, dataset),
        moved=_moved(factors, config.base),
        held_out=_told(found.held_out) if found else log.score,
        training=_told(found.training) if found else None,
        drift=_told(found.drift) if found else None,
        drift_source=(found and found.drift_source) or "",
        copies=_copies(found),
        scored=log.scored,
        checkpoints=tuple(int(path.name.rpartition("-")[2]) for path in checkpoints_in(folder / CHECKPOINTS)),
    )
    evidence = replace(evidence, memory=_memory(evidence, dataset))
    return _with_measures(evidence, dataset, factors) if measured and factors else evidence


def _with_measures(evidence: Evidence, dataset: Dataset | None, factors: AdapterWeights) -> Evidence:
    assert dataset is not None, "who wants to measure has the pictures, or was refused"
    shared = tuple(evidence.captions.shared) if evidence.captions else ()
    tried = shared if STYLE_WORDS.intersection(shared) else ()
    family = load_base(evidence.config.base)
    try:
        return replace(evidence, measured=measure(evidence.config, family, dataset, factors, tried))
    except UserError as fault:  # an adapter that gives no numbers is what the doctor was asked about
        return replace(evidence, unmeasured=str(fault))


def _read(folder: Path) -> tuple[RunConfig, _Log]:
    if not (folder / CONFIG).is_file():
        raise _no_run(folder)
    return load_config(folder / CONFIG), _Log(list(events_in(folder / LOG)), (folder / LOG).is_file())


def _no_run(folder: Path) -> UserError:
    inner = sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
    what = f"is no run's folder: it holds no {CONFIG}" if folder.is_dir() else "is no folder"
    wanted = f"one of the runs in it, such as {inner[0]}" if inner else "the folder that 'veneer train' wrote to"
    return UserError(what, where=folder, remedy=f"give {wanted}")


@dataclass(frozen=True)
class _Log:
    """A run's log, event by event.

    Attributes:
        lines: the events.
        is_there: whether there is a log at all.
    """

    lines: Sequence[Line]
    is_there: bool

    def _of(self, name: str) -> list[Line]:
        return [line for line in self.lines if line["event"] == name]

    @property
    def steps(self) -> list[tuple[int, float, float]]:
        return [(one["step"], _number(one["loss"]), _number(one["gradient_norm"])) for one in self._of("StepDone")]

    @property
    def skipped(self) -> int:
        return len(self._of("StepSkipped")) - self.overflowed

    @property
    def overflowed(self) -> int:
        return len([line for line in self._of("StepSkipped") if line["reason"] == "float16_overflow"])

    @property
    def score(self) -> Effect | None:
        return _effect(self._of("Score")[-1]) if self._of("Score") else None

    @property
    def scored(self) -> tuple[Scored, ...]:
        return tuple(Scored(line["step"], _effect(line["held_out"])) for line in self._of("Evaluated"))

    @property
    def pictures(self) -> Pictures | None:
        """As the run counted them; None if it does not tell."""
        told = self._of("Surveyed")
        return _counted(told[-1]["train"], told[-1]["held_out"], told[-1]["rejected"]) if told else None

    def ending(self, steps: int, *, is_running: bool) -> Ending:
        ended = RunStatus.initial(running=is_running)
        for line in self.lines:
            ended = status_after(ended, line, steps, running=is_running)
        return Ending(ended.how, ended.step, ended.kind, ended.text)


def _counted(train: int, held_out: int, rejected: Mapping[str, str]) -> Pictures:
    return Pictures(train, held_out, dict(list(rejected.items())[:_EXAMPLES]), len(rejected), twins=0)


def _unlogged(adapter: AdapterFile) -> Ending:
    """Without a log nothing tells how the run ended; the adapter's file tells its steps."""
    told = adapter.metadata.get("veneer.steps", "")
    return Ending("unknown", int(told) if told.isdecimal() else 0)


def _number(value: float | None) -> float:
    """JSON has no NaN; the log says null."""
    return math.nan if value is None else value


def _effect(line: Line) -> Effect:
    return Effect(line["mean"], line["low"], line["high"], line["base"], line["adapter"], line["pictures"])


def _told(score: Score | None) -> Effect | None:
    return None if score is None else effect_of(score)


def _copies(found: Evaluation | None) -> Copies | None:
    if found is None or found.copying is None:
        return None
    copying = found.copying
    first = copying.samples[0]
    return Copies(copying.flagged, len(copying.samples), copying.expected, (first.picture, first.nearest))


def _memory(evidence: Evidence, dataset: Dataset | None) -> Memory | None:
    """The plan's account of a run that may have wanted for memory, as it was and as it would be after each change."""
    config = evidence.config
    place = veneer.base.path() if config.base == BUNDLED else Path(config.base).expanduser()
    if not may_be_out_of_memory(evidence.ending) or not place.is_dir():
        return None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pictures = None if dataset is None else Shown.of(dataset, config)

    def planned(config: RunConfig) -> PlannedMemory:
        memory = rehearse(config, lambda tracer: sketch_folder(place, tracer), device, pictures).memory
        assert memory is not None, "a rehearsal is for it"
        return memory

    before = planned(config)
    memory = Memory(before.peak, dict(before.step.parts), _available(device), {})
    if evidence.ending.how == "cut off" and not memory.is_scarce:
        return memory  # nothing need be changed
    changes = [change for change in memory_changes(config) if change.key in _TAKING_MEMORY]
    after = {change.override: planned(with_change(config, change)).peak for change in changes}
    return replace(memory, after=after)


def _available(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows has no such call
        return None


def _dataset(config: RunConfig, told: Pictures | None, measured: bool) -> Dataset | None:
    """The pictures, looked over again; None where they are not here, or many and nobody asked."""
    try:
        count = told.train + told.held_out if told else sum(len(find_pictures(one.path)) for one in config.data.sources)
        return survey(config.data) if measured or count <= _QUICKLY else None
    except UserError:
        if measured:
            raise
        return None


def _pictures(config: RunConfig, told: Pictures | None, dataset: Dataset | None) -> Pictures:
    """As the run counted them, else as they are now, with what a look at them shows."""
    if dataset is None:
        return told or _counted(0, 0, {})
    now = Surveyed.of(dataset)
    return _looked(config, told or _counted(now.train, now.held_out, now.rejected), dataset)


def _looked(config: RunConfig, told: Pictures, dataset: Dataset) -> Pictures:
    train = {sample.path for sample in dataset.train.samples}
    held = {sample.path for sample in dataset.held_out.samples}
    alike = {path for pair in dataset.near if train.issuperset(pair) for path in pair}
    leaked = {path for pair in dataset.near for path in pair if path in held and not held.issuperset(pair)}
    short = {sample.path: min(sample.width, sample.height) for sample in dataset.train.samples}
    small = {path for path, side in short.items() if side < (config.data.resolution or 0)}
    return replace(
        told,
        twins=_twins(config, dataset.train),
        alike=len(alike),
        leaked=len(leaked),
        small=len(small),
        smallest=min(short.values()),
        examples=_examples(alike),
        small_examples=_examples(small),
    )


def _examples(paths: Iterable[Path]) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in paths)[:_EXAMPLES])


def _twins(config: RunConfig, train: Manifest) -> int:
    """Copies to the byte, which were taken as one picture with more repeats."""
    repeats = {source.repeats for source in config.data.sources}
    if len(repeats) > 1:
        return 0
    return sum(sample.repeats // min(repeats) - 1 for sample in train.samples)


def _captions(config: RunConfig, dataset: Dataset | None) -> Captions | None:
    if dataset is not None:
        return _summed(config, [sample.captions for sample in dataset.train.samples])
    try:
        folders = [read_source(source, config.data.trigger) for source in config.data.sources]
    except UserError:
        return None
    return _summed(config, [entry.captions for folder in folders for entry in folder.entries])


def _summed(config: RunConfig, captions: Sequence[Sequence[str]]) -> Captions:
    trigger = set(_words(config.data.trigger or ""))
    said = Counter(word for texts in captions for word in {word for text in texts for word in _words(text)} - trigger)
    shares = {word: count / len(captions) for word, count in said.most_common()}
    shared = {word: share for word, share in shares.items() if share >= _NEARLY_ALL}
    distinct = {text for texts in captions for text in texts}
    return Captions(len(captions), len(distinct), shared, captions[0][0])


def _words(text: str) -> list[str]:
    return [word.lower() for word in re.findall(r"\w[\w'-]*", text)]


def _moved(factors: AdapterWeights, base: str) -> dict[str, Moved]:
    """Each network's |delta W| beside |W0|, the latter read straight from the base's files where it is a folder."""
    networks: dict[str, dict[str, LayerAdapter]] = {}
    for name, each in factors.items():
        network, _, path = name.partition(".")
        networks.setdefault(network, {})[path] = each
    folder = veneer.base.path() if base == BUNDLED else Path(base).expanduser()
    return {network: _moved_of(layers, folder / network) for network, layers in networks.items()}


def _moved_of(layers: Mapping[str, LayerAdapter], folder: Path) -> Moved:
    delta = math.sqrt(sum(each.squared_norm() for each in layers.values()))
    return Moved(len(layers), delta, _base_norm(list(layers), folder))


def _base_norm(layers: Iterable[str], folder: Path) -> float | None:
    wanted = {f"{prefix}{layer}.weight" for layer in layers for prefix in ("", "text_model.")}
    squares: dict[str, float] = {}
    try:
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                for name in wanted.intersection(file.keys()):
                    squares[name] = float(file.get_tensor(name).to(torch.float64).square().sum())
    except (OSError, SafetensorError):
        return None
    return math.sqrt(sum(squares.values())) if len(squares) == len(wanted) // 2 else None
