"""What a family offers for texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from veneer.data.transform import Geometry
from veneer.family.conditioning import Conditioning
from veneer.family.unread import Unread

__all__ = ["FamilyText"]


class FamilyText(Protocol):
    """The texts of a base: what is read of them, and what the denoiser is told."""

    text_encoders: tuple[str, ...]
    """The names of all text encoders, of those too that no adapter changes, and of networks that read what they say."""
    max_token_windows: int
    """How many windows of its text encoders' length a text may take at most."""
    token_windows: int
    """How many it takes, whatever its own length: 1, unless :meth:`use_token_windows` says more."""
    text_reads_references: bool
    """Whether what a text encoder makes of a text depends on the references too."""

    @property
    def text_length(self) -> int:
        """Tokens of a caption that every text encoder reads, not counting those that mark beginnings and ends."""

    def encode_text(self, captions: Sequence[str]) -> Conditioning:
        """Turn captions into what the denoiser is told; gradients flow if a text encoder has an adapter in training."""

    def encode_instructions(self, captions: Sequence[str], references: Sequence[Sequence[Tensor]]) -> Conditioning:
        """Turn captions into what the denoiser is told, where ``text_reads_references``.

        Args:
            captions: the texts.
            references: those of each text, pixels (3, H, W) in [-1, 1] as training has cut them.
        """

    def use_token_windows(self, count: int) -> None:
        """Read texts in so many windows from now on, in training and painting alike.

        Raises:
            UserError: these text encoders read a text in fewer.
        """

    def condition(self, text: Conditioning, geometries: Sequence[Geometry]) -> Conditioning:
        """Join to texts what the denoiser is told of each picture's size and crop, on the texts' device."""

    def unread(self, texts: Sequence[str]) -> Mapping[str, Unread]:
        """Return, by text, what a text encoder does not see of it; texts that are seen whole are left out."""
