"""Bases without data, against the parameters of their published weights, which were counted elsewhere."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.errors import raises_code
from veneer.config.load import build_config
from veneer.config.schema import RunConfig
from veneer.engine.quantized import parameter_count
from veneer.family.published import read_published
from veneer.family.registry import family_class
from veneer.plan.abstract import abstract_base
from veneer.plan.tracer import MemoryTracer

CLIP_L = 123_060_480
PARAMETERS = {
    "sd15": {"unet": 859_520_964, "text_encoder": CLIP_L},
    "sd21": {"unet": 865_910_724, "text_encoder": 340_387_840},
    "sdxl": {"unet": 2_567_463_684, "text_encoder": CLIP_L, "text_encoder_2": 694_659_840},
    "flux-dev": {"transformer": 11_901_408_320, "text_encoder": CLIP_L, "text_encoder_2": 4_762_310_656},
}
"""Of the networks that an adapter may change; the denoisers of all families are counted in tests/parity."""


def config_of(base: str, **train: str) -> RunConfig:
    return build_config({"base": base, "data": {"sources": [{"path": "pictures"}]}, "train": train}, "test")


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_published_architecture_is_its_family_s_class_with_the_parameters_of_its_weights(name: str) -> None:
    family = abstract_base(config_of(name), MemoryTracer(torch.device("cpu")))
    assert type(family) is family_class(read_published(name).pipeline)
    counts = {prefix: parameter_count(network) for prefix, network in family.networks.items()}
    assert counts == PARAMETERS[name]


@pytest.mark.parametrize("name", ["sd15", "flux-dev"])
def test_weights_have_the_dtype_in_which_they_are_loaded(name: str) -> None:
    family = abstract_base(config_of(name, precision="bfloat16"), MemoryTracer(torch.device("cpu")))
    assert {p.dtype for p in family.networks[family.denoiser].parameters()} == {torch.float32}


def test_its_tensors_have_no_data() -> None:
    tracer = MemoryTracer(torch.device("cpu"))
    family = abstract_base(config_of("sd15"), tracer)
    kinds = Counter(type(p).__name__ for network in family.networks.values() for p in network.parameters())
    assert kinds.keys() == {"FakeTensor"}
    assert tracer.held == tracer.weight_bytes == pytest.approx(4 * (859_520_964 + CLIP_L + 83_653_863), rel=1e-5)


def test_what_is_nowhere_is_refused() -> None:
    with raises_code("base.not_found"):
        abstract_base(config_of("nowhere"), MemoryTracer(torch.device("cpu")))


def test_a_base_without_a_configuration_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with raises_code("base.file_missing"):
        abstract_base(config_of(str(tmp_path)), MemoryTracer(torch.device("cpu")))
