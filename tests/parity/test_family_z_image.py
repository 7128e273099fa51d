"""Z-Image's peculiarities against diffusers' own pipeline; what all families share is in ``test_families``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import ZImagePipeline
from torch import Tensor

from tests.families import CAPTIONS
from tests.families.z_image import write_tiny_z_image, write_z_image_file
from veneer.adapter.inject import inject
from veneer.adapter.lora import LoraFactors, LoraSpec
from veneer.adapter.registry import specs_of
from veneer.config.adapter_config import AdapterConfig
from veneer.family.abstract import make_scheduler
from veneer.family.published import read_published
from veneer.family.registry import family_class, load_family
from veneer.family.z_image import ZImage
from veneer.sample.generate import generate
from veneer.weights.formats.kohya import KOHYA
from veneer.weights.formats.protocol import BaseNames


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    pipeline = ZImagePipeline.from_pretrained(write_tiny_z_image(tmp_path_factory.mktemp("base") / "z"))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def family(pipeline: Any) -> ZImage:
    return ZImage(pipeline.components)


@torch.no_grad()
def test_text_is_that_of_the_pipeline_without_its_padding(family: ZImage, pipeline: Any) -> None:
    expected, _ = pipeline.encode_prompt(list(CAPTIONS), do_classifier_free_guidance=False)
    own = family.encode_text(CAPTIONS)
    lengths = [len(text) for text in expected]
    assert own["mask"].sum(dim=1).tolist() == lengths and own["text"].shape[1] == max(lengths) < 512
    for row, text, length in zip(own["text"], expected, lengths, strict=True):
        assert torch.equal(row[:length], text) and not row[length:].any()


@torch.no_grad()
def test_a_tokenizer_that_pads_in_front_changes_nothing(
    family: ZImage, pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = family.encode_text(CAPTIONS)
    monkeypatch.setattr(pipeline.tokenizer, "padding_side", "left")
    own = family.encode_text(CAPTIONS)
    assert torch.equal(own["mask"], before["mask"])
    torch.testing.assert_close(own["text"], before["text"], rtol=1e-4, atol=1e-5)


def test_thinking_is_allowed_in_the_template_as_in_the_pipeline(family: ZImage) -> None:
    """Qwen3's template adds an empty thought where it is not, which the base was not trained on."""
    expected = "<|im_start|>user\na cat<|im_end|>\n<|im_start|>assistant\n"
    assert family._in_template("a cat") == expected


@torch.no_grad()
def test_a_caption_is_read_up_to_the_512th_token_of_its_template(family: ZImage) -> None:
    """The words behind it in the template are the first to be cut."""
    in_front = len("user\n") + 1
    assert family.text_length == 512 - in_front
    whole = "a" * family.text_length
    assert not family.unread([whole]) and family.unread([f"{whole}b"])[f"{whole}b"].limit == len(whole)
    own = family.encode_text([whole])["text"]
    assert torch.equal(family.encode_text([f"{whole}b"])["text"], own)
    assert not torch.equal(family.encode_text([f"{whole[:-1]}b"])["text"], own)


class Spy:
    """A transformer that remembers what it was given and answers with the pictures."""

    dtype = torch.float32

    def __call__(self, pictures: list[Tensor], t_B: Tensor, texts: list[Tensor]) -> Any:
        self.pictures, self.t_B, self.texts = pictures, t_B, texts
        return SimpleNamespace(sample=pictures)


@torch.no_grad()
def test_time_runs_from_noise_to_picture_and_the_answer_is_turned(family: ZImage) -> None:
    spy = family._denoiser = Spy()
    noisy, sigma_B = torch.randn(2, 4, 4, 6), torch.tensor([0.25, 1.0], dtype=torch.float64)
    text = family.encode_text(CAPTIONS)
    assert torch.equal(family.predict(noisy, sigma_B, text), -noisy)
    assert torch.equal(spy.t_B, torch.tensor([0.75, 0.0]))
    assert [tuple(one.shape) for one in spy.pictures] == [(4, 1, 4, 6)] * 2
    assert [len(one) for one in spy.texts] == text["mask"].sum(dim=1).tolist()


@pytest.mark.parametrize(("guidance", "told"), [(1.0, 0.0), (4.0, 3.0)])
def test_guidance_of_1_is_none_though_the_pipeline_s_none_is_0(
    family: ZImage, pipeline: Any, guidance: float, told: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(family, "resolution", 16)
    own = generate(family, ["a cat"], [3], steps=2, guidance=guidance)[0]
    noise = torch.Generator().manual_seed(3)
    settings = {"num_inference_steps": 2, "height": 16, "width": 16, "generator": noise}
    assert own.tobytes() == pipeline(["a cat"], guidance_scale=told, **settings).images[0].tobytes()


def test_default_targets_leave_the_refiners_alone(family: ZImage) -> None:
    (spec,) = specs_of(AdapterConfig(), family).values()
    attention = ("to_q", "to_k", "to_v", "to_out.0")
    injection = inject(family.networks, {"transformer": spec}, seed=0)
    found = {module for match in injection.matches for module in match.modules}
    coverage = injection.block_coverage()["transformer"]
    injection.eject()
    assert spec.blocks == ("layers",), "which were named, so that no run warns of the others"
    assert coverage.left_out == ("noise_refiner.0-1", "context_refiner.0-1")
    assert found == {f"transformer.layers.{block}.attention.{name}" for block in range(2) for name in attention}


@pytest.fixture(scope="module")
def published() -> Iterator[ZImage]:
    base = read_published("z-image")
    family = family_class(base.pipeline).abstract(base.parts, torch.float32)
    assert isinstance(family, ZImage)
    yield family


def test_a_published_base_is_adapted_in_all_thirty_blocks(published: ZImage) -> None:
    (spec,) = specs_of(AdapterConfig(rank=16), published).values()
    injection = inject(published.networks, {"transformer": spec}, seed=0)
    try:
        counts = injection.parameter_counts()
        assert len(counts) == 120 and sum(counts.values()) == 120 * 16 * 2 * 3840
    finally:
        injection.eject()
    assert published.text_length > 500 and published.resolution == 1024 and published.multiple == 16


@pytest.mark.parametrize(("name", "is_turbo"), [("z-image", False), ("z-image-turbo", True)])
def test_turbo_is_told_by_its_scheduler(pipeline: Any, name: str, is_turbo: bool) -> None:
    """InvokeAI tells them apart so as well; nothing else in their files differs."""
    scheduler = make_scheduler(read_published(name).parts["scheduler"])
    family = ZImage({**pipeline.components, "scheduler": scheduler})
    assert (family.distilled is not None) == is_turbo
    assert family.labels.civitai == ("ZImageTurbo" if is_turbo else "ZImageBase")
    parts = ("transformer", "vae", "text_encoder")
    assert [read_published(name).parts[part] for part in parts] == [
        read_published("z-image").parts[part] for part in parts
    ]


def test_a_kohya_file_has_the_fused_layers_that_comfyui_and_diffusers_read(family: ZImage) -> None:
    spec = LoraSpec(2, 4.0, family.default_targets["transformer"])
    injection = inject(family.networks, {"transformer": spec}, seed=0)
    with torch.no_grad():
        for parameter in injection.parameters():
            parameter.normal_()
    weights = injection.weights()
    injection.eject()
    (file,) = KOHYA.write(weights, BaseNames.of(family.networks))
    assert "lora_unet_layers_0_attention_qkv.lora_down.weight" in file.tensors
    theirs = ZImagePipeline.lora_state_dict(dict(file.tensors))
    for path, own in weights.items():
        assert isinstance(own, LoraFactors)
        down, up = (theirs[f"{path}.lora_{letter}.weight"] for letter in "AB")
        torch.testing.assert_close(up @ down, own.scale * own.up @ own.down, rtol=1e-4, atol=1e-4)
    assert len(theirs) == 2 * len(weights)


@pytest.mark.parametrize("stem", ["model.diffusion_model.", ""])
def test_a_file_of_the_transformer_alone_takes_the_rest_from_the_folder_it_lies_in(stem: str, tmp_path: Path) -> None:
    folder = write_tiny_z_image(tmp_path / "base", shift=3.0)
    whole = load_family(str(folder))
    file = write_z_image_file(folder, folder / "z_image_turbo_bf16.safetensors", stem)
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    alone = load_family(str(file))
    assert isinstance(alone, ZImage) and alone.distilled is not None
    weights = whole.networks["transformer"].state_dict()
    for name, weight in alone.networks["transformer"].state_dict().items():
        assert torch.equal(weight, weights[name]), name
