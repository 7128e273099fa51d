"""Change an adapter file's metadata, and nothing else: its tensors keep their bytes, whatever they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from veneer.errors import UserError
from veneer.files import atomic_stream, check_free, is_pickle, opens_paths
from veneer.weights.adapter_path import file_in
from veneer.weights.formats.registry import METADATA_KEYS
from veneer.weights.hashes import file_sha256
from veneer.weights.kohya_hashes import file_hashes
from veneer.weights.metadata import HASH_KEYS, HISTORY, Source, derived
from veneer.weights.tensors_file import RawFile, open_raw

__all__ = ["EditOptions", "EditResult", "edit_adapter"]

NAMED: Mapping[str, tuple[str, ...]] = {
    "title": ("modelspec.title",),
    "author": ("modelspec.author",),
    "description": ("modelspec.description",),
    "trigger": ("modelspec.trigger_phrase", "veneer.trigger"),
    "tags": ("modelspec.tags",),
    "license": ("modelspec.license",),
}
"""What has an option of its own, with the keys that it is written to."""
_COMPUTED: Mapping[str, str] = {
    **dict.fromkeys(HASH_KEYS, "it is a hash of the file's own tensors, and is computed"),
    "veneer.tensors.sha256": "it is a hash of the file's own tensors",
    **dict.fromkeys(METADATA_KEYS, "readers are told by it what the tensors are, or how strong"),
    HISTORY: "it tells what was done to the file",
}
"""Keys that nobody sets, with why."""


@dataclass(frozen=True)
class EditOptions:
    """What is changed in the metadata.

    Attributes:
        set: texts by key.
        remove: keys that go.
    """

    set: Mapping[str, str] = field(default_factory=dict)
    remove: Sequence[str] = ()


@dataclass(frozen=True)
class EditResult:
    """A file with other metadata.

    Attributes:
        path: the new file.
        changed: each key that is new or has another text, with the text that it had; None: it is new.
        removed: keys that are gone, with the texts that they had.
    """

    path: Path
    changed: Mapping[str, str | None]
    removed: Mapping[str, str]


@opens_paths
def edit_adapter(file: Path, out: Path, options: EditOptions) -> EditResult:
    """Write a copy of a file with other metadata; all bytes of its tensors are the same, and so is their order.

    Hashes that the metadata records of the file itself, as kohya's scripts and modelspec do, are computed anew where
    they are recorded. What was changed is added to the history.

    Args:
        file: any safetensors file, of types and methods that are read or not; or the folder of a run.
        out: the new file.
        options: what is changed.

    Raises:
        UserError: the new file is there already or would be no safetensors file; the old one is none; a key to remove
            is not there; a key is one that is computed, or that readers take the strength from; or nothing is changed.
    """
    check_free(out)
    if is_pickle(out):
        what = f"{out.suffix} is a pickle's ending, and no pickle is read"
        raise UserError(what, code="weights.pickle", where=out, remedy="use .safetensors")
    with open_raw(file_in(file)) as raw:
        _check(options, raw)
        old = dict(raw.header.metadata)
        new = {key: text for key, text in {**old, **options.set}.items() if key not in options.remove}
        changed = {key: old.get(key) for key in options.set if old.get(key) != options.set[key]}
        source = Source(raw.path.name, file_sha256(raw.path))
        keys = ", ".join([*options.set, *(f"-{key}" for key in options.remove)])
        written = _with_hashes(raw, derived(new, "edit", [source], keys=keys))
        atomic_stream(out, _pieces(raw, written))
    return EditResult(out, changed, {key: old[key] for key in options.remove})


def _check(options: EditOptions, raw: RawFile) -> None:
    """Refuse changes that mean nothing, or something else than they say."""
    if not options.set and not options.remove:
        raise UserError("nothing is to be changed", code="edit.nothing", remedy="name a key: --set key=value, --title")
    if halves := next((key for key, text in options.set.items() if _is_no_text(key + text)), None):
        raise UserError(f"what {halves!a} is set to is not Unicode", code="edit.not_text")
    if reserved := next((key for key in (*options.set, *options.remove) if key in _COMPUTED), None):
        raise UserError(f"{reserved} cannot be changed: {_COMPUTED[reserved]}", code="edit.computed_key")
    if missing := next((key for key in options.remove if key not in raw.header.metadata), None):
        what = f"has no {missing} in its metadata"
        remedy = f"it has {', '.join(sorted(raw.header.metadata)) or 'none'}"
        raise UserError(what, code="edit.no_such_key", where=raw.path, remedy=remedy)
    if both := next((key for key in options.remove if key in options.set), None):
        raise UserError(f"{both} is to be set and to be removed", code="edit.nothing")


def _is_no_text(text: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def _pieces(raw: RawFile, metadata: Mapping[str, str]) -> Iterable[bytes]:
    yield raw.header.encode(metadata)
    yield from raw.data()


def _with_hashes(raw: RawFile, metadata: Mapping[str, str]) -> dict[str, str]:
    """Return metadata whose hashes of the file itself, where it records them, are true."""
    training = {key: text for key, text in metadata.items() if key.startswith("ss_")}
    true = file_hashes(raw.header.encode(training), raw.data())
    true["modelspec.hash_sha256"] = f"0x{true['sshs_model_hash']}"
    return {**metadata, **{key: text for key, text in true.items() if key in metadata}}
