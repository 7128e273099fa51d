"""An adapter's family is told by its layers' names and widths: of whole models, in each program's spelling."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from tests.key_tables import KEY_TABLES, KeyRow, read_key_table
from veneer.weights.formats.families import family_of

TOLD = {
    "anima": "Anima or Cosmos",
    "flux1": "FLUX",
    "flux2-dev": "FLUX.2",
    "flux2-klein-4b": "FLUX.2",
    "flux2-klein-9b": "FLUX.2",
    "ideogram4": "Ideogram 4",
    "krea2": "Krea 2",
    "qwen-image": "Qwen-Image",
    "sd3-medium": "Stable Diffusion 3",
    "sd35-large": "Stable Diffusion 3",
    "sd35-medium": "Stable Diffusion 3",
    "wan21-i2v-14b": "Wan",
    "wan21-t2v-1.3b": "Wan",
    "z-image": "Z-Image",
}
SPELLINGS: dict[str, Callable[[KeyRow], str]] = {
    "diffusers": lambda row: f"transformer.{row.path}",
    "native": lambda row: f"diffusion_model.{row.native}",
    "kohya": lambda row: row.kohya,
    "underscored": lambda row: f"lora_transformer_{row.path.replace('.', '_')}",
    "lycoris": lambda row: f"lycoris_{row.path.replace('.', '_')}",
    "bare": lambda row: row.path,
}


def shapes_of(rows: Iterable[KeyRow], name: Callable[[KeyRow], str], whole: list[KeyRow]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for row in rows:
        fused = name(row) not in (f"transformer.{row.path}",) and row.rows is not None and row.native in name(row)
        outputs = sum(other.shape[0] for other in whole if other.native == row.native) if fused else row.shape[0]
        shapes[f"{name(row)}.lora_down.weight"] = (4, *row.shape[1:])
        shapes[f"{name(row)}.lora_up.weight"] = (outputs, 4)
    return shapes


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("table", KEY_TABLES)
def test_the_family_of_a_whole_model_s_adapter_is_told(table: str, spelling: str) -> None:
    rows = read_key_table(table)
    assert family_of(shapes_of(rows, SPELLINGS[spelling], rows), {}) == TOLD[table]


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("table", KEY_TABLES)
def test_the_family_of_an_adapter_of_attention_alone_is_told_or_left_open(table: str, spelling: str) -> None:
    """What several families have alike is said of all of them, and of no other."""
    rows = read_key_table(table)
    attention = [row for row in rows if row.path.endswith(("to_q", "to_k", "to_v", "to_out.0"))]
    told = family_of(shapes_of(attention, SPELLINGS[spelling], rows), {})
    assert told is not None and TOLD[table] in told


METADATA = {
    "sdxl_base_v1-0": "Stable Diffusion XL",
    "sd3.5-large": "Stable Diffusion 3",
    "stable-diffusion-v3.5/lora": "Stable Diffusion 3",
    "flux1": "FLUX",
    "flux-2-dev/lora": "FLUX.2",
    "qwen-image/lora": "Qwen-Image",
    "Z-Image-Turbo": "Z-Image",
    "wan2.1": "Wan",
    "something else": None,
}


@pytest.mark.parametrize("version", METADATA)
def test_a_family_is_told_by_the_metadata_of_a_file_whose_names_do_not(version: str) -> None:
    assert family_of({"lora_unet_x.alpha": ()}, {"ss_base_model_version": version}) == METADATA[version]
    assert family_of({"lora_unet_x.alpha": ()}, {"modelspec.architecture": version}) == METADATA[version]
