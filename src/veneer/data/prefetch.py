"""Load pictures ahead of their use, in threads or processes, so that nothing waits for their decoding.

What is loaded depends on the request alone, never on who loads it or when. A request that a worker failed at is loaded
again where it is needed, which then raises its error there, as if there were no workers.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.connection import wait
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from veneer.config.data_config import DataConfig
from veneer.data.buckets import Size
from veneer.data.clip_frames import FrameSpan
from veneer.data.manifest import Sample
from veneer.data.transform import load_centered, load_centered_references, load_pixels, load_references

__all__ = ["PixelLoader", "PixelRequest"]


class PixelRequest(NamedTuple):
    """What of a sample is to be loaded.

    Attributes:
        part: the sample's own picture, or its references.
        sample: which sample.
        size: height and width that it is cut to.
        draw_index: the draw that it is for; None: nothing is random about it.
        span: of a clip, which frames; None: it is a picture, or the request is for references.
    """

    part: Literal["picture", "references"]
    sample: Sample
    size: Size
    draw_index: int | None
    span: FrameSpan | None = None


class PixelLoader:
    """Loads pictures, those that it was told to expect in workers.

    Args:
        config: what is done to pictures, and the workers.
        seed: of what is random about a draw.
    """

    def __init__(self, config: DataConfig, seed: int) -> None:
        self._config, self._seed = config, seed
        self._pool: Executor | None = None
        self._begun: dict[PixelRequest, Future[tuple[Tensor, ...]]] = {}

    @property
    def ahead(self) -> int:
        """How many pictures it is worth to expect where one is needed after the other."""
        return 2 * self._config.workers

    def expect(self, requests: Sequence[PixelRequest]) -> None:
        """Begin to load what will be needed; what was begun and is not among it is dropped.

        So what is held is never more than was expected last.
        """
        if self._config.workers:
            wanted = dict.fromkeys(requests)
            for request in [begun for begun in self._begun if begun not in wanted]:
                self._begun.pop(request).cancel()
            for request in wanted:
                if request not in self._begun:
                    self._begin(request)

    def load(self, request: PixelRequest) -> tuple[Tensor, ...]:
        """Return each picture of a request, float32 (3, H, W) in [-1, 1]; waits for it if it was expected.

        Of a clip of several frames it is (3, T, H, W).

        Raises:
            UserError: a picture has changed, or cannot be read any more.
        """
        begun = self._begun.pop(request, None)
        pixels = None if begun is None else self._result(begun)
        return _load(request, self._config, self._seed) if pixels is None else pixels

    def close(self) -> None:
        """Let the workers go; a second call does nothing, and what is expected later has new ones."""
        pool, self._pool = self._pool, None
        self._begun.clear()
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    def _begin(self, request: PixelRequest) -> None:
        if self._pool is None:
            self._pool = _POOLS[self._config.worker_type](self._config.workers)
        try:
            self._begun[request] = self._pool.submit(_load, request, self._config, self._seed)
        except RuntimeError:  # a worker process was killed, which broke the pool
            self.close()

    def _result(self, begun: Future[tuple[Tensor, ...]]) -> tuple[Tensor, ...] | None:
        """Return what a worker has loaded; None: it failed."""
        try:
            return begun.result()
        except (Exception, CancelledError):
            return None


def _load(request: PixelRequest, config: DataConfig, seed: int) -> tuple[Tensor, ...]:
    part, sample, size, draw, span = request
    if draw is None:
        is_picture = part == "picture"
        return (
            (load_centered(sample, config, size, span),)
            if is_picture
            else load_centered_references(sample, config, size)
        )
    if part == "picture":
        return (load_pixels(sample, config, size, seed, draw, span),)
    return load_references(sample, config, size, seed, draw)


def _threads(count: int) -> Executor:
    # in a thread they cannot be ignored for as long as a picture is decoded
    warnings.filterwarnings("ignore", module=r"PIL\.")
    return ThreadPoolExecutor(count, thread_name_prefix="pictures")


def _processes(count: int) -> Executor:
    # not forked: the process has threads, and a GPU that a fork may not touch
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _serve, (torch.get_num_threads(),))


def _serve(threads: int) -> None:
    """Begin the life of a worker process: signals are for the process that it works for, with which it ends.

    Args:
        threads: of that process, by which PyTorch parts its sums.
    """
    torch.set_num_threads(threads)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(0)


_POOLS: dict[str, Callable[[int], Executor]] = {"thread": _threads, "process": _processes}
