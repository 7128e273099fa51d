"""The result of a training: the adapter's file, a sheet that shows it, its score and its card."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from veneer.adapter.protocol import AdapterWeights
from veneer.data.preflight import read_prior
from veneer.errors import UserError
from veneer.evaluate.comparison import DRIFT
from veneer.evaluate.heldout import choose_pictures, compare_adapter, pictures_by_kind
from veneer.evaluate.results import Evaluation, Score, write_evaluation
from veneer.files import atomic_write
from veneer.run.card import run_card
from veneer.run.events import AdapterSaved, Callback
from veneer.run.folder import CARD, GALLERY, SHEET
from veneer.run.metadata import file_metadata
from veneer.run.preparation import TrainingInputs
from veneer.sample.clip import middle
from veneer.sample.comparison import compare_pictures, sample_prompts
from veneer.sample.files import write_sheet
from veneer.sample.gallery import thumbnail, write_gallery
from veneer.train.events import Finished, Warned
from veneer.weights.adapter_path import FILE_NAME, adapter_name, named_file
from veneer.weights.card import CardFile
from veneer.weights.file import AdapterFile, save
from veneer.weights.formats.protocol import BaseNames

__all__ = ["Result", "write_result"]

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Result:
    """Files and score that a run leaves behind.

    Attributes:
        adapter: the file in the first format.
        sha256: of it.
        files: the files, or folders, in all formats.
        sheet: base and adapter side by side; None where it could not be written.
        score: on held-out pictures; None where there are none.
    """

    adapter: Path
    sha256: str
    files: tuple[Path, ...]
    sheet: Path | None
    score: Score | None


def write_result(inputs: TrainingInputs, finished: Finished, emit: Callback) -> Result:
    """Save the adapter, then show it and measure it, which only tells how good it is: a fault there is a warning.

    Args:
        inputs: of the training; the base has its own bits again.
        finished: the trained adapter.
        emit: is called with ``AdapterSaved``, the score, and a warning of each thing that could not be made.

    Raises:
        UserError: the adapter learned nothing, or its file cannot be written; it says then where it is instead.
    """
    config, family = inputs.run.config, inputs.family
    first, *others = config.output.formats
    _check_trained(finished.weights, _place(inputs, first))
    saved = [_save_first(inputs, finished, first)]
    emit(saved[0])
    subjects = sample_prompts(config, inputs.dataset)

    def paint() -> tuple[Path, Mapping[str, str], str]:
        painted = compare_pictures(family, finished.weights, subjects, config)
        sheet = write_sheet(painted.sheet(), config.output.dir / SHEET, painted.note)
        gallery = write_gallery(config.output.dir / GALLERY, painted.adapter, painted.notes, family.frame_rate)
        return sheet, gallery, thumbnail(middle(painted.adapter[0]))

    sheet, gallery, small = _warning_of_faults("sheet", paint, emit) or (None, {}, None)
    saved += _save_others(inputs, finished, others, small, emit)
    score = _measure(inputs, finished, saved[0].path, emit)

    def write_card() -> None:
        files = [CardFile(file.path.name, file.format, file.sha256) for file in saved]
        shown = SHEET if sheet else None
        card = run_card(
            config,
            family,
            files,
            score,
            prompt=subjects.prompts[0],
            references=inputs.run.references,
            gallery=gallery,
            sheet=shown,
        )
        atomic_write(config.output.dir / CARD, card.encode())

    _warning_of_faults("model card", write_card, emit)
    return Result(saved[0].path, saved[0].sha256, tuple(file.path for file in saved), sheet, score)


def _save_others(
    inputs: TrainingInputs, finished: Finished, formats: Sequence[str], thumbnail: str | None, emit: Callback
) -> list[AdapterSaved]:
    """Save what was trained in the formats after the first; what fails is a warning.

    It is done when there are pictures, for the file of the lists that programs show has a small one in it.
    """
    saved = []
    for name in formats:
        try:
            saved.append(_save(inputs, finished, name, thumbnail))
        except UserError as fault:
            place = _place(inputs, inputs.run.config.output.formats[0])
            text = f"the adapter was not written for {name}: {fault}; it is in {place.name}"
            emit(Warned("result.format_not_written", text))
        else:
            emit(saved[-1])
    return saved


def _place(inputs: TrainingInputs, format_name: str) -> Path:
    folder = inputs.run.config.output.dir
    return folder / named_file(format_name, adapter_name(folder))


def _save(inputs: TrainingInputs, finished: Finished, format_name: str, thumbnail: str | None = None) -> AdapterSaved:
    """Save what was trained in one format."""
    place, base = _place(inputs, format_name), BaseNames.of(inputs.family.networks)
    metadata = file_metadata(inputs, finished.weights, finished.step, format_name, thumbnail=thumbnail)
    return AdapterSaved(place, save(AdapterFile(finished.weights, metadata), place, format_name, base), format_name)


def _save_first(inputs: TrainingInputs, finished: Finished, format_name: str) -> AdapterSaved:
    """Save what was trained; where its place is full, in the system's folder for temporary files.

    Raises:
        UserError: it is not in its place; the remedy says where it is.
    """
    try:
        return _save(inputs, finished, format_name)
    except UserError as fault:
        if fault.code != "files.unwritable":
            raise
        file = AdapterFile(finished.weights, inputs.run.metadata | {"veneer.steps": str(finished.step)})
        raise UserError(fault.what, code=fault.code, where=fault.where, remedy=_rescue(file)) from fault


def _rescue(file: AdapterFile) -> str:
    """Save a file that has no place; return what its owner should do."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="veneer-"))
    except OSError:
        return _MAKE_ROOM
    try:
        save(file, folder / FILE_NAME)
    except UserError:
        shutil.rmtree(folder, ignore_errors=True)
        return _MAKE_ROOM
    return f"what was trained is in {folder / FILE_NAME}: move it, or {_MAKE_ROOM}"


_MAKE_ROOM = "make room and go on from the newest checkpoint with --resume"


def _warning_of_faults(what: str, work: Callable[[], _Value], emit: Callback) -> _Value | None:
    """Do what only tells how good an adapter is; the adapter is saved, so a fault is a warning."""
    try:
        return work()
    except UserError as fault:
        emit(Warned("result.not_written", f"no {what}: {fault}; --resume makes it once that is mended"))
        return None


def _measure(inputs: TrainingInputs, finished: Finished, adapter: Path, emit: Callback) -> Score | None:
    """Return the score on held-out pictures; ``evaluation.json`` holds what can be measured without painting."""
    config = inputs.run.config
    drift = choose_pictures(read_prior(config), config.validation.pictures)
    kinds = pictures_by_kind(config, inputs.dataset) | {DRIFT: drift}
    try:
        comparison = compare_adapter(config, inputs.family, kinds, finished.weights)
    except UserError as fault:  # the adapter is saved, and whoever trained it long will want to look into it
        emit(Warned("evaluation.failed", f"the adapter could not be measured: {fault}"))
        return None
    source = None if comparison.drift is None else "pictures of the class"
    about: dict[str, Any] = {
        "adapter": adapter.name,
        "base": config.base,
        "step": finished.step,
        "drift_source": source,
    }
    evaluation = Evaluation(**vars(comparison), **about)
    _warning_of_faults("evaluation", lambda: write_evaluation(evaluation, config.output.dir), emit)
    if comparison.held_out is not None:
        emit(comparison.held_out)
    return comparison.held_out


def _check_trained(weights: AdapterWeights, path: Path) -> None:
    """Refuse an adapter that is as it started: its file would be a success that does nothing."""
    if all(layer.is_untrained for layer in weights.values()):
        raise UserError(
            "was not written: it is as it started on every layer, so nothing was learned and it does nothing",
            code="adapter.untrained",
            where=path,
            remedy="look for warnings in run.jsonl, or raise train.learning_rate",
        )
