"""Do something to many things in threads, with results in order, as if it were done to one after another."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["map_in_order", "worker_count"]

T = TypeVar("T")
R = TypeVar("R")

_MOST = 16  # decoding is bound by the disk beyond
_AHEAD = 2  # results that wait, for each worker


def worker_count() -> int:
    """Return how many threads pictures are decoded in: as many as this process may run on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, _MOST))


def map_in_order(
    function: Callable[[T], R], items: Iterable[T], workers: int | None = None
) -> Generator[R, None, None]:
    """Yield the function's result for each item, in the items' order; what is not begun when it ends is not done.

    Args:
        function: is called in threads.
        items: are taken when their turn is near, so that few results are held.
        workers: how many threads; default: :func:`worker_count`.
    """
    count = workers or worker_count()
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(count, thread_name_prefix="pictures")
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= count * _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
