"""The family of bases that an adapter is of, told by what its layers are called and how wide they are."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Literal, NamedTuple, TypeAlias

from veneer.weights.formats.names import parse_name

__all__ = ["Shapes", "family_of"]

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
"""The shape of each tensor by its name."""

_FLUX, _FLUX2, _SD3, _SDXL = "FLUX", "FLUX.2", "Stable Diffusion 3", "Stable Diffusion XL"
_QWEN, _KREA, _Z, _WAN = "Qwen-Image", "Krea 2", "Z-Image", "Wan"
_IDEOGRAM, _COSMOS = "Ideogram 4", "Anima or Cosmos"


class _Sign(NamedTuple):
    """Names that adapters of a family have.

    Attributes:
        family: of the bases; of several that share the names, where sizes do not tell; None: it is unknown then.
        pattern: of names.
        by_size: families by how many inputs (``in``) or outputs (``out``) layers of such names have, the surest first.
    """

    family: str | None
    pattern: str
    by_size: Mapping[tuple[Literal["in", "out"], int], str] = {}


_OPEN = f"{_FLUX}, {_FLUX2} or {_QWEN}"
_BLOCKS = r"(?:^|\.|(?:lora_unet|lora_transformer|lycoris)_)blocks[._]\d+[._]"
"""Blocks that are called so and nothing more."""
_SIGNS = (
    _Sign("HiDream", r"double_stream_blocks[._]|single_stream_blocks[._]"),
    _Sign("AuraFlow", r"joint_transformer_(?:layers|blocks)|single_transformer_layers"),
    _Sign(
        _FLUX2,
        r"time_guidance_embed|(?:single|double)_stream_modulation|to_qkv_mlp_proj|[._]ff(?:_context)?[._]linear_(?:in|out)"
        r"|single_transformer_blocks[._]\d+[._]attn[._]to_out",
    ),
    _Sign(_FLUX, r"single_transformer_blocks[._]\d+[._]"),
    _Sign(
        _FLUX,
        r"(?:double|single)_blocks[._]\d+",
        {
            **{("in", width): _FLUX2 for width in (4096, 6144, 9216)},
            ("in", 15360): _FLUX,
            ("out", 27648): _FLUX2,
            ("out", 21504): _FLUX,
            ("in", 3072): f"{_FLUX} or {_FLUX2}",
        },
    ),
    _Sign(_SD3, r"joint_blocks[._]\d+"),
    _Sign(_QWEN, r"transformer_blocks[._]\d+[._](?:img|txt)_(?:mlp|mod)"),
    _Sign(
        _KREA,
        rf"txtfusion|text_fusion|time_mod_proj|{_BLOCKS}(?:attn[._]w[qkvo]|mlp[._](?:gate|up|down))(?![a-z])"
        r"|transformer_blocks[._]\d+[._](?:attn[._]to_gate|ff[._](?:gate|up|down))(?![a-z])",
    ),
    _Sign(
        f"{_FLUX} or {_SD3}",
        r"transformer_blocks[._]\d+[._](?:attn[._](?:add_|to_add_out)|ff_context|norm1_context)",
        {("in", 1536): _SD3, ("in", 2432): _SD3, ("in", 4096): _FLUX2, ("in", 6144): _FLUX2, ("in", 3072): _OPEN},
    ),
    _Sign(_IDEOGRAM, r"llm_cond_proj|(?<![a-z])layers[._]\d+[._](?:attention[._]o(?![a-z])|adaln_modulation)"),
    _Sign(
        "Z-Image or Lumina",
        r"(?:context|noise)_refiner[._]\d+|layers[._]\d+[._](?:attention[._]|adaLN_modulation|feed_forward)",
        {("in", 3840): _Z, ("in", 2304): "Lumina 2", ("in", 4608): _IDEOGRAM},
    ),
    _Sign(_COSMOS, r"blocks[._]\d+[._](?:self|cross)_attn[._](?:[qkv]_proj|output_proj)"),
    _Sign(
        _WAN,
        r"blocks[._]\d+[._](?:self|cross)_attn[._](?:[qkvo]|k_img|v_img)(?:$|[._])"
        rf"|{_BLOCKS}(?:attn[12][._]|ffn[._](?:\d|net))",
    ),
    _Sign(  # the text's width is that of Stable Diffusion 2, whose blocks lie within others
        None,
        r"(?:^|transformer[._]|lycoris_)transformer_blocks[._]\d+[._]attn2[._]to_[kv](?![a-z])",
        {("in", 1024): _COSMOS},
    ),
    _Sign("Stable Cascade", r"lora_prior_|(?:down|up)_blocks_\d_\d+_(?:attention|channelwise|mapper)"),
    _Sign("PixArt", r"adaln_single|caption_projection"),
    _Sign("a language model", r"(?:^|\.)model\.layers\.\d+\.(?:self_attn|mlp)\."),
    _Sign(
        None,
        r"transformer_blocks[._]\d+[._]attn[._]to_",
        {
            ("in", 1536): _SD3,
            ("in", 2432): _SD3,
            ("in", 4096): _FLUX2,
            ("in", 6144): f"{_FLUX2} or {_KREA}",
            ("in", 3072): _OPEN,
        },
    ),
    _Sign(_SDXL, r"(?:^|[._])lora_te2_|(?:^|\.)text_encoder_2\.|label_emb|add_embedding"),
    _Sign(_SDXL, r"(?:input_blocks[._][4578][._]1|middle_block[._]1)[._]transformer_blocks[._][1-9]"),
    _Sign(_SDXL, r"(?:down_blocks[._][12]|mid_block)[._]attentions[._]\d[._]transformer_blocks[._][1-9]"),
    _Sign(  # how wide the text is that the attention reads
        None,
        r"attn2[._](?:processor[._])?to_[kv](?![a-z])",
        {("in", 768): "Stable Diffusion 1", ("in", 1024): "Stable Diffusion 2", ("in", 2048): _SDXL},
    ),
)
"""The first that a name of a file has, and that tells, counts."""
_MARKS = {
    "sdxl": _SDXL,
    "stable-diffusion-xl": _SDXL,
    "sd_v1": "Stable Diffusion 1",
    "stable-diffusion-v1": "Stable Diffusion 1",
    "sd_v2": "Stable Diffusion 2",
    "stable-diffusion-v2": "Stable Diffusion 2",
    "sd3": _SD3,
    "stable-diffusion-3": _SD3,
    "stable-diffusion-v3": _SD3,
    "flux2": _FLUX2,
    "flux-2": _FLUX2,
    "flux.2": _FLUX2,
    "flux": _FLUX,
    "qwen": _QWEN,
    "z-image": _Z,
    "zimage": _Z,
    "krea-2": _KREA,
    "krea2": _KREA,
    "ideogram": _IDEOGRAM,
    "wan2": _WAN,
}
"""Families by what metadata call bases; the first counts."""
_METADATA = ("ss_base_model_version", "modelspec.architecture")


def family_of(shapes: Shapes, metadata: Mapping[str, str]) -> str | None:
    """Return the family of bases that an adapter is of, by its names, its shapes or its metadata; None: it is unknown.

    Args:
        shapes: of its tensors.
        metadata: of its file.
    """
    return next(_told(shapes), None) or _by_metadata(metadata)


def _told(shapes: Shapes) -> Iterator[str]:
    """Yield the families that names tell, the surest first."""
    for sign in _SIGNS:
        names = [name for name in shapes if re.search(sign.pattern, name)]
        if names and (family := _by_size(sign, shapes, names) or sign.family) is not None:
            yield family


def _by_size(sign: _Sign, shapes: Shapes, names: Collection[str]) -> str | None:
    """Return the family that the sizes of layers tell; None: they do not."""
    if not sign.by_size:
        return None
    parsed = {name: parse_name(name) for name in names}
    parts = {name: own.part for name, own in parsed.items() if own is not None and len(shapes[name]) > 1}
    sizes = {("in", shapes[name][1]) for name, part in parts.items() if part == "down"}
    sizes |= {("out", shapes[name][0]) for name, part in parts.items() if part == "up"}
    return next((family for size, family in sign.by_size.items() if size in sizes), None)


def _by_metadata(metadata: Mapping[str, str]) -> str | None:
    told = " ".join(metadata.get(key, "") for key in _METADATA).lower()
    return next((family for mark, family in _MARKS.items() if mark in told), None)
