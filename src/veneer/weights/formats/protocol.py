"""What a format of adapter files offers, and what is known of a base when the names in a file are resolved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from torch import Tensor, nn

from veneer.adapter.protocol import AdapterWeights
from veneer.weights.formats.fused import Slice
from veneer.weights.metadata import BaseLabels

__all__ = ["STEM", "BaseNames", "BaseNetworks", "Format", "FormatFile", "KeyNames"]

STEM = "adapter"
"""The name of an adapter whose format puts a name into the file's, where nobody named it."""

KeyNames: TypeAlias = Mapping[str, Mapping[str, str | Slice]]
"""What a base's layers are called in files, where it is not what they are called in memory: by format, then by full
dotted path, with the network's prefix in both: ``{"kohya": {"unet.mid_block.resnets.0.conv1": "unet.middle_block...``.
A format's names are written to its files; all are read in any file. ``native`` has those of the model's own code where
no format writes them. A layer that is rows of a larger one in files has their :class:`Slice`.
"""


class BaseNetworks(dict[str, nn.Module]):
    """A base's networks by prefix, with what files call their layers and the base itself.

    Args:
        networks: by prefix.
        key_names: gives what files call layers; asked when a file is read or written.
        labels: gives what programs call the base's kind.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        key_names: Callable[[], KeyNames],
        labels: Callable[[], BaseLabels | None] = lambda: None,
    ) -> None:
        super().__init__(networks)
        self._key_names, self._labels = key_names, labels

    @property
    def key_names(self) -> KeyNames:
        """What files call layers, as their family gives it."""
        return self._key_names()

    @property
    def labels(self) -> BaseLabels | None:
        """What programs call the base's kind, as its family gives it."""
        return self._labels()


@dataclass(frozen=True)
class BaseNames:
    """The layers of a base, against which a file's names are resolved.

    Attributes:
        networks: the base's, by prefix.
        key_names: as its family gives them.
        labels: what programs call the base's kind; None: it is not known.
    """

    networks: Mapping[str, nn.Module]
    key_names: KeyNames = field(default_factory=dict)
    labels: BaseLabels | None = None

    @classmethod
    def of(cls, networks: Mapping[str, nn.Module], key_names: KeyNames | None = None) -> BaseNames:
        """Return the names of these networks' layers; families' networks tell what files call them."""
        if not isinstance(networks, BaseNetworks):
            return cls(networks, key_names or {})
        return cls(networks, networks.key_names if key_names is None else key_names, networks.labels)


@dataclass(frozen=True)
class FormatFile:
    """One file of a format.

    Attributes:
        name: of the file, relative to the folder that it is put into.
        tensors: by the format's names.
        metadata: the format's own, without what is said of the adapter.
        texts: further text files, by their names relative to the file's own folder.
    """

    name: str
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    texts: Mapping[str, str] = field(default_factory=dict)


class Format(Protocol):
    """A format of adapter files that can be written."""

    @property
    def name(self) -> str:
        """What the format is called in messages and by users."""

    @property
    def metadata_keys(self) -> tuple[str, ...]:
        """Keys of a file's metadata that belong to the format, not to the adapter."""

    def file_name(self, stem: str) -> str:
        """Return what an adapter's file is called, or its folder where the format takes several files.

        Args:
            stem: the adapter's own name.
        """

    def write(self, weights: AdapterWeights, base: BaseNames | None = None, stem: str = STEM) -> tuple[FormatFile, ...]:
        """Return an adapter's files; the name of each is ``file_name(stem)`` or in that folder.

        Args:
            weights: the adapter, whose numbers need not be there.
            base: whose layers it is of; formats whose names need no base do without.
            stem: the adapter's own name.

        Raises:
            UserError: the format has no place for such an adapter.
        """
