"""Which layers of a network an adapter changes: by name, by preset, within blocks; and how many blocks that reaches.

A block is one of a network's repeated parts: an element of an outermost ``ModuleList`` that has attention in one of its
elements, such as ``transformer_blocks.3``; or a ``mid_block``.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from veneer.adapter.layers import layers_under, modules_under
from veneer.config.adapter_config import TargetPreset
from veneer.errors import UserError

__all__ = [
    "Block",
    "BlockCoverage",
    "blocks_of",
    "expand_preset",
    "is_named",
    "layers_in_blocks",
    "measure_coverage",
    "names_in_blocks",
    "pattern_of",
]

_ALONE = "mid_block"
"""The name of a block that is in no list."""
_ATTENTION = re.compile("Attention|Attn")
"""In the names of classes of attention."""
_CONDITIONS = re.compile(r"norm|ada_?ln|time_|.*_mod$|.*modulation$", re.IGNORECASE)
"""Names of the parts of a block that make scales and shifts of the time."""
_RANGE = re.compile(r"(\d{1,4})-(\d{1,4})")


@dataclass(frozen=True)
class Block:
    """One of a network's repeated parts.

    Attributes:
        path: within the network.
        attends: whether attention is in it.
    """

    path: str
    attends: bool


@dataclass(frozen=True)
class BlockCoverage:
    """The blocks of a network that an adapter reaches.

    Attributes:
        touched: how many have an adapted layer.
        total: how many there are.
        left_out: those with attention in which nothing is adapted, as ``single_transformer_blocks.0-19``.
    """

    touched: int
    total: int
    left_out: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return ``5 of 25 (none of single_transformer_blocks.0-19)``."""
        left_out = f" (none of {', '.join(self.left_out)})" if self.left_out else ""
        return f"{self.touched} of {self.total}{left_out}"


def blocks_of(network: nn.Module) -> tuple[Block, ...]:
    """Return a network's blocks, in its own order; none if it has no list with attention in it."""
    modules = dict(modules_under(network))
    children: dict[str, list[str]] = defaultdict(list)
    for path in modules:
        children[path.rpartition(".")[0]].append(path)
    attending = {path for path, module in modules.items() if _ATTENTION.search(type(module).__name__)}

    def below(above: str) -> Iterator[Block]:
        for path in children[above]:
            if path.rpartition(".")[2] == _ALONE:
                yield Block(path, attends=_holds(path, attending))
            elif isinstance(modules[path], nn.ModuleList):
                elements = [Block(element, _holds(element, attending)) for element in children[path]]
                yield from elements if any(element.attends for element in elements) else ()
            else:
                yield from below(path)

    return tuple(below(""))


def _holds(path: str, paths: Collection[str]) -> bool:
    """Check whether one of ``paths`` is a module or within it."""
    return any(other == path or other.startswith(f"{path}.") for other in paths)


def is_named(target: str, path: str) -> bool:
    """Check whether a target is a layer's path or the ending of it, at a dot."""
    return path == target or path.endswith(f".{target}")


def layers_in_blocks(paths: Sequence[str], blocks: Sequence[str]) -> list[str]:
    """Return the layers that lie within blocks; all of them if no block is named.

    Args:
        paths: of the layers within their network.
        blocks: each a dotted path of which a number may be a range: ``transformer_blocks.0-9``, ``up_blocks.1``,
            ``attentions.1``; it may begin anywhere in a layer's path.

    Raises:
        UserError: one names nothing.
    """
    if not blocks:
        return list(paths)
    inside = {path for block in blocks for path in _paths_in_block(block, paths)}
    return [path for path in paths if path in inside]


def _paths_in_block(block: str, paths: Sequence[str]) -> set[str]:
    inside: set[str] = set()
    for single in _single_blocks(block):
        found = {path for path in paths if f".{single}." in f".{path}."}
        if not found:
            raise _no_block(single, paths)
        inside |= found
    return inside


def _single_blocks(block: str) -> Iterator[str]:
    """Yield what a block's name with ranges stands for."""
    choices = [_numbers(part, block) for part in block.split(".")]
    return (".".join(parts) for parts in itertools.product(*choices))


def _numbers(part: str, block: str) -> list[str]:
    found = _RANGE.fullmatch(part)
    if found is None:
        return [part]
    first, last = int(found[1]), int(found[2])
    if first > last:
        what = f"the range {part} ends before it begins"
        raise UserError(what, code="adapter.bad_block_range", where=block, remedy=f"write {last}-{first}")
    return [str(number) for number in range(first, last + 1)]


def _no_block(block: str, paths: Sequence[str]) -> UserError:
    """Return the mistake of a block that is not there, with those that are: paths up to their first number."""
    stacks = sorted({found[0] for path in paths if (found := re.match(r".*?\.\d+(?=\.)", path))}, key=_natural)
    remedy = f"there are {', '.join(_as_ranges(stacks))}" if stacks else "leave it out"
    return UserError(f"no layer is in block {block!r}", code="adapter.no_such_block", remedy=remedy)


def pattern_of(targets: Sequence[str], blocks: Sequence[str]) -> str:
    """Return a pattern of whole paths for peft, which the layers of these names within these blocks match."""
    named = "|".join(map(re.escape, targets))
    inside = "|".join(re.escape(single) for block in blocks for single in _single_blocks(block))
    return rf"(?:.*\.)?(?:{inside})\.(?:.*\.)?(?:{named})"


def names_in_blocks(network: nn.Module, names: Sequence[str], blocks: Sequence[str]) -> tuple[str, ...]:
    """Return those of some names that a layer within the blocks has.

    Raises:
        UserError: a block names nothing, or no name is of a layer there.
    """
    found = _named_inside(names, layers_in_blocks([path for path, _ in layers_under(network)], blocks))
    if not found:
        raise _nothing_meant(", ".join(names), blocks)
    return found


def expand_preset(
    network: nn.Module, preset: TargetPreset, blocks: Sequence[str] = (), own: Sequence[str] = ()
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of layers and of blocks that mean what a preset does.

    Args:
        network: whose layers are meant.
        preset: ``attention``: the linear layers of attention. ``attention_mlp``: with all others of the blocks but
            those that make scales and shifts of the time. ``all_linear``: with these.
        blocks: within which; none: all.
        own: names that stand for the preset in this network; none: they are found by looking into its blocks.

    Raises:
        UserError: a block names nothing, the network has no blocks, or the preset is nothing in them.
    """
    whole = blocks_of(network)
    if not whole:
        what = f"target_modules is {preset}, but the {type(network).__name__} has no blocks with attention"
        raise UserError(what, code="adapter.no_blocks", remedy="name its layers")
    inside = layers_in_blocks([path for path, _ in layers_under(network)], blocks)
    inside = [path for path in inside if any(path.startswith(f"{block.path}.") for block in whole)]
    names = _named_inside(own, inside) if own else _shortest_names(_preset_layers(network, preset, whole), inside)
    if not names:
        raise _nothing_meant(preset, blocks)
    return names, tuple(blocks) or _as_ranges([block.path for block in whole])


def _nothing_meant(wanted: str, blocks: Sequence[str]) -> UserError:
    where = f" within {', '.join(blocks)}" if blocks else ""
    what = f"{wanted} is no layer{where}"
    return UserError(what, code="adapter.target_matches_nothing", remedy="name other layers, or other blocks")


def _named_inside(names: Sequence[str], paths: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in names if any(is_named(name, path) for path in paths))


def _preset_layers(network: nn.Module, preset: TargetPreset, blocks: Sequence[Block]) -> set[str]:
    """Return the linear layers of the blocks that a preset means, by looking at names and classes."""
    classes = {path: type(module).__name__ for path, module in modules_under(network)}
    linear = [path for path, layer in layers_under(network) if isinstance(layer, nn.Linear)]
    wanted = set()
    for block in blocks:
        for path in (path for path in linear if path.startswith(f"{block.path}.")):
            inner = path.removeprefix(f"{block.path}.").split(".")
            above = [".".join([block.path, *inner[:depth]]) for depth in range(1, len(inner))]
            attends = any(_ATTENTION.search(classes.get(one, "")) for one in above)
            conditions = any(_CONDITIONS.match(part) for part in inner)
            if preset == "all_linear" or attends or (preset == "attention_mlp" and not conditions):
                wanted.add(path)
    return wanted


def _shortest_names(wanted: Collection[str], inside: Sequence[str]) -> tuple[str, ...]:
    """Return endings of paths that name the wanted layers among those inside, and no others, as short as can be."""
    others = {ending for path in inside if path not in wanted for ending in _endings(path)}
    names = [next(ending for ending in _endings(path) if ending not in others) for path in inside if path in wanted]
    return tuple(dict.fromkeys(names))


def _endings(path: str) -> Iterator[str]:
    """Yield the endings of a path from the shortest to all of it; none begins with a number."""
    parts = path.split(".")
    for start in range(len(parts) - 1, -1, -1):
        if start == 0 or not parts[start].isdigit():
            yield ".".join(parts[start:])


def measure_coverage(network: nn.Module, adapted: Collection[str]) -> BlockCoverage:
    """Return which blocks of a network an adapter reaches.

    Args:
        network: as it is, with the adapter in it or without.
        adapted: paths of the layers that it changes, within the network.
    """
    blocks = blocks_of(network)
    touched = {block.path for block in blocks if _holds(block.path, adapted)}
    left_out = [block.path for block in blocks if block.attends and block.path not in touched]
    return BlockCoverage(len(touched), len(blocks), _as_ranges(left_out))


def _as_ranges(paths: Iterable[str]) -> tuple[str, ...]:
    """Join paths that differ in a last number that counts on: ``a.0``, ``a.1`` are ``a.0-1``."""
    ranges: dict[str, list[list[int]]] = {}
    alone: dict[str, None] = {}
    for path in paths:
        stack, _, number = path.rpartition(".")
        if not number.isdigit():
            alone[path] = None
            continue
        runs = ranges.setdefault(stack, [])
        if runs and int(number) == runs[-1][1] + 1:
            runs[-1][1] += 1
        else:
            runs.append([int(number)] * 2)
    stacks = [f"{stack}.{_range_text(*run)}" for stack, runs in ranges.items() for run in runs]
    return *stacks, *alone


def _range_text(first: int, last: int) -> str:
    return f"{first}" if first == last else f"{first}-{last}"


def _natural(path: str) -> list[tuple[bool, int | str]]:
    """Return a key that orders paths with their numbers as numbers."""
    return [(not part.isdigit(), int(part) if part.isdigit() else part) for part in path.split(".")]
