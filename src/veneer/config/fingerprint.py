"""What of a config shapes the adapter, and what does not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from veneer.config.schema import RunConfig

__all__ = ["config_hash", "differences", "training_settings"]

_NO_SAY = frozenset(
    {
        # where results go, and what is shown of them or measured on them
        "output",
        "sample",
        "tracking",
        "validation",
        # how often and how many states are kept
        "train.checkpoint_every",
        "train.keep_checkpoints",
        # when parts of the base that do not learn are in memory
        "train.offload",
        # names and places; what is there is told by fingerprints, so that base and pictures may be moved
        "base",
        "data.sources",
        "data.held_out",
        "data.prior.path",
        # what is kept there is keyed on all that it was made from
        "data.cache",
    }
)

_ALIKE = {
    # the engine's own levels give one another's bits, so a run that ran out of memory may go on at the next one
    "train.memory": {"leaner": "lean", "checkpoint": "lean"},
}


def training_settings(config: RunConfig) -> dict[str, Any]:
    """The settings that decide an adapter's bits, together with base and pictures, by dotted key; unset ones are out.

    Args:
        config: resolved, for a default that is the base's to name is no setting yet.
    """
    leaves = _leaves(config.model_dump(mode="json"), "")
    return {key: _ALIKE[key].get(value, value) if key in _ALIKE else value for key, value in leaves}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What two essences differ in; None stands for unset."""
    keys = [*old, *(key for key in new if key not in old)]
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}


def config_hash(config: RunConfig) -> str:
    """SHA-256 of a resolved config's essence: the same wherever pictures, base and results lie."""
    text = json.dumps(training_settings(config), sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _leaves(section: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        key = above + name
        if value is None or key in _NO_SAY:
            continue
        if isinstance(value, dict):
            yield from _leaves(value, f"{key}.")
        else:
            yield key, value
