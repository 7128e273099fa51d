"""Published architectures, one JSON file each: what can be planned without any other file of a base.

A file has the base's title, the hub's id of its weights, the class of its pipeline, and the configuration of each part
as the part's own ``config.json`` has it, without what is the class's default.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["PUBLISHED", "Published", "is_published", "read_published"]

_FOLDER = Path(__file__).parent

PUBLISHED = tuple(sorted(file.stem for file in _FOLDER.glob("*.json")))
"""The names that ``veneer plan --base`` and ``base`` take."""


@dataclass(frozen=True)
class Published:
    """An architecture that has a name.

    Attributes:
        title: what people call it.
        hub: where its weights are published.
        source: where its configuration was read.
        pipeline: the pipeline's class in diffusers.
        parts: the configuration of each network and of the scheduler, by the pipeline's name of the part.
    """

    title: str
    hub: str
    source: str
    pipeline: str
    parts: Mapping[str, Mapping[str, Any]]


def is_published(base: str) -> bool:
    """Return whether a base, with whatever expert, is an architecture's name, which no folder or file here has."""
    return str(base) in PUBLISHED and not Path(base).exists()


def read_published(name: str) -> Published:
    """Return the architecture of a name in ``PUBLISHED``."""
    return Published(**json.loads((_FOLDER / f"{name}.json").read_text("utf-8")))
