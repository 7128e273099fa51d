"""Block weights as users of A1111's LoRA Block Weight have them: one number for each block of the model's own code.

The extension (hako-mikan/sd-webui-lora-block-weight) knows lists of 12, 17, 20 and 26 numbers for Stable Diffusion 1, 2
and XL, and of 61 for FLUX. Its order and its rules are taken as they are: a shorter list names some of the 26 blocks,
and the others get 0; layers that belong to no block, such as those of the time embedding, keep their strength.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence

from veneer.errors import UserError

__all__ = ["BLOCK_LISTS", "strengths_by_block"]

_IN, _OUT = [f"IN{n:02}" for n in range(12)], [f"OUT{n:02}" for n in range(12)]
_ALL = ("BASE", *_IN, "M00", *_OUT)
_FLUX = ("CLIP", "T5", "IN", *(f"D{n:02}" for n in range(19)), *(f"S{n:02}" for n in range(38)), "OUT")
BLOCK_LISTS: Mapping[int, tuple[str, ...]] = {
    12: ("BASE", *(_IN[n] for n in (4, 5, 7, 8)), "M00", *_OUT[:6]),
    17: ("BASE", *(_IN[n] for n in (1, 2, 4, 5, 7, 8)), "M00", *_OUT[3:]),
    20: ("BASE", *_IN[:9], "M00", *_OUT[:9]),
    26: _ALL,
    61: _FLUX,
}
"""The blocks' names in the order of a list, by its length."""
_PER_LEVEL = 3  # blocks that the model's own code counts for a level: two resnets and the way down, or three resnets
_DENOISERS = {_ALL: "unet", _FLUX: "transformer"}


def strengths_by_block(values: Sequence[float], paths: Collection[str]) -> dict[str, float]:
    """Return what each layer is multiplied by, for the layers that belong to a block.

    Args:
        values: the list: 12, 17, 20, 26 or 61 numbers.
        paths: of the adapter's layers, as diffusers names them, network first.

    Raises:
        UserError: the list has another length, or is one for another model.
    """
    blocks = BLOCK_LISTS.get(len(values))
    if blocks is None:
        what = f"a list of {len(values)} block weights is none of LoRA Block Weight's"
        remedy = f"it has lists of {', '.join(map(str, BLOCK_LISTS))}; or name blocks: down_blocks.1=0.5"
        raise UserError(what, code="adapter.bad_block_weights", remedy=remedy)
    every, block_of = (_FLUX, _flux_block) if blocks is _FLUX else (_ALL, _block)
    _check_model(paths, every, len(values))
    weights = {**dict.fromkeys(every, 0.0), **dict(zip(blocks, values, strict=True))}
    found = {path: block_of(path) for path in paths}
    return {path: weights[block] for path, block in found.items() if block is not None}


def _check_model(paths: Collection[str], blocks: tuple[str, ...], count: int) -> None:
    network = _DENOISERS[blocks]
    other = next((path for path in paths if not path.startswith((f"{network}.", "text_encoder"))), None)
    if other is not None:
        models = "FLUX" if blocks is _FLUX else "Stable Diffusion 1, 2 and XL"
        what = f"a list of {count} block weights is for {models}, and the adapter changes {other}"
        raise UserError(what, code="adapter.bad_block_weights", remedy="name blocks instead: PATTERN=WEIGHT")


def _block(path: str) -> str | None:
    """Return the block of Stable Diffusion's own code that a layer is in: BASE, IN00 to IN11, M00, OUT00 to OUT11."""
    if path.startswith("text_encoder"):
        return "BASE"
    if ".mid_block." in path:
        return "M00"
    if path.startswith("unet.conv_in"):
        return "IN00"
    if found := re.match(r"unet\.down_blocks\.(\d+)\.(?:resnets|attentions)\.(\d+)\.", path):
        return _counted("IN", path, found, 1)
    if found := re.match(r"unet\.down_blocks\.(\d+)\.downsamplers\.", path):
        return f"IN{_PER_LEVEL * (int(found[1]) + 1):02}"
    if found := re.match(r"unet\.up_blocks\.(\d+)\.(?:resnets|attentions)\.(\d+)\.", path):
        return _counted("OUT", path, found, 0)
    if found := re.match(r"unet\.up_blocks\.(\d+)\.upsamplers\.", path):
        return f"OUT{_PER_LEVEL * int(found[1]) + 2:02}"
    return None


def _counted(name: str, path: str, found: re.Match[str], first: int) -> str:
    level, place = int(found[1]), int(found[2])
    if place + first >= _PER_LEVEL or level >= len(_IN) // _PER_LEVEL:
        what = f"{path} is in no block that LoRA Block Weight knows"
        raise UserError(what, code="adapter.bad_block_weights", remedy="name blocks instead: PATTERN=WEIGHT")
    return f"{name}{_PER_LEVEL * level + place + first:02}"


_FLUX_BLOCKS: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
    (r"text_encoder_2\.", lambda found: "T5"),
    (r"text_encoder\.", lambda found: "CLIP"),
    (r"transformer\.transformer_blocks\.(\d+)\.", lambda found: f"D{int(found[1]):02}"),
    (r"transformer\.single_transformer_blocks\.(\d+)\.", lambda found: f"S{int(found[1]):02}"),
    (r"transformer\.(?:x_embedder|context_embedder|time_text_embed)\b", lambda found: "IN"),
    (r"transformer\.(?:norm_out|proj_out)\b", lambda found: "OUT"),
)
"""Patterns of layers' paths, with what the extension calls their block."""


def _flux_block(path: str) -> str | None:
    for pattern, name in _FLUX_BLOCKS:
        if found := re.match(pattern, path):
            block = name(found)
            return block if block in _FLUX else None
    return None
