"""What files call the parts of each adapter method: the one table that names are read and written by.

It takes neither torch nor peft to import, so that the names in a file can be understood without waiting for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["PART_NAMES", "PartNames"]


@dataclass(frozen=True)
class PartNames:
    """What files call the parts of one method.

    Attributes:
        method: its value of ``adapter.method``.
        title: its name in prose.
        endings: what is written: by naming (``peft``, ``kohya``, and ``transformers`` where its loader needs other
            names than peft's), part by ending. A part has one meaning in all methods.
        spellings: what is read: patterns of all endings that tools give to a part, by part; ``NAME`` in one stands for
            an adapter's name, which peft puts before ``weight``.
        peft_markers: settings of peft's config that are set for this method only.
    """

    method: str
    title: str
    endings: Mapping[str, Mapping[str, str]]
    spellings: Mapping[str, str]
    peft_markers: Mapping[str, Any] = field(default_factory=dict)


_BEFORE = r"(?:[._]lora(?:_linear_layer)?|(?<=_lora[12]))"
"""What diffusers puts between a layer's name and a factor's; x-labs numbers the two LoRAs of FLUX's double blocks."""

_LORA = PartNames(
    method="lora",
    title="LoRA",
    endings={
        "peft": {"lora_A.weight": "down", "lora_B.weight": "up"},
        "kohya": {"lora_down.weight": "down", "lora_up.weight": "up", "alpha": "alpha"},
    },
    spellings={
        "down": rf"\.lora_(?:A|down)NAME(?:\.weight)?|{_BEFORE}\.down(?:\.weight)?",
        "up": rf"\.lora_(?:B|up)NAME(?:\.weight)?|{_BEFORE}\.up(?:\.weight)?",
        "mid": r"\.lora_midNAME(?:\.weight)?",
        "alpha": rf"(?:{_BEFORE}(?:\.(?:down|up))?|\.lora_(?:A|B|down|up)NAME)?(?:\.weight)?\.(?:lora_)?alpha",
    },
)
_DORA = PartNames(
    method="dora",
    title="DoRA",
    endings={
        "peft": {**_LORA.endings["peft"], "lora_magnitude_vector": "magnitude"},
        # transformers 5 passes over peft's own name with a warning, and leaves the magnitude at its start
        "transformers": {**_LORA.endings["peft"], "lora_magnitude_vector.weight": "magnitude"},
        "kohya": {**_LORA.endings["kohya"], "dora_scale": "dora_scale"},
    },
    spellings={
        **_LORA.spellings,
        "magnitude": rf"(?:{_BEFORE})?\.lora_magnitude_vectorNAME(?:\.weight)?",
        "dora_scale": rf"(?:{_BEFORE})?\.(?:dora_scale|(?:dora_|lora_)?magnitude)(?:\.weight)?",
    },
    peft_markers={"use_dora": True},
)

PART_NAMES: Mapping[str, PartNames] = {names.method: names for names in (_LORA, _DORA)}
"""The names of each method's parts, by its value of ``adapter.method``."""
