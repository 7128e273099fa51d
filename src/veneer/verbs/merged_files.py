"""Write the files of a base with adapters in it: tensor by tensor, each file whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from veneer.family.base_weights import BaseWeights
from veneer.family.shards import WeightsFile, find_weights, is_scale
from veneer.verbs.merged_tensor import Change, Rounding, merged_tensor
from veneer.weights.safetensors import DTYPES, dtype_name
from veneer.weights.tensors_writer import TensorSpec, TensorsWriter, file_bytes, new_tensors_file

__all__ = ["FilePlan", "FolderPlan", "Progress", "plan_file", "plan_folder"]

Progress = Callable[[int, int], None]
"""Is told of bytes that are written, and of how many there will be."""

_WEIGHT_ENDINGS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx", ".onnx_data", ".gguf")
_DTYPE_KEYS = ("torch_dtype", "dtype")
"""What transformers' configurations call the dtype of weights, older and newer."""


@dataclass(frozen=True)
class FilePlan:
    """One file of weights that is written anew.

    Attributes:
        source: the base's file.
        specs: the tensors of the new file.
        changes: what adapters change, by tensor.
        cast: the tensors that are brought into another dtype.
        metadata: of the new file.
    """

    source: WeightsFile
    specs: Mapping[str, TensorSpec]
    changes: Mapping[str, Sequence[Change]]
    cast: Collection[str]
    metadata: Mapping[str, str]

    @property
    def nbytes(self) -> int:
        """Bytes that the new file has."""
        return file_bytes(self.specs, self.metadata)

    def write(self, path: Path, advance: Callable[[int], None]) -> dict[str, Rounding]:
        """Write the file; return what rounding did to each changed layer.

        Args:
            path: of the new file.
            advance: is told of bytes that are written.

        Raises:
            UserError: it cannot be written, or what is to be written in it is no number.
        """
        computed = [name for name in self.specs if name in self.changes or name in self.cast]
        scales = {self.source.scale_name(name) for name in computed}
        rounding: dict[str, Rounding] = {}
        with new_tensors_file(path, self.specs, self.metadata) as writer:
            advance(self.nbytes - sum(spec.nbytes for spec in self.specs.values()))  # the header
            for name, spec in self.specs.items():
                if name in self.changes or name in self.cast:
                    rounding |= self._compute(writer, name)
                elif name not in scales:
                    writer.copy(name, self.source.path, self.source.data_start, self.source.header)
                advance(spec.nbytes)
        return rounding

    def _compute(self, writer: TensorsWriter, name: str) -> Mapping[str, Rounding]:
        merged = merged_tensor(self.source, name, self.changes.get(name, ()), DTYPES[self.specs[name].dtype])
        writer.write(name, merged.numbers)
        if merged.scale is not None and (scale := self.source.scale_name(name)) is not None:
            spec = self.specs[scale]
            writer.write(scale, merged.scale.to(DTYPES[spec.dtype]).reshape(spec.shape))
        return merged.rounding


def plan_file(
    base: BaseWeights,
    source: WeightsFile,
    changes: Mapping[str, Sequence[Change]],
    dtype: torch.dtype | None,
    metadata: Mapping[str, str],
) -> FilePlan:
    """Plan one file of weights.

    Args:
        base: whose file it is.
        source: the file.
        changes: of its tensors.
        dtype: of the denoiser's and the text encoders' weights; None: their own.
        metadata: of the new file.
    """
    entries = source.header.tensors
    dtypes = {} if dtype is None else _dtypes(base, source, dtype)
    specs = {name: TensorSpec(dtypes.get(name, entry.dtype), entry.shape) for name, entry in entries.items()}
    if dtype is not None and dtype.itemsize > 1:  # scales of 8-bit numbers are multiplied in
        specs = {name: spec for name, spec in specs.items() if not is_scale(name)}
    cast = [name for name in specs if specs[name].dtype != entries[name].dtype]
    return FilePlan(source, specs, changes, cast, metadata)


def _dtypes(base: BaseWeights, source: WeightsFile, dtype: torch.dtype) -> dict[str, str]:
    """Return the dtypes of the tensors that are brought into another one: in 8 bits, layers' weights alone."""
    layers = {f"{layer}.weight" for layer in base.layers()}
    name_of = TensorSpec.of(dtype, ()).dtype
    return {
        stored.place.tensor: name_of
        for name, stored in base.stored.items()
        if stored.file is source and (dtype.itemsize > 1 or name in layers)
    }


@dataclass(frozen=True)
class FolderPlan:
    """A folder in diffusers' layout that is written anew.

    Attributes:
        source: the base's folder.
        files: the weight files that are written anew, by their paths in the folder.
        copied: paths in the folder of files that are copied.
        left_out: paths of files that hold weights without the adapters.
        dtype: of the weights; None: their own.
    """

    source: Path
    files: Mapping[Path, FilePlan]
    copied: Sequence[Path]
    left_out: Sequence[Path] = field(default_factory=tuple)
    dtype: torch.dtype | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that the new folder has."""
        copied = sum((self.source / path).stat().st_size for path in self.copied)
        return copied + sum(plan.nbytes for plan in self.files.values())

    def write(self, folder: Path, advance: Callable[[int], None]) -> dict[str, Rounding]:
        """Fill a new folder; return what rounding did to each changed layer.

        Raises:
            UserError: as of :meth:`FilePlan.write`.
            OSError: a file cannot be copied.
        """
        for path in self.copied:
            self._copy(path, folder / path)
            advance((self.source / path).stat().st_size)
        rounding: dict[str, Rounding] = {}
        for path, plan in self.files.items():
            rounding |= plan.write(folder / path, advance)
        return rounding

    def _copy(self, path: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        dtype = self.dtype if path.parent in {file.parent for file in self.files} else None
        if dtype is not None and path.name.endswith(".index.json"):
            _write_json(target, self._index(path))
        elif dtype is not None and dtype.itemsize > 1 and path.name == "config.json":
            _write_json(
                target, self._config(path)
            )  # 8-bit floats are loaded in another dtype, the one it names already
        else:
            shutil.copyfile(self.source / path, target)

    def _index(self, path: Path) -> dict[str, Any]:
        """Return an index of shards with the size that they have now."""
        index: dict[str, Any] = json.loads((self.source / path).read_text("utf-8"))
        own = [plan for file, plan in self.files.items() if file.parent == path.parent]
        size = sum(spec.nbytes for plan in own for spec in plan.specs.values())
        return {**index, "metadata": {**index.get("metadata", {}), "total_size": size}}

    def _config(self, path: Path) -> dict[str, Any]:
        """Return a network's configuration with the dtype that it has now."""
        config: dict[str, Any] = json.loads((self.source / path).read_text("utf-8"))
        assert self.dtype is not None, "configurations are copied where the dtype stays"
        told = dtype_name(self.dtype)
        return {key: told if key in _DTYPE_KEYS else value for key, value in config.items()}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def plan_folder(
    base: BaseWeights,
    changes: Mapping[Path, Mapping[str, Sequence[Change]]],
    dtype: torch.dtype | None,
    metadata_of: Callable[[WeightsFile], Mapping[str, str]],
) -> FolderPlan:
    """Plan a folder in diffusers' layout: the files of networks that change are written anew, all others copied.

    Args:
        base: the folder.
        changes: of its files' tensors, by file.
        dtype: of the denoiser's and the text encoders' weights; None: their own.
        metadata_of: gives the metadata of a new weight file.
    """
    anew = [file for file in base.files if dtype is not None or file.path.parent in {path.parent for path in changes}]
    plans = {
        file.path.relative_to(base.place): plan_file(base, file, changes.get(file.path, {}), dtype, metadata_of(file))
        for file in anew
    }
    others = [path for path in _files_in(base.place) if path not in plans]
    left_out = [path for path in others if _is_unmerged(path, {file.parent for file in plans}, base.place)]
    copied = [path for path in others if path not in left_out]
    return FolderPlan(base.place, plans, copied, left_out, dtype)


def _files_in(folder: Path) -> Iterator[Path]:
    """Yield the paths of a folder's files in it, but hidden ones, which tools leave there."""
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in inner.parts):
            yield inner


def _is_unmerged(path: Path, networks: Collection[Path], base: Path) -> bool:
    """Return whether a file has weights of a network that changes: of another variant or format, or a whole base."""
    if path.parent != Path() and path.parent not in networks:
        return False
    if ".index." not in path.name:
        return path.suffix in _WEIGHT_ENDINGS
    used = find_weights([file.name for file in (base / path.parent).iterdir()])[:1]
    return path.name not in [files.name for files in used]
