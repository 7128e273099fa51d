"""Findings: what a rule reports, by which evidence, and which changes of the configuration to try."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pydantic import computed_field

from veneer.config.adapter_config import AdapterConfig, TextEncoderAdapterConfig
from veneer.config.load import build_config
from veneer.config.override import parse_override, set_key
from veneer.config.schema import RunConfig
from veneer.doctor.evidence import Effect, Evidence

__all__ = ["Change", "Finding", "Rule", "Value", "apply_change", "interval", "percent", "rank_changes"]

Value = bool | int | float | str | tuple[str, ...] | None
"""Value of a configuration key."""
_UNQUOTED = re.compile(r"(?!(true|false|null)$)[A-Za-z_][\w ./-]*", re.IGNORECASE)
"""Text that YAML reads as text without quotes."""


@dataclass(frozen=True)
class Change:
    """A key of the configuration to set.

    Attributes:
        key: dotted key.
        value: value to set it to; an empty tuple stands for an empty section, ``{}``.
        why: effect of the change, in a few words.
    """

    key: str
    value: Value
    why: str

    @computed_field  # type: ignore[prop-decorator]
    @property
    def override(self) -> str:
        """The change as the command line takes it: ``train.max_steps=200``."""
        return f"{self.key}={_as_yaml(self.value)}"


def _as_yaml(value: Value) -> str:
    if value == ():
        return "{}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_as_yaml, value))}]"
    if isinstance(value, float):
        return _shortest(value)
    if isinstance(value, str) and _UNQUOTED.fullmatch(value):
        return value
    return json.dumps(value, ensure_ascii=False)


def _shortest(value: float) -> str:
    """Return a number in six digits if only rounding errors are lost by it, such as that of 3 x 0.0001."""
    short = f"{value:.6g}"
    return short if math.isclose(float(short), value, rel_tol=1e-9) else repr(value)


def apply_change(config: RunConfig, change: Change) -> RunConfig:
    """Return a configuration with one key set.

    Raises:
        UserError: the configuration has no such key, or does not take the value.
    """
    values = config.model_dump(mode="json")
    name, value = parse_override(change.override)
    set_key(values, name, value, change.override)
    return build_config(values, change.override)


def rank_changes(section: str, adapter: AdapterConfig | TextEncoderAdapterConfig, rank: int, why: str) -> list[Change]:
    """Return the changes to another rank at the same strength alpha / rank; ``section`` is the adapter's key."""
    alpha = (adapter.alpha or adapter.rank) * rank / adapter.rank
    return [Change(f"{section}.rank", rank, why), Change(f"{section}.alpha", alpha, "goes with the rank")]


@dataclass(frozen=True)
class Finding:
    """One thing that a rule found.

    Attributes:
        name: name of the rule, e.g. ``overfit``.
        what: one sentence.
        evidence: the numbers that it was seen by, a sentence each; never empty.
        changes: changes of the configuration to try, the most promising first.
        advice: steps that no key can take, such as adding pictures.
        level: ``problem``, or ``note`` for something worth knowing that is not wrong.
        sure: False where the evidence allows another reading, which ``what`` or ``evidence`` then names.
    """

    name: str
    what: str
    evidence: tuple[str, ...]
    changes: tuple[Change, ...] = ()
    advice: tuple[str, ...] = ()
    level: Literal["problem", "note"] = "problem"
    sure: bool = True

    def __post_init__(self) -> None:
        assert self.evidence, "no finding without evidence"

    @property
    def is_problem(self) -> bool:
        """Whether something is wrong, and not only worth knowing."""
        return self.level == "problem"


Rule = Callable[[Evidence], Finding | None]
"""A rule: reads evidence and nothing else, and returns None where it finds nothing."""


def interval(effect: Effect) -> str:
    """Return a paired difference as text: mean, interval, number of pictures."""
    if effect.low is None or effect.high is None:
        return f"{effect.mean:+.4f} (pictures: {effect.pictures}; too few for an interval)"
    return f"{effect.mean:+.4f}, 95 % interval [{effect.low:+.4f}, {effect.high:+.4f}] over {effect.pictures} pictures"


def percent(share: float) -> str:
    """Return a share in percent, in two digits where it is small."""
    return f"{share:.0%}" if abs(share) >= 0.1 or share == 0 else f"{100 * share:.2g}%"
