"""A base whose parts lie in several places or in a file of other names is the base that a folder has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.bases import write_flux_file, write_tiny_flux
from tests.errors import raises_code
from veneer.adapter.inject import inject
from veneer.adapter.lora import LoraSpec
from veneer.config.base_name import BaseName
from veneer.engine.quantized import quantization_of
from veneer.family.fingerprint import fingerprint
from veneer.family.loading import load_base
from veneer.family.protocol import Family
from veneer.family.registry import find, load_family

TEXTS = ("text_encoder", "text_encoder_2")


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_flux(tmp_path_factory.mktemp("flux") / "base")


def modules_of(family: Family) -> dict[str, nn.Module]:
    pipeline: Any = family.pipeline()
    return {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}


def assert_same(one: Family, other: Family) -> None:
    mine, theirs = modules_of(one), modules_of(other)
    assert mine.keys() == theirs.keys() and one.settings == other.settings
    for name, part in mine.items():
        weights = theirs[name].state_dict()
        assert part.state_dict().keys() == weights.keys()
        for key, weight in part.state_dict().items():
            assert torch.equal(weight, weights[key]), f"{name}.{key}"


def without(folder: Path, target: Path, *parts: str) -> Path:
    """Copy a base without the weights of some parts."""
    shutil.copytree(folder, target)
    for part in parts:
        for file in (target / part).glob("*.safetensors"):
            file.unlink()
    return target


@pytest.mark.parametrize("stem", ["", "model.diffusion_model."])
@pytest.mark.parametrize("format", ["none", "bnb_nf4"])
def test_a_denoiser_s_file_in_the_folder_of_its_base(stem: str, format: str, flux: Path, tmp_path: Path) -> None:
    base = without(flux, tmp_path / "base", "transformer")
    file = write_flux_file(flux, base / "flux.safetensors", stem)
    assert_same(load_base(str(file), format), load_base(str(flux), format))
    unread = load_base(str(file), format, on_demand=True)
    assert_same(unread, load_base(str(flux), format))
    assert quantization_of(unread.networks["transformer"]) == format


def test_parts_that_are_named_take_the_place_of_the_base_s(flux: Path, tmp_path: Path) -> None:
    other = tmp_path / "t5.safetensors"
    weights = load_file(flux / "text_encoder_2" / "model.safetensors")
    save_file({name: weight + 1 for name, weight in weights.items()}, other, {"format": "pt"})
    base = BaseName(str(flux), {"text_encoder_2": str(other), "text_encoder": str(flux / "text_encoder")})
    family = load_family(base)
    part = modules_of(family)["text_encoder_2"].state_dict()
    assert all(torch.equal(part[name], weight + 1) for name, weight in weights.items())
    assert fingerprint(base) != fingerprint(str(flux))
    same = BaseName(str(flux), {"text_encoder": str(flux)})
    assert fingerprint(same) == fingerprint(str(flux))
    assert_same(load_family(same), load_family(str(flux)))


def test_one_file_that_has_denoiser_and_texts(flux: Path, tmp_path: Path) -> None:
    """As ComfyUI's checkpoints have them, in 16 bits."""
    base = without(flux, tmp_path / "base", "transformer", *TEXTS)
    file = write_flux_file(flux, base / "all.safetensors", "model.diffusion_model.")
    tensors = load_file(file)
    for name, stem in zip(TEXTS, ("clip_l", "t5xxl"), strict=True):
        own = load_file(flux / name / "model.safetensors")
        level = "" if any(key.startswith("text_model.") for key in own) or name != "text_encoder" else "text_model."
        tensors |= {f"text_encoders.{stem}.transformer.{level}{key}": weight for key, weight in own.items()}
    tensors["text_encoders.clip_l.logit_scale"] = torch.zeros(())
    save_file(tensors, file)
    assert_same(load_family(str(file)), load_family(str(flux)))


def scaled(tensors: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Turn matrices into 8-bit floats with a scale beside them, as ComfyUI writes them; fill in what they stand for."""
    found: dict[str, torch.Tensor] = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for place, (name, tensor) in enumerate(tensors.items()):
        found[name] = expected[name] = tensor
        if name.endswith(".weight") and tensor.ndim == 2:
            scale = tensor.abs().max() / 448
            stored = (tensor / scale).to(torch.float8_e4m3fn)
            ending = ".scale_weight" if place % 2 else ".weight_scale"
            found |= {name: stored, name.removesuffix(".weight") + ending: scale}
            expected[name] = stored.float() * scale
    return found


def test_scaled_8_bit_floats_are_what_they_stand_for(flux: Path, tmp_path: Path) -> None:
    base = without(flux, tmp_path / "base", "transformer")
    whole = Path(shutil.copytree(base, tmp_path / "whole"))
    file = write_flux_file(flux, base / "flux.safetensors")
    expected: dict[str, torch.Tensor] = {}
    save_file(scaled(load_file(file), expected), file)
    save_file(expected, whole / "flux.safetensors")
    assert_same(load_family(str(file)), load_family(str(whole / "flux.safetensors")))
    assert_same(load_base(str(file), "bnb_nf4"), load_base(str(whole / "flux.safetensors"), "bnb_nf4"))


def test_what_is_missing_is_named_in_one_line(flux: Path, tmp_path: Path) -> None:
    shutil.copytree(flux / "transformer", tmp_path / "alone")
    file = write_flux_file(flux, tmp_path / "alone" / "flux.safetensors")
    with raises_code("base.part_missing") as caught:
        find(str(file))
    assert "base.components.vae=PATH" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("components", "code"),
    [
        ({"unet": "somewhere"}, "base.unknown_component"),
        ({"vae": "nowhere"}, "base.file_missing"),
    ],
)
def test_wrong_components_are_refused(components: dict[str, str], code: str, flux: Path) -> None:
    with raises_code(code):
        find(BaseName(str(flux), components))


def test_a_file_of_other_weights_is_named(flux: Path, tmp_path: Path) -> None:
    file = tmp_path / "vae.safetensors"
    save_file({"decoder.conv_in.weight": torch.zeros(1)}, file)
    with raises_code("base.no_configs") as caught:
        find(BaseName(str(flux), {"vae": str(file)}))
    assert str(file) in str(caught.value)


def test_a_broken_part_is_named_by_its_own_place(flux: Path, tmp_path: Path) -> None:
    vae = Path(shutil.copytree(flux / "vae", tmp_path / "vae"))
    path = vae / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    del weights["decoder.conv_in.weight"]
    save_file(weights, path)
    with raises_code("base.wrong_weights") as caught:
        load_family(BaseName(str(flux), {"vae": str(vae)}))
    assert str(vae) in str(caught.value) and json.dumps("veneer-base-")[1:-1] not in str(caught.value)


GGUF_TYPES = ("Q8_0", "Q4_0", "Q5_1", "BF16", "F16")


def write_gguf(file: Path, tensors: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    """Pack matrices as llama.cpp does, norms and biases stay; return what the packed numbers stand for."""
    gguf = pytest.importorskip("gguf")
    writer, expected = gguf.GGUFWriter(file, "flux"), {}
    packed_as = gguf.GGMLQuantizationType[kind]
    for name, tensor in tensors.items():
        numbers = tensor.float().numpy()
        if tensor.ndim == 2 and tensor.shape[1] % 32 == 0:
            packed = gguf.quants.quantize(numbers, packed_as)
            writer.add_tensor(name, packed, raw_dtype=packed_as)
            expected[name] = torch.from_numpy(gguf.quants.dequantize(packed, packed_as)).reshape(tensor.shape)
        else:
            writer.add_tensor(name, numbers)
            expected[name] = tensor
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


@pytest.mark.parametrize("kind", GGUF_TYPES)
def test_a_gguf_file_is_what_its_numbers_stand_for(kind: str, flux: Path, tmp_path: Path) -> None:
    base = without(flux, tmp_path / "base", "transformer")
    whole = Path(shutil.copytree(base, tmp_path / "whole"))
    native = load_file(write_flux_file(flux, tmp_path / "native.safetensors"))
    save_file(write_gguf(base / "flux.gguf", native, kind), whole / "flux.safetensors")
    mine, theirs = load_family(str(base / "flux.gguf")), load_family(str(whole / "flux.safetensors"))
    assert_same(mine, theirs)
    assert_same(load_base(str(base / "flux.gguf"), on_demand=True), theirs)
    assert fingerprint(str(base / "flux.gguf")) != fingerprint(str(whole / "flux.safetensors"))


def test_a_lora_s_gradients_over_gguf_are_those_over_the_widened_weights(flux: Path, tmp_path: Path) -> None:
    base = without(flux, tmp_path / "base", "transformer")
    whole = Path(shutil.copytree(base, tmp_path / "whole"))
    native = load_file(write_flux_file(flux, tmp_path / "native.safetensors"))
    save_file(write_gguf(base / "flux.gguf", native, "Q4_0"), whole / "flux.safetensors")
    gradients = []
    for place in (base / "flux.gguf", whole / "flux.safetensors"):
        family = load_base(str(place), "none")
        injection = inject(family.networks, {"transformer": LoraSpec(4, 4.0, ("to_q", "to_k", "to_out.0"))}, 0)
        with torch.no_grad():
            for parameter in injection.parameters():
                parameter.add_(0.1)
        text = family.encode_text(["a cat"])
        channels = family.encode_image(torch.zeros(1, 3, 16, 16)).mean.shape[1]
        noisy = torch.randn(1, channels, 4, 4, generator=torch.Generator().manual_seed(0))
        family.predict(noisy, torch.tensor([0.5], dtype=torch.float64), text).square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in injection.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys() and gradients[0]
    for name, gradient in gradients[0].items():
        assert gradient is not None and bool(gradient.any()), name
        assert torch.equal(gradient, gradients[1][name]), name  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["F8_E4M3", "packed"])
def test_gradients_over_8_bit_floats_and_what_is_packed_otherwise(kind: str, flux: Path, tmp_path: Path) -> None:
    base = without(flux, tmp_path / "base", "transformer")
    file = write_flux_file(flux, base / "flux.safetensors")
    tensors = load_file(file)
    if kind == "packed":
        save_file({**tensors, "img_in.weight.absmax": torch.zeros(1)}, file)
        with raises_code("base.not_a_model"):
            find(str(file))
        return
    stored = {name: t.to(torch.float8_e4m3fn) if t.ndim == 2 else t for name, t in tensors.items()}
    save_file(stored, file)
    family = load_family(str(file))
    linear: Any = family.networks["transformer"].get_submodule("x_embedder")
    assert torch.equal(linear.weight, stored["img_in.weight"].float())
