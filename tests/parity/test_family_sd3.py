"""What Stable Diffusion 3 has of its own, against diffusers' pipeline; what families share is in ``test_families``."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from diffusers.loaders.single_file_utils import (
    convert_sd3_transformer_checkpoint_to_diffusers,
    infer_diffusers_model_type,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.errors import raises_code
from tests.families import CAPTIONS
from tests.families.sd3 import velocity, write_sd3_file, write_tiny_sd3
from tests.key_tables import read_key_table
from tests.running import quick_config, without_rehearsals
from tests.training import tiny_config
from veneer.adapter.inject import inject
from veneer.adapter.lora import LoraFactors, LoraSpec, delta_weight
from veneer.config.base_name import BaseName
from veneer.data.transform import Geometry
from veneer.family.layer_names import names_of_base
from veneer.family.registry import FAMILIES, load_family
from veneer.family.sd3 import StableDiffusion3
from veneer.plan.abstract import abstract_base
from veneer.plan.tracer import MemoryTracer
from veneer.run.session import run_training
from veneer.weights.file import FILE_NAME, load
from veneer.weights.formats.kohya import KOHYA
from veneer.weights.formats.protocol import BaseNames

CLIP_LENGTH, T5_LENGTH = 16, 256
TIMES = torch.tensor([0.25, 0.8], dtype=torch.float64)


def pipeline_of(folder: Path, **parts: Any) -> Any:
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_sd3(tmp_path_factory.mktemp("base") / "sd3")


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    return pipeline_of(folder)


@pytest.fixture(scope="module")
def family(pipeline: Any) -> StableDiffusion3:
    return StableDiffusion3(pipeline.components)


@pytest.fixture(scope="module")
def without_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_sd3(tmp_path_factory.mktemp("base") / "sd3", has_t5=False)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_text_is_encoded_as_the_pipeline_does(family: StableDiffusion3, pipeline: Any) -> None:
    text, _, pooled, _ = pipeline.encode_prompt(list(CAPTIONS), None, None, do_classifier_free_guidance=False)
    own = family.encode_text(CAPTIONS)
    assert torch.equal(own["text"], text) and torch.equal(own["pooled"], pooled)
    assert set(own.tensors) == {"text", "pooled"}  # there is no mask


def clip_output(pipeline: Any, name: str, tokenizer: str) -> Any:
    ids = pipeline.components[tokenizer](
        list(CAPTIONS), padding="max_length", max_length=CLIP_LENGTH, truncation=True, return_tensors="pt"
    ).input_ids
    return pipeline.components[name](ids, output_hidden_states=True)


@torch.no_grad()
def test_the_text_is_both_clips_side_by_side_and_t5_behind_them(family: StableDiffusion3, pipeline: Any) -> None:
    """Esser et al. 2024, section 4: from the text encoders themselves, not through the pipeline."""
    own = family.encode_text(CAPTIONS)
    first, second = (clip_output(pipeline, f"text_encoder{end}", f"tokenizer{end}") for end in ("", "_2"))
    clip, t5 = own["text"][:, :CLIP_LENGTH], own["text"][:, CLIP_LENGTH:]
    assert torch.equal(clip[..., :32], first.hidden_states[-2])
    assert torch.equal(clip[..., 32:80], second.hidden_states[-2])
    assert t5.shape == (2, T5_LENGTH, 96) and not clip[..., 80:].any()
    ids = pipeline.tokenizer_3(list(CAPTIONS), padding="max_length", max_length=T5_LENGTH, return_tensors="pt")
    assert torch.equal(t5, pipeline.text_encoder_3(ids.input_ids).last_hidden_state)
    assert torch.equal(own["pooled"], torch.cat([first.text_embeds, second.text_embeds], dim=-1))


def test_t5_reads_on_where_clip_ends(family: StableDiffusion3) -> None:
    long = ", ".join(["a"] * 300)
    assert family.text_length == T5_LENGTH - 1
    found = family.unread([*CAPTIONS, long])
    assert found.keys() == {long} and found[long].limit == T5_LENGTH - 1


@torch.no_grad()
def test_a_base_without_t5_reads_zeros_in_its_place_as_the_pipeline_does(without_t5: Path) -> None:
    family, pipeline = load_family(str(without_t5)), pipeline_of(without_t5, text_encoder_3=None, tokenizer_3=None)
    assert family.text_encoders == ("text_encoder", "text_encoder_2") and family.text_length == CLIP_LENGTH - 2
    text = family.encode_text(CAPTIONS)
    assert text["text"].shape == (2, CLIP_LENGTH + T5_LENGTH, 96) and not text["text"][:, CLIP_LENGTH:].any()
    noisy = draw(2, 4, 8, 12)
    own = family.predict(noisy, TIMES, family.condition(text, []))
    torch.testing.assert_close(own, velocity(pipeline, noisy, TIMES.float(), CAPTIONS), rtol=1e-5, atol=1e-6)


def test_a_base_without_t5_is_planned_and_its_layers_are_named(without_t5: Path, tmp_path: Path) -> None:
    abstract = abstract_base(tiny_config(tmp_path, base=str(without_t5)), MemoryTracer(torch.device("cpu")))
    assert abstract.text_encoders == ("text_encoder", "text_encoder_2")
    assert set(names_of_base(str(without_t5)).networks) == {"transformer", "text_encoder", "text_encoder_2"}


@torch.no_grad()
def test_the_first_kind_without_norms_and_second_attentions_predicts_as_the_pipeline_does(tmp_path: Path) -> None:
    folder = write_tiny_sd3(tmp_path / "sd3", is_first=True)
    family, pipeline = load_family(str(folder)), pipeline_of(folder)
    assert family.labels.civitai == "SD 3"
    noisy = draw(2, 4, 8, 12)
    own = family.predict(noisy, TIMES, family.encode_text(CAPTIONS))
    torch.testing.assert_close(own, velocity(pipeline, noisy, TIMES.float(), CAPTIONS), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_patch_s_place_is_counted_from_the_picture_s_middle(family: StableDiffusion3, pipeline: Any) -> None:
    """The position embedding is a grid of which the middle is taken (Esser et al. 2024, section 5.3.2)."""
    embedding, side = pipeline.transformer.pos_embed, 24
    assert "pos_embed.pos_embed" in dict(pipeline.transformer.named_buffers())
    grid = embedding.pos_embed.view(side, side, -1)
    latents = torch.zeros(1, 4, 8, 12)
    middle = grid[(side - 4) // 2 : (side + 4) // 2, (side - 6) // 2 : (side + 6) // 2].flatten(0, 1)
    assert torch.equal(embedding(latents)[0], embedding.proj(latents).flatten(2)[0].T + middle)


def test_a_picture_that_is_larger_than_the_grid_of_places_is_refused(family: StableDiffusion3) -> None:
    text = family.encode_text(CAPTIONS[:1])
    family.condition(text, [Geometry.whole(96, 96)])
    with raises_code("family.too_large") as caught:
        family.condition(text, [Geometry.whole(64, 100)])
    assert str(caught.value) == (
        "data.resolution: makes a picture of 64 x 100 pixels, and the transformer has places for 96 a side; "
        "choose a smaller one"
    )


def test_the_transformer_is_told_a_thousand_sigma(family: StableDiffusion3) -> None:
    times = []
    hook = family._denoiser.time_text_embed.register_forward_pre_hook(lambda _, arguments: times.append(arguments[0]))
    with torch.no_grad():
        family.predict(draw(2, 4, 8, 8), TIMES, family.encode_text(CAPTIONS))
    hook.remove()
    assert torch.equal(times[0], torch.tensor([250.0, 800.0]))


def test_the_last_block_makes_no_more_of_the_text(family: StableDiffusion3) -> None:
    """It has no output projection for it, and the text's query there has no effect, so that its adapter stays zero."""
    spec = LoraSpec(2, 2.0, family.default_targets["transformer"])
    injection = inject(family.networks, {"transformer": spec}, seed=0)
    try:
        layers = list(injection.parameter_counts())
        assert len(layers) == 4 * 8 - 1 + 2 * 4  # of the first two blocks, which attend twice, 4 more
        assert not any(path.endswith("blocks.3.attn.to_add_out") for path in layers)
        family.predict(draw(2, 4, 8, 8), TIMES, family.encode_text(CAPTIONS)).square().sum().backward()
        still = {name.split(".lora")[0] for name, p in injection.named_parameters() if "lora_B" in name
                 and p.grad is not None and not p.grad.any()}  # fmt: skip
        assert [name for name in still if "transformer_blocks.3.attn.add_q_proj" in name] == list(still)
    finally:
        injection.eject()


def test_kohya_s_names_are_the_native_ones_and_its_files_are_read_back(
    family: StableDiffusion3, tmp_path: Path
) -> None:
    spec = LoraSpec(2, 2.0, (*family.default_targets["transformer"], "ff.net.0.proj", "norm_out.linear"))
    injection = inject(family.networks, {"transformer": spec}, seed=0)
    try:
        for number, parameter in enumerate(injection.parameters()):
            parameter.data = draw(*parameter.shape, seed=number)
        weights = injection.weights()
    finally:
        injection.eject()
    (file,) = KOHYA.write(weights, BaseNames.of(family.networks))
    known = {row.kohya for row in read_key_table("sd35-medium")}
    assert {name.partition(".")[0] for name in file.tensors} <= known
    save_file({name: tensor.contiguous() for name, tensor in file.tensors.items()}, tmp_path / "kohya.safetensors")
    read = load(tmp_path / "kohya.safetensors", family.networks).weights
    assert read.keys() == weights.keys()
    for path, adapter in weights.items():
        back = read[path]
        assert isinstance(adapter, LoraFactors) and isinstance(back, LoraFactors)
        torch.testing.assert_close(delta_weight(back), delta_weight(adapter))
    theirs: Any = StableDiffusion3Pipeline(**copy.deepcopy(family.pipeline().components))
    theirs.load_lora_weights(tmp_path, weight_name="kohya.safetensors")
    layers = [module for part in (theirs.transformer, theirs.text_encoder) for module in part.modules()]
    assert not any(getattr(module, "lora_A", None) for module in layers)  # diffusers has no converter for such names


@pytest.mark.parametrize(("width", "places"), [(1536, 192**2), (1536, 384**2), (2432, 192**2)])
def test_files_of_published_sizes_are_known(width: int, places: int) -> None:
    tensors = {
        "joint_blocks.0.context_block.adaLN_modulation.1.bias": torch.empty(6 * width, device="meta"),
        "joint_blocks.37.x_block.mlp.fc1.weight": torch.empty(4 * width, width, device="meta"),
        "pos_embed": torch.empty(1, places, width, device="meta"),
    }
    if width == 1536:
        tensors.pop("joint_blocks.37.x_block.mlp.fc1.weight")
    for stem in ("", "model.diffusion_model."):
        kind = infer_diffusers_model_type({f"{stem}{name}": tensor for name, tensor in tensors.items()})
        assert kind in FAMILIES["StableDiffusion3Pipeline"].checkpoints


@pytest.fixture(scope="module", params=[False, True], ids=["3.5", "3"])
def either(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_sd3(tmp_path_factory.mktemp("base") / "sd3", is_first=request.param)


def test_a_transformer_s_own_file_is_the_transformer_of_the_folder(either: Path, tmp_path: Path) -> None:
    file = write_sd3_file(either, tmp_path / "sd3.safetensors")
    converted = convert_sd3_transformer_checkpoint_to_diffusers(
        {name.removeprefix("model.diffusion_model."): tensor for name, tensor in load_file(file).items()}
    )
    family = load_family(BaseName(str(either), {"transformer": str(file)}))
    weights = family.networks["transformer"].state_dict()
    stored = load_file(either / "transformer" / "diffusion_pytorch_model.safetensors")
    assert weights.keys() == stored.keys() == converted.keys()
    assert all(torch.equal(weights[name], stored[name]) for name in stored)
    assert all(torch.equal(converted[name], stored[name]) for name in stored)  # so diffusers reads the file too


def test_a_file_with_both_clips_and_without_t5_has_all_of_a_base_s_networks(without_t5: Path, tmp_path: Path) -> None:
    """As ``sd3_medium_incl_clips.safetensors``; it is named for each, for files are known by published sizes alone."""
    tensors = load_file(write_sd3_file(without_t5, tmp_path / "sd3.safetensors"))
    for name, stem in (("text_encoder", "clip_l"), ("text_encoder_2", "clip_g")):
        weights = load_file(without_t5 / name / "model.safetensors")
        tensors |= {f"text_encoders.{stem}.transformer.{key}": weight for key, weight in weights.items()}
    file = tmp_path / "all.safetensors"
    save_file(tensors, file)
    expected = load_family(str(without_t5))
    family = load_family(BaseName(str(without_t5), dict.fromkeys(expected.networks, str(file))))
    assert family.text_encoders == ("text_encoder", "text_encoder_2")
    for name, network in expected.networks.items():
        own = family.networks[name].state_dict()
        assert all(torch.equal(own[key], weight) for key, weight in network.state_dict().items())


@pytest.mark.slow
def test_adapters_on_both_clips_are_trained_and_read_by_the_pipeline(
    folder: Path, tiny_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_rehearsals(monkeypatch)
    clips: dict[str, Any] = {"text_encoder": {"rank": 2}, "text_encoder_2": {"rank": 2}}
    run_training(quick_config(folder, tiny_pictures, tmp_path / "run", adapter={"text_encoders": clips}))
    family = load_family(str(folder))
    weights = load(tmp_path / "run", family.networks).weights
    assert {path.partition(".")[0] for path in weights} == {"transformer", *clips}
    assert any(not adapter.is_untrained for path, adapter in weights.items() if path.startswith("text_encoder_2."))
    pipeline: Any = load_family(str(folder)).pipeline()
    pipeline.load_lora_weights(tmp_path / "run", weight_name=FILE_NAME)
    parts = (pipeline.transformer, pipeline.text_encoder, pipeline.text_encoder_2)
    layers = [m for part in parts for m in part.modules() if hasattr(m, "lora_A") and m.lora_A]
    assert len(layers) == len(weights)
