"""Rule about the text encoder's adapter: what words meant is overwritten."""

from __future__ import annotations

from veneer.config.adapter_config import TextEncoderAdapterConfig
from veneer.doctor.evidence import Evidence
from veneer.doctor.finding import Change, Finding, interval, percent, rank_changes
from veneer.doctor.limits import HARMFUL_SHARE, OVERCOOKED_RATIO
from veneer.doctor.rules.gains import weight_ratios

__all__ = ["text_encoder_overcooked"]


def text_encoder_overcooked(evidence: Evidence) -> Finding | None:
    """Find a text encoder whose adapter does harm, or outweighs the encoder's weights."""
    parts = evidence.config.adapter.text_encoders
    if not parts:
        return None
    seen = [*_harm(evidence), *_weight(evidence)]
    if not seen:
        return None
    rate = evidence.config.train.learning_rate
    seen += [*weight_ratios(evidence), *_caption_effects(evidence)]
    seen += [f"its rate is {part.learning_rate:g}, the denoiser's {rate:g}" for part in parts.values()]
    changes = [change for name, part in parts.items() for change in _gentler_changes(name, part, rate)]
    changes.append(Change("adapter.text_encoders", (), "leaves the text encoder as it is"))
    what = "The text encoder is overcooked: what words meant to the base is overwritten."
    return Finding("text_encoder_overcooked", what, tuple(seen), tuple(changes))


def _gentler_changes(name: str, part: TextEncoderAdapterConfig, rate: float) -> list[Change]:
    section = f"adapter.text_encoders.{name}"
    slower = Change(f"{section}.learning_rate", min(part.learning_rate, rate) / 10, "smaller steps")
    return [slower, *(rank_changes(section, part, part.rank // 2, "less room") if part.rank > 1 else ())]


def _harm(evidence: Evidence) -> tuple[str, ...]:
    effect = evidence.measurements.text_encoder if evidence.measurements else None
    if effect is None or not effect.is_higher or effect.share < HARMFUL_SHARE:
        return ()
    return (f"with its part the loss is {effect.after:.4f}, without it {effect.before:.4f}: {interval(effect)}",)


def _weight(evidence: Evidence) -> tuple[str, ...]:
    """Tell whether its adapter outweighs it; where the denoiser moved as far, the rate of both is at fault."""
    ratios = {network: change.ratio or 0.0 for network, change in evidence.weight_changes.items()}
    encoder = max((ratios.pop(name, 0.0) for name in evidence.config.adapter.text_encoders), default=0.0)
    if encoder < OVERCOOKED_RATIO or encoder <= max(ratios.values(), default=0.0):
        return ()
    return (f"its part is {percent(encoder)} of the size of the weights it is added to",)


def _caption_effects(evidence: Evidence) -> tuple[str, ...]:
    shuffled = evidence.measurements.held_out_captions if evidence.measurements else None
    if shuffled is None:
        return ()
    shares = f"{percent(shuffled.adapter.share)} of its loss, with the base {percent(shuffled.base.share)}"
    return (f"on held-out pictures another picture's caption adds {shares}",)
