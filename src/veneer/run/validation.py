"""Scores while a run trains: the best adapter is kept, and the run ends when no better one is in sight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from veneer.adapter.protocol import AdapterWeights
from veneer.config.schema import RunConfig
from veneer.data.manifest import Manifest
from veneer.data.preflight import Dataset
from veneer.errors import UserError
from veneer.evaluate.comparison import HELD_OUT, Losses, compare_losses
from veneer.evaluate.early_stopping import EarlyStopping
from veneer.evaluate.heldout import HeldOutEvaluator, pictures_by_kind, unusual_sizes
from veneer.evaluate.results import Evaluated, Score
from veneer.family.protocol import Family
from veneer.run.events import BestAdapterSaved, Callback, EarlyStopped
from veneer.run.folder import BEST
from veneer.run.identity import Identity
from veneer.train.events import Warned
from veneer.train.loop import Trainer
from veneer.weights.file import AdapterFile, save

__all__ = ["Validator"]

_LossesByKind = Mapping[str, Losses]
"""Losses on held-out pictures and on pictures that are trained on, by the kind's name."""


class Validator:
    """Measures the adapter in training on held-out pictures and on pictures it is trained on.

    With several processes the first one measures, and all come to the same conclusions.

    Args:
        trainer: whose adapter is measured.
        run: of its training.
        family: with the adapter in it.
        dataset: of the run.
        emit: is called with each score, and with what follows from it.
    """

    def __init__(self, trainer: Trainer, run: Identity, family: Family, dataset: Dataset, emit: Callback) -> None:
        self._trainer, self._run, self._family, self._emit = trainer, run, family, emit
        self._pictures = pictures_by_kind(run.config, dataset)
        measurement = _measure_of(run.config, family, self._pictures[HELD_OUT])
        self._early_stopping = EarlyStopping(run.config.validation.patience, measurement)
        self._evaluators: dict[str, HeldOutEvaluator] = {}
        self._base: _LossesByKind = {}
        self._last: Losses | None = None

    def validate(self, step: int) -> None:
        """Score the adapter as it is in the networks now; end the training if the patience has run out."""
        processes, weights = self._trainer.processes, self._trainer.injection.weights()
        measured = processes.first(self._measure)
        if measured is None:
            self._last = None
            self._early_stopping.observe_failure()
        else:
            adapter, base = ({kind: np.array(rows) for kind, rows in losses.items()} for losses in measured)
            self._take(step, adapter, base, weights)
        if self._early_stopping.should_stop and self._early_stopping.best is not None:
            best, wait = self._early_stopping.best, self._early_stopping.wait
            self._emit(EarlyStopped(step, best.step, wait, self._against_best()))
            self._trainer.finish()

    def conclude(self) -> None:
        """Emit which adapter was the best, if there was any score."""
        best = self._early_stopping.best
        if best is not None:
            last, path = self._trainer.steps_done, self._run.folder / BEST
            difference = None if best.step == last else self._against_best()
            self._emit(BestAdapterSaved(best.step, path, float(best.losses.mean()), last, difference))

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a checkpoint must remember of the scores, beside the trainer's state."""
        return self._early_stopping.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on where a checkpoint was taken, with the best adapter of then."""
        if not self._early_stopping.load_state_dict(state):
            text = "held-out losses are measured otherwise now, so the best one so far is forgotten"
            self._emit(Warned("validation.measure_changed", text))
        if self._early_stopping.best is not None:
            self._save_best()
        elif self._trainer.processes.is_first:
            (self._run.folder / BEST).unlink(missing_ok=True)
        if self._early_stopping.should_stop:
            self._trainer.finish()

    def _measure(self) -> list[dict[str, Any]] | None:
        """Return losses of adapter and base by kind of picture, as JSON has them."""
        try:
            measured = self._losses(), self._base_losses()
        except UserError as fault:
            self._emit(Warned("validation.failed", f"no score of step {self._trainer.steps_done}: {fault}"))
            return None
        return [{kind: rows.tolist() for kind, rows in losses.items()} for losses in measured]

    def _losses(self) -> _LossesByKind:
        if not self._evaluators:
            config, family = self._run.config, self._family
            changing = bool(config.adapter.text_encoders)
            self._evaluators = {
                kind: HeldOutEvaluator(config, family, pictures, adapts_texts=changing)
                for kind, pictures in self._pictures.items()
            }
        return {kind: evaluator.losses() for kind, evaluator in self._evaluators.items()}

    def _base_losses(self) -> _LossesByKind:
        if not self._base:
            with self._trainer.injection.disabled():
                self._base = self._losses()
        return self._base

    def _take(self, step: int, adapter: _LossesByKind, base: _LossesByKind, weights: AdapterWeights) -> None:
        self._last = adapter[HELD_OUT]
        is_best = self._early_stopping.observe(step, self._last, weights)
        scores = compare_losses(adapter, base, self._run.config.seed)
        best = self._early_stopping.best
        assert best and scores.held_out and scores.training and scores.gap
        self._emit(Evaluated(step, scores.held_out, scores.training, scores.gap, scores.bands, best.step))
        if is_best:
            self._save_best()

    def _save_best(self) -> None:
        best = self._early_stopping.best
        if best is None or not self._trainer.processes.is_first:
            return
        try:
            metadata = self._run.metadata | {"veneer.steps": str(best.step)}
            save(AdapterFile(best.weights, metadata), self._run.folder / BEST)
        except UserError as fault:  # the run is worth more than this file, which the next checkpoint remembers
            self._emit(Warned("validation.best_not_written", f"the best adapter is not in its file: {fault}"))

    def _against_best(self) -> Score | None:
        return (
            None if self._last is None else self._early_stopping.difference_to_best(self._last, self._run.config.seed)
        )


def _measure_of(config: RunConfig, family: Family, held_out: Manifest) -> str:
    """Return a name of all that held-out losses depend on beside the adapter and the base."""
    parts = (
        config.seed,
        config.data.resolution,
        config.data.background,
        config.train.precision,
        config.validation.draws,
        *unusual_sizes(config, family, held_out),
    )
    return f"{parts} {held_out.fingerprint()}"
