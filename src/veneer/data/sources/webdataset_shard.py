"""What one tar in the form of the webdataset library holds: pictures, their captions, and what is left out.

The members of one picture share their name up to the first dot, folders counted: ``a/1.jpg``, ``a/1.txt`` and
``a/1.json``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

from veneer.config.source_config import SourceConfig
from veneer.data.location import MAX_BYTES
from veneer.data.seen import Seen
from veneer.data.sources.caption_files import CAPTION_ENDINGS
from veneer.data.sources.json_captions import captions_of, is_captioned, parse_json
from veneer.data.sources.tar_index import BrokenTar, Member, read_members
from veneer.data.sources.tree import EXTENSIONS
from veneer.data.unreadable import Unreadable, check_size
from veneer.data.wording import few
from veneer.errors import UserError
from veneer.files import decode_text

__all__ = ["FIELDS", "PackedPicture", "ShardContent", "read_shard"]

FIELDS = tuple(sorted(ending[1:] for ending in EXTENSIONS))
"""Fields that are pictures."""
_JSON = "json"
_TEXTS = (*(ending[1:] for ending in CAPTION_ENDINGS), _JSON)
"""Fields that are captions, in the order in which several of one picture are read."""
_MAX_TEXT = 2**20  # bytes of one picture's captions
_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)
_MASK = re.compile(rf"mask(label)?\.({'|'.join(FIELDS)})")
"""Fields that are masks: ``a.mask.png`` beside ``a.png``."""
_META = re.compile(r"__[^/]*__($|/)")
"""Names that webdataset keeps for itself."""


@dataclass(frozen=True, slots=True)
class PackedPicture:
    """A picture in a tar.

    Attributes:
        name: of its member.
        offset: of its first byte.
        size: in bytes.
        captions: what its texts say of it.
        captions_at: name of the member that says it; of none, its own.
        seen: what decoding it told; None: it was not read.
        mask: name, first byte and size of the member that is its mask; None: it has none, or none are asked for.
    """

    name: str
    offset: int
    size: int
    captions: tuple[str, ...]
    captions_at: str
    seen: Seen | None = None
    mask: tuple[str, int, int] | None = None


@dataclass
class ShardContent:
    """What a tar holds.

    Attributes:
        pictures: in order.
        rejected: names of members or, for the whole, "", each with the reason why it is left out.
        unread: the fields of members that are not read.
    """

    pictures: list[PackedPicture] = field(default_factory=list)
    rejected: list[tuple[str, str]] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)


def read_shard(
    file: BinaryIO, config: SourceConfig, where: object, see: Callable[[bytes], Seen] | None = None
) -> ShardContent:
    """Read what a tar holds, from its beginning to its end.

    Args:
        file: the tar.
        config: how captions are read, and which fields are the picture's and the text's.
        where: its name, for messages.
        see: decodes a picture where all are read in passing, for they lie far away.

    Raises:
        UserError: which of several fields is the picture cannot be told.
    """
    content = ShardContent()
    groups: dict[str, _Group] = {}
    for key, name, member in _fields(file, content):
        group = groups.setdefault(key, _Group())
        if name in group.members:
            content.rejected.append((member.name, "the archive has another member of this name"))
            continue
        group.members[name] = member
        if _is_text(name, config) and member.size <= _MAX_TEXT:
            group.texts[name] = member.read()
        elif see is not None and _may_be_picture(name, config):
            group.seen[name] = _seen(member, see)
    unread: dict[str, None] = {}
    for key, group in groups.items():
        group.take_masks(config)
        picture = _picture_field(group.members, config, f"{where}/{key}")
        unread |= dict.fromkeys(name for name in group.members if name != picture and name not in group.texts)
        if picture is not None:
            _add(content, group, picture, config)
    content.unread += unread
    return content


@dataclass
class _Group:
    """The members of one name, the bytes of texts among them and what was seen of pictures, by fields."""

    members: dict[str, Member] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)
    seen: dict[str, Seen | Unreadable] = field(default_factory=dict)
    masks: list[Member] = field(default_factory=list)

    def take_masks(self, config: SourceConfig) -> None:
        """Take what is named as a mask from the members, where masks beside the pictures are asked for."""
        if config.masks == "beside":
            self.masks = [self.members.pop(name) for name in [*self.members] if _MASK.fullmatch(name)]


def _fields(file: BinaryIO, content: ShardContent) -> Iterator[tuple[str, str, Member]]:
    """Yield key, field and member; what cannot be read goes to what is rejected."""
    try:
        for member in read_members(file):
            named = _NAME.fullmatch(member.name)
            if named is None or _META.match(member.name):
                continue
            key, name = named[1], named[2].lower()
            if member.fault is None:
                yield key, name, member
            elif name.rpartition(".")[2] in (*FIELDS, *_TEXTS):
                content.rejected.append((member.name, member.fault))
    except BrokenTar as error:
        content.rejected.append(("", str(error)))


def _is_text(name: str, config: SourceConfig) -> bool:
    return name == config.columns.text if config.columns.text else name.rpartition(".")[2] in _TEXTS


def _picture_field(members: Mapping[str, Member], config: SourceConfig, where: str) -> str | None:
    """Return the field that is the picture; None if there is none."""
    if config.columns.image:
        return config.columns.image if config.columns.image in members else None
    plain = [name for name in members if name in FIELDS]
    # a name with dots of its own, such as a.v2.jpg
    pictures = plain or [name for name in members if name.rpartition(".")[2] in FIELDS]
    if len(pictures) > 1:
        remedy = f"say which one is trained on: columns: {{image: {pictures[0]}}} in data.sources"
        what = f"several pictures of one name up to the first dot: {few(pictures)}"
        raise UserError(what, code="data.several_pictures", where=where, remedy=remedy)
    return pictures[0] if pictures else None


def _may_be_picture(name: str, config: SourceConfig) -> bool:
    return name == config.columns.image if config.columns.image else name.rpartition(".")[2] in FIELDS


def _seen(member: Member, see: Callable[[bytes], Seen]) -> Seen | Unreadable:
    try:
        check_size(member.size, MAX_BYTES)
        return see(member.read())
    except Unreadable as fault:
        return fault


def _add(content: ShardContent, group: _Group, field_name: str, config: SourceConfig) -> None:
    picture, seen = group.members[field_name], group.seen.get(field_name)
    if isinstance(seen, Unreadable):
        content.rejected.append((picture.name, str(seen)))
        return
    if len(group.masks) > 1:
        content.rejected.append((picture.name, f"several masks of its name: {few([one.name for one in group.masks])}"))
        return
    captions: dict[str, None] = {}
    at = picture.name
    try:
        for name in sorted(group.texts, key=_rank):
            found = _captions(name, group.texts[name], config, group.members[name].name)
            at = group.members[name].name if found and not captions else at
            captions |= dict.fromkeys(found)
    except UserError as error:
        content.rejected.append((picture.name, f"its captions {error.where}: {error.what}"))
        return
    mask = next(((one.name, one.offset, one.size) for one in group.masks), None)
    content.pictures.append(PackedPicture(picture.name, picture.offset, picture.size, tuple(captions), at, seen, mask))


def _rank(name: str) -> tuple[int, str]:
    ending = name.rpartition(".")[2]
    return (_TEXTS.index(ending) if ending in _TEXTS else len(_TEXTS), name)


def _captions(name: str, content: bytes, config: SourceConfig, where: str) -> Iterable[str]:
    text = decode_text(content, where)
    if name.rpartition(".")[2] == _JSON:
        record = parse_json(text, where)
        return captions_of(record, where) if isinstance(record, dict) and is_captioned(record) else ()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines if config.captions == "lines" else filter(None, (" ".join(lines),))
