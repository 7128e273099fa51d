"""Prompt fidelity: what the base takes pictures for, whatever their style."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.errors import raises_code
from tests.training import tiny_config
from veneer.adapter.apply import apply_adapter
from veneer.adapter.inject import inject
from veneer.adapter.lora import LoraFactors
from veneer.adapter.registry import specs_of
from veneer.data.transform import Geometry
from veneer.engine.precision import precision_of
from veneer.evaluate.prompt_fidelity import (
    CAPTIONS,
    Judge,
    Recognition,
    compare_recognition,
    margins_in_group,
    measure_prompt_fidelity,
)
from veneer.evaluate.prompts import fidelity_prompts
from veneer.family.protocol import Family
from veneer.family.registry import load_family
from veneer.rng import key, torch_generator
from veneer.sample.generate import generate, generate_quietly

PROMPTS = [f"a {thing} emoji" for thing in ("turtle", "rocket", "pizza", "whale", "key", "cactus", "cow", "violin")]
FLOAT32 = precision_of("float32", torch.device("cpu"))


def _latents(family: Family, count: int) -> Tensor:
    side = family.resolution
    pixels = [torch.rand(3, side, side, generator=torch_generator(n, "pixels")) * 2 - 1 for n in range(count)]
    return family.encode_image(torch.stack(pixels)).mean


def test_margins_are_those_of_the_definition() -> None:
    errors = np.random.default_rng(0).uniform(0.5, 2, (5, 5, 4))
    margins = margins_in_group(errors)
    for picture in range(5):
        fits = [np.log(errors[picture, n]) - np.log(errors[:, n]).mean(axis=0) for n in range(5)]
        others = [fit for n, fit in enumerate(fits) if n != picture]
        best = min(others, key=lambda fit: fit.mean())
        np.testing.assert_allclose(margins[picture], best - fits[picture], rtol=1e-12, atol=1e-12)


def test_a_text_that_fits_every_picture_better_draws_no_picture_to_itself() -> None:
    errors = np.random.default_rng(1).uniform(0.9, 1.1, (6, 6, 3))
    errors[np.arange(6), np.arange(6)] *= 0.5
    assert (margins_in_group(errors).mean(axis=1) > 0).all()
    liked = errors * np.array([1, 0.01, 1, 1, 20, 1])[None, :, None]
    np.testing.assert_allclose(margins_in_group(liked), margins_in_group(errors), rtol=1e-9)
    assert (liked.mean(axis=2).argmin(axis=1) == 1).all()  # which the bare rule takes all of them for


def test_errors_are_the_bases_own_losses(family: Family) -> None:
    latents, prompts, draws = _latents(family, 3), PROMPTS[:3], 3
    side = family.resolution
    times = [(draw + 0.5) / draws for draw in range(draws)]
    errors = np.zeros((3, 3, draws))
    for draw, time in enumerate(times):
        noise = torch.randn(latents.shape[1:], generator=torch_generator(7, draw, "prompt fidelity"))
        for picture in range(3):
            for text in range(3):
                t_1, clean = torch.tensor([time], dtype=torch.float64), latents[picture : picture + 1]
                told = family.condition(family.encode_text([prompts[text]]), [Geometry.whole(side, side)])
                noisy, target = (f(clean, noise[None], t_1) for f in (family.noise.add_noise, family.noise.target))
                with torch.no_grad():
                    errors[picture, text, draw] = (family.predict(noisy, t_1, told) - target).square().mean()
    found = Judge(family, prompts, FLOAT32, seed=7, draws=draws).recognise(latents)
    np.testing.assert_allclose(found.margins_N, margins_in_group(errors).mean(axis=1), atol=2e-6)
    assert found.captions_N.tolist() == [3, 3, 3]


def test_every_picture_is_held_against_eight_other_prompts_or_more(family: Family) -> None:
    prompts = [f"{number} things" for number in range(2 * CAPTIONS + 5)]
    captions_N = Judge(family, prompts, FLOAT32, draws=1).recognise(_latents(family, len(prompts))).captions_N
    assert captions_N.sum() == 10**2 + 11**2 and captions_N.min() > CAPTIONS


def test_the_order_of_pictures_does_not_matter(family: Family) -> None:
    latents, prompts = _latents(family, 6), PROMPTS[:6]
    forward = Judge(family, prompts, FLOAT32, draws=2).recognise(latents)
    backward = Judge(family, prompts[::-1], FLOAT32, draws=2).recognise(latents.flip(0))
    np.testing.assert_allclose(backward.margins_N[::-1], forward.margins_N, atol=2e-6)


def test_a_picture_that_is_not_finite_is_one_line(family: Family) -> None:
    latents = _latents(family, 3)
    latents[1] = float("nan")
    with raises_code("evaluate.error_not_finite"):
        Judge(family, PROMPTS[:3], FLOAT32, draws=1).recognise(latents)


def test_texts_are_encoded_once_and_draws_end_where_answers_are_sure(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[str] = []
    encode = type(family).encode_text
    monkeypatch.setattr(
        type(family), "encode_text", lambda self, texts: (encoded.extend(texts), encode(self, texts))[1]
    )
    judge = Judge(family, PROMPTS, FLOAT32)
    asked: list[int] = []
    random = np.random.default_rng(0)
    spread = 1.0  # of the errors under other prompts; none of it is of the draw

    def errors(latents: Tensor, told: object, draw: int) -> NDArray[np.float64]:
        asked.append(draw)
        return np.exp(spread * random.standard_normal((8, 8)) + 9 * sure * (1 - np.eye(8)))

    monkeypatch.setattr(judge, "_of_draw", errors)
    sure = 1
    assert judge.recognise(torch.zeros(8, 1)).recognised_N.all() and asked == [0, 4, 2]
    asked.clear()
    sure = 0
    judge.recognise(torch.zeros(8, 1))
    assert asked == [0, 4, 2, 6, 1, 5, 3, 7] and encoded == PROMPTS


def test_base_and_adapter_paint_alike_and_the_base_alone_judges(family: Family, tiny_pictures: Path) -> None:
    config = tiny_config(tiny_pictures, sample={"steps": 2, "guidance": 1.0})
    injection = inject(family.networks, specs_of(config.adapter, family), seed=0)
    try:
        weights = {
            path: replace(one, up=torch.randn(one.up.shape, generator=torch_generator(path)))
            for path, one in injection.weights().items()
            if isinstance(one, LoraFactors)
        }
    finally:
        injection.eject()
    prompts = PROMPTS[:4]
    seeds = [key(config.seed, prompt, "prompt fidelity") for prompt in prompts]
    judge = Judge(family, prompts, FLOAT32, seed=config.seed)

    def margin() -> float:
        pictures = generate_quietly(family, prompts, seeds, steps=2, guidance=1.0)
        pixels = [torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 127.5 - 1 for picture in pictures]
        latents.append(torch.cat([family.encode_image(one[None]).mean for one in pixels]))
        return float(judge.recognise(latents[-1]).margins_N.mean())

    latents: list[Tensor] = []
    by_base = margin()
    with apply_adapter(family.networks, weights):
        judged_by_itself = margin()
    by_base_of_adapter = float(judge.recognise(latents[-1]).margins_N.mean())
    found = measure_prompt_fidelity(config, family, weights, prompts)
    assert found.base_margin == pytest.approx(by_base, abs=1e-6)
    assert found.adapter_margin == pytest.approx(by_base_of_adapter, abs=1e-6) != pytest.approx(judged_by_itself)


def _answers(*rows: str) -> list[Recognition]:
    margins = [np.array([{"x": 0.5, ".": -0.5}[mark] for mark in row]) for row in rows]
    return [Recognition(each, np.full(len(each), 9)) for each in margins]


def test_what_is_kept_is_a_share_of_what_the_base_paints_right() -> None:
    fidelity = compare_recognition(_answers("xxxxxxxx..", "xxxxxxxxx."), _answers("xxxx....x.", "xxxxxx...."))
    assert fidelity.base.value == pytest.approx(0.85) and fidelity.adapter.value == pytest.approx(0.55)
    assert fidelity.difference.value == pytest.approx(-0.3)
    assert fidelity.kept is not None
    assert fidelity.kept.value == pytest.approx((4 * 1 + 2 * 0.5 + 3 * 0) / 9)  # the ninth was right once, and lost
    assert fidelity.chance == pytest.approx(1 / 9) and (fidelity.prompts, fidelity.pictures) == (10, 2)
    assert fidelity.verdict == "perhaps lost"  # of ten prompts


@pytest.mark.parametrize(
    ("base", "adapter", "verdict"),
    [
        ("x" * 64, "x" * 64, "kept"),
        ("x" * 64, "x" * 58 + "." * 6, "lost"),
        ("x" * 64, "x" * 63 + ".", "kept"),
        ("x" * 6, "x" * 6, "too few pictures to tell"),
        ("x" * 6, "xxxxx.", "perhaps lost"),
        ("." * 40, "." * 40, "kept"),
    ],
)
def test_the_verdict_says_when_things_are_lost(base: str, adapter: str, verdict: str) -> None:
    assert compare_recognition(_answers(base), _answers(adapter)).verdict == verdict


@pytest.mark.slow
def test_the_bundled_base_knows_its_own_pictures_and_no_others() -> None:
    family = load_family("bundled")
    pictures = generate(family, PROMPTS, seeds=range(len(PROMPTS)), steps=15)
    pixels = [torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 127.5 - 1 for picture in pictures]
    latents = family.encode_image(torch.stack(pixels)).mean
    judge = Judge(family, PROMPTS, FLOAT32)
    assert judge.recognise(latents).recognised_N.all()
    assert not judge.recognise(latents.roll(1, 0)).recognised_N.any()


def test_prompts_are_captions_and_then_other_things_with_the_trigger() -> None:
    captions = ["a horse, tok", "tok", "", "a horse, tok", "a cup, tok"]
    found = fidelity_prompts("some/base", captions, "tok", 5)
    assert found[:2] == ("a horse, tok", "a cup, tok") and len(found) == len(set(found)) == 5
    assert all(prompt.endswith(", tok") for prompt in found)
    assert not {"a horse, tok", "a cup of coffee, tok"} & set(found[2:])  # which captions name already
    assert fidelity_prompts("some/base", captions, "tok", 1) == ("a horse, tok",)
    assert not any("," in prompt for prompt in fidelity_prompts("some/base", [], None, 9))
