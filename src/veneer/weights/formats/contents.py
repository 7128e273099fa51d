"""What lies in safetensors files beside adapters, told by what its tensors are called.

Who wants a base and who wants an adapter gets the same other files, so they have one table.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Literal, NamedTuple

__all__ = ["DENOISER", "TEXT_ENCODER", "TOKEN_NAMES", "Content", "content_of"]

Group = Literal["addition", "checkpoint", "part"]
"""``addition``: is used beside a base; ``checkpoint``: is one, by its authors' names; ``part``: is one of its parts."""
TOKEN_NAMES = r"^bundle_emb\.|^emb_params$|^string_to_(?:param|token)|^(?:clip_[lg]|t5xxl)$|^<[^<>]+>$"
"""Names of the vectors of new tokens."""


class Content(NamedTuple):
    """Something that lies in safetensors files.

    Attributes:
        title: what it is.
        group: what it is to a base.
        pattern: of names that only its tensors have.
    """

    title: str
    group: Group
    pattern: str


TEXT_ENCODER = Content(
    "a text encoder",
    "part",
    r"^(?:text_model|transformer\.text_model|transformer\.resblocks|text_projection|embeddings\.token_embedding)\b"
    r"|^encoder\.layers\.\d+\.self_attn\b",
)
DENOISER = Content(
    "a denoiser",
    "part",
    r"^(?:down_blocks|up_blocks|mid_block|conv_in|input_blocks|output_blocks|middle_block|double_blocks|single_blocks"
    r"|joint_blocks|transformer_blocks|single_transformer_blocks|x_embedder|img_in)\b"
    r"|^(?:blocks|layers)\.\d+\.(?:attn|self_attn|cross_attn|attention|adaLN_modulation|modulation|ffn|feed_forward)\b",
)
_CONTENTS = (
    Content(
        "a LoRA of cloneofsimo's trainer of 2022, whose names count layers",
        "addition",
        r"^(?:unet|text_encoder):\d+:(?:up|down)$",
    ),
    Content("a ControlNet-LLLite", "addition", r"^lllite_"),
    Content(
        "a ControlNet",
        "addition",
        r"^control_model\.|^controlnet_|controlnet_cond_embedding|input_hint_block|^lora_controlnet$|zero_convs?\.",
    ),
    Content("an IP-Adapter", "addition", r"^ip_adapter\b|^image_proj\b|\.to_[kv]_ip\b"),
    Content("a T2I-Adapter", "addition", r"^adapter\.body\.|^body\.\d+\.(?:block\d|in_conv|resnets)\b"),
    Content("a motion module (AnimateDiff)", "addition", r"motion_modules?\."),
    Content("an upscaler", "addition", r"^(?:model\.)?(?:conv_first|RRDB_trunk|upconv1|conv_body|sub_mean)\."),
    Content("a textual inversion embedding", "addition", TOKEN_NAMES),
    Content("a training's saved state", "addition", r"^optimizer\.|^(?:exp_avg|ema)\."),
    Content(
        "a whole checkpoint",
        "checkpoint",
        r"^model\.diffusion_model\.|^cond_stage_model\.|^first_stage_model\.|^conditioner\.embedders\.",
    ),
    Content(
        "an autoencoder (VAE)",
        "part",
        r"^(?:vae\.|first_stage_model\.)?(?:encoder|decoder)\.(?:conv_in|conv_out|down|mid|up)(?:_blocks?)?\b"
        r"|^(?:post_)?quant_conv\b",
    ),
    Content("a text encoder (T5)", "part", r"^encoder\.block\.\d+\.layer\b|^shared\.weight$|^enc\.blk\b"),
    Content("a language model", "part", r"^model\.layers\.\d+\.(?:self_attn|mlp)\b|^(?:model\.)?embed_tokens\b"),
    TEXT_ENCODER,
    DENOISER,
)
"""The first with a name among a file's counts."""


def content_of(names: Collection[str], *groups: Group) -> Content | None:
    """Return what tensors of these names are, of the groups that are given or of all; None if it is not known."""
    return next((one for one in _CONTENTS if (not groups or one.group in groups) and _has(names, one.pattern)), None)


def _has(names: Collection[str], pattern: str) -> bool:
    return any(re.search(pattern, name) for name in names)
