"""LTX-2's peculiarities against diffusers' own pipeline; what all families share is in ``test_families``."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from diffusers import LTX2Pipeline
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_ltx2_lora_to_diffusers as converted
from safetensors import safe_open
from safetensors.torch import save_file

from tests.families import CAPTIONS
from tests.families.ltx2 import UNGUIDED, isolated, velocity, write_tiny_ltx2
from veneer.adapter.inject import inject
from veneer.adapter.registry import specs_of
from veneer.config.adapter_config import AdapterConfig, TargetPreset
from veneer.config.base_name import BaseName
from veneer.data.transform import Geometry
from veneer.family.ltx2 import Ltx2
from veneer.family.networks import LoadOptions
from veneer.family.protocol import Conditioning
from veneer.family.published import read_published
from veneer.family.registry import find, load_family

VERSIONS = {"2": {}, "2.3": {"version": "2.3"}, "decodes by a time": {"decodes_by_time": True}}


@pytest.fixture(scope="module", params=[pytest.param(name, marks=pytest.mark.slow) for name in VERSIONS])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings: dict[str, Any] = VERSIONS[request.param]
    return write_tiny_ltx2(tmp_path_factory.mktemp("base") / "ltx2", **settings)


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    pipeline = LTX2Pipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def family(folder: Path) -> Iterator[Ltx2]:
    family = load_family(str(folder))
    assert isinstance(family, Ltx2)
    yield family


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def text_of(family: Ltx2) -> Conditioning:
    return Conditioning.cat([family.encode_text([caption]) for caption in CAPTIONS])


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 3])
def test_a_prediction_is_the_pipeline_s_with_isolated_streams(family: Ltx2, pipeline: Any, frames: int) -> None:
    """Of a picture and a clip, of other sizes than square, at a time for each row."""
    noisy, t_B = draw(2, 4, frames, 4, 6), torch.tensor([0.1, 0.7], dtype=torch.float64)
    expected = velocity(pipeline, noisy, t_B.float(), CAPTIONS)
    torch.testing.assert_close(family.predict(noisy, t_B, text_of(family)), expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_the_clip_s_prediction_depends_on_no_sound(pipeline: Any) -> None:
    """Noise in place of silence, and as long as the clip in place of one token, changes no bit in diffusers either."""
    noisy, sigma_B = draw(2, 4, 3, 4, 6), torch.tensor([0.1, 0.7])
    silent = velocity(pipeline, noisy, sigma_B, CAPTIONS)
    assert torch.equal(velocity(pipeline, noisy, sigma_B, CAPTIONS, sound=draw), silent)


@torch.no_grad()
def test_texts_are_the_pipeline_s_own(family: Ltx2, pipeline: Any) -> None:
    """All layers of Gemma, padding on the left, through the connectors, which fill 1024 places with registers."""
    captions = [*CAPTIONS, "  a cat  ", ""]
    states, mask, _, _ = pipeline.encode_prompt(captions, do_classifier_free_guidance=False)
    video, _, told = pipeline.connectors(states, mask, padding_side="left")
    assert states.shape == (4, 1024, 24 * 3) and int(mask[0].sum()) < int(mask[1].sum()) < 128
    own = Conditioning.cat([family.encode_text([caption]) for caption in captions])
    torch.testing.assert_close(own["text"], video, rtol=1e-5, atol=1e-6)
    assert torch.equal(own["mask"], told) and bool(told.all())
    torch.testing.assert_close(own["text"][0], own["text"][2], rtol=0, atol=0)  # spaces around it are left out


@torch.no_grad()
def test_frames_are_placed_by_each_clip_s_own_rate(family: Ltx2, pipeline: Any) -> None:
    """The pipeline is told one rate of a whole batch."""
    noisy, t_B, rates = draw(2, 4, 3, 4, 6), torch.tensor([0.1, 0.7], dtype=torch.float64), (24.0, 30.0)
    geometries = [replace(Geometry.whole(32, 48, 5), frame_rate=rate) for rate in rates]
    both = family.predict(noisy, t_B, family.condition(text_of(family), geometries))
    for row, rate in enumerate(rates):
        expected = velocity(pipeline, noisy, t_B.float(), CAPTIONS, frame_rate=rate)
        torch.testing.assert_close(both[row], expected[row], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(expected[1], velocity(pipeline, noisy, t_B.float(), CAPTIONS)[1], atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 5])
def test_frames_are_decoded_as_the_pipeline_decodes_them(family: Ltx2, pipeline: Any, frames: int) -> None:
    """Veneer asks it for latents, for it would decode the sound as well; a picture is one frame."""
    told: dict[str, Any] = {"height": 32, "width": 32, "num_inference_steps": 2, "guidance_scale": 1.0, **UNGUIDED}
    painted = [
        pipeline("a cat", num_frames=frames, **told, generator=torch.Generator().manual_seed(0), output_type=kind)
        for kind in ("latent", "pil")
    ]
    (own,), (expected,) = family.frames_of(painted[0]), painted[1].frames
    assert len(own) == frames and [one.tobytes() for one in own] == [one.tobytes() for one in expected]


@torch.no_grad()
def test_what_is_painted_hears_the_sound(pipeline: Any) -> None:
    """The pipeline denoises sound beside the clip, which attends to it; training leaves that out."""
    told: dict[str, Any] = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2, **UNGUIDED}
    told |= {"guidance_scale": 1.0, "output_type": "latent"}
    joint = pipeline("a cat", **told, generator=torch.Generator().manual_seed(0)).frames
    with isolated(pipeline):
        alone = pipeline("a cat", **told, generator=torch.Generator().manual_seed(0)).frames
    assert not torch.allclose(joint, alone, atol=1e-5)


def test_text_encoder_connectors_and_audio_are_out_of_memory_while_the_transformer_learns(folder: Path) -> None:
    family: Any = find(str(folder)).load(LoadOptions(on_demand=True))
    assert family._offloader.unread == {"text_encoder", "connectors", "transformer", "audio_vae"}
    family.encode_text(["a cat"])
    assert family._offloader.unread == {"transformer", "audio_vae"}
    family.offload(("autoencoder", *family.text_encoders))
    assert family._offloader.unread == {"text_encoder", "connectors", "audio_vae"}
    assert family.pipeline().vocoder is None and not family._offloader.unread


def test_connectors_are_held_as_text_encoders_are() -> None:
    """Not in the form of the transformer, whose texts they make."""
    run = LoadOptions(quantization="torchao_int8", networks=("transformer",), text_encoder_quantization=None)
    options = Ltx2._adapted(run)
    assert options.quantization_of("connectors", {torch.bfloat16}) == "bfloat16"
    assert options.quantization_of("transformer") == "torchao_int8"


def test_presets_leave_the_sound_s_layers_alone(family: Ltx2) -> None:
    for preset in get_args(TargetPreset):
        (spec,) = specs_of(AdapterConfig(rank=1, target_modules=preset), family).values()
        injection = inject(family.networks, {"transformer": spec}, seed=0)
        try:
            adapted = injection.parameter_counts()
        finally:
            injection.eject()
        assert not [path for path in adapted if "audio" in path] and len(adapted) in (16, 20, 24)


SIZES = {
    "ltx2": [(384, 50_331_648), (384, 50_331_648), (480, 81_788_928)],
    "ltx2.3": [(384, 50_331_648), (480, 56_672_256), (576, 88_129_536)],
}
"""Layers and parameters of an adapter of rank 16 on the default, on attention and with the MLP."""


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_the_published_video_stream_has_so_many_layers(name: str) -> None:
    """A third of the attention that there is: the rest is the sound's, or between both."""
    family = Ltx2.abstract(read_published(name).parts, torch.float32)
    found = []
    for wanted in (None, "attention", "attention_mlp"):
        (spec,) = specs_of(AdapterConfig(rank=16, target_modules=wanted), family).values()
        injection = inject(family.networks, {"transformer": spec}, seed=0)
        counts, coverage = injection.parameter_counts(), injection.block_coverage()["transformer"]
        injection.eject()
        assert (coverage.touched, coverage.total) == (48, 48)
        found.append((len(counts), sum(counts.values())))
    assert found == SIZES[name]


@pytest.mark.slow
def test_comfy_names_are_those_that_diffusers_reads(family: Ltx2) -> None:
    """diffusers' reader of ComfyUI's files turns each name into the layer's own; none is left out."""
    names = {path: str(name) for path, name in family.key_names["comfy"].items()}
    weights = {f"{name}.lora_A.weight": torch.zeros(1) for name in names.values()}
    theirs = {path.removesuffix(".lora_A.weight") for path in converted(weights)}
    linear = {path for path, module in family.networks["transformer"].named_modules() if hasattr(module, "in_features")}
    assert theirs == names.keys() and {f"transformer.{path}" for path in linear} <= theirs
    assert all(name.startswith("diffusion_model.") for name in names.values())


@pytest.mark.slow
@torch.no_grad()
def test_a_denoiser_s_file_under_its_authors_names_is_read(tmp_path: Path) -> None:
    """As ComfyUI keeps it, with the connectors and autoencoders in the same file; the other parts are a folder's."""
    base = write_tiny_ltx2(tmp_path / "base")
    family = load_family(str(base))
    native = {path: str(name) for path, name in family.key_names["comfy"].items()}
    tables = {"video_a2v_cross_attn_scale_shift_table": "scale_shift_table_a2v_ca_video"}
    tables |= {"audio_a2v_cross_attn_scale_shift_table": "scale_shift_table_a2v_ca_audio"}
    stored = {}
    with safe_open(base / "transformer" / "diffusion_pytorch_model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118
            layer, _, part = f"transformer.{name}".rpartition(".")
            own = native.get(layer)
            new = f"{own}.{part}" if own else f"diffusion_model.{layer.partition('.')[2]}.{tables.get(part, part)}"
            stored["model." + new.replace("..", ".")] = file.get_tensor(name)
    stored["model.diffusion_model.video_embeddings_connector.learnable_registers"] = torch.zeros(8, 24)
    save_file(stored, tmp_path / "ltx2.safetensors")
    shutil.copy(base / "transformer" / "config.json", tmp_path)
    parts = {name: str(base) for name in Ltx2.part_names() if name != "transformer"}
    own = load_family(BaseName(str(tmp_path / "ltx2.safetensors"), parts))
    noisy, t_B = draw(2, 4, 1, 4, 4), torch.tensor([0.1, 0.7], dtype=torch.float64)
    assert isinstance(own, Ltx2)
    torch.testing.assert_close(own.predict(noisy, t_B, text_of(own)), family.predict(noisy, t_B, text_of(own)))


def test_a_distilled_checkpoint_is_told_by_its_scheduler(family: Ltx2) -> None:
    assert family.distilled is None
    parts = {**family._parts, "scheduler": type(family._parts["scheduler"]).from_config({"shift": 1.0})}
    told = Ltx2(parts).distilled
    assert told is not None and "not distilled" in told
