"""The context that all trainings of a study share: the base, the pictures, and how adapters are measured."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from veneer.adapter.apply import apply_adapter
from veneer.config.fingerprint import training_settings
from veneer.config.load import resolve
from veneer.config.schema import RunConfig, SampleConfig, ValidationConfig
from veneer.data.preflight import Dataset, read_prior, survey
from veneer.errors import UserError
from veneer.evaluate.comparison import Losses
from veneer.evaluate.heldout import HeldOutEvaluator, choose_pictures, unusual_sizes
from veneer.family.fingerprint import fingerprint
from veneer.family.loading import load_base, load_options
from veneer.family.protocol import Family
from veneer.plan.parameters import plan_parameters
from veneer.run.events import Callback, Surveyed
from veneer.run.folder import CHECKPOINTS
from veneer.run.identity import BASE, PICTURES, PRIOR, Identity
from veneer.run.preparation import TrainingInputs, text_warnings
from veneer.run.prior import sample_prior
from veneer.study import trial as training
from veneer.study.config import Point, Study, config_of_point
from veneer.study.records import TrialRecord, TrialStore
from veneer.study.statistics import StoppedEarly, TrialResult
from veneer.study.trial import TRIALS, Trial
from veneer.weights.checkpoint import clear_checkpoints
from veneer.weights.file import FILE_NAME, load
from veneer.weights.training_adapter import TrainingAdapter

__all__ = ["StudyContext"]

_HASH_DIGITS = 10  # in a file's name: two hashes share so many by a chance of one in a million million


class StudyContext:
    """Prepares, trains and measures the trials of a study.

    Adapters are measured with the reference run, which is the study's own run as it stands: its held-out pictures,
    captions, seed of noise, draws and precision. A trial is trained to its end: no best step is selected by the
    pictures that it is then measured on.

    Args:
        study: whose run is changed.
        folder: of the study.
        callback: is called with an event about the pictures, and when pictures of a class are painted.

    Attributes:
        study: as above.
        folder: as above.
        family: the base, without any adapter in it whenever no trial runs.
        reference: the reference run, resolved.

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
        self._held_out_ids = {sample.id for sample in held_out.samples}
        self._measured_on = choose_pictures(held_out, run.validation.pictures)
        if not self._held_out_ids:
            what, remedy = "no picture is held out to measure on", "set run.data.held_out: a share, or a folder"
            raise UserError(what, code="study.nothing_held_out", where=study.origin, remedy=remedy)
        callback(Surveyed.of(self._pictures(run)))
        self.family: Family = load_base(run.base, **load_options(run))
        for warning in text_warnings(run, self._pictures(run), self.family):
            callback(warning)
        self._base_hash, self._settings = fingerprint(run.base), self.family.settings
        self.reference = resolve(run, self.family)
        self._store = TrialStore(folder, self._measurement_hash()[:_HASH_DIGITS])

    def trial(self, point: Point, seed: int) -> Trial:
        """Prepare the training of one point with one seed; missing pictures of a class are painted for it.

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
            raise UserError(fault.what, code=fault.code, where=where, remedy=fault.remedy) from None
        hashes = self._hashes(config)
        # memory levels give the same bits, but not the same seconds and bytes, which are in the table
        settings = {**training_settings(config), "train.memory": config.train.memory}
        digest = _hash({**settings, **hashes, **self._settings})
        output = self.folder / TRIALS / f"{_slug(point.name)}-seed{seed}-{digest[:_HASH_DIGITS]}"
        references = self._pictures(config).train.references
        return Trial(point, Identity(config.in_folder(output), hashes, self._settings, references), digest)

    def base_losses(self) -> Losses:
        """Return the base's losses on the held-out pictures, (pictures, draws); measured once for a folder."""
        return self._measured_once(None, self._measure)

    def result(self, trial: Trial) -> TrialResult | None:
        """Return the result of a trial; None if it is not done."""
        record, losses = self._store.record(trial), self._store.losses(trial)
        return None if record is None or losses is None else record.result(trial.point.name, losses)

    def run(self, trial: Trial, callback: Callback) -> TrialResult:
        """Train a trial, from its newest checkpoint if it was interrupted, and measure it; do only what is not done.

        Raises:
            UserError: it cannot be trained. Any other exception comes through as it is; the base is as it was.
            Interrupted: it was stopped, and has a checkpoint.
        """
        record = self._store.record(trial)
        if record is None or (self._store.losses(trial) is None and not (trial.folder / FILE_NAME).is_file()):
            record = self._train(trial, callback)
        return record.result(trial.point.name, self._measured_once(trial, lambda: self._measure_file(trial)))

    def current_loss(self) -> float:
        """Return the mean held-out loss of the networks as they stand: within a training, of its adapter so far."""
        return float(self._measure().mean())

    def stop_early(self, trial: Trial, step: int, loss: float) -> StoppedEarly:
        """Record that a trial was stopped early, after ``step`` and at a mean held-out loss."""
        self._store.save_stopped(trial, step, loss)
        stopped = self.stopped(trial)
        assert stopped is not None
        return stopped

    def stopped(self, trial: Trial) -> StoppedEarly | None:
        """Return how a trial was stopped early; None if it was not."""
        return self._store.stopped(trial)

    def tried_changes(self) -> list[Mapping[str, Any]]:
        """Return the changes of each point of which a trial has ended or was stopped early, each once."""
        return self._store.tried_changes()

    def _measurement_hash(self) -> str:
        """Return a hash of all that a held-out loss depends on beside the adapter."""
        sizes = unusual_sizes(self.reference, self.family, self._measured_on)
        return _hash(
            {
                "base": self._base_hash,
                "base settings": dict(self._settings),
                "pictures": self._measured_on.fingerprint(),
                "draws": self.reference.validation.draws,
                "data": self.reference.data.model_dump(mode="json", include={"resolution", "background", "crop"}),
                "precision": self.reference.train.precision,
                "seed": self.reference.seed,
                **({"sizes": sizes} if sizes else {}),
                **load_options(self.reference),
            }
        )

    def _hashes(self, config: RunConfig) -> dict[str, str]:
        """Return the fingerprints of the base and the pictures that a trial is trained on."""
        hashes = {BASE: self._base_hash, PICTURES: self._pictures(config).train.fingerprint()}
        if config.data.prior is not None:
            sample_prior(config.model_copy(update={"seed": self.reference.seed}), self.family, self._callback)
            hashes[PRIOR] = read_prior(config).fingerprint()
        return hashes

    def _config(self, point: Point, seed: int) -> RunConfig:
        """Return a trial's configuration, without an output folder of its own."""
        config = config_of_point(self.study, point)
        # nobody looks at samples of a trial, and the pictures that it is measured on may select no step of it
        update: dict[str, Any] = {"seed": seed, "sample": SampleConfig(), "validation": ValidationConfig()}
        prior = config.data.prior
        if prior is not None and prior.path is None:
            # one set of pictures of the class for all trials
            prior = prior.model_copy(update={"path": self.folder / "prior" / _slug(prior.prompt)})
            update["data"] = config.data.model_copy(update={"prior": prior})
        return resolve(config.model_copy(update=update), self.family)

    def _pictures(self, config: RunConfig) -> Dataset:
        """Return the pictures of a configuration; each set is surveyed once, however many trials use it."""
        key = config.data.model_copy(update={"resolution": None, "prior": None}).model_dump_json()
        if key not in self._surveys:
            self._surveys[key] = survey(config.data)
        return self._surveys[key]

    def _refuse_other_base(self, config: RunConfig) -> None:
        """Refuse a base that is to be loaded otherwise than it is, for all trials share it."""
        shared = self.reference
        self._refuse_other("train.quantization", config.train.quantization, shared.train.quantization)
        texts = config.train.text_encoder_quantization, shared.train.text_encoder_quantization
        self._refuse_other("train.text_encoder_quantization", *texts)
        self._refuse_other("data.token_windows", config.data.token_windows, shared.data.token_windows)

    def _refuse_other(self, key: str, own: object, shared: object) -> None:
        if own != shared:
            what = f"is {own} here, and {shared} in the study's own run"
            remedy = "make it two studies, one for each base"
            raise UserError(what, code="study.differing_base", where=key, remedy=remedy)

    def _refuse_leak(self, config: RunConfig) -> None:
        """Refuse a trial that would be trained on pictures that it is measured on."""
        leaked = [sample.path for sample in self._pictures(config).train.samples if sample.id in self._held_out_ids]
        if leaked:
            what = f"trains on {len(leaked)} pictures that the study measures on, such as {leaked[0]}"
            raise UserError(what, code="study.leak", remedy="let run.data.held_out name a folder of its own")

    def _count(self, point: Point, config: RunConfig) -> int:
        """Return the number of trainable parameters, which is the same for all seeds.

        Raises:
            UserError: the adapter does not fit the base.
        """
        if point.name not in self._counts:
            self._counts[point.name] = plan_parameters(config, self.family).trainable
        return self._counts[point.name]

    def _train(self, trial: Trial, callback: Callback) -> TrialRecord:
        """Train a trial to its end, and record it."""
        config = trial.run.config
        inputs = TrainingInputs(trial.run, self.family, self._pictures(config))
        seconds, memory = training.train_trial(inputs, callback)
        record = TrialRecord(
            digest=trial.digest,
            changes=dict(trial.point.changes),
            seed=config.seed,
            trainable=self._count(trial.point, config),
            file_bytes=(trial.folder / FILE_NAME).stat().st_size,
            seconds=seconds,
            memory_bytes=memory,
        )
        self._store.save_record(trial, record)
        clear_checkpoints(trial.folder / CHECKPOINTS)  # of no more use, and larger than all the rest
        return record

    def _measure_file(self, trial: Trial) -> Losses:
        """Measure a trial's adapter file."""
        with apply_adapter(self.family.networks, load(trial.folder / FILE_NAME, self.family.networks).weights):
            return self._measure()

    def _measure(self) -> Losses:
        """Measure the networks as they stand; the pictures are encoded once for all trials."""
        if self._evaluator is None:
            self._evaluator = HeldOutEvaluator(self.reference, self.family, self._measured_on)
        reference, family = self.reference, self.family
        with TrainingAdapter(reference.adapter, family.networks, family.denoiser).applied():
            return self._evaluator.losses()

    def _measured_once(self, trial: Trial | None, measure: Callable[[], Losses]) -> Losses:
        """Return recorded losses, or measure and record them."""
        losses = self._store.losses(trial)
        if losses is None:
            losses = measure()
            self._store.save_losses(trial, losses)
        return losses


def _slug(name: str) -> str:
    """Return a name that any file system allows for a folder."""
    return re.sub(r"[^\w.+]+", "-", name.lower()).strip("-.")[:60] or "point"


def _hash(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, allow_nan=False).encode()).hexdigest()
