"""List the settings that shape an adapter, and hash them; others may differ between trainings of the same result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from veneer.config.schema import RunConfig

__all__ = ["config_hash", "differences", "training_settings"]

_WITHOUT_EFFECT = frozenset(
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
        "train.offload_blocks",
        # names and places; what is there has fingerprints of its own, so that base and pictures may be moved
        "base",
        "data.sources",
        "data.held_out",
        "data.split_from",
        "data.prior.path",
        "adapter.training_adapter",
        # which pictures are left has a fingerprint of its own
        "data.max_rejected",
        # what is kept there is keyed on all that it was made from
        "data.cache",
        # who decodes the pictures, and when
        "data.workers",
        "data.worker_type",
    }
)

_EQUIVALENT: Mapping[str, Mapping[Any, Any]] = {
    # the engine's own levels give the same bits, so a run that ran out of memory may go on at the next one
    "train.memory": {"leaner": "lean", "checkpoint": "lean"},
    # what they are where nothing is said is no setting, so that files of square pictures keep their hash
    "data.aspect": {"buckets": None},
    "data.upscale": {False: None},
    # a shift of 1 changes no time
    "objective.timestep_shift": {"none": None, 1.0: None},
    # what every release before did, which had no such keys
    "objective.unmasked_weight": {0.0: None},
    "objective.normalize_masked_area": {True: None},
    "data.trigger_placement": {"end": None},
    "data.crop_jitter": {0.0: None},
    "data.frame_extraction": {"chunk": None},
    **{f"data.color_jitter.{name}": {0.0: None} for name in ("brightness", "contrast", "saturation", "hue")},
    # captions are what they were, or the run is refused
    "data.prompt_weights": {"refuse": None, "text": None},
}


def training_settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings that, with base and pictures, decide an adapter's bits, by dotted key; unset ones are out.

    Args:
        config: resolved, because a default that depends on the base is no setting yet.
    """
    leaves = _leaves(config.model_dump(mode="json"), "")
    settings = {key: _EQUIVALENT[key].get(value, value) if key in _EQUIVALENT else value for key, value in leaves}
    return {key: value for key, value in settings.items() if value is not None}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the old and the new value of each setting that differs; None stands for unset."""
    keys = [*old, *(key for key in new if key not in old)]
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}


def config_hash(config: RunConfig) -> str:
    """Return the SHA-256 of a resolved config's training settings: the same wherever pictures, base and results lie."""
    text = json.dumps(training_settings(config), sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _leaves(section: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        key = above + name
        if value is None or key in _WITHOUT_EFFECT:
            continue
        if isinstance(value, dict):
            yield from _leaves(value, f"{key}.")
        else:
            yield key, value
