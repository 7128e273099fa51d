"""The parts that a family of a diffusers pipeline is made of, which every theme of it works on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from veneer.family.offload import Offloader
from veneer.family.protocol import NoiseProcess

__all__ = ["PipelineParts"]


class PipelineParts:
    """A pipeline's networks, tokenizers and scheduler, by its own names, and what they are to a family."""

    name: str
    denoiser: str
    noise: NoiseProcess
    multiple: int
    tokenizers: Mapping[str, str]
    """The tokenizer's name by its text encoder's, of each."""
    text_connectors: tuple[str, ...] = ()
    """Networks that make what the denoiser is told of what text encoders say, and read no text themselves. They are
    held, quantised and offloaded as text encoders are, which count them among their names."""
    guides: tuple[str, ...] = ()
    is_large: bool = True
    """Whether text encoders and denoiser need not fit into memory together: a run reads each when it is first called,
    and text encoders are held in the 16 bits that their files have."""
    text_encoders: tuple[str, ...]
    networks: Mapping[str, nn.Module]
    token_windows: int
    _parts: dict[str, Any]
    """All parts by the pipeline's names; those that it comes without are None."""
    _options: dict[str, Any]
    """What the pipeline takes beside them."""
    _denoiser: Any
    _vae: Any
    _text_encoders: dict[str, Any]
    """Text encoders by name, of which each has a tokenizer."""
    _tokenizers: dict[str, Any]
    """Each one's tokenizer, by the text encoder's name."""
    _offloader: Offloader

    @classmethod
    def _pipeline_class(cls) -> Any:
        """Return the class of diffusers' pipeline."""
        raise NotImplementedError
