"""Prompt fidelity: whether the base takes a painted picture for what its prompt says.

A denoiser is a classifier that nobody trained: of several texts it takes a picture for the one under which it predicts
the picture's noise best (Li et al. 2023, eq. 5; Clark and Jaini 2023). In a style that the base has not learned a few
texts fit every picture better than their own do, and the bare rule finds little more than chance. So pictures are held
against each other's prompts, a group at a time, and each text's mean over the group's pictures is taken off: what is
left is how much better than the others a picture fits a text. A style is common to all of them, and drops out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from veneer.adapter.apply import apply_adapter
from veneer.adapter.protocol import AdapterWeights
from veneer.config.schema import RunConfig
from veneer.data.transform import Geometry
from veneer.engine.attention import trusted_attention
from veneer.engine.precision import Precision, precision_of
from veneer.errors import UserError
from veneer.evaluate.proportion import share_difference_interval, share_interval
from veneer.evaluate.results import PromptFidelity, Share, things_verdict_of
from veneer.family.protocol import Conditioning, Family, device_of
from veneer.objective.loss import Objective
from veneer.rng import key, torch_generator
from veneer.sample.generate import generate_quietly

__all__ = [
    "CAPTIONS",
    "DRAWS",
    "Judge",
    "Recognition",
    "compare_recognition",
    "margins_in_group",
    "measure_prompt_fidelity",
]

CAPTIONS = 8
"""Other captions that a picture is held against, where there are as many."""
DRAWS = 8
"""Noise draws of a picture and a caption, at most."""
_FEWEST_DRAWS = 3
_SETTLED = 4.0
"""Standard errors that a margin must be away from zero for further draws not to matter."""
_ROWS_AT_ONCE = 64

Errors = npt.NDArray[np.float64]
"""Errors of predicted noise, (pictures, captions, draws)."""
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Recognition:
    """What the base takes each picture for.

    Attributes:
        margins_N: by how much the error under the picture's own prompt is lower than under the best other one, in
            natural logarithms; below zero where another one is better.
        captions_N: prompts that each picture was held against, its own among them: by chance it is one in so many.
    """

    margins_N: Values
    captions_N: npt.NDArray[np.int64]

    @property
    def recognised_N(self) -> npt.NDArray[np.bool_]:
        """Whether each picture is taken for what its own prompt says."""
        return self.margins_N > 0


def measure_prompt_fidelity(
    config: RunConfig, family: Family, weights: AdapterWeights, prompts: Sequence[str]
) -> PromptFidelity:
    """Paint prompts with base and adapter from the same seeds, and compare what the base takes the pictures for.

    Args:
        config: seed, precision, and how is painted.
        family: the base, without any adapter in it; it gets its bits back.
        weights: the adapter.
        prompts: at least two, each another one.
    """
    sides = [_paint(config, family, prompts)]
    with apply_adapter(family.networks, weights):
        sides.append(_paint(config, family, prompts))
    judge = Judge(family, prompts, precision_of(config.train.precision, device_of(family)), seed=config.seed)
    base, adapter = (judge.recognise(_latents_of(family, pictures)) for pictures in sides)
    return compare_recognition([base], [adapter])


def _paint(config: RunConfig, family: Family, prompts: Sequence[str]) -> list[Image.Image]:
    seeds = [key(config.seed, prompt, "prompt fidelity") for prompt in prompts]
    return generate_quietly(family, prompts, seeds, steps=config.sample.steps, guidance=config.sample.guidance)


def _latents_of(family: Family, pictures: Sequence[Image.Image]) -> Tensor:
    """Return the latents (N, ...) of pictures, encoded one by one, for an autoencoder takes much memory."""
    pixels = (torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1) / 127.5 - 1 for picture in pictures)
    device = device_of(family)
    return torch.cat([family.encode_image(picture[None].to(device)).mean.cpu() for picture in pixels])


def compare_recognition(base: Sequence[Recognition], adapter: Sequence[Recognition]) -> PromptFidelity:
    """Compare what the base takes its own pictures for with what it takes the adapter's for.

    Args:
        base: of its pictures, for each seed those of the same N prompts.
        adapter: of its pictures of the same prompts and seeds.
    """
    base_SN, adapter_SN = (np.stack([one.recognised_N for one in side]) for side in (base, adapter))
    differences_N = adapter_SN.mean(axis=0) - base_SN.mean(axis=0)
    right_N = base_SN.any(axis=0)
    kept_N = np.divide((adapter_SN & base_SN).sum(axis=0)[right_N], base_SN.sum(axis=0)[right_N])
    difference = Share(float(differences_N.mean()), *share_difference_interval(differences_N))
    return PromptFidelity(
        base=_share(base_SN),
        adapter=_share(adapter_SN),
        difference=difference,
        kept=Share(float(kept_N.mean()), *share_interval(kept_N, len(base))) if right_N.any() else None,
        base_margin=float(np.mean([one.margins_N for one in base])),
        adapter_margin=float(np.mean([one.margins_N for one in adapter])),
        chance=float(np.mean([1 / one.captions_N for one in base])),
        prompts=base_SN.shape[1],
        pictures=len(base),
        verdict=things_verdict_of(difference),
    )


def _share(recognised_SN: npt.NDArray[np.bool_]) -> Share:
    shares_N: Values = recognised_SN.mean(axis=0)
    return Share(float(shares_N.mean()), *share_interval(shares_N, len(recognised_SN)))


def margins_in_group(errors: Errors) -> Errors:
    """Return by how much each picture fits its own prompt better than the best other one, by draw (pictures, draws).

    The prompt that is the best other one is that of the mean over the draws.

    Args:
        errors: of each of n pictures under each one's prompt, (n, n, draws); a picture's own is on the diagonal.
    """
    logs = np.log(errors)
    apart = logs - logs.mean(axis=0, keepdims=True)
    means = apart.mean(axis=2)
    np.fill_diagonal(means, np.inf)
    places = np.arange(len(means))
    margins: Errors = apart[places, means.argmin(axis=1)] - apart[places, places]
    return margins


class Judge:
    """A denoiser that is asked which of several texts fits a picture.

    Noise and times are the same for all pictures and texts.

    Args:
        family: the base, without an adapter.
        prompts: at least two, each another one.
        precision: of the denoiser.
        seed: of the noise and of the groups.
        draws: noise draws of a picture and a prompt, at most, each in the middle of one of so many equal parts of time.
    """

    @torch.no_grad()
    def __init__(
        self, family: Family, prompts: Sequence[str], precision: Precision, *, seed: int = 0, draws: int = DRAWS
    ) -> None:
        assert len(prompts) == len(set(prompts)) >= 2
        self._family, self._precision, self._seed, self._draws = family, precision, seed, draws
        self._objective, self._device = Objective(family.noise), device_of(family)
        self._groups = _groups(prompts, seed)
        side = family.resolution
        self._told = family.condition(family.encode_text(prompts), [Geometry.whole(side, side)] * len(prompts))

    def recognise(self, latents: Tensor) -> Recognition:
        """Return what the denoiser takes pictures for, one of each prompt.

        Args:
            latents: of the pictures, (N, ...), as the denoiser sees them.

        Raises:
            UserError: an error is not finite.
        """
        count = len(latents)
        margins_N, captions_N = np.empty(count), np.empty(count, dtype=np.int64)
        for group, errors in self.errors(latents):
            margins_N[group], captions_N[group] = margins_in_group(errors).mean(axis=1), len(group)
        if not np.isfinite(margins_N).all():
            what, remedy = "the error of a painted picture is not finite", "use float32 as train.precision"
            raise UserError(what, code="evaluate.error_not_finite", remedy=remedy)
        return Recognition(margins_N, captions_N)

    @torch.no_grad()
    def errors(self, latents: Tensor) -> Iterator[tuple[list[int], Errors]]:
        """Yield the places of each group's n pictures and prompts, and the errors (n, n, draws) of each under each.

        A group is done as soon as no further draw would change an answer.

        Args:
            latents: of the pictures, (N, ...), as the denoiser sees them.
        """
        for group in self._groups:
            yield group, self._errors(latents, group)

    def _errors(self, latents: Tensor, group: Sequence[int]) -> Errors:
        told, own = self._told.rows(group).to(self._device), latents[group].to(self._device)
        drawn: list[Errors] = []
        for draw in self._order():
            drawn.append(self._of_draw(own, told, draw))
            if len(drawn) >= _FEWEST_DRAWS and _is_settled(margins_in_group(np.stack(drawn, axis=2))):
                break
        return np.stack(drawn, axis=2)

    def _order(self) -> list[int]:
        """Return the draws so that the first ones are of times far apart (van der Corput 1935)."""
        digits = max(1, (self._draws - 1).bit_length())
        return sorted(range(self._draws), key=lambda draw: f"{draw:0{digits}b}"[::-1])

    def _of_draw(self, latents: Tensor, told: Conditioning, draw: int) -> Errors:
        """Return the errors (n, n) under one noise at one time."""
        count = len(latents)
        low, high = self._family.trained_times
        time = low + (draw + 0.5) / self._draws * (high - low)
        generator = torch_generator(self._seed, draw, "prompt fidelity")
        noise = torch.randn(latents.shape[1:], generator=generator).to(self._device)
        pairs = [(picture, text) for picture in range(count) for text in range(count)]
        parts = [self._errors_of(latents, noise, time, told, part) for part in self._batches(pairs)]
        return torch.cat(parts).double().cpu().numpy().reshape(count, count)

    def _errors_of(
        self, latents: Tensor, noise: Tensor, time: float, told: Conditioning, pairs: Sequence[tuple[int, int]]
    ) -> Tensor:
        clean = latents[[picture for picture, _ in pairs]]
        times = torch.full((len(pairs),), time, dtype=torch.float64, device=self._device)
        rows = told.rows([text for _, text in pairs])
        with self._precision.autocast(), trusted_attention():
            return self._objective.loss_B(self._family.predict, clean, noise.expand_as(clean), times, rows)

    def _batches(self, pairs: Sequence[tuple[int, int]]) -> Iterator[Sequence[tuple[int, int]]]:
        count = self._family.inference_batch_size or _ROWS_AT_ONCE
        for start in range(0, len(pairs), count):
            yield pairs[start : start + count]


def _groups(prompts: Sequence[str], seed: int) -> list[list[int]]:
    """Return the places of prompts in groups of ``CAPTIONS`` + 1, or up to twice as many where they do not divide."""
    order = sorted(range(len(prompts)), key=lambda place: key(seed, prompts[place], "group of prompts"))
    count = max(1, len(prompts) // (CAPTIONS + 1))
    return [part.tolist() for part in np.array_split(np.array(order), count)]


def _is_settled(margins_ND: Errors) -> bool:
    """Return whether every picture's mean margin is far from zero by the spread of its draws."""
    errors_N = margins_ND.std(axis=1, ddof=1) / np.sqrt(margins_ND.shape[1])
    return bool((np.abs(margins_ND.mean(axis=1)) > _SETTLED * errors_N).all())
