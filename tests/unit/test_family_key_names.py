"""What files call the layers of transformers, against tables of whole models and diffusers' readers of checkpoints."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.key_tables import KEY_TABLES, KeyRow, read_key_table
from veneer.family.key_names.anima import anima_names
from veneer.family.key_names.flux import flux_names, linear1_qkv_names, x_labs_names
from veneer.family.key_names.flux2 import flux2_names
from veneer.family.key_names.ideogram4 import ideogram4_names
from veneer.family.key_names.krea2 import krea2_names
from veneer.family.key_names.qwen_image import qwen_image_names
from veneer.family.key_names.rules import Names, Outputs
from veneer.family.key_names.sd3 import sd3_names
from veneer.family.key_names.wan import wan_names
from veneer.family.key_names.z_image import z_image_names
from veneer.weights.formats.fused import Slice, swapped_halves

FAMILIES: dict[str, Callable[[Outputs], Names]] = {
    "anima": anima_names,
    "flux1": flux_names,
    "flux2": flux2_names,
    "ideogram4": ideogram4_names,
    "krea2": krea2_names,
    "qwen": qwen_image_names,
    "sd3": sd3_names,
    "sd35": sd3_names,
    "wan21": wan_names,
    "z": z_image_names,
}
SWAPPED = {
    "flux1": {"norm_out.linear"},
    "flux2": {"norm_out.linear"},
    "sd3": {"norm_out.linear", "transformer_blocks.23.norm1_context.linear"},
    "sd35": {"norm_out.linear", "transformer_blocks.23.norm1_context.linear"},
}
"""Layers whose halves are the other way round, which the tables tell in their notes."""


def names_of(table: str, rows: list[KeyRow]) -> Names:
    return FAMILIES[table.partition("-")[0]]({row.path: row.shape[0] for row in rows})


def test_there_are_all_tables() -> None:
    assert len(KEY_TABLES) == 14 and sum(len(read_key_table(table)) for table in KEY_TABLES) == 5153


@pytest.mark.parametrize("table", KEY_TABLES)
def test_each_layer_of_each_model_has_its_native_name_and_rows(table: str) -> None:
    rows = read_key_table(table)
    names, swapped = names_of(table, rows), SWAPPED.get(table.partition("-")[0], set())
    if table == "sd35-large":
        swapped = {"norm_out.linear", "transformer_blocks.37.norm1_context.linear"}
    assert names.keys() <= {row.path for row in rows}
    for row in rows:
        name = names.get(row.path, row.path)
        if row.path in swapped:
            assert name == swapped_halves(row.native, row.shape[0])
        elif row.rows is None:
            assert name == row.native
        else:
            assert isinstance(name, Slice)
            assert (name.name, name.offset, name.length) == (row.native, *row.rows)
            assert name.total == sum(other.shape[0] for other in rows if other.native == row.native)


@pytest.mark.parametrize("table", [table for table in KEY_TABLES if table != "z-image"])
def test_kohya_s_names_are_the_native_ones(table: str) -> None:
    rows = read_key_table(table)
    names = names_of(table, rows)
    for row in rows:
        name = names.get(row.path, row.path)
        native = name.name if isinstance(name, Slice) else name
        assert row.kohya == f"lora_unet_{native.replace('.', '_')}"


def test_musubi_s_names_of_z_image_are_diffusers_paths() -> None:
    for row in read_key_table("z-image"):
        assert row.kohya == f"lora_unet_{row.path.replace('.', '_')}"


def test_x_labs_and_comfy_have_names_for_parts_of_flux() -> None:
    outputs = {row.path: row.shape[0] for row in read_key_table("flux1")}
    names = x_labs_names(outputs)
    assert len(names) == 19 * 8 + 38 * 4
    assert names["transformer_blocks.3.attn.add_k_proj"] == Slice("double_blocks.3.qkv_lora2", 3072, 3072, 9216)
    assert names["transformer_blocks.18.attn.to_out.0"] == "double_blocks.18.proj_lora1"
    assert names["single_transformer_blocks.37.attn.to_v"] == Slice("single_blocks.37.qkv", 6144, 3072, 9216)
    own = linear1_qkv_names(outputs)
    assert own["single_transformer_blocks.0.attn.to_q"] == Slice("single_blocks.0.linear1_qkv", 0, 3072, 9216)
    assert len(own) == 38 * 3
