"""Fetch a base from the hub: what its family loads, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from veneer.errors import UserError
from veneer.family.base_index import INDEX, INDEXES, read_index_file
from veneer.family.libraries import in_one_line
from veneer.family.other_folder import near_names
from veneer.family.shards import find_weights

__all__ = ["fetch", "fetch_file", "fetch_index", "files_of_parts", "read_index"]

T = TypeVar("T")
_ID_PARTS = 2  # owner/name
_CONFIGS = (".json", ".txt", ".model")
"""Endings of a part's files beside its weights: configurations, vocabularies, merges, pieces of words."""


def read_index(base: str) -> dict[str, Any]:
    """Return what a hub base's index says.

    Raises:
        UserError: it is no hub id, or the hub does not give the file.
    """
    if len(base.split("/")) != _ID_PARTS or base.startswith((".", "/", "~")):
        near = near_names(Path(base).expanduser())
        remedy = f"did you mean {near[0]}?" if near else "check base, or give a hub id (owner/name)"
        raise UserError("is no folder and no file here", code="base.not_found", where=base, remedy=remedy)
    return read_index_file(fetch_index(base))


def fetch_index(base: str) -> Path:
    """Fetch the index of a hub base; return its place here.

    Raises:
        UserError: the hub does not give it.
    """
    from huggingface_hub import errors, hf_hub_download

    def load() -> str:
        try:
            return hf_hub_download(base, INDEX)
        except errors.EntryNotFoundError:
            for name in INDEXES[1:]:
                with suppress(errors.EntryNotFoundError):
                    return hf_hub_download(base, name)
            raise

    return Path(_ask(base, load))


def fetch_file(base: str, name: str) -> Path:
    """Fetch one file of a hub base; return its place here.

    Raises:
        UserError: the hub does not give it.
    """
    from huggingface_hub import hf_hub_download

    return Path(_ask(base, lambda: hf_hub_download(base, name)))


def fetch(base: str, parts: Collection[str]) -> Path:
    """Fetch a base from the hub, or what lacks of it here; return its folder.

    Args:
        base: its hub id.
        parts: names of the parts that are loaded.

    Raises:
        UserError: the hub does not give it.
    """
    from huggingface_hub import HfApi, errors, snapshot_download

    def load() -> str:
        try:
            wanted = files_of_parts(HfApi().list_repo_files(base), parts)
        except errors.HfHubHTTPError:  # an answer
            raise
        except Exception:  # no network, in the words of the hub's library of the day: what was fetched before will do
            return snapshot_download(base, local_files_only=True)
        return snapshot_download(base, allow_patterns=wanted)

    return Path(_ask(base, load))


def files_of_parts(names: Sequence[str], parts: Collection[str]) -> list[str]:
    """Return which of a base's files are fetched: its index, and of each part the one set of weights that is loaded.

    Args:
        names: of all its files, by their paths in it.
        parts: names of the parts that are loaded.
    """
    wanted = [name for name in INDEXES if name in names] or [INDEX]
    for part in parts:
        own = [name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/")]
        wanted += [f"{part}/{name}" for name in own if name.endswith(_CONFIGS) and ".index." not in name]
        for files in find_weights(own)[:1]:
            wanted += [f"{part}/{name}" for name in own if name == files.name or files.has_shard(name)]
    return wanted


def _ask(base: str, question: Callable[[], T]) -> T:
    """Return the hub's answer; whatever keeps it from answering is one line that says what to do."""
    from huggingface_hub import errors

    try:
        return question()
    except errors.GatedRepoError as error:
        remedy = f"accept its terms at https://huggingface.co/{base}, then log in with: hf auth login"
        raise _not_given("is on the hub, whose owner asks for consent to its terms", base, remedy) from error
    except errors.RepositoryNotFoundError as error:
        remedy = "check the spelling; if it is private, log in with: hf auth login"
        raise _not_given(
            f"is no folder here{_or_near(base)}, and the hub has none of that name", base, remedy
        ) from error
    except errors.LocalEntryNotFoundError as error:
        remedy = "check the network, or give a folder"
        what = f"is no folder here{_or_near(base)}, was not fetched before, and the hub cannot be reached"
        raise _not_given(what, base, remedy) from error
    except errors.EntryNotFoundError as error:
        remedy = "give a base in diffusers' layout, or fetch its checkpoint and give the file"
        raise _not_given(f"is on the hub, but has no {INDEX}", base, remedy) from error
    except errors.HFValidationError as error:
        raise _not_given("is no folder here and no hub id", base, "a hub id is owner/name") from error
    except Exception as error:  # the hub's library has changed the one that it asks with, and so what that raises
        what = f"is no folder here{_or_near(base)}, and the hub does not give it ({in_one_line(error)})"
        raise _not_given(what, base, "check the spelling and the network") from error


def _or_near(base: str) -> str:
    near = near_names(Path(base))
    return f" (but {near[0]} is)" if near else ""


def _not_given(what: str, base: str, remedy: str) -> UserError:
    return UserError(what, code="base.not_found", where=base, remedy=remedy)
