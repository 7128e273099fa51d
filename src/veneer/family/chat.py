"""Texts that a language model reads in a conversation's template: how much of a caption it sees, without files too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from transformers import BatchEncoding

from veneer.family.abstract import AbstractTokenizer

__all__ = ["AbstractChatTokenizer", "tokens_before"]

_CAPTION = "caption"


def tokens_before(tokenizer: Any, in_template: Callable[[str], str]) -> int:
    """Return how many tokens of a template stand before a caption.

    What stands behind one is cut before its own end is, where both are longer than what is read.

    Args:
        tokenizer: of transformers.
        in_template: returns the text that is read for a caption.
    """
    before, _, _ = in_template(_CAPTION).partition(_CAPTION)
    return len(tokenizer(before, add_special_tokens=False)["input_ids"])


class AbstractChatTokenizer(AbstractTokenizer):
    """A tokenizer with a template that needs no files and reads no text.

    Args:
        length: tokens of each text, its template included.
    """

    chat_template = None

    def __init__(self, length: int) -> None:
        super().__init__(length, marks=0)

    def apply_chat_template(self, conversations: Sequence[Any], *, tokenize: bool, **options: object) -> Any:
        """Return an empty text, or the token ids of each conversation."""
        return self(["" for _ in conversations], **options) if tokenize else ""

    def __call__(self, texts: str | Sequence[str], **options: object) -> Any:
        """Return ``input_ids`` and ``attention_mask``, each (B, L) or, of one text without marks, none."""
        if options.pop("add_special_tokens", True) is False and "return_tensors" not in options:
            return BatchEncoding({"input_ids": []})
        ids = super().__call__([texts] if isinstance(texts, str) else texts, **options)
        return BatchEncoding({"input_ids": ids.input_ids, "attention_mask": ids.input_ids + 1})
