"""Rules about what was learned: nothing, too little, too much, the wrong thing, or destruction."""

from __future__ import annotations

import math

from veneer.config.schema import AdapterConfig, TextEncoderAdapterConfig
from veneer.doctor.curve import Gain, best, half_width, standard_error, tail, training_gain
from veneer.doctor.evidence import Effect, Evidence, Scored
from veneer.doctor.finding import Change, Finding, interval, percent, with_rank
from veneer.doctor.limits import (
    DEAD,
    DESTROYED,
    DIVERGED,
    ERRORS,
    FEW_SHOWINGS,
    FEW_STEPS,
    HARMED,
    KEPT,
    LITTLE,
    OVERCOOKED,
    SLOW,
)

__all__ = [
    "dead_adapter",
    "diverged",
    "drifted",
    "overfit",
    "rate_too_high",
    "rate_too_low",
    "text_encoder_overcooked",
    "underfit",
]

_TEXT_ENCODER = "text_encoder"
_FULL_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


def dead_adapter(evidence: Evidence) -> Finding | None:
    """The adapter is there and does nothing: B is zero, or delta W is nothing beside W0."""
    said = []
    if "every B is still zero" in evidence.ending.text:
        said.append("the run ended with every B at zero, as it begins")
    ratios = {network: moved.ratio for network, moved in evidence.moved.items()}
    if ratios and all(ratio is not None and ratio < DEAD for ratio in ratios.values()):
        said += [f"{network}: |delta W| / |W0| = {ratio:.1e}" for network, ratio in ratios.items()]
    if not said:
        return None
    if evidence.held_out is not None:
        said.append(f"the held-out loss changes by {interval(evidence.held_out)}")
    said += [f"the rate is {evidence.config.train.learning_rate:g}", f"alpha / rank is {_strength(evidence):.2g}"]
    return Finding("dead_adapter", "The adapter does nothing.", tuple(said), _revive(evidence))


def _strength(evidence: Evidence) -> float:
    adapter = evidence.config.adapter
    return (adapter.alpha or adapter.rank) / adapter.rank


def _revive(evidence: Evidence) -> tuple[Change, ...]:
    adapter, train = evidence.config.adapter, evidence.config.train
    if _strength(evidence) < 0.1:
        return (Change("adapter.alpha", float(adapter.rank), "makes the strength alpha / rank 1"),)
    rate = Change("train.learning_rate", _usual(train.learning_rate * 100), "so that B moves")
    return (rate, *_longer(evidence)) if evidence.ending.step < FEW_STEPS else (rate,)


def _usual(rate: float) -> float:
    """At least the rate that is usual for adapters."""
    return max(rate, 1e-4)


def diverged(evidence: Evidence) -> Finding | None:
    """The training loss ends well above its best, further than its noise explains."""
    last, lowest = tail(evidence), best(evidence)
    if last is None or lowest is None or last.first == 1 or evidence.ending.step < FEW_STEPS:
        return None
    error = math.hypot(last.error, lowest.error)
    start = evidence.held_out.before if evidence.held_out else math.inf
    runs_away = last.loss > DIVERGED * lowest.loss and last.loss - lowest.loss > ERRORS * error
    above_base = last.loss > 2 * start
    if not runs_away and not above_base:
        return None
    said = [f"the training loss is {last}, and was {lowest} at its best"]
    if above_base:
        said.append(f"the base alone has {start:.4f}")
    said.append(f"the rate is {evidence.config.train.learning_rate:g}")
    return Finding("diverged", "The training ran away: its loss rises.", tuple(said), _calmer(evidence))


def rate_too_high(evidence: Evidence) -> Finding | None:
    """Training pictures get no better, and pictures get worse or the weights are another's: it destroys, learns not."""
    gain, measured = training_gain(evidence), (evidence.held_out, evidence.training)
    if gain is None or _is_learned(gain):
        return None
    if not _is_destroyed(evidence) and not any(one is not None and one.is_more for one in measured):
        return None
    score = f"the held-out loss changes by {interval(evidence.held_out)}" if evidence.held_out else "no held-out score"
    said = (score, gain.told, *_sizes(evidence))
    return Finding(
        "rate_too_high",
        "The adapter destroys what the base can do, and learns nothing in return.",
        (*said, f"the rate is {evidence.config.train.learning_rate:g}, alpha / rank is {_strength(evidence):.2g}"),
        _calmer(evidence),
    )


def _is_destroyed(evidence: Evidence) -> bool:
    return any(moved.ratio is not None and moved.ratio > DESTROYED for moved in evidence.moved.values())


def _is_learned(gain: Gain) -> bool:
    return gain.share < -LITTLE and gain.share < -gain.reach


def _calmer(evidence: Evidence) -> tuple[Change, ...]:
    adapter, train = evidence.config.adapter, evidence.config.train
    changes = []
    if _strength(evidence) > 2:
        changes.append(Change("adapter.alpha", float(adapter.rank), "makes the strength alpha / rank 1"))
    changes.append(Change("train.learning_rate", train.learning_rate / 10, "smaller steps"))
    for name, part in adapter.text_encoders.items():
        if part.learning_rate > train.learning_rate / 10:
            why = "the text encoder wants less than the denoiser"
            changes.append(Change(f"adapter.text_encoders.{name}.learning_rate", train.learning_rate / 20, why))
    if train.max_grad_norm is None:
        changes.append(Change("train.max_grad_norm", 1.0, "one wild gradient then does no harm"))
    return tuple(changes)


def _sizes(evidence: Evidence) -> tuple[str, ...]:
    known = {network: moved.ratio for network, moved in evidence.moved.items()}
    return tuple(f"{network}: |delta W| / |W0| = {ratio:.2g}" for network, ratio in known.items() if ratio is not None)


def rate_too_low(evidence: Evidence) -> Finding | None:
    """Long enough, and hardly anything moved: the loss stayed and so did the weights."""
    train, gain = evidence.config.train, training_gain(evidence)
    sizes = [moved.ratio for moved in evidence.moved.values() if moved.ratio is not None]
    if _is_short(evidence) or not evidence.has_finished or not sizes or max(sizes) >= SLOW:
        return None
    if _is_gained(evidence.held_out) or (gain is not None and _is_learned(gain)):
        return None
    said = [f"{evidence.ending.step} steps at a rate of {train.learning_rate:g}", *_sizes(evidence)]
    said += [gain.told] if gain else []
    said += [f"the held-out loss changes by {interval(evidence.held_out)}"] if evidence.held_out else []
    rate = Change("train.learning_rate", _usual(train.learning_rate * 10), "and tenfold again until it learns")
    return Finding("rate_too_low", "The rate is so low that the weights hardly move.", tuple(said), (rate,))


def _is_gained(score: Effect | None) -> bool:
    return score is not None and score.is_less and score.share < -LITTLE


def _is_short(evidence: Evidence) -> bool:
    """Hardly begun: few steps, few showings; either alone may be meant so."""
    return evidence.ending.step < FEW_STEPS and evidence.showings < FEW_SHOWINGS


def underfit(evidence: Evidence) -> Finding | None:
    """Little was learned, of the training pictures as of the others, and nothing was destroyed."""
    if not evidence.has_finished:
        return None
    score, gain = evidence.held_out, training_gain(evidence)
    known = [_is_gained(score)] if score is not None else []
    known += [_is_learned(gain)] if gain is not None else []
    harmed = _is_destroyed(evidence) or any(one is not None and one.is_more for one in (score, evidence.training))
    if harmed or (not _is_short(evidence) and (any(known) or not known)):
        return None
    said = [f"the held-out loss changes by {interval(score)} ({percent(score.share)} of the base's)"] if score else []
    said += [gain.told] if gain else []
    said.append(f"{evidence.ending.step} steps showed each picture {evidence.showings:.2g} times")
    what = "The training had hardly begun." if _is_short(evidence) else "Little was learned, of any picture."
    advice = ("more pictures that have in common what should be learned",)
    return Finding("underfit", what, tuple(said), _more(evidence), advice, sure=bool(known) and not any(known))


def _more(evidence: Evidence) -> tuple[Change, ...]:
    """In the order of what is most likely to be wanting: time, rate, room."""
    adapter, train = evidence.config.adapter, evidence.config.train
    changes = [*_longer(evidence), Change("train.learning_rate", train.learning_rate * 3, "bigger steps")]
    changes += with_rank("adapter", adapter, adapter.rank * 2, "more room")
    if missing := _missing_targets(adapter):
        changes.append(Change("adapter.target_modules", (*(adapter.target_modules or ()), *missing), "more layers"))
    if not adapter.text_encoders:
        changes.append(
            Change(f"adapter.text_encoders.{_TEXT_ENCODER}", (), "adapts the text encoder too, for new words")
        )
    return tuple(changes)


def _missing_targets(adapter: AdapterConfig) -> tuple[str, ...]:
    targets = adapter.target_modules
    if targets is None or not set(targets) < set(_FULL_TARGETS):
        return ()  # other names: another family's layers, or all of these
    return tuple(name for name in _FULL_TARGETS if name not in targets)


def _longer(evidence: Evidence) -> tuple[Change, ...]:
    steps = evidence.config.train.max_steps
    return (Change("train.max_steps", max(100, 3 * steps), "more steps"),)


def overfit(evidence: Evidence) -> Finding | None:
    """Training pictures gain, others much less: what was learned is those pictures, by heart."""
    worse, apart = _got_worse(evidence), _came_apart(evidence)
    copied = _copied(evidence)
    if worse is None and apart is None and copied is None:
        return None
    said = [*(worse or ()), *(apart or ()), *(copied or ())]
    if evidence.ending.step and evidence.pictures.train:
        said.append(f"each of {evidence.pictures.train} pictures was shown {evidence.showings:.0f} times")
    advice = ("more pictures, of more different things",)
    return Finding("overfit", "The training pictures are learned by heart.", tuple(said), _less(evidence), advice)


def _got_worse(evidence: Evidence) -> tuple[str, ...] | None:
    """The held-out score was better on the way than at the end, by more than its standard error, and by a tenth."""
    if len(evidence.scored) < 3:
        return None
    lowest, last = _best_score(evidence.scored), evidence.scored[-1]
    margin = standard_error(lowest.effect)
    if last.effect.mean - lowest.effect.mean <= max(margin, 0.1 * abs(lowest.effect.mean)):
        return None
    return (
        f"the held-out loss was best after step {lowest.step}: {interval(lowest.effect)}",
        f"after step {last.step} it is {interval(last.effect)}",
    )


def _best_score(scored: tuple[Scored, ...]) -> Scored:
    return min(scored, key=lambda one: one.effect.mean)


def _came_apart(evidence: Evidence) -> tuple[str, ...] | None:
    score, gain = evidence.held_out, training_gain(evidence)
    if score is None or gain is None or not _is_learned(gain):
        return None
    gap = score.share - gain.share
    by_luck = math.hypot(half_width(score) / score.before, gain.reach)
    if score.share <= KEPT * gain.share or gap <= by_luck:
        return None
    kept = max(0.0, score.share / gain.share)
    return (
        f"{gain.told}: {percent(gain.share)}",
        f"on held-out pictures it changes by {interval(score)}: {percent(score.share)}, {percent(kept)} of that gain",
    )


def _copied(evidence: Evidence) -> tuple[str, ...] | None:
    """It paints its training pictures again, more often than luck would."""
    copies = evidence.copies
    if copies is None or copies.flagged <= max(1.0, 3 * copies.expected):
        return None
    pair = " and ".join(copies.nearest)
    counts = f"{copies.flagged} of {copies.painted} painted pictures"
    return (f"{counts} are nearer to a training picture than real ones ever are, such as {pair}",)


def _less(evidence: Evidence) -> tuple[Change, ...]:
    adapter, train = evidence.config.adapter, evidence.config.train
    changes = [_earlier(evidence)]
    if adapter.rank > 1:
        changes += with_rank("adapter", adapter, adapter.rank // 2, "less room to learn by heart in")
    if adapter.dropout < 0.1:
        changes.append(Change("adapter.dropout", 0.1, "hinders learning by heart"))
    if train.optimizer.weight_decay < 0.1:
        changes.append(Change("train.optimizer.weight_decay", 0.1, "keeps the adapter small"))
    return tuple(changes)


def _earlier(evidence: Evidence) -> Change:
    if len(evidence.scored) < 3:
        return _fewer_steps(evidence, evidence.config.train.max_steps // 3, "stops before it has them by heart")
    step = _best_score(evidence.scored).step
    kept = ", whose checkpoint is kept" if step in evidence.checkpoints else ""
    return _fewer_steps(evidence, step, f"ends where held-out pictures were best{kept}")


def _fewer_steps(evidence: Evidence, steps: int, why: str) -> Change:
    """Fewer steps; where the warm-up would not end in them, as few as leave half for the rest, or a shorter warm-up."""
    train = evidence.config.train
    if steps > train.warmup_steps:
        return Change("train.max_steps", steps, why)
    if 2 * train.warmup_steps < train.max_steps:
        return Change("train.max_steps", 2 * train.warmup_steps, f"{why}, or nearly: the warm-up takes half")
    return Change("train.warmup_steps", max(steps, 1) // 20, "leaves room for fewer steps")


def text_encoder_overcooked(evidence: Evidence) -> Finding | None:
    """What words mean was overwritten: the adapter is better without this part, or the part outweighs the encoder."""
    parts = evidence.config.adapter.text_encoders
    if not parts:
        return None
    said = [*_part_harms(evidence), *_outweighs(evidence)]
    if not said:
        return None
    rate = evidence.config.train.learning_rate
    said += [*_sizes(evidence), *_words_kept(evidence)]
    said += [f"its rate is {part.learning_rate:g}, the denoiser's {rate:g}" for part in parts.values()]
    changes = [change for name, part in parts.items() for change in _gentler(name, part, rate)]
    changes.append(Change("adapter.text_encoders", (), "leaves the text encoder as it is"))
    what = "The text encoder is overcooked: what words meant to the base is overwritten."
    return Finding("text_encoder_overcooked", what, tuple(said), tuple(changes))


def _gentler(name: str, part: TextEncoderAdapterConfig, rate: float) -> list[Change]:
    section = f"adapter.text_encoders.{name}"
    slower = Change(f"{section}.learning_rate", min(part.learning_rate, rate) / 10, "smaller steps")
    return [slower, *(with_rank(section, part, part.rank // 2, "less room") if part.rank > 1 else ())]


def _part_harms(evidence: Evidence) -> tuple[str, ...]:
    whole = evidence.measured.text_encoder if evidence.measured else None
    if whole is None or not whole.is_more or whole.share < HARMED:
        return ()
    return (f"with its part the loss is {whole.after:.4f}, without it {whole.before:.4f}: {interval(whole)}",)


def _outweighs(evidence: Evidence) -> tuple[str, ...]:
    """Where the denoiser moved as far, the rate of both is at fault."""
    ratios = {network: moved.ratio or 0.0 for network, moved in evidence.moved.items()}
    encoder = max((ratios.pop(name, 0.0) for name in evidence.config.adapter.text_encoders), default=0.0)
    if encoder < OVERCOOKED or encoder <= max(ratios.values(), default=0.0):
        return ()
    return (f"its part is {percent(encoder)} of the size of the weights it is added to",)


def _words_kept(evidence: Evidence) -> tuple[str, ...]:
    held = evidence.measured.held_captions if evidence.measured else None
    if held is None:
        return ()
    shares = f"{percent(held.adapter.share)} of its loss, with the base {percent(held.base.share)}"
    return (f"on held-out pictures another picture's caption adds {shares}",)


def drifted(evidence: Evidence) -> Finding | None:
    """Pictures of other things, which the adapter should leave alone, are drawn worse than by the base."""
    drift = evidence.drift
    if drift is None or not drift.is_more or drift.share < LITTLE:
        return None
    config = evidence.config.data.prior
    told = f"the loss changes by {interval(drift)} ({percent(drift.share)} of the base's)"
    said = (f"on {evidence.drift_source or 'pictures of other things'} {told}",)
    changes = [_fewer_steps(evidence, evidence.config.train.max_steps // 2, "less time to drift")]
    if config is not None:
        changes.insert(0, Change("data.prior.weight", max(1.0, 2 * config.weight), "holds the class more firmly"))
    return Finding("drift", "What the adapter should leave alone changes along.", said, tuple(changes))
