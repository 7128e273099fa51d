"""Rules about the training pictures and the held-out pictures."""

from __future__ import annotations

from pathlib import PureWindowsPath

from veneer.data.buckets import SmallPictures
from veneer.doctor.evidence import Evidence
from veneer.doctor.finding import Change, Finding, interval, rank_changes
from veneer.doctor.limits import FEW_PICTURES, FEW_SCORED_PICTURES

__all__ = [
    "blurred",
    "duplicated",
    "few_held_out",
    "few_pictures",
    "held_out_leaked",
    "left_out",
    "no_held_out",
]

_MANY = 0.2
"""Share of the pictures from which on it matters that some are there twice, or left out."""
_MOST = 0.5


def few_pictures(evidence: Evidence) -> Finding | None:
    """Find so few pictures that there is no telling what they have in common."""
    count = evidence.pictures.train
    if count == 0 or count >= FEW_PICTURES:  # no run trains on none: they were not counted
        return None
    seen = f"{count} training picture{'s' if count > 1 else ''}"
    advice = ("ten pictures or more for a subject, twenty or more for a style",)
    adapter = evidence.config.adapter
    changes = rank_changes("adapter", adapter, 1, "less room to learn by heart in") if adapter.rank > 1 else []
    what = "The pictures are too few to tell what they have in common from what they are."
    return Finding("few_pictures", what, (seen,), tuple(changes), advice)


def no_held_out(evidence: Evidence) -> Finding | None:
    """Note that no picture is held out: nothing tells whether the adapter learned or memorised."""
    pictures, share = evidence.pictures, evidence.config.data.held_out
    if pictures.held_out > 0 or pictures.train == 0:
        return None
    seen = (f"0 pictures are held out of {pictures.train}, and data.held_out is {share}",)
    is_enough = pictures.train >= 2 * FEW_SCORED_PICTURES
    usual = round(max(0.1, 1.5 / pictures.train), 2)
    changes = (Change("data.held_out", usual, "keeps some from training"),) if is_enough else ()
    advice = () if is_enough else ("two pictures more, kept in a folder for data.held_out, are better than none",)
    what = "No picture is held out, so nobody can tell whether the adapter learned or memorised."
    return Finding("no_held_out", what, seen, changes, advice, level="note")


def few_held_out(evidence: Evidence) -> Finding | None:
    """Note that the held-out pictures are too few for their score to say much."""
    score = evidence.held_out
    if score is None or score.pictures >= FEW_SCORED_PICTURES:
        return None
    seen = (f"the held-out loss changes by {interval(score)}",)
    share = min(0.5, 1.5 * FEW_SCORED_PICTURES / (evidence.pictures.train + score.pictures))
    is_enough = evidence.pictures.train > 3 * FEW_SCORED_PICTURES
    changes = (Change("data.held_out", round(share, 2), "more to measure on"),) if is_enough else ()
    advice = () if is_enough else ("a folder of other pictures of the kind, as data.held_out, would tell",)
    what = "The held-out pictures are too few to tell much."
    return Finding("few_held_out", what, seen, changes, advice, level="note")


def duplicated(evidence: Evidence) -> Finding | None:
    """Find many training pictures that look like another one: they count twice, and are learned by heart first."""
    pictures = evidence.pictures
    count = (pictures.near_duplicates or 0) + pictures.duplicates
    if count < max(2, _MANY * pictures.train):
        return None
    seen = [f"{count} of {pictures.train} training pictures look like another one"]
    examples = ", ".join(pictures.near_duplicate_examples)
    seen += [f"such as {examples}"] if examples else []
    advice = ("keep one of each; a picture that should count more can have repeats in data.sources",)
    return Finding("duplicated", "Many pictures are there more than once.", tuple(seen), advice=advice)


def held_out_leaked(evidence: Evidence) -> Finding | None:
    """Find held-out pictures that look like training pictures, which flatters the score."""
    pictures = evidence.pictures
    if not pictures.leaked or pictures.leaked < _MANY * pictures.held_out:
        return None
    seen = (f"{pictures.leaked} of {pictures.held_out} held-out pictures look like a training picture",)
    advice = ("keep one of each, or hold out a folder of other pictures: data.held_out=FOLDER",)
    what = "What is measured on was trained on as well, so the held-out score flatters."
    return Finding("held_out_leaked", what, seen, advice=advice)


def blurred(evidence: Evidence) -> Finding | None:
    """Find pictures smaller than the training resolution: enlarged, they are blurred, and blur is learned.

    Those that are trained at their own size lack what the resolution would show.
    """
    pictures, data = evidence.pictures, evidence.config.data
    if data.resolution is None or not pictures.small or pictures.smallest is None:
        return None
    asked = SmallPictures.among((), data)
    count = f"{pictures.small} of {pictures.train}"
    seen = [f"{count} pictures are smaller than {asked.size} pixels, with sides down to {pictures.smallest}"]
    seen += [f"such as {', '.join(pictures.small_examples)}"] if pictures.small_examples else []
    are_most = pictures.small >= _MOST * pictures.train
    advice = ("bigger pictures, or take the small ones out",)
    what = "Pictures smaller than the resolution are "
    what += "enlarged, so blur is learned." if asked.enlarged else "trained at their own size, with less detail."
    return Finding("blurred", what, tuple(seen), advice=advice, level="problem" if are_most else "note")


def left_out(evidence: Evidence) -> Finding | None:
    """Find pictures that were left out: they cannot be read, or have no caption."""
    pictures = evidence.pictures
    total = pictures.train + pictures.held_out + pictures.left_out
    if pictures.left_out == 0:
        return None
    seen = [f"{pictures.left_out} of {total} pictures were left out"]
    seen += [f"{PureWindowsPath(name).name}: {reason}" for name, reason in list(pictures.rejected.items())[:3]]
    are_many = pictures.left_out >= _MANY * total
    advice = ("mend these files, or take them out of the folder",)
    what = "Pictures were left out of the training."
    return Finding("left_out", what, tuple(seen), advice=advice, level="problem" if are_many else "note")
