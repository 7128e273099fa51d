"""A rehearsal of a run: everything that it does with a network, done once on tensors that have no data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor, nn

from veneer.adapter.apply import apply_adapter
from veneer.adapter.inject import find_matches
from veneer.adapter.protocol import AdapterWeights
from veneer.adapter.registry import specs_of
from veneer.config.load import complete_objective, resolve
from veneer.config.objective_config import ObjectiveConfig
from veneer.config.schema import RunConfig
from veneer.data.augment import draws_differ
from veneer.data.bucket_table import BucketTable, ShapedPicture
from veneer.data.buckets import Buckets, Extent, Size
from veneer.data.manifest import Manifest
from veneer.data.preflight import Dataset
from veneer.data.tags import TagRules
from veneer.data.transform import Geometry
from veneer.engine.block_offload import find_offload, offload_blocks
from veneer.engine.blocks import repeated_blocks
from veneer.engine.precision import precision_of
from veneer.engine.quantized import parameter_count
from veneer.errors import UserError
from veneer.family.distillation import warn_of_distillation
from veneer.family.loading import quantize_networks, reads_on_demand
from veneer.family.protocol import NO_REFERENCES, Conditioning, Family, device_of
from veneer.family.references import check_references
from veneer.objective.loss import Objective
from veneer.plan.cpu.process import ModuleCounts, process_growth
from veneer.plan.extension import Extension, Offloaded, weight_bytes
from veneer.plan.memory import ENCODING, LOADING, STEP, Memory, Phase
from veneer.plan.parameters import count_networks, count_parameters, file_size
from veneer.plan.pictures import PictureCounts, latent_pixels, most_extent
from veneer.plan.plan import Disk, Plan, Schedule, TimestepPlan
from veneer.plan.tracer import MemoryTracer
from veneer.plan.weight_files import WeightFiles, read_weight_files
from veneer.sample.generate import check_frames, painted_at_once
from veneer.train.loop import Trainer
from veneer.train.step import MicroBatch, train_step
from veneer.weights.safetensors import encoded_bytes

__all__ = ["BaseMaker", "RunInputs", "module_count", "rehearse", "rehearse_step", "tensors_of", "unread_parts"]

R = TypeVar("R")
BaseMaker = Callable[[MemoryTracer], Family]
"""Makes a base whose tensors have no data, recorded by the tracer."""

_NO_PICTURES = Dataset(Manifest(), Manifest())


@dataclass(frozen=True)
class RunInputs:
    """What a run is done with, beside its configuration and its base.

    Attributes:
        device: where its networks are.
        pictures: their numbers; None: they are not known.
        listed: those of them that are trained on, as far as their sizes are known.
        metadata: what the adapter's file will hold beside the weights.
        memory_only: whether nothing but the memory is asked for: neither parameters nor files are counted then.
        for_gpu: plan for a GPU though ``device`` is the CPU, because there is none here: its memory is that of tensors.
    """

    device: torch.device
    pictures: PictureCounts | None = None
    listed: Sequence[ShapedPicture] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    memory_only: bool = False
    for_gpu: bool = False

    @property
    def kind(self) -> str:
        """The kind of device that is planned for, as PyTorch calls it."""
        return "cuda" if self.for_gpu else self.device.type


def rehearse(config: RunConfig, make_base: BaseMaker, inputs: RunInputs) -> Plan:
    """Return the plan of a run, found by doing one of each thing that it does.

    Args:
        config: the run.
        make_base: makes its base.
        inputs: what it is done with.

    Raises:
        UserError: the config does not fit the base.
    """
    return _short_or_whole(config, lambda extension: _rehearse(config, make_base, inputs, extension))


def _short_or_whole(config: RunConfig, rehearse_with: Callable[[Extension | None], R]) -> R:
    """Rehearse a base with few of its equal blocks; with all, if its code does not run with few."""
    extension = Extension(config)
    try:
        return rehearse_with(extension)
    except (UserError, LookupError):  # of a number of blocks that is not the base's, or of the run itself
        if not extension.runs:
            raise
    return rehearse_with(None)


def _rehearse(config: RunConfig, make_base: BaseMaker, inputs: RunInputs, extension: Extension | None) -> Plan:
    """Rehearse a base, with few of its equal blocks if there is an extension."""
    tracer = _tracer(inputs, extension)
    extension = extension or Extension(config)
    tracer.begin_phase(LOADING)
    family = make_base(tracer)
    _label_weights(tracer, family, config)
    extension.watch(tracer, family)
    _leave_unread(tracer, family, config)
    offloaded = extension.offloaded(family)
    _offload_blocks(tracer, family, offloaded.count or config.train.offload_blocks, torch.device(inputs.kind))
    base_modules = module_count(family) + extension.further(family, _count_modules)
    files = _weight_files(tracer, family, config, extension)
    config = resolve(config, family)
    references = family.usual_references if inputs.pictures is None else inputs.pictures.references
    check_references(family, references, "data.sources")
    check_frames(family, config.sample.frames)
    short = _with_blocks(config, offloaded.count) if offloaded.count else config
    rehearsal = _Rehearsal(extension, family, short, references, inputs.pictures)
    with tracer.tracing(), closing(rehearsal.make_trainer()) as trainer:
        rehearsal.encode()
        rehearsal.step(trainer)
        adapted = module_count(family) + extension.further(family, _count_modules)
        with tracer.unrecorded():
            counts = Plan({}, 0) if inputs.memory_only else _count(config, family, trainer, inputs, extension)
        rehearsal.finish(trainer)
    phases = _phases(tracer, files, ModuleCounts(base_modules, adapted), inputs.kind, extension)
    if inputs.kind != "cpu" and offloaded.resident:
        phases = tuple(_with_resident(phase, f"weights: {family.denoiser}", offloaded.resident) for phase in phases)
    memory = Memory(inputs.kind, phases, rehearsal.caches, **_blocks(family, extension, offloaded))
    buckets = Buckets.of(config.data, family)
    schedule, timesteps = _schedule(config, inputs.pictures, buckets), _timesteps(config, family)
    table = BucketTable.of(inputs.listed, buckets)
    plan = replace(counts, memory=memory, schedule=schedule, timesteps=timesteps, buckets=table)
    path = config.adapter.training_adapter
    distilled = warn_of_distillation(config.base, family, path)
    return replace(plan, training_adapter=None if path is None else path.name, distilled=distilled)


def _count(config: RunConfig, family: Family, trainer: Trainer, inputs: RunInputs, extension: Extension) -> Plan:
    """Return the parameters of the whole base, the size of the adapter's file, and what a run leaves on disk."""
    injection, format_name = trainer.injection, config.output.formats[0]
    weights, state = extension.expand(injection.weights()), extension.expand(trainer.state_dict())
    if extension.runs:
        family = extension.whole_base
        totals = {name: parameter_count(network) for name, network in family.networks.items()}
        whole = resolve(extension.config, family)  # a preset names the blocks that there are
        matches = find_matches(family.networks, specs_of(whole.adapter, family))
        counts = count_networks(family.networks, totals, matches, extension.expand(injection.parameter_counts()))
        plan = Plan(counts, file_size(family.networks, weights, inputs.metadata, format_name))
    else:
        plan = count_parameters(family.networks, injection, inputs.metadata, format_name)
    written, best_file = _file_sizes(config, family, weights, inputs.metadata)
    return replace(plan, disk=_disk(config, encoded_bytes(state, {}), written, best_file))


def rehearse_step(config: RunConfig, make_base: BaseMaker, inputs: RunInputs) -> Phase:
    """Return the memory of a training step alone, on a GPU: a part of :func:`rehearse`.

    Args:
        config: the run.
        make_base: makes its base.
        inputs: what it is done with.

    Raises:
        UserError: the config does not fit the base.
    """
    return _short_or_whole(config, lambda extension: _rehearse_step(config, make_base, inputs, extension))


def _tracer(inputs: RunInputs, extension: Extension | None) -> MemoryTracer:
    """Return a tracer of a base with few of its equal blocks if there is an extension."""
    return MemoryTracer(inputs.device) if extension is None else MemoryTracer(inputs.device, extension.shorten)


def _rehearse_step(config: RunConfig, make_base: BaseMaker, inputs: RunInputs, extension: Extension | None) -> Phase:
    tracer = _tracer(inputs, extension)
    extension = extension or Extension(config)
    family = make_base(tracer)
    _label_weights(tracer, family, config)
    extension.watch(tracer, family)
    _leave_unread(tracer, family, config)
    config = resolve(config, family)
    rehearsal = _Rehearsal(extension, family, config, family.reference_counts.start, inputs.pictures)
    with tracer.tracing(), closing(rehearsal.make_trainer()) as trainer:
        rehearsal.encode()
        rehearsal.step(trainer)
        tracer.begin_phase("after it")  # in which all that was offloaded comes back
    peak = tracer.peaks(extension.repeats(tracer))[STEP]
    return Phase(STEP, peak.total, _largest_first(peak.parts))


def _with_blocks(config: RunConfig, offloaded: int) -> RunConfig:
    """Return a config with another number of offloaded blocks."""
    return config.model_copy(update={"train": config.train.model_copy(update={"offload_blocks": offloaded})})


def _with_resident(phase: Phase, part: str, size: int) -> Phase:
    """Return a phase in which a part has further bytes."""
    return replace(
        phase, tensors=phase.tensors + size, parts=_largest_first(Counter(phase.parts) + Counter({part: size}))
    )


def _blocks(family: Family, extension: Extension, offloaded: Offloaded) -> dict[str, int]:
    denoiser = family.networks[family.denoiser]
    handle = find_offload(denoiser)
    count = len(repeated_blocks(denoiser)) + extension.further(family, lambda block: 1)
    return {"blocks": count, "offloaded": offloaded.waiting or (0 if handle is None else handle.nbytes)}


def module_count(family: Family) -> int:
    """Return the number of modules of all networks of a base."""
    return sum(map(_count_modules, family.networks.values()))


def _count_modules(network: nn.Module) -> int:
    """Return the number of modules of a network."""
    return sum(1 for _ in network.modules())


def tensors_of(network: nn.Module) -> Iterable[Tensor]:
    """Return the parameters and buffers of a network."""
    return chain(network.parameters(), network.buffers())


def _label_weights(tracer: MemoryTracer, family: Family, config: RunConfig) -> None:
    quantize_networks(family, config)
    _label_networks(tracer, family)
    tracer.label_others("weights: autoencoder")


def _label_networks(tracer: MemoryTracer, family: Family) -> None:
    for name, network in {**family.networks, **family.on_demand}.items():
        tracer.label(f"weights: {name}", tensors_of(network))


def unread_parts(config: RunConfig, family: Family) -> tuple[str, ...]:
    """Return the names of the networks that a run does not load with the rest but when they are first called."""
    if not reads_on_demand(config):
        return ()
    kept = {family.denoiser} if config.train.offload_blocks else set()
    return tuple(name for name in family.on_demand if name not in kept)


def _weight_files(tracer: MemoryTracer, family: Family, config: RunConfig, extension: Extension) -> WeightFiles:
    """Return the files of what is loaded before anything is computed."""
    unread = unread_parts(config, family)
    further = 0 if family.denoiser in unread else extension.further(family, weight_bytes)
    return read_weight_files(config.base, further + (tracer.held if unread else tracer.weight_bytes), unread)


def _leave_unread(tracer: MemoryTracer, family: Family, config: RunConfig) -> None:
    """Take those networks out of memory."""
    if unread := unread_parts(config, family):
        with tracer.tracing():
            family.offload(unread)
        tracer.begin_phase(LOADING)  # anew: only what is left was loaded


def _offload_blocks(tracer: MemoryTracer, family: Family, count: int, device: torch.device) -> None:
    denoiser = family.networks[family.denoiser]
    if count and find_offload(denoiser) is None:
        with tracer.tracing():
            offload_blocks(denoiser, count, device)
        tracer.begin_phase(LOADING)  # anew: the others are never on the device all at once


def _schedule(config: RunConfig, pictures: PictureCounts | None, buckets: Buckets) -> Schedule:
    train = config.train
    shown = pictures.shown_in(buckets) if pictures else None
    varies = pictures is not None and any(TagRules.of(source).vary for source in config.data.sources)
    texts = pictures.captions if pictures is not None and varies and not config.adapter.text_encoders else None
    masks = 0 if pictures is None else pictures.masks
    return Schedule(train.max_steps, train.batch_size, train.gradient_accumulation_steps, shown, texts, masks)


def _timesteps(config: RunConfig, family: Family) -> TimestepPlan:
    """Return what timesteps are drawn from, and what of it a run would do that names nothing."""
    own, most = complete_objective(ObjectiveConfig(), family), most_extent(Buckets.of(config.data, family))
    objective, density = config.objective, Objective.from_config(config.objective, family).density
    shape = (objective.timestep_density, objective.logit_mean, objective.logit_std)
    return TimestepPlan(
        density.name,
        objective.logit_mean,
        objective.logit_std,
        shift=density.shift_of(*most),
        by_resolution=objective.timestep_shift == "resolution",
        own_density=shape == (own.timestep_density, own.logit_mean, own.logit_std),
        own_shift=objective.timestep_shift == own.timestep_shift,
    )


def _file_sizes(
    config: RunConfig, family: Family, weights: AdapterWeights, metadata: Mapping[str, str]
) -> tuple[int, int]:
    """Return the bytes of an adapter's files in all formats, and of the file of a best adapter."""
    sizes = {name: file_size(family.networks, weights, metadata, name) for name in config.output.formats}
    return sum(sizes.values()), file_size(family.networks, weights, metadata)


def _disk(config: RunConfig, state: int, files: int, best_file: int) -> Disk:
    """Count the files; a run that is validated on the way keeps its best adapter too, in a file and each checkpoint.

    Args:
        config: the run.
        state: bytes of what a checkpoint holds.
        files: bytes of the adapter in all its formats.
        best_file: bytes of a best adapter's file.
    """
    best = best_file if config.validation.every else 0
    return Disk(state + best, config.train.keep_checkpoints, files + best)


def _phases(
    tracer: MemoryTracer, files: WeightFiles, modules: ModuleCounts, kind: str, extension: Extension
) -> tuple[Phase, ...]:
    growth: Mapping[str, int] = {}
    repeats = extension.repeats(tracer)
    if kind == "cpu":  # elsewhere the tensors are not in the process's memory
        growth = process_growth(tracer.trace, files, modules, repeats)
    return tuple(
        Phase(name, peak.total, _largest_first(peak.parts), growth.get(name))
        for name, peak in tracer.peaks(repeats).items()
    )


def _largest_first(parts: Mapping[str, int]) -> Mapping[str, int]:
    return dict(sorted(parts.items(), key=lambda part: -part[1]))


class _Rehearsal:
    """Everything that a run does, each thing once.

    Args:
        extension: what was left out of the base, with the tracer; it does not trace while this object is made.
        family: without data.
        config: the resolved one.
        references: of each picture.
        pictures: their numbers; None: they are not known.

    Attributes:
        caches: bytes of encoded pictures and captions; None: their number is not known.
    """

    def __init__(
        self,
        extension: Extension,
        family: Family,
        config: RunConfig,
        references: int,
        pictures: PictureCounts | None,
    ) -> None:
        self._tracer, self._family, self._config, self._reference_count = extension.tracer, family, config, references
        self._extension = extension
        self._pictures, self._buckets = pictures, Buckets.of(config.data, family)
        most = most_extent(self._buckets)
        extents = (most,) if pictures is None else pictures.extents_in(self._buckets)
        # pictures of the class, which the base paints, are in the same passes if all have one size
        shares_passes = config.data.prior is not None and set(extents) <= {(*self._buckets.most, 1)}
        self._batch = config.train.batch_size * (2 if shares_passes else 1)
        # it has data, since it decides which pictures count as the class's
        self._is_prior_B = torch.zeros(self._batch, dtype=torch.bool)
        stride = self._buckets.clips.stride
        self._extent = max(extents, key=lambda extent: (latent_pixels(extent, stride), extent))
        self._size, self._frames = self._extent[:2], self._extent[2]
        self._sample_size = family.resolution, family.resolution
        self._latent = torch.Size()  # of one picture, without the batch
        self._sample_latent = self._shape_of_latents(self._sample_size, config.sample.frames)
        self._text = self._references = NO_REFERENCES
        self._cache: Tensor | None = None
        self._has_masks = False
        self.caches: int | None = None

    def _shape_of_latents(self, size: Size, frames: int) -> torch.Size:
        with self._tracer.unrecorded():
            return self._family.encode_image(_pixels(size, frames)).mean.shape[1:]

    def make_trainer(self) -> Trainer:
        """Return a trainer after its first step, from which on the optimiser has its state."""
        # class pictures only count, and need not be on disk for that
        data = self._config.data.model_copy(update={"prior": None})
        trainer = Trainer(self._config.model_copy(update={"data": data}), self._family, _NO_PICTURES)
        self._tracer.label("adapter", trainer.injection.parameters())
        self._extension.claim(self._family)
        self._extension.claim_named(trainer.average.tensors)
        context = trainer.context
        for parameter in context.parameters:
            parameter.grad = torch.zeros_like(parameter)
            parameter.register_post_accumulate_grad_hook(self._label_gradient)
        context.optimizer.step()
        context.optimizer.zero_grad(set_to_none=True)
        self._extension.claim(self._family, context.optimizer)
        self._tracer.label_others("optimiser state")
        return trainer

    def _label_gradient(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self._tracer.label("adapter gradients", [parameter.grad])

    def encode(self) -> None:
        """Encode a picture and a caption, and hold as much as the caches of all of them take."""
        self._tracer.begin_phase(ENCODING)
        posterior = self._family.encode_image(_pixels(self._size, self._frames))
        with torch.no_grad():
            # shapes are all that is needed
            self._text = self._encode_texts(1, self._size).to("meta")
            self._references = self._encode_references(self._size).to("meta")
        _label_networks(self._tracer, self._family)
        self._latent = posterior.mean.shape[1:]
        if self._pictures is not None:
            self._has_masks = bool(self._pictures.masks)
            self.caches = self._cache_bytes(self._pictures, posterior.mean)
            self._cache = torch.empty(self.caches, dtype=torch.uint8, device="cpu")
            self._tracer.label("caches", [self._cache])

    def _encode_texts(self, count: int, size: Size) -> Conditioning:
        references = self._reference_pixels(size)
        if references and self._family.text_reads_references:
            return self._family.encode_instructions([""] * count, [references] * count)
        return self._family.encode_text([""] * count)

    def _encode_references(self, size: Size) -> Conditioning:
        references = self._reference_pixels(size)
        return self._family.encode_references(references) if references else NO_REFERENCES

    def _reference_pixels(self, size: Size) -> list[Tensor]:
        return [torch.zeros(3, *size) for _ in range(self._reference_count)]

    def _cache_bytes(self, pictures: PictureCounts, latent: Tensor) -> int:
        """Return bytes of mean and deviation of each latent and of its mask, mirrored ones too, and of captions."""
        data, trains_text = self._config.data, bool(self._config.adapter.text_encoders)
        sides = 0 if draws_differ(data) else 2 if data.flip else 1
        captions = 0 if trains_text else pictures.captions
        # latents are as large as the pixels that they are made of
        pixels = sides * pictures.pixels_in(self._buckets, self._extent)
        own = latent_pixels(self._extent, self._buckets.clips.stride)
        latents = pixels * (2 * latent.nbytes + self._references.nbytes) // own
        masks = sides * pictures.masks * len(self._buckets.resolutions)
        cells = latent.shape[-2] * latent.shape[-1]
        return latents + captions * self._text.nbytes + masks * torch.float32.itemsize * cells

    def step(self, trainer: Trainer) -> None:
        """Do an optimiser step of at most two forward passes, since a third one holds what the second does."""
        micros = [self._micro_batch() for _ in range(self._config.train.gradient_accumulation_steps)]
        for micro in micros:
            text = micro.text.tensors.values() if isinstance(micro.text, Conditioning) else ()
            encoded = (*text, *micro.references.tensors.values())
            encoded += () if micro.mask is None else (micro.mask,)
            self._tracer.label("batch", (micro.latents, micro.noise, micro.t_B, micro.weight_B, *encoded))
        trainer.offload()
        self._tracer.begin_phase(STEP)  # not before: what encodes has left memory by then
        _label_networks(self._tracer, self._family)
        self._extension.claim(self._family)
        train_step(replace(trainer.context, graphs=None, meanwhile=None), 0, micros[:2])

    def _micro_batch(self) -> MicroBatch:
        device, count = device_of(self._family), self._batch
        captions = [""] * count
        return MicroBatch(
            latents=self._latents(count),
            noise=self._latents(count),
            t_B=self._times(count),
            text=captions if self._config.adapter.text_encoders else self._rows_like(self._text, count),
            geometries=self._geometries(count, self._extent),
            weight_B=torch.zeros(count, device=device),
            is_prior_B=self._is_prior_B,
            samples=(),
            references=self._rows_like(self._references, count),
            mask=torch.zeros(count, 1, *self._latent[-2:], device=device) if self._has_masks else None,
        )

    def _latents(self, count: int) -> Tensor:
        return torch.zeros(count, *self._latent, device=device_of(self._family))

    def _times(self, count: int) -> Tensor:
        return torch.zeros(count, dtype=torch.float64, device=device_of(self._family))

    def _rows_like(self, row: Conditioning, count: int) -> Conditioning:
        device, tensors = device_of(self._family), row.tensors.items()
        return Conditioning(
            {name: torch.zeros(count, *one.shape[1:], dtype=one.dtype, device=device) for name, one in tensors}
        )

    def _geometries(self, count: int, extent: Extent) -> tuple[Geometry, ...]:
        return (Geometry.whole(*extent),) * count

    def finish(self, trainer: Trainer) -> None:
        """Sample a sheet and score a held-out picture, with the adapter merged."""
        at_once = painted_at_once(self._family)
        count = min(at_once, len(self._config.sample.prompts) or at_once)
        self._tracer.begin_phase(f"sampling {count} picture{'s' if count > 1 else ''}")
        weights = trainer.injection.weights()
        self._tracer.label_others("adapter")
        trainer.close()
        if unread_parts(self._config, self._family):  # read into memory of their own
            self._tracer.label_others("weights loaded again")
        self._tracer.label_reloaded("weights loaded again")
        self._extension.claim(self._family)
        with apply_adapter(self._family.networks, weights), torch.no_grad():
            self._tracer.label_others("merged weights")
            self._sample(count)
            self._tracer.begin_phase("scoring")
            self._score()

    def _sample(self, count: int) -> None:
        """Do one denoising step, guided if the config says so, and decode, at the base's own resolution."""
        latents = torch.zeros(count, *self._sample_latent, device=device_of(self._family))
        is_guided = self._family.guided_batch and self._config.sample.guidance > 1
        rows, size = count * (2 if is_guided else 1), self._sample_size
        text = Conditioning.cat([self._encode_texts(count, size) for _ in range(rows // count)])
        for network in {**self._family.networks, **self._family.on_demand}.values():  # what encoding brought back
            self._tracer.label("weights loaded again", tensors_of(network))
        noisy = torch.cat([latents] * (rows // count))
        geometries = self._geometries(rows, (*size, self._config.sample.frames))
        references = self._rows_like(self._encode_references(size), rows)
        conditioning = self._family.condition(text, geometries).joined_to(references.tensors)
        self._family.predict(noisy, self._times(rows), conditioning)
        self._family.decode(latents)

    def _score(self) -> None:
        """Compute the losses of all draws of a held-out picture."""
        device, at_once = device_of(self._family), self._family.inference_batch_size
        draws = min(self._config.validation.draws, at_once or self._config.validation.draws)
        latents, t_D = self._latents(draws), self._times(draws)
        text, references = self._rows_like(self._text, draws), self._rows_like(self._references, draws)
        conditioning = self._family.condition(text, self._geometries(draws, self._extent)).joined_to(references.tensors)
        objective = Objective(self._family.noise)
        with precision_of(self._config.train.precision, device).autocast():
            objective.loss_B(self._family.predict, latents, latents, t_D, conditioning)


def _pixels(size: Size, frames: int) -> Tensor:
    """Return a picture (1, 3, H, W) or a clip (1, 3, T, H, W) without anything in it."""
    return torch.zeros(1, 3, *([frames] if frames > 1 else []), *size)
