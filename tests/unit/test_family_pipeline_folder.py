"""A base's folder that is broken in any of the ways that people break them is one line that names the cause."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save_file

from veneer.errors import UserError
from veneer.family.networks import LoadOptions
from veneer.family.registry import load_family

UNET, TEXT = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
Spoil = Callable[[Path], object]


def load_file(path: Path) -> dict[str, Any]:
    """Read weights into memory: a file that is mapped must not be written over."""
    return load(path.read_bytes())


def write(name: str, content: bytes | str) -> Spoil:
    data = content.encode() if isinstance(content, str) else content
    return lambda base: (base / name).write_bytes(data)


def remove(*names: str) -> Spoil:
    def spoil(base: Path) -> None:
        for name in names:
            (shutil.rmtree if (base / name).is_dir() else os.remove)(base / name)

    return spoil


def edit(name: str, **values: object) -> Spoil:
    """Write values into a JSON file; None takes a key out."""

    def spoil(base: Path) -> None:
        config = {**json.loads((base / name).read_text("utf-8")), **values}
        kept = {key: value for key, value in config.items() if value is not None}
        (base / name).write_text(json.dumps(kept), "utf-8")

    return spoil


def weights(name: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Spoil:
    return lambda base: save_file(change(load_file(base / name)), base / name, {"format": "pt"})


def cut(name: str, size: int) -> Spoil:
    return lambda base: (base / name).write_bytes((base / name).read_bytes()[:size])


def rename(old: str, new: str) -> Spoil:
    return lambda base: (base / old).rename(base / new)


def pickled(base: Path) -> None:
    torch.save(load_file(base / UNET), base / UNET)


def running_code(base: Path) -> None:
    """A pickle of PyTorch's own format and name that makes a file when it is opened."""

    class Hostile:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(base / "was run"),))

    (base / UNET).unlink()
    torch.save({"conv_in.weight": Hostile()}, base / "unet" / "diffusion_pytorch_model.bin")


def link_to_nothing(base: Path) -> None:
    (base / UNET).unlink()
    (base / UNET).symlink_to("../../blobs/0123")


def pipe(base: Path) -> None:
    (base / UNET).unlink()
    os.mkfifo(base / UNET)


def sharded(base: Path, form: str = "safetensors") -> None:
    """The UNet in two shards."""
    tensors = load_file(base / UNET)
    names, half = sorted(tensors), len(tensors) // 2
    weight_map = {}
    for place, own in enumerate((names[:half], names[half:]), 1):
        file = f"diffusion_pytorch_model-{place:05d}-of-00002.{form}"
        weight_map |= dict.fromkeys(own, file)
        save_file({name: tensors[name] for name in own}, base / "unet" / file, {"format": "pt"})
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (base / "unet" / f"diffusion_pytorch_model.{form}.index.json").write_text(index, "utf-8")
    (base / UNET).unlink()


def both(*spoils: Spoil) -> Spoil:
    def spoil(base: Path) -> None:
        for one in spoils:
            one(base)

    return spoil


def prefixed(tensors: dict[str, Any]) -> dict[str, Any]:
    return {f"model.{name}": tensor for name, tensor in tensors.items()}


def narrow(tensors: dict[str, Any]) -> dict[str, Any]:
    return {**tensors, "conv_in.weight": tensors["conv_in.weight"][1:].contiguous()}


def narrow_text(tensors: dict[str, Any]) -> dict[str, Any]:
    name = next(name for name in tensors if name.endswith("token_embedding.weight"))
    return {**tensors, name: tensors[name][1:].contiguous()}


def without(*names: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 3438354725\n"
PAGE = "<!DOCTYPE html>\n<html><head><title>Log in</title></head></html>"
SHARD = "diffusion_pytorch_model-00001-of-00002.safetensors"
BROKEN: dict[str, tuple[Spoil, str, str, str]] = {
    # what was done: how, the code, what is wrong where, the remedy
    "no vae": (remove("vae"), "base.part_missing", "has no folder vae, a part", "fetch it again from where"),
    "no unet": (remove("unet"), "base.part_missing", "has no folder unet, a part", "fetch it again from where"),
    "no text encoder": (remove("text_encoder"), "base.part_missing", "has no folder text_encoder", "fetch it again"),
    "no tokenizer": (remove("tokenizer"), "base.part_missing", "has no folder tokenizer", "fetch it again"),
    "no scheduler": (remove("scheduler"), "base.part_missing", "has no folder scheduler", "fetch it again"),
    "no unet config": (remove("unet/config.json"), "base.file_missing", "unet/config.json: is missing", "fetch it"),
    "no text config": (remove("text_encoder/config.json"), "base.file_missing", "encoder/config.json: is missing", ""),
    "no vae config": (remove("vae/config.json"), "base.file_missing", "vae/config.json: is missing", "fetch it again"),
    "no scheduler config": (
        remove("scheduler/scheduler_config.json"),
        "base.file_missing",
        "scheduler/scheduler_config.json: is missing",
        "fetch it again",
    ),
    "no vocabulary": (
        remove("tokenizer/tokenizer.json", "tokenizer/vocab.json"),
        "base.file_missing",
        "tokenizer/vocab.json: is missing",
        "fetch it again",
    ),
    "no merges": (
        remove("tokenizer/tokenizer.json", "tokenizer/merges.txt"),
        "base.file_missing",
        "tokenizer/merges.txt: is missing",
        "fetch it again",
    ),
    "no tokenizer config": (
        remove("tokenizer/tokenizer_config.json"),
        "base.file_missing",
        "tokenizer/tokenizer_config.json: is missing",
        "fetch it again",
    ),
    "torn merges": (
        both(remove("tokenizer/tokenizer.json"), cut("tokenizer/merges.txt", 20)),
        "base.cut_short",
        "tokenizer/merges.txt: has 1 of the 5 merges that vocab.json needs",
        "fetch it again",
    ),
    "torn tokenizer": (
        cut("tokenizer/tokenizer.json", 500),
        "base.broken_config",
        "tokenizer/tokenizer.json: is no JSON at line",
        "mend the line if you edited it",
    ),
    "no weights": (remove(UNET), "base.file_missing", f"{UNET}: is missing", "fetch it again"),
    "no text weights": (remove(TEXT), "base.file_missing", f"{TEXT}: is missing", "fetch it again"),
    "empty config": (write("unet/config.json", ""), "base.cut_short", "unet/config.json: is empty", "fetch it again"),
    "config with a comma": (
        write("unet/config.json", '{\n"a": 1,\n}'),
        "base.broken_config",
        "unet/config.json: is no JSON at line",
        "mend the line if you edited it",
    ),
    "config with a byte order mark": (
        lambda base: (base / "vae/config.json").write_bytes(b"\xef\xbb\xbf" + (base / "vae/config.json").read_bytes()),
        "base.broken_config",
        "vae/config.json: is no JSON at line 1",
        "save it as UTF-8 without a byte order mark",
    ),
    "config not UTF-8": (
        write("unet/config.json", b'{"a": "\xe9"}'),
        "base.broken_config",
        "unet/config.json: is not UTF-8 at byte 7",
        "",
    ),
    "config is a list": (write("unet/config.json", "[]"), "base.broken_config", "no settings but a JSON list", ""),
    "config of another network": (
        lambda base: shutil.copy(base / "vae/config.json", base / "unet"),
        "base.other_config",
        "unet/config.json: is the configuration of a AutoencoderKL, where a UNet2DConditionModel is wanted",
        "fetch it again",
    ),
    "text config of another model": (
        edit("text_encoder/config.json", model_type="t5"),
        "base.other_config",
        "text_encoder/config.json: is the configuration of a t5, where a clip_text_model is wanted",
        "fetch it again",
    ),
    "config that makes no network": (
        edit("unet/config.json", attention_head_dim=0),
        "base.broken_config",
        "unet/config.json: makes no UNet2DConditionModel (ZeroDivisionError",
        "undo what was changed in it",
    ),
    "config that makes no text encoder": (
        edit("text_encoder/config.json", num_attention_heads=5),
        "base.broken_config",
        "text_encoder/config.json: makes no CLIPTextModel (",
        "undo what was changed in it",
    ),
    "channels": (
        edit("unet/config.json", in_channels=9),
        "base.wrong_weights",
        f"{UNET}: conv_in.weight has the shape [16, 4, 3, 3], and config.json asks for [16, 9, 3, 3]",
        "not the file that belongs to config.json",
    ),
    "text config too wide": (
        edit("text_encoder/config.json", intermediate_size=128),
        "base.wrong_weights",
        f"{TEXT}: ",
        "not the file that belongs to config.json",
    ),
    "shape": (weights(UNET, narrow), "base.wrong_weights", "conv_in.weight has the shape [15, 4, 3, 3]", "damaged or"),
    "shape of the text encoder": (weights(TEXT, narrow_text), "base.wrong_weights", "has the shape [518, 32]", ""),
    "cut short": (cut(UNET, 100_000), "base.cut_short", f"{UNET}: is cut short: it has 100,000 of", "fetch it again"),
    "cut in the header": (cut(UNET, 1000), "base.cut_short", f"{UNET}: is cut short: it has 1,000 of", "fetch it"),
    "text weights cut short": (cut(TEXT, 50_000), "base.cut_short", f"{TEXT}: is cut short", "fetch it again"),
    "empty weights": (write(UNET, b""), "base.cut_short", f"{UNET}: is empty", "fetch it again"),
    "appended to": (
        lambda base: (base / UNET).write_bytes((base / UNET).read_bytes() + b"1234"),
        "base.wrong_file",
        "and its header accounts for",
        "fetch it again",
    ),
    "zeros": (write(UNET, bytes(4096)), "base.wrong_file", "it does not begin with a header", "fetch it again"),
    "missing key": (
        weights(UNET, without("conv_in.bias")),
        "base.wrong_weights",
        f"{UNET}: has no conv_in.bias",
        "it is damaged or not the file that belongs to config.json",
    ),
    "extra key": (
        weights(UNET, lambda own: {**own, "extra.weight": torch.ones(1)}),
        "base.wrong_weights",
        "has weights that the configuration has no place for: extra.weight",
        "not the file that belongs to config.json",
    ),
    "renamed keys": (weights(UNET, prefixed), "base.wrong_weights", f"{UNET}: has no conv_in.bias, and", "damaged or"),
    "weights of another part": (
        lambda base: shutil.copy(base / "vae/diffusion_pytorch_model.safetensors", base / "unet"),
        "base.wrong_weights",
        f"{UNET}: has no ",
        "not the file that belongs to config.json",
    ),
    "git-lfs": (write(UNET, LFS), "base.wrong_file", f"{UNET}: is a git-lfs pointer", "clone again with git-lfs"),
    "git-lfs in a clone": (
        both(write(UNET, LFS), lambda base: (base / ".git").mkdir()),
        "base.wrong_file",
        f"{UNET}: is a git-lfs pointer",
        "run git lfs pull",
    ),
    "a web page": (write(UNET, PAGE), "base.wrong_file", f"{UNET}: is a web page", "when a login is asked for"),
    "config is a web page": (write("vae/config.json", PAGE), "base.wrong_file", "vae/config.json: is a web page", ""),
    "pickle under another's name": (
        pickled,
        "base.wrong_file",
        f"{UNET}: is a pickle under the name of a safetensors file",
        "fetch the .safetensors file",
    ),
    "GGUF under another's name": (write(UNET, b"GGUF" + bytes(99)), "base.wrong_file", f"{UNET}: is a GGUF file", ""),
    "pickle that runs code": (
        running_code,
        "base.pickle",
        "unet/diffusion_pytorch_model.bin: holds more than tensors: opening it would run posix.mkdir",
        "give a base with .safetensors files",
    ),
    "pickle cut short": (
        both(remove(UNET), write("unet/diffusion_pytorch_model.bin", b"PK\x03\x04" + bytes(99))),
        "base.cut_short",
        "unet/diffusion_pytorch_model.bin: is cut short",
        "fetch it again",
    ),
    "link to nothing": (link_to_nothing, "base.file_missing", f"{UNET}: is a link to ../../blobs/0123, which", "fetch"),
    "a pipe": (pipe, "base.wrong_file", f"{UNET}: is no regular file", ""),
    "a folder": (both(remove(UNET), lambda base: (base / UNET).mkdir()), "base.wrong_file", f"{UNET}: is a folder", ""),
    "shards without their index": (
        both(sharded, remove("unet/diffusion_pytorch_model.safetensors.index.json")),
        "base.no_weights",
        "unet: holds 2 shards of weights, and no diffusion_pytorch_model.safetensors.index.json",
        "fetch it again",
    ),
    "a shard is missing": (
        both(sharded, remove(f"unet/{SHARD}")),
        "base.file_missing",
        f"unet/{SHARD}: is missing",
        "fetch it again",
    ),
    "a shard is cut short": (both(sharded, cut(f"unet/{SHARD}", 9000)), "base.cut_short", f"unet/{SHARD}: is cut", ""),
    "an index that names none": (
        both(sharded, edit("unet/diffusion_pytorch_model.safetensors.index.json", weight_map={"a": "../a"})),
        "base.broken_config",
        "unet/diffusion_pytorch_model.safetensors.index.json: does not say which file holds which weight",
        "fetch it again",
    ),
    "another library's name": (
        rename(UNET, "unet/model.safetensors"),
        "base.no_weights",
        "unet: holds no diffusion_pytorch_model.safetensors, but model.safetensors",
        "rename it if it is the unet's",
    ),
    "a checkpoint in a part": (
        rename(UNET, "unet/model.ckpt"),
        "base.no_weights",
        "unet: holds no diffusion_pytorch_model.safetensors, but model.ckpt",
        "fetch it again",
    ),
    "index without a part": (
        edit("model_index.json", vae=[None, None]),
        "base.broken_index",
        "model_index.json: names no vae",
        "fetch it again",
    ),
    "index that lost a part": (edit("model_index.json", unet=None), "base.broken_index", "names no unet", ""),
    "a class that is not there": (
        edit("model_index.json", scheduler=["diffusers", "SchedulerOfTomorrow"]),
        "base.unknown_class",
        "model_index.json: its scheduler is a SchedulerOfTomorrow, which diffusers ",
        "update diffusers, or correct the name",
    ),
    "a class of an extension": (
        edit("model_index.json", tokenizer=["my_extension", "MyTokenizer"]),
        "base.foreign_part",
        "its tokenizer is a my_extension.MyTokenizer, code of another's that is not run",
        "use a base whose parts are of diffusers and transformers",
    ),
    "another network": (
        edit("model_index.json", vae=["diffusers", "AutoencoderTiny"]),
        "base.foreign_part",
        "its vae is a diffusers.AutoencoderTiny, where this family has a AutoencoderKL",
        "use a base whose parts are those of its pipeline",
    ),
    "a pipeline of its own": (
        edit("model_index.json", _class_name=["pipeline", "MyPipeline"]),
        "base.unknown_family",
        "names a pipeline of its own code, ['pipeline', 'MyPipeline'], which is not run",
        "known are",
    ),
    "a scheduler's class as a tokenizer's": (
        edit("model_index.json", tokenizer=["transformers", "CLIPTextModel"]),
        "base.foreign_part",
        "its tokenizer is a CLIPTextModel, which is no tokenizer",
        "",
    ),
    "more tokens than the text encoder has": (
        edit("tokenizer/tokenizer_config.json", added_tokens_decoder={"519": {"content": "<new>", "special": True}}),
        "family.wrong_tokenizer",
        "the tokenizer has 520 tokens, the text_encoder 519",
        "",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_base_is_one_line_that_names_the_cause(
    case: str, tiny_base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil, code, what, remedy = BROKEN[case]
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    spoil(base)
    with pytest.raises(UserError) as caught:
        load_family(str(base))
    assert caught.value.code == code, caught.value
    assert what in str(caught.value)
    assert remedy in (caught.value.remedy or "") and "\n" not in str(caught.value)
    assert str(base) in str(caught.value) and not (base / "was run").exists()
    assert capfd.readouterr() == ("", "")  # of the libraries nothing


def same(one: Any, other: Any) -> bool:
    """Whether two bases have the same bits."""
    own, theirs = (dict(family.networks["unet"].state_dict()) for family in (one, other))
    return own.keys() == theirs.keys() and all(torch.equal(own[name], theirs[name]) for name in own)


def as_pickle(name: str, new: str) -> Spoil:
    def change(base: Path) -> None:
        torch.save(load_file(base / name), base / new)
        (base / name).unlink()

    return change


def in_half(base: Path) -> None:
    for name in (UNET, TEXT, "vae/diffusion_pytorch_model.safetensors"):
        half = {key: tensor.half() for key, tensor in load_file(base / name).items()}
        save_file(half, base / name.replace(".safetensors", ".fp16.safetensors"), {"format": "pt"})
        (base / name).unlink()


def remote_code(base: Path) -> None:
    code = {"auto_map": {"AutoModel": "evil.Model"}, "trust_remote_code": True}
    for name in ("unet/config.json", "text_encoder/config.json", "tokenizer/tokenizer_config.json"):
        edit(name, **code)(base)
        (base / name).with_name("evil.py").write_text(f"import os; os.mkdir({str(base / 'was run')!r})")


WHOLE: dict[str, Spoil] = {
    "shards": sharded,
    "non-EMA only": rename(UNET, "unet/diffusion_pytorch_model.non_ema.safetensors"),
    "EMA only": rename(UNET, "unet/diffusion_pytorch_model.ema.safetensors"),
    "a variant beside": lambda base: save_file(
        {"other": torch.ones(1)}, base / "unet/diffusion_pytorch_model.fp16.safetensors"
    ),
    "both formats": lambda base: torch.save({"other": torch.ones(1)}, base / "unet/diffusion_pytorch_model.bin"),
    "PyTorch's format": both(
        as_pickle(UNET, "unet/diffusion_pytorch_model.bin"), as_pickle(TEXT, "text_encoder/pytorch_model.bin")
    ),
    "no word of a safety checker": edit("model_index.json", safety_checker=None, feature_extractor=None),
    "a safety checker that is not there": edit(
        "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"]
    ),
    "parts of an extension": edit("model_index.json", refiner=["my_extension", "MyRefiner"], image_encoder=["a", "B"]),
    "files of a person": lambda base: [(base / name).write_text("a") for name in ("unet/README.md", "unet/.DS_Store")],
    "code that is offered": remote_code,
    "no merges beside a whole tokenizer": remove("tokenizer/merges.txt", "tokenizer/vocab.json"),
    "an old scheduler": edit("scheduler/scheduler_config.json", steps_offset=0, clip_sample=True),
}


@pytest.mark.parametrize("case", WHOLE)
def test_what_is_whole_is_loaded_without_a_word(
    case: str, tiny_base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    expected = load_family(str(tiny_base))
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    WHOLE[case](base)
    recwarn.clear()
    assert same(load_family(str(base)), expected)
    assert capfd.readouterr() == ("", "") and [str(one.message) for one in recwarn] == []
    assert not (base / "was run").exists()


def test_a_base_of_half_precision_variants_alone_is_loaded(tiny_base: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    in_half(base)
    own = load_family(str(base)).networks["unet"].state_dict()
    expected = load_family(str(tiny_base)).networks["unet"].state_dict()
    assert all(torch.equal(own[name], expected[name].half().float()) for name in expected)
    quantised = load_family(str(base), LoadOptions(quantization="bnb_nf4", networks=("unet",)))
    assert quantised.name == "sd"
