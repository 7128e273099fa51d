"""What a rule says: what is wrong, by which evidence, and what to try."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from veneer.config.load import build_config, parse_override, set_key
from veneer.config.schema import AdapterConfig, RunConfig, TextEncoderAdapterConfig
from veneer.doctor.evidence import Effect, Evidence

__all__ = ["Change", "Finding", "Rule", "Value", "interval", "percent", "with_change", "with_rank"]

Value = bool | int | float | str | tuple[str, ...] | None
"""Of a configuration's key."""
_PLAIN = re.compile(r"(?!(true|false|null)$)[A-Za-z_][\w ./-]*", re.IGNORECASE)
"""Text that YAML takes for text without quotes."""


@dataclass(frozen=True)
class Change:
    """A key of the configuration to set.

    Attributes:
        key: dotted.
        value: to set it to; an empty tuple stands for an empty section, ``{}``.
        why: what it does, in a few words.
    """

    key: str
    value: Value
    why: str

    @property
    def override(self) -> str:
        """As the command line takes it: ``train.max_steps=200``."""
        return f"{self.key}={_as_yaml(self.value)}"


def _as_yaml(value: Value) -> str:
    if value == ():
        return "{}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_as_yaml, value))}]"
    if isinstance(value, float):
        return _as_number(value)
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        return value
    return json.dumps(value, ensure_ascii=False)


def _as_number(value: float) -> str:
    """In few digits where nothing but rounding is lost by it, such as that of 3 x 0.0001."""
    short = f"{value:.6g}"
    return short if math.isclose(float(short), value, rel_tol=1e-9) else repr(value)


def with_change(config: RunConfig, change: Change) -> RunConfig:
    """A configuration with one key set."""
    values = config.model_dump(mode="json")
    name, value = parse_override(change.override)
    set_key(values, name, value, change.override)
    return build_config(values, change.override)


def with_rank(section: str, adapter: AdapterConfig | TextEncoderAdapterConfig, rank: int, why: str) -> list[Change]:
    """Another rank at the same strength alpha/rank; ``section`` is the adapter's key."""
    alpha = (adapter.alpha or adapter.rank) * rank / adapter.rank
    return [Change(f"{section}.rank", rank, why), Change(f"{section}.alpha", alpha, "goes with the rank")]


@dataclass(frozen=True)
class Finding:
    """One thing that a rule found.

    Attributes:
        name: of the illness, e.g. ``overfit``.
        what: one sentence.
        evidence: the numbers that it was seen by, a sentence each; never empty.
        changes: of the configuration, the first one the most promising.
        advice: what no key can do, such as more pictures.
        level: ``ill``, or ``note`` for what is worth knowing and makes no run ill.
        sure: False where the evidence allows another reading, which ``what`` or ``evidence`` then names.
    """

    name: str
    what: str
    evidence: tuple[str, ...]
    changes: tuple[Change, ...] = ()
    advice: tuple[str, ...] = ()
    level: Literal["ill", "note"] = "ill"
    sure: bool = True

    def __post_init__(self) -> None:
        assert self.evidence, "no finding without evidence"


Rule = Callable[[Evidence], Finding | None]
"""Reads evidence and nothing else; None: this illness is not seen."""


def interval(effect: Effect) -> str:
    """A paired difference as it is told everywhere: mean, interval, pictures."""
    if effect.low is None or effect.high is None:
        return f"{effect.mean:+.4f} (pictures: {effect.pictures}; too few for an interval)"
    return f"{effect.mean:+.4f}, 95 % interval [{effect.low:+.4f}, {effect.high:+.4f}] over {effect.pictures} pictures"


def percent(share: float) -> str:
    """A share in percent, to two digits where it is small."""
    return f"{share:.0%}" if abs(share) >= 0.1 or share == 0 else f"{100 * share:.2g}%"
