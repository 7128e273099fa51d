"""Lists of LoRA Block Weight: the extension's rules, applied to the names of the model's own code."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from accelerate import init_empty_weights
from diffusers import FluxTransformer2DModel, UNet2DConditionModel

from tests.errors import raises_code
from veneer.adapter.layers import layers_under
from veneer.family.block_weights import BLOCK_LISTS, strengths_by_block
from veneer.family.native_names import native_names
from veneer.family.published import read_published


@cache
def paths_of(base: str) -> dict[str, str]:
    """The layers of a published base's denoiser, with the names of its own code."""
    parts = read_published(base).parts
    with init_empty_weights():
        unet: Any = UNet2DConditionModel.from_config(parts["unet"])
    return {f"unet.{path}": name for path, name in native_names(unet).items()}


def extension(name: str, weights: list[float]) -> float | None:
    """The weight that the extension gives a layer (its ``ratiodealer``), of a list of 26; None: it leaves it."""
    key = f"diffusion_model_{name.replace('.', '_')}"
    blocks = [*(f"input_blocks_{n}_" for n in range(12)), "middle_block_", *(f"output_blocks_{n}_" for n in range(12))]
    found = [place for place, block in enumerate(blocks, start=1) if f"diffusion_model_{block}" in key]
    return weights[found[-1]] if found else None


def to_26(values: list[float]) -> list[float]:
    """A list of any length as one of 26: blocks that it does not name get 0 (the extension's ``to26``)."""
    weights = [0.0] * 26
    for name, value in zip(BLOCK_LISTS[len(values)], values, strict=True):
        weights[BLOCK_LISTS[26].index(name)] = value
    return weights


@pytest.mark.parametrize("base", ["sd15", "sd21", "sdxl"])
@pytest.mark.parametrize("count", [12, 17, 20, 26])
def test_each_layer_gets_what_the_extension_gives_it(base: str, count: int) -> None:
    values = [1 + place / 100 for place in range(count)]
    paths = paths_of(base)
    found = strengths_by_block(values, paths)
    expected = {path: extension(name, to_26(values)) for path, name in paths.items()}
    assert found == {path: weight for path, weight in expected.items() if weight is not None}
    assert {path for path in paths if path not in found} == {
        path for path in paths if path.startswith(("unet.time_embedding", "unet.add_embedding", "unet.conv_out"))
    }


def test_text_encoders_get_the_first() -> None:
    paths = ["text_encoder.encoder.layers.0.self_attn.q_proj", "text_encoder_2.encoder.layers.3.mlp.fc1"]
    assert strengths_by_block([0.25, *[1.0] * 16], paths) == dict.fromkeys(paths, 0.25)


def test_the_lists_are_the_extension_s() -> None:
    assert " ".join(BLOCK_LISTS[17]) == (
        "BASE IN01 IN02 IN04 IN05 IN07 IN08 M00 OUT03 OUT04 OUT05 OUT06 OUT07 OUT08 OUT09 OUT10 OUT11"
    )
    assert " ".join(BLOCK_LISTS[12]) == "BASE IN04 IN05 IN07 IN08 M00 OUT00 OUT01 OUT02 OUT03 OUT04 OUT05"
    assert {count: len(names) for count, names in BLOCK_LISTS.items()} == {count: count for count in BLOCK_LISTS}


def test_flux_has_its_blocks_counted() -> None:
    with init_empty_weights():
        config = read_published("flux-dev").parts["transformer"]
        transformer: Any = FluxTransformer2DModel.from_config(config)
    paths = [f"transformer.{path}" for path, _ in layers_under(transformer)]
    texts = ["text_encoder.encoder.layers.0.mlp.fc1", "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q"]
    found = strengths_by_block([float(place) for place in range(61)], [*paths, *texts])
    assert set(found) == {*paths, *texts} and set(found.values()) == set(range(61))
    assert [found[text] for text in texts] == [0, 1]
    assert found["transformer.x_embedder"] == found["transformer.time_text_embed.guidance_embedder.linear_1"] == 2
    assert found["transformer.transformer_blocks.18.attn.to_q"] == 3 + 18
    assert found["transformer.single_transformer_blocks.37.proj_out"] == 3 + 19 + 37
    assert found["transformer.proj_out"] == found["transformer.norm_out.linear"] == 60


def test_what_is_no_list_of_the_extension_is_refused() -> None:
    paths = list(paths_of("sd15"))
    with raises_code("adapter.bad_block_weights", "a list of 16 block weights"):
        strengths_by_block([1.0] * 16, paths)
    with raises_code("adapter.bad_block_weights", "is for FLUX"):
        strengths_by_block([1.0] * 61, paths)
    with raises_code("adapter.bad_block_weights", "is for Stable Diffusion 1, 2 and XL"):
        strengths_by_block([1.0] * 17, ["transformer.transformer_blocks.0.attn.to_q"])
    with raises_code("adapter.bad_block_weights", "is in no block"):
        strengths_by_block([1.0] * 17, ["unet.down_blocks.0.resnets.2.conv1"])
