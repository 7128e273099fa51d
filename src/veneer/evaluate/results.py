"""The results of an evaluation, as they are in ``evaluation.json`` and ``run.jsonl``."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from veneer.errors import UserError
from veneer.files import atomic_write, opens_paths
from veneer.serialise import LowerEnd, UpperEnd, from_data, to_json

__all__ = [
    "EVALUATION",
    "Band",
    "Copying",
    "Evaluated",
    "Evaluation",
    "Gap",
    "Neighbour",
    "PictureScore",
    "PromptFidelity",
    "Score",
    "Share",
    "ThingsVerdict",
    "Verdict",
    "read_evaluation",
    "things_verdict_of",
    "verdict_of",
    "write_evaluation",
]

EVALUATION = "evaluation.json"
"""Name of the file in a run's folder."""
Verdict = Literal["better", "worse", "no effect", "too few pictures to tell"]
ThingsVerdict = Literal["kept", "lost", "perhaps lost", "too few pictures to tell"]

_NEGLIGIBLE = 0.01
"""Share of the base's loss below which a difference counts as no effect."""
_TOLERATED_LOSS = 0.1
"""Share of the pictures that may no longer show their things before it is called a loss."""
_FEW_PICTURES = 8
"""Below this many pictures an interval is at times too narrow, for it cannot know the skew of what is not in them."""


def verdict_of(low: float, high: float, base: float) -> Verdict:
    """Return what the interval of a difference in loss says.

    An interval that excludes zero is an effect, however small. One that includes zero is no effect if all of it is
    within a hundredth of the base's loss; else there are too few pictures to tell.
    """
    if high < 0:
        return "better"
    if low > 0:
        return "worse"
    return "no effect" if max(-low, high) <= _NEGLIGIBLE * base else "too few pictures to tell"


def things_verdict_of(difference: Share) -> ThingsVerdict:
    """Return what the difference in painted things says: they are lost if they are fewer beyond chance.

    They are perhaps lost if they are fewer by more than a tenth, which may be chance; they are kept if by the interval
    no more than a tenth can be lost; else there are too few pictures to tell.
    """
    if difference.high < 0:
        return "lost"
    if difference.value < -_TOLERATED_LOSS:
        return "perhaps lost"
    return "kept" if difference.low >= -_TOLERATED_LOSS else "too few pictures to tell"


@dataclass(frozen=True)
class Score:
    """The adapter's denoising loss less the base's, on the same pictures, noise and timesteps; below 0 is better.

    Attributes:
        mean: of the difference, over pictures.
        low: lower end of its 95 % interval; minus infinity for a single picture, which tells nothing of others.
        high: upper end; infinity likewise.
        base: mean loss without the adapter.
        adapter: mean loss with it.
        pictures: number of pictures measured on; they, not the draws, count as independent in the interval.
        draws: number of noise draws for each picture.
        verdict: what the interval says.
    """

    mean: float
    low: LowerEnd
    high: UpperEnd
    base: float
    adapter: float
    pictures: int
    draws: int
    verdict: Verdict

    def __str__(self) -> str:
        """Return one line for the user."""
        return f"held-out loss {self.in_words}"

    @property
    def in_words(self) -> str:
        """Both losses and their difference, without what they were measured on, for the user."""
        text = f"{self.base:.4f} -> {self.adapter:.4f}, difference {self.mean:+.4f}"
        if not math.isfinite(self.high - self.low):
            return f"{text} on {_pictures(self.pictures)}, too few for an interval"
        text += f", 95 % interval [{self.low:+.4f}, {self.high:+.4f}] over {_pictures(self.pictures)}"
        rough = " (so few make it rough)" if self.pictures < _FEW_PICTURES else ""
        return f"{text}{rough}: {self.verdict}"


@dataclass(frozen=True)
class Band:
    """The score on a part of time.

    Attributes:
        start: where it begins; time is 0 for a clean picture, 1 for noise.
        end: where it ends.
        score: on held-out pictures, from the draws whose times lie in it.
    """

    start: float
    end: float
    score: Score


@dataclass(frozen=True)
class Gap:
    """The memorisation gap: how much more the adapter gains on pictures it was trained on than on others.

    Attributes:
        mean: difference on held-out pictures less difference on training pictures; above 0 it gains more where it was
            trained.
        low: lower end of its 95 % interval.
        high: upper end.
        held_out: pictures of the one kind.
        training: and of the other.
    """

    mean: float
    low: LowerEnd
    high: UpperEnd
    held_out: int
    training: int

    def __str__(self) -> str:
        """Return one line for the user."""
        counts = f"{self.held_out} held-out and {self.training} training pictures"
        if not math.isfinite(self.high - self.low):
            return f"memorisation gap {self.mean:+.4f}, from {counts}, too few for an interval"
        if self.low > 0:
            conclusion = "it gains more on pictures it was trained on"
        elif self.high < 0:
            conclusion = "it gains less on pictures it was trained on"
        else:
            conclusion = "no difference can be seen"
        interval = f"95 % interval [{self.low:+.4f}, {self.high:+.4f}]"
        return f"memorisation gap {self.mean:+.4f}, {interval}, {counts}: {conclusion}"


@dataclass(frozen=True)
class Share:
    """A share of pictures, or the difference of two, with its 95 % interval.

    Attributes:
        value: the share among the pictures measured.
        low: lower end of the interval of the share among all pictures.
        high: upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return it in percent, for the user."""
        return f"{self.value:.0%} [{100 * self.low:.0f}, {100 * self.high:.0f}]"


@dataclass(frozen=True)
class PromptFidelity:
    """How many painted pictures the base takes for what their prompts say, of its own and of the adapter's.

    Attributes:
        base: share of the base's own pictures.
        adapter: share of the adapter's, from the same prompts and seeds.
        difference: adapter less base; below 0 things are lost.
        kept: share of the adapter's pictures among those that the base paints right; None if it paints none right.
        base_margin: by how much the error under the own prompt is lower than under the best other one, in natural
            logarithms; the mean over the base's pictures.
        adapter_margin: the same of the adapter's.
        chance: share that guessing would get right.
        prompts: number of prompts; they, not the pictures, count as independent in the intervals.
        pictures: number of pictures of each prompt.
        verdict: whether the things are kept.
    """

    base: Share
    adapter: Share
    difference: Share
    kept: Share | None
    base_margin: float
    adapter_margin: float
    chance: float
    prompts: int
    pictures: int
    verdict: ThingsVerdict

    def __str__(self) -> str:
        """Return one line for the user."""
        text = (
            f"things: {self.base} of the base's pictures show what {self.prompts} prompts say, {self.adapter} with the "
        )
        text += f"adapter (by chance {self.chance:.0%})"
        if self.kept is None:
            return f"{text}: the base paints none right"
        return f"{text}; of what the base paints right, {self.kept}: {self.verdict}"


@dataclass(frozen=True)
class Neighbour:
    """A picture and the training picture nearest to it.

    Attributes:
        caption: of the picture.
        picture: its file; that of a sample is relative to the evaluation's folder.
        nearest: file of the training picture.
        angle: between their latents, in degrees, the smaller one of the picture's and its mirror image's.
        pixels: root mean square of the difference of their pixels; 1 is black to white.
        mirrored: the mirror image is the nearer one.
        flagged: nearer than any real picture is to another.
    """

    caption: str
    picture: str
    nearest: str
    angle: float
    pixels: float
    mirrored: bool
    flagged: bool


@dataclass(frozen=True)
class Copying:
    """Whether the adapter reproduces its training pictures.

    Attributes:
        samples: pictures sampled with the adapter, nearest to a training picture first.
        real: real pictures, to compare with, and the nearest other training picture of each, nearest first.
        threshold: smallest angle among the real ones, in degrees.
        flagged: number of samples below it.
        expected: number of samples that would be below it by chance, if they were as far off as real pictures are.
        reference: which pictures the real ones are.
    """

    samples: tuple[Neighbour, ...]
    real: tuple[Neighbour, ...]
    threshold: float
    flagged: int
    expected: float
    reference: Literal["held-out pictures", "held-out and training pictures"]

    def __str__(self) -> str:
        """Return one line for the user."""
        text = f"copying: {self.flagged} of {len(self.samples)} samples are nearer to a training picture than any of "
        nearest = f"the nearest is {self.samples[0].angle:.1f} degrees off, of real ones {self.threshold:.1f}"
        return f"{text}{len(self.real)} real pictures ({nearest}; {self.expected:.1f} would be by chance)"


@dataclass(frozen=True)
class PictureScore:
    """A score of sampled pictures by a model of the user's: base and adapter from the same prompts and seeds.

    Attributes:
        name: ``clip_text``, ``clip_image``, ``dino_image``, ``aesthetic``, ``fid_dino``, ``kid_clip`` ...
        base: of the base's pictures.
        adapter: of the adapter's.
        mean: adapter less base.
        low: lower end of the 95 % interval of that.
        high: upper end.
        pictures: number of pictures of each.
        higher_is_better: else lower is.
    """

    name: str
    base: float
    adapter: float
    mean: float
    low: LowerEnd
    high: UpperEnd
    pictures: int
    higher_is_better: bool

    def __str__(self) -> str:
        """Return one line for the user."""
        text = f"{self.name} {self.base:.4f} -> {self.adapter:.4f}, difference {self.mean:+.4f}"
        if math.isfinite(self.high - self.low):
            text += f", 95 % interval [{self.low:+.4f}, {self.high:+.4f}]"
        return f"{text} over {_pictures(self.pictures)} ({'higher' if self.higher_is_better else 'lower'} is better)"


@dataclass(frozen=True)
class Evaluation:
    """All results of an adapter; what could not be measured is None or empty, and the notes say why.

    Attributes:
        adapter: name of its file.
        base: as the user names it.
        step: steps it was trained; None if the file does not say.
        held_out: score on pictures that training never saw.
        training: score on pictures that it saw, as many at most.
        gap: between the two.
        bands: the held-out score by parts of time, from clean to noise.
        drift: score on pictures of other things, which the adapter should not change.
        drift_source: where those come from.
        copying: whether it reproduces its training pictures.
        scores: of sampled pictures, by models of the user's.
        prompt_fidelity: whether sampled pictures still show what their prompts say.
        notes: a sentence each.
    """

    adapter: str
    base: str
    step: int | None = None
    held_out: Score | None = None
    training: Score | None = None
    gap: Gap | None = None
    bands: tuple[Band, ...] = ()
    drift: Score | None = None
    drift_source: str | None = None
    copying: Copying | None = None
    scores: tuple[PictureScore, ...] = ()
    prompt_fidelity: PromptFidelity | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return lines for the user."""
        parts = [f"held-out loss {self.held_out.in_words}"] if self.held_out else []
        parts += [f"  time {band.start:.2f} to {band.end:.2f}: {band.score.in_words}" for band in self.bands]
        parts += [f"training loss {self.training.in_words}"] if self.training else []
        parts += [str(self.gap)] if self.gap else []
        parts += [f"drift, on {self.drift_source}: {self.drift.in_words}"] if self.drift else []
        parts += [str(self.prompt_fidelity)] if self.prompt_fidelity else []
        parts += [str(self.copying)] if self.copying else []
        return "\n".join([*parts, *map(str, self.scores), *(f"note: {note}" for note in self.notes)])


@dataclass(frozen=True)
class Evaluated:
    """While training, the adapter after ``step``, or its average, was measured on pictures of both kinds.

    Attributes:
        step: steps done.
        held_out: score on held-out pictures.
        training: score on training pictures.
        gap: between the two.
        bands: the held-out score by parts of time.
        best_step: the step with the lowest held-out loss so far; the earliest of equal ones.
    """

    step: int
    held_out: Score
    training: Score
    gap: Gap
    bands: tuple[Band, ...]
    best_step: int


def write_evaluation(evaluation: Evaluation, folder: Path) -> Path:
    """Write ``evaluation.json``; equal evaluations give equal bytes."""
    path = folder / EVALUATION
    atomic_write(path, to_json(evaluation).encode())
    return path


@opens_paths
def read_evaluation(folder: Path) -> Evaluation | None:
    """Read what ``write_evaluation`` wrote into a folder; None if there is nothing.

    Raises:
        UserError: the file does not hold an evaluation.
    """
    path = folder / EVALUATION
    if not path.is_file():
        return None
    try:
        return from_data(Evaluation, json.loads(path.read_text("utf-8")))
    except ValueError as error:
        what, remedy = f"is not an evaluation ({error})", "run veneer evaluate again"
        raise UserError(what, code="evaluate.unreadable", where=path, remedy=remedy) from error


def _pictures(count: int) -> str:
    return "one picture" if count == 1 else f"{count} pictures"
