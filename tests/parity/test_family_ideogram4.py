"""Ideogram 4's peculiarities against diffusers' own pipeline; what all families share is in ``test_families``."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import Ideogram4Pipeline
from diffusers.pipelines.ideogram4.pipeline_ideogram4 import _logit_normal_sigmas, _resolution_aware_mu

from tests.families import CAPTIONS
from tests.families.ideogram4 import LENGTH, velocity, write_tiny_ideogram
from tests.native_files import write_native_file
from tests.parity.test_families import conditioning_of, latents_of
from veneer.adapter.inject import inject
from veneer.adapter.lora import LoraSpec
from veneer.config.base_name import BaseName
from veneer.config.objective_config import ObjectiveConfig
from veneer.engine.quantized import quantization_of
from veneer.family.ideogram4 import Ideogram4, _layout
from veneer.family.key_names.ideogram4 import ideogram4_names
from veneer.family.networks import LoadOptions
from veneer.family.published import read_published
from veneer.family.registry import detect_file, load_family
from veneer.objective.loss import Objective

T = torch.tensor([0.3, 0.8], dtype=torch.float64)
GUIDE = "unconditional_transformer"
JSON = '{"high_level_description": "a cat", "compositional_deconstruction": {"background": "", "elements": []}}'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_ideogram(tmp_path_factory.mktemp("base") / "ideogram")


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    pipeline = Ideogram4Pipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def family(folder: Path) -> Iterator[Ideogram4]:
    yield Ideogram4.load(folder, LoadOptions())


@torch.no_grad()
@pytest.mark.parametrize("caption", [CAPTIONS[0], JSON, ""])
def test_text_is_encoded_as_the_pipeline_does(family: Ideogram4, pipeline: Any, caption: str) -> None:
    """Thirteen layers, those of one channel side by side, of a conversation; captions are JSON and stay as they are."""
    own = family.encode_text([caption])
    packed, _, _, indicators = pipeline.encode_prompt([caption], 1, 1, 256, "cpu")
    torch.testing.assert_close(own["text"], packed[:, indicators[0] == 3], rtol=1e-5, atol=1e-6)
    assert own["mask"].all() and own["text"].shape[2] == 13 * 8


@pytest.mark.parametrize("lengths", [[5], [3, 5]])
def test_tokens_have_the_places_segments_and_roles_that_the_pipeline_gives_them(lengths: list[int]) -> None:
    """Those of padding, which is on the other side here, are told apart by segment and role."""
    most = max(lengths)
    own = _layout(torch.arange(most) < torch.tensor(lengths)[:, None], 2, 3)
    places, segments, roles = Ideogram4Pipeline._prepare_ids(lengths, 2, 3, most, torch.device("cpu"))
    for row, length in enumerate(lengths):
        there = [*range(length), *range(most, most + 6)]
        assert torch.equal(own["position_ids"][row, there], places[row, most - length :])
        assert torch.equal(own["segment_ids"][row, there], segments[row, most - length :])
        assert torch.equal(own["indicator"][row, there], roles[row, most - length :])
        assert own["segment_ids"][row, length:most].eq(-1).all() and own["indicator"][row, length:most].eq(0).all()


@torch.no_grad()
def test_the_transformer_is_told_one_minus_sigma_and_its_answer_is_turned(
    family: Ideogram4, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformer, given, kept = family.networks["transformer"], {}, []
    forward: Any = transformer.forward

    def keep(**told: Any) -> Any:
        given.update(told)
        kept.append(forward(**told))
        return kept[0]

    monkeypatch.setattr(transformer, "forward", keep)
    answer = family.predict(latents_of(family, (4, 4)), T, conditioning_of(family, (4, 4)))
    assert given["timestep"].tolist() == pytest.approx([0.7, 0.2])
    assert torch.equal(answer.flatten(2).transpose(1, 2), -kept[0].sample[:, -16:])


@pytest.mark.slow
@torch.no_grad()
def test_a_text_without_padding_is_one_filled_up_to_the_pipeline_s_2048_tokens(
    family: Ideogram4, pipeline: Any
) -> None:
    latents = latents_of(family, (4, 6))
    own = family.predict(latents, T, conditioning_of(family, (4, 6)))
    expected = velocity(pipeline, latents, T.float(), CAPTIONS, length=2048)
    torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(512, 512), (1024, 1024), (768, 1344)])
def test_times_are_the_pipeline_s_schedule(family: Ideogram4, height: int, width: int) -> None:
    """logit(t) has the mean 1/2 ln(pixels / 512^2) and the deviation 1.5."""
    density = Objective.from_config(ObjectiveConfig(), family).density
    sigmas = _logit_normal_sigmas(8, _resolution_aware_mu(height, width, 0.0), std=1.5)
    own = density.draw([number / 8 for number in range(7, 0, -1)], [(height, width, 1)] * 7)
    torch.testing.assert_close(own.float(), sigmas[1:])


def test_the_transformer_to_guide_by_is_read_for_painting_alone(folder: Path, pipeline: Any) -> None:
    family = Ideogram4.load(folder, LoadOptions())
    guide = family.on_demand[GUIDE]
    assert GUIDE not in family.networks and all(p.isnan().all() for p in guide.parameters())
    family.offload(())
    assert all(p.isnan().all() for p in guide.parameters()), "no step needs it"
    assert family.pipeline().unconditional_transformer is guide
    stored = dict(pipeline.unconditional_transformer.named_parameters())
    assert all(torch.equal(p, stored[name]) for name, p in guide.named_parameters())
    family.offload(("autoencoder",))
    assert all(p.isnan().all() for p in guide.parameters())


@torch.no_grad()
def test_guidance_is_by_the_other_transformer_at_one_scale(family: Ideogram4, pipeline: Any) -> None:
    latents = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(0))
    options = {"height": 16, "width": 16, "num_inference_steps": 2, "latents": latents, "output_type": "latent"}
    own: Any = family.pipeline()
    own.set_progress_bar_config(disable=True)
    given = family.pipeline_prompts(["a cat"])
    guided = own(**given, **family.pipeline_guidance(3.0), **options).images
    expected = pipeline(
        "a cat", guidance_scale=3.0, guidance_schedule=None, max_sequence_length=LENGTH, **options
    ).images
    torch.testing.assert_close(guided, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(guided, own(**given, **family.pipeline_guidance(1.0), **options).images, atol=1e-3)


def test_a_prompt_that_the_pipeline_would_refuse_is_cut_where_captions_are(family: Ideogram4, pipeline: Any) -> None:
    given = family.pipeline_prompts(["x" * 3000, "y"])
    assert given["max_sequence_length"] == 2048 and given["prompt"] == ["x" * family.text_length, "y"]
    with pytest.raises(ValueError, match="exceeds max_sequence_length"):
        pipeline.encode_prompt(["x" * 3000], 1, 1, 2048, "cpu")


@pytest.mark.slow
def test_both_transformers_are_quantised(folder: Path) -> None:
    family = Ideogram4.load(folder, LoadOptions(quantization="torchao_int8", networks=("transformer",)))
    assert {quantization_of(family.on_demand[name]) for name in ("transformer", GUIDE)} == {"torchao_int8"}


@pytest.mark.slow
def test_the_default_targets_reach_every_block() -> None:
    base = Ideogram4.abstract(read_published("ideogram4").parts, torch.float32)
    network = base.networks["transformer"]
    injection = inject(
        {"transformer": network}, {"transformer": LoraSpec(16, 16.0, base.default_targets["transformer"])}, 0
    )
    counts = injection.parameter_counts()
    injection.eject()
    assert {path.split(".")[2] for path in counts} == {str(block) for block in range(34)}
    assert (len(counts), sum(counts.values())) == (136, 20_054_016)


def test_files_of_both_transformers_are_known_and_read(folder: Path, family: Ideogram4, tmp_path: Path) -> None:
    """As ComfyUI keeps them: two files, queries, keys and values in one layer."""
    files = {
        name: write_native_file(folder, tmp_path / f"{name}.safetensors", ideogram4_names, part=name)
        for name in ("transformer", GUIDE)
    }
    others = {part: str(folder / part) for part in ("vae", "text_encoder", "tokenizer", "scheduler")}
    base = shutil.copytree(folder, tmp_path / "base")
    for name in files:
        (base / name / "diffusion_pytorch_model.safetensors").unlink()
    whole = BaseName(str(base), {name: str(file) for name, file in files.items()} | others)
    assert detect_file(files["transformer"]) == "Ideogram4Pipeline"
    one, other = load_family(whole).pipeline(), family.pipeline()
    for name in files:
        own, expected = getattr(one, name).state_dict(), getattr(other, name).state_dict()
        assert own.keys() == expected.keys() and all(torch.equal(own[key], expected[key]) for key in own)
