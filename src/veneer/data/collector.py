"""Keep Python's cycle collector from walking over records, again and again, while a million of them are made."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from typing import TypeVar

__all__ = ["spared"]

T = TypeVar("T")


def spared(items: Iterable[T], every: int = 2**14) -> Iterator[T]:
    """Yield items, after so many of which what has been made stays out of the collector's sight until the last.

    A full collection, of which there is one for each quarter that is added, looks at all objects there are: a third of
    the time that a million records take. Records are in no cycles, and what is made after them is still collected.
    """
    try:
        for number, item in enumerate(items, start=1):
            yield item
            if number % every == 0:
                gc.freeze()
    finally:
        gc.unfreeze()
