"""Evidence gathered from a run's folder, and its diagnosis."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from veneer.adapter.protocol import AdapterWeights
from veneer.config.load import load_config
from veneer.config.schema import RunConfig
from veneer.data.preflight import Dataset
from veneer.doctor.curve import summarize
from veneer.doctor.diagnosis import Diagnosis, diagnose
from veneer.doctor.evidence import CopyCheck, Effect, Ending, Evidence
from veneer.doctor.measurements import effect_of, measure
from veneer.doctor.readers.adapter import weight_changes
from veneer.doctor.readers.log import RunLog, first_details, read_log
from veneer.doctor.readers.memory import estimate_memory
from veneer.doctor.readers.pictures import caption_statistics, count_pictures, survey_pictures
from veneer.doctor.rules.captions import STYLE_WORDS
from veneer.errors import UserError
from veneer.evaluate.results import Evaluation, Score, read_evaluation
from veneer.family.layer_names import names_of_base
from veneer.family.loading import load_base, text_options
from veneer.family.protocol import Family
from veneer.family.unread import caption_places, unread_notes
from veneer.files import opens_paths
from veneer.run.folder import CHECKPOINTS, CONFIG, LOG
from veneer.run.status import is_running
from veneer.weights.adapter_path import adapters_in
from veneer.weights.checkpoint import checkpoints_in
from veneer.weights.file import AdapterFile, load

__all__ = ["gather_evidence", "run_doctor"]


@opens_paths
def run_doctor(folder: Path, *, measured: bool = False) -> tuple[Diagnosis, Evidence]:
    """Diagnose the run in a folder.

    Args:
        folder: folder of the run.
        measured: whether to load the base and measure what the run did not.

    Returns:
        The diagnosis, and the evidence that it is from.

    Raises:
        UserError: the folder holds no run; or base or pictures, needed to measure, are gone.
    """
    evidence = gather_evidence(folder, measured=measured)
    return diagnose(evidence), evidence


@opens_paths
def gather_evidence(folder: Path, *, measured: bool = False) -> Evidence:
    """Read a run's folder as evidence; arguments and errors are those of :func:`run_doctor`."""
    config, log = _load_config(folder), read_log(folder / LOG)
    dataset = survey_pictures(config, log.pictures, required=measured)
    adapter = _read_adapter(folder, config)
    evidence = Evidence(
        config=config,
        ending=_ending(folder, config, log, adapter),
        loss_curve=summarize(log.steps),
        skipped_steps=log.skipped,
        overflowed_steps=log.overflowed,
        pictures=count_pictures(config, log.pictures, dataset),
        captions=caption_statistics(config, dataset),
        weight_changes=weight_changes(adapter.weights, config.base),
        validation_scores=log.validation_scores,
        checkpoints=tuple(int(path.name.rpartition("-")[2]) for path in checkpoints_in(folder / CHECKPOINTS)),
        run=shlex.quote(str(folder)),
        unread_texts=log.unread_texts,
    )
    evidence = _with_scores(evidence, read_evaluation(folder), log)
    evidence = replace(evidence, memory=estimate_memory(evidence, dataset))
    if not measured or not adapter.weights:
        return evidence
    assert dataset is not None, "the survey was required"
    return _with_measurements(evidence, dataset, adapter.weights)


def _load_config(folder: Path) -> RunConfig:
    if (folder / CONFIG).is_file():
        return load_config(folder / CONFIG)
    runs = sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
    what = f"is no run's folder: it holds no {CONFIG}" if folder.is_dir() else "is no folder"
    expected = f"one of the runs in it, such as {runs[0]}" if runs else "the folder that 'veneer train' wrote to"
    raise UserError(what, code="doctor.not_a_run", where=folder, remedy=f"give {expected}")


def _read_adapter(folder: Path, config: RunConfig) -> AdapterFile:
    """Return a run's adapter; empty before it is saved. Some formats' names take the base to understand."""
    if not adapters_in(folder):
        return AdapterFile({})
    try:
        return load(folder)
    except UserError as fault:
        if fault.code != "weights.needs_base":
            raise
        base = names_of_base(config.base)
        return load(folder, base.networks, base.key_names)


def _ending(folder: Path, config: RunConfig, log: RunLog, adapter: AdapterFile) -> Ending:
    """Return the ending by the log; without a log only the adapter's file says how many steps were done."""
    if log.exists:
        return log.ending(config.train.max_steps, is_running=is_running(folder))
    steps = adapter.metadata.get("veneer.steps", "")
    return Ending("unknown", int(steps) if steps.isdecimal() else 0)


def _with_scores(evidence: Evidence, evaluation: Evaluation | None, log: RunLog) -> Evidence:
    """Add the scores of an evaluation; without one, the score of the log."""
    if evaluation is None:
        return replace(evidence, held_out=log.score)
    return replace(
        evidence,
        held_out=_effect(evaluation.held_out),
        training=_effect(evaluation.training),
        drift=_effect(evaluation.drift),
        drift_source=evaluation.drift_source or "",
        copies=_copy_check(evaluation),
    )


def _effect(score: Score | None) -> Effect | None:
    return None if score is None else effect_of(score)


def _copy_check(evaluation: Evaluation) -> CopyCheck | None:
    copying = evaluation.copying
    if copying is None:
        return None
    first = copying.samples[0]
    return CopyCheck(copying.flagged, len(copying.samples), copying.expected, (first.picture, first.nearest))


def _unread_texts(config: RunConfig, family: Family, dataset: Dataset) -> tuple[str, ...]:
    """Return what the base does not see of captions, for a run whose log tells nothing of it."""
    places = caption_places(dataset.train, dataset.held_out)
    notes = unread_notes(family.unread, places, trigger=config.data.trigger)
    return tuple(first_details(note.text, note.details) for note in notes)


def _with_measurements(evidence: Evidence, dataset: Dataset, weights: AdapterWeights) -> Evidence:
    shared = tuple(evidence.captions.shared_words) if evidence.captions else ()
    words = shared if STYLE_WORDS.intersection(shared) else ()
    family = load_base(evidence.config.base, **text_options(evidence.config.data.token_windows))
    evidence = replace(evidence, unread_texts=evidence.unread_texts or _unread_texts(evidence.config, family, dataset))
    try:
        return replace(evidence, measurements=measure(evidence.config, family, dataset, weights, words))
    except UserError as error:  # an adapter that gives no numbers is what the doctor was asked about
        return replace(evidence, measurement_error=str(error))
