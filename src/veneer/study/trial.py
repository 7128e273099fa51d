"""One training of a study: in a folder of its own, measured with the rod that all share, and never done twice."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from veneer.adapter.applied import applied
from veneer.adapter.protocol import AdapterWeights
from veneer.config.fingerprint import training_settings
from veneer.config.load import resolve, write_config
from veneer.config.schema import RunConfig, SampleConfig, ValidationConfig
from veneer.data.preflight import Dataset, read_prior, survey
from veneer.engine.peak_memory import PeakMemory
from veneer.errors import UserError
from veneer.evaluate.heldout import HeldOutEvaluator, Losses, chosen
from veneer.family.fingerprint import fingerprint
from veneer.family.loading import held_as, load_base
from veneer.family.protocol import Family, device_of
from veneer.files import atomic_write
from veneer.plan.parameters import plan_parameters
from veneer.run.checkpoints import CheckpointManager
from veneer.run.events import Callback, Resumed, Surveyed
from veneer.run.folder import CHECKPOINTS, CONFIG, LOG, clear, make_writable
from veneer.run.identity import BASE, PICTURES, PRIOR, Identity
from veneer.run.lock import locked
from veneer.run.log import EventBus, EventLog, cut_log, events_in
from veneer.run.resume import check_same
from veneer.run.session import paint_prior
from veneer.run.signals import Interrupted, stopping_at_signals
from veneer.study.config import Point, Study, config_of_point
from veneer.study.statistics import Outcome, StoppedEarly
from veneer.train.events import CheckpointDue, Finished, Stopped, Warned
from veneer.train.loop import Trainer
from veneer.train.step import NonFinite
from veneer.weights.checkpoint import Checkpoint, clear_checkpoints, newest_checkpoint
from veneer.weights.file import FILE_NAME, AdapterFile, load, save

__all__ = ["TRIALS", "StudyContext", "Trial"]

TRIALS = "trials"
"""Folder of a study's trainings."""
_FACTS = "trial.json"
_STOPPED = "stopped"
"""What the file begins with that tells of a training that was ended early; the rest of its name is the rod's."""
_DIGITS = 10  # of a hash in a name: one in a million million by chance


@dataclass(frozen=True)
class Trial:
    """One training that is to be, or was.

    Attributes:
        point: the way it is trained.
        run: its resolved configuration, and fingerprints of base and pictures.
        digest: SHA-256 of what decides its result; its folder is named by it.
    """

    point: Point
    run: Identity
    digest: str

    @property
    def folder(self) -> Path:
        """Where it is trained."""
        return self.run.config.output.dir


@dataclass(frozen=True)
class _Facts:
    """What is known of a training once it is done.

    Attributes:
        digest: of the trial.
        changes: of its point.
        seed: of the training.
        trainable: parameters.
        file_bytes: of the adapter file.
        seconds: of training, over all that it took if it was cut.
        memory_bytes: most memory of the last part.
    """

    digest: str
    changes: Mapping[str, Any]
    seed: int
    trainable: int
    file_bytes: int
    seconds: float
    memory_bytes: int | None


class StudyContext:
    """What all trainings of a study share: the base, the pictures, and the rod that they are measured with.

    The rod is the study's own run as it stands: its held-out pictures, captions, seed of noise, draws and precision. A
    trial is trained to its end: no best step is chosen by the pictures that it is then measured on.

    Args:
        study: whose run is changed.
        folder: of the study.
        listen: is told about the pictures, and when pictures of a class are painted.

    Attributes:
        study: as above.
        folder: as above.
        family: the base; it has its own bits whenever no trial runs.
        rod: the run that is changed, resolved.

    Raises:
        UserError: the base or the pictures cannot be used, or no picture is held out.
    """

    def __init__(self, study: Study, folder: Path, callback: Callback) -> None:
        self.study, self.folder, self._callback = study, folder, callback
        run = study.run
        self._surveys: dict[str, Dataset] = {}
        self._counts: dict[str, int] = {}
        self._evaluator: HeldOutEvaluator | None = None
        held_out = self._pictures(run).held_out
        self._unseen = {sample.id for sample in held_out.samples}
        self._measured = chosen(held_out, run.validation.pictures)
        if not self._unseen:
            remedy = "set run.data.held_out: a share, or a folder of pictures"
            raise UserError("no picture is held out to measure on", where=study.origin, remedy=remedy)
        callback(Surveyed.of(self._pictures(run)))
        self.family: Family = load_base(run.base, **held_as(run))
        self._base_hash, self._settings = fingerprint(run.base), self.family.settings
        self.reference = resolve(run, self.family)
        self._rule = _hash(
            {
                "base": self._base_hash,
                "base settings": dict(self._settings),
                "pictures": self._measured.fingerprint(),
                "draws": self.reference.validation.draws,
                "data": self.reference.data.model_dump(mode="json", include={"resolution", "background", "crop"}),
                "precision": self.reference.train.precision,
                "seed": self.reference.seed,
                **held_as(self.reference),
            }
        )

    def trial(self, point: Point, seed: int) -> Trial:
        """What it would be to train one way with one seed; pictures of a class that are missing are painted for it.

        Raises:
            UserError: its adapter does not fit the base, or it would learn from held-out pictures.
        """
        try:
            config = self._config(point, seed)
            self._refuse_other_base(config)
            self._count(point, config)
            self._refuse_leak(config)
        except UserError as fault:
            where = f"point {point.name!r}" + (f": {fault.where}" if fault.where else "")
            raise UserError(fault.what, where=where, remedy=fault.remedy) from None
        hashes = {BASE: self._base_hash, PICTURES: self._pictures(config).train.fingerprint()}
        if config.data.prior is not None:
            paint_prior(config.model_copy(update={"seed": self.reference.seed}), self.family, self._callback)
            hashes[PRIOR] = read_prior(config).fingerprint()
        # levels of memory that give the same bits do not take the time and the memory that the table tells
        digest = _hash({**training_settings(config), "train.memory": config.train.memory, **hashes, **self._settings})
        output = self.folder / TRIALS / f"{_slug(point.name)}-seed{seed}-{digest[:_DIGITS]}"
        return Trial(point, Identity(config.in_folder(output), hashes, self._settings), digest)

    def base_losses(self) -> Losses:
        """The base's losses on the held-out pictures, (pictures, draws); measured once for a folder."""
        return self._kept(self.folder / TRIALS / self._score_name("base"), self._measure)

    def outcome(self, trial: Trial) -> Outcome | None:
        """What a trial came to, if it is done."""
        facts, losses = self._facts(trial), _read(trial.folder / self._score_name("score"))
        return None if facts is None or losses is None else self._outcome(trial, facts, np.array(losses))

    def run(self, trial: Trial, callback: Callback) -> Outcome:
        """Do what is not done yet of a trial: train, from its newest checkpoint if it was cut, and measure.

        Raises:
            UserError: it cannot be trained; other exceptions likewise come through, the base is as it was.
            Interrupted: it was stopped, and has a checkpoint.
        """
        facts = self._facts(trial)
        if facts is None or not (self._has_score(trial) or (trial.folder / FILE_NAME).is_file()):
            facts = self._train(trial, callback)
        return self._outcome(trial, facts, self._score(trial))

    def measure_now(self) -> float:
        """Mean held-out loss of the networks as they stand: within a training, of its adapter so far."""
        return float(self._measure().mean())

    def stop(self, trial: Trial, step: int, loss: float) -> StoppedEarly:
        """Note that a trial was ended early by design, after ``step`` and at a mean held-out loss; it stays known."""
        told = {"digest": trial.digest, "changes": dict(trial.point.changes), "step": step, "loss": loss}
        atomic_write(trial.folder / self._score_name(_STOPPED), _json(told))
        return self._early(trial, told)

    def stopped(self, trial: Trial) -> StoppedEarly | None:
        """How a trial was ended early, if it was."""
        told = _read(trial.folder / self._score_name(_STOPPED))
        return self._early(trial, told) if told is not None and told.get("digest") == trial.digest else None

    def tried(self) -> list[Mapping[str, Any]]:
        """The changes of every way that some trial in the folder was trained, or begun and ended early, each once."""
        names = (_FACTS, self._score_name(_STOPPED))
        found = [_read(path) for name in names for path in sorted((self.folder / TRIALS).glob(f"*/{name}"))]
        changes = [json.dumps(facts["changes"]) for facts in found if facts]
        return [json.loads(text) for text in dict.fromkeys(changes)]

    def _config(self, point: Point, seed: int) -> RunConfig:
        config = config_of_point(self.study, point)
        # nobody looks at pictures on the way, and what is measured at the end may choose nothing before it
        update: dict[str, Any] = {"seed": seed, "sample": SampleConfig(), "validation": ValidationConfig()}
        prior = config.data.prior
        if prior is not None and prior.path is None:
            # one class's pictures for all trials, not one set for each
            prior = prior.model_copy(update={"path": self.folder / "prior" / _slug(prior.prompt)})
            update["data"] = config.data.model_copy(update={"prior": prior})
        return resolve(config.model_copy(update=update), self.family)

    def _pictures(self, config: RunConfig) -> Dataset:
        """A survey for each way to name the pictures, however many trials use it."""
        key = config.data.model_copy(update={"resolution": None, "prior": None}).model_dump_json()
        if key not in self._surveys:
            self._surveys[key] = survey(config.data)
        return self._surveys[key]

    def _refuse_other_base(self, config: RunConfig) -> None:
        """All trials train on the base that is loaded, as it is held."""
        if config.train.quantization != self.reference.train.quantization:
            what = (
                f"is {config.train.quantization} here, and {self.reference.train.quantization} in the study's own run"
            )
            raise UserError(what, where="train.quantization", remedy="all points share one base; make it two studies")

    def _refuse_leak(self, config: RunConfig) -> None:
        seen = [sample.path for sample in self._pictures(config).train.samples if sample.id in self._unseen]
        if seen:
            what = f"trains on {len(seen)} pictures that the study measures on, such as {seen[0]}"
            raise UserError(what, remedy="let run.data.held_out name a folder of its own")

    def _count(self, point: Point, config: RunConfig) -> int:
        """Trainable parameters, which no seed changes.

        Raises:
            UserError: the adapter does not fit the base.
        """
        if point.name not in self._counts:
            self._counts[point.name] = plan_parameters(config, self.family).trainable
        return self._counts[point.name]

    def _facts(self, trial: Trial) -> _Facts | None:
        told = _read(trial.folder / _FACTS)
        return _Facts(**told) if told is not None and told.get("digest") == trial.digest else None

    def _train(self, trial: Trial, callback: Callback) -> _Facts:
        seconds, memory = _train_alone(trial.run, self.family, self._pictures(trial.run.config), callback)
        count, size = self._count(trial.point, trial.run.config), (trial.folder / FILE_NAME).stat().st_size
        told = dict(trial.point.changes), trial.run.config.seed, count, size
        facts = _Facts(trial.digest, *told, seconds, memory)
        atomic_write(trial.folder / _FACTS, _json(asdict(facts)))
        clear_checkpoints(trial.folder / CHECKPOINTS)  # of no more use, and larger than all the rest
        return facts

    def _has_score(self, trial: Trial) -> bool:
        return _read(trial.folder / self._score_name("score")) is not None

    def _score(self, trial: Trial) -> Losses:
        def measure() -> Losses:
            weights = load(trial.folder / FILE_NAME, self.family.networks).weights
            with applied(self.family.networks, weights):
                return self._measure()

        return self._kept(trial.folder / self._score_name("score"), measure)

    def _measure(self) -> Losses:
        """By the networks as they stand; the pictures are encoded once for all trials."""
        if self._evaluator is None:
            self._evaluator = HeldOutEvaluator(self.reference, self.family, self._measured)
        return self._evaluator.losses()

    def _kept(self, path: Path, make: Callable[[], Losses]) -> Losses:
        known = _read(path)
        if known is not None:
            return np.array(known, dtype=np.float64)
        losses = make()
        atomic_write(path, _json(losses.tolist()))
        return losses

    def _score_name(self, what: str) -> str:
        """Measured otherwise, it is another file."""
        return f"{what}-{self._rule[:_DIGITS]}.json"

    def _early(self, trial: Trial, told: Mapping[str, Any]) -> StoppedEarly:
        config = trial.run.config
        return StoppedEarly(trial.point.name, config.seed, told["step"], config.train.max_steps, told["loss"])

    def _outcome(self, trial: Trial, facts: _Facts, losses: Losses) -> Outcome:
        told = trial.point.name, facts.seed, facts.trainable, facts.file_bytes
        return Outcome(*told, losses, facts.seconds, facts.memory_bytes)


def _train_alone(run: Identity, family: Family, pictures: Dataset, callback: Callback) -> tuple[float, int | None]:
    """Train and save, without the sheet and the card that a run has; return its seconds and its most memory."""
    folder, emit = run.config.output.dir, EventBus(callback)
    make_writable(folder, "choose another --out FOLDER")
    with locked(folder):
        start = _start(run, emit)
        peak = PeakMemory(device_of(family))
        with closing(Trainer(run.config, family, pictures)) as trainer:
            if start is not None:
                trainer.load_state_dict(start.state)
                emit(Resumed(start.step, start.path))
            with _open_log(run.config, start) as log:
                emit.open(log)
                weights = _watch(trainer, _checkpoint_manager(run, start, emit), emit)
        save(AdapterFile(weights, run.metadata), folder / FILE_NAME)
        return _seconds(folder / LOG), peak.bytes()


def _start(run: Identity, emit: Callback) -> Checkpoint | None:
    """The newest whole checkpoint of the folder; it is named by the trial's hash, so nothing else can be in it."""
    start, faults = newest_checkpoint(run.config.output.dir / CHECKPOINTS)
    for fault in faults:
        emit(Warned("checkpoint.passed_over", f"a checkpoint is passed over: {fault}"))
    if start is not None:
        check_same(start, run, (), emit)
    return start


def _open_log(config: RunConfig, start: Checkpoint | None) -> EventLog:
    if start is None:
        clear(config.output.dir)
    else:
        cut_log(config.output.dir / LOG, start.step)
    write_config(config, config.output.dir / CONFIG)
    return EventLog(config.output.dir / LOG)


def _checkpoint_manager(run: Identity, start: Checkpoint | None, emit: Callback) -> CheckpointManager:
    last = None if start is None else (start.step, start.path)
    return CheckpointManager(
        run.config.output.dir / CHECKPOINTS, run.config.train.keep_checkpoints, run.origin, emit, last
    )


def _watch(trainer: Trainer, checkpoints: CheckpointManager, emit: Callback) -> AdapterWeights:
    weights: AdapterWeights = {}
    with stopping_at_signals(trainer.stop) as caught:
        try:
            for event in trainer.run():
                emit(event)
                if isinstance(event, CheckpointDue):
                    checkpoints.write(event.step, trainer.state_dict())
                elif isinstance(event, Stopped):
                    raise Interrupted(caught.number, event.step, checkpoints.last)
                elif isinstance(event, Finished):
                    weights = event.weights
        except NonFinite as fault:
            raise fault.with_note(checkpoints.last_in_words) from fault
    return weights


def _seconds(log: Path) -> float:
    """Of training: from each start to its last step, over all the starts that the log tells of."""
    total = began = last = 0.0
    for told in events_in(log):
        if told["event"] == "TrainingStarted":
            total += last - began
            began = last = told["seconds"]
        elif told["event"] == "StepDone":
            last = told["seconds"]
    return round(total + last - began, 3)


def _slug(name: str) -> str:
    """A name fit for a folder of any system."""
    return re.sub(r"[^\w.+]+", "-", name.lower()).strip("-.")[:60] or "point"


def _hash(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _json(value: Any) -> bytes:
    return (json.dumps(value, allow_nan=False) + "\n").encode()


def _read(path: Path) -> Any:
    """What a file of ours says; None if it is not there or not whole, for it can be made again."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
