"""The repeated blocks of a network, whatever its code calls them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

__all__ = ["repeated_blocks"]


def repeated_blocks(network: nn.Module) -> dict[str, nn.Module]:
    """Return the blocks of a network by dotted path, in the order in which its code has them.

    They are the members of the outermost lists that hold several modules of one class, each made of further modules:
    ``transformer_blocks.0`` and on. What is neither in such a list nor in a list within, such as embeddings and the
    last layers, is in no block.
    """
    return dict(_blocks(network, ""))


def _blocks(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        place = f"{path}.{name}" if path else name
        if isinstance(module, nn.ModuleList) and _is_block(module, child):
            yield place, child
        else:
            yield from _blocks(child, place)


def _is_block(owner: nn.ModuleList, child: nn.Module) -> bool:
    kinds = {type(each) for each in owner}
    return len(owner) > 1 and len(kinds) == 1 and any(True for _ in child.children())
