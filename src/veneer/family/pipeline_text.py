"""How families of diffusers pipelines read texts: tokens, their limits, windows, and what is not read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from veneer.errors import UserError
from veneer.family.pipeline_parts import PipelineParts
from veneer.family.protocol import Conditioning
from veneer.family.unread import Unread, find_unread, join_unread
from veneer.family.windows import window_tokens

__all__ = ["PipelineText"]


class PipelineText(PipelineParts):
    """The texts of a family: what its tokenizers cut, and what a subclass makes of them."""

    text_tokens: int | None = None
    """Tokens of a caption that are read, marks and a template's words not counted; None: as its tokenizers cut it."""
    max_token_windows: int = 1
    text_reads_references: bool = False

    def _check_texts(self) -> None:
        """Refuse a tokenizer of other files than its text encoder's: it loads, and tells the text encoder nothing."""
        for name in self._text_encoders:
            part = self.tokenizers[name]
            cut = self._tokenizers[name].model_max_length if self.text_tokens is None else 0
            most = getattr(self._text_encoders[name].config, "max_position_embeddings", None)
            self._check_vocabulary(name, part)
            if most is not None and cut > most:
                what = f"the {part} cuts captions at {cut:.3g} tokens, the text encoder reads {most}"
                remedy = f"the folder {part} is not whole, or another base's"
                raise UserError(what, code="family.wrong_tokenizer", remedy=remedy)

    def _check_vocabulary(self, name: str, part: str) -> None:
        """Refuse a tokenizer that has tokens for which its text encoder has no vectors."""
        tokens, vectors = len(self._tokenizers[name]), self._text_config(name).vocab_size
        if tokens > vectors:
            what = f"the {part} has {tokens:,} tokens, the {name} {vectors:,}"
            remedy = f"the folder {part} is another base's, or words were added to it alone: take both from one place"
            raise UserError(what, code="family.wrong_tokenizer", remedy=remedy)

    def _text_config(self, name: str) -> Any:
        """Return the configuration of a text encoder; of a model that sees pictures too, its text's."""
        return self._text_encoders[name].config.get_text_config()

    def _caption_tokenizers(self) -> Sequence[Any]:
        """Return the tokenizers of the text encoders that read whole captions."""
        return list(self._tokenizers.values())

    @property
    def text_length(self) -> int:
        """Tokens of a text that every text encoder reads, in all windows together, marks not counted."""
        return min(self._text_length(tokenizer) for tokenizer in self._caption_tokenizers())

    def _text_length(self, tokenizer: Any) -> int:
        """Return the tokens of a text that are kept, marks not counted."""
        if self.text_tokens is not None:
            return self.text_tokens
        return self.token_windows * (int(tokenizer.model_max_length) - _marks(tokenizer))

    def use_token_windows(self, count: int) -> None:
        """Read texts in so many windows of the text encoders from now on.

        Raises:
            UserError: this family's text encoders read a text in fewer.
        """
        if count > self.max_token_windows:
            what = f"is {count}, but the text encoders of a {self.name} base read a text in {self.max_token_windows}"
            raise UserError(what, code="family.token_windows", where="data.token_windows", remedy="leave it out")
        self.token_windows = count

    def _windows(self, name: str, captions: Sequence[str]) -> list[Tensor]:
        """Return the token ids of captions for a text encoder, (B, L) for each window."""
        device = self._text_encoders[name].device
        return window_tokens(self._tokenizers[name], captions, self.token_windows, device)

    def encode_text(self, captions: Sequence[str]) -> Conditioning:
        """Turn captions into what the denoiser is told."""
        raise NotImplementedError

    def encode_instructions(self, captions: Sequence[str], references: Sequence[Sequence[Tensor]]) -> Conditioning:
        """Turn captions into what the denoiser is told; a family whose text encoder sees references overrides it."""
        return self.encode_text(captions)

    def unread(self, texts: Sequence[str]) -> dict[str, Unread]:
        """Return what the text encoders do not see of texts; texts that all of them see whole are left out."""
        return join_unread(
            [find_unread(tokenizer, texts, self._text_length(tokenizer)) for tokenizer in self._caption_tokenizers()]
        )


def _marks(tokenizer: Any) -> int:
    """Return how many tokens mark a text's beginning and end."""
    return int(tokenizer.num_special_tokens_to_add())
