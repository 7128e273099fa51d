"""ERNIE-Image's peculiarities against diffusers' own pipeline; what all families share is in ``test_families``."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ErnieImagePipeline

from tests.families import CAPTIONS
from tests.families.ernie_image import write_tiny_ernie
from tests.native_files import write_native_file
from tests.parity.test_families import conditioning_of, latents_of
from veneer.adapter.inject import inject
from veneer.adapter.lora import LoraSpec
from veneer.config.objective_config import ObjectiveConfig
from veneer.family.ernie_image import ErnieImage
from veneer.family.published import read_published
from veneer.family.registry import load_family
from veneer.objective.loss import Objective

T = torch.tensor([0.3, 0.8], dtype=torch.float64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_ernie(tmp_path_factory.mktemp("base") / "ernie")


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    return ErnieImagePipeline.from_pretrained(folder)


@pytest.fixture(scope="module")
def family(pipeline: Any) -> ErnieImage:
    return ErnieImage(pipeline.components)


@torch.no_grad()
@pytest.mark.parametrize("caption", [*CAPTIONS, "", "x" * 300])
def test_text_is_encoded_as_the_pipeline_does(family: ErnieImage, pipeline: Any, caption: str) -> None:
    """The states before the last layer, of a caption without a template, cut where the tokenizer cuts."""
    own = family.encode_text([caption])
    assert torch.equal(own["text"][0], pipeline.encode_prompt(caption, "cpu")[0])
    assert own["mask"].all() and own["mask"].shape == own["text"].shape[:2]


@torch.no_grad()
def test_a_text_without_tokens_is_a_mark(family: ErnieImage, pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.tokenizer, "_tokenizer", _without_marks(pipeline.tokenizer))
    expected = pipeline.encode_prompt("", "cpu")[0]
    assert len(expected) == 1 and torch.equal(family.encode_text([""])["text"][0], expected)


def _without_marks(tokenizer: Any) -> Any:
    from tokenizers import Tokenizer
    from tokenizers.processors import ByteLevel

    bare = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    bare.post_processor = ByteLevel()
    return bare


@torch.no_grad()
def test_the_transformer_is_told_a_thousand_sigma_and_how_long_texts_are(
    family: ErnieImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture's first coordinate is its text's length, so padding would move it."""
    transformer, given = family.networks["transformer"], {}
    forward: Any = transformer.forward
    monkeypatch.setattr(transformer, "forward", lambda **told: given.update(told) or forward(**told))
    family.predict(latents_of(family, (4, 4)), T, conditioning_of(family, (4, 4)))
    assert given["timestep"].tolist() == pytest.approx([300, 800])
    lengths = [family.encode_text([caption])["text"].shape[1] for caption in CAPTIONS]
    assert given["text_lens"].tolist() == lengths and given["text_bth"].shape[1] == max(lengths)


@torch.no_grad()
def test_latents_have_the_epsilon_that_the_pipeline_paints_with(family: ErnieImage, pipeline: Any) -> None:
    """Its published configuration has FLUX.2's, 1e-4."""
    vae, pixels = pipeline.vae, torch.rand(1, 3, 16, 16) * 2 - 1
    assert vae.config.batch_norm_eps == 1e-4 and family.settings["vae.bn.eps"] == "1e-05"
    latents = pipeline._patchify_latents(vae.encode(pixels).latent_dist.mean)
    scale = torch.sqrt(vae.bn.running_var + 1e-5).view(1, -1, 1, 1)
    assert torch.equal(family.encode_image(pixels).mean, (latents - vae.bn.running_mean.view(1, -1, 1, 1)) / scale)


def test_times_are_logit_normal_with_the_scheduler_s_shift(family: ErnieImage) -> None:
    objective = Objective.from_config(ObjectiveConfig(), family)
    assert (objective.density.name, objective.density.shift_of(1024, 1024, 1)) == ("logit_normal", 3.0)


def test_a_model_that_writes_prompts_anew_is_left_out(folder: Path) -> None:
    pipeline: Any = load_family(str(folder)).pipeline()
    assert pipeline.pe is None and pipeline.pe_tokenizer is None


def test_turbo_is_known_by_a_key_of_its_configuration(family: ErnieImage, pipeline: Any) -> None:
    turbo = type(pipeline.transformer).from_config({**pipeline.transformer.config, "use_lora": False, "lora_rank": 4})
    told = ErnieImage({**pipeline.components, "transformer": turbo}).distilled
    assert family.distilled is None and told is not None and "train baidu/ERNIE-Image" in told


@pytest.mark.slow
def test_the_default_targets_reach_every_block() -> None:
    base = ErnieImage.abstract(read_published("ernie-image").parts, torch.float32)
    network = base.networks["transformer"]
    spec = LoraSpec(16, 16.0, base.default_targets["transformer"])
    injection = inject({"transformer": network}, {"transformer": spec}, seed=0)
    counts = injection.parameter_counts()
    injection.eject()
    assert {path.split(".")[2] for path in counts} == {str(block) for block in range(36)}
    assert (len(counts), sum(counts.values())) == (144, 18_874_368)


def test_a_file_of_the_transformer_is_known_and_read(folder: Path, family: ErnieImage, tmp_path: Path) -> None:
    """Under the names of diffusers, as every program has them."""
    base = shutil.copytree(folder, tmp_path / "base")
    file = write_native_file(base, base / "ernie.safetensors", lambda _: {}, "model.diffusion_model.")
    (base / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    own, expected = (one.networks["transformer"].state_dict() for one in (load_family(str(file)), family))
    assert own.keys() == expected.keys() and all(torch.equal(own[key], expected[key]) for key in own)
