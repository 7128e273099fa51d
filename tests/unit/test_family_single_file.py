"""What a single file is, is told by its header; only a whole base of a known family is one."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file, save_file

from tests.bases import write_single_file, write_tiny_sdxl
from tests.errors import raises_code
from veneer.errors import UserError
from veneer.family.registry import detect_file, load_family
from veneer.family.single_file import conversion


def torch_bytes() -> bytes:
    content = io.BytesIO()
    torch.save({"a": torch.ones(2)}, content)
    return content.getvalue()


PICKLED, ZIPPED = torch_bytes(), b"PK\x03\x04" + bytes(99)
LDM = "model.diffusion_model.input_blocks.0.0.weight"
NAMES = {
    # names of tensors: what they are
    "lora_unet_mid_block_proj_in.lora_down.weight": "is an adapter, not a base",
    "unet.down_blocks.0.attn1.to_q.lora_A.weight": "is an adapter, not a base",
    "lora_unet_x.hada_w1_a": "is an adapter, not a base",
    "model.diffusion_model.input_blocks.1.1.proj_in.lora_A.weight": "is an adapter, not a base",
    "control_model.time_embed.0.weight": "is a ControlNet, not a base",
    "controlnet_cond_embedding.conv_in.weight": "is a ControlNet, not a base",
    "ip_adapter.1.to_k_ip.weight": "is an IP-Adapter, not a base",
    "adapter.body.0.in_conv.weight": "is a T2I-Adapter, not a base",
    "emb_params": "is a textual inversion embedding, not a base",
    "clip_l": "is a textual inversion embedding, not a base",
    "first_stage_model.encoder.conv_in.weight": "is an autoencoder (VAE) alone",
    "embeddings.token_embedding.weight": "is a text encoder (CLIP) alone",
    "embed_tokens.weight": "is a language model alone",
    "encoder.block.0.snake1.alpha": "holds no base model that is known by the names of its weights",
    "lora_unet_x.alpha": "is an adapter, not a base",
    "lora_unet_x.on_input": "is an adapter, not a base",
    "base_model.model.x.fourierft_spectrum": "is an adapter, not a base",
    "lllite_unet_input_blocks_4_1.conditioning1.0.weight": "is a ControlNet-LLLite, not a base",
    "zero_convs.0.weight": "is a ControlNet, not a base",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor.to_k_ip.weight": "is an IP-Adapter, not a base",
    "conv_first.weight": "is an upscaler, not a base",
    "body.0.rdb1.conv1.weight": "holds no base model that is known by the names of its weights",
    "<my-cat>": "is a textual inversion embedding, not a base",
    "unet:0:up": "is a LoRA of cloneofsimo's trainer of 2022, whose names count layers, not a base",
    "encoder.down.0.block.0.conv1.weight": "is an autoencoder (VAE) alone",
    "decoder.up_blocks.0.resnets.0.conv1.weight": "is an autoencoder (VAE) alone",
    "text_model.encoder.layers.0.mlp.fc1.weight": "is a text encoder (CLIP) alone",
    "encoder.block.0.layer.0.SelfAttention.q.weight": "is a text encoder (T5) alone",
    "model.layers.0.self_attn.q_proj.weight": "is a language model alone",
    "down_blocks.0.resnets.0.conv1.weight": "is a denoiser alone",
    "input_blocks.1.0.in_layers.0.weight": "is a denoiser alone",
    "optimizer.0.exp_avg": "is a training's saved state, not a base",
    "model.0.weight": "holds no base model that is known by the names of its weights",
}


def checkpoint(path: Path, *names: str, **shapes: tuple[int, ...]) -> Path:
    save_file({name: torch.zeros(shapes.get(name, (4, 4)), dtype=torch.float16) for name in (*names, *shapes)}, path)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_base_is_named(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = checkpoint(tmp_path / "a.safetensors", name)
    with raises_code("base.not_a_model") as caught:
        load_family(str(path))
    assert f"{path}: {NAMES[name]}" in str(caught.value) and caught.value.remedy
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("mark", ["scaled_fp8", "a.scale_weight", "a.weight.absmax", "a.weight.quant_state.bnb__nf4"])
def test_packed_numbers_are_no_weights(mark: str, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.safetensors", LDM, "first_stage_model.a", "cond_stage_model.a", mark)
    with raises_code("base.not_a_model", "is quantised: its numbers are packed with scales beside them"):
        load_family(str(path))


@pytest.mark.parametrize(
    ("names", "lost"),
    [
        ((LDM,), "its autoencoder (first_stage_model) and its text encoder (cond_stage_model, conditioner)"),
        ((LDM, "cond_stage_model.a"), "its autoencoder (first_stage_model)"),
        ((LDM, "first_stage_model.a"), "its text encoder (cond_stage_model, conditioner)"),
    ],
)
def test_a_denoiser_under_the_original_names_is_no_base(names: tuple[str, ...], lost: str, tmp_path: Path) -> None:
    with raises_code("base.not_a_model") as caught:
        load_family(str(checkpoint(tmp_path / "a.safetensors", *names)))
    assert f"has its denoiser, but not {lost}; give the whole checkpoint" in str(caught.value)


@pytest.mark.parametrize(
    ("shapes", "code", "words"),
    [
        ({"double_blocks.0.img_attn.norm.key_norm.scale": (8,)}, "base.no_configs", "no FluxTransformer2DModel whose"),
        ({"joint_blocks.37.x_block.mlp.fc1.weight": (8, 8)}, "base.no_configs", "no SD3Transformer2DModel whose"),
        (
            {"head.modulation": (1,), "patch_embedding.weight": (1536, 16)},
            "base.no_configs",
            "no WanTransformer3DModel",
        ),
        ({"blocks.0.attn.qkv_x.weight": (8, 8)}, "base.unknown_family", "a checkpoint of mochi-1-preview"),
        ({LDM: (320, 9, 3, 3)}, "base.unknown_family", "a checkpoint of inpainting"),
        ({LDM: (320, 8, 3, 3)}, "base.unknown_family", "a checkpoint of instruct-pix2pix"),
    ],
)
def test_other_families_and_kinds_are_named(
    shapes: dict[str, tuple[int, ...]], code: str, words: str, tmp_path: Path
) -> None:
    with raises_code(code, words):
        load_family(str(checkpoint(tmp_path / "a.safetensors", **shapes)))


@pytest.mark.parametrize(
    ("name", "content", "code", "words"),
    [
        ("a.gguf", b"GGUF" + bytes(99), "base.not_a_model", "is a GGUF file"),
        ("a.safetensors", b"GGUF" + bytes(99), "base.not_a_model", "is a GGUF file"),
        ("a.safetensors", PICKLED, "base.wrong_file", "is a pickle under the name of a safetensors file; convert it"),
        (
            "a.safetensors",
            ZIPPED,
            "base.wrong_file",
            "is a zip archive under the name of a safetensors file; unpack it",
        ),
        ("a.safetensors", b"<html><body>Log in", "base.wrong_file", "is a web page; it was saved in place of the file"),
        ("a.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "base.wrong_file", "is a git-lfs pointer"),
        ("a.safetensors", b"", "base.cut_short", "is empty"),
        ("a.safetensors", bytes(1000), "base.wrong_file", "is no safetensors file: it does not begin with a header"),
        ("a.safetensors", b"\xff" * 7 + b"\x00{", "base.wrong_file", "does not begin with a header"),
        ("a.safetensors", b"\x02" + bytes(7) + b"{}", "base.not_a_model", "holds no tensors"),
        ("a.safetensors", b"\x03" + bytes(7) + b"{a}", "base.wrong_file", "is damaged: "),
        ("a.zip", b"PK\x03\x04" + bytes(99), "base.not_a_model", "is a zip archive, not a model"),
        ("a.7z", b"7z\xbc\xaf\x27\x1c" + bytes(99), "base.not_a_model", "is a 7z archive, not a model"),
        ("a.yaml", b"a: b", "base.not_a_model", "is a text file, not a model"),
        ("a.model", bytes(99), "base.not_a_model", "is no model"),
    ],
)
def test_what_is_no_safetensors_file(
    name: str, content: bytes, code: str, words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    with raises_code(code, words):
        load_family(str(tmp_path / name))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": ["a"], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [-4, 4]},
        {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]},
        {"shape": [1]},
        3,
    ],
)
def test_a_header_that_makes_no_sense_is_one_line(entry: Any, tmp_path: Path) -> None:
    text = json.dumps({LDM: entry}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with raises_code("base.wrong_file", "a.safetensors: is damaged: ") as caught:
        load_family(str(tmp_path / "a.safetensors"))
    assert "\n" not in str(caught.value)


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The permission is denied to any user here, root too."""
    path = checkpoint(tmp_path / "a.safetensors", LDM)

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with raises_code("base.unreadable", f"{path}: may not be read; give yourself the right to read it"):
        load_family(str(path))


def test_a_pipe_is_not_read_and_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.safetensors")
    with raises_code("base.wrong_file", "is no regular file"):
        load_family(str(tmp_path / "a.safetensors"))
    (tmp_path / "b.safetensors").symlink_to("gone.safetensors")
    with raises_code("base.file_missing", "is a link to gone.safetensors, which is not there"):
        load_family(str(tmp_path / "b.safetensors"))


@pytest.mark.slow
def test_the_command_for_a_pickle_converts_it_and_runs_nothing(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "was run"),))

    old = tmp_path / "a model's.ckpt"
    torch.save({"state_dict": {LDM: torch.ones(2, 3).T, "epoch": 3}}, old)
    with raises_code("base.pickle") as caught:
        load_family(str(old))
    assert conversion(old) in str(caught.value)
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(conversion(old), shell=True, check=True, capture_output=True, env=path)
    assert load_file(old.with_suffix(".safetensors"))[LDM].shape == (3, 2)
    torch.save({"state_dict": {LDM: Hostile()}}, tmp_path / "b.ckpt")
    hostile = subprocess.run(conversion(tmp_path / "b.ckpt"), shell=True, capture_output=True, env=path, check=False)
    assert hostile.returncode != 0 and b"UnpicklingError" in hostile.stderr
    assert not (tmp_path / "was run").exists()


@pytest.fixture(scope="module")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny_sdxl(tmp_path_factory.mktemp("sdxl") / "xl")
    write_single_file(folder, folder / "xl.safetensors")
    return folder


def test_numbers_of_eight_bits_without_scales_are_read_as_they_are(tiny_sdxl: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_sdxl, tmp_path / "xl"))
    small = {name: one.to(torch.float8_e4m3fn) for name, one in load((base / "xl.safetensors").read_bytes()).items()}
    save_file(small, base / "xl.safetensors")
    read = load_family(str(base / "xl.safetensors")).networks["unet"].state_dict()["conv_in.weight"]
    assert torch.equal(read, small["model.diffusion_model.input_blocks.0.0.weight"].float())


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        ("model.diffusion_model.out.2.weight", "lacks weights that its configurations ask for"),
        ("first_stage_model.decoder.conv_in.weight", "lacks weights that its configurations ask for"),
        ("conditioner.embedders.0.transformer.text_model.final_layer_norm.bias", "final_layer_norm.bias"),
    ],
)
def test_a_file_that_lacks_a_weight_is_one_line(
    lost: str, words: str, tiny_sdxl: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    base = Path(shutil.copytree(tiny_sdxl, tmp_path / "xl"))
    tensors = load((base / "xl.safetensors").read_bytes())
    del tensors[lost]
    save_file(tensors, base / "xl.safetensors")
    with pytest.raises(UserError) as caught:
        load_family(str(base / "xl.safetensors"))
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("change", [{"cross_attention_dim": 96}, {"transformer_layers_per_block": [1, 1]}])
def test_configurations_of_another_base_beside_a_file_are_named(
    change: dict[str, Any], tiny_sdxl: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of fewer layers too, for which diffusers would pass weights over."""
    base = Path(shutil.copytree(tiny_sdxl, tmp_path / "xl"))
    config = base / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    with pytest.raises(UserError) as caught:
        load_family(str(base / "xl.safetensors"))
    assert str(base) in str(caught.value) and "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_whole_file_is_known(tiny_sdxl: Path) -> None:
    assert detect_file(tiny_sdxl / "xl.safetensors") == "StableDiffusionXLPipeline"
