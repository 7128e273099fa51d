"""From the name of a base to its family, and one line for whatever is not a base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.errors import raises_code
from tests.training import tiny_config
from veneer.engine.quantized import quantization_of
from veneer.errors import UserError
from veneer.family.networks import LoadOptions, _dtype_to_read
from veneer.family.registry import FAMILIES, detect, detect_file, load_family
from veneer.plan.abstract import abstract_base
from veneer.plan.tracer import MemoryTracer


def copy_of(base: Path, folder: Path) -> Path:
    return Path(shutil.copytree(base, folder))


def test_loads_a_diffusers_folder(tiny_base: Path) -> None:
    family = load_family(str(tiny_base))
    assert family.name == "sd"
    assert set(family.networks) == {"unet", "text_encoder"}
    assert family.noise.prediction == "epsilon"


def test_a_float16_base_is_float32_in_every_part(tiny_base: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    half = StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None).to(torch.float16)
    half.save_pretrained(tmp_path)
    family = load_family(str(tmp_path))
    kinds = {parameter.dtype for network in family.networks.values() for parameter in network.parameters()}
    assert kinds == {torch.float32}
    assert family.encode_image(torch.zeros(1, 3, 16, 16)).mean.dtype == torch.float32


def test_a_v_prediction_base_says_so(tiny_base_v: Path) -> None:
    noise = load_family(str(tiny_base_v)).noise
    assert noise.prediction == "v_prediction"
    assert noise.alphas_cumprod_T[-1] == 0  # zero terminal SNR


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.pth", "model.bin", "model.pickle", "MODEL.CKPT"])
def test_a_pickle_is_refused_unopened(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"\x80\x04")
    path.chmod(0)
    with raises_code("base.pickle") as caught:
        load_family(str(path))
    assert "is a pickle, which can run code" in str(caught.value)


def test_a_folder_that_is_no_base(tmp_path: Path) -> None:
    with raises_code("base.not_found") as caught:
        load_family(str(tmp_path))
    assert "is an empty folder; give the folder that the base was downloaded to" in str(caught.value)


def test_another_family_is_named(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "MochiPipeline"}))
    with raises_code("base.unknown_family") as caught:
        detect(tmp_path)
    assert f"is a MochiPipeline; known are {', '.join(FAMILIES)}" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{", "base.broken_config"),
        ("[]", "base.broken_config"),
        ("{}", "base.broken_index"),
        ('{"_class_name": 3}', "base.broken_index"),
        ('{"_class_name": ["StableDiffusionPipeline"]}', "base.unknown_family"),
        ('{"_class_name": null}', "base.broken_index"),
        ("[" * 10**5, "base.broken_config"),
    ],
)
def test_a_broken_index(tmp_path: Path, text: str, code: str) -> None:
    (tmp_path / "model_index.json").write_text(text)
    with raises_code(code) as caught:
        detect(tmp_path)
    assert str(tmp_path / "model_index.json") in str(caught.value)


def test_neither_folder_nor_hub_id(tmp_path: Path) -> None:
    for name in ("no-such-base", str(tmp_path / "missing"), "./missing/base"):
        with raises_code("base.not_found") as caught:
            load_family(name)
        assert "is no folder and no file here" in str(caught.value)


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("a")
    with raises_code("base.not_a_model") as caught:
        load_family(str(path))
    assert "is a text file, not a model; give a diffusers folder or a .safetensors file" in str(caught.value)


def test_weights_cut_short_are_one_line(tiny_base: Path, tmp_path: Path) -> None:
    base = copy_of(tiny_base, tmp_path / "base")
    weights = base / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with raises_code("base.cut_short") as caught:
        load_family(str(base))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_base_that_lacks_a_weight_is_refused_and_not_filled_in_at_random(
    tiny_base: Path, tmp_path: Path, part: str
) -> None:
    base = copy_of(tiny_base, tmp_path / "base")
    (path,) = (base / part).glob("*.safetensors")
    weights = load_file(path)
    lost = next(name for name in sorted(weights) if "norm" in name)
    del weights[lost]
    save_file(weights, path, {"format": "pt"})
    with raises_code("base.wrong_weights") as caught:
        load_family(str(base))
    assert f"{path}: has no " in str(caught.value)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_weight_that_nothing_takes_is_refused(tiny_base: Path, tmp_path: Path, part: str) -> None:
    base = copy_of(tiny_base, tmp_path / "base")
    (path,) = (base / part).glob("*.safetensors")
    save_file({**load_file(path), "extra.weight": torch.ones(1), "more.weight": torch.ones(1)}, path, {"format": "pt"})
    with raises_code("base.wrong_weights") as caught:
        load_family(str(base))
    assert "has no place for: extra.weight, and 1 more weights; it is damaged" in str(caught.value)


def test_old_position_ids_are_no_weights(tiny_base: Path, tmp_path: Path) -> None:
    """Files of transformers before its release 4.31 have them."""
    base = copy_of(tiny_base, tmp_path / "base")
    path = base / "text_encoder" / "model.safetensors"
    ids = {"text_model.embeddings.position_ids": torch.arange(16)[None]}
    save_file({**load_file(path), **ids}, path, {"format": "pt"})
    assert load_family(str(base)).name == "sd"


def test_safetensors_under_the_name_of_a_pickle_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    base = copy_of(tiny_base, tmp_path / "base")
    weights = base / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with raises_code("base.wrong_file", "no weights that PyTorch wrote: it is a safetensors file; rename it to"):
        load_family(str(base))


def test_an_inpainting_base_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    base = copy_of(tiny_base, tmp_path / "base")
    config = json.loads((base / "unet" / "config.json").read_text())
    UNet2DConditionModel.from_config({**config, "in_channels": 9}).save_pretrained(base / "unet")
    with pytest.raises(UserError, match="use a text-to-image base, not an inpainting or depth model"):
        load_family(str(base))


LDM = "model.diffusion_model.input_blocks.0.0.weight"
REST = {"first_stage_model.a": (1,), "cond_stage_model.a": (1,)}


def checkpoint(path: Path, **shapes: tuple[int, ...]) -> Path:
    """A file with weights of these names and shapes."""
    save_file({name: torch.zeros(shape, dtype=torch.float16) for name, shape in shapes.items()}, path)
    return path


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        (LoadOptions(), torch.float32),
        (LoadOptions(torch.bfloat16), torch.bfloat16),
        (LoadOptions(quantization="bnb_nf4", networks=("unet",)), torch.float16),  # quantised as it lies in the file
    ],
)
def test_a_single_file_takes_the_configs_beside_it(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: bool, options: LoadOptions, dtype: object
) -> None:
    from diffusers import StableDiffusionPipeline

    calls: list[dict[str, object]] = []

    def from_single_file(source: str, **options: object) -> StableDiffusionPipeline:
        calls.append({"source": source, **options})
        return StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None)

    monkeypatch.setattr(StableDiffusionPipeline, "from_single_file", from_single_file)
    path = checkpoint(tmp_path / "model.safetensors", **REST, **{LDM: (8, 4, 3, 3)})
    if beside:
        shutil.copy(tiny_base / "model_index.json", tmp_path)
    family = load_family(str(path), options)
    assert {parameter.dtype for parameter in family.networks["text_encoder"].parameters()} == {options.dtype}
    assert quantization_of(family.networks["unet"]) == options.quantization
    configs = {"config": str(tmp_path)} if beside else {}
    parts = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    assert calls == [{"source": str(path), "torch_dtype": dtype, **parts, **configs}]


def test_a_checkpoint_of_several_dtypes_is_read_in_float32_to_be_quantised(tmp_path: Path) -> None:
    options = LoadOptions(quantization="bnb_nf4", networks=("unet",))
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(1, dtype=torch.float16), "b": torch.zeros(1), "c": torch.zeros(1).long()}, path)
    assert _dtype_to_read(path, options) == torch.float32


def test_a_single_file_without_configs_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import StableDiffusionPipeline

    def from_single_file(source: str, **options: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(StableDiffusionPipeline, "from_single_file", from_single_file)
    with raises_code("base.unreadable") as caught:
        load_family(str(checkpoint(tmp_path / "model.safetensors", **REST, **{LDM: (8, 4, 3, 3)})))
    assert "cannot be loaded (no network); a single file needs its configs" in str(caught.value)


def test_a_single_file_that_is_torn(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"no safetensors")
    with raises_code("base.wrong_file", "is a text file under the name of a safetensors file"):
        load_family(str(path))


V2 = "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"


@pytest.mark.parametrize("shapes", [{LDM: (320, 4, 3, 3)}, {LDM: (320, 4, 3, 3), V2: (320, 1024)}])
def test_a_stable_diffusion_checkpoint_is_known_by_its_weights(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]]
) -> None:
    assert detect_file(checkpoint(tmp_path / "a.safetensors", **shapes)) == "StableDiffusionPipeline"


@pytest.mark.parametrize(
    ("shapes", "kind"),
    [
        ({"blocks.0.attn.qkv_x.weight": (8,)}, "mochi-1-preview"),
        ({"token_refiner.blocks.0.attn.qkv_proj.weight": (8,)}, "minimax-h3"),
        ({"conditioner.embedders.0.model.transformer.resblocks.9.mlp.c_proj.bias": (8,)}, "xl_refiner"),
        ({LDM: (320, 9, 3, 3)}, "inpainting"),
    ],
)
def test_a_checkpoint_of_another_family_is_refused_by_its_name(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], kind: str
) -> None:
    path = checkpoint(tmp_path / "a.safetensors", **shapes)
    with raises_code("base.unknown_family") as caught:
        load_family(str(path))
    assert str(caught.value) == f"{path}: is a checkpoint of {kind}; known are {', '.join(FAMILIES)}"


def set_config(part: str, **values: object) -> Callable[[Path], None]:
    """Write values into a part's config; None takes a key out."""

    def spoil(base: Path) -> None:
        (path,) = (base / part).glob("*config.json")
        config = {**json.loads(path.read_text()), **values}
        path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))

    return spoil


def other_scheduler(base: Path) -> None:
    index = json.loads((base / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    (base / "model_index.json").write_text(json.dumps(index))


def no_length(base: Path) -> None:
    set_config("tokenizer", model_max_length=None)(base)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (set_config("vae", block_out_channels=None), r"makes no AutoencoderKL \(IndexError: "),
        (set_config("vae", scaling_factor="x"), "the autoencoder's scaling_factor is 'x'; it must be a number above 0"),
        (set_config("unet", sample_size=[2, 4]), r"the UNet's sample_size is \[2, 4\]"),
        (set_config("unet", attention_head_dim=0), r"makes no UNet2DConditionModel \(ZeroDivisionError: "),
        (other_scheduler, "the scheduler is a FlowMatchEulerDiscreteScheduler, which has no alphas_cumprod"),
        (set_config("scheduler", prediction_type="flow"), "the scheduler predicts 'flow'"),
        (no_length, r"the tokenizer cuts captions at 1e\+30 tokens, the text encoder reads 16"),
    ],
)
def test_a_broken_base_is_one_line(tiny_base: Path, tmp_path: Path, spoil: Callable[[Path], None], words: str) -> None:
    base = copy_of(tiny_base, tmp_path / "base")
    spoil(base)
    with pytest.raises(UserError, match=words) as caught:
        load_family(str(base))
    assert "\n" not in str(caught.value)


def test_a_plan_of_a_broken_base_is_one_line_too(tiny_base: Path, tmp_path: Path) -> None:
    base = copy_of(tiny_base, tmp_path / "base")
    set_config("unet", attention_head_dim=0)(base)
    config = tiny_config(tmp_path, base=str(base))
    with pytest.raises(UserError, match=r"cannot be loaded \(ZeroDivisionError: "):
        abstract_base(config, MemoryTracer(torch.device("cpu")))
