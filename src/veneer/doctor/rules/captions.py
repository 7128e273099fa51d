"""Rules about captions and the trigger."""

from __future__ import annotations

import math

from veneer.data.trigger import with_trigger
from veneer.doctor.evidence import Effect, Evidence, ShuffledCaptions
from veneer.doctor.finding import Change, Finding, interval, percent
from veneer.doctor.limits import CAPTION_EFFECT, FEW_SCORED_PICTURES, MANY_PICTURES

__all__ = [
    "STYLE_WORDS",
    "captions_alike",
    "captions_cut",
    "captions_leak_style",
    "captions_wrong",
    "trigger_missing",
    "trigger_unused",
]

_STYLE_WORDS = """
abstract acrylic anime aquarelle black-and-white cartoon charcoal colorful colourful comic contour contours
cyberpunk drawing drawn engraving etching flat flat-color flat-colour gouache graffiti grayscale greyscale
illustration impressionist ink isometric line-art lineart lines lowpoly manga minimalist minimalistic monochrome
oil outline outlined outlines painted painterly painting palette pastel pencil photorealistic pixel pixelated
poster realistic render rendered retro sketch sketched sketchy stroke strokes style styled stylised stylized
surreal vector vintage watercolor watercolour woodcut
"""
STYLE_WORDS = frozenset(_STYLE_WORDS.split())
"""Words that say how something is drawn, not what."""
_LEARNED_BY_HEART = 0.05
"""Share of the loss below which shuffled captions add so little that wrong ones may have been learned by heart."""


def captions_wrong(evidence: Evidence) -> Finding | None:
    """Find captions that fit their pictures no better than the captions of other pictures.

    The adapter is the judge, for its losses on the style scatter less than the base's: captions that it was trained on
    for long should make a difference to it. Where held-out captions do, it knows such words, and the others are wrong.
    """
    measurements = evidence.measurements
    train = measurements.train_captions if measurements else None
    if measurements is None or train is None or not _fit_no_better(train, measurements.held_out_captions):
        return None
    if evidence.training is None or not evidence.training.is_lower:
        return None  # an adapter that learned nothing is no judge
    held_out = measurements.held_out_captions
    seen = [f"training pictures: another picture's caption changes the loss by {interval(train.adapter)}"]
    seen += [f"held-out pictures: by {interval(held_out.adapter)}"] if held_out else []
    seen += [f"fitted better by another one's caption: {', '.join(train.misfits)}"] if train.misfits else []
    sure = _knows_words(held_out)
    what = f"The captions do not fit their pictures{'' if sure else ', or the base does not know their words'}."
    advice = ("look at the captions beside these pictures; a list that slipped by a line, or a sort, does this",)
    return Finding("captions_wrong", what, tuple(seen), advice=advice, sure=sure)


def _fit_no_better(train: ShuffledCaptions, held_out: ShuffledCaptions | None) -> bool:
    """Return whether shuffling changes nothing for adapter and base, by an interval that is narrow enough to say so.

    Trained on often enough, wrong captions are learned by heart, and shuffling then adds a little: less than on
    held-out pictures, though, where right captions make more of a difference than on those.
    """
    effect = train.adapter
    if effect.high is None or effect.pictures < FEW_SCORED_PICTURES or train.base.is_higher:
        return False
    if effect.high < CAPTION_EFFECT * effect.before:
        return True
    is_small = effect.high < _LEARNED_BY_HEART * effect.before
    return held_out is not None and is_small and _is_below(effect, held_out.adapter)


def _is_below(effect: Effect, other: Effect) -> bool:
    """Return whether an effect is below another one by more than their intervals explain."""
    return other.mean - effect.mean > math.hypot(other.half_width, effect.half_width)


def _knows_words(held_out: ShuffledCaptions | None) -> bool:
    """Return whether shuffling held-out captions makes a difference, so that such words are known."""
    return held_out is not None and (held_out.base.is_higher or held_out.adapter.is_higher)


def captions_leak_style(evidence: Evidence) -> Finding | None:
    """Find words of style in nearly every caption: the style is learned as what those words mean."""
    captions = evidence.captions
    shared = captions.shared_words if captions else {}
    style = [word for word in shared if word.lower() in STYLE_WORDS]
    if captions is None or not style:
        return None
    least = min(shared[word] for word in style)
    seen = [f"{', '.join(map(repr, style))} in {percent(least)} of the captions, as in {captions.example!r}"]
    seen += _effect_without_words(evidence)
    advice = ["take these words out of the captions: what is left unsaid goes into the adapter"]
    advice += [] if evidence.config.data.trigger else ["or name the style by one word of its own: data.trigger=WORD"]
    what = "The captions tell the style, so it hangs on those words: prompts without them get less of it."
    return Finding("captions_leak_style", what, tuple(seen), advice=tuple(advice))


def _effect_without_words(evidence: Evidence) -> list[str]:
    without = evidence.measurements.without_shared_words if evidence.measurements else None
    if without is None or evidence.held_out is None:
        return []
    full = interval(evidence.held_out)
    return [f"the held-out loss changes by {full}; without the words they share, by {interval(without)}"]


def captions_alike(evidence: Evidence) -> Finding | None:
    """Find one caption for many different pictures: what they show is learned as the meaning of its words."""
    captions = evidence.captions
    if captions is None or captions.pictures < MANY_PICTURES or captions.distinct > 1 + captions.pictures // 20:
        return None
    seen = f"{captions.distinct} different among the captions of {captions.pictures} pictures: {captions.example!r}"
    advice = ("write what each picture shows, as you would prompt for it: a .txt beside each, or metadata.jsonl",)
    what = "The captions are all alike, so what the pictures show is learned as if it were the style."
    return Finding("captions_alike", what, (seen,), advice=advice)


def captions_cut(evidence: Evidence) -> Finding | None:
    """Find captions and prompts that the base does not see whole: what it does not see is not learned or painted."""
    if not evidence.unread_texts:
        return None
    advice = (
        "put first what matters most, the trigger above all, or shorten these texts",
        "or train anew with more windows of the text encoder for each text: data.token_windows=3",
    )
    what = "Parts of captions or prompts are not seen by the base, so they have no effect."
    return Finding("captions_cut", what, evidence.unread_texts, advice=advice)


def trigger_missing(evidence: Evidence) -> Finding | None:
    """Find a subject without a name of its own: an ordinary phrase is taught to mean it, and loses its own meaning."""
    captions, data = evidence.captions, evidence.config.data
    if captions is None or data.trigger is not None or data.prior is not None:
        return None
    if captions.distinct > 1 or not 1 < captions.pictures < MANY_PICTURES:
        return None
    seen = f"all {captions.pictures} captions are {captions.example!r}, without data.trigger and without data.prior"
    changes = (Change("data.prior.prompt", captions.example, "keeps what these words meant"),)
    advice = ("name the subject by a word that means nothing yet, and set it as data.trigger",)
    what = "The subject has no name of its own, unless a word of that caption is it: what the words meant is lost."
    return Finding("trigger_missing", what, (seen,), changes, advice, sure=False)


def trigger_unused(evidence: Evidence) -> Finding | None:
    """Find sample prompts without the trigger: the pictures on the way show less than was learned."""
    trigger, prompts = evidence.config.data.trigger, evidence.config.sample.prompts
    lacking = [prompt for prompt in prompts if trigger and with_trigger([prompt], trigger) != (prompt,)]
    if not lacking or len(lacking) < len(prompts):
        return None
    seen = f"data.trigger is {trigger!r}, and none of {len(prompts)} sample.prompts has it, such as {lacking[0]!r}"
    changes = (Change("sample.prompts", with_trigger(prompts, trigger), "with the trigger"),)
    what = "The prompts that are painted do not call the adapter, so its samples show less than it can do."
    return Finding("trigger_unused", what, (seen,), changes)
