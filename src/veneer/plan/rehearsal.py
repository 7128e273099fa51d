"""The plan of a run: its step, and all else that it does with a network, done on tensors that have no numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from types import MappingProxyType
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from veneer.adapter.applied import applied
from veneer.config.load import resolve
from veneer.config.schema import RunConfig
from veneer.data.manifest import Manifest
from veneer.data.preflight import Dataset
from veneer.data.sources.registry import read_source
from veneer.data.transform import Geometry
from veneer.engine.precision import precision_of
from veneer.family.loading import hold
from veneer.family.protocol import Conditioning, Family, device_of
from veneer.objective.loss import Objective
from veneer.plan.account import Course, Disk, Plan, account
from veneer.plan.cpu.process import grown, loaded
from veneer.plan.machine import free_memory, process_memory
from veneer.plan.memory import ENCODING, LOADING, STEP, Memory, Phase
from veneer.plan.remedies import Remedy, remedies, verdict
from veneer.plan.sketch import sketch
from veneer.plan.stored import stored
from veneer.plan.tracer import MemoryTracer
from veneer.train.events import Warned
from veneer.train.loop import Trainer
from veneer.train.step import MicroBatch, train_step
from veneer.weights.safetensors import encoded_bytes

__all__ = ["Outlook", "Pictures", "Sketch", "foresee", "look_ahead", "make_plan", "plan_run", "rehearse"]

Sketch = Callable[[MemoryTracer], Family]
"""Makes a base whose tensors have no numbers, entered in the ledger."""

_NO_METADATA: Mapping[str, str] = MappingProxyType({})
_NOBODY = Dataset(Manifest(), Manifest())
_PAINTED_AT_ONCE = 8


@dataclass(frozen=True)
class Pictures:
    """How many pictures and texts a run keeps, once encoded.

    Attributes:
        shown: by an epoch, each as often as it repeats.
        distinct: pictures, those of the class and those held out among them.
        captions: distinct ones.
    """

    shown: int
    distinct: int
    captions: int

    @classmethod
    def of(cls, dataset: Dataset, config: RunConfig) -> Pictures:
        """Those of a run whose pictures were looked over."""
        own, prior = dataset.train.samples, config.data.prior
        captions = {caption for sample in own for caption in sample.captions}
        captions |= {sample.captions[0] for sample in dataset.held_out.samples}
        class_pictures, class_captions = (0, 0) if prior is None else (prior.count, 1)
        dropped = 1 if config.data.caption_dropout else 0
        distinct = len(own) + len(dataset.held_out.samples) + class_pictures
        shown = sum(sample.repeats for sample in own)
        return cls(shown, distinct, len(captions) + class_captions + dropped)

    @classmethod
    def listed(cls, config: RunConfig) -> Pictures:
        """Those that the folders of a run list; nobody has looked at them, so there may be a few less.

        Raises:
            UserError: a folder, or what is said in it, is at fault.
        """
        data = config.data
        entries = [entry for source in data.sources for entry in read_source(source, data.trigger).entries]
        share = data.held_out if isinstance(data.held_out, float) else 0.0
        class_pictures, class_captions = (0, 0) if data.prior is None else (data.prior.count, 1)
        captions = {caption for entry in entries for caption in entry.captions}
        dropped = 1 if data.caption_dropout else 0
        shown = round(sum(entry.repeats for entry in entries) * (1 - share))
        return cls(shown, len(entries) + class_pictures, len(captions) + class_captions + dropped)


_Asked = tuple[str, int, "Pictures | None", frozenset[tuple[str, str]]]
_KNOWN: WeakKeyDictionary[Family, dict[_Asked, Plan]] = WeakKeyDictionary()
"""Plans of the bases that are loaded: a rehearsal takes seconds, and remedies and later runs ask for the same ones."""


def plan_run(
    config: RunConfig, family: Family, dataset: Dataset | None = None, metadata: Mapping[str, str] = _NO_METADATA
) -> Plan:
    """The plan of a run on a base that is loaded; the base is not touched.

    Args:
        config: the run.
        family: its base.
        dataset: its pictures, if they were looked over.
        metadata: what will be told in the adapter's file.

    Raises:
        UserError: the config does not fit the base.
    """
    pictures = None if dataset is None else Pictures.of(dataset, config)
    known = _KNOWN.setdefault(family, {})
    weights = sum(tensor.nbytes for network in family.networks.values() for tensor in _tensors(network))
    asked = (config.model_dump_json(exclude={"output"}), weights, pictures, frozenset(metadata.items()))
    if asked not in known:
        device = device_of(family)
        known[asked] = rehearse(config, lambda tracer: tracer.without_numbers(family), device, pictures, metadata)
    return known[asked]


def rehearse(
    config: RunConfig,
    sketch: Sketch,
    device: torch.device,
    pictures: Pictures | None,
    metadata: Mapping[str, str] = _NO_METADATA,
) -> Plan:
    """The plan of a run, found by doing one of each thing that it does.

    Args:
        config: the run.
        sketch: makes its base.
        device: where it is to be.
        pictures: how many there are; None: it is not known.
        metadata: what will be told in the adapter's file.

    Raises:
        UserError: the config does not fit the base.
    """
    tracer = MemoryTracer(device)
    tracer.phase(LOADING)
    family = sketch(tracer)
    hold(family, config)
    for name, network in family.networks.items():
        tracer.claim(f"weights: {name}", _tensors(network))
    tracer.claim_rest("weights: autoencoder")
    modules = _modules(family)
    config = resolve(config, family)
    rehearsal = _Rehearsal(tracer, family, config)
    with tracer.open(), closing(rehearsal.trainer()) as trainer:
        rehearsal.encode(pictures)
        rehearsal.step(trainer)
        injection = trainer.injection
        adapted = _modules(family)
        counted = account(family.networks, injection, metadata)
        disk = _disk(config, encoded_bytes(trainer.state_dict(), {}), counted.file_bytes)
        rehearsal.conclude(trainer)
    phases = _phases(tracer, _growth(tracer, config.base, modules, adapted))
    memory = Memory(device.type, phases, rehearsal.caches)
    train = config.train
    course = Course(
        train.max_steps, train.batch_size, train.gradient_accumulation_steps, pictures.shown if pictures else None
    )
    return replace(counted, memory=memory, course=course, disk=disk)


def _disk(config: RunConfig, state: int, file: int) -> Disk:
    """With scores on the way there is the best adapter as well: in a file, and in each checkpoint."""
    best = file if config.validation.every else 0
    return Disk(state + best, config.train.keep_checkpoints, file + best)


def _modules(family: Family) -> int:
    return sum(1 for network in family.networks.values() for _ in network.modules())


def _growth(tracer: MemoryTracer, base: str, modules: int, adapted: int) -> Mapping[str, int]:
    """What the process grows by in each phase, by its name; nothing where another device has the tensors."""
    if tracer.device.type != "cpu":
        return {}
    return grown(tracer.trace, stored(base, tracer.loaded), modules, adapted)


def _phases(tracer: MemoryTracer, growth: Mapping[str, int]) -> tuple[Phase, ...]:
    moments = tracer.moments().items()
    return tuple(Phase(name, at.total, _largest_first(at.parts), growth.get(name)) for name, at in moments)


def _tensors(network: nn.Module) -> Iterable[Tensor]:
    return chain(network.parameters(), network.buffers())


def _largest_first(parts: Mapping[str, int]) -> Mapping[str, int]:
    return MappingProxyType(dict(sorted(parts.items(), key=lambda part: -part[1])))


class _Rehearsal:
    """What a run does, each thing once.

    Args:
        ledger: keeps the account; it is open but while this is made.
        family: without numbers.
        config: the resolved one.

    Attributes:
        caches: bytes of encoded pictures and texts; None: their number is not known.
    """

    def __init__(self, tracer: MemoryTracer, family: Family, config: RunConfig) -> None:
        self._tracer, self._family, self._config = tracer, family, config
        self._pictures = config.train.batch_size * (1 if config.data.prior is None else 2)
        # it has numbers, for it is asked which pictures are which
        self._is_prior_B = torch.zeros(self._pictures, dtype=torch.bool)
        self._side = config.data.resolution or family.resolution
        self._latent_CHW = torch.Size()
        self._text = Conditioning({})
        self._kept: list[Tensor] = []
        self.caches: int | None = None

    def trainer(self) -> Trainer:
        """A trainer after its first step, from which on the optimiser has its moments."""
        # pictures of the class are only counted, which needs none of them on the disk
        data = self._config.data.model_copy(update={"prior": None})
        trainer = Trainer(self._config.model_copy(update={"data": data}), self._family, _NOBODY)
        self._tracer.claim("adapter", trainer.injection.parameters())
        context = trainer.context
        for parameter in context.parameters:
            parameter.grad = torch.zeros_like(parameter)
            parameter.register_post_accumulate_grad_hook(self._claim_gradient)
        context.optimizer.step()
        context.optimizer.zero_grad(set_to_none=True)
        self._tracer.claim_rest("optimiser state")
        return trainer

    def _claim_gradient(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self._tracer.claim("adapter's gradients", [parameter.grad])

    def encode(self, pictures: Pictures | None) -> None:
        """A picture and a caption."""
        self._tracer.phase(ENCODING)
        side = self._side
        posterior = self._family.encode_image(torch.zeros(1, 3, side, side))
        with torch.no_grad():
            self._text = self._family.encode_text([""]).to("cpu")
        self._latent_CHW = posterior.mean.shape[1:]
        if pictures is not None:
            self.caches = self._size_of_caches(pictures, posterior.mean)
            self._kept.append(torch.empty(self.caches, dtype=torch.uint8, device="cpu"))
            self._tracer.claim("caches", self._kept)

    def _size_of_caches(self, pictures: Pictures, latent: Tensor) -> int:
        """Mean and deviation of each latent, which is kept mirrored as well; each caption's embedding."""
        data, trains_text = self._config.data, bool(self._config.adapter.text_encoders)
        latents = 0 if data.crop == "random" else pictures.distinct * (2 if data.flip else 1)
        captions = 0 if trains_text else pictures.captions
        return latents * 2 * latent.nbytes + captions * self._text.nbytes

    def step(self, trainer: Trainer) -> None:
        """An optimiser step; of its forward passes no more than two, since the third holds what the second does."""
        self._tracer.phase(STEP)
        micros = [self._micro() for _ in range(self._config.train.gradient_accumulation_steps)]
        for micro in micros:
            text = micro.text.tensors.values() if isinstance(micro.text, Conditioning) else ()
            self._tracer.claim("batch", (micro.latents, micro.noise, micro.t_B, micro.weight_B, *text))
        trainer.relieve()
        train_step(trainer.context, 0, micros[:2])

    def _micro(self) -> MicroBatch:
        device, count = device_of(self._family), self._pictures
        captions = [""] * count
        return MicroBatch(
            latents=torch.zeros(count, *self._latent_CHW, device=device),
            noise=torch.zeros(count, *self._latent_CHW, device=device),
            t_B=torch.zeros(count, dtype=torch.float64, device=device),
            text=captions if self._config.adapter.text_encoders else self._texts(count),
            geometries=self._geometries(count),
            weight_B=torch.zeros(count, device=device),
            is_prior_B=self._is_prior_B,
            samples=(),
        )

    def _texts(self, count: int) -> Conditioning:
        device, known = device_of(self._family), self._text.tensors.items()
        return Conditioning(
            {name: torch.zeros(count, *one.shape[1:], dtype=one.dtype, device=device) for name, one in known}
        )

    def _geometries(self, count: int) -> tuple[Geometry, ...]:
        return (Geometry.whole(self._side, self._side),) * count

    def _conditioning(self, count: int) -> Conditioning:
        return self._family.condition(self._texts(count), self._geometries(count))

    def conclude(self, trainer: Trainer) -> None:
        """The sheet and the score, with the adapter merged."""
        count = min(_PAINTED_AT_ONCE, len(self._config.sample.prompts) or _PAINTED_AT_ONCE)
        self._tracer.phase(f"painting {count} picture{'s' if count > 1 else ''}")
        weights = trainer.injection.weights()
        self._tracer.claim_rest("adapter")
        trainer.close()
        self._tracer.claim_rest_as_weights("weights that come back")
        with applied(self._family.networks, weights), torch.no_grad():
            self._tracer.claim_rest("merged weights")
            self._paint(count)
            self._tracer.phase("scoring")
            self._score()

    def _paint(self, count: int) -> None:
        """One denoising step, guided if the config says so, and the decoding, at the base's own resolution."""
        side, own = self._side, self._family.resolution
        channels, height, width = self._latent_CHW
        latent_BCHW = torch.zeros(
            count, channels, height * own // side, width * own // side, device=device_of(self._family)
        )
        texts = 1 if self._config.sample.guidance == 1 else 2
        text = Conditioning.cat([self._family.encode_text([""] * count) for _ in range(texts)])
        noisy_BCHW = torch.cat([latent_BCHW] * texts)
        t_B = torch.zeros(len(noisy_BCHW), dtype=torch.float64, device=noisy_BCHW.device)
        self._family.predict(noisy_BCHW, t_B, self._family.condition(text, self._geometries(len(noisy_BCHW))))
        self._family.decode(latent_BCHW)

    def _score(self) -> None:
        """All draws of a picture that is held out."""
        device, draws = device_of(self._family), self._config.validation.draws
        latent_DCHW = torch.zeros(draws, *self._latent_CHW, device=device)
        t_D = torch.zeros(draws, dtype=torch.float64, device=device)
        objective = Objective(self._family.noise)
        with precision_of(self._config.train.precision, device).autocast():
            objective.loss_B(self._family.predict, latent_DCHW, latent_DCHW, t_D, self._conditioning(draws))


@dataclass(frozen=True)
class Outlook:
    """A plan beside the machine that it is for.

    Attributes:
        plan: the run's.
        free: bytes that there are; None: the system does not tell.
        remedies: what would make it fit, where it does not.
    """

    plan: Plan
    free: int | None
    remedies: tuple[Remedy, ...] = ()

    @property
    def fits(self) -> bool | None:
        """Whether there is enough; None: it is not known how much there is."""
        assert self.plan.memory is not None
        return None if self.free is None else self.plan.memory.peak <= self.free

    @property
    def verdict(self) -> str | None:
        """One line: what is needed, and what there is."""
        assert self.plan.memory is not None
        return None if self.free is None else verdict(self.plan.memory, self.free)


def look_ahead(config: RunConfig, *, known: bool, limit: int | None) -> Outlook:
    """The plan of a run whose base need not be loaded, nor be there at all if it is a published one.

    Args:
        config: the run.
        known: whether its pictures are there to be counted.
        limit: bytes that it may take; None: what this machine has free.

    Raises:
        UserError: the config does not fit the base, or the base or the pictures are not there.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pictures = Pictures.listed(config) if known else None

    def planned(changed: RunConfig) -> Plan:
        dtype = precision_of(changed.train.precision, device).dtype
        return rehearse(changed, lambda tracer: sketch(changed.base, tracer, dtype), device, pictures)

    plan = _on_top_of(process_memory, planned(config))
    return _judged(config, plan, planned, free_memory(device) if limit is None else limit)


def make_plan(
    config: RunConfig, family: Family, dataset: Dataset | None = None, metadata: Mapping[str, str] = _NO_METADATA
) -> Plan:
    """The plan of a run that this process is about to do, on a base that is loaded and left as it was.

    It is what ``veneer train`` prints first: parameters, the file's size, memory, disk, steps.

    Args:
        config: the run.
        family: its base, from ``load_base``.
        dataset: its pictures, from ``survey``; None: they are not counted.
        metadata: what will be told in the adapter's file.

    Raises:
        UserError: the config does not fit the base.
    """
    weights = sum(tensor.nbytes for network in family.networks.values() for tensor in _tensors(network))

    def before() -> int:
        return max(0, process_memory() - loaded(stored(config.base, weights), _modules(family)))

    return _on_top_of(before, plan_run(config, family, dataset, metadata))


def foresee(
    config: RunConfig, family: Family, dataset: Dataset, metadata: Mapping[str, str]
) -> tuple[Plan, Warned | None]:
    """The plan of a run that is about to start, and a warning if the machine has not enough.

    Args:
        config: the run.
        family: its base.
        dataset: its pictures.
        metadata: what will be told in the adapter's file.
    """

    def planned(changed: RunConfig) -> Plan:
        return plan_run(changed, family, dataset, metadata)

    plan = make_plan(config, family, dataset, metadata)
    outlook = _judged(config, plan, planned, free_memory(device_of(family)))
    if outlook.fits is not False:
        return plan, None
    help = f"; would fit: {', '.join(map(str, outlook.remedies))}" if outlook.remedies else ""
    return plan, Warned("plan.does_not_fit", f"{outlook.verdict}{help}")


def _judged(config: RunConfig, plan: Plan, planned: Callable[[RunConfig], Plan], free: int | None) -> Outlook:
    """A plan beside what is free, and remedies if it does not fit."""
    outlook, before = Outlook(plan, free), _memory(plan).before
    if outlook.fits is not False or free is None:
        return outlook
    found = remedies(config, lambda changed: _memory(planned(changed)).on_top_of(before), free)
    return replace(outlook, remedies=tuple(found))


def _on_top_of(before: Callable[[], int], plan: Plan) -> Plan:
    """A plan in the process that made it, which is measured after that."""
    memory = _memory(plan)
    return replace(plan, memory=memory.on_top_of(before()) if memory.device == "cpu" else memory)


def _memory(plan: Plan) -> Memory:
    assert plan.memory is not None, "a rehearsal finds it"
    return plan.memory
