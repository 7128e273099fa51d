"""Rules about the pictures and what is said of them."""

from __future__ import annotations

import math
from pathlib import PureWindowsPath

from veneer.data.captions import with_trigger
from veneer.doctor.curve import half_width
from veneer.doctor.evidence import Effect, Evidence, Exchange
from veneer.doctor.finding import Change, Finding, interval, percent, with_rank
from veneer.doctor.limits import FEW_PICTURES, MANY_PICTURES, SCORED_PICTURES, TOLD_APART

__all__ = [
    "STYLE_WORDS",
    "blurred",
    "captions_alike",
    "captions_leak_style",
    "captions_wrong",
    "duplicated",
    "few_held_out",
    "few_pictures",
    "held_out_leaked",
    "left_out",
    "no_held_out",
    "trigger_missing",
    "trigger_unused",
]

_HOW = """
abstract acrylic anime aquarelle black-and-white cartoon charcoal colorful colourful comic contour contours
cyberpunk drawing drawn engraving etching flat flat-color flat-colour gouache graffiti grayscale greyscale
illustration impressionist ink isometric line-art lineart lines lowpoly manga minimalist minimalistic monochrome
oil outline outlined outlines painted painterly painting palette pastel pencil photorealistic pixel pixelated
poster realistic render rendered retro sketch sketched sketchy stroke strokes style styled stylised stylized
surreal vector vintage watercolor watercolour woodcut
"""
STYLE_WORDS = frozenset(_HOW.split())
"""Words that say how something is drawn, not what."""
_SMALL = 0.05
_MANY = 0.2
_HALF = 0.5


def captions_wrong(evidence: Evidence) -> Finding | None:
    """Captions fit their pictures no better than other pictures' captions do.

    The adapter is the judge, for its losses on the style scatter less than the base's: what it was told for long it
    should at least tell apart. Where it tells held-out captions apart, it knows such words, and the others are wrong.
    """
    measured = evidence.measured
    train = measured.train_captions if measured else None
    if measured is None or train is None or not _fits_no_better(train, measured.held_captions):
        return None
    if evidence.training is None or not evidence.training.is_less:
        return None  # an adapter that learned nothing is no judge
    held = measured.held_captions
    said = [f"training pictures: another picture's caption changes the loss by {interval(train.adapter)}"]
    said += [f"held-out pictures: by {interval(held.adapter)}"] if held else []
    said += [f"fitted better by another one's caption: {', '.join(train.worst)}"] if train.worst else []
    advice = ("look at the captions beside these pictures; a list that slipped by a line, or a sort, does this",)
    return Finding(
        "captions_wrong",
        f"The captions do not fit their pictures{'' if _knows(held) else ', or the base does not know their words'}.",
        tuple(said),
        advice=advice,
        sure=_knows(held),
    )


def _fits_no_better(train: Exchange, held: Exchange | None) -> bool:
    """Neither adapter nor base tells captions apart, and the adapter's interval is narrow enough to say so.

    Shown often enough, wrong captions are learned by heart and told apart a little; less than held-out ones, though,
    where right ones are told apart better than those.
    """
    told = train.adapter
    if told.high is None or told.pictures < SCORED_PICTURES or train.base.is_more:
        return False
    if told.high < TOLD_APART * told.before:
        return True
    return held is not None and told.high < _SMALL * told.before and _is_less(told, held.adapter)


def _is_less(train: Effect, held: Effect) -> bool:
    """Whether one effect is below another, beyond what their intervals explain."""
    return held.mean - train.mean > math.hypot(half_width(held), half_width(train))


def _knows(held: Exchange | None) -> bool:
    """Whether held-out captions are told apart, so that such words are known."""
    return held is not None and (held.base.is_more or held.adapter.is_more)


def captions_leak_style(evidence: Evidence) -> Finding | None:
    """Words that say how, not what, stand in nearly every caption: the style is learned as what those words mean."""
    captions = evidence.captions
    shared = captions.shared if captions else {}
    style = [word for word in shared if word.lower() in STYLE_WORDS]
    if captions is None or not style:
        return None
    least = min(shared[word] for word in style)
    words = ", ".join(map(repr, style))
    said = [f"{words} in {percent(least)} of the captions, as in {captions.example!r}"]
    bare = evidence.measured.bare if evidence.measured else None
    if bare is not None and evidence.held_out is not None:
        said.append(_bare_told(bare, evidence.held_out))
    advice = ["take these words out of the captions: what is left unsaid goes into the adapter"]
    advice += [] if evidence.config.data.trigger else ["or name the style by one word of its own: data.trigger=WORD"]
    what = "The captions tell the style, so it hangs on those words: prompts without them get less of it."
    return Finding("captions_leak_style", what, tuple(said), advice=tuple(advice))


def _bare_told(bare: Effect, full: Effect) -> str:
    return f"the held-out loss changes by {interval(full)}; without the words they share, by {interval(bare)}"


def captions_alike(evidence: Evidence) -> Finding | None:
    """One caption for many different pictures: what they show is learned as the meaning of the words, mixed up."""
    captions = evidence.captions
    if captions is None or captions.pictures < MANY_PICTURES or captions.distinct > 1 + captions.pictures // 20:
        return None
    said = f"{captions.distinct} different among the captions of {captions.pictures} pictures: {captions.example!r}"
    advice = ("write what each picture shows, as you would prompt for it: a .txt beside each, or metadata.jsonl",)
    what = "The captions are all alike, so what the pictures show is learned as if it were the style."
    return Finding("captions_alike", what, (said,), advice=advice)


def trigger_missing(evidence: Evidence) -> Finding | None:
    """A subject without a name of its own: an ordinary phrase is taught to mean it, and loses what it meant."""
    captions, data = evidence.captions, evidence.config.data
    if captions is None or data.trigger is not None or data.prior is not None:
        return None
    if captions.distinct > 1 or not 1 < captions.pictures < MANY_PICTURES:
        return None
    said = f"all {captions.pictures} captions are {captions.example!r}, without data.trigger and without data.prior"
    changes = (Change("data.prior.prompt", captions.example, "keeps what these words meant"),)
    advice = ("name the subject by a word that means nothing yet, and set it as data.trigger",)
    what = "The subject has no name of its own, unless a word of that caption is it: what the words meant is lost."
    return Finding("trigger_missing", what, (said,), changes, advice, sure=False)


def trigger_unused(evidence: Evidence) -> Finding | None:
    """Sample prompts lack the trigger, so the pictures on the way show less than was learned."""
    trigger, prompts = evidence.config.data.trigger, evidence.config.sample.prompts
    lacking = [prompt for prompt in prompts if trigger and with_trigger([prompt], trigger) != (prompt,)]
    if not lacking or len(lacking) < len(prompts):
        return None
    said = f"data.trigger is {trigger!r}, and none of {len(prompts)} sample.prompts has it, such as {lacking[0]!r}"
    changes = (Change("sample.prompts", with_trigger(prompts, trigger), "with the trigger"),)
    what = "The prompts that are painted do not call the adapter, so its samples show less than it can do."
    return Finding("trigger_unused", what, (said,), changes)


def few_pictures(evidence: Evidence) -> Finding | None:
    """So few pictures that there is no telling what they have in common."""
    count = evidence.pictures.train
    if count == 0 or count >= FEW_PICTURES:  # no run trains on none: nobody counted
        return None
    said = f"{count} training picture{'s' if count > 1 else ''}"
    advice = ("ten pictures or more for a subject, twenty or more for a style",)
    adapter = evidence.config.adapter
    changes = with_rank("adapter", adapter, 1, "less room to learn by heart in") if adapter.rank > 1 else []
    what = "The pictures are too few to tell what they have in common from what they are."
    return Finding("few_pictures", what, (said,), tuple(changes), advice)


def no_held_out(evidence: Evidence) -> Finding | None:
    """No picture is held out: nobody can tell whether the adapter learned or memorised."""
    pictures, asked = evidence.pictures, evidence.config.data.held_out
    if pictures.held_out > 0 or pictures.train == 0:
        return None
    said = (f"0 pictures are held out of {pictures.train}, and data.held_out is {asked}",)
    enough = pictures.train >= 2 * SCORED_PICTURES
    share = round(max(0.1, 1.5 / pictures.train), 2)
    changes = (Change("data.held_out", share, "keeps some from training"),) if enough else ()
    advice = () if enough else ("two pictures more, kept in a folder for data.held_out, are better than none",)
    what = "No picture is held out, so nobody can tell whether the adapter learned or memorised."
    return Finding("no_held_out", what, said, changes, advice, level="note")


def few_held_out(evidence: Evidence) -> Finding | None:
    """Too few held-out pictures for their score to say much."""
    score = evidence.held_out
    if score is None or score.pictures >= SCORED_PICTURES:
        return None
    said = f"the held-out loss changes by {interval(score)}"
    share = min(0.5, 1.5 * SCORED_PICTURES / (evidence.pictures.train + score.pictures))
    enough = evidence.pictures.train > 3 * SCORED_PICTURES
    changes = (Change("data.held_out", round(share, 2), "more to measure on"),) if enough else ()
    advice = () if enough else ("a folder of other pictures of the kind, as data.held_out, would tell",)
    return Finding("few_held_out", "The held-out pictures are too few to tell much.", (said,), changes, advice, "note")


def duplicated(evidence: Evidence) -> Finding | None:
    """Many training pictures look like another one: they count twice, and are learned by heart first."""
    pictures = evidence.pictures
    alike = (pictures.alike or 0) + pictures.twins
    if alike < max(2, _MANY * pictures.train):
        return None
    said = [f"{alike} of {pictures.train} training pictures look like another one"]
    said += [f"such as {', '.join(pictures.examples)}"] if pictures.examples else []
    advice = ("keep one of each; a picture that should count more can have repeats in data.sources",)
    return Finding("duplicated", "Many pictures are there more than once.", tuple(said), advice=advice)


def held_out_leaked(evidence: Evidence) -> Finding | None:
    """Held-out pictures look like training pictures, which flatters the score."""
    pictures = evidence.pictures
    if not pictures.leaked or pictures.leaked < _MANY * pictures.held_out:
        return None
    said = f"{pictures.leaked} of {pictures.held_out} held-out pictures look like a training picture"
    advice = ("keep one of each, or hold out a folder of other pictures: data.held_out=FOLDER",)
    what = "What is measured on was trained on as well, so the held-out score flatters."
    return Finding("held_out_leaked", what, (said,), advice=advice)


def blurred(evidence: Evidence) -> Finding | None:
    """Pictures are smaller than the square that is trained on: enlarged, so blurred, and blur is what is learned."""
    pictures, side = evidence.pictures, evidence.config.data.resolution
    if side is None or not pictures.small or pictures.smallest is None:
        return None
    count = f"{pictures.small} of {pictures.train}"
    said = [f"{count} pictures have a side below {side} pixels, down to {pictures.smallest}"]
    said += [f"such as {', '.join(pictures.small_examples)}"] if pictures.small_examples else []
    many = pictures.small >= _HALF * pictures.train
    advice = ("bigger pictures, or take the small ones out",)
    what = "Pictures smaller than the resolution are enlarged, so blur is learned."
    return Finding("blurred", what, tuple(said), advice=advice, level="ill" if many else "note")


def left_out(evidence: Evidence) -> Finding | None:
    """Many of the pictures were left out: they cannot be read, or nothing names them."""
    pictures = evidence.pictures
    total = pictures.train + pictures.held_out + pictures.left_out
    if pictures.left_out == 0:
        return None
    said = [f"{pictures.left_out} of {total} pictures were left out"]
    said += [f"{PureWindowsPath(name).name}: {reason}" for name, reason in list(pictures.rejected.items())[:3]]
    many = pictures.left_out >= _MANY * total
    advice = ("mend these files, or take them out of the folder",)
    what = "Pictures were left out of the training."
    return Finding("left_out", what, tuple(said), advice=advice, level="ill" if many else "note")
