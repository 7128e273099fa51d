"""Held-out losses: the same numbers each time, an adapter that does nothing scores exactly zero."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import write_tiny_base
from tests.errors import raises_code
from tests.training import bits_of, tiny_config, tiny_run, write_mixed_pictures
from veneer.adapter.inject import inject
from veneer.adapter.protocol import AdapterWeights
from veneer.adapter.registry import specs_of
from veneer.data.manifest import Manifest
from veneer.data.preflight import survey
from veneer.evaluate.comparison import DRIFT, HELD_OUT, TRAINING
from veneer.evaluate.heldout import (
    HeldOutEvaluator,
    choose_pictures,
    compare_adapter,
    heldout_losses,
    pictures_by_kind,
    score_adapter,
    unusual_sizes,
)
from veneer.family.protocol import Conditioning, Family
from veneer.family.registry import load_family
from veneer.train.events import Finished


@pytest.fixture(scope="module")
def trained(family: Family, tiny_pictures: Path) -> AdapterWeights:
    last = tiny_run(tiny_config(tiny_pictures, train={"max_steps": 12}), family)[-1]
    assert isinstance(last, Finished)
    return last.weights


def null_adapter(config: Any, family: Family) -> AdapterWeights:
    injection = inject(family.networks, specs_of(config.adapter, family), seed=config.seed)
    try:
        return injection.weights()
    finally:
        injection.eject()


@pytest.mark.parametrize("adapter", [{}, {"text_encoders": {"text_encoder": {}}}], ids=["unet", "both"])
def test_an_adapter_that_does_nothing_scores_exactly_zero(
    family: Family, tiny_pictures: Path, adapter: dict[str, Any]
) -> None:
    config = tiny_config(tiny_pictures, adapter=adapter)
    score = score_adapter(config, family, survey(config.data), null_adapter(config, family))
    assert (score.mean, score.low, score.high) == (0.0, 0.0, 0.0)
    assert score.base == score.adapter > 0
    assert score.verdict == "no effect"


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_null_adapters_are_called_no_effect(family: Family, tiny_pictures: Path, precision: str) -> None:
    """Twenty adapters of B = 0, each with an A of its own, on every kind of pictures."""
    config = tiny_config(tiny_pictures, data={"held_out": 0.5}, validation={"draws": 1}, train={"precision": precision})
    kinds = pictures_by_kind(config, survey(config.data))
    verdicts = []
    for seed in range(10):
        null = null_adapter(config.model_copy(update={"seed": seed}), family)
        found = compare_adapter(config, family, kinds, null)
        assert found.held_out and found.training
        verdicts += [found.held_out.verdict, found.training.verdict]
    assert verdicts.count("no effect") >= 0.95 * len(verdicts)


def test_two_evaluations_are_equal_to_the_bit(family: Family, tiny_pictures: Path, trained: AdapterWeights) -> None:
    config = tiny_config(tiny_pictures)
    dataset = survey(config.data)
    first = heldout_losses(config, family, dataset.held_out)
    torch.manual_seed(5)
    assert np.array_equal(heldout_losses(config, family, dataset.held_out), first)
    assert score_adapter(config, family, dataset, trained) == score_adapter(config, family, dataset, trained)


def test_pictures_of_any_shape_are_measured_at_their_largest_size(family: Family, tmp_path: Path) -> None:
    """The same losses as where only that size is asked for; squares are measured as ever."""
    pictures = write_mixed_pictures(tmp_path / "p", 5)
    several, one = (
        tiny_config(pictures, data={"held_out": 0.0, "resolution": asked}, validation={"draws": 2})
        for asked in ([8, 16], 16)
    )
    train = survey(one.data).train
    losses = heldout_losses(one, family, train)
    assert np.isfinite(losses).all() and np.array_equal(heldout_losses(several, family, train), losses)
    shapes = [tuple(picture.noise_D.shape[-2:]) for picture in HeldOutEvaluator(one, family, train)._noised]
    assert shapes == [(8, 8), (5, 11), (11, 5), (8, 8), (4, 5)]
    squares = tiny_config(pictures, data={"held_out": 0.0, "aspect": "square"}, validation={"draws": 2})
    in_squares = heldout_losses(squares, family, train)
    assert np.array_equal(in_squares[0], losses[0]) and not np.array_equal(in_squares[1], losses[1])
    assert unusual_sizes(squares, family, train) == []
    assert unusual_sizes(one, family, train) == [(8, 10), (10, 22), (16, 16), (22, 10)]


def test_a_trained_adapter_changes_the_loss_and_leaves_the_base(
    family: Family, tiny_pictures: Path, trained: AdapterWeights
) -> None:
    before = bits_of(family.networks)
    config = tiny_config(tiny_pictures)
    score = score_adapter(config, family, survey(config.data), trained)
    assert score.mean != 0 and score.mean == pytest.approx(score.adapter - score.base)
    assert score.low <= score.mean <= score.high
    after = bits_of(family.networks)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_row_a_picture_and_a_column_a_draw(family: Family, tiny_pictures: Path) -> None:
    config = tiny_config(tiny_pictures, validation={"draws": 5})
    held_out = survey(config.data).held_out
    losses = heldout_losses(config, family, held_out)
    assert losses.shape == (len(held_out.samples), 5) and losses.dtype == np.float64
    assert bool(np.isfinite(losses).all())
    one = heldout_losses(config, family, Manifest(held_out.samples[1:2]))
    assert np.array_equal(one[0], losses[1])  # a picture's losses are its own


@pytest.mark.parametrize("draws", [1, 4, 8])
def test_times_are_spread_over_all_of_time(family: Family, tiny_pictures: Path, draws: int) -> None:
    """One in each of as many equal parts as there are draws, for every picture."""
    config = tiny_config(tiny_pictures, validation={"draws": draws})
    seen: list[list[float]] = []

    class Spy:
        def __getattr__(self, name: str) -> Any:
            return getattr(family, name)

        def predict(self, noisy: torch.Tensor, t_B: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
            seen.append(t_B.tolist())
            return family.predict(noisy, t_B, conditioning)

    heldout_losses(config, Spy(), survey(config.data).held_out)
    for times in seen:
        assert [int(t * draws) for t in times] == list(range(draws))
    assert len({tuple(times) for times in seen}) == len(seen) > 1


def test_what_was_trained_with_does_not_change_the_measure(family: Family, tiny_pictures: Path) -> None:
    """Other objectives, schedules and augmentations are measured with the same rod; another seed is another rod."""
    plain = tiny_config(tiny_pictures)
    held_out = survey(plain.data).held_out
    losses = heldout_losses(plain, family, held_out)
    others: dict[str, Any] = {
        "objective": {"weighting": "min_snr", "timestep_density": "high_noise"},
        "data": {"flip": True, "crop": "random", "caption_dropout": 0.9},
        "train": {"max_steps": 50, "batch_size": 1},
    }
    assert np.array_equal(heldout_losses(tiny_config(tiny_pictures, **others), family, held_out), losses)
    assert not np.array_equal(heldout_losses(tiny_config(tiny_pictures, seed=1), family, held_out), losses)


def test_it_is_measured_in_the_precision_that_was_trained_in(family: Family, tiny_pictures: Path) -> None:
    exact, rough = (tiny_config(tiny_pictures, train={"precision": p}) for p in ("float32", "bfloat16"))
    held_out = survey(exact.data).held_out
    losses = heldout_losses(exact, family, held_out)
    assert not np.array_equal(heldout_losses(rough, family, held_out), losses)
    np.testing.assert_allclose(heldout_losses(rough, family, held_out), losses, rtol=0.05)


def test_no_held_out_picture_is_a_mistake_of_the_config(
    family: Family, tiny_pictures: Path, trained: AdapterWeights
) -> None:
    config = tiny_config(tiny_pictures, data={"held_out": 0.0})
    dataset = survey(config.data)
    assert dataset.held_out.samples == ()
    with raises_code("evaluate.nothing_held_out"):
        score_adapter(config, family, dataset, trained)


def test_each_kind_of_pictures_is_compared(family: Family, tiny_pictures: Path, trained: AdapterWeights) -> None:
    config = tiny_config(tiny_pictures)
    dataset = survey(config.data)
    kinds = pictures_by_kind(config, dataset) | {DRIFT: dataset.train}
    found = compare_adapter(config, family, kinds, trained)
    assert found.held_out == score_adapter(config, family, dataset, trained)
    assert found.training and found.gap and found.drift
    assert found.gap.mean == pytest.approx(found.held_out.mean - found.training.mean)
    assert (found.gap.held_out, found.gap.training) == (3, 8)
    assert found.drift.pictures == len(dataset.train.samples) == 9
    assert np.mean([band.score.mean for band in found.bands]) == pytest.approx(found.held_out.mean)
    # what there are no pictures for is not there
    alone = compare_adapter(config, family, {TRAINING: dataset.train, HELD_OUT: Manifest()}, trained)
    assert (alone.held_out, alone.gap, alone.bands, alone.drift) == (None, None, (), None)
    assert alone.training == found.drift


def test_an_adapter_trained_for_long_on_few_pictures_shows_a_gap(tmp_path: Path) -> None:
    """On dark ones; what it learns of them, for v is -x where all is noise, is wrong of light ones."""
    base = write_tiny_base(tmp_path / "base", "v_prediction", zero_terminal_snr=True)
    autoencoder = base / "vae" / "config.json"
    wide = {**json.loads(autoencoder.read_text()), "scaling_factor": 4.0}  # of weights at random, it tells few apart
    autoencoder.write_text(json.dumps(wide))
    family = load_family(str(base))
    train = {"max_steps": 30, "learning_rate": 0.02}
    dark, light = (
        tiny_config(write_plain(tmp_path / str(shade), shade), data=PLAIN, train=train) for shade in (0, 215)
    )
    last = tiny_run(dark, family)[-1]
    assert isinstance(last, Finished)
    pictures = {HELD_OUT: survey(light.data).train, TRAINING: survey(dark.data).train}
    found = compare_adapter(dark, family, pictures, last.weights)
    assert found.gap is not None and found.training is not None
    assert found.training.high < 0 < found.gap.low


PLAIN = {"held_out": 0.0, "trigger": "sks"}


def write_plain(folder: Path, shade: int) -> Path:
    """Three pictures of one colour each."""
    folder.mkdir()
    for number, colour in enumerate([(shade, shade, shade), (shade, shade, shade + 40), (shade + 40, shade, shade)]):
        Image.new("RGB", (64, 64), colour).save(folder / f"{number}.png")
    return folder


def test_pictures_are_limited_and_chosen_by_what_they_are(tiny_pictures: Path) -> None:
    pictures = survey(tiny_config(tiny_pictures, data={"held_out": 0.0}).data).train
    four = choose_pictures(pictures, 4)
    assert len(four.samples) == 4 and set(four.samples) < set(pictures.samples)
    assert list(four.samples) == [sample for sample in pictures.samples if sample in four.samples]
    assert choose_pictures(Manifest(pictures.samples[::-1]), 4).samples == four.samples[::-1]
    assert set(choose_pictures(pictures, 3).samples) < set(four.samples)
    assert choose_pictures(pictures, 99) == Manifest(pictures.samples)


def test_evaluate_pictures_limits_each_kind(family: Family, tiny_pictures: Path, trained: AdapterWeights) -> None:
    config = tiny_config(tiny_pictures, validation={"pictures": 2, "draws": 1})
    dataset = survey(config.data)
    assert len(dataset.held_out.samples) == 3
    assert [len(pictures.samples) for pictures in pictures_by_kind(config, dataset).values()] == [2, 2]
    assert score_adapter(config, family, dataset, trained).pictures == 2


def test_a_ruler_sees_the_text_encoder_as_it_is(family: Family, tiny_pictures: Path) -> None:
    """Captions are encoded anew each time; pictures, whose encoder nobody trains, are not."""
    config = tiny_config(tiny_pictures, validation={"draws": 1})
    evaluator = HeldOutEvaluator(config, family, survey(config.data).held_out)
    before = evaluator.losses()
    weight = next(family.networks["text_encoder"].parameters())
    with torch.no_grad():
        kept = weight.clone()
        weight.mul_(1.5)
        changed = evaluator.losses()
        weight.copy_(kept)
    assert not np.array_equal(changed, before)
    assert np.array_equal(evaluator.losses(), before)


def test_a_loss_that_is_not_finite_is_no_score(family: Family, tiny_pictures: Path) -> None:
    config = tiny_config(tiny_pictures, validation={"draws": 1})
    evaluator = HeldOutEvaluator(config, family, survey(config.data).held_out)
    weight = family.networks["unet"].conv_out.weight
    with torch.no_grad():
        kept = weight.clone()
        weight.fill_(float("inf"))
        with raises_code("evaluate.loss_not_finite") as caught:
            evaluator.losses()
        caught.match(r"denoising loss on .*\.png is not finite")
        weight.copy_(kept)
