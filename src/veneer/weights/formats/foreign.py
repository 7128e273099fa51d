"""Files that are no LoRA and no DoRA, and files of other bases, called by their names.

Told by what tensors are called and how large they are: nothing here is read from a file but names, shapes and metadata.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from veneer.adapter.part_names import titles
from veneer.errors import UserError
from veneer.weights.formats.contents import TOKEN_NAMES, content_of
from veneer.weights.formats.names import has_root, parse_name
from veneer.weights.header import shown

__all__ = ["Shapes", "family_of", "is_adapter", "refuse_foreign"]

Shapes = Mapping[str, tuple[int, ...]]
"""The shape of each tensor by its name."""

_TOKENS = "textual inversion"
_TOKEN_WIDTHS = (768, 1024, 1280, 2048, 4096)
"""How many numbers a token has in the text encoders that people train tokens of."""
_NO_MERGE = {
    _TOKENS: "it is loaded beside a base, and trains no layer",
    "hypernetwork": "it is computed beside the layers, and cannot be merged",
    "prompt tuning": "it is loaded beside a base, and trains no layer",
}
_METHODS: tuple[tuple[str, str], ...] = (
    ("LoKr", r"[._]lokr_t1\b"),
    ("BOFT of peft", r"[._]boft_\w+"),
    ("OFT of peft or OneTrainer", r"[._]oft_R\b|\.scaled_oft$"),
    ("OFT of FLUX in kohya's trainer", r"\.oft_blocks\.\d+$"),
    ("OFT", r"[._]oft_\w+|\.vec$"),
    ("(IA)^3", r"[._]ia3_\w+"),
    ("GLoRA", r"[._]glora_\w+"),
    ("T-LoRA", r"\.lambda_layer$|\.[pq]_layer\.weight$"),
    ("AdaLoRA", r"\.lora_E\b|\.ranknum\b"),
    ("VeRA", r"[._]p?vera_\w+"),
    ("LoRA of embeddings", r"\.lora_embedding_[AB]\b"),
    ("trained norms of peft", r"[._]ln_tuning_\w+"),
    ("full difference", r"\.diff_m$"),
    ("reshaped LoRA", r"\.reshape_weight$"),
    ("hypernetwork", r"^\d{3,4}\.[01]\.linear|^hypernet"),
    (_TOKENS, TOKEN_NAMES),
)
"""Methods that are not read, each with a pattern of names that only its tensors have."""
_PEFT_METHODS = {
    **{f"{name.lower()}_": name for name in ("VBLoRA", "FourierFT", "HRA", "Bone", "MiSS", "RandLoRA", "C3A", "SHiRA")},
    **{
        f"{name.lower()}_": name
        for name in ("RoAd", "WaveFT", "DeLoRA", "GraLoRA", "HiRA", "Lily", "PSOFT", "TinyLoRA")
    },
    **{f"{name.lower()}_": name for name in ("UniLoRA", "OSF", "BEFT", "DEFT", "AdaMSS", "PEANuT", "Poly", "FRoD")},
    "supertuning_": "SuperTuning",
    "shadow_": "Shadow",
    "trainable_tokens_": "trainable tokens",
    "prompt_embeddings": "prompt tuning",
    "prompt_encoder": "prompt tuning",
}
"""peft's further methods by what the names of their parameters begin with."""
_PEFT_NAME = re.compile(r"(?:^|\.)(" + "|".join(map(re.escape, _PEFT_METHODS)) + r")\w*(?:\.[^.]+)*$")

_FAMILIES: tuple[tuple[str, str], ...] = (
    ("HiDream", r"double_stream_blocks[._]|single_stream_blocks[._]"),
    ("FLUX", r"double_blocks[._]\d+|single_blocks[._]\d+|single_transformer_blocks[._]\d+"),
    ("Stable Diffusion 3", r"joint_blocks[._]\d+"),
    ("Qwen-Image", r"transformer_blocks[._]\d+[._](?:img|txt)_(?:mlp|mod)"),
    (
        "FLUX or Stable Diffusion 3",
        r"transformer_blocks[._]\d+[._](?:attn[._](?:add_|to_add_out)|ff_context|norm1_context)",
    ),
    ("Z-Image or Lumina", r"(?:context|noise)_refiner[._]\d+|layers[._]\d+[._](?:attention[._]|adaLN_modulation)"),
    ("Krea 2", r"txtfusion|text_fusion|blocks[._]\d+[._]attn[._]w[qkvo]\b"),
    ("Wan", r"blocks[._]\d+[._](?:self|cross)_attn[._](?:[qkvo]|k_img|v_img)(?:$|[._])"),
    ("Anima or Cosmos", r"blocks[._]\d+[._](?:self|cross)_attn[._](?:[qkv]_proj|output_proj)"),
    ("Stable Cascade", r"lora_prior_|(?:down|up)_blocks_\d_\d+_(?:attention|channelwise|mapper)"),
    ("AuraFlow", r"joint_transformer_layers|single_transformer_layers"),
    ("PixArt", r"adaln_single|caption_projection"),
    ("a language model", r"(?:^|\.)model\.layers\.\d+\.(?:self_attn|mlp)\."),
    ("Stable Diffusion XL", r"(?:^|[._])lora_te2_|(?:^|\.)text_encoder_2\.|label_emb|add_embedding"),
    ("Stable Diffusion XL", r"(?:input_blocks[._][4578][._]1|middle_block[._]1)[._]transformer_blocks[._][1-9]"),
    ("Stable Diffusion XL", r"(?:down_blocks[._][12]|mid_block)[._]attentions[._]\d[._]transformer_blocks[._][1-9]"),
)
"""Families of bases, each with a pattern of names that its adapters have."""
_CROSS_ATTENTION = re.compile(r"attn2[._](?:processor[._])?to_[kv](?![a-z])")
_TEXT_WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL"}
"""Families by how wide the text is that their attention reads."""
_MARKS = {
    "sdxl": "Stable Diffusion XL",
    "stable-diffusion-xl": "Stable Diffusion XL",
    "sd_v1": "Stable Diffusion 1",
    "stable-diffusion-v1": "Stable Diffusion 1",
    "sd_v2": "Stable Diffusion 2",
    "stable-diffusion-v2": "Stable Diffusion 2",
    "sd3": "Stable Diffusion 3",
    "flux": "FLUX",
}
_METADATA = ("ss_base_model_version", "modelspec.architecture")


def refuse_foreign(shapes: Shapes, unread: Sequence[str]) -> None:
    """Refuse a file that is no adapter of a method that is read, and say what it is.

    Args:
        shapes: of its tensors.
        unread: names of those that are no part of a LoRA or a DoRA.

    Raises:
        UserError: it is known to be something else; what is not known passes.
    """
    are_tokens = not any("." in name for name in shapes)
    methods = {name: title for name in unread if (title := _method_of(name, shapes[name], are_tokens)) is not None}
    if methods:
        (title, count), *_ = Counter(methods.values()).most_common()
        first = next(name for name in methods if methods[name] == title)
        what = (
            f"is of the method {title}, which is not read: {count} of its {len(shapes)} tensors, such as {shown(first)}"
        )
        raise UserError(what, code="weights.unsupported_method", remedy=f"Veneer reads {titles()}; {_remedy(title)}")
    if unread and len(unread) == len(shapes) and (content := content_of(unread)) is not None:
        what = f"is {content.title} and no adapter: it has tensors such as {shown(unread[0])}"
        raise UserError(what, code="weights.not_an_adapter", remedy=f"name the file of an adapter: {titles('or')}")


def is_adapter(name: str) -> bool:
    """Check whether a tensor's name is one of an adapter, of a method that is read or another.

    An alpha alone is none: activations of autoencoders of sound have one.
    """
    if name.endswith(".alpha") and not has_root(name):
        return False
    return parse_name(name) is not None or has_root(name) or _method_by_name(name) not in (None, _TOKENS)


def family_of(shapes: Shapes, metadata: Mapping[str, str]) -> str | None:
    """Return the family of bases that an adapter is of, by its names, its shapes or its metadata; None: it is unknown.

    Args:
        shapes: of its tensors.
        metadata: of its file.
    """
    by_name = next((family for family, pattern in _FAMILIES if _any(pattern, shapes)), None)
    return by_name or _by_text_width(shapes) or _by_metadata(metadata)


def _method_of(name: str, shape: tuple[int, ...], are_tokens: bool) -> str | None:
    """Return the method that only one such tensor has, by its name or shape.

    Args:
        name: of a tensor.
        shape: of the tensor.
        are_tokens: whether the file's names may be tokens: those of text encoders without levels lie among others.
    """
    if are_tokens and _is_token(name, shape):
        return _TOKENS
    return _method_by_name(name)


def _method_by_name(name: str) -> str | None:
    title = next((title for title, pattern in _METHODS if re.search(pattern, name)), None)
    found = _PEFT_NAME.search(name)
    return title or (_PEFT_METHODS[found.group(1)] if found else None)


def _is_token(name: str, shape: tuple[int, ...]) -> bool:
    """Return whether a tensor may be the vectors of a token, which diffusers' files name by the token itself."""
    return len(shape) in (1, 2) and shape[-1] in _TOKEN_WIDTHS and bool(name)


def _remedy(title: str) -> str:
    return _NO_MERGE.get(title, "merge it into a base with the tool that made it, or extract a LoRA from that")


def _any(pattern: str, names: Iterable[str]) -> bool:
    compiled = re.compile(pattern)
    return any(compiled.search(name) for name in names)


def _by_text_width(shapes: Shapes) -> str | None:
    """Return the family whose text is as wide as the inputs of these tensors' cross attentions."""
    for name, shape in shapes.items():
        parsed = parse_name(name)
        if parsed is not None and parsed.part == "down" and _CROSS_ATTENTION.search(name) and len(shape) > 1:
            return _TEXT_WIDTHS.get(shape[1])
    return None


def _by_metadata(metadata: Mapping[str, str]) -> str | None:
    told = " ".join(metadata.get(key, "") for key in _METADATA).lower()
    return next((family for mark, family in _MARKS.items() if mark in told), None)
