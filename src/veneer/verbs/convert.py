"""Convert an adapter file into another format."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from veneer.adapter.protocol import AdapterWeights
from veneer.errors import UserError
from veneer.files import check_free, opens_paths
from veneer.verbs.adapter_base import base_names
from veneer.verbs.other_readers import ReadBack, read_back
from veneer.weights.adapter_path import adapter_name, named_file
from veneer.weights.file import AdapterFile, dtype_named, format_named, load, save
from veneer.weights.formats.diffusers import DIFFUSERS
from veneer.weights.formats.folding import fold_exactly
from veneer.weights.formats.left_out import LeftOut
from veneer.weights.formats.peft import PEFT
from veneer.weights.formats.protocol import BaseNames
from veneer.weights.metadata import Source, derived
from veneer.weights.summary import read_adapter_names

__all__ = ["Conversion", "convert_adapter"]


@opens_paths
@dataclass(frozen=True)
class Conversion:
    """A converted adapter.

    Attributes:
        path: the new file, or folder.
        format: of it.
        layers: how many there are.
        rounding: what was lost to rounding, as a share of the Frobenius norm of all tensors; 0: nothing.
        readers: what other readers find in it, the format's own first; empty: none was asked.
        left_out: what of the old file is no part of the adapter, and so is not in the new one.
    """

    path: Path
    format: str
    layers: int
    rounding: float
    readers: tuple[ReadBack, ...] = ()
    left_out: tuple[LeftOut, ...] = ()


@opens_paths
def convert_adapter(
    file: Path, out: Path, to: str, *, base: str | None = None, dtype: str | None = None, verify: bool = False
) -> Conversion:
    """Write an adapter in another format, with the same strength and, unless ``dtype`` is narrower, the same bits.

    Args:
        file: the adapter, or the folder of its run.
        out: the new file, whose name ends in ``.safetensors``; else a folder, in which it gets its usual name. Of
            ``peft`` the folder itself.
        to: the format: ``kohya``, ``diffusers``, ``comfy`` or ``peft``.
        base: the adapter's base, or the name of a published architecture, of which the layers are asked and no weight;
            default: that of the run that the file lies in, else the published architecture that it fits.
        dtype: of the new tensors: ``float32``, ``float16`` or ``bfloat16``; default: that of the old ones.
        verify: read the new file with other programs' readers, and compare what each would merge.

    Raises:
        UserError: there is something at ``out``, the file cannot be read, its base is not known, or the format has no
            place for a layer's method; or a reader finds something else than was written.
    """
    place = _place(file, out, to)
    wanted = dtype_named(dtype)
    is_named = (
        to in (DIFFUSERS.name, PEFT.name) and base is None and not verify and not read_adapter_names(file).needs_base
    )
    names = None if is_named else base_names(file, base)
    left_out: list[LeftOut] = []
    networks, key_names = (None, None) if names is None else (names.networks, names.key_names)
    adapter = load(file, networks, key_names, left_out=left_out)
    is_folded = to == DIFFUSERS.name and wanted is None  # a narrower dtype rounds anyway
    weights, record = fold_exactly(adapter.weights) if is_folded else (adapter.weights, {})
    metadata = derived(adapter.metadata, "convert", [Source(file.name)], to=to, dtype=dtype)
    save(AdapterFile(weights, metadata | record), place, to, names, wanted)
    readers = _verified(place, to, adapter.weights, names, wanted) if verify else ()
    return Conversion(place, to, len(weights), _rounding(weights, wanted), readers, tuple(left_out))


def _place(file: Path, out: Path, to: str) -> Path:
    """Return where the new file goes, which is free.

    Raises:
        UserError: there is no such format, or something is there.
    """
    format_named(to)
    is_file = out.suffix == ".safetensors"
    if to == PEFT.name and is_file:
        what, remedy = "peft's format is a folder of files", "name a folder"
        raise UserError(what, code="convert.not_a_folder", where=out, remedy=remedy)
    name = adapter_name(file) if file.is_dir() else file.stem
    place = out if is_file or to == PEFT.name else out / named_file(to, name)
    check_free(place)
    return place


def _rounding(weights: AdapterWeights, dtype: torch.dtype | None) -> float:
    """Return the Frobenius norm of what a dtype takes from an adapter's tensors, as a share of theirs."""
    if dtype is None:
        return 0.0
    lost = total = 0.0
    for adapter in weights.values():
        for tensor in (each.double() for each in adapter.state_dict().values() if each.ndim):
            lost += float((tensor.to(dtype).double() - tensor).square().sum())
            total += float(tensor.square().sum())
    return math.sqrt(lost / total) if total else 0.0


def _verified(
    place: Path, to: str, weights: AdapterWeights, names: BaseNames | None, dtype: torch.dtype | None
) -> tuple[ReadBack, ...]:
    """Return what other readers find in the new file.

    Raises:
        UserError: none is installed, or the first, which is the format's own, finds something else.
    """
    if names is None:
        what = "cannot be verified: it fits no architecture that is known"
        raise UserError(what, code="weights.needs_base", where=place, remedy="name its base with --base")
    written = weights if dtype is None else {path: each.to("cpu", dtype) for path, each in weights.items()}
    found = tuple(read_back(place, to, written, names))
    if not found[0].agrees:
        what = f"was written, and {found[0].reader} does not find in it what was: {found[0].finding}"
        raise UserError(what, code="convert.not_verified", where=place, remedy="use another format, and report it")
    return found
