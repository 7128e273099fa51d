"""The scores of an evaluation in the order in which plots and tables show them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from veneer.evaluate.results import Evaluation, Score
from veneer.report.formatting import band_name
from veneer.report.sentences import tone_of

__all__ = ["NamedScore", "named_scores"]


@dataclass(frozen=True)
class NamedScore:
    """A score with the name of the pictures it is of.

    Attributes:
        name: name of the pictures, or of the part of time.
        score: the score.
        is_judged: whether its verdict is shown; a change of other things is drift in either direction.
    """

    name: str
    score: Score
    is_judged: bool = True

    @property
    def tone(self) -> str:
        """Class of its marks in the style sheet."""
        return tone_of(self.score) if self.is_judged else "neutral"


def named_scores(evaluation: Evaluation) -> Iterator[NamedScore]:
    """Yield the scores that were measured: held-out pictures, parts of time, training pictures, other things."""
    if evaluation.held_out is not None:
        yield NamedScore("held-out pictures", evaluation.held_out)
    if len(evaluation.bands) > 1:
        yield from (NamedScore(band_name(band), band.score) for band in evaluation.bands)
    if evaluation.training is not None:
        yield NamedScore("training pictures", evaluation.training)
    if evaluation.drift is not None:
        yield NamedScore("other things (drift)", evaluation.drift, is_judged=False)
