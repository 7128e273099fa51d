"""Figures and verdicts as a person reads them; the exact number goes along with each."""

from __future__ import annotations

import math

from veneer.evaluate.results import Evaluation, Gap, Score, Verdict
from veneer.report.content import Course, Ending, Tone
from veneer.report.markup import Markup, element, joined, text

__all__ = [
    "change",
    "ending_in_words",
    "figure",
    "gap_in_words",
    "interval",
    "number",
    "plain_interval",
    "share",
    "signed",
    "tone_of",
    "verdict_of_run",
]

_MINUS = "\N{MINUS SIGN}"
_TONES: dict[Verdict, Tone] = {
    "better": "good",
    "worse": "bad",
    "no effect": "unclear",
    "too few pictures to tell": "unclear",
}


def number(value: float, form: str = ".4f") -> str:
    """A number with a minus sign that is one."""
    return format(value, form).replace("-", _MINUS)


def signed(value: float) -> str:
    """A difference of losses."""
    return number(value, "+.4f")


def share(value: float, form: str = "+.1%") -> str:
    """A part of a whole, in percent with a space as in ``95 %``."""
    return number(value, form).replace("%", "\N{NO-BREAK SPACE}%") if value else "0\N{NO-BREAK SPACE}%"


def figure(value: float, said: str) -> Markup:
    """A number as it is said, with the exact one that ``report.json`` has beside it for machines."""
    return element("data", said, value=repr(value))


def plain_interval(low: float, high: float, said: str = "signed") -> str:
    """Both ends in words."""
    if not math.isfinite(high - low):
        return "too few pictures for an interval"
    ends = (share(low), share(high)) if said == "share" else (signed(low), signed(high))
    return f"{ends[0]} to {ends[1]}"


def interval(low: float, high: float) -> Markup:
    """The same with the exact numbers."""
    if not math.isfinite(high - low):
        return text(plain_interval(low, high))
    return joined([figure(low, signed(low)), figure(high, signed(high))], " to ")


def change(score: Score) -> float:
    """The difference as a share of the base's loss."""
    return score.mean / score.base if score.base else math.nan


def tone_of(score: Score) -> Tone:
    """How good a verdict is."""
    return _TONES[score.verdict]


def verdict_of_run(evaluation: Evaluation | None, course: Course | None) -> tuple[Tone, str]:
    """One sentence on what the adapter does, by the last measurement there is."""
    if evaluation is not None and evaluation.held_out is not None:
        return tone_of(evaluation.held_out), _judged(evaluation.held_out, "")
    if course is not None and course.scores:
        last = course.scores[-1]
        return tone_of(last.held_out), _judged(last.held_out, f"After step {last.step:,}: ")
    if evaluation is not None or (course is not None and course.ending.how in ("finished", "stopped early")):
        return "unmeasured", "Whether the adapter helps is not known: it was measured on no held-out picture."
    return "unmeasured", "Whether the adapter helps is not known yet: nothing was measured."


def _judged(score: Score, start: str) -> str:
    seen = f"on {_pictures(score.pictures)} that training never saw"
    if not math.isfinite(score.high - score.low):
        return (
            f"{start}One picture tells nothing of others: {seen}, the denoising loss changes by {signed(score.mean)}."
        )
    how_sure = f"({signed(score.mean)}; 95\N{NO-BREAK SPACE}% interval {plain_interval(score.low, score.high)})"
    by = share(abs(change(score)), ".1%")
    if score.verdict == "better":
        return f"{start}The adapter helps: {seen}, it lowers the denoising loss by {by} {how_sure}."
    if score.verdict == "worse":
        return f"{start}The adapter does harm: {seen}, it raises the denoising loss by {by} {how_sure}."
    if score.verdict == "no effect":
        return f"{start}The adapter has no effect to speak of {seen} {how_sure}."
    return f"{start}{_pictures(score.pictures).capitalize()} are too few to tell whether the adapter helps {how_sure}."


def gap_in_words(gap: Gap) -> str:
    """What a memorisation gap says."""
    if not math.isfinite(gap.high - gap.low):
        return "Too few pictures to tell."
    if gap.low > 0:
        return "It gains more on pictures that it was trained on: it knows some of them by heart."
    if gap.high < 0:
        return "It gains less on pictures that it was trained on; the two kinds of pictures differ."
    return "No memorisation to be told: it gains as much on pictures that it never saw."


def ending_in_words(ending: Ending) -> str:
    """How far the run came."""
    done = f"{ending.step:,} of {ending.steps:,} steps"
    return {
        "finished": f"It ran to its end, {ending.steps:,} steps.",
        "stopped early": f"It ended early, after {done}, because the held-out loss had not fallen for long.",
        "stopped": f"It was stopped after {done}; veneer train with --resume goes on.",
        "failed": f"It failed after {done}: {ending.text}",
        "cut off": f"It was cut off after {done}, without a word; veneer train with --resume goes on.",
        "running": f"It is running: {done}.",
    }[ending.how]


def _pictures(count: int) -> str:
    return "one picture" if count == 1 else f"{count:,} pictures"
