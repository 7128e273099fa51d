"""The file that says which pipeline a folder holds, and of which class each part is.

diffusers calls it ``model_index.json``. That of a modular pipeline is ``modular_model_index.json``, whose entries say
also where each part is to be fetched from; here a part is looked for in the folder's own folder of that name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from veneer.family.file_content import check_config

__all__ = ["INDEX", "INDEXES", "find_index", "is_in_index", "read_index_file"]

INDEX = "model_index.json"
INDEXES = (INDEX, "modular_model_index.json")
"""The names of the file, the first of which is read where there are both."""
_WITH_SOURCE = 3  # elements of an entry that says where the part is fetched from


def find_index(folder: Path) -> Path | None:
    """Return the index of a folder; None: it has none."""
    return next((folder / name for name in INDEXES if (folder / name).is_file()), None)


def read_index_file(file: Path) -> dict[str, Any]:
    """Return what an index says: each part as library and class, whatever else its entry has.

    Raises:
        UserError: it is not there, cannot be read, or is no JSON object.
    """
    return {name: _library_and_class(entry) for name, entry in check_config(file).items()}


def _library_and_class(entry: Any) -> Any:
    """Return a part's entry without where it is fetched from; any other entry as it is."""
    if not isinstance(entry, list) or len(entry) != _WITH_SOURCE or not isinstance(entry[-1], Mapping):
        return entry
    kind = entry[:-1]
    return entry[-1].get("type_hint", kind) if kind == [None, None] else kind  # of a part that was not loaded


def is_in_index(index: Mapping[str, Any], name: str) -> bool:
    """Return whether an index has a part: one that a base comes without is ``[null, null]`` there."""
    return index.get(name) not in (None, [None, None])
