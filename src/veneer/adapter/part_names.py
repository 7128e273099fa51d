"""What files call the parts of each adapter method: the one table that names are read and written by.

It takes neither torch nor peft to import, so that the names in a file can be understood without waiting for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["BIASED", "PART_NAMES", "PartNames", "titles"]


@dataclass(frozen=True)
class PartNames:
    """What files call the parts of one method.

    Attributes:
        method: its name, and its value of ``adapter.method`` where it is trained here.
        title: its name in prose.
        endings: what is written: by naming (``peft``, ``kohya``, and ``transformers`` where its loader needs other
            names than peft's), part by ending. A part has one meaning in all methods.
        spellings: what is read: patterns of all endings that tools give to a part, by part; ``NAME`` in one stands for
            an adapter's name, which peft puts before ``weight``.
        peft_markers: settings of peft's config that are set for this method only.
        peft_type: what peft's config calls the method; None: peft has no such method.
        rooted: parts whose spelling counts only in names that begin with a network in underscores, such as
            ``lora_unet_``: it is so plain that other tensors end with it too.
        unread_by: formats whose endings it has and whose programs do not read it.
        lists: parts of which there are several tensors, each with its place behind the name, as ``part.0``.
    """

    method: str
    title: str
    endings: Mapping[str, Mapping[str, str]]
    spellings: Mapping[str, str]
    peft_markers: Mapping[str, Any] = field(default_factory=dict)
    peft_type: str | None = None
    rooted: tuple[str, ...] = ()
    unread_by: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()


_BEFORE = r"(?:[._]lora(?:_linear_layer)?|(?<=_lora[12]))"
"""What diffusers puts between a layer's name and a factor's; x-labs numbers the two LoRAs of FLUX's double blocks."""

_ALPHA = rf"(?:{_BEFORE}(?:\.(?:down|up))?|\.lora_(?:A|B|down|up)NAME)?(?:\.weight)?\.(?:lora_)?alpha"
_SCALAR = r"\.scalar"
"""What some modules of LyCORIS multiply delta W by; it is in the tensors already where they are written as a file."""
_DORA_SCALE = rf"(?:{_BEFORE})?\.(?:dora_scale|(?:dora_|lora_)?magnitude)(?:\.weight)?"


def _plain(*parts: str, prefix: str = "") -> dict[str, str]:
    """Return the spellings of parts whose names are their own, as LyCORIS and peft have them."""
    return {f"{prefix}{part}": rf"\.{part}NAME(?:\.weight)?" for part in parts}


def _same(*parts: str) -> dict[str, str]:
    """Return the endings of parts whose names are their own."""
    return {part: part for part in parts}


_PEFT_LORA = {"lora_A.weight": "down", "lora_B.weight": "up"}
_KOHYA_LORA = {"lora_down.weight": "down", "lora_up.weight": "up", "alpha": "alpha"}
_LORA = PartNames(
    method="lora",
    title="LoRA",
    endings={"peft": _PEFT_LORA, "diffusers": _PEFT_LORA, "kohya": _KOHYA_LORA},
    spellings={
        "down": rf"\.lora_(?:A|down)NAME(?:\.weight)?|{_BEFORE}\.down(?:\.weight)?",
        "up": rf"\.lora_(?:B|up)NAME(?:\.weight)?|{_BEFORE}\.up(?:\.weight)?",
        "mid": r"\.lora_midNAME(?:\.weight)?",
        "alpha": _ALPHA,
        "scalar": _SCALAR,
    },
    peft_type="LORA",
    rooted=("scalar",),
)
_PEFT_DORA = {**_PEFT_LORA, "lora_magnitude_vector": "magnitude"}
_DORA = PartNames(
    method="dora",
    title="DoRA",
    endings={
        "peft": _PEFT_DORA,
        "diffusers": _PEFT_DORA,
        # transformers 5 passes over peft's own name with a warning, and leaves the magnitude at its start
        "transformers": {**_PEFT_LORA, "lora_magnitude_vector.weight": "magnitude"},
        "kohya": {**_KOHYA_LORA, "dora_scale": "dora_scale"},
    },
    spellings={
        **_LORA.spellings,
        "magnitude": rf"(?:{_BEFORE})?\.lora_magnitude_vectorNAME(?:\.weight)?",
        "dora_scale": _DORA_SCALE,
    },
    peft_markers={"use_dora": True},
    peft_type="LORA",
)
_HADA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
_LOHA = PartNames(
    method="loha",
    title="LoHa",
    endings={"peft": _same(*_HADA), "kohya": _same(*_HADA, "alpha")},
    spellings={**_plain(*_HADA), "alpha": _ALPHA, "scalar": _SCALAR},
    peft_type="LOHA",
)
_KRON = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
_LOKR = PartNames(
    method="lokr",
    title="LoKr",
    endings={"kohya": _same(*_KRON, "alpha")},
    spellings={**_plain(*_KRON), "alpha": _ALPHA, "scalar": _SCALAR},
    peft_type="LOKR",
)
_DOHA = PartNames(
    method="doha",
    title="LoHa with DoRA",
    endings={"kohya": {**_LOHA.endings["kohya"], "dora_scale": "dora_scale"}},
    spellings={**_LOHA.spellings, "dora_scale": _DORA_SCALE},
)
_DOKR = PartNames(
    method="dokr",
    title="LoKr with DoRA",
    endings={"kohya": {**_LOKR.endings["kohya"], "dora_scale": "dora_scale"}},
    spellings={**_LOKR.spellings, "dora_scale": _DORA_SCALE},
)
_ROTATION = {"kohya": _same("oft_blocks", "rescale", "alpha")}
_OFT = PartNames(
    method="oft",
    title="OFT",
    endings=_ROTATION,
    spellings={"oft_blocks": r"\.oft_blocks", "rescale": r"\.rescale", "alpha": _ALPHA},
)
_BOFT = PartNames(method="boft", title="BOFT", endings=_ROTATION, spellings=_OFT.spellings)
_OFT_OF_PEFT = PartNames(
    method="oft_of_peft",
    title="OFT of inputs",
    endings={},
    spellings={
        "oft_R": r"\.oft_R(?!\.scaled_oft)NAME(?:\.weight)?",
        "scaled_oft": r"(?:\.oft_R)?\.scaled_oft",
    },
    peft_type="OFT",
)
_BOFT_OF_PEFT = PartNames(
    method="boft_of_peft", title="BOFT of inputs", endings={}, spellings=_plain("boft_R", "boft_s"), peft_type="BOFT"
)
_GLORA_PARTS = ("a1", "a2", "b1", "b2", "bm")
_GLORA = PartNames(
    method="glora",
    title="GLoRA",
    endings={"kohya": {**{f"{part}.weight": f"glora_{part}" for part in _GLORA_PARTS}, "alpha": "alpha"}},
    spellings={
        **{f"glora_{part}": rf"\.{part}\.weight" for part in _GLORA_PARTS},
        "alpha": _ALPHA,
        "scalar": _SCALAR,
    },
)
_IA3 = PartNames(
    method="ia3",
    title="(IA)^3",
    endings={"kohya": {"weight": "ia3_weight", "on_input": "on_input"}},
    spellings={"ia3_weight": r"\.weight", "on_input": r"\.on_input"},
    rooted=("ia3_weight",),
    unread_by=("comfy",),
)
_IA3_OF_PEFT = PartNames(
    method="ia3_of_peft",
    title="(IA)^3 of peft",
    endings={},
    spellings=_plain("ia3_l"),
    peft_type="IA3",
)
_FULL = PartNames(
    method="full",
    title="full difference",
    endings={"kohya": _same("diff", "diff_b")},
    spellings={"diff": r"\.diff", "diff_b": r"\.diff_b"},
)
_NORM = PartNames(
    method="norm",
    title="trained norm",
    endings={"kohya": _same("w_norm", "b_norm")},
    spellings={"w_norm": r"\.w_norm", "b_norm": r"\.b_norm"},
)
_REPLACED = PartNames(
    method="replaced",
    title="replaced weight",
    endings={"kohya": _same("set_weight")},
    # Black Forest Labs' files have the norms' own names, ComfyUI's the name of what is set
    spellings={"set_weight": r"(?:\.scale)?\.set_weight|(?<=_norm)\.scale"},
)
_DYLORA = PartNames(
    method="dylora",
    title="DyLoRA",
    endings={},
    spellings={"down_list": r"\.down_list\.\d+", "up_list": r"\.up_list\.\d+", "alpha": _ALPHA},
    lists=("down_list", "up_list"),
)
_BIASED = PartNames(
    method="biased",
    title="a trained bias",
    endings={"kohya": _same("diff_b")},
    spellings={
        "up_bias": rf"\.lora_(?:B|up)NAME\.bias|{_BEFORE}\.up\.bias",
        "diff_b": _FULL.spellings["diff_b"],
    },
    peft_markers={"lora_bias": True},
    peft_type="LORA",
)

_OTHERS = (_LOHA, _LOKR, _DOHA, _DOKR, _OFT, _BOFT, _OFT_OF_PEFT, _BOFT_OF_PEFT, _GLORA, _IA3, _IA3_OF_PEFT)
_ALL = (_LORA, _DORA, *_OTHERS, _FULL, _NORM, _REPLACED, _DYLORA, _BIASED)
PART_NAMES: Mapping[str, PartNames] = {names.method: names for names in _ALL}
"""The names of each method's parts, by the method's name."""
BIASED = _BIASED
"""Parts that any method may have beside its own."""


_UNNAMED = ("doha", "dokr", "oft_of_peft", "boft_of_peft", "ia3_of_peft", "biased")
"""Methods that sentences do not name beside those that they are variants of."""


def titles(last: str = "and") -> str:
    """Return the methods that are read, for a sentence."""
    names = [each.title for each in _ALL if each.method not in _UNNAMED]
    return f"{', '.join(names[:-1])} {last} {names[-1]}"
