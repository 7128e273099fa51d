"""Adapters that a verb makes another of: read under their base's names, written in their own format.

An adapter is a file, or the checkpoint of a run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from veneer.adapter.full import FullDifference
from veneer.adapter.parts import without_bias
from veneer.adapter.protocol import LayerAdapter
from veneer.errors import UserError
from veneer.verbs.adapter_base import base_names
from veneer.verbs.checkpoint_adapter import is_checkpoint, read_checkpoint_adapter
from veneer.weights.adapter_path import files_in
from veneer.weights.checkpoint import STATE
from veneer.weights.file import (
    FILE_NAME,
    AdapterFile,
    dtype_named,
    file_in,
    format_named,
    load,
    outline,
    save,
)
from veneer.weights.formats.diffusers import DIFFUSERS
from veneer.weights.formats.folding import fold_exactly
from veneer.weights.formats.left_out import LeftOut
from veneer.weights.formats.protocol import BaseNames
from veneer.weights.formats.registry import FORMATS
from veneer.weights.formats.strength import FILE_NAME as PEFT_NAME
from veneer.weights.hashes import file_sha256
from veneer.weights.metadata import Source
from veneer.weights.summary import read_adapter_names

__all__ = ["OpenedAdapter", "default_out", "open_adapters", "written_bytes"]


@dataclass(frozen=True)
class OpenedAdapter:
    """An adapter that was read.

    Attributes:
        path: of the file itself.
        format: that is written where no other is asked for: the file's own, if it is one that is written.
        sha256: of the file.
        size_bytes: of the file.
        adapter: its weights, by the layers' paths, and its metadata.
        names: its base's layers; None: nothing needed them.
        left_out: what of the file is no part of the adapter.
    """

    path: Path
    format: str
    sha256: str
    size_bytes: int
    adapter: AdapterFile
    names: BaseNames | None
    left_out: tuple[LeftOut, ...] = ()

    @property
    def notes(self) -> list[str]:
        """What is left out, in sentences that name the file."""
        return [f"of {self.path.name} {left_out}" for left_out in self.left_out]

    @property
    def folder(self) -> Path:
        """Where what is made of it is written: beside its file, or beside its folder where this is the adapter."""
        return self.path.parent.parent if self.path.name in (PEFT_NAME, STATE) else self.path.parent

    @property
    def stem(self) -> str:
        """What the adapter is called: its file's name without the ending, or the folder's of peft's and checkpoints."""
        return self.path.resolve().parent.name if self.path.name in (PEFT_NAME, STATE) else self.path.stem

    @property
    def title(self) -> str:
        """What the adapter is called where it is shown: of a file with the name that readers look for, its folder's."""
        place = self.path.resolve().parent
        if self.path.name == STATE:
            return f"{place.parent.parent.name} {place.name}"
        return place.name if self.path.name in (FILE_NAME, PEFT_NAME) else self.path.stem

    @property
    def source(self) -> Source:
        """The adapter as the metadata of what is made of it names it."""
        return Source(self.stem if self.path.name == STATE else self.path.name, self.sha256)

    def save(self, adapter: AdapterFile, out: Path, to: str | None, dtype: str | None = None) -> None:
        """Write what was made of it.

        Args:
            adapter: the new adapter.
            out: the new file, or folder.
            to: its format; None: that of the file.
            dtype: of its tensors: ``float32``, ``float16`` or ``bfloat16``; None: their own.

        Raises:
            UserError: as of :func:`veneer.weights.file.save`.
        """
        to, wanted = to or self.format, dtype_named(dtype)
        if to == DIFFUSERS.name and wanted is None:  # what is rounded goes beside the tensors; a dtype rounds anyway
            weights, record = fold_exactly(adapter.weights)
            adapter = AdapterFile(weights, {**adapter.metadata, **record})
        save(adapter, out, to, self.names, wanted)


def open_adapters(
    files: Sequence[Path],
    base: str | None = None,
    *,
    to: str | None = None,
    whole: bool = False,
    without: bool = False,
) -> list[OpenedAdapter]:
    """Read adapters, all under one base's names for layers where one of them, or the new file, needs a base.

    Args:
        files: the adapters, the folders of their runs, or checkpoints.
        base: theirs; default: that of the config beside the first that needs one, else the published architecture that
            it fits.
        to: the format in which the new file is to be written; None: that of the first.
        whole: whether the shapes of all layers' weights have to be known, which some methods' numbers do not tell.
        without: whether files are read without what of them is no part of an adapter, of which the user is then told;
            else such files are refused.

    Raises:
        UserError: there is no such format, a file cannot be read, or it takes a base to tell which layers it is of.
    """
    if to is not None:
        format_named(to)
    told = {file: read_adapter_names(file) for file in files if not is_checkpoint(file)}
    formats = {file: names.format if names.format in FORMATS else DIFFUSERS.name for file, names in told.items()}
    needing = [file for file, names in told.items() if names.needs_base]
    if whole:
        needing += [file for file in told if any(map(_tells_no_kernel, outline(file).values()))]
    written = to or formats.get(files[0], DIFFUSERS.name)
    names = base_names((needing or files)[0], base) if needing or written != DIFFUSERS.name else None
    if needing and names is None:
        what = "it takes the adapter's base to tell which layers it changes, and of which sizes"
        raise UserError(what, code="weights.needs_base", where=needing[0], remedy="name it: --base")
    return [_open(file, formats.get(file), names, without) for file in files]


def _tells_no_kernel(layer: LayerAdapter) -> bool:
    """Return whether a layer's numbers leave open how the inputs of its weight are split into channels and kernel."""
    own = without_bias(layer)
    is_told = own is None or own.low_rank() is not None or isinstance(own, FullDifference)
    return not is_told and layer.method.is_additive


def _open(file: Path, format: str | None, names: BaseNames | None, without: bool) -> OpenedAdapter:
    """Read an adapter, or that of a checkpoint, which has no format."""
    if format is None:
        state = (file / STATE).read_bytes()
        adapter, digest = read_checkpoint_adapter(file, names), hashlib.sha256(state).hexdigest()
        return OpenedAdapter(file / STATE, DIFFUSERS.name, digest, len(state), adapter, names)
    left_out: list[LeftOut] | None = [] if without else None
    networks, key_names = (None, None) if names is None else (names.networks, names.key_names)
    adapter = load(file, networks, key_names, left_out=left_out)
    parts = files_in(file)
    digest, size = file_sha256(*parts), sum(part.stat().st_size for part in parts)
    return OpenedAdapter(file_in(file), format, digest, size, adapter, names, tuple(left_out or ()))


def default_out(opened: OpenedAdapter, ending: str, to: str | None) -> Path:
    """Return where a new adapter is written if nobody says: beside the old one, with an ending behind its name."""
    is_folder = not Path(format_named(to or opened.format).file_name(opened.stem)).suffix
    return opened.folder / f"{opened.stem}-{ending}{'' if is_folder else '.safetensors'}"


def written_bytes(out: Path) -> int:
    """Return how many bytes a written adapter takes: its file, or all files of its folder."""
    return sum(path.stat().st_size for path in out.rglob("*")) if out.is_dir() else out.stat().st_size
