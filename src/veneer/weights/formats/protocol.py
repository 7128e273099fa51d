"""What a format of adapter files offers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias

from torch import Tensor, nn

from veneer.adapter.protocol import AdapterWeights, LayerAdapter

__all__ = ["BaseNames", "FileContent", "Format", "KeyNames", "WritableFormat"]

KeyNames: TypeAlias = Mapping[str, Mapping[str, str]]
"""What a base's layers are called in files, where it is not what they are called in memory: by format, then by full
dotted path, with the network's prefix in both: ``{"kohya": {"unet.mid_block.resnets.0.conv1": "unet.middle_block...``.
"""


@dataclass(frozen=True)
class FileContent:
    """An adapter file as it lies on disk.

    Attributes:
        path: of the file.
        tensors: by name.
        metadata: of its header.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class BaseNames:
    """The layers of a base, against which a file's names are resolved.

    Attributes:
        networks: the base's, by prefix.
        key_names: as its family gives them.
    """

    networks: Mapping[str, nn.Module]
    key_names: KeyNames = field(default_factory=dict)


class Format(Protocol):
    """A format of adapter files: how it is recognised, read, and what it calls layers."""

    @property
    def name(self) -> str:
        """What the format is called in messages and by users."""

    @property
    def metadata_keys(self) -> tuple[str, ...]:
        """Keys of a file's metadata that belong to the format, not to the adapter."""

    def detects(self, names: Collection[str]) -> bool:
        """Return whether tensors of these names are of this format."""

    def read(self, content: FileContent) -> dict[str, LayerAdapter]:
        """Return each layer's adapter by the name that the file has for the layer.

        Raises:
            UserError: a tensor belongs to no adapter, a part of one is missing, or the strength is not told.
        """

    def network_of(self, layer: str) -> str | None:
        """Return the network that a file's name for a layer is in; None where only the base's layers can tell."""

    def paths(self, layers: Collection[str], base: BaseNames | None) -> dict[str, str]:
        """Return the full dotted path of each of a file's names for layers.

        Args:
            layers: the names.
            base: whose layers they may be; None: it is not at hand.

        Raises:
            UserError: the names tell the paths only together with the base's layers, and there is no base, or not
                exactly one of its layers has such a name.
        """


class WritableFormat(Format, Protocol):
    """A format that can be written as well."""

    def write(self, weights: AdapterWeights, base: BaseNames | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return the tensors and the metadata of a file.

        Args:
            weights: the adapter, whose numbers need not be there.
            base: whose layers it is of; formats whose names need no base do without.

        Raises:
            UserError: the format has no place for such an adapter.
        """
