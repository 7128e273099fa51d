"""The model card of a run's adapter."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from veneer import __version__
from veneer.adapter.registry import METHODS
from veneer.config.schema import RunConfig
from veneer.evaluate.results import Score
from veneer.family.license import base_license
from veneer.family.protocol import Family
from veneer.family.registry import BUNDLED
from veneer.files import public_name, user_path
from veneer.run.folder import GALLERY
from veneer.weights.card import CardFacts, CardFile, model_card
from veneer.weights.training_adapter import TRAINING_ADAPTER

__all__ = ["run_card"]


def run_card(
    config: RunConfig,
    family: Family,
    files: Sequence[CardFile],
    score: Score | None,
    *,
    prompt: str,
    references: int,
    gallery: Mapping[str, str],
    sheet: str | None,
) -> str:
    """Return the text of the card that lies beside a run's adapter; no path of this machine is in it.

    Args:
        config: resolved.
        family: the base.
        files: the adapter's.
        score: on held-out pictures; None where there are none.
        prompt: that shows the adapter.
        references: pictures that it is applied to.
        gallery: prompts by the names of pictures in the run's gallery.
        sheet: name of the comparison's file; None where there is none.
    """
    pipeline = type(family.pipeline(texts=False))
    base, local = config.base, config.base != BUNDLED and user_path(config.base).exists()
    facts = CardFacts(
        title=public_name(config.output.dir.resolve().name, "adapter"),
        base=public_name(user_path(base).resolve().name, "base") if local else base,
        prompt=prompt,
        files=tuple(files),
        method=METHODS[config.adapter.method].title,
        config=_settings(config),
        license=base_license(base),
        trigger=config.data.trigger,
        base_id=None if local or base == BUNDLED else base,
        pipeline=pipeline.__name__ if local and user_path(base).is_file() else None,
        references=references,
        names_prompt=_first_argument(pipeline) != "prompt",
        labels=family.labels,
        gallery={f"{GALLERY}/{name}": text for name, text in gallery.items()},
        sheet=sheet,
        version=__version__,
    )
    return model_card(facts, score)


def _first_argument(pipeline: type[Any]) -> str:
    return list(inspect.signature(pipeline.__call__).parameters)[1]


def _settings(config: RunConfig) -> dict[str, object]:
    settings = _dotted(config.model_dump(mode="json", include={"seed", "adapter", "objective", "train"}))
    if config.adapter.training_adapter is not None:
        settings[TRAINING_ADAPTER] = config.adapter.training_adapter.name
    settings["data.resolution"] = config.data.resolution
    if config.data.token_windows > 1:
        settings["data.token_windows"] = config.data.token_windows
    return settings


def _dotted(tree: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _dotted(value, f"{prefix}{name}.")
        elif value is not None:
            flat[prefix + name] = value
    return flat
