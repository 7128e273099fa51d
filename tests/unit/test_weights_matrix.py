"""Families x methods x formats: each cell is a round trip without any difference, or is refused as the table says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests import weights_matrix
from tests.weights_matrix import EXACT, LAYERS, base_of, effect, layers_of_base, outcomes, weights_for
from tools.publish import published
from tools.reference import methods
from veneer.adapter.registry import METHODS
from veneer.weights.file import load
from veneer.weights.formats.registry import FORMATS


def written(method: str) -> set[str]:
    if method == "biased":
        return {"diffusers", "kohya", "comfy", "peft"}
    return set() if method == "ia3_of_peft" else set(methods.formats_of(METHODS[method]))


def test_each_cell_is_a_round_trip_or_is_refused_as_the_docs_say() -> None:
    cells = {(method, format): dict(outcomes(method, format)) for method in METHODS for format in FORMATS}
    for (method, format), found in cells.items():
        assert set(found) == ({"sd", "sdxl"} if method == "norm" else {*LAYERS, "fused"})
        is_held = format in written(method) or method == "dylora"
        expected = EXACT if is_held else "`weights.method_not_in_format`"
        families = {told for where, told in found.items() if where != "fused"}
        assert families == {expected}, (method, format)
        assert found.get("fused", expected) in (expected, "`adapter.cannot_join`"), (method, format)
    assert published(methods.PAGE, "matrix") == weights_matrix.table(cells), "run: python -m tests.weights_matrix"


def test_norms_have_the_names_of_the_model_s_own_code_where_kohya_s_files_have_them() -> None:
    (file,) = FORMATS["kohya"].write(weights_for("sdxl", "norm"), base_of("sdxl"))
    layers = {name.partition(".")[0] for name in file.tensors}
    assert layers == {"lora_unet_middle_block_1_norm", "lora_unet_middle_block_0_in_layers_0"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].endings.get("kohya")])
@torch.no_grad()
def test_narrow_types_are_read_to_the_number(method: str, dtype: torch.dtype, tmp_path: Path) -> None:
    base, every, weights = base_of("sd"), layers_of_base("sd"), weights_for("sd", method)
    (file,) = FORMATS["kohya"].write(weights, base)
    wide = {name: tensor.to(dtype if tensor.ndim else tensor.dtype) for name, tensor in file.tensors.items()}
    save_file(wide, tmp_path / "narrow.safetensors")
    save_file({name: tensor.to(torch.float32) for name, tensor in wide.items()}, tmp_path / "wide.safetensors")
    narrow, expected = (load(tmp_path / f"{name}.safetensors", base.networks).weights for name in ("narrow", "wide"))
    for path, adapter in expected.items():
        given = effect(narrow[path].to("cpu", torch.float32), every[path])
        for own, other in zip(given, effect(adapter, every[path]), strict=True):
            assert torch.equal(own, other), path
