"""What a family offers for adapters: the layers that they change, and what files call them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import nn

from veneer.config.adapter_config import TargetPreset
from veneer.weights.formats.protocol import KeyNames
from veneer.weights.metadata import BaseLabels

__all__ = ["FamilyAdapters"]


class FamilyAdapters(Protocol):
    """The layers of a base that adapters change."""

    networks: Mapping[str, nn.Module]
    """The networks that an adapter may change, by their prefix in adapter files: the denoiser, and those text encoders
    that programs read an adapter for."""
    default_targets: Mapping[str, tuple[str, ...]]
    """Of each network, the layers that an adapter changes where a config names none."""
    default_blocks: Mapping[str, tuple[str, ...]]
    """Of networks whose adapters are confined to some blocks by default, these."""
    folded_layers: tuple[str, ...]
    """Beginnings of the paths of layers, networks first, that get the tokens of each picture's text as rows."""

    def expand_targets(
        self, network: str, wanted: TargetPreset | None, blocks: Sequence[str]
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the layers' names and the blocks that a preset means, or the default, within some blocks.

        Args:
            network: a key of ``networks``.
            wanted: the preset; None: ``default_targets``.
            blocks: as of ``adapter.blocks``; none: all.

        Raises:
            UserError: a block is not there, or nothing in the blocks is meant.
        """

    @property
    def key_names(self) -> KeyNames:
        """What adapter files call its layers, by format, where it is not what they are called in memory."""

    @property
    def labels(self) -> BaseLabels:
        """What programs and sites call bases of its kind, for the metadata of adapter files."""
