"""Texts in several windows of a text encoder, as kohya's scripts read them with ``max_token_length``.

An encoder of a fixed length L reads a long text piece by piece: L - 2 tokens at a time, each with marks of its own at
its beginning and end. The hidden states are then joined to one sequence: the first window's begin mark, all windows'
tokens and padding, the last window's end mark, 2 + n (L - 2) in all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from veneer.config.data_config import MAX_TOKEN_WINDOWS
from veneer.errors import UserError

__all__ = ["TOKEN_WINDOWS", "join_windows", "token_windows_of", "tokens", "window_tokens"]

TOKEN_WINDOWS = "veneer.token_windows"
"""In an adapter file's metadata: windows of each text in its training, where they were more than one."""
_KOHYA_LENGTH = "ss_max_token_length"
_KOHYA_WINDOW = 75  # tokens of a window in kohya's metadata
_MARKS = 2  # of a window: begin and end


def tokens(tokenizer: Any, captions: Sequence[str], device: torch.device) -> Tensor:
    """Return captions' token ids (B, L), each padded to the tokenizer's length or cut there."""
    length = tokenizer.model_max_length
    ids = tokenizer(list(captions), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return cast(Tensor, ids.input_ids).to(device)


def window_tokens(tokenizer: Any, captions: Sequence[str], count: int, device: torch.device) -> list[Tensor]:
    """Return captions' token ids in ``count`` windows, each (B, L); a text that is shorter has empty ones behind."""
    if count == 1:
        return [tokens(tokenizer, captions, device)]
    inner = tokenizer.model_max_length - _MARKS
    ids = tokenizer(list(captions), add_special_tokens=False, truncation=True, max_length=count * inner).input_ids
    starts = range(0, count * inner, inner)
    return [torch.tensor([_marked(tokenizer, own[at : at + inner], inner) for own in ids]).to(device) for at in starts]


def _marked(tokenizer: Any, ids: Sequence[int], inner: int) -> list[int]:
    """Return a window's tokens between its marks, padded."""
    padding = [tokenizer.pad_token_id] * (inner - len(ids))
    return [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id, *padding]


def join_windows(states: Sequence[Tensor]) -> Tensor:
    """Join the hidden states (B, L, D) of a text's windows to (B, 2 + n (L - 2), D)."""
    if len(states) == 1:
        return states[0]
    first, *middle, last = states
    return torch.cat([first[:, :-1], *(window[:, 1:-1] for window in middle), last[:, 1:]], dim=1)


def token_windows_of(metadata: Mapping[str, str]) -> int:
    """Return how many windows an adapter's file says that the texts of its training had, ours or kohya's; else 1.

    Raises:
        UserError: it says something that is no such number.
    """
    for key, tokens_each in ((TOKEN_WINDOWS, 1), (_KOHYA_LENGTH, _KOHYA_WINDOW)):
        value = metadata.get(key, "None")
        if value == "None":  # as kohya writes what is not set
            continue
        count = int(value) // tokens_each if value.isdecimal() and len(value) < len(str(10**4)) else 0
        if not 0 < count <= MAX_TOKEN_WINDOWS:
            what = f"says {key} = {value!r:.40}, which is no number of windows from 1 to {MAX_TOKEN_WINDOWS}"
            raise UserError(what, code="weights.bad_token_windows", where="the adapter's metadata")
        return count
    return 1
