"""What a step sees: a pure function of (seed, step), each picture as it would be alone, encoded once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.errors import raises_code
from tests.training import tiny_config, trainer_on, write_mixed_pictures, write_noise_pictures
from veneer.data.loader import SampleDraw
from veneer.data.preflight import survey
from veneer.data.transform import load_pixels
from veneer.family.cache import Encoder
from veneer.family.protocol import Conditioning, Family, LatentDistribution
from veneer.plan.pictures import PictureCounts
from veneer.train.distributed import ProcessGroup
from veneer.train.step import MicroBatch


def micros_of(family: Family, pictures: Path, step: int, **sections: Any) -> list[MicroBatch]:
    with trainer_on(tiny_config(pictures, **sections), family) as trainer:
        return trainer.batches.micro_batches(step)


RANDOM: dict[str, Any] = {"crop": "random", "flip": True, "caption_dropout": 0.5}
PARTS = ("latents", "noise", "t_B", "weight_B", "text")


def tensors_of(micro: MicroBatch) -> dict[str, Tensor]:
    assert isinstance(micro.text, Conditioning)
    return {**vars(micro), **micro.text.tensors}


SIZE = (16, 16)


@pytest.mark.parametrize("data", [{}, {"flip": True}, RANDOM], ids=["plain", "flip", "random"])
def test_a_picture_is_the_same_alone_as_in_a_batch(family: Family, tiny_pictures: Path, data: dict[str, Any]) -> None:
    (whole,) = micros_of(family, tiny_pictures, 5, data=data, train={"batch_size": 4})
    single = micros_of(family, tiny_pictures, 5, data=data, train={"batch_size": 1, "gradient_accumulation_steps": 4})
    for part in PARTS:
        assert torch.equal(torch.cat([tensors_of(micro)[part] for micro in single]), tensors_of(whole)[part]), part
    assert tuple(micro.geometries[0] for micro in single) == whole.geometries
    assert tuple(micro.samples[0] for micro in single) == whole.samples


def test_a_step_can_be_recomputed_without_those_before_it(family: Family, tiny_pictures: Path) -> None:
    with trainer_on(tiny_config(tiny_pictures, data=RANDOM), family) as trainer:
        in_order = [trainer.batches.micro_batches(step)[0] for step in range(4)]
    (alone,) = micros_of(family, tiny_pictures, 3, data=RANDOM)
    assert all(torch.equal(tensors_of(alone)[part], tensors_of(in_order[3])[part]) for part in PARTS)
    assert alone.geometries == in_order[3].geometries


def test_the_same_picture_gets_other_noise_at_another_showing(family: Family, tiny_pictures: Path) -> None:
    with trainer_on(tiny_config(tiny_pictures, train={"batch_size": 9}), family) as trainer:
        first, second = trainer.batches.micro_batches(0)[0], trainer.batches.micro_batches(1)[0]
    place = second.samples.index(first.samples[0])
    assert not torch.equal(first.noise[0], second.noise[place])
    assert not torch.equal(first.latents[0], second.latents[place])  # the posterior is drawn from anew


def test_the_noise_is_not_the_one_that_drew_the_latent(family: Family, tiny_pictures: Path) -> None:
    with trainer_on(tiny_config(tiny_pictures), family) as trainer:
        (micro,) = trainer.batches.micro_batches(0)
        posterior = [trainer.batches.encoder.centered(sample, SIZE) for sample in micro.samples]
    drew = torch.cat([(z - p.mean) / p.std for z, p in zip(micro.latents[:, None], posterior, strict=True)])
    both = torch.stack([drew.flatten(), micro.noise.flatten()])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 4 / drew.numel() ** 0.5


def test_noise_is_standard_normal(family: Family, tiny_pictures: Path) -> None:
    with trainer_on(tiny_config(tiny_pictures, train={"batch_size": 9}), family) as trainer:
        noise = torch.cat([trainer.batches.micro_batches(step)[0].noise for step in range(10)])
    assert abs(float(noise.mean())) < 4 / noise.numel() ** 0.5
    assert abs(float(noise.var()) - 1) < 4 * (2 / noise.numel()) ** 0.5


class Counting:
    """A family that counts what it is asked to encode."""

    token_windows = 1

    def __init__(self, family: Family) -> None:
        self.family, self.pictures, self.texts = family, 0, list[str]()

    def encode_image(self, pixels_BCHW: Tensor) -> LatentDistribution:
        self.pictures += len(pixels_BCHW)
        return self.family.encode_image(pixels_BCHW)

    def encode_text(self, captions: Sequence[str]) -> Conditioning:
        self.texts += captions
        return self.family.encode_text(captions)


def shown(encoder: Encoder, draws: list[SampleDraw]) -> None:
    for draw in draws:
        encoder.latents([draw])
        encoder.texts([draw.sample.captions[0]])


@pytest.mark.parametrize(
    ("data", "times"), [({}, 1), ({"flip": True}, 2), ({"crop": "random"}, 30), ({"crop_jitter": 0.1}, 30)]
)
def test_each_distinct_input_is_encoded_once(family: Family, tiny_pictures: Path, data: Any, times: int) -> None:
    config = tiny_config(tiny_pictures, data=data)
    sample, counting = survey(config.data).train.samples[0], Counting(family)
    shown(Encoder(counting, config.data, seed=0), [SampleDraw(sample, number, SIZE) for number in range(30)])  # type: ignore[arg-type]
    assert counting.pictures == times
    assert counting.texts == [sample.captions[0]]


@pytest.mark.parametrize("data", [{}, {"flip": True}, {"crop": "random", "flip": True}, {"color_jitter": {"hue": 0.1}}])
def test_what_is_kept_is_what_would_be_encoded(family: Family, tmp_path: Path, data: dict[str, Any]) -> None:
    """On pictures whose mirror image and whose edges are others."""
    config = tiny_config(write_noise_pictures(tmp_path), data={"trigger": "noise", **data})
    encoder = Encoder(family, config.data, seed=3)
    for number, sample in enumerate(survey(config.data).train.samples * 2):
        direct = family.encode_image(load_pixels(sample, config.data, SIZE, 3, number)[None])
        kept = encoder.posterior(SampleDraw(sample, number, SIZE))
        assert torch.equal(kept.mean, direct.mean) and torch.equal(kept.std, direct.std)


def test_a_latent_is_drawn_from_the_posterior(family: Family, tiny_pictures: Path) -> None:
    """Elementwise over 400 showings: mean and deviation within five standard errors."""
    config = tiny_config(tiny_pictures)
    encoder, sample = Encoder(family, config.data, seed=0), survey(config.data).train.samples[0]
    drawn = encoder.latents([SampleDraw(sample, number, SIZE) for number in range(400)])
    posterior = encoder.centered(sample, SIZE)
    standard = (drawn - posterior.mean) / posterior.std
    assert float(standard.mean(dim=0).abs().max()) < 5 / 400**0.5
    assert float((standard.var(dim=0) - 1).abs().max()) < 5 * (2 / 400) ** 0.5


TAGGED: dict[str, Any] = {"shuffle_tags": True, "tag_separator": " "}


def tagged(pictures: Path, **source: Any) -> dict[str, Any]:
    return {"sources": [{"path": str(pictures), **TAGGED, **source}]}


@pytest.mark.parametrize("source", [{}, {"tag_orders": 2}, {"tag_dropout": 0.3}])
def test_every_text_of_shuffled_tags_is_known_beforehand(
    family: Family, tiny_pictures: Path, source: dict[str, Any]
) -> None:
    """A large base's text encoders are gone when the first step is done."""
    config = tiny_config(tiny_pictures, data=tagged(tiny_pictures, **source), train={"max_steps": 6})
    with trainer_on(config, family) as trainer:
        builder, counting = trainer.batches, Counting(family)
        builder.encoder._family = counting  # type: ignore[assignment]
        for call in builder.encoding_calls(range(6)):
            call()
        encoded = len(counting.texts)
        for step in range(6):
            builder.micro_batches(step)
    assert encoded == len(counting.texts) == len(set(counting.texts))
    assert encoded <= PictureCounts.from_dataset(survey(config.data), config).captions


def test_texts_that_do_not_fit_into_memory_are_refused_at_once(
    family: Family, tiny_pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("veneer.train.batches.available_memory", lambda: 1000)
    config = tiny_config(tiny_pictures, data=tagged(tiny_pictures))
    with trainer_on(config, family) as trainer, raises_code("data.too_many_texts"):
        for call in trainer.batches.encoding_calls(range(3)):
            call()
    with trainer_on(tiny_config(tiny_pictures, data=tagged(tiny_pictures, tag_orders=2)), family) as trainer:
        for call in trainer.batches.encoding_calls(range(3)):
            call()


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures of five sizes."""
    return write_mixed_pictures(tmp_path_factory.mktemp("mixed") / "pictures")


ALL: dict[str, Any] = {"held_out": 0.0}


def test_pictures_of_several_shapes_are_trained_at_sizes_of_their_own(family: Family, mixed: Path) -> None:
    config = tiny_config(mixed, data=ALL, train={"batch_size": 2})
    seen: Counter[str] = Counter()
    sizes: Counter[tuple[int, int]] = Counter()
    with trainer_on(config, family) as trainer:
        for step in range(10):
            (micro,) = trainer.batches.micro_batches(step)
            (size,) = {geometry.target for geometry in micro.geometries}
            assert micro.latents.shape[-2:] == micro.noise.shape[-2:] == (size[0] // 2, size[1] // 2)
            for sample, geometry in zip(micro.samples, micro.geometries, strict=True):
                assert geometry.original == (sample.height, sample.width)
                assert size[0] <= sample.height and size[1] <= sample.width
            seen.update(sample.path.name for sample in micro.samples)
            sizes[size] += 1
    assert set(seen.values()) == {2} and len(seen) == 10, "each picture has its exact share"
    assert sizes == dict.fromkeys([(16, 16), (10, 22), (22, 10), (8, 10)], 2) | {(16, 16): 4}


def test_all_sizes_are_encoded_ahead(family: Family, mixed: Path) -> None:
    config = tiny_config(mixed, data={**ALL, "resolution": [8, 16], "flip": True}, train={"batch_size": 1})
    counting = Counting(family)
    with trainer_on(config, family) as trainer:
        encoder = trainer.batches.encoder
        encoder._family = counting  # type: ignore[assignment]
        for encode in trainer.batches.encoding_calls(range(200)):
            encode()
        before = counting.pictures, len(counting.texts)
        # 16 x 16, 40 x 20, 20 x 40 and 32 x 30 pixels have two sizes, 12 x 9 one of 8 x 8 and one of 8 x 12
        assert before == (2 * 2 * 10, 10)
        encoder._family = family
        for step in range(50):
            trainer.batches.micro_batches(step)
        assert (counting.pictures, len(counting.texts)) == before


@pytest.mark.parametrize("is_mixed", [False, True], ids=["one size", "several"])
def test_class_pictures_share_a_pass_where_all_have_one_size(
    family: Family, mixed: Path, tiny_pictures: Path, is_mixed: bool
) -> None:
    prior = {"prompt": "a shape", "count": 4, "path": str(tiny_pictures), "weight": 0.25}
    train = {"batch_size": 2, "gradient_accumulation_steps": 2}
    config = tiny_config(mixed if is_mixed else tiny_pictures, data={**ALL, "prior": prior}, train=train)
    with trainer_on(config, family) as trainer:
        micros = trainer.batches.micro_batches(0)
        # two processes take turns: what they do first, second ... is what one does
        shared = [
            replace(trainer.batches, processes=ProcessGroup(rank, 2)).micro_batches(0)  # type: ignore[arg-type]
            for rank in (0, 1)
        ]
    kinds = [micro.is_prior_B.tolist() for micro in micros]
    own, other = [False, False], [True, True]
    assert kinds == ([own, own, other, other] if is_mixed else [[*own, *other]] * 2)
    weights = torch.cat([micro.weight_B for micro in micros])
    is_prior = torch.cat([micro.is_prior_B for micro in micros])
    assert weights[~is_prior].sum() == 1 and weights[is_prior].sum() == 0.25
    in_turns = [micro.samples for turn in zip(*shared, strict=True) for micro in turn]
    assert in_turns == [micro.samples for micro in micros]


@pytest.mark.parametrize("data", [{"flip": True}, {"crop": "random"}], ids=["kept", "encoded each time"])
def test_the_next_batch_is_built_while_a_gpu_works_if_nothing_is_to_be_encoded(
    family: Family, tiny_pictures: Path, data: dict[str, Any]
) -> None:
    """With the meta device in the GPU's place, and on the CPU not at all."""
    with trainer_on(tiny_config(tiny_pictures, data=data), family) as trainer:
        own = trainer.batches
        list(own.encode_ahead(range(3)))
        elsewhere = replace(own, device=torch.device("meta"))
        for builder in (own, elsewhere):
            builder.build_ahead(1)
            builder.build_ahead(3)  # there is none
        kept = list(elsewhere._ahead.values())
        assert not own._ahead and list(elsewhere._ahead) == ([1] if "flip" in data else [])
        micros = elsewhere.micro_batches(1)
        assert not elsewhere._ahead and all(micros is ahead for ahead in kept)
        alone = own.micro_batches(1)
        for one, other in zip(micros, alone, strict=True):
            assert one.samples == other.samples and one.geometries == other.geometries
            assert one.latents.is_meta and one.latents.shape == other.latents.shape


def test_a_step_has_the_next_batch_built_before_it_waits(family: Family, tiny_pictures: Path) -> None:
    with trainer_on(tiny_config(tiny_pictures), family) as trainer:
        asked: list[int] = []
        object.__setattr__(trainer.batches, "build_ahead", asked.append)
        list(trainer.run())
    assert asked == [1, 2, 3]
