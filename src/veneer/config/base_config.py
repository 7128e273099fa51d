"""The section ``base`` of a config: a text, or a place and those of parts that lie elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, PlainSerializer, Tag

from veneer.config.base_name import BaseName, as_plain
from veneer.config.section import Section
from veneer.config.values import Folder, FolderOrId, NonBlank

__all__ = ["Base", "BaseConfig"]


def _as_mapping(value: object) -> object:
    """Turn a base that has components into the mapping that it is written as."""
    return as_plain(value) if isinstance(value, BaseName) else value


def _text_or_parts(value: object) -> str:
    return "<parts>" if isinstance(value, (dict, BaseConfig)) else "<text>"


def _as_base(value: object) -> BaseName:
    if isinstance(value, BaseConfig):
        return BaseName(value.path, {name: str(path) for name, path in value.components.items()}, value.expert)
    return BaseName(str(value))


class BaseConfig(Section):
    """A base whose parts do not all lie in one place."""

    text_key: ClassVar[str] = "path"
    """The key that is meant where the section is given as a text."""

    path: FolderOrId
    """What ``base`` is without components: a diffusers folder, a file with the denoiser and perhaps further parts, or a
    hub id."""
    components: dict[NonBlank, Folder] = Field(default_factory=dict)
    """Where a part is taken from instead, by the pipeline's name of it: ``vae``, ``text_encoder``, ``tokenizer``; a
    file, the part's folder, or a diffusers folder that has it."""
    expert: Literal["high_noise", "low_noise"] | None = None
    """Which denoiser is trained, of a base that has one for much noise and one for little (Wan 2.2 A14B)."""


if TYPE_CHECKING:
    Base = BaseName
else:
    Base = Annotated[
        Annotated[FolderOrId, Tag("<text>")] | Annotated[BaseConfig, Tag("<parts>")],
        Discriminator(_text_or_parts),
        BeforeValidator(_as_mapping),
        AfterValidator(_as_base),
        PlainSerializer(as_plain),
    ]
