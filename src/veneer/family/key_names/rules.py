"""How a family's names are written down: a table of paths in which N stands for the number of a block."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from veneer.weights.formats.fused import Slice, swapped_halves

__all__ = ["NameTable", "Names", "Outputs", "native_names", "numbered_parts", "qkv"]

Outputs: TypeAlias = Mapping[str, int]
"""The number of outputs of each layer, or the size of a norm, by path within the network as diffusers has it."""
Names: TypeAlias = dict[str, str | Slice]
"""What files call layers, by path within the network; a layer that is called as in diffusers is not in it."""

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


@dataclass(frozen=True)
class NameTable:
    """What a model's own code calls the layers of a network; N in a path or name stands for the number of a block.

    Attributes:
        names: the native name by path, where it is another.
        fused: the layers that are one in the native code, in the order of their rows, by its name there.
        swapped: paths of layers whose two halves are the other way round there.
    """

    names: Mapping[str, str]
    fused: Mapping[str, tuple[str, ...]]
    swapped: tuple[str, ...] = ()

    def native_names(self, outputs: Outputs, swapped: Collection[str] = ()) -> Names:
        """Return the native names of a network's layers, as :func:`native_names` does."""
        return native_names(outputs, self.names, self.fused, (*self.swapped, *swapped))

    def paths_of(self, native: str) -> list[str]:
        """Return the paths of the layers that a native layer is, in the order of their rows; its own name if no other.

        Args:
            native: its name, with the block's number.
        """
        number = _NUMBER.search(native)
        general = native if number is None else f"{native[: number.start()]}N{native[number.end() :]}"
        paths = {name: (path,) for path, name in self.names.items()} | dict(self.fused)
        if general in paths and number is not None:
            return [_numbered(path, number.group()) for path in paths[general]]
        return list(paths.get(native, (native,)))


def native_names(
    outputs: Outputs,
    names: Mapping[str, str],
    fused: Mapping[str, Sequence[str]] | None = None,
    swapped: Collection[str] = (),
) -> Names:
    """Return what a model's own code calls the layers of a network.

    Args:
        outputs: of the network's layers.
        names: the native name by path, where it is another.
        fused: the layers that are one in the native code, in the order of their rows, by its name there.
        swapped: paths, with their blocks' numbers, of layers whose two halves are the other way round there.
    """
    parts = {path: (native, paths) for native, paths in (fused or {}).items() for path in paths}
    found: Names = {}
    for path in outputs:
        number = _NUMBER.search(path)
        general = path if number is None else f"{path[: number.start()]}N{path[number.end() :]}"
        block = "" if number is None else number.group()
        if general in parts:
            native, paths = parts[general]
            found[path] = _slice(_numbered(native, block), path, [_numbered(each, block) for each in paths], outputs)
        elif path in swapped:
            found[path] = swapped_halves(_numbered(names[general], block), outputs[path])
        elif general in names:
            found[path] = _numbered(names[general], block)
    return found


def _numbered(path: str, block: str) -> str:
    return ".".join(block if level == "N" else level for level in path.split("."))


def _slice(native: str, path: str, paths: Sequence[str], outputs: Outputs) -> Slice:
    heights = [outputs[each] for each in paths]
    place = paths.index(path)
    return Slice(native, sum(heights[:place]), heights[place], sum(heights))


def qkv(attention: str) -> tuple[str, str, str]:
    """Return the paths of an attention's query, key and value."""
    return f"{attention}.to_q", f"{attention}.to_k", f"{attention}.to_v"


def numbered_parts(names: Names) -> Names:
    """Return what OneTrainer's files call slices of a native layer: its name and their number, from 0 on."""
    parts = {path: name for path, name in names.items() if isinstance(name, Slice) and name.length < name.total}
    offsets: dict[str, list[int]] = {}
    for part in sorted(parts.values(), key=lambda part: part.offset):
        offsets.setdefault(part.name, []).append(part.offset)
    return {path: f"{part.name}.{offsets[part.name].index(part.offset)}" for path, part in parts.items()}
