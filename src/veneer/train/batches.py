"""Build the micro-batches of a step: a pure function of (seed, step), with all that is random drawn here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from veneer.config.schema import RunConfig
from veneer.data.augment import draws_differ, names_side
from veneer.data.buckets import Size
from veneer.data.caption_text import all_texts, caption_of
from veneer.data.clip_frames import FrameSpan
from veneer.data.loader import DrawSchedule, SampleDraw
from veneer.data.transform import Geometry, is_flipped
from veneer.engine.device_copy import to_device
from veneer.engine.memory_usage import available_memory
from veneer.errors import UserError
from veneer.family.cache import Encoder, noise_like
from veneer.family.protocol import Conditioning
from veneer.family.store import MemoryStore
from veneer.objective.loss import Objective
from veneer.rng import uniform
from veneer.train.distributed import ALONE, ProcessGroup
from veneer.train.events import EncodingProgress
from veneer.train.step import MicroBatch

__all__ = ["BatchBuilder", "EncodingCall"]

_Variant: TypeAlias = tuple[str, Size, bool]
"""A picture's id, the size that it is cut to, and whether it is mirrored."""
_View: TypeAlias = tuple[_Variant, FrameSpan | None]
"""A picture's variant, or a clip's with the frames that are seen, where these are kept encoded."""


@dataclass(frozen=True)
class EncodingCall:
    """Something that can be encoded before the steps that need it.

    Attributes:
        key: that it is kept under; None: it is not known yet.
        draw: whose pictures it needs; None: it needs none.
        encode: encodes it.
    """

    key: tuple[object, ...] | None
    draw: SampleDraw | None
    encode: Callable[[], object]

    @property
    def pixels(self) -> int | None:
        """Pixels of the picture, or of all frames of the clip, that is encoded; None: not known, or it is a text."""
        if self.draw is None:
            return None
        frames = 1 if self.draw.span is None else self.draw.span.count
        return frames * self.draw.size[0] * self.draw.size[1]

    def __call__(self) -> None:
        """Encode it."""
        self.encode()


@dataclass(frozen=True)
class BatchBuilder:
    """Builds the micro-batches of a run's steps.

    Attributes:
        config: batch size, accumulation, captions, seed.
        objective: whose density the times are drawn from.
        encoder: turns pictures into latents and captions into conditioning.
        own: pictures of the style or subject.
        prior: pictures of the class, as many as of the subject's; None: none. They are in the subject's micro-batches
            where all pictures have one size, else in micro-batches of their own.
        device: that micro-batches are on.
        processes: that share them.
    """

    config: RunConfig
    objective: Objective
    encoder: Encoder
    own: DrawSchedule
    prior: DrawSchedule | None
    device: torch.device
    processes: ProcessGroup = ALONE
    _ahead: dict[int, list[MicroBatch]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def micro_batches(self, step: int) -> list[MicroBatch]:
        """Return this process's micro-batches of a step, counted from 0; all processes' weights make one mean.

        While the step is done, workers load the pictures of the next one.
        """
        ahead = self._ahead.pop(step, None)
        self._ahead.clear()
        return self._build(step) if ahead is None else ahead

    def build_ahead(self, step: int) -> None:
        """Build a step's micro-batches while a GPU does the step before, and let their copies wait in its queue.

        Nothing is done on the CPU, which has no time for it, nor where something would have to be encoded.
        """
        is_due = self.device.type != "cpu" and step < self.config.train.max_steps and step not in self._ahead
        if is_due and self._is_kept(step):
            with suppress(UserError):  # which is raised by the step itself
                self._ahead[step] = self._build(step)

    def _is_kept(self, step: int) -> bool:
        """Check whether all that a step sees is kept encoded."""
        return all(
            self.encoder.keeps(draw) and all(map(self.encoder.store.holds, self._keys(draw)))
            for draw in self._draws(step)
        )

    def _keys(self, draw: SampleDraw) -> Iterator[tuple[object, ...]]:
        """Yield the keys of what is kept of a draw."""
        yield self.encoder.posterior_key(draw)
        if draw.sample.references:
            yield self.encoder.references_key(draw)
        if not self.config.adapter.text_encoders:
            yield self.encoder.text_key(caption_of(draw, self.config.data, self.config.seed), draw)

    def _build(self, step: int) -> list[MicroBatch]:
        count = self.config.train.batch_size * self.config.train.gradient_accumulation_steps
        shares = self._shares(step)
        self.encoder.expect(draw for own, prior in shares for draw in (*own, *prior))
        micros = [self._micro(own, prior, count) for own, prior in shares]
        if step + 1 < self.config.train.max_steps:
            self.encoder.expect(self._draws(step + 1))
        return micros

    def encoding_calls(self, steps: range) -> list[EncodingCall]:
        """Return calls that encode now what these steps will need, each thing once.

        Pictures of which each draw sees other pixels are not among it, nor captions that a text encoder learns from.
        """
        pictures: dict[_View, SampleDraw] = {}
        captions: dict[tuple[str, _Variant | None], SampleDraw] = {}
        config, all_there_are = self.config.data, self._variants
        for batch in map(self._draws, steps):
            for draw in batch:
                flipped = is_flipped(draw.sample, config, self.config.seed, draw.draw_index)
                variant = draw.sample.id, draw.size, flipped
                pictures[variant, draw.span if self.encoder.keeps(draw) else None] = draw
                seen = variant if self.encoder.reads_references(draw.sample) else None
                captions[caption_of(draw, config, self.config.seed), seen] = draw
            if (len(pictures), len(captions)) == all_there_are:
                break
        differ, calls = draws_differ(config), list[EncodingCall]()
        if not differ:
            calls += [self._picture_call(draw) for draw in pictures.values() if self.encoder.keeps(draw)]
            calls += [self._mask_call(draw) for draw in pictures.values() if draw.sample.mask is not None]
            calls += [self._references_call(draw) for draw in pictures.values() if draw.sample.references]
        if not self.config.adapter.text_encoders:
            texts = [
                self._text_call(caption, draw)
                for (caption, seen), draw in captions.items()
                if seen is None or not differ
            ]
            if texts and all_there_are is None and isinstance(self.encoder.store, MemoryStore):
                calls.append(replace(texts[0], encode=partial(_check_memory, texts[0].encode, len(texts))))
            calls += texts
        return calls

    def _picture_call(self, draw: SampleDraw) -> EncodingCall:
        return EncodingCall(self.encoder.posterior_key(draw), draw, partial(self.encoder.posterior, draw))

    def _mask_call(self, draw: SampleDraw) -> EncodingCall:
        # whether it is kept is known when the picture's latents are, over which it is averaged
        return EncodingCall(None, None, partial(self._masks, [draw]))

    def _references_call(self, draw: SampleDraw) -> EncodingCall:
        return EncodingCall(self.encoder.references_key(draw), draw, partial(self.encoder.references, [draw]))

    def _text_call(self, caption: str, draw: SampleDraw) -> EncodingCall:
        encode = partial(self.encoder.texts, [caption], [draw])
        return EncodingCall(self.encoder.text_key(caption, draw), None, encode)

    def encode_ahead(self, steps: range) -> Iterator[EncodingProgress]:
        """Encode now what these steps will need, one after the other; pictures are decoded ahead of that.

        The progress is told before each and after the last.
        """
        return self.encode(self.encoding_calls(steps))

    def encode(self, calls: Sequence[EncodingCall]) -> Iterator[EncodingProgress]:
        """Encode what is not kept already, as :meth:`encode_ahead` does."""
        missing = [call for call in calls if call.key is None or not self.encoder.store.holds(call.key)]
        found, window = len(calls) - len(missing), max(1, self.encoder.pixels.ahead)
        for done, call in enumerate(missing):
            yield EncodingProgress(found + done, len(calls), found)
            near = missing[done : done + window]
            self.encoder.expect(ahead.draw for ahead in near if ahead.draw is not None)
            call()
        self.encoder.pixels.close()
        yield EncodingProgress(len(calls), len(calls), found)

    def _draws(self, step: int) -> list[SampleDraw]:
        """Return the draws of a step that this process trains on."""
        return [draw for own, prior in self._shares(step) for draw in (*own, *prior)]

    def _shares(self, step: int) -> list[tuple[list[SampleDraw], list[SampleDraw]]]:
        """Return the subject's and the class's draws of each of this process's micro-batches.

        Where they are not in one, those of the class come after all of the subject's, in every process: micro-batches
        have the same places in a step's sums whatever the number of processes.
        """
        passes = self.config.train.gradient_accumulation_steps
        numbers = range(step * passes, (step + 1) * passes)[self.processes.turns]
        own = [self.own.micro_batch(number) for number in numbers]
        if self.prior is None:
            return [(draws, []) for draws in own]
        prior = [self.prior.micro_batch(number) for number in numbers]
        if self.shares_passes:
            return list(zip(own, prior, strict=True))
        return [*((draws, []) for draws in own), *(([], draws) for draws in prior)]

    @property
    def shares_passes(self) -> bool:
        """Whether pictures of the class are in the subject's micro-batches: all pictures have one and the same size."""
        return self.prior is not None and len({*self.own.members, *self.prior.members}) == 1

    @property
    def _variants(self) -> tuple[int, int] | None:
        """How many pictures and parts of clips there are at most, mirrored ones counted too, and how many texts.

        None: each draw makes a text of its own.
        """
        schedules = (self.own,) if self.prior is None else (self.own, self.prior)
        pictures = {
            (sample.id, (height, width)): sample
            for schedule in schedules
            for (height, width, _), samples in schedule.members.items()
            for sample in samples
        }
        flip = self.config.data.flip
        sides = {place: 1 + (flip and not names_side(sample.captions)) for place, sample in pictures.items()}
        captions: set[tuple[str, tuple[str, Size] | None]] = set()
        for place, sample in pictures.items():
            texts = all_texts(sample, self.config.data, self.config.seed)
            if texts is None:
                return None
            captions |= {(text, place if self.encoder.reads_references(sample) else None) for text in texts}
        count = sum(1 if seen is None else sides[seen] for _, seen in captions)
        return sum(sides[place] * self.own.parts(sample) for place, sample in pictures.items()), count

    def _micro(self, own: Sequence[SampleDraw], prior: Sequence[SampleDraw], count: int) -> MicroBatch:
        """Build one forward pass over either kind or both, of one size.

        The losses of all add up to loss + weight x prior loss, each a mean (Ruiz et al. 2023, eq. 2).
        """
        batch = [*own, *prior]
        geometries = tuple(self.encoder.geometry(draw) for draw in batch)
        latents = self.encoder.latents(batch)
        is_prior_B = torch.tensor([False] * len(own) + [True] * len(prior))
        weight_B = torch.where(is_prior_B, self._prior_weight, 1.0) / count
        return MicroBatch(
            latents=to_device(latents, self.device),
            noise=to_device(self._noise(latents, batch), self.device),
            t_B=to_device(self._times(batch, geometries), self.device),
            text=self._text(batch),
            references=self._on_device(self.encoder.references(batch)),
            geometries=geometries,
            weight_B=to_device(weight_B, self.device),
            is_prior_B=is_prior_B,
            samples=tuple(draw.sample for draw in batch),
            mask=self._masks(batch, latents) if own and self.own.has_masks else None,
        )

    def _masks(self, batch: Sequence[SampleDraw], latents: Tensor | None = None) -> Tensor:
        """Return the masks of draws, of one size, over their latents; without latents over those of the first draw.

        Where some pictures of a run have masks, all its micro-batches of the subject have them, so that a recorded pass
        does for all.
        """
        like = self.encoder.posterior(batch[0]).mean if latents is None else latents
        return to_device(self.encoder.masks(batch, (like.shape[-2], like.shape[-1])), self.device)

    @property
    def _prior_weight(self) -> float:
        return 0.0 if self.config.data.prior is None else self.config.data.prior.weight

    def _noise(self, latents: Tensor, batch: Sequence[SampleDraw]) -> Tensor:
        seed = self.config.seed
        return torch.cat([noise_like(latents[:1], draw, seed, "noise") for draw in batch])

    def _times(self, batch: Sequence[SampleDraw], geometries: Sequence[Geometry]) -> Tensor:
        seed = self.config.seed
        numbers = [uniform(seed, draw.draw_index, draw.sample.id, "timestep") for draw in batch]
        return self.objective.times(numbers, [geometry.extent for geometry in geometries])

    def _text(self, batch: Sequence[SampleDraw]) -> Conditioning | list[str]:
        """Return encoded captions, or the captions where a text encoder is in training and must read them each time."""
        captions = [caption_of(draw, self.config.data, self.config.seed) for draw in batch]
        if self.config.adapter.text_encoders:
            return captions
        return self._on_device(self.encoder.texts(captions, batch))

    def _on_device(self, encoded: Conditioning) -> Conditioning:
        return Conditioning({name: to_device(tensor, self.device) for name, tensor in encoded.tensors.items()})


def _check_memory(encode_first: Callable[[], object], count: int) -> Conditioning:
    """Refuse texts that would not all stay in memory, told by the size of the first; return that one.

    Raises:
        UserError: they would not.
    """
    first = encode_first()
    assert isinstance(first, Conditioning)
    needed, left = count * first.nbytes, available_memory()
    if needed > left:
        what = f"tags are shown anew in each draw, which makes {count} texts of {needed / 1e9:.3g} GB in all"
        remedy = "let each caption make a few, data.sources.0.tag_orders=4, or keep them on the disk, data.cache=FOLDER"
        raise UserError(
            f"{what}, and {left / 1e9:.3g} GB are left", code="data.too_many_texts", where="data.sources", remedy=remedy
        )
    return first
