"""Scores of painted pictures: as the models' own pieces give them, and distances as their formulas do."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from tests.errors import raises_code
from tests.score_models import write_tiny_clip, write_tiny_dino, write_tiny_head
from veneer.evaluate.model_scores import frechet_distance, kernel_distance, score_pictures
from veneer.evaluate.results import PictureScore
from veneer.evaluate.score_models import FeatureExtractor, ScoreModelPaths, ScoreModels, load_score_models

CAPTIONS = [f"a cat number {number}" for number in range(9)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> ScoreModelPaths:
    folder = tmp_path_factory.mktemp("score_models")
    head = write_tiny_head(folder / "head.safetensors")
    return ScoreModelPaths(str(write_tiny_clip(folder / "clip")), str(write_tiny_dino(folder / "dino")), head)


@pytest.fixture(scope="module")
def score_models(models: ScoreModelPaths) -> ScoreModels:
    return load_score_models(models)


def pictures(seed: int, count: int = len(CAPTIONS)) -> list[Image.Image]:
    random = np.random.default_rng(seed)
    return [Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(count)]


def given_to(images: Sequence[Image.Image]) -> Tensor:
    """What the processors make of pictures that have the models' own size already."""
    pixels = torch.stack([torch.from_numpy(np.array(image)) for image in images]).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]))
    return (pixels - mean) / std


def by_name(scores: Sequence[PictureScore]) -> dict[str, PictureScore]:
    return {score.name: score for score in scores}


def test_clip_sees_and_reads_as_its_own_parts_do(models: ScoreModelPaths, score_models: ScoreModels) -> None:
    from transformers import CLIPModel, CLIPTokenizer

    clip = CLIPModel.from_pretrained(models.clip).eval()
    assert score_models.clip is not None
    with torch.no_grad():
        seen = clip.visual_projection(clip.vision_model(given_to(pictures(0))).pooler_output)
        ids = CLIPTokenizer.from_pretrained(models.clip)(CAPTIONS, padding=True, return_tensors="pt")
        said = clip.text_projection(clip.text_model(**ids).pooler_output)
    torch.testing.assert_close(score_models.clip.image_features(pictures(0)), seen / seen.norm(dim=1, keepdim=True))
    torch.testing.assert_close(score_models.clip.text_features(CAPTIONS), said / said.norm(dim=1, keepdim=True))


def test_dino_sees_by_its_class_token(models: ScoreModelPaths, score_models: ScoreModels) -> None:
    from transformers import Dinov2Model

    dino = Dinov2Model.from_pretrained(models.dino).eval()
    assert score_models.dino is not None
    with torch.no_grad():
        seen = dino(pixel_values=given_to(pictures(1))).pooler_output
    torch.testing.assert_close(score_models.dino.image_features(pictures(1)), seen / seen.norm(dim=1, keepdim=True))


def test_each_score_is_what_it_says(score_models: ScoreModels) -> None:
    real, base, adapter = (pictures(seed) for seed in range(3))
    scores, notes = score_pictures(score_models, CAPTIONS, real, base, adapter)
    assert notes == []
    found = by_name(scores)
    assert list(found) == [
        "clip_image", "clip_text", "aesthetic", "dino_image", "fid_dino", "kid_dino"
    ]  # fmt: skip
    assert score_models.clip and score_models.dino and score_models.aesthetic
    seen = [score_models.clip.image_features(images) for images in (real, base, adapter)]
    likeness = [(seen[0] * each).sum(1).mean().item() for each in seen[1:]]
    assert (found["clip_image"].base, found["clip_image"].adapter) == pytest.approx(tuple(likeness), rel=1e-5)
    text = (score_models.clip.text_features(CAPTIONS) * seen[2]).sum(1).mean().item()
    assert found["clip_text"].adapter == pytest.approx(text, rel=1e-5)
    assert found["aesthetic"].base == pytest.approx(score_models.aesthetic.score(seen[1]).mean().item(), rel=1e-5)
    dino = [score_models.dino.image_features(images).double() for images in (real, base, adapter)]
    assert found["fid_dino"].base == pytest.approx(frechet_distance(dino[0], dino[1]), rel=1e-6, abs=1e-9)
    assert found["kid_dino"].adapter == pytest.approx(kernel_distance(dino[0], dino[2]), rel=1e-9)
    for score in scores:
        assert score.mean == pytest.approx(score.adapter - score.base, abs=1e-12)
        assert score.low < score.mean < score.high and score.pictures == 9
        assert score.higher_is_better is not score.name.startswith(("fid", "kid"))


def test_the_same_pictures_score_the_same(score_models: ScoreModels) -> None:
    real, painted = pictures(0), pictures(1)
    for score in score_pictures(score_models, CAPTIONS, real, painted, painted)[0]:
        assert (score.mean, score.low, score.high) == pytest.approx((0.0, 0.0, 0.0), abs=1e-9)


def test_pictures_that_are_the_real_ones_score_best(score_models: ScoreModels) -> None:
    found = by_name(score_pictures(score_models, CAPTIONS, pictures(0), pictures(1), pictures(0))[0])
    assert found["clip_image"].adapter == pytest.approx(1.0) and found["dino_image"].adapter == pytest.approx(1.0)
    assert found["fid_dino"].adapter == pytest.approx(0.0, abs=1e-6)
    assert found["kid_dino"].adapter < found["kid_dino"].base


def test_the_head_is_its_layers_one_after_the_other(models: ScoreModelPaths, score_models: ScoreModels) -> None:
    from safetensors.torch import load_file

    assert models.aesthetic is not None and score_models.aesthetic is not None
    layers = load_file(models.aesthetic)
    seen = torch.randn(5, 8)
    hidden = seen @ layers["layers.0.weight"].T + layers["layers.0.bias"]
    expected = hidden @ layers["layers.2.weight"].T + layers["layers.2.bias"]
    torch.testing.assert_close(score_models.aesthetic.score(seen), expected[:, 0])


def test_frechet_distance_of_known_gaussians() -> None:
    """Features of diagonal covariance: |m - n|^2 + sum (s - t)^2 (Heusel et al. 2017, eq. 6)."""
    signs = torch.tensor([[a, b] for a in (-1.0, 1.0) for b in (-1.0, 1.0)]).double()
    deviation = math.sqrt(4 / 3)  # of such a column, without bias
    scale, shift = torch.tensor([3.0, 0.5]).double(), torch.tensor([1.0, -2.0]).double()
    expected = 1 + 4 + ((scale - 1) * deviation).square().sum().item()
    assert frechet_distance(signs, signs * scale + shift) == pytest.approx(expected, rel=1e-9)


def test_kernel_distance_is_the_unbiased_estimate() -> None:
    """Binkowski et al. 2018, eq. 4, with k(x, y) = (x.y / d + 1)^3, pair by pair."""
    random = torch.Generator().manual_seed(0)
    x, y = (torch.randn(6, 4, generator=random, dtype=torch.float64) for _ in range(2))

    def k(a: Tensor, b: Tensor) -> float:
        return float((a @ b / 4 + 1) ** 3)

    def mean(pairs: list[float]) -> float:
        return sum(pairs) / len(pairs)

    own = [mean([k(one[i], one[j]) for i in range(6) for j in range(6) if i != j]) for one in (x, y)]
    cross = mean([k(a, b) for a in x for b in y])
    assert kernel_distance(x, y) == pytest.approx(own[0] + own[1] - 2 * cross, rel=1e-9)


def test_distances_are_the_same_to_the_bit_and_disturb_nobody_s_numbers() -> None:
    random = torch.Generator().manual_seed(0)
    x, y = (torch.randn(64, 12, generator=random, dtype=torch.float64) for _ in range(2))
    state = torch.get_rng_state()
    first = kernel_distance(x, y)
    assert torch.equal(torch.get_rng_state(), state)
    found = set()
    for _ in range(8):
        torch.rand(3)
        found.add(kernel_distance(x, y))
    assert found == {first}


def test_no_picture_is_seen_twice_by_one_model(score_models: ScoreModels, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    extract = FeatureExtractor.image_features

    def count(self: FeatureExtractor, images: Any) -> torch.Tensor:
        counts.append(len(images))
        return extract(self, images)

    monkeypatch.setattr(FeatureExtractor, "image_features", count)
    score_pictures(score_models, CAPTIONS, *(pictures(seed) for seed in range(3)))
    assert sum(counts) == 2 * 3 * len(CAPTIONS)  # two models, three sets


def test_sets_of_few_pictures_have_no_distance(score_models: ScoreModels) -> None:
    given: list[Any] = [CAPTIONS[:4], *(pictures(seed, 4) for seed in range(3))]
    scores, notes = score_pictures(score_models, *given)
    assert {score.name for score in scores} == {"clip_image", "clip_text", "aesthetic", "dino_image"}
    assert notes == ["FID and KID of 4 pictures would say nothing; 8 captions are the least"]


def test_without_torchmetrics_there_are_the_other_scores_and_a_word(
    score_models: ScoreModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    scores, notes = score_pictures(score_models, CAPTIONS, *(pictures(seed) for seed in range(3)))
    assert {score.name for score in scores} == {"clip_image", "clip_text", "aesthetic", "dino_image"}
    assert notes == ["FID and KID need torchmetrics; pip install 'veneer[scores]'"]


def test_clip_alone_gives_the_distances_too(models: ScoreModelPaths) -> None:
    clip = load_score_models(ScoreModelPaths(clip=models.clip))
    scores, _ = score_pictures(clip, CAPTIONS, *(pictures(seed) for seed in range(3)))
    assert list(by_name(scores)) == ["clip_image", "clip_text", "fid_clip", "kid_clip"]


def test_nothing_is_loaded_if_nothing_is_named() -> None:
    assert not load_score_models(ScoreModelPaths())


@pytest.mark.parametrize(("option", "name"), [("clip", "CLIP"), ("dino", "DINO")])
def test_weights_that_are_not_there_are_one_line(option: str, name: str, tmp_path: Path) -> None:
    with raises_code("evaluate.model_missing") as caught:
        load_score_models(ScoreModelPaths(**{option: str(tmp_path)}))
    caught.match(rf"{name}'s weights are not there .*; --{option} takes a folder")
    assert "\n" not in str(caught.value)


def test_weights_that_are_cut_off_are_one_line(models: ScoreModelPaths, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(str(models.dino), tmp_path / "dino"))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with raises_code("evaluate.model_missing"):
        load_score_models(ScoreModelPaths(dino=str(folder)))


def test_a_model_that_sees_no_picture_by_itself_is_no_dino(models: ScoreModelPaths) -> None:
    with raises_code("evaluate.wrong_model") as caught:
        load_score_models(ScoreModelPaths(dino=models.clip))
    caught.match(r"is no DINO: it takes no picture .*; --dino takes a folder")
    assert "\n" not in str(caught.value)


def test_another_model_is_no_clip(models: ScoreModelPaths) -> None:
    with raises_code("evaluate.wrong_model"):
        load_score_models(ScoreModelPaths(clip=models.dino))


def test_heads_that_do_not_fit_are_refused(models: ScoreModelPaths, tmp_path: Path) -> None:
    wide = write_tiny_head(tmp_path / "wide.safetensors", width=9)
    save_file({"layers.0.weight": torch.ones(3, 8), "layers.0.bias": torch.ones(3)}, tmp_path / "three.safetensors")
    (tmp_path / "head.pth").write_bytes(b"PK\x03\x04")
    linear = {"layers.0.weight": torch.ones(4, 8), "layers.0.bias": torch.ones(4)}
    norm = {"layers.1.weight": torch.ones(4), "layers.1.bias": torch.ones(4)}
    save_file(linear | norm, tmp_path / "norm.safetensors")
    save_file({"layers.0.weight": torch.ones(1, 8), "layers.0.bias": torch.ones(8)}, tmp_path / "bias.safetensors")
    cases = [
        (
            ScoreModelPaths(clip=models.clip, aesthetic=wide),
            "evaluate.wrong_model",
            "takes 9 numbers, and this CLIP gives 8",
        ),
        (
            ScoreModelPaths(clip=models.clip, aesthetic=tmp_path / "three.safetensors"),
            "evaluate.wrong_model",
            "is no aesthetic head",
        ),
        (
            ScoreModelPaths(clip=models.clip, aesthetic=tmp_path / "norm.safetensors"),
            "evaluate.wrong_model",
            "is no aesthetic head",
        ),
        (
            ScoreModelPaths(clip=models.clip, aesthetic=tmp_path / "bias.safetensors"),
            "evaluate.wrong_model",
            "is no aesthetic head",
        ),
        (ScoreModelPaths(clip=models.clip, aesthetic=tmp_path / "head.pth"), "weights.pickle", ""),
        (ScoreModelPaths(aesthetic=models.aesthetic), "evaluate.aesthetic_without_clip", "name that with --clip"),
    ]
    for paths, code, words in cases:
        with raises_code(code) as caught:
            load_score_models(paths)
        assert words in str(caught.value)


def test_what_clip_does_not_see_of_a_caption_is_noted(score_models: ScoreModels) -> None:
    long = "abc " * 20
    (note,) = score_models.unread(["a cat", long])
    assert note.startswith("clip_text: 1 of 2 captions is longer than the 14 tokens")
    assert "caption 2: of 60 tokens only 14 are read" in note
    assert score_models.unread(["a cat"]) == [] and ScoreModels().unread([long]) == []
    assert score_models.clip is not None
    score_models.clip.text_features([long])
