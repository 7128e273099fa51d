"""What Stable Diffusion's own code, 1, 2 and XL, calls the layers of the UNet that diffusers cut into levels.

Its input and output blocks are counted through: each resnet with the attention behind it is one, and so is the way down
to the next level. The way up belongs to the block before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from veneer.adapter.layers import layers_under, weighted_layers_of

__all__ = ["RESNET", "TOP_LEVEL", "native_names"]

TOP_LEVEL: Mapping[str, str] = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
"""What lies outside the blocks, by diffusers' names for it."""
RESNET: Mapping[str, str] = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
"""What lies in a resnet, by diffusers' names for it."""


def native_names(unet: Any, *, norms: bool = False) -> dict[str, str]:
    """Return the dotted names that the native code has for the layers of diffusers' UNet, by their paths there.

    Args:
        unet: diffusers' UNet.
        norms: whether its norms are among them, which adapters' files may change and which no adapter is trained on.
    """
    blocks = {**_down(unet.down_blocks), **_middle(unet.mid_block), **_up(unet.up_blocks)}
    weighted = (path.partition(".")[2] for path in weighted_layers_of({"unet": unet}))
    paths = weighted if norms else (path for path, _ in layers_under(unet))
    return {path: _native_name(path, blocks) for path in paths}


def _native_name(path: str, blocks: Mapping[str, str]) -> str:
    if path in blocks:
        return blocks[path]
    for block, name in blocks.items():
        if path.startswith(f"{block}."):
            inner = path[len(block) + 1 :]
            return f"{name}.{RESNET.get(inner, inner)}"
    return TOP_LEVEL.get(path, path)


def _down(levels: Any) -> dict[str, str]:
    names: dict[str, str] = {}
    number = 1  # 0 is the first convolution
    for place, level in enumerate(levels):
        for each in range(len(level.resnets)):
            names[f"down_blocks.{place}.resnets.{each}"] = f"input_blocks.{number}.0"
            names[f"down_blocks.{place}.attentions.{each}"] = f"input_blocks.{number}.1"
            number += 1
        if getattr(level, "downsamplers", None) is not None:
            names[f"down_blocks.{place}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
            number += 1
    return names


def _middle(block: Any) -> dict[str, str]:
    if block is None:
        return {}
    names = {f"mid_block.resnets.{each}": f"middle_block.{2 * each}" for each in range(len(block.resnets))}
    return names | {
        f"mid_block.attentions.{each}": f"middle_block.{2 * each + 1}" for each in range(len(block.resnets))
    }


def _up(levels: Any) -> dict[str, str]:
    names: dict[str, str] = {}
    number = 0
    for place, level in enumerate(levels):
        for each in range(len(level.resnets)):
            names[f"up_blocks.{place}.resnets.{each}"] = f"output_blocks.{number}.0"
            names[f"up_blocks.{place}.attentions.{each}"] = f"output_blocks.{number}.1"
            number += 1
        if getattr(level, "upsamplers", None) is not None:
            behind = 2 if getattr(level, "attentions", None) else 1
            names[f"up_blocks.{place}.upsamplers.0.conv"] = f"output_blocks.{number - 1}.{behind}.conv"
    return names
