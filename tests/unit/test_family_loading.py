"""A base is loaded in the form in which a run holds it, and takes no more memory on its way there."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.errors import raises_code
from tests.running import quick_config
from veneer.engine.quantized import quantization_of
from veneer.family.loading import load_base, load_options, quantize_networks
from veneer.family.networks import LoadOptions
from veneer.family.registry import load_family

MARGIN = 60_000_000
"""Bytes of Python's objects, of code that runs for the first time, and of what the C library keeps."""

MEASURE = """
import json, sys
import torch
from veneer.engine.memory_usage import read_memory_usage
from veneer.engine.peak_memory import PeakMemory
from veneer.engine.quantized import quantize
from veneer.family.loading import load_base
from veneer.family.registry import load_family

small, large = sys.argv[1:]
load_base(small, "bnb_nf4")  # what is there from now on is no base's

def growth(load):
    peak, before = PeakMemory(torch.device("cpu")), read_memory_usage()
    family = load()
    return peak.bytes() - before.current, family

def whole():
    family = load_family(large)
    quantize(family.networks["unet"], "bnb_nf4")
    return family

streamed, family = growth(lambda: load_base(large, "bnb_nf4"))
parts = family.pipeline().components.values()
modules = [part for part in parts if isinstance(part, torch.nn.Module)]
final = sum(t.nbytes for module in modules for t in (*module.parameters(), *module.buffers()))
del family, parts, modules
print(json.dumps({"streamed": streamed, "whole": growth(whole)[0], "final": final}))
"""


def write_large_base(base: Path, folder: Path, dtype: torch.dtype) -> int:
    """The tiny base with a denoiser of 55 million weights in shards; return the bytes of the largest shard."""
    from diffusers import UNet2DConditionModel

    shutil.copytree(base, folder)
    config = json.loads((folder / "unet" / "config.json").read_text())
    shutil.rmtree(folder / "unet")
    config |= {"block_out_channels": (64, 448), "transformer_layers_per_block": (1, 5), "attention_head_dim": 8}
    config |= {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")}
    config |= {"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}
    UNet2DConditionModel.from_config(config).to(dtype).save_pretrained(folder / "unet", max_shard_size="20MB")
    return max(file.stat().st_size for file in (folder / "unet").glob("*.safetensors"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is told by Linux alone")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_quantised_base_never_takes_more_than_its_final_form_and_a_shard(
    dtype: torch.dtype, tiny_base: Path, tmp_path: Path
) -> None:
    shard = write_large_base(tiny_base, tmp_path / "base", dtype)
    command = [sys.executable, "-c", MEASURE, str(tiny_base), str(tmp_path / "base")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    bound = found["final"] + shard + MARGIN
    assert found["streamed"] < bound < found["whole"]


def dtypes(network: nn.Module) -> set[torch.dtype]:
    return {parameter.dtype for parameter in network.parameters()}


def test_the_default_is_float32_whatever_a_step_computes_in(
    tiny_base: Path, tiny_pictures: Path, tmp_path: Path
) -> None:
    config = quick_config(tiny_base, tiny_pictures, tmp_path, train={"precision": "bfloat16"})
    family = load_base(str(tiny_base), **load_options(config))
    assert {dtype for network in family.networks.values() for dtype in dtypes(network)} == {torch.float32}


@pytest.mark.parametrize("format", ["none", "bnb_nf4"])
def test_another_dtype_is_that_of_all_that_is_not_quantised(format: str, tiny_base: Path) -> None:
    half = load_base(str(tiny_base), format, dtype=torch.bfloat16)
    plain = load_family(str(tiny_base), LoadOptions(quantization=format, networks=("unet",)))
    cast = plain.to(torch.device("cpu"), torch.bfloat16)
    for name, network in cast.networks.items():
        assert dtypes(half.networks[name]) == {torch.bfloat16}
        mine, theirs = half.networks[name].state_dict(), network.state_dict()
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    assert half.encode_image(torch.zeros(1, 3, 16, 16)).mean.dtype == torch.float32


def test_networks_that_are_not_named_keep_their_weights(tiny_base: Path) -> None:
    family = load_base(str(tiny_base), "bnb_int8")
    assert [quantization_of(network) for network in family.networks.values()] == ["bnb_int8", "none"]
    both = load_base(str(tiny_base), "bnb_int8", ("text_encoder", "text_encoder_2"))
    assert [quantization_of(network) for network in both.networks.values()] == ["bnb_int8", "bnb_int8"]


def test_a_loaded_base_is_quantised_as_a_run_wants_it(tiny_base: Path, tiny_pictures: Path, tmp_path: Path) -> None:
    config = quick_config(tiny_base, tiny_pictures, tmp_path, train={"quantization": "bnb_nf4"})
    family = load_family(str(tiny_base))
    for _ in range(2):  # a second time there is nothing to do
        quantize_networks(family, config)
        assert quantization_of(family.networks["unet"]) == "bnb_nf4"
    expected = load_base(str(tiny_base), **load_options(config)).networks["unet"].state_dict()
    own = family.networks["unet"].state_dict()
    assert all(torch.equal(own[name], expected[name]) for name in expected)


def test_a_published_architecture_has_no_weights() -> None:
    with raises_code("base.plan_only") as caught:
        load_base("flux-dev")
    assert "give its weights: a folder, or base=black-forest-labs/FLUX.1-dev" in str(caught.value)
    with raises_code("base.plan_only") as caught:
        load_base("sd15")
    assert "give its weights: a folder, or base=stable-diffusion-v1-5" in str(caught.value)
