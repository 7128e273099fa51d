"""Kinds of layers."""

from __future__ import annotations

import pytest

from veneer.verbs.layer_groups import by_kind


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", "attn1.to_q"),
        ("unet.mid_block.attentions.0.transformer_blocks.9.attn2.to_out.0", "attn2.to_out.0"),
        ("unet.up_blocks.1.attentions.2.transformer_blocks.0.ff.net.0.proj", "ff.net.0.proj"),
        ("unet.up_blocks.1.resnets.0.conv1", "conv1"),
        ("unet.down_blocks.0.attentions.1.proj_in", "proj_in"),
        ("unet.time_embedding.linear_1", "time_embedding.linear_1"),
        ("transformer.single_transformer_blocks.37.proj_mlp", "proj_mlp"),
        ("transformer.x_embedder", "x_embedder"),
        ("text_encoder.text_model.encoder.layers.11.self_attn.q_proj", "self_attn.q_proj"),
    ],
)
def test_a_kind_is_what_lies_behind_the_blocks(path: str, kind: str) -> None:
    assert by_kind([(path, 1)]) == {kind: [1]}


def test_layers_are_sorted_by_kind() -> None:
    values = [(f"unet.down_blocks.{n}.{name}", n) for n in (0, 1) for name in ("to_v", "to_q")]
    found = by_kind(values)
    assert found == {"to_q": [0, 1], "to_v": [0, 1]} and list(found) == ["to_q", "to_v"]
