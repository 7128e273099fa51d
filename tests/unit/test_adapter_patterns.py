"""Patterns of layers' paths."""

from __future__ import annotations

import pytest

from tests.errors import raises_code
from veneer.adapter.patterns import matching

PATHS = (
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
    "unet.down_blocks.10.attentions.0.proj_in",
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0",
    "text_encoder.encoder.layers.0.self_attn.q_proj",
    "text_encoder_2.encoder.layers.0.self_attn.q_proj",
)


@pytest.mark.parametrize(
    ("pattern", "places"),
    [
        ("down_blocks.1", [0]),
        ("down_blocks.*", [0, 1]),
        ("attn?.to_*", [0, 2]),
        ("to_out", [2]),
        ("to_out.0", [2]),
        ("text_encoder", [3]),
        ("text_encoder*", [3, 4]),
        ("unet", [0, 1, 2]),
        ("unet.*.attn1", [2]),
        ("*", [0, 1, 2, 3, 4]),
        (".mid_block.", [2]),
        ("layers.[0-3].self_attn.q_proj", [3, 4]),
    ],
)
def test_a_pattern_stands_for_whole_levels(pattern: str, places: list[int]) -> None:
    assert matching(pattern, PATHS) == [PATHS[place] for place in places]


@pytest.mark.parametrize("pattern", ["down_block", "DOWN_BLOCKS.1", "attn", "+", "(", "to_k.0", "down_blocks.2"])
def test_a_pattern_that_matches_nothing_names_what_there_is(pattern: str) -> None:
    with raises_code("adapter.no_layer_matches", "its layers have names such as") as caught:
        matching(pattern, PATHS)
    assert repr(pattern) in str(caught.value)


def test_the_nearest_names_are_told() -> None:
    with raises_code("adapter.no_layer_matches", "down_blocks.1"):
        matching("down_blocks.2", PATHS)
