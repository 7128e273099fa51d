"""Reports made up for the tests of the page, and a page taken apart as a browser would."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from veneer.config.load import build_config, write_config
from veneer.doctor.finding import Change, Finding
from veneer.evaluate.results import (
    Band,
    Copying,
    Evaluated,
    Evaluation,
    Gap,
    Neighbour,
    PictureScore,
    PromptFidelity,
    Score,
    Share,
    things_verdict_of,
    verdict_of,
)
from veneer.report.content import (
    CurvePoint,
    Ending,
    Fact,
    LossCurve,
    Missing,
    NearestPair,
    Picture,
    PictureGrid,
    PlanComparison,
    Report,
    TrainingSummary,
)
from veneer.run.folder import CONFIG, LOG

VOID = {"base", "img", "meta"}
DOT = "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA="


def score(mean: float, half: float = 0.05, base: float = 1.1, pictures: int = 64) -> Score:
    low, high = mean - half, mean + half
    return Score(mean, low, high, base, base + mean, pictures, 8, verdict_of(low, high, base))


def evaluated(step: int, mean: float, best: int, pictures: int = 64) -> Evaluated:
    held_out, training = score(mean, pictures=pictures), score(1.1 * mean)
    bands = tuple(Band(place / 4, (place + 1) / 4, score(mean * (place + 1) / 2.5, base=2.0)) for place in range(4))
    return Evaluated(step, held_out, training, Gap(-0.1 * mean, -0.2 * mean, 0.0, 64, 64), bands, best)


def evaluation(caption: str = "a turtle") -> Evaluation:
    last = evaluated(300, -0.5, 300)
    nearest = Neighbour(caption, "evaluation/sample-000.png", "pictures/frog.png", 31.5, 0.2, True, True)
    copying = Copying((nearest,), (nearest,), 40.25, 1, 0.5, "held-out pictures")
    drift, scores = score(-0.02), (PictureScore("clip_text", 0.2, 0.3, 0.1, 0.05, 0.15, 64, True),)
    difference = Share(-0.25, -0.4, -0.1)
    shares = Share(0.9, 0.8, 0.95), Share(0.65, 0.5, 0.75), difference, Share(0.7, 0.55, 0.8)
    things = PromptFidelity(*shares, 0.2, 0.1, 1 / 9, 64, 1, things_verdict_of(difference))
    measured = last.held_out, last.training, last.gap, last.bands, drift
    notes = (f"note on {caption}",)
    return Evaluation("a.safetensors", "bundled", 300, *measured, "other things", copying, scores, things, notes)


def curve(steps: int = 300) -> LossCurve:
    points = [CurvePoint(step, 1 + (step % 7) / 10, 1.0, 1.7, 1 + 10 / (10 + step)) for step in range(1, steps + 1)]
    return LossCurve((*points[:20], CurvePoint(21, None, None, None, 1.2), *points[21:]), 1, 1)


def report(word: str = "a turtle") -> Report:
    """Return a report with every part; ``word`` stands wherever a user's text may."""
    picture = Picture(f"{word}, base", f"{word}.png", "ab" * 32, DOT)
    scores = tuple(evaluated(step, -0.5 * step / 300, step) for step in (100, 200, 300))
    change = Change("data.trigger", word, f"{word} names it")
    return Report(
        title=word,
        tone="good",
        verdict=f"The adapter helps: {word}.",
        training=TrainingSummary(Ending("failed", 280, 300, word), curve(), scores, (word,), 3, 0.5, 123_456_789),
        evaluation=evaluation(word),
        samples=PictureGrid(("base", "step 100"), (word,), ((picture, picture),)),
        before_after=PictureGrid(("base", "adapter", "real"), (word,), ((picture, picture, picture),)),
        nearest_pairs=(
            NearestPair(word, picture, picture, f"{word}.png", 31.5, True, True),
            NearestPair(word, picture, None, f"{word}.png", 35.25, False, False),
        ),
        plan=(
            PlanComparison("adapter file", 1000, 1001, "bytes"),
            PlanComparison("time of a step", None, 0.25, "seconds"),
        ),
        findings=(Finding("overfit", word, (word,), (change,), (word,), sure=False),),
        facts=(Fact(word, word),),
        config=f"output: {word}\n",
        missing=(Missing("doctor", f"Not judged: {word}", f"veneer doctor {word} --measure"),),
    )


class Page(HTMLParser):
    """A page taken apart; elements that are not closed in their order fail.

    Attributes:
        tags: tags of all elements, with their attributes.
        words: texts between them, without the style sheet.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.words.append(data)

    @property
    def structure(self) -> list[tuple[str, list[str]]]:
        """Tags of all elements with the names of their attributes."""
        return [(tag, sorted(attributes)) for tag, attributes in self.tags]

    def of(self, tag: str) -> list[dict[str, str]]:
        """Return the attributes of the elements of a tag."""
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def numbers_in(value: Any) -> Iterator[float]:
    """Yield all numbers of a JSON value."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value
    elif isinstance(value, (list, dict)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from numbers_in(each)


def write_run(folder: Path, steps: int, lines: list[dict[str, Any]], **sections: Any) -> Path:
    """Write a run's folder that holds a config and a log, and nothing else."""
    data = {"sources": [{"path": "no/such/pictures"}]}
    config = build_config({"base": "bundled", "data": data, "train": {"max_steps": steps}, **sections}, "test")
    folder.mkdir(parents=True)
    write_config(config, folder / CONFIG)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / LOG).write_text(text, "utf-8")
    return folder


def step_done(step: int, loss: float | None, seconds: float | None = None) -> dict[str, Any]:
    line = {"event": "StepDone", "seconds": 0.5 * step if seconds is None else seconds, "step": step, "loss": loss}
    return {**line, "prior_loss": None, "rates": {"unet": 1e-4}, "gradient_norm": 0.1}
