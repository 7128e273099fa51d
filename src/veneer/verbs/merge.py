"""Merge adapter files into their base."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from veneer.adapter.layers import fit_to_layers, weighted_layers_of
from veneer.adapter.merge import merge
from veneer.adapter.protocol import LayerAdapter, check_strength
from veneer.errors import UserError
from veneer.family.base_weights import BaseWeights
from veneer.family.fingerprint import fingerprint
from veneer.family.loading import load_base, text_options
from veneer.family.protocol import Family
from veneer.family.shards import WeightsFile
from veneer.family.windows import token_windows_of
from veneer.files import check_free, name_beside, opens_paths, user_path
from veneer.run.folder import base_beside
from veneer.verbs.merge_check import Difference, random_input_difference
from veneer.verbs.merged_files import Progress, plan_file, plan_folder
from veneer.verbs.merged_tensor import Change, Rounding
from veneer.weights import metadata as made
from veneer.weights.file import AdapterInfo, info, load
from veneer.weights.formats.left_out import LeftOut
from veneer.weights.safetensors import dtype_name
from veneer.weights.tensors_writer import check_space

__all__ = ["DTYPES", "MergeResult", "load_merged", "merge_adapters"]

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float8_e4m3fn": torch.float8_e4m3fn,
}
"""The dtypes that a merged base can be written in, by name."""
_MOST_MEASURED = 32  # layers that are run on random inputs
_AVERAGES = "model_ema."
"""What begins the names of a checkpoint's second set of weights, which few programs read."""
_SWALLOWED = 0.1  # share of a change that rounding may take before it is warned of


@dataclass(frozen=True)
class MergeResult:
    """What was merged, and what that has cost.

    Attributes:
        path: the new file or folder.
        dtypes: that the changed weights are written in.
        rounding: by layer, what rounding to these did to what the adapters change.
        difference: between the written layers and the base with the adapters beside it, on random inputs.
        left_out: files of the base that are not in the new folder, for their weights are without the adapters.
        unmerged: what of the adapters' files is no part of an adapter, and what weights of the base are as they were
            though programs may prefer them, in words.
    """

    path: Path
    dtypes: tuple[str, ...]
    rounding: Mapping[str, Rounding]
    difference: Difference
    left_out: tuple[Path, ...]
    unmerged: tuple[str, ...] = ()

    @property
    def lost(self) -> float:
        """|round(W + delta W) - (W + delta W)| / |delta W| of all layers together."""
        return Rounding.total(self.rounding.values()).ratio

    @property
    def worst(self) -> tuple[str, float]:
        """The layer that rounding takes the largest share of, and that share."""
        layer = max(self.rounding, key=lambda name: self.rounding[name].ratio)
        return layer, self.rounding[layer].ratio

    @property
    def warnings(self) -> tuple[str, ...]:
        """Doubts about the result."""
        if self.lost <= _SWALLOWED:
            return self.unmerged
        advice = "a wider --dtype keeps it, and so does the adapter beside the base"
        return (
            *self.unmerged,
            f"rounding to {' and '.join(self.dtypes)} swallows {self.lost:.0%} of what is merged; {advice}",
        )


@opens_paths
def merge_adapters(
    adapters: Sequence[tuple[Path, float]],
    out: Path,
    *,
    base: str | None = None,
    dtype: str | None = None,
    progress: Progress | None = None,
) -> MergeResult:
    """Write a base with adapters merged into it: W0 + sum of w_i delta W_i, taken in float32 and rounded once.

    A folder in diffusers' layout becomes such a folder, with the same shards; a single file becomes a single file with
    the same names, whose other tensors keep their bytes. Memory holds one tensor of the base at a time.

    Args:
        adapters: files, or folders of their runs, each with its strength; 1 is what it was trained at.
        out: the folder or file to make.
        base: the adapters' base; default: that of the run's config beside the first, else the bundled one.
        dtype: a key of ``DTYPES``, of the denoiser's and the text encoders' weights; default: what each one has.
        progress: is told of bytes that are written.

    Raises:
        UserError: the place is taken or has no room, or an adapter cannot be read or merged, or does not fit the base;
            nothing is written then.
    """
    if not adapters:
        raise UserError("no adapter is named", code="adapter.empty_merge", remedy="name one or more: A:0.8 B:0.5")
    adapters = [(user_path(file), strength) for file, strength in adapters]
    named = base or base_beside(adapters[0][0])
    weights = BaseWeights.open(named)
    _check_out(weights, out)
    contents = [info(file) for file, _ in adapters]
    unmerged: list[str] = []
    layers = _layers(weights, adapters, unmerged)
    changes = _changes(weights, layers)
    target = None if dtype is None else DTYPES[dtype]
    merging = _Merging(weights, changes, target, _Metadata.making(named, adapters, contents), progress)
    rounding, left_out = merging.into_folder(out) if weights.place.is_dir() else merging.into_file(out)
    after = BaseWeights(out)
    dtypes = sorted({dtype_name(after.dtype(layer)) for layer in layers})
    difference = random_input_difference(weights, after, _some(layers))
    unmerged += _averages(after)
    return MergeResult(out, tuple(dtypes), rounding, difference, tuple(left_out), tuple(unmerged))


def _averages(base: BaseWeights) -> list[str]:
    """Say that a file has a second set of weights, averages of a training, in which nothing is merged."""
    has_some = any(name.startswith(_AVERAGES) for file in base.files for name in file.header.tensors)
    return [f"its {_AVERAGES}* weights are as in the base: what prefers them has no adapter"] if has_some else []


def _check_out(base: BaseWeights, out: Path) -> None:
    check_free(out)
    is_folder = base.place.is_dir()
    if is_folder == (out.suffix.lower() == ".safetensors"):
        kind, remedy = ("a folder", "name a folder") if is_folder else ("one file", f"name {out.name}.safetensors")
        what = f"is no name for {kind}, which the base is"
        raise UserError(what, code="output.other_kind", where=out, remedy=remedy)


_Layers = Mapping[str, Sequence[tuple[LayerAdapter, float]]]
"""The adapters of each layer, with their strengths."""


def _layers(
    base: BaseWeights, adapters: Sequence[tuple[Path, float]], unmerged: list[str]
) -> dict[str, list[tuple[LayerAdapter, float]]]:
    """Load the adapters; return those of each of the base's layers, once all are known to fit.

    Args:
        base: whose layers.
        adapters: files, with their strengths.
        unmerged: is told what of the files is no part of an adapter.

    Raises:
        UserError: one does not fit, or has no delta W.
    """
    networks = base.networks()
    own = weighted_layers_of(networks)
    found: dict[str, list[tuple[LayerAdapter, float]]] = {}
    for file, strength in adapters:
        check_strength(strength, f"adapter {file}")
        left_out: list[LeftOut] = []
        weights = load(file, networks, left_out=left_out).weights
        unmerged += [f"of {file.name} {each}" for each in left_out]
        for layer, each in fit_to_layers(weights, own).items():
            if not each.method.is_mergeable:
                what = f"{layer} has a {each.method.title} adapter, which cannot be merged into a weight"
                remedy = "sample with it beside the base"
                raise UserError(what, code="adapter.cannot_merge", where=file, remedy=remedy)
            found.setdefault(layer, []).append((each, strength))
    return dict(sorted(found.items()))


_Changes = dict[Path, dict[str, list[Change]]]
"""What is changed, by file and tensor."""


def _changes(base: BaseWeights, layers: _Layers) -> _Changes:
    changes: _Changes = {}
    for layer, adapters in layers.items():
        has_bias = any(adapter.bias_size is not None for adapter, _ in adapters)
        for part in ("weight", "bias") if has_bias else ("weight",):
            if (stored := base.find(layer, part)) is not None:
                own = changes.setdefault(stored.file.path, {}).setdefault(stored.place.tensor, [])
                own.append(Change(layer, part, stored.place, adapters))
    return changes


@dataclass(frozen=True)
class _Metadata:
    """What a merged file says of where it comes from."""

    sources: Sequence[made.Source]
    strengths: Sequence[float]

    @classmethod
    def making(cls, base: str, adapters: Sequence[tuple[Path, float]], contents: Sequence[AdapterInfo]) -> _Metadata:
        """Take the names and hashes of what is merged."""
        pairs = zip(adapters, contents, strict=True)
        named = [made.Source(file.name, content.sha256) for (file, _), content in pairs]
        return cls([made.Source(base, fingerprint(base)), *named], [strength for _, strength in adapters])

    def of(self, file: WeightsFile) -> dict[str, str]:
        """Return the metadata of the file that takes the place of one of the base's."""
        strengths = ", ".join(f"{strength:g}" for strength in self.strengths)
        return made.derived(file.header.metadata, "merge", self.sources, strengths=strengths)


@dataclass(frozen=True)
class _Merging:
    """A merge that is about to be written."""

    base: BaseWeights
    changes: _Changes
    dtype: torch.dtype | None
    metadata: _Metadata
    progress: Progress | None

    def into_file(self, out: Path) -> tuple[dict[str, Rounding], Sequence[Path]]:
        """Write a single file."""
        (source,) = self.base.files
        plan = plan_file(self.base, source, self.changes[source.path], self.dtype, self.metadata.of(source))
        check_space(out, plan.nbytes)
        return plan.write(out, _Counter(plan.nbytes, self.progress).add), ()

    def into_folder(self, out: Path) -> tuple[dict[str, Rounding], Sequence[Path]]:
        """Write a folder."""
        plan = plan_folder(self.base, self.changes, self.dtype, self.metadata.of)
        check_space(out, plan.nbytes)
        with _new_folder(out) as beside:
            return plan.write(beside, _Counter(plan.nbytes, self.progress).add), plan.left_out


class _Counter:
    """Adds up bytes that are written, and tells of them."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._done, self._total, self._progress = 0, total, progress

    def add(self, count: int) -> None:
        """Add bytes."""
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total)


def _some(layers: _Layers) -> _Layers:
    """Return some layers, evenly spread over all."""
    names = list(layers)
    step = max(1, -(-len(names) // _MOST_MEASURED))
    return {name: layers[name] for name in names[::step]}


def load_merged(file: Path, base: str | None, scale: float, left_out: list[LeftOut] | None = None) -> Family:
    """Load a base with an adapter merged into it; a fault of the adapter's file is raised before the base is loaded.

    Args:
        file: the adapter.
        base: its base; None: that of the config beside it.
        scale: its strength.
        left_out: as of :func:`veneer.weights.file.load`.
    """
    windows = token_windows_of(info(file).metadata)
    family = load_base(base or base_beside(file), **text_options(windows))
    weights = load(file, family.networks, left_out=left_out).weights
    merge(family.networks, [(weights, scale)])
    return family


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder to fill, which takes its name only when all of it is on the disk.

    Raises:
        UserError: it cannot be made or filled.
    """
    beside = name_beside(folder)
    try:
        try:
            beside.mkdir(parents=True)
            yield beside
            for path in beside.rglob("*"):
                _sync(path)
            os.replace(beside, folder)
        except OSError as error:
            what = f"cannot be written: {error.strerror or error}"
            raise UserError(what, code="output.not_writable", where=folder, remedy="choose another --out") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _sync(path: Path) -> None:
    """Wait until the disk has a file."""
    if path.is_file():
        with path.open("r+b") as file:
            os.fsync(file.fileno())
