"""From a step's number to its micro-batches: a pure function of (seed, step), with all that is random drawn here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from veneer.config.schema import RunConfig
from veneer.data.loader import Pick, caption_of, picks
from veneer.data.manifest import Manifest
from veneer.data.transform import is_flipped
from veneer.family.cache import Encoder, noise_like
from veneer.family.protocol import Conditioning
from veneer.objective.loss import Objective
from veneer.rng import uniform
from veneer.train.distributed import ALONE, ProcessGroup
from veneer.train.step import MicroBatch

__all__ = ["BatchBuilder"]


@dataclass(frozen=True)
class BatchBuilder:
    """The pictures of a run, as its steps take them.

    Attributes:
        config: batch, accumulation, captions, seed.
        objective: whose density the times are drawn from.
        encoder: turns pictures into latents and captions into conditioning.
        own: pictures of the style or subject.
        prior: pictures of the class, as many in each micro-batch as of the subject's; None: none.
        device: where micro-batches go.
        processes: that share them out.
    """

    config: RunConfig
    objective: Objective
    encoder: Encoder
    own: Manifest
    prior: Manifest | None
    device: torch.device
    processes: ProcessGroup = ALONE

    def micros(self, step: int) -> list[MicroBatch]:
        """This process' micro-batches of a step, which counts from 0; all processes' weights are parts of one mean."""
        count = self.config.train.batch_size * self.config.train.gradient_accumulation_steps
        return [self._micro(own, prior, count) for own, prior in self._shares(step)]

    def ahead(self, steps: range) -> list[Callable[[], object]]:
        """What will be encoded in these steps, each thing once: calls that encode it now, for the steps to find.

        Pictures that are cropped at random are none of them, and captions that the text encoder learns from neither.
        """
        pictures: dict[tuple[str, bool], Pick] = {}
        captions: dict[str, None] = {}
        config, most = self.config.data, self._variants
        for picked in map(self._picked, steps):
            for pick in picked:
                pictures[pick.sample.id, is_flipped(pick.sample, config, self.config.seed, pick.draw_index)] = pick
                captions[caption_of(pick, config, self.config.seed)] = None
            if (len(pictures), len(captions)) == most:
                break
        crops, learns = config.crop == "random", bool(self.config.adapter.text_encoders)
        posteriors = [] if crops else [partial(self.encoder.posterior, pick) for pick in pictures.values()]
        return [*posteriors, *([] if learns else [partial(self.encoder.texts, [caption]) for caption in captions])]

    def _picked(self, step: int) -> list[Pick]:
        """A step's pictures that this process shows."""
        return [pick for own, prior in self._shares(step) for pick in (*own, *prior)]

    def _shares(self, step: int) -> list[tuple[list[Pick], list[Pick]]]:
        """The subject's and the class' pictures of each of this process' micro-batches."""
        batch, count = (
            self.config.train.batch_size,
            self.config.train.batch_size * self.config.train.gradient_accumulation_steps,
        )
        own = picks(self.own, self.config.seed, step, count)
        prior = [] if self.prior is None else picks(self.prior, self.config.seed, step, count)
        starts = range(0, count, batch)[self.processes.turns]
        return [(own[start : start + batch], prior[start : start + batch]) for start in starts]

    @property
    def _variants(self) -> tuple[int, int]:
        """Pictures, mirrored ones counted too, and captions that there are at most."""
        samples = [*self.own.samples, *(() if self.prior is None else self.prior.samples)]
        captions = {caption for sample in samples for caption in sample.captions}
        dropped = {""} if self.config.data.caption_dropout else set()
        return len({sample.id for sample in samples}) * (1 + self.config.data.flip), len(captions | dropped)

    def _micro(self, own: Sequence[Pick], prior: Sequence[Pick], count: int) -> MicroBatch:
        """One forward pass over both kinds: loss + weight x prior loss, each a mean (Ruiz et al. 2023, eq. 2)."""
        picked = [*own, *prior]
        latents = self.encoder.latents(picked)
        is_prior_B = torch.tensor([False] * len(own) + [True] * len(prior))
        weight_B = torch.where(is_prior_B, self._prior_weight, 1.0) / count
        return MicroBatch(
            latents=latents.to(self.device),
            noise=self._noise(latents, picked).to(self.device),
            t_B=self._times(picked).to(self.device),
            text=self._text(picked),
            geometries=tuple(self.encoder.geometry(pick) for pick in picked),
            weight_B=weight_B.to(self.device),
            is_prior_B=is_prior_B.to(self.device),
            samples=tuple(pick.sample for pick in picked),
        )

    @property
    def _prior_weight(self) -> float:
        return 0.0 if self.config.data.prior is None else self.config.data.prior.weight

    def _noise(self, latents: Tensor, picked: Sequence[Pick]) -> Tensor:
        seed = self.config.seed
        return torch.cat([noise_like(latents[:1], pick, seed, "noise") for pick in picked])

    def _times(self, picked: Sequence[Pick]) -> Tensor:
        seed = self.config.seed
        numbers = [uniform(seed, pick.draw_index, pick.sample.id, "timestep") for pick in picked]
        return self.objective.times(torch.tensor(numbers, dtype=torch.float64))

    def _text(self, picked: Sequence[Pick]) -> Conditioning | list[str]:
        """Return encoded captions, or the captions where a text encoder is in training and must read them each time."""
        captions = [caption_of(pick, self.config.data, self.config.seed) for pick in picked]
        if self.config.adapter.text_encoders:
            return captions
        return self.encoder.texts(captions).to(self.device)
