"""The training loop: it yields events and has no other effect, no printing, no files, no clock."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial

from torch import Tensor

from veneer.adapter.inject import inject
from veneer.adapter.protocol import AdapterSpec
from veneer.adapter.registry import specs_of
from veneer.adapter.targets import BlockCoverage
from veneer.config.schema import RunConfig
from veneer.data.augment import draws_differ
from veneer.data.buckets import Buckets
from veneer.data.clip_frames import draws_begin_anywhere
from veneer.data.loader import DrawSchedule
from veneer.data.manifest import Manifest
from veneer.data.preflight import Dataset, read_prior
from veneer.engine.block_offload import ON_DEVICE, BlockOffload, find_offload, offload_blocks
from veneer.engine.cuda_graph import GraphedBackward
from veneer.engine.memory_levels import prepare
from veneer.engine.precision import Precision, precision_of
from veneer.engine.quantized import check_quantization
from veneer.errors import UserError
from veneer.family.cache import Encoder, store_of
from veneer.family.protocol import Family, device_of
from veneer.family.references import check_references
from veneer.family.store import has_old_layout
from veneer.family.unread import caption_places, unread_notes
from veneer.objective.loss import Objective
from veneer.train.batches import BatchBuilder
from veneer.train.distributed import ALONE, ProcessGroup
from veneer.train.ema import ExponentialMovingAverage
from veneer.train.events import (
    CheckpointDue,
    EncodingProgress,
    EvaluationDue,
    Event,
    Finished,
    SampleDue,
    StepDone,
    StepSkipped,
    Stopped,
    TrainingStarted,
    Warned,
)
from veneer.train.optim import optimizer_for, rate_factor, set_rates
from veneer.train.state import restore, snapshot
from veneer.train.step import StepContext, add_gradients, train_step
from veneer.weights.training_adapter import TrainingAdapter

__all__ = ["Trainer", "batch_builder", "graphs_for", "train"]

_MOST_GRAPHS = 40
"""Sizes of pictures of which each gets a CUDA graph, each some MB of the driver's: more than one resolution has."""


def train(config: RunConfig, family: Family, dataset: Dataset) -> Generator[Event, None, None]:
    """Train an adapter from nothing, event by event; the base has its bits back when the iterator ends or is closed.

    Args:
        config: the run.
        family: the base, on the device to train on. Mixed precision asks no cast of it, but a cast
            (``family.to(device, precision_of(...).dtype)``) halves the memory of its weights.
        dataset: from ``survey``.

    Raises:
        UserError: the config does not fit the base, the device or the pictures; ``NonFinite`` on the way.
    """
    trainer = Trainer(config, family, dataset)
    places = caption_places(dataset.train, dataset.held_out)
    try:
        for note in unread_notes(family.unread, places, trigger=config.data.trigger):
            yield Warned(**vars(note))
        yield from trainer.run()
    finally:
        trainer.close()


class Trainer:
    """An adapter in training: what ``train`` runs, with its state open to be saved and put back.

    Args:
        config: as for ``train``.
        family: as for ``train``.
        dataset: as for ``train``.
        processes: those that train together, each with a trainer of its own; all trainers do the same to the bit.

    Raises:
        UserError: as of ``train``; the base is as it was then.

    Attributes:
        processes: as above.
        injection: the adapter, live in the family's networks until ``close``.
        batches: builds the micro-batches of each step.
        context: what a step changes, and how.
        average: the adapter's average over its steps, if the config asks for one.
        steps_done: the step at which ``run`` goes on.
    """

    def __init__(self, config: RunConfig, family: Family, dataset: Dataset, processes: ProcessGroup = ALONE) -> None:
        processes.check_split(config.train)
        precision = precision_of(config.train.precision, device_of(family))
        self._config, self._family, self.steps_done, self.processes = config, family, 0, processes
        self._asked_to_stop = self._stopping = self._cache_failed = self._graphs_failed = False
        self._last_step = config.train.max_steps
        self._idle = _idle(config, family)
        self._objective = Objective.from_config(config.objective, family)
        self._specs = specs = specs_of(config.adapter, family)
        check_quantization({name: family.networks[name] for name in specs}, config.train.quantization)
        self.batches = batch_builder(config, family, dataset, self._objective, processes)
        self._training_adapter = TrainingAdapter(config.adapter, family.networks, family.denoiser)
        with ExitStack() as undoing:
            self._blocks = _offload_blocks(config, family, undoing)
            self._training_adapter.apply()
            undoing.callback(self._training_adapter.remove)
            self.injection = inject(family.networks, specs, config.seed)
            undoing.callback(self.injection.eject)
            self._parameters = dict(self.injection.named_parameters())
            self.average = ExponentialMovingAverage(self._parameters, config.train.ema_decay)
            self.context = self._make_context(precision, tuple(specs))
            for network in family.networks.values():
                undoing.callback(prepare(network, config.train.memory).undo)
            self._undoing = undoing.pop_all()

    def run(self) -> Generator[Event, None, None]:
        """Train to the end, event by event."""
        coverage = self.injection.block_coverage()
        yield TrainingStarted(self.steps_done, self._config.train.max_steps, coverage)
        for left_out in self._training_adapter.left_out:
            yield Warned("adapter.training_adapter_left_out", f"of {self._config.adapter.training_adapter} {left_out}")
        yield from _blocks_left_out(self._specs, coverage, self._family.denoiser)
        if self.steps_done == 0 and self._config.sample.every > 0:
            with self._training_adapter.removed():
                yield SampleDue(0)
        yield from self._old_cache_warning()
        yield from self._encode_ahead()
        yield from self._warnings()
        while not self._stops() and self.steps_done < self._last_step:
            yield from self._step()
            yield from self._warnings()
            yield from self._due()
        yield from self._end()

    def _step(self) -> Generator[Event, None, None]:
        rates = set_rates(self.context.optimizer, rate_factor(self._config.train, self.steps_done))
        self.offload()
        result = train_step(self.context, self.steps_done, self.batches.micro_batches(self.steps_done))
        self.steps_done += 1
        if result.skipped is None:
            self.average.update(self.steps_done)
        yield StepDone(self.steps_done, result.loss, result.prior_loss, rates, result.gradient_norm)
        if result.skipped is not None:
            yield StepSkipped(self.steps_done, *result.skipped)

    def _due(self) -> Generator[Event, None, None]:
        """Yield what is due after the step that was done; samples and scores are of the averaged adapter."""
        if _is_due(self._config.sample.every, self.steps_done):
            with self._at_rest(), self._training_adapter.removed():
                yield SampleDue(self.steps_done)
        if _is_due(self._config.validation.every, self.steps_done, last=self._config.train.max_steps):
            with self._at_rest():
                yield EvaluationDue(self.steps_done)
        if _is_due(self._config.train.checkpoint_every, self.steps_done, last=self._last_step):
            yield CheckpointDue(self.steps_done)

    @contextmanager
    def _at_rest(self) -> Iterator[None]:
        """Put the averaged adapter in place, with the memory of steps free for what is done with it."""
        if self.context.graphs is not None:
            self.context.graphs.release()
        with self.average.in_place():
            yield

    def stop(self) -> None:
        """Let ``run`` end after the step it is in, with a checkpoint and ``Stopped``; safe in a signal's handler.

        With several processes, all end after the same step, whichever was asked.
        """
        self._asked_to_stop = True

    def finish(self) -> None:
        """Let ``run`` end after the step it is in as after its last one, however many the config asks for."""
        self._last_step = self.steps_done

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that another trainer of the same config needs to go on to the same bits, fit for safetensors."""
        state = snapshot(self._parameters, self.context.optimizer, self.context.scaler, self.steps_done)
        return state | self.average.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on where ``state`` was taken.

        Raises:
            UserError: it is of another adapter or precision; nothing has been changed then.
        """
        self.average.check(state)
        self.steps_done = restore(state, self._parameters, self.context.optimizer, self.context.scaler)
        self.average.load(state)

    def offload(self) -> None:
        """Offload what no step needs; it comes back when it is called, or with ``close``."""
        self._family.offload(self._idle)

    def close(self) -> None:
        """Take the adapter out, so that the base is as it was, bit for bit; a second call does nothing."""
        if self.context.graphs is not None:
            self.context.graphs.release()
        self.batches.encoder.pixels.close()
        self._undoing.close()
        # what is read on demand comes back when it is called: where all that it makes is kept, nobody calls it
        self._family.offload([name for name in self._idle if name in self._family.on_demand])

    def _encode_ahead(self) -> Iterator[EncodingProgress]:
        """Encode all that the steps will need, each thing once, so that what encodes can be offloaded."""
        if self._idle:
            for progress in self.batches.encode_ahead(range(self.steps_done, self._last_step)):
                if progress.is_told:
                    yield progress
                if self._asked_to_stop:
                    return

    def _warnings(self) -> Iterator[Warned]:
        """Yield once what has turned out not to work, and the run does not need."""
        yield from self._cache_warning()
        yield from self._blocks_warning()
        graphs = self.context.graphs
        if graphs is not None and graphs.fault is not None and not self._graphs_failed:
            self._graphs_failed = True
            what = f"steps are slower than they could be, since no CUDA graph could be made of them: {graphs.fault}"
            yield Warned("train.no_cuda_graph", what)

    def _cache_warning(self) -> Iterator[Warned]:
        """Yield once that the cache on disk takes nothing more; the run does not need it."""
        fault = self.batches.encoder.store.fault
        if fault is not None and not self._cache_failed:
            self._cache_failed = True
            yield Warned("cache.not_written", f"nothing more is kept in data.cache for later runs: {fault}")

    def _old_cache_warning(self) -> Iterator[Warned]:
        """Yield that the cache on disk holds files which an older release wrote, and which are of no use any more."""
        folder = self._config.data.cache
        if folder is not None and has_old_layout(folder):
            what = f"{folder} has files of an older release, one for each picture, which are not read any more: what "
            what += "the run needs of them is encoded again (veneer data cache --prune removes them)"
            yield Warned("cache.old_layout", what)

    def _blocks_warning(self) -> Iterator[Warned]:
        """Yield once what keeps the offload of blocks from being of use."""
        blocks, self._blocks = self._blocks, None
        if blocks is None:
            return
        if device_of(self._family).type == "cpu":
            what = "train.offload_blocks frees no memory on the CPU and takes as much as the blocks have: use 0"
            yield Warned("train.offload_blocks_on_cpu", what)
        elif blocks.count <= ON_DEVICE:
            what = f"train.offload_blocks={blocks.count} frees nothing, for {ON_DEVICE} of them are always on the GPU"
            yield Warned("train.too_few_offloaded_blocks", what)
        if blocks.unpinned:
            what = f"the system pins no more memory, so {blocks.unpinned >> 20} MiB of offloaded blocks come slowly"
            yield Warned("train.unpinned_blocks", what)

    def _stops(self) -> bool:
        self._stopping = any(self.processes.all_gather(self._asked_to_stop))
        return self._stopping

    def _end(self) -> Iterator[Event]:
        if self._stopping:
            yield CheckpointDue(self.steps_done)
            yield Stopped(self.steps_done)
        else:
            with self._at_rest():
                weights = self.injection.weights()
            yield Finished(self.steps_done, weights)

    def _make_context(self, precision: Precision, learning: tuple[str, ...]) -> StepContext:
        config, family = self._config, self._family
        groups = {name: self.injection.by_network(name) for name in learning}
        context = StepContext(
            family=family,
            objective=self._objective,
            parameters=list(self._parameters.values()),
            optimizer=optimizer_for(config, groups, family.denoiser),
            precision=precision,
            scaler=precision.scaler(),
            max_grad_norm=config.train.max_grad_norm,
            seed=config.seed,
            skips_nonfinite=config.train.on_nonfinite == "skip",
            processes=self.processes,
            meanwhile=lambda step: self.batches.build_ahead(step + 1),
        )
        return replace(context, graphs=graphs_for(config, context, len(self.batches.own.members)))


def _blocks_left_out(
    specs: Mapping[str, AdapterSpec], coverage: Mapping[str, BlockCoverage], denoiser: str
) -> Iterator[Warned]:
    """Yield a warning of each network that has blocks without an adapter, though neither config nor base names blocks.

    Names that reach every block of one model may well reach a fifth of another's.
    """
    for network, blocks in coverage.items():
        if blocks.left_out and not specs[network].blocks:
            place = "adapter" if network == denoiser else f"adapter.text_encoders.{network}"
            text = f"the adapter reaches {blocks.touched} of {blocks.total} blocks of the {network}, none of "
            text += f"{', '.join(blocks.left_out)}; set {place}.target_modules to attention, or name {place}.blocks"
            yield Warned("adapter.blocks_left_out", text)


def graphs_for(config: RunConfig, context: StepContext, sizes: int) -> GraphedBackward | None:
    """Return what does passes as CUDA graphs, where it can be.

    Args:
        config: the run.
        context: of its steps.
        sizes: that pictures are cut to, of which each has a graph of its own.
    """
    adapter = config.adapter
    draws = adapter.dropout > 0  # which a graph would do with the same numbers each time
    moves = config.train.offload_blocks > 0  # a graph would read where the weights lay when it was recorded
    if (
        not config.train.cuda_graphs
        or draws
        or moves
        or sizes > _MOST_GRAPHS
        or adapter.text_encoders
        or device_of(context.family).type != "cuda"
    ):
        return None
    return GraphedBackward(partial(add_gradients, context), context.parameters)


def _offload_blocks(config: RunConfig, family: Family, undoing: ExitStack) -> BlockOffload | None:
    """Return the handle of the denoiser's offloaded blocks, which they are from now on if they were not; None: none."""
    denoiser, wanted = family.networks[family.denoiser], config.train.offload_blocks
    found = find_offload(denoiser)
    if wanted and config.adapter.method == "dora":
        what = "is not for DoRA, whose magnitudes are made of all weights before the first step"
        remedy = "use adapter.method=lora, or 0"
        raise UserError(what, code="train.offload_blocks_with_dora", where="train.offload_blocks", remedy=remedy)
    if found is not None and found.count != wanted:
        what = f"is {wanted}, but the base was loaded with {found.count}"
        remedy = f"load_base(..., offload_blocks={wanted})"
        raise UserError(what, code="train.other_offload_blocks", where="train.offload_blocks", remedy=remedy)
    if not wanted or found is not None:
        return found
    handle = offload_blocks(denoiser, wanted)
    undoing.callback(handle.undo)
    return handle


def _idle(config: RunConfig, family: Family) -> tuple[str, ...]:
    """Return the parts of the base that no step needs once pictures and captions are encoded."""
    if not config.train.offload:
        return ()
    differ = draws_differ(config.data)
    encodes = differ or draws_begin_anywhere(config.data)
    reads = config.adapter.text_encoders or (differ and family.text_reads_references)
    return (*(() if encodes else ("autoencoder",)), *(() if reads else family.text_encoders))


def _is_due(every: int, step: int, last: int | None = None) -> bool:
    """Check whether something is due after ``step`` that is so every ``every`` steps and after ``last``; 0 is never."""
    return every > 0 and (step % every == 0 or step == last)


def batch_builder(
    config: RunConfig, family: Family, dataset: Dataset, objective: Objective, processes: ProcessGroup
) -> BatchBuilder:
    """Return what builds the micro-batches of a run.

    Raises:
        UserError: the pictures do not fit the base, or those of the class are missing.
    """
    buckets = Buckets.of(config.data, family)
    if dataset.train.samples:
        check_references(family, dataset.train.references, config.data.sources[0].path)
    encoder = Encoder(family, config.data, config.seed, store_of(config, family))
    own, class_pictures = DrawSchedule.of(dataset.train, buckets, config), _prior(config)
    prior = None if class_pictures is None else DrawSchedule.of(class_pictures, buckets, config)
    return BatchBuilder(config, objective, encoder, own, prior, device_of(family), processes)


def _prior(config: RunConfig) -> Manifest | None:
    """Return the pictures of the class, where the config asks for them."""
    if config.data.prior is None:
        return None
    manifest = read_prior(config)
    if not manifest.samples:
        where = config.data.prior.path or config.output.dir / "prior"
        remedy = "let the base paint some first"
        raise UserError("no picture of the class is here", code="data.no_prior", where=where, remedy=remedy)
    return manifest
