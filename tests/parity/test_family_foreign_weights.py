"""A denoiser's file under its authors' names has, weight by weight, what diffusers' own reader makes of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.families import family_cases
from veneer.family.foreign_weights import foreign_weights
from veneer.family.gguf_file import open_weights
from veneer.family.registry import load_family

Tensors = dict[str, torch.Tensor]
CASES = family_cases()


def z_image(own: Tensors) -> Tensors:
    found: Tensors = {}
    for name, tensor in own.items():
        if match := re.fullmatch(r"(.*\.attention)\.to_q\.weight", name):
            found[f"{match[1]}.qkv.weight"] = torch.cat([own[f"{match[1]}.to_{letter}.weight"] for letter in "qkv"])
        elif not re.search(r"\.attention\.to_[kv]\.", name):
            name = name.replace("all_final_layer.2-1.", "final_layer.").replace("all_x_embedder.2-1.", "x_embedder.")
            name = name.replace(".attention.to_out.0.", ".attention.out.")
            found[re.sub(r"\.attention\.norm_([qk])\.", r".attention.\1_norm.", name)] = tensor
    return found


WAN = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "attn1": "self_attn",
    "attn2": "cross_attn",
    ".to_out.0.": ".o.",
    ".to_q.": ".q.",
    ".to_k.": ".k.",
    ".to_v.": ".v.",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "norm2": "norm3",
    "proj_out": "head.head",
}


def wan(own: Tensors) -> Tensors:
    found: Tensors = {}
    for name, tensor in own.items():
        native = "head.modulation" if name == "scale_shift_table" else name.replace("scale_shift_table", "modulation")
        for mine, theirs in WAN.items():
            native = native.replace(mine, theirs)
        found[native] = tensor
    return found


def renamed_alone(own: Tensors) -> Tensors:
    return dict(own)


NATIVE: dict[str, Callable[[Tensors], Tensors]] = {"z_image": z_image, "wan": wan, "qwen_image": renamed_alone}


@pytest.mark.parametrize("stem", ["", "model.diffusion_model."])
@pytest.mark.parametrize("name", NATIVE)
def test_the_weights_are_those_of_diffusers_reader(name: str, stem: str, tmp_path: Path) -> None:
    folder = CASES[name].write(tmp_path / "base")
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    own = load_file(path)
    native = {f"{stem}{key}": tensor.contiguous() for key, tensor in NATIVE[name](own).items()}
    if name != "qwen_image":
        assert native.keys() != own.keys()
    file = folder / "native.safetensors"
    save_file(native, file)
    pipeline = getattr(diffusers, CASES[name].pipeline).from_pretrained(folder)
    transformer: Any = pipeline.transformer
    stored = foreign_weights(transformer, transformer.config, open_weights(file))
    assert stored is not None and stored.keys() == own.keys()
    assert all(torch.equal(weight.read(), own[key]) for key, weight in stored.items())
    if (name, stem) != ("qwen_image", "model.diffusion_model."):  # whose prefix diffusers does not take off
        theirs = type(transformer).from_single_file(str(file), config=str(folder), subfolder="transformer")
        assert all(torch.equal(theirs.state_dict()[key], weight.read()) for key, weight in stored.items())
    path.unlink()
    family = load_family(str(file))
    weights = family.networks[family.denoiser].state_dict()
    assert all(torch.equal(weights[key], own[key]) for key in own)


INNER = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6"}
INNER |= {"conv_shortcut": "shortcut"}
OUTER = {"conv_in": "conv1", "norm_out": "head.0", "conv_out": "head.2"}
MIDDLE = {"resnets.0": "middle.0", "attentions.0": "middle.1", "resnets.1": "middle.2"}


def wan_autoencoder(name: str) -> str:
    """What Wan's code calls a weight of its autoencoder, which Qwen-Image's files have too."""
    side, _, rest = name.partition(".")
    if side in ("quant_conv", "post_quant_conv"):
        return name.replace("post_quant_conv", "conv2").replace("quant_conv", "conv1")
    for table, before in ((OUTER, ""), (MIDDLE, r"mid_block\.")):
        for own, native in table.items():
            rest = re.sub(rf"^{before}{re.escape(own)}\.", f"{native}.", rest)
    for pattern, step in ((r"up_blocks\.(\d)\.resnets\.(\d)", 0), (r"up_blocks\.(\d)\.upsamplers\.(\d)", 3)):
        if match := re.match(pattern, rest):
            rest = f"upsamples.{4 * int(match[1]) + int(match[2]) + step}{rest[match.end() :]}"
    rest = rest.replace("down_blocks.", "downsamples.")
    if re.match(r"(?:down|up)samples|middle\.[02]", rest):
        for own, native in INNER.items():
            rest = rest.replace(f".{own}.", f".{native}.")
    return f"{side}.{rest}"


@pytest.mark.parametrize("stem", ["", "first_stage_model."])
def test_qwen_image_s_autoencoder_is_read_under_wan_s_names(stem: str, tmp_path: Path) -> None:
    """As ComfyUI's ``qwen_image_vae.safetensors`` has it; diffusers reads such a file for Wan's class alone."""
    shape: dict[str, Any] = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2}
    shape |= {"temperal_downsample": [False, True, True], "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    network = diffusers.AutoencoderKLQwenImage(**shape)
    own = network.state_dict()
    native = {wan_autoencoder(name): tensor.contiguous() for name, tensor in own.items()}
    assert {"conv1.weight", "decoder.middle.1.to_qkv.weight", "decoder.upsamples.7.resample.1.weight"} <= native.keys()
    save_file({f"{stem}{name}": tensor for name, tensor in native.items()}, tmp_path / "vae.safetensors")
    stored = foreign_weights(network, network.config, open_weights(tmp_path / "vae.safetensors"))
    assert stored is not None and stored.keys() == own.keys()
    assert all(torch.equal(weight.read(), own[name]) for name, weight in stored.items())
    diffusers.AutoencoderKLWan(**shape).save_config(tmp_path / "config")
    save_file(native, tmp_path / "wan.safetensors")
    theirs = diffusers.AutoencoderKLWan.from_single_file(
        str(tmp_path / "wan.safetensors"), config=str(tmp_path / "config"), subfolder=""
    )
    assert all(torch.equal(theirs.state_dict()[name], tensor) for name, tensor in own.items())


def test_a_converter_that_computes_with_weights_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from diffusers.loaders import single_file_model

    network = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False))
    save_file({"a": torch.arange(16.0).reshape(4, 4)}, tmp_path / "a.safetensors")

    def found(convert: Callable[[torch.Tensor], torch.Tensor]) -> Any:
        def converter(checkpoint: Tensors, **_: Any) -> Tensors:
            return {"0.weight": convert(checkpoint["a"])}

        entry = {"checkpoint_mapping_fn": converter}
        monkeypatch.setitem(single_file_model.SINGLE_FILE_LOADABLE_CLASSES, "Sequential", entry)
        return foreign_weights(network, {}, open_weights(tmp_path / "a.safetensors"))

    swapped = found(lambda a: torch.cat([a[2:], a[:2]]))
    assert swapped is not None and swapped["0.weight"].read()[0].tolist() == [8, 9, 10, 11]
    for convert in (lambda a: a + 1, lambda a: a * 2, lambda a: a[[1, 0, 2, 3]], lambda a: a[:2]):
        assert found(convert) is None


def test_each_denoiser_that_diffusers_reads_from_a_file_has_a_kind() -> None:
    """Those that share one, such as Kontext with FLUX.1, are told by the folder around the file or named as a part."""
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    from veneer.family.assembled import denoiser_class
    from veneer.family.registry import FAMILIES, family_class

    names = {denoiser_class(family_class(pipeline)).__name__ for pipeline in FAMILIES}
    known = {denoiser_class(family_class(one)).__name__ for one, entry in FAMILIES.items() if entry.checkpoints}
    assert names & SINGLE_FILE_LOADABLE_CLASSES.keys() <= known
