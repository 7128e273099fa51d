"""Read the tensors of a GGUF file as the numbers that they stand for, by the format's own library.

Blocks of numbers have a scale each, as llama.cpp packs them; diffusion models in this form have the names of their own
code. A tensor is widened to float32 when it is read, exactly as its format says, and is then held as a run asks.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from veneer.errors import UserError
from veneer.family.file_content import check_content, fetch_again
from veneer.family.shards import WeightsFile
from veneer.file_kind import GGUF
from veneer.weights.header import Header, TensorEntry

__all__ = ["GgufFile", "open_weights"]

_TYPE = "F32"  # of what is read, by the name that safetensors has for it
_SHAPE = "comfy.gguf.orig_shape."
"""What begins the key of a tensor's shape, where the format has no room for as many axes."""


@dataclass(frozen=True)
class GgufFile(WeightsFile):
    """A GGUF file, read as a safetensors file with its numbers in float32 would be.

    Attributes:
        tensors: of the library's reader, by name; they lie in the file.
    """

    tensors: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> GgufFile:
        """Read a file's header.

        Raises:
            UserError: the library is not installed, the file is broken, or has numbers of a type that it cannot widen.
        """
        if importlib.util.find_spec("gguf") is None:
            what, remedy = "is a GGUF file, which needs the library gguf", "pip install 'veneer[gguf]'"
            raise UserError(what, code="base.not_a_model", where=path, remedy=remedy)
        return _opened(path, path.stat().st_mtime_ns)

    def read_scale(self, name: str) -> Tensor | None:
        """Return nothing: the scales are within the tensors."""
        return None

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """Read a tensor as float32; see :class:`WeightsFile`."""
        stored, shape = self.tensors[name], self.header.tensors[name].shape
        data = stored.data if rows is None else stored.data[rows[0] : rows[1]]
        numbers = _library().quants.dequantize(data, stored.tensor_type)
        found = torch.from_numpy(numbers.astype("float32", copy=True))
        return found.reshape(shape if rows is None else (rows[1] - rows[0], *shape[1:]))


def _library() -> Any:
    return importlib.import_module("gguf")


@lru_cache(maxsize=8)
def _opened(path: Path, _changed: int) -> GgufFile:
    gguf = _library()
    try:
        reader = gguf.GGUFReader(path)
        shapes = {one.name: _shape(reader, one) for one in reader.tensors}
        for one in reader.tensors:
            gguf.quants.dequantize(one.data.reshape(-1, one.data.shape[-1])[:1], one.tensor_type)
    except NotImplementedError as error:
        what = f"is a GGUF file with numbers that the library cannot widen ({str(error).splitlines()[0]})"
        remedy = "take one in Q4_0, Q4_K, Q5_K, Q6_K, Q8_0 or the like"
        raise UserError(what, code="base.quantised", where=path, remedy=remedy) from error
    except Exception as error:  # whatever its reader meets in a damaged file
        what = "is a GGUF file that is damaged"
        raise UserError(what, code="base.not_a_model", where=path, remedy=fetch_again(path)) from error
    entries = {name: TensorEntry(_TYPE, shape, 0, 4 * math.prod(shape)) for name, shape in shapes.items()}
    size = sum(entry.end for entry in entries.values())
    return GgufFile(path, Header(entries, {}, size), 0, {one.name: one for one in reader.tensors})


def _shape(reader: Any, tensor: Any) -> tuple[int, ...]:
    """Return a tensor's shape, rows first: the format has it the other way round."""
    told = reader.fields.get(f"{_SHAPE}{tensor.name}")
    if told is not None:
        return tuple(int(told.parts[place][0]) for place in told.data)
    return tuple(int(side) for side in reversed(tensor.shape))


def open_weights(path: Path) -> WeightsFile:
    """Read the header of a file of either format.

    Raises:
        UserError: it is neither, or is not whole.
    """
    return GgufFile.open(path) if check_content(path) is GGUF else WeightsFile.open(path)
