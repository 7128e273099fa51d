"""Sentences of the page that depend on results: the verdict, how the run ended, what the memorisation gap means."""

from __future__ import annotations

from veneer.evaluate.results import Evaluation, Gap, Score, Verdict
from veneer.report.content import Ending, Tone, TrainingSummary
from veneer.report.formatting import change, interval_text, is_closed, share, signed

__all__ = ["ending_sentence", "gap_sentence", "run_verdict", "tone_of"]

_TONES: dict[Verdict, Tone] = {
    "better": "good",
    "worse": "bad",
    "no effect": "unclear",
    "too few pictures to tell": "unclear",
}


def tone_of(score: Score) -> Tone:
    """Return the tone of a score's verdict."""
    return _TONES[score.verdict]


def run_verdict(evaluation: Evaluation | None, training: TrainingSummary | None) -> tuple[Tone, str]:
    """Return a tone and one sentence on what the adapter does, by the last measurement there is."""
    if evaluation is not None and evaluation.held_out is not None:
        return tone_of(evaluation.held_out), _judge(evaluation.held_out, "")
    if training is not None and training.scores:
        last = training.scores[-1]
        return tone_of(last.held_out), _judge(last.held_out, f"After step {last.step:,}: ")
    if evaluation is not None or (training is not None and training.ending.how in ("finished", "stopped early")):
        return "unmeasured", "Whether the adapter helps is not known: it was measured on no held-out picture."
    return "unmeasured", "Whether the adapter helps is not known yet: nothing was measured."


def _judge(score: Score, start: str) -> str:
    unseen = f"on {_count(score.pictures)} that training never saw"
    if not is_closed(score.low, score.high):
        difference = f"the denoising loss changes by {signed(score.mean)}"
        return f"{start}One picture tells nothing of others: {unseen}, {difference}."
    certainty = f"({signed(score.mean)}; 95\N{NO-BREAK SPACE}% interval {interval_text(score.low, score.high)})"
    by = share(abs(change(score)), ".1%")
    if score.verdict == "better":
        return f"{start}The adapter helps: {unseen}, it lowers the denoising loss by {by} {certainty}."
    if score.verdict == "worse":
        return f"{start}The adapter does harm: {unseen}, it raises the denoising loss by {by} {certainty}."
    if score.verdict == "no effect":
        return f"{start}The adapter has no effect to speak of {unseen} {certainty}."
    return f"{start}{_count(score.pictures).capitalize()} are too few to tell whether the adapter helps {certainty}."


def _count(pictures: int) -> str:
    return "one picture" if pictures == 1 else f"{pictures:,} pictures"


def gap_sentence(gap: Gap) -> str:
    """Return a sentence on what a memorisation gap means."""
    if not is_closed(gap.low, gap.high):
        return "Too few pictures to tell."
    if gap.low > 0:
        return "It gains more on pictures that it was trained on: it knows some of them by heart."
    if gap.high < 0:
        return "It gains less on pictures that it was trained on; the two kinds of pictures differ."
    return "No memorisation to be told: it gains as much on pictures that it never saw."


def ending_sentence(ending: Ending) -> str:
    """Return a sentence on how far the run came."""
    done = f"{ending.step:,} of {ending.max_steps:,} steps"
    return {
        "finished": f"It ran to its end, {ending.max_steps:,} steps.",
        "stopped early": f"It ended early, after {done}, because the held-out loss had not fallen for long.",
        "stopped": f"It was stopped after {done}; veneer train with --resume goes on.",
        "failed": f"It failed after {done}: {ending.text}",
        "cut off": f"It was cut off after {done}, without a word; veneer train with --resume goes on.",
        "running": f"It is running: {done}.",
    }[ending.how]
