"""Take one optimiser step: sum the gradients of micro-batches, clip, check and apply them.

Nothing here knows where pictures come from, and all that is random was drawn before: a step is a function of its
micro-batches and of the adapter's and the optimiser's state. Several processes share the micro-batches out and take the
step together; each ends with the same bits as one process that does them all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from veneer.data.manifest import Sample
from veneer.data.transform import Geometry
from veneer.engine.attention import trusted_attention
from veneer.engine.cuda_graph import GraphedBackward
from veneer.engine.precision import Precision
from veneer.errors import UserError
from veneer.family.protocol import NO_REFERENCES, Conditioning, Family
from veneer.objective.loss import Objective
from veneer.rng import key
from veneer.train.distributed import GradientSum, ProcessGroup
from veneer.train.events import SkipReason

__all__ = [
    "MicroBatch",
    "NonFinite",
    "Skipped",
    "StepContext",
    "StepResult",
    "StepSample",
    "add_gradients",
    "train_step",
]

_TEXT = "text."

_RUNS_FAULT = (
    "lower train.learning_rate, use float32 as train.precision, or skip such steps with train.on_nonfinite=skip"
)
_BASES_FAULT = (
    "the adapter has changed nothing yet, so the base gives this: use float32 as train.precision, or another base"
)


class StepSample(NamedTuple):
    """A picture as it took part in a step, with its time from 0 (clean) to 1 (noise)."""

    path: str
    id: str
    t: float


class NonFinite(UserError):
    """A loss or gradient that is not a number, or infinite: the run stops before the adapter takes it in.

    Attributes:
        step: in which it came up, counted from 1.
        reason: which of the two it is, for programs.
        samples: ids of the pictures: those with such a loss, or all the step's for a gradient.
        times: theirs, from 0 (clean) to 1 (noise).
    """

    def __init__(
        self, what: Literal["loss", "gradient"], step: int, pictures: Sequence[StepSample], note: str | None = None
    ) -> None:
        self._arguments = what, step, pictures
        self.step = step
        self.reason: SkipReason = "loss_not_finite" if what == "loss" else "gradient_not_finite"
        self.samples = tuple(picture.id for picture in pictures)
        self.times = tuple(picture.t for picture in pictures)
        named = ", ".join(f"{path} ({name}) at time {t:.3f}" for path, name, t in pictures)
        super().__init__(
            f"the {what} is not finite, with {named}",
            code=f"train.{self.reason}",
            where=f"step {step}",
            remedy=(_BASES_FAULT if what == "loss" and step == 1 else _RUNS_FAULT) + (f"; {note}" if note else ""),
        )

    def with_note(self, note: str) -> NonFinite:
        """Return the same error with a note on what is left of the run."""
        return NonFinite(*self._arguments, note)


@dataclass(frozen=True)
class MicroBatch:
    """The pictures of one forward pass, with everything random already drawn.

    Attributes:
        latents: clean latents (B, ...).
        noise: what is added to them, in their shape.
        t_B: how much of it: float64, from 0 (clean) to 1 (noise).
        text: what the text encoders made of the captions, or the captions where one of them is being trained.
        geometries: where the pixels that are seen lie in each picture.
        weight_B: of each picture's loss in the step's loss; they sum to 1 over the step's own pictures.
        is_prior_B: which pictures are of the class rather than the subject; on the CPU, where it is read.
        samples: the pictures.
        references: of pairs, the encoded pictures that they are made from; else no tensors.
        mask: how much each place of the latents counts in the loss, (B, 1, h, w) in [0, 1]; None: all count alike.
    """

    latents: Tensor
    noise: Tensor
    t_B: Tensor
    text: Conditioning | Sequence[str]
    geometries: tuple[Geometry, ...]
    weight_B: Tensor
    is_prior_B: Tensor
    samples: tuple[Sample, ...]
    references: Conditioning = NO_REFERENCES
    mask: Tensor | None = None


@dataclass(frozen=True)
class StepContext:
    """All that a step depends on beside its pictures.

    Attributes:
        family: the base; its networks are in training mode for the step only.
        objective: the loss.
        parameters: all parameters that are trained.
        optimizer: over them.
        precision: of the forward pass.
        scaler: of float16's loss.
        max_grad_norm: gradients are scaled down to it; None: never.
        seed: of dropout.
        skips_nonfinite: a step whose loss or gradient is not finite changes nothing, and is no error.
        processes: that share the micro-batches out.
        graphs: what does a pass by :func:`add_gradients` as a CUDA graph; None: nothing does.
        meanwhile: is called with the number of a step when a device has the work of one of its passes; None: nothing.
    """

    family: Family
    objective: Objective
    parameters: Sequence[nn.Parameter]
    optimizer: torch.optim.Optimizer
    precision: Precision
    scaler: torch.amp.GradScaler
    max_grad_norm: float | None
    seed: int
    skips_nonfinite: bool
    processes: ProcessGroup
    graphs: GraphedBackward | None = None
    meanwhile: Callable[[int], None] | None = None


class Skipped(NamedTuple):
    """The reason why a step changed nothing.

    Attributes:
        reason: for programs.
        text: for a person.
    """

    reason: SkipReason
    text: str


@dataclass(frozen=True)
class StepResult:
    """The outcome of a step.

    Attributes:
        loss: mean over the step's own pictures; NaN where it or the gradient was not finite and the step was skipped.
        prior_loss: mean over its pictures of the class; None without them.
        gradient_norm: before clipping; infinite where float16 overflowed.
        skipped: why the adapter was not changed; None: it was.
    """

    loss: float
    prior_loss: float | None
    gradient_norm: float
    skipped: Skipped | None


def train_step(context: StepContext, step: int, micros: Sequence[MicroBatch]) -> StepResult:
    """Change the adapter once, by the gradient of the weighted mean over all the micro-batches' pictures.

    Args:
        context: what is trained, and how.
        step: counted from 0.
        micros: this process's micro-batches; the weights of all processes' sum to 1, so that 4 = 4 x 1 = 2 x 2 pictures
            give one gradient (up to rounding).

    Raises:
        NonFinite: a loss or the gradient is not finite in any process, and such steps are not skipped; the adapter and
            the optimiser are as they were.
    """
    try:
        return _update(context, step, micros)
    except NonFinite as fault:
        context.optimizer.zero_grad(set_to_none=True)
        if not context.skips_nonfinite:
            raise
        return StepResult(math.nan, None, math.nan, skipped=Skipped(fault.reason, fault.what))


def _update(context: StepContext, step: int, micros: Sequence[MicroBatch]) -> StepResult:
    context.optimizer.zero_grad(set_to_none=True)
    losses = _backward_all(context, step, micros)
    context.scaler.unscale_(context.optimizer)
    norm = _clip(context.parameters, context.max_grad_norm)
    overflowed = not math.isfinite(norm)
    if overflowed and not context.scaler.is_enabled():
        raise NonFinite("gradient", step + 1, _all_pictures(context, micros))
    context.scaler.step(context.optimizer)  # skips the update by itself where float16 overflowed
    context.scaler.update()
    context.optimizer.zero_grad(set_to_none=True)
    return _result(losses, norm, overflowed)


@contextmanager
def _training(networks: Mapping[str, nn.Module]) -> Iterator[None]:
    """Put networks into training mode, and into evaluation mode after: between steps there is no dropout."""
    for network in networks.values():
        network.train()
    try:
        yield
    finally:
        for network in networks.values():
            network.eval()


def _backward_all(context: StepContext, step: int, micros: Sequence[MicroBatch]) -> list[_Losses]:
    """Sum the gradients of all processes' micro-batches in their order; return all their losses, in that order too."""
    losses: list[_Losses] = []
    gradients = GradientSum(context.parameters, context.processes)
    for micro in micros:
        place = len(losses) + context.processes.rank
        own = _backward(context, step, place, micro)
        with context.processes.undisturbed():
            gathered = [_Losses(**values) for values in context.processes.all_gather(vars(own))]
            nonfinite = next((one.nonfinite for one in gathered if one.nonfinite), None)
            if nonfinite is not None:
                raise NonFinite("loss", step + 1, [StepSample(*picture) for picture in nonfinite])
            gradients.add()
        losses += gathered
    gradients.apply()
    return losses


@dataclass(frozen=True)
class _Losses:
    """The losses of a micro-batch, as values that processes can exchange.

    Attributes:
        own: of each picture of the style or subject.
        prior: of each of the class.
        nonfinite: the pictures, each as ``StepSample``, whose loss is not finite.
    """

    own: list[float]
    prior: list[float]
    nonfinite: list[Any]


def _backward(context: StepContext, step: int, place: int, micro: MicroBatch) -> _Losses:
    """Add one micro-batch's gradients; where a loss is not finite nobody will use them."""
    if context.graphs is not None and isinstance(micro.text, Conditioning):
        loss_B = context.graphs(_tensors_of(micro, _conditioning(context, micro)))
    else:
        with _keyed_dropout(micro.latents.device, key(context.seed, step, place, "dropout")):
            loss_B = add_gradients(context, _tensors_of(micro, _conditioning(context, micro)))
    if context.meanwhile is not None:
        context.meanwhile(step)
    # read when a GPU has its whole work: to read them is to wait for it
    losses, is_prior = loss_B.tolist(), micro.is_prior_B.tolist()
    nonfinite: list[StepSample] = []
    if not all(map(math.isfinite, losses)):
        nonfinite = [picture for loss, picture in zip(losses, _pictures(micro), strict=True) if not math.isfinite(loss)]
    return _Losses(_select(losses, is_prior, False), _select(losses, is_prior, True), nonfinite)


def add_gradients(context: StepContext, tensors: Mapping[str, Tensor]) -> Tensor:
    """Add one micro-batch's gradients, and zeros where there is none; return the loss of each of its pictures (B,).

    Args:
        context: what is trained, and how.
        tensors: a micro-batch's own by their names there, and its conditioning's, each with ``_TEXT`` before its name.
    """
    text = {name.removeprefix(_TEXT): tensor for name, tensor in tensors.items() if name.startswith(_TEXT)}
    with _training(context.family.networks), trusted_attention():
        with context.precision.autocast():
            loss_B = context.objective.loss_B(
                context.family.predict,
                tensors["latents"],
                tensors["noise"],
                tensors["t_B"],
                Conditioning(text),
                tensors.get("mask"),
            )
        torch.autograd.backward(context.scaler.scale((tensors["weight_B"] * loss_B).sum()))
    _fill_gradients(context.parameters)
    return loss_B.detach()


def _tensors_of(micro: MicroBatch, conditioning: Conditioning) -> dict[str, Tensor]:
    """Return all that a micro-batch's losses depend on."""
    own = {"latents": micro.latents, "noise": micro.noise, "t_B": micro.t_B, "weight_B": micro.weight_B}
    own |= {} if micro.mask is None else {"mask": micro.mask}
    return {**own, **{_TEXT + name: tensor for name, tensor in conditioning.tensors.items()}}


def _fill_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Give parameters that no output depends on a gradient of zero, such as those of a layer whose output is not read.

    So every parameter has a gradient and, in the optimiser, a state, in all processes and after every resume.
    """
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def _select(losses: Sequence[float], is_prior: Sequence[bool], prior: bool) -> list[float]:
    return [loss for loss, kind in zip(losses, is_prior, strict=True) if kind == prior]


@contextmanager
def _keyed_dropout(device: torch.device, seed: int) -> Iterator[None]:
    """Let PyTorch's own generators start from ``seed``, and go on after as if nothing had happened.

    A layer's dropout draws one mask for the whole micro-batch, so the key is the micro-batch's, not a picture's: with
    dropout, other splits of a step's pictures give other masks. Recomputed blocks replay the masks by themselves.
    """
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type="cuda" if device.type == "cpu" else device.type):
        _seed(device, seed)
        yield


def _seed(device: torch.device, seed: int) -> None:
    """Seed the generators of the CPU and of one device: ``torch.manual_seed`` would seed every other GPU's too."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def _conditioning(context: StepContext, micro: MicroBatch) -> Conditioning:
    family, text = context.family, micro.text
    with context.precision.autocast():
        if not isinstance(text, Conditioning):
            with _training(family.networks):
                text = family.encode_text(text)
        return family.condition(text, micro.geometries).joined_to(micro.references.tensors)


def _clip(parameters: Sequence[nn.Parameter], max_norm: float | None) -> float:
    """Scale the gradients so that their common norm is at most ``max_norm``; return the norm as it was."""
    return float(nn.utils.clip_grad_norm_(parameters, math.inf if max_norm is None else max_norm))


def _pictures(micro: MicroBatch) -> list[StepSample]:
    return [StepSample(str(s.path), s.id, t) for s, t in zip(micro.samples, micro.t_B.tolist(), strict=True)]


def _all_pictures(context: StepContext, micros: Sequence[MicroBatch]) -> list[StepSample]:
    """Return the pictures of all processes, in the order of the micro-batches."""
    gathered = context.processes.all_gather([_pictures(micro) for micro in micros])
    turns = zip(*gathered, strict=True)
    return [StepSample(*picture) for turn in turns for pictures in turn for picture in pictures]


def _result(losses: Sequence[_Losses], norm: float, overflowed: bool) -> StepResult:
    own = [loss for micro in losses for loss in micro.own]
    prior = [loss for micro in losses for loss in micro.prior]
    skipped = Skipped("float16_overflow", "float16 overflowed; its loss scale is lower now") if overflowed else None
    return StepResult(fmean(own), fmean(prior) if prior else None, norm, skipped)
