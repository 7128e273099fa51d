"""Files that are no adapter of a method that is read, called by their names.

Told by what tensors are called and how large they are: nothing here is read from a file but names, shapes and metadata.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from veneer.adapter.part_names import titles
from veneer.errors import UserError
from veneer.weights.formats.contents import TOKEN_NAMES, content_of
from veneer.weights.formats.families import Shapes, family_of
from veneer.weights.formats.names import has_root, parse_name
from veneer.weights.header import shown

__all__ = ["Shapes", "family_of", "is_adapter", "refuse_foreign"]

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
    ("BOFT", r"[._]boft_\w+"),
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
_ALSO_OF_BASES = (".alpha", "_norm.scale")


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
    if unread and not any(map(is_adapter, shapes)) and (content := content_of(unread)) is not None:
        what = f"is {content.title} and no adapter: it has tensors such as {shown(unread[0])}"
        raise UserError(what, code="weights.not_an_adapter", remedy=f"name the file of an adapter: {titles('or')}")


def is_adapter(name: str) -> bool:
    """Check whether a tensor's name is one of an adapter, of a method that is read or another.

    Names that bases have too are none: the scales of FLUX's norms, the alphas of activations in autoencoders of sound.
    """
    if name.endswith(_ALSO_OF_BASES) and not has_root(name):
        return False
    return parse_name(name) is not None or has_root(name) or _method_by_name(name) not in (None, _TOKENS)


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
