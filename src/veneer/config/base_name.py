"""The base of a run: where it is, and where those of its parts are that other files have."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

__all__ = ["BaseName", "as_plain", "components_of", "expert_of"]


class BaseName(str):
    """The text that a config's ``base`` is, which also has the places of components.

    Whoever needs to know where the base is takes it for a text; who loads it asks :func:`components_of`.

    Args:
        path: ``bundled``, a folder, a file, or a hub id.
        components: file or folder by the pipeline's name of the part.
        expert: which denoiser is trained, of a base that has two.
    """

    __slots__ = ("components", "expert")

    components: Mapping[str, str]
    expert: str | None

    def __new__(
        cls, path: str, components: Mapping[str, str] = MappingProxyType({}), expert: str | None = None
    ) -> BaseName:
        """Make the text."""
        made = super().__new__(cls, path)
        made.components, made.expert = dict(components), expert
        return made

    def __getnewargs__(self) -> Any:
        """Return what a copy is made of."""
        return str(self), dict(self.components), self.expert

    def __eq__(self, other: object) -> bool:
        """Return whether place, components and expert are the same."""
        own = str(self), self.components, self.expert
        return isinstance(other, str) and own == (str(other), components_of(other), expert_of(other))

    def __ne__(self, other: object) -> bool:
        """Return whether place, components or expert are others."""
        return not self == other

    def __hash__(self) -> int:
        """Return the hash of the text alone."""
        return super().__hash__()


def as_plain(base: str) -> str | dict[str, Any]:
    """Return a base as a config has it: a text, or a mapping if it has components or an expert."""
    components, expert = dict(components_of(base)), expert_of(base)
    parts = {**({"components": components} if components else {}), **({"expert": expert} if expert else {})}
    return {"path": str(base), **parts} if parts else str(base)


def components_of(base: str) -> Mapping[str, str]:
    """Return the places of the parts of a base that are taken from elsewhere, by name."""
    return base.components if isinstance(base, BaseName) else {}


def expert_of(base: str) -> str | None:
    """Return which denoiser of a base is trained; None: it has one, or nobody said."""
    return base.expert if isinstance(base, BaseName) else None
