"""Files of families that are not trained here yet, by their native names, against diffusers' own converters.

A network that has a whole model's layers and computes nothing stands for the base.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.loaders import lora_conversion_utils as convert
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.key_tables import KeyRow, read_key_table
from veneer.adapter.lora import LoraFactors
from veneer.family.key_names.anima import anima_names
from veneer.family.key_names.flux2 import flux2_names
from veneer.family.key_names.ideogram4 import ideogram4_names
from veneer.family.key_names.krea2 import krea2_names
from veneer.family.key_names.network import names_in
from veneer.family.key_names.qwen_image import qwen_image_names
from veneer.family.key_names.rules import Names, Outputs
from veneer.family.key_names.wan import wan_names
from veneer.family.key_names.z_image import z_image_names
from veneer.weights.file import load

RANK = 2


def network_of(rows: list[KeyRow]) -> nn.Module:
    root = nn.Module()
    for row in rows:
        *levels, last = row.path.split(".")
        module = root
        for level in levels:
            if level not in module._modules:
                module.add_module(level, nn.Module())
            module = module.get_submodule(level)
        with torch.device("meta"):
            module.add_module(last, nn.Linear(row.shape[1], row.shape[0]))
    return root


def in_first_blocks(row: KeyRow) -> bool:
    return all(not level.isdigit() or int(level) < 2 for level in row.path.split(".")[:3])


def is_in_layers(row: KeyRow) -> bool:
    return row.path.startswith("layers.")


def is_no_modulation(row: KeyRow) -> bool:
    """diffusers leaves the halves of this one as they are, though its reader of checkpoints swaps them."""
    return row.path != "norm_out.linear"


def is_in_blocks(row: KeyRow) -> bool:
    return "blocks." in row.path


Case = tuple[str, Callable[[Outputs], Names], str, str, Callable[[KeyRow], bool]]
CASES: dict[str, Case] = {
    "FLUX.2 of kohya": ("flux2-klein-4b", flux2_names, "lora_unet_", "_convert_kohya_flux2_lora_to_diffusers",
                        is_in_blocks),  # and loses the modulations of all blocks
    "FLUX.2, native": ("flux2-klein-9b", flux2_names, "diffusion_model.",
                       "_convert_non_diffusers_flux2_lora_to_diffusers", is_no_modulation),
    "Ideogram 4": ("ideogram4", ideogram4_names, "diffusion_model.",
                   "_convert_non_diffusers_ideogram4_lora_to_diffusers", is_in_layers),
    "Krea 2": ("krea2", krea2_names, "diffusion_model.", "_convert_non_diffusers_krea2_lora_to_diffusers",
               lambda row: True),
    "Qwen-Image": ("qwen-image", qwen_image_names, "lora_unet_", "_convert_non_diffusers_qwen_lora_to_diffusers",
                   is_in_blocks),
    "Anima": ("anima", anima_names, "diffusion_model.", "_convert_non_diffusers_anima_lora_to_diffusers",
              lambda row: True),
    "Wan": ("wan21-t2v-1.3b", wan_names, "diffusion_model.", "_convert_non_diffusers_wan_lora_to_diffusers",
            is_in_blocks),
    "Z-Image of musubi for ComfyUI": ("z-image", z_image_names, "lora_unet_",
                                      "_convert_non_diffusers_z_image_lora_to_diffusers", is_in_layers),
}  # fmt: skip


def file_of(rows: list[KeyRow], root: str, down: str, up: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for row in rows:
        outputs = sum(other.shape[0] for other in rows if other.native == row.native)
        name = f"{root}{row.native.replace('.', '_') if root.endswith('_') else row.native}"
        tensors[f"{name}.{down}.weight"] = torch.randn(RANK, row.shape[1]) / 100
        tensors[f"{name}.{up}.weight"] = torch.randn(outputs, RANK)
        if root.endswith("_"):
            tensors[f"{name}.alpha"] = torch.tensor(1.0)
    return tensors


@pytest.mark.parametrize("case", CASES)
def test_what_diffusers_makes_of_a_file_is_what_is_read(case: str, tmp_path: Path) -> None:
    table, names_of, root, converter, is_read = CASES[case]
    rows = [row for row in read_key_table(table) if in_first_blocks(row)]
    network = network_of(rows)
    names = names_in("transformer", network, names_of)
    endings = ("lora_A", "lora_B") if case in ("Anima", "Krea 2") else ("lora_down", "lora_up")
    tensors = file_of([row for row in rows if is_read(row)], root, *endings)
    save_file(tensors, tmp_path / "x.safetensors")
    weights = load(tmp_path / "x.safetensors", {"transformer": network}, {"kohya": names}).weights
    converted = getattr(convert, converter)(dict(tensors))
    theirs = {name.removesuffix(".lora_A.weight") for name in converted if name.endswith(".lora_A.weight")}
    assert set(weights) == {path if path.startswith("transformer.") else f"transformer.{path}" for path in theirs}
    for path in theirs:
        own = weights[path if path.startswith("transformer.") else f"transformer.{path}"]
        assert isinstance(own, LoraFactors)
        x = torch.randn(own.shape[1], 2, dtype=torch.float64)
        down, up = (converted[f"{path}.lora_{part}.weight"].double() for part in "AB")
        got = own.scale * (own.up.double() @ (own.down.double() @ x))
        torch.testing.assert_close(got, up @ (down @ x), rtol=1e-5, atol=1e-6)
