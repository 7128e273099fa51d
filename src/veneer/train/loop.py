"""The training loop. It yields events and does nothing else to the world: no printing, no files, no clock."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from types import MappingProxyType

from torch import Tensor

from veneer.adapter.inject import inject
from veneer.config.schema import RunConfig
from veneer.data.manifest import Manifest
from veneer.data.preflight import Dataset, read_prior
from veneer.engine.precision import Precision, device_of, precision_of, recompute_blocks
from veneer.errors import UserError
from veneer.family.base import Family
from veneer.family.cache import Encoder
from veneer.objective.loss import Objective
from veneer.plan.account import account, specs_of
from veneer.train.events import CheckpointDue, Event, Finished, Planned, SampleDue, StepDone, Stopped, Warned
from veneer.train.feed import Feed
from veneer.train.optim import optimizer_for, rate_factor, set_rates
from veneer.train.state import restore, snapshot
from veneer.train.step import Learner, train_step

__all__ = ["Trainer", "train"]

_NO_METADATA: Mapping[str, str] = MappingProxyType({})


def train(
    config: RunConfig, family: Family, dataset: Dataset, metadata: Mapping[str, str] = _NO_METADATA
) -> Generator[Event, None, None]:
    """Train an adapter from nothing, event by event; the base has its bits back when the iterator ends or is closed.

    Args:
        config: the run.
        family: the base, on the device to train on. Mixed precision asks no cast of it, but a cast
            (``family.to(device, precision_of(...).dtype)``) halves the memory of its weights.
        dataset: from ``survey``.
        metadata: what the adapter file will tell; the plan counts its bytes.

    Raises:
        UserError: the config does not fit the base, the device or the pictures; ``NonFinite`` on the way.
    """
    trainer = Trainer(config, family, dataset)
    try:
        yield from trainer.run(metadata)
    finally:
        trainer.close()


class Trainer:
    """An adapter in training: what ``train`` runs, with its state open to be saved and put back.

    Attributes:
        injection: the adapter, live in the family's networks until ``close``.
        feed: the pictures by step.
        learner: what a step changes.
        steps_done: where ``run`` goes on.
    """

    def __init__(self, config: RunConfig, family: Family, dataset: Dataset) -> None:
        precision = precision_of(config.train.precision, device_of(family))
        self._config, self._family, self.steps_done = config, family, 0
        self._stopping = False
        self._objective = Objective.from_config(config.objective, family.noise)
        self.feed = _feed(config, family, dataset, self._objective)
        self.injection = inject(family.networks, specs_of(config.adapter), config.seed)
        self._parameters = dict(self.injection.named_parameters())
        self.learner = self._make_learner(precision)
        if config.train.memory == "checkpoint":
            recompute_blocks(family.networks, True)

    def run(self, metadata: Mapping[str, str] = _NO_METADATA) -> Iterator[Event]:
        """Train to the end, event by event; ``metadata`` is what the file will tell, for the plan to count."""
        config, steps = self._config.train, self._config.train.steps
        yield Planned(account(self._family.networks, self.injection, metadata), self.steps_done, steps)
        while self.steps_done < steps and not self._stopping:
            rates = set_rates(self.learner.optimizer, rate_factor(config, self.steps_done))
            result = train_step(self.learner, self.steps_done, self.feed.micros(self.steps_done))
            self.steps_done += 1
            yield StepDone(self.steps_done, result.loss, result.prior_loss, rates, result.gradient_norm)
            if result.skipped is not None:
                yield Warned(f"step {self.steps_done} changed nothing: {result.skipped}")
            if _is_due(self._config.sample.every, self.steps_done):
                yield SampleDue(self.steps_done)
            if _is_due(config.checkpoint_every, self.steps_done, last=steps):
                yield CheckpointDue(self.steps_done)
        yield from self._end()

    def stop(self) -> None:
        """Let ``run`` end after the step it is in, with a checkpoint and ``Stopped``; safe in a signal's handler."""
        self._stopping = True

    def state_dict(self) -> dict[str, Tensor]:
        """All that another trainer of the same config needs to go on to the same bits, fit for safetensors."""
        return snapshot(self._parameters, self.learner.optimizer, self.learner.scaler, self.steps_done)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on where ``state`` was taken.

        Raises:
            UserError: it is of another adapter or precision; nothing has been changed then.
        """
        self.steps_done = restore(state, self._parameters, self.learner.optimizer, self.learner.scaler)

    def close(self) -> None:
        """Take the adapter out: the base as it was, bit for bit. A second call does nothing."""
        if self._config.train.memory == "checkpoint":
            recompute_blocks(self._family.networks, False)
        self.injection.eject()

    def _end(self) -> Iterator[Event]:
        if self._stopping:
            yield CheckpointDue(self.steps_done)
            yield Stopped(self.steps_done)
        else:
            yield Finished(self.steps_done, self.injection.factors())

    def _make_learner(self, precision: Precision) -> Learner:
        config, family = self._config, self._family
        groups = {prefix: self.injection.by_network(prefix) for prefix in specs_of(config.adapter)}
        return Learner(
            networks=family.networks,
            predict=family.predict,
            encode_text=family.encode_text,
            objective=self._objective,
            parameters=list(self._parameters.values()),
            optimizer=optimizer_for(config, groups),
            precision=precision,
            scaler=precision.scaler(),
            max_grad_norm=config.train.max_grad_norm,
            seed=config.seed,
            skips_nonfinite=config.train.on_nonfinite == "skip",
        )


def _is_due(every: int, step: int, last: int | None = None) -> bool:
    """Whether what comes every so many steps, and after the ``last`` one, comes after ``step``; 0 is never."""
    return every > 0 and (step % every == 0 or step == last)


def _feed(config: RunConfig, family: Family, dataset: Dataset, objective: Objective) -> Feed:
    resolution = config.data.resolution or family.resolution
    if resolution % family.multiple:
        near = max(1, round(resolution / family.multiple)) * family.multiple
        what = f"{resolution} is not a multiple of {family.multiple}, which the base needs"
        raise UserError(what, where="data.resolution", remedy=f"use {near}")
    encoder = Encoder(family, config.data, resolution, config.seed)
    return Feed(config, objective, encoder, dataset.train, _prior(config), device_of(family))


def _prior(config: RunConfig) -> Manifest | None:
    """The pictures of the class, where the config asks for them."""
    if config.data.prior is None:
        return None
    manifest = read_prior(config)
    if not manifest.samples:
        where = config.data.prior.path or config.output / "prior"
        raise UserError("no picture of the class is here", where=where, remedy="let the base paint some first")
    return manifest
