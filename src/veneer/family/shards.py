"""Find the weight files of a network's folder, and read their tensors one at a time."""

from __future__ import annotations

import errno
import io
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from veneer.errors import UserError
from veneer.family.file_content import check_config, check_weights, fetch_again, header
from veneer.weights.formats.scales import SCALE_ENDINGS
from veneer.weights.header import Header
from veneer.weights.safetensors import DTYPES

__all__ = ["Shards", "WeightFiles", "WeightsFile", "find_weights", "is_scale", "weight_files"]

_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
"""Names of weight files without their endings: diffusers', then transformers' two."""
_FILE = re.compile(
    rf"(?P<stem>{'|'.join(_STEMS)})(?:\.(?P<variant>[\w-]+?))?(?P<shard>-\d+-of-\d+)?\.(?P<form>safetensors|bin|gguf)"
)
_INDEX = re.compile(rf"(?P<stem>{'|'.join(_STEMS)})\.(?P<form>safetensors|bin)\.index(?:\.(?P<variant>[\w-]+))?\.json")
_VARIANTS = ("", "fp32", "bf16", "fp16", "non_ema", "ema")
"""Variants in the order in which they are preferred; the file without one comes first, any other last."""


@dataclass(frozen=True)
class WeightFiles:
    """One set of weight files in a network's folder, of perhaps several.

    Attributes:
        name: of the file, or of the index that lists its shards.
        stem: the name without variant and ending.
        variant: the part of the name before its ending, such as ``fp16``; empty as a rule.
        form: its ending: ``safetensors``, ``bin``, or ``gguf`` in a folder of links.
        is_index: whether ``name`` lists shards.
    """

    name: str
    stem: str
    variant: str
    form: str
    is_index: bool

    @property
    def is_pickled(self) -> bool:
        """Whether it is of PyTorch's own format, of which the libraries read tensors and nothing else."""
        return self.form == "bin"

    @property
    def has_foreign_names(self) -> bool:
        """Whether only :mod:`veneer.family.foreign_weights` reads it."""
        return self.form == "gguf"

    def has_shard(self, name: str) -> bool:
        """Return whether a file is one of the shards that the index lists, by its name alone."""
        shard = _FILE.fullmatch(name)
        same = shard and (shard["stem"], shard["variant"] or "", shard["form"]) == (self.stem, self.variant, self.form)
        return bool(self.is_index and same and shard and shard["shard"])

    def files(self, folder: Path) -> list[Path]:
        """Return the files that hold the weights.

        Raises:
            UserError: the index cannot be read or does not say which they are.
        """
        return [folder / name for name in self._names(folder / self.name)]

    def _names(self, path: Path) -> list[str]:
        if not self.is_index:
            return [self.name]
        shards = check_config(path).get("weight_map")
        if not isinstance(shards, dict) or not shards or not all(map(_is_name, shards.values())):
            what = "does not say which file holds which weight"
            raise UserError(what, code="base.broken_config", where=path, remedy=fetch_again(path))
        return sorted(set(shards.values()))

    def check(self, folder: Path) -> None:
        """Check that all of its files are there and whole; no number is read.

        Raises:
            UserError: one is not.
        """
        for file in self.files(folder):
            check_weights(file)


def _is_name(name: object) -> bool:
    return isinstance(name, str) and bool(_FILE.fullmatch(name) or Path(name).name == name)


def find_weights(names: Collection[str], stems: Sequence[str] = _STEMS) -> list[WeightFiles]:
    """Return the sets of weight files among the names in a folder, the one that is read first.

    A safetensors file is preferred to one of PyTorch's own format, then the one without a variant.

    Args:
        names: of the folder's files.
        stems: what the files may be called, without variant and ending.
    """
    found = [one for name in names if (one := _weight_files(name, stems))]
    return sorted(found, key=lambda one: (one.is_pickled, *_rank(one.variant), not one.is_index, one.name))


def _weight_files(name: str, stems: Sequence[str]) -> WeightFiles | None:
    for pattern in (_INDEX, _FILE):
        match = pattern.fullmatch(name)
        if match and match["stem"] in stems and not match.groupdict().get("shard"):
            return WeightFiles(name, match["stem"], match["variant"] or "", match["form"], pattern is _INDEX)
    return None


def _rank(variant: str) -> tuple[int, str]:
    return (_VARIANTS.index(variant) if variant in _VARIANTS else len(_VARIANTS), variant)


def weight_files(folder: Path) -> list[Path]:
    """Return the files that a network's weights are read from; empty if there are none.

    Raises:
        UserError: an index of shards cannot be read.
    """
    found = find_weights([path.name for path in folder.iterdir()]) if folder.is_dir() else []
    return found[0].files(folder) if found else []


class Shards:
    """The tensors of a network's weight files, none of which is read before it is asked for.

    Args:
        files: their paths.

    Attributes:
        shapes: the shape of each tensor by its name.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._shapes = {file: _shapes(file) for file in files}
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: shape for shapes in self._shapes.values() for name, shape in shapes.items()
        }

    def dtypes(self) -> set[torch.dtype]:
        """Return the dtypes of the tensors that hold floating-point numbers."""
        return {tensor.dtype for tensor in self.map(self.shapes).values() if tensor.is_floating_point()}

    def map(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return tensors that lie in their files: each page takes memory when something is computed with it."""
        tensors = dict[str, Tensor]()
        for file, wanted in self._by_file(names):
            with _open(file) as opened:
                tensors |= {name: opened.get_tensor(name) for name in wanted}
        return tensors

    def stream(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield tensors with their names, file by file; whoever keeps none holds one at a time.

        A file is opened anew for each: the pages that were read count as this process's while the file is mapped.
        """
        for file, wanted in self._by_file(names):
            for name in wanted:
                with _open(file) as opened:
                    yield name, opened.get_tensor(name)

    def _by_file(self, names: Iterable[str]) -> Iterator[tuple[Path, list[str]]]:
        wanted = set(names)
        for file, shapes in self._shapes.items():
            yield file, [name for name in shapes if name in wanted]


_BESIDE = (".scale_input", ".input_scale", ".comfy_quant")
"""Further tensors beside a scaled weight, which say how a layer's input is rounded."""


def is_scale(name: str) -> bool:
    """Return whether a tensor tells how the 8-bit numbers of another one are scaled."""
    return name.endswith(SCALE_ENDINGS + _BESIDE) or name == "scaled_fp8" or name.endswith(".scaled_fp8")


def _open(file: Path) -> Any:
    return safe_open(str(file), framework="pt")


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    with _open(file) as opened:
        return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118


@dataclass(frozen=True)
class WeightsFile:
    """A safetensors file whose tensors are read one at a time, each into memory of its own.

    A mapped file's pages count as the process's memory until it is closed; what is read here is gone with its tensor.

    Attributes:
        path: of the file.
        header: what it holds, checked.
        data_start: place of the first tensor's first byte.
    """

    path: Path
    header: Header
    data_start: int

    @classmethod
    def open(cls, path: Path) -> WeightsFile:
        """Read a file's header.

        Raises:
            UserError: it is no safetensors file, or is not whole.
        """
        found = header(path)
        return cls(path, found, path.stat().st_size - found.data_bytes)

    def scale_name(self, name: str) -> str | None:
        """Return the name of the tensor that a weight's 8-bit numbers are to be multiplied by; None: there is none."""
        stem = name.removesuffix(".weight")
        names = [stem + ending for ending in SCALE_ENDINGS] if stem != name else []
        return next((each for each in names if each in self.header.tensors), None)

    def read_scale(self, name: str) -> Tensor | None:
        """Read the scale of a weight: a number, or one for each row, of a shape that broadcasts; float32.

        Returns:
            None: it has none.

        Raises:
            UserError: it cannot be read.
        """
        if (scale := self.scale_name(name)) is None:
            return None
        found = self.read(scale).float()
        axes = len(self.header.tensors[name].shape)
        return found.reshape(()) if found.numel() == 1 else found.reshape(-1, *(1 for _ in range(axes - 1)))

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """Read a tensor.

        Args:
            name: of the tensor.
            rows: the first row to read and the one behind the last; None: all.

        Raises:
            UserError: it cannot be read, or the file became shorter.
        """
        entry = self.header.tensors[name]
        start, stop, shape = 0, entry.end - entry.start, entry.shape
        if rows is not None:
            row = stop // shape[0]
            start, stop, shape = rows[0] * row, rows[1] * row, (rows[1] - rows[0], *shape[1:])
        data = torch.empty(stop - start, dtype=torch.uint8)
        buffer: Any = data.numpy()
        with _readable(self.path), self.path.open("rb", buffering=0) as file:
            file.seek(self.data_start + entry.start + start)
            _fill(file, memoryview(buffer))
        return data.view(DTYPES[entry.dtype]).reshape(shape)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = f"cannot be read: {error.strerror or error}"
        raise UserError(what, code="base.unreadable", where=path) from error


def _fill(file: io.FileIO, buffer: memoryview) -> None:
    """Read until a buffer is full; one call reads 2 GB at most."""
    while buffer:
        if not (count := file.readinto(buffer)):
            raise OSError(errno.EIO, "it became shorter while it was read")
        buffer = buffer[count:]
