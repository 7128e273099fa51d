"""What is peculiar to Anima, against diffusers' own modular pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.errors import raises_code
from tests.families.anima import open_anima, text_of, tiny_transformer, write_tiny_anima
from tests.key_tables import read_key_table
from veneer.adapter.lora import LoraFactors
from veneer.config.base_name import BaseName
from veneer.family.anima import Anima, complete_transformer
from veneer.family.key_names.anima import anima_names
from veneer.family.key_names.network import names_in
from veneer.family.registry import find, load_family
from veneer.sample.generate import generate
from veneer.weights.file import AdapterFile, load, save
from veneer.weights.formats.protocol import BaseNames

NATIVE = "model.diffusion_model"
LONG = ", ".join(["many words"] * 300)
CAPTIONS = ["", "1girl, @an_artist", "the dog that sees a cat", LONG]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_anima(tmp_path_factory.mktemp("base") / "anima")


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    return open_anima(folder, diffusers.AnimaModularPipeline)


@pytest.fixture(scope="module")
def family(folder: Path) -> Anima:
    family = load_family(str(folder))
    assert isinstance(family, Anima)
    return family


@torch.no_grad()
def test_a_caption_is_encoded_to_the_pipeline_s_bits(family: Anima, pipeline: Any) -> None:
    """Each alone, an empty one and one that is cut too; the pipeline's zeros behind it are left out."""
    for caption in CAPTIONS:
        expected = text_of(pipeline, [caption])
        own = family.encode_text([caption])["text"]
        assert expected.shape[1] == 512 and torch.equal(own, expected[:, : own.shape[1]])
        assert not expected[:, own.shape[1] :].any() and own.isfinite().all()
    assert own.shape[1] == 512 and family.text_length == 511


@torch.no_grad()
def test_captions_in_a_batch_are_the_pipeline_s_batch(family: Anima, pipeline: Any) -> None:
    expected = text_of(pipeline, CAPTIONS)
    own = family.encode_text(CAPTIONS)["text"]
    torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_number_of_zeros_behind_a_caption_matters(family: Anima) -> None:
    """So they are made as many as the pipeline's, however short the captions of a batch are."""
    transformer: Any = family.networks["transformer"]
    text, noisy = family.encode_text(["a cat"])["text"], torch.randn(1, 4, 1, 4, 6)
    mask = torch.zeros(1, 1, 16, 24)
    answers = []
    for length in (text.shape[1], 512):
        told = nn.functional.pad(text, (0, 0, 0, length - text.shape[1]))
        answers.append(transformer(noisy, torch.tensor([0.5]), told, padding_mask=mask).sample)
    assert not torch.allclose(answers[0], answers[1], rtol=1e-2)


@pytest.mark.slow
def test_the_scale_of_guidance_is_the_guider_s(family: Anima, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family, "resolution", 16)
    pipeline = open_anima(folder, diffusers.AnimaModularPipeline)
    found = {}
    for scale in (1.0, 3.0):
        own = painted(generate(family, ["a cat", "the dog"], [1, 2], steps=2, guidance=scale))
        pipeline.update_components(guider=diffusers.ClassifierFreeGuidance(guidance_scale=scale))
        generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        sizes = {"height": 16, "width": 16, "num_inference_steps": 2}
        theirs = pipeline(prompt=["a cat", "the dog"], generator=generators, **sizes, output="images")
        assert torch.equal(own, painted(theirs))
        found[scale] = own
    assert not torch.equal(found[1.0], found[3.0])


def painted(images: Any) -> Tensor:
    return torch.stack([torch.from_numpy(np.array(image)) for image in images])


def test_no_bar_is_shown_while_it_paints(family: Anima, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(family, "resolution", 16)
        generate(family, ["a cat"], [1], steps=1, guidance=1.0)
    told = capfd.readouterr()
    assert (told.out, told.err) == ("", "")


@torch.no_grad()
def test_a_side_is_as_long_as_there_are_rotations(family: Anima) -> None:
    """diffusers' transformer fails at a longer one in words of its own."""
    assert family.longest_side == 30 * family.multiple
    text, t_B = family.encode_text(["a cat"]), torch.tensor([0.5], dtype=torch.float64)
    assert family.predict(torch.randn(1, 4, 2, 60), t_B, text).shape == (1, 4, 2, 60)
    with pytest.raises(RuntimeError):
        family.predict(torch.randn(1, 4, 2, 62), t_B, text)


def test_what_torchvision_does_is_done_without_it() -> None:
    from diffusers.models.transformers import transformer_cosmos

    complete_transformer()
    transforms = transformer_cosmos.transforms
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    mode = transforms.InterpolationMode.NEAREST
    assert transforms.functional.resize(image, [2, 2], interpolation=mode).flatten().tolist() == [0, 2, 8, 10]


def native(folder: Path, stem: str) -> dict[str, Tensor]:
    """The denoiser and its conditioner, as ComfyUI's file has them."""
    own = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    conditioner = load_file(folder / "text_conditioner" / "diffusion_pytorch_model.safetensors")
    network = tiny_transformer()
    names = names_in("transformer", network, anima_names)
    found: dict[str, Tensor] = {"pos_embedder.seq": torch.arange(8.0)}  # which other programs' files have
    for path, tensor in own.items():
        layer, _, part = path.rpartition(".")
        found[f"{str(names.get(f'transformer.{layer}', layer)).removeprefix('transformer.')}.{part}"] = tensor
    assert "blocks.0.self_attn.q_norm.weight" in found and "t_embedding_norm.weight" in found
    found |= {f"llm_adapter.{name}": tensor for name, tensor in conditioner.items()}
    return {f"{stem}{name}": tensor.contiguous() for name, tensor in found.items()}


@pytest.mark.parametrize(
    "stem",
    ["net.", *(pytest.param(stem, marks=pytest.mark.slow) for stem in ("", f"{NATIVE}.", f"{NATIVE}.net."))],
)
def test_comfy_s_file_has_the_transformer_and_its_conditioner(folder: Path, stem: str, tmp_path: Path) -> None:
    """Beside the other parts, which are named; the configurations lie in the folder that they are named in."""
    save_file(native(folder, stem), tmp_path / "anima.safetensors")
    states = load_file(folder / "text_encoder" / "model.safetensors")
    save_file({f"model.{name}": tensor for name, tensor in states.items()}, tmp_path / "qwen_3_06b_base.safetensors")
    for name in ("transformer", "text_conditioner", "text_encoder"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_bytes((folder / name / "config.json").read_bytes())
    (tmp_path / "modular_model_index.json").write_bytes((folder / "modular_model_index.json").read_bytes())
    components = {name: str(folder) for name in ("vae", "tokenizer", "t5_tokenizer", "scheduler")}
    components["text_encoder"] = str(tmp_path / "qwen_3_06b_base.safetensors")
    base = BaseName(str(tmp_path / "anima.safetensors"), components)
    assert find(base).pipeline == "AnimaModularPipeline"
    family, whole = load_family(base), load_family(str(folder))
    for name, network in (("transformer", family.networks["transformer"]), ("conditioner", conditioner_of(family))):
        expected = whole.networks["transformer"] if name == "transformer" else conditioner_of(whole)
        weights = expected.state_dict()
        assert all(torch.equal(tensor, weights[key]) for key, tensor in network.state_dict().items())
    assert torch.equal(family.encode_text(["a cat"])["text"], whole.encode_text(["a cat"])["text"])


def conditioner_of(family: Any) -> nn.Module:
    family.encode_text([""])  # reads it
    conditioner: nn.Module = family._text_encoders["text_conditioner"]
    return conditioner


def test_what_comfy_s_file_lacks_is_said(folder: Path, tmp_path: Path) -> None:
    save_file(native(folder, "net."), tmp_path / "anima.safetensors")
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_bytes((folder / "transformer" / "config.json").read_bytes())
    (tmp_path / "modular_model_index.json").write_text('{"_class_name": "AnimaModularPipeline"}')
    with raises_code("base.part_missing") as caught:
        load_family(str(tmp_path / "anima.safetensors"))
    assert "base.components.t5_tokenizer=PATH" in str(caught.value)


def test_a_file_for_comfy_is_read_by_diffusers_at_its_strength(family: Anima, folder: Path, tmp_path: Path) -> None:
    """With an alpha that is not the rank; diffusers refuses a file that has ``.alpha``, and ComfyUI needs none."""
    paths = [f"transformer.transformer_blocks.1.{path}" for path in ("attn2.to_k", "attn1.to_out.0", "ff.net.2")]
    layers = {path: family.networks["transformer"].get_submodule(path.partition(".")[2]) for path in paths}
    weights = {
        path: LoraFactors(torch.randn(3, layer.in_features), torch.randn(layer.out_features, 3), alpha=0.7)
        for path, layer in layers.items()
        if isinstance(layer, nn.Linear)
    }
    known = {path.partition(".")[2] for path in paths}
    file = tmp_path / "anima.safetensors"
    save(AdapterFile(weights), file, "comfy", BaseNames.of(family.networks))
    tensors = load_file(file)
    name = "diffusion_model.blocks.1.cross_attn.k_proj"
    assert {key for key in tensors if key.startswith(name)} == {f"{name}.lora_A.weight", f"{name}.lora_B.weight"}
    read = load(file, family.networks).weights
    save(AdapterFile(weights), tmp_path / "kohya.safetensors", "kohya", BaseNames.of(family.networks))
    kohya = load_file(tmp_path / "kohya.safetensors")
    assert {key.partition(".")[0] for key in kohya} == {
        row.kohya for row in read_key_table("anima") if row.path in known
    }
    for parts, strength in ((tensors, 1.0), (kohya, 0.7 / 3)):
        ups = (f"{name}.lora_B.weight", "lora_unet_blocks_1_cross_attn_k_proj.lora_up.weight")
        (up,) = (parts[key] for key in ups if key in parts)
        expected = weights[paths[0]]
        torch.testing.assert_close(strength * up, expected.scale * expected.up)
    theirs = load_family(str(folder))
    pipeline: Any = theirs.pipeline()
    pipeline.load_lora_weights(str(tmp_path), weight_name=file.name)
    for path, layer in theirs.networks["transformer"].named_modules():
        if hasattr(layer, "lora_A"):
            expected, own = weights.pop(f"transformer.{path}"), read[f"transformer.{path}"]
            delta = layer.get_delta_weight("default_0")
            torch.testing.assert_close(delta, expected.scale * (expected.up @ expected.down))
            assert isinstance(own, LoraFactors)
            torch.testing.assert_close(own.scale * (own.up @ own.down), delta)
    assert not weights


def test_an_index_of_either_kind_is_read(folder: Path, tmp_path: Path) -> None:
    """diffusers' own names the folder that it was written to, which is not asked."""
    modular = json.loads((folder / "modular_model_index.json").read_text())
    moved = tmp_path / "moved"
    moved.mkdir()
    for part in folder.glob("*/"):
        (moved / part.name).symlink_to(part)
    plain = {name: entry[:2] if isinstance(entry, list) else entry for name, entry in modular.items()}
    (moved / "model_index.json").write_text(json.dumps(plain))
    assert load_family(str(moved)).name == "anima"
    (moved / "model_index.json").unlink()
    elsewhere = {
        name: [None, None, {**entry[2], "pretrained_model_name_or_path": "no/where"}]
        if isinstance(entry, list)
        else entry
        for name, entry in modular.items()
    }
    (moved / "modular_model_index.json").write_text(json.dumps(elsewhere))
    assert load_family(str(moved)).name == "anima"
    (moved / "modular_model_index.json").write_text('{"_class_name": "FluxModularPipeline"}')
    with raises_code("base.unknown_family", "is a FluxModularPipeline"):
        load_family(str(moved))
