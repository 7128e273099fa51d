"""Encode all that a run will need into its cache, and look after the cache, without training."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from veneer.config.load import resolve
from veneer.config.schema import RunConfig
from veneer.data.buckets import Buckets
from veneer.data.preflight import Dataset, survey
from veneer.errors import UserError
from veneer.evaluate.heldout import pictures_by_kind
from veneer.family.cache import Encoder
from veneer.family.loading import load_run_base
from veneer.family.prompt_cache import PromptCache
from veneer.family.protocol import Family
from veneer.family.store import Store
from veneer.family.store_prune import BaseUsage, Keep, Pruned, newest_within, prune, usage
from veneer.family.store_shard import Tensors
from veneer.objective.loss import Objective
from veneer.sample.comparison import open_references, sample_prompts
from veneer.sample.generate import prompt_calls
from veneer.train.batches import BatchBuilder, EncodingCall
from veneer.train.distributed import ALONE
from veneer.train.events import EncodingProgress
from veneer.train.loop import batch_builder

__all__ = ["CacheFilled", "cache_of", "cache_usage", "fill_cache", "prune_cache"]

_DAY = 24 * 3600


@dataclass(frozen=True)
class CacheFilled:
    """What a run will need is in its cache.

    Attributes:
        total: pictures, each cut and side of one counted, captions, and batches of prompts that are painted.
        found: how many of them were there already.
        computed: how many were encoded and written.
        folder: the cache.
    """

    total: int
    found: int
    computed: int
    folder: Path


def cache_of(config: RunConfig) -> Path:
    """Return the folder of a run's cache.

    Raises:
        UserError: the run keeps none.
    """
    if config.data.cache is None:
        what = "is not set, so there is no folder that keeps anything"
        raise UserError(what, code="cache.no_folder", where="data.cache", remedy="set it: data.cache=FOLDER")
    return config.data.cache


def fill_cache(config: RunConfig, emit: Callable[[EncodingProgress], None]) -> CacheFilled:
    """Encode all that a run will need and that is not there yet; a stop at any time loses nothing of it.

    Args:
        config: the run.
        emit: is called with the progress.

    Raises:
        UserError: the run would be refused, or the cache cannot be written to, or has no room for all.
    """
    folder, run = cache_of(config), _EncodedRun.of(config)
    calls = run.calls()
    _check_room(calls, run.store, folder)
    for progress in run.batches.encode(calls):
        emit(progress)
        _check_stored(run.store)
    return CacheFilled(len(calls), len(calls) - run.store.computed, run.store.computed, folder)


def _check_room(calls: Sequence[EncodingCall], store: Store, folder: Path) -> None:
    """Refuse to encode what the disk has no room for, told by the first entry of each kind that is encoded.

    Latents are as large as the pictures' area is; where that is not known, an entry counts as large as the first one.

    Raises:
        UserError: there is no room.
    """
    missing: dict[str, list[EncodingCall]] = {}
    for call in calls:
        if call.key is not None and not store.holds(call.key):
            missing.setdefault(str(call.key[0]), []).append(call)
    needed = 0.0
    for several in missing.values():
        first, *others = several
        first()
        _check_stored(store)
        assert first.key is not None
        needed += store.size_of(first.key) * sum(_times_as_large(call, first) for call in others)
    free = shutil.disk_usage(folder).free if missing else 0
    if needed > free:
        what = f"needs about {needed / 1e9:.3g} GB more, and {free / 1e9:.3g} GB are free"
        remedy = "make room (veneer data cache --prune removes what is not needed), or name another: data.cache=FOLDER"
        raise UserError(what, code="cache.no_room", where=folder, remedy=remedy)


def _times_as_large(call: EncodingCall, first: EncodingCall) -> float:
    return 1.0 if call.pixels is None or first.pixels is None else call.pixels / first.pixels


def _check_stored(store: Store) -> None:
    if store.fault is not None:
        raise store.fault


def cache_usage(config: RunConfig) -> list[BaseUsage]:
    """Return what a run's cache holds, of each base.

    Raises:
        UserError: the run keeps none.
    """
    return usage(cache_of(config))


def prune_cache(
    configs: Sequence[RunConfig], *, unused: bool, older: float | None = None, most: int | None = None
) -> Pruned:
    """Remove what is not wanted from the cache of the first of some runs.

    Args:
        configs: the runs; those behind the first may name no cache, or another.
        unused: whether what none of them needs goes, and files of an older release's layout.
        older: days after which an entry goes; None: never.
        most: bytes that may stay, those written last; None: any number.

    Raises:
        UserError: a run would be refused, keeps no cache, or the folder cannot be written to.
    """
    folder = cache_of(configs[0])
    keeps: list[Keep] = []
    if unused:
        needed = {key for config in configs for key in _needed(_with_cache(config, folder))}
        keeps.append(lambda name, entry: (name, entry.digest) in needed)
    if older is not None:
        oldest = time.time() - older * _DAY
        keeps.append(lambda _, entry: entry.written >= oldest)
    if most is not None:
        keeps.append(newest_within(folder, most))
    try:
        return prune(folder, lambda name, entry: all(keep(name, entry) for keep in keeps), old_layout=unused)
    except OSError as error:
        what = f"cannot be pruned: {error.strerror or error}"
        raise UserError(what, code="cache.not_pruned", where=folder) from error


def _with_cache(config: RunConfig, folder: Path) -> RunConfig:
    return config.model_copy(update={"data": config.data.model_copy(update={"cache": folder})})


def _needed(config: RunConfig) -> set[tuple[str, bytes]]:
    """Return the base's folder and the digest of each entry that a run reads."""
    run = _EncodedRun.of(config)
    asked = _AskedStore(run.store)
    run.encoder.store = asked
    for call in run.calls():
        if call.key is not None:
            asked.digests.add(run.store.digest(call.key))
        else:
            with suppress(_Missing):
                call()
    return {(run.store.folder.name, digest) for digest in asked.digests}


class _Missing(Exception):
    """Something is not stored, and it is not worth while to compute it."""


class _AskedStore:
    """Reads a store, and computes nothing.

    Attributes:
        digests: of all that it was asked for.
        fault: none.
    """

    fault: UserError | None = None

    def __init__(self, store: Store) -> None:
        self._store = store
        self.digests: set[bytes] = set()

    def get_or_compute(self, key: tuple[object, ...], compute: Callable[[], Tensors]) -> Tensors:
        """Return the tensors that are stored under a key.

        Raises:
            _Missing: there are none.
        """
        self.digests.add(self._store.digest(key))
        if not self._store.holds(key):
            raise _Missing
        return self._store.get_or_compute(key, compute)

    def holds(self, key: tuple[object, ...]) -> bool:
        """Check whether tensors are stored under a key."""
        return self._store.holds(key)


@dataclass(frozen=True)
class _EncodedRun:
    """A run as far as it encodes.

    Attributes:
        config: resolved.
        family: its base.
        dataset: its pictures.
        batches: builds its batches.
        store: its cache.
        buckets: the sizes of its pictures.
    """

    config: RunConfig
    family: Family
    dataset: Dataset
    batches: BatchBuilder
    store: Store
    buckets: Buckets

    @classmethod
    def of(cls, config: RunConfig) -> _EncodedRun:
        """Read the pictures and load the base of a run.

        Raises:
            UserError: the run would be refused.
        """
        dataset, family = survey(config.data), load_run_base(config)
        config = resolve(config, family)
        objective = Objective.from_config(config.objective, family)
        batches = batch_builder(config, family, dataset, objective, ALONE)
        store = batches.encoder.store
        assert isinstance(store, Store), "the config names a folder"
        return cls(config, family, dataset, batches, store, Buckets.of(config.data, family))

    @property
    def encoder(self) -> Encoder:
        """What encodes."""
        return self.batches.encoder

    def calls(self) -> list[EncodingCall]:
        """Return calls that encode all that the run needs, each thing once."""
        steps = self.batches.encoding_calls(range(self.config.train.max_steps))
        keyed = {call.key: call for call in (*steps, *self._measured_calls()) if call.key is not None}
        return [*keyed.values(), *(call for call in steps if call.key is None), *self._painted_calls()]

    def _measured_calls(self) -> Iterator[EncodingCall]:
        """Yield calls for what the run measures on: pictures with nothing random, and their first captions."""
        encoder = self.encoder
        for sample in (each for kind in pictures_by_kind(self.config, self.dataset).values() for each in kind.samples):
            size, span = self.buckets.largest(sample.width, sample.height), self.buckets.clips.centered(sample)
            picture, references, text = encoder.centered_keys(sample, size, span)
            yield EncodingCall(picture, None, partial(encoder.centered, sample, size, span))
            if sample.references:
                yield EncodingCall(references, None, partial(encoder.centered_references, sample, size))
            if not self.config.adapter.text_encoders:
                yield EncodingCall(text, None, partial(encoder.centered_text, sample, size))

    def _painted_calls(self) -> Iterator[EncodingCall]:
        """Yield calls for the prompts that the run paints; under which key they are kept their pipeline knows."""
        if self.config.adapter.text_encoders or not self.family.encodes_prompts_apart:
            return
        subjects, background = sample_prompts(self.config, self.dataset), self.config.data.background
        references, own = open_references(subjects.references, background), self.config.sample
        cache = PromptCache(self.family, self.encoder.store)
        for call in prompt_calls(
            cache, subjects.prompts, frames=own.frames, guidance=own.guidance, references=references
        ):
            yield EncodingCall(None, None, call)
