"""The layers of a base, found without its weights: of a base that is named, of a run's, or of one that fits."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.bases import write_single_file, write_tiny_sdxl
from tests.errors import raises_code
from veneer.adapter.layers import layers_of
from veneer.family.layer_names import published_names
from veneer.family.published import PUBLISHED
from veneer.family.registry import BUNDLED, load_family
from veneer.verbs.adapter_base import base_names
from veneer.weights.formats.protocol import BaseNames

SDXL_LAYER = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"


def adapter(path: Path, layer: str, shape: tuple[int, int], metadata: dict[str, str] | None = None) -> Path:
    out, inside = shape
    tensors = {f"{layer}.lora_down.weight": torch.zeros(2, inside), f"{layer}.lora_up.weight": torch.zeros(out, 2)}
    save_file({**tensors, f"{layer}.alpha": torch.tensor(1.0)}, path, metadata)
    return path


def shapes(base: BaseNames | None) -> dict[str, tuple[int, ...]]:
    assert base is not None
    return {path: tuple(layer.weight.shape) for path, layer in layers_of(base.networks).items()}


@pytest.fixture(scope="module")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_sdxl(tmp_path_factory.mktemp("base") / "sdxl")


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_a_folder_s_layers_are_those_of_the_loaded_base(
    tiny_base: Path, tiny_sdxl: Path, tmp_path: Path, kind: str
) -> None:
    """Its weights are gone by then, so none can be read."""
    whole = tiny_base if kind == "sd" else tiny_sdxl
    loaded = BaseNames.of(load_family(str(whole)).networks)
    folder = shutil.copytree(whole, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    found = base_names(tmp_path / "any.safetensors", str(folder))
    assert found is not None and shapes(found) == shapes(loaded) and found.key_names == loaded.key_names
    assert all(layer.weight.is_meta for layer in layers_of(found.networks).values())


def test_the_config_beside_a_file_names_the_base(tiny_sdxl: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"base: {tiny_sdxl}\ndata:\n  sources:\n    - path: {tmp_path}\n")
    expected = shapes(base_names(tmp_path / "x", str(tiny_sdxl)))
    assert shapes(base_names(tmp_path)) == expected == shapes(base_names(tmp_path / "other.safetensors"))


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (SDXL_LAYER, (640, 2048), "sdxl"),
        ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", (320, 768), "sd15"),
        ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", (320, 1024), "sd21"),
        ("lora_te2_text_model_encoder_layers_31_mlp_fc1", (5120, 1280), "sdxl"),
        ("transformer.single_transformer_blocks.37.attn.to_q", (3072, 3072), "flux-dev"),
    ],
)
def test_a_published_architecture_that_fits(tmp_path: Path, layer: str, shape: tuple[int, int], expected: str) -> None:
    assert base_names(adapter(tmp_path / "x.safetensors", layer, shape)) is published_names(expected)


def test_a_base_that_is_gone_is_not_asked_for(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"base: {tmp_path}/gone\ndata:\n  sources:\n    - path: {tmp_path}\n")
    assert base_names(adapter(tmp_path / "x.safetensors", SDXL_LAYER, (640, 2048))) is published_names("sdxl")
    with raises_code("base.not_found"):
        base_names(tmp_path / "x.safetensors", f"{tmp_path}/gone")


@pytest.mark.slow
def test_none_fits(tmp_path: Path) -> None:
    assert base_names(adapter(tmp_path / "x.safetensors", "unet.conv_in", (5, 6))) is None
    assert base_names(adapter(tmp_path / "y.safetensors", SDXL_LAYER, (5, 6))) is None


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_name_of_an_architecture_is_a_base(tmp_path: Path, name: str) -> None:
    assert base_names(tmp_path / "x.safetensors", name) is published_names(name)


def test_a_single_file_beside_configurations_and_alone(tiny_sdxl: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_sdxl, tmp_path / "base")
    file = write_single_file(folder, folder / "sdxl.safetensors")
    assert shapes(base_names(tmp_path / "x", str(file))) == shapes(base_names(tmp_path / "x", str(folder)))
    with raises_code("base.no_configs"):
        base_names(tmp_path / "x", str(file.rename(tmp_path / "alone.safetensors")))


def test_a_single_file_of_a_published_size(tmp_path: Path) -> None:
    """Its header alone is read: the numbers are a hole of the disk."""
    file = sparse_single_file(tmp_path / "model.safetensors", published_names("sd15"))
    assert base_names(tmp_path / "x", str(file)) is published_names("sd15")


def sparse_single_file(path: Path, base: BaseNames) -> Path:
    import json

    sizes = {name: list(tensor.shape) for name, tensor in base.networks["unet"].state_dict().items()}
    header, end = {}, 0
    for number, shape in enumerate([[1], [1], *sizes.values()]):
        name = ("first_stage_model.x", "cond_stage_model.x")[number] if number < 2 else f"{number}"
        prefix = "" if number < 2 else "model.diffusion_model.input_blocks."
        start, end = end, end + 2 * torch.Size(shape).numel()
        header[prefix + name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + end)
    return path


def test_a_file_of_the_bundled_base_says_so_itself(tmp_path: Path) -> None:
    """No published architecture has its layers, and no config lies beside it."""
    bundled = shapes(base_names(tmp_path, BUNDLED))
    path, (out, inside) = next((path, shape) for path, shape in bundled.items() if path.endswith("attn2.to_k"))
    layer = f"lora_{path.replace('.', '_')}"
    assert base_names(adapter(tmp_path / "silent.safetensors", layer, (out, inside))) is None
    told = adapter(tmp_path / "told.safetensors", layer, (out, inside), {"veneer.base": BUNDLED})
    assert shapes(base_names(told)) == bundled
    lies = adapter(tmp_path / "lies.safetensors", SDXL_LAYER, (640, 2048), {"veneer.base": BUNDLED})
    assert shapes(base_names(lies)) == shapes(published_names("sdxl"))
