"""HiDream-I1's peculiarities against diffusers' own pipeline; what all families share is in ``test_families``."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from diffusers import FlowMatchLCMScheduler, HiDreamImagePipeline, HiDreamImageTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.errors import raises_code
from tests.families import CAPTIONS
from tests.families.hidream import velocity, write_tiny_hidream
from veneer.adapter.inject import inject
from veneer.adapter.layers import layers_under
from veneer.adapter.lora import LoraSpec
from veneer.adapter.targets import expand_preset, is_named
from veneer.config.adapter_config import TargetPreset
from veneer.config.base_name import BaseName
from veneer.family.abstract import make_network, make_scheduler
from veneer.family.hidream import HiDream
from veneer.family.protocol import Conditioning
from veneer.family.published import read_published
from veneer.family.registry import load_family
from veneer.sample.generate import generate

PUBLISHED = read_published("hidream-i1-full").parts
SIGMAS = torch.tensor([0.3, 0.8], dtype=torch.float64)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return HiDreamImagePipeline.from_pretrained(write_tiny_hidream(tmp_path_factory.mktemp("base") / "hidream"))


@pytest.fixture(scope="module")
def family(pipeline: Any) -> HiDream:
    """Over copies: the experts of the pipeline stay diffusers' own."""
    return HiDream({name: copy.deepcopy(part) for name, part in pipeline.components.items()})


@pytest.fixture(scope="module")
def text(family: HiDream) -> Conditioning:
    with torch.no_grad():
        return family.encode_text(CAPTIONS)


@torch.no_grad()
def test_text_is_that_of_the_pipeline_with_its_padding(text: Conditioning, pipeline: Any) -> None:
    t5, _, llama, _, pooled, _ = pipeline.encode_prompt(list(CAPTIONS), do_classifier_free_guidance=False)
    assert t5.shape[1] == llama.shape[2] == 128
    assert torch.equal(text["t5"], t5) and torch.equal(text["pooled"], pooled)
    assert torch.equal(text["llama"], llama.transpose(0, 1))


def gradient(answer: Callable[[Tensor], Tensor], latents: Tensor) -> Tensor:
    noisy = latents.clone().requires_grad_()
    answer(noisy).square().sum().backward()
    assert noisy.grad is not None
    return noisy.grad


def in_squares(pipeline: Any, noisy: Tensor) -> Tensor:
    """The pipeline's own answer in training mode, whose numbers lie in another order."""
    return velocity(pipeline, noisy, SIGMAS.float(), CAPTIONS)


@pytest.mark.parametrize("trains", [False, True])
def test_the_gradient_has_the_experts_in_it_in_either_mode(
    family: HiDream, pipeline: Any, text: Conditioning, trains: bool
) -> None:
    """diffusers' transformer leaves them out in evaluation mode: its gradient is another one there."""
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    network = family.networks["transformer"]
    try:
        pipeline.transformer.train()
        expected = gradient(lambda noisy: in_squares(pipeline, noisy), latents)
        pipeline.transformer.eval()
        without = gradient(lambda noisy: in_squares(pipeline, noisy), latents)
        network.train(trains)
        own = gradient(lambda noisy: family.predict(noisy, SIGMAS, text), latents)
    finally:
        network.eval()
    torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)
    assert (without - expected).norm() > 0.001 * expected.norm()


@torch.no_grad()
@pytest.mark.parametrize("size", [(8, 8), (8, 12), (4, 12)])
def test_the_answer_has_the_latents_shape_in_training_mode_too(
    family: HiDream, pipeline: Any, text: Conditioning, size: tuple[int, int]
) -> None:
    latents, network = torch.randn(2, 4, *size), family.networks["transformer"]
    expected = velocity(pipeline, latents, SIGMAS.float(), CAPTIONS)
    for mode in (True, False):
        network.train(mode)
        own = family.predict(latents, SIGMAS, text)
        torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-5)
        assert all(module.training == mode for module in network.modules())


@torch.no_grad()
def test_time_is_1000_sigma(family: HiDream, text: Conditioning) -> None:
    told: list[Tensor] = []
    embedder: Any = family.networks["transformer"].t_embedder
    hook = embedder.register_forward_pre_hook(lambda _, arguments: told.append(arguments[0]))
    family.predict(torch.randn(2, 4, 8, 8), SIGMAS, text)
    hook.remove()
    torch.testing.assert_close(told[0], torch.tensor([300.0, 800.0]))


@torch.no_grad()
def test_a_picture_that_is_not_square_and_too_large_is_refused(family: HiDream, text: Conditioning) -> None:
    with raises_code("family.too_many_pixels"):
        family.predict(torch.randn(2, 4, 16, 20), SIGMAS, text)
    assert family.predict(torch.randn(2, 4, 20, 20), SIGMAS, text).shape == (2, 4, 20, 20)


def test_pictures_are_painted_at_the_base_s_resolution(family: HiDream) -> None:
    """The pipeline paints the area of its default size: 1024 x 1024 of a published base."""
    assert generate(family, ["a cat"], [3], steps=1, guidance=1.0)[0].size == (32, 32) and family.resolution == 32


@pytest.mark.slow
def test_a_published_base_is_adapted_in_both_streams_of_all_blocks() -> None:
    network = make_network(HiDreamImageTransformer2DModel, PUBLISHED["transformer"], torch.float32)
    spec = LoraSpec(16, 16.0, HiDream.default_targets["transformer"])
    injection = inject({"transformer": network}, {"transformer": spec}, seed=0)
    counts = injection.parameter_counts()
    assert len(counts) == 16 * 8 + 32 * 4 and sum(counts.values()) == 20_971_520
    assert not any("expert" in path for path in counts)
    injection.eject()
    names, _ = expand_preset(network, "attention_mlp", (), HiDream.target_presets["attention_mlp"])
    layers = [layer for path, layer in layers_under(network) if any(is_named(name, path) for name in names)]
    assert len(layers) == 256 + 16 * 3 + 48 * 3
    assert 16 * sum(sum(layer.weight.shape) for layer in layers) == 42_401_792


def test_the_experts_that_a_gate_chooses_among_are_in_one_preset_only(family: HiDream) -> None:
    presets = {preset: family.expand_targets("transformer", preset, ())[0] for preset in get_args(TargetPreset)}
    paths = [path for path, _ in layers_under(family.networks["transformer"]) if ".experts." in path]
    with_experts = {preset for preset, names in presets.items() if any(is_named(n, p) for n in names for p in paths)}
    assert with_experts == {"all_linear"}


def test_its_scheduler_is_no_euler_s_and_has_the_shift_3(pipeline: Any) -> None:
    parts = {name: copy.deepcopy(part) for name, part in pipeline.components.items()}
    family = HiDream({**parts, "scheduler": make_scheduler(PUBLISHED["scheduler"])})
    assert (family.default_density, family.default_shift, family.distilled) == ("uniform", 3.0, None)


def test_dev_and_fast_are_told_by_their_scheduler(family: HiDream, pipeline: Any) -> None:
    assert family.distilled is None
    parts = {name: copy.deepcopy(part) for name, part in pipeline.components.items()}
    assert HiDream({**parts, "scheduler": FlowMatchLCMScheduler(shift=6.0)}).distilled is not None


@pytest.mark.parametrize("stem", ["", "model.diffusion_model."])
def test_a_file_of_the_transformer_alone_takes_the_rest_from_the_folder_it_lies_in(stem: str, tmp_path: Path) -> None:
    folder = write_tiny_hidream(tmp_path / "base")
    weights = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    file = folder / "hidream_i1_full_fp16.safetensors"
    save_file({f"{stem}{name}": weight for name, weight in weights.items()}, file)
    network = load_family(str(file)).networks["transformer"].state_dict()
    assert network.keys() == weights.keys() and all(torch.equal(network[name], weights[name]) for name in weights)


def test_a_base_is_published_without_llama_which_is_named_beside_it(tmp_path: Path) -> None:
    folder = write_tiny_hidream(tmp_path / "base")
    llama = {"text_encoder_4": tmp_path / "llama", "tokenizer_4": tmp_path / "words"}
    for name, place in llama.items():
        (folder / name).rename(place)
    index = folder / "model_index.json"
    named = json.loads(index.read_text("utf-8"))
    index.write_text(json.dumps({name: value for name, value in named.items() if name not in llama}), "utf-8")
    with raises_code("base.broken_index") as caught:
        load_family(str(folder))
    assert "base.components.text_encoder_4=PATH" in str(caught.value)
    base = BaseName(str(folder), {name: str(place) for name, place in llama.items()})
    assert load_family(base).text_encoders == tuple(HiDream.tokenizers)
