"""The dataset file of kohya's scripts: a TOML that names folders, their repeats and the ending of their captions.

A key counts for all folders where it stands in ``[general]``, for those of a dataset in ``[[datasets]]``, for one
folder in ``[[datasets.subsets]]``; the nearest one wins. Of the many keys, those of :data:`READ` say which pictures and
captions there are, and what is done to tags. All others are about training and are left to the run's own configuration,
which a note says, with the names that they have there.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from veneer.config.source_config import SourceConfig
from veneer.data.sources.caption_files import CaptionFiles
from veneer.data.sources.kohya_metadata import read_kohya_metadata
from veneer.data.sources.masks import Masks, with_masks
from veneer.data.sources.protocol import Entry, Listing
from veneer.data.sources.tree import Tree
from veneer.data.sources.unread import find_unread
from veneer.data.tags import TagRules
from veneer.errors import UserError
from veneer.files import read_utf8

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["READ", "KohyaTomlSource", "is_dataset_file"]

READ: Mapping[str, tuple[type, Any]] = {
    "image_dir": (str, None),
    "num_repeats": (int, 1),
    "class_tokens": (str, None),
    "caption_extension": (str, ".caption"),
    "metadata_file": (str, None),
    "caption_prefix": (str, None),
    "caption_suffix": (str, None),
    "alpha_mask": (bool, False),
    "conditioning_data_dir": (str, None),
    "shuffle_caption": (bool, False),
    "keep_tokens": (int, 0),
    "caption_tag_dropout_rate": (float, 0.0),
    "caption_separator": (str, ","),
}
"""The keys of a folder that are read: each one's type, and what kohya's scripts take where it is missing."""
_TAGS = {
    "shuffle_caption": "shuffle",
    "keep_tokens": "keep",
    "caption_tag_dropout_rate": "dropout",
    "caption_separator": "separator",
}
"""Those of them that say what is done to tags, by what the rules of a source call them."""
_OURS: Mapping[str, str] = {
    "caption_dropout_rate": "data.caption_dropout={}",
    "flip_aug": "data.flip=true",
    "random_crop": "data.crop=random",
    "color_aug": "data.color_jitter",
    "resolution": "data.resolution={}",
    "batch_size": "train.batch_size={}",
}
"""Keys that Veneer has for all pictures of a run, and what they are called there."""
_KINDS = {str: "a text", int: "a whole number", bool: "true or false", float: "a number"}
_TABLES = re.compile(rb"^\s*\[\[\s*datasets\s*(\.\s*subsets\s*)?\]\]", re.MULTILINE)
_HEAD = 2**16  # bytes of a file that are looked at
_REFUSED = {
    "is_reg": "name regularisation pictures in data.prior",
}


class KohyaTomlSource:
    """A ``.toml`` file in the form of kohya's dataset configuration."""

    def list_pictures(self, config: SourceConfig) -> Listing | None:
        """List the pictures of all folders that the file names, in its order; None if this is not a TOML file."""
        path = config.path
        if not is_dataset_file(path):
            return None
        content = _parse(path)
        subsets = list(_subsets(content, path))
        if not subsets:
            what = "names no folder: it has no [[datasets.subsets]]"
            remedy = "name the file of its --dataset_config" if "pretrained_model_name_or_path" in content else None
            raise UserError(what, code="data.toml_without_subsets", where=path, remedy=remedy)
        listings = [_Subset(subset, path, where).list_pictures(config) for subset, where in subsets]
        notes = _note_ignored([subset for subset, _ in subsets], path)
        entries = tuple(entry for listing in listings for entry in listing.entries)
        rejected = tuple(one for listing in listings for one in listing.rejected)
        notes += dict.fromkeys(note for listing in listings for note in listing.notes)
        unread = {one.path: one for listing in listings for one in listing.unread}
        return Listing(entries, rejected, tuple(notes), tuple(unread.values()))


def _note_ignored(subsets: Sequence[Mapping[str, Any]], path: Path) -> list[str]:
    """Note the keys that are not read: with their own names where a run has them, for all its pictures."""
    keys = sorted({key for subset in subsets for key in subset if key not in READ})
    ours = dict.fromkeys(_told_ours(subset, key) for key in keys if key in _OURS for subset in subsets)
    others = [key for key in keys if key not in _OURS]
    notes = [f"{path}: these count for a whole run, so set them there: {', '.join(filter(None, ours))}"]
    notes = notes if any(ours) else []
    return notes + ([f"{path}: not read, set it in the run's configuration: {', '.join(others)}"] if others else [])


def _told_ours(subset: Mapping[str, Any], key: str) -> str:
    """Return what to set in a run in the place of a key; nothing where the key asks for nothing."""
    value = subset.get(key)
    if not value:
        return ""
    return f"{key} = {json.dumps(value, default=str)} as {_OURS[key].format(_as_setting(value))}"


def _as_setting(value: object) -> str:
    """Return a value as it is written on the command line: of a size, width by height."""
    return "x".join(map(str, value)) if isinstance(value, list) else str(value)


def is_dataset_file(path: Path) -> bool:
    """Check whether a path is a TOML file, by its ending, or by the tables that a dataset file has."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return path.suffix.lower() == ".toml" or bool(_TABLES.search(file.read(_HEAD)))
    except OSError:
        return False


def _parse(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = tomllib.loads(read_utf8(path))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UserError(f"not TOML: {error}", code="data.not_toml", where=path) from None
    return content


def _subsets(content: Mapping[str, Any], path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield each folder's keys, with those that it inherits, and the place to name in messages."""
    general = _table(content.get("general", {}), f"{path}: general")
    for number, dataset in enumerate(_tables(content.get("datasets", []), f"{path}: datasets")):
        inherited = {**general, **{key: value for key, value in dataset.items() if key != "subsets"}}
        where = f"{path}: datasets[{number}].subsets"
        for index, subset in enumerate(_tables(dataset.get("subsets", []), where)):
            yield {**inherited, **subset}, f"{where}[{index}]"


def _tables(value: object, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise UserError("should be a list of tables, in [[ ]]", code="data.toml_wrong_type", where=where)
    return [_table(item, where) for item in value]


def _table(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError("should be a table", code="data.toml_wrong_type", where=where)
    return value


@dataclass(frozen=True)
class _Subset:
    """One folder of the file.

    Attributes:
        keys: its own, and those that it inherits.
        path: the file.
        where: the place to name in messages.
    """

    keys: Mapping[str, Any]
    path: Path
    where: str

    def list_pictures(self, config: SourceConfig) -> Listing:
        """List the pictures in the folder; those of folders below it are not its own, as in kohya's scripts."""
        self._refuse_unsupported()
        repeats, extension = self._value("num_repeats"), self._value("caption_extension")
        if repeats < 1:
            raise self._fault("num_repeats should be at least 1")
        if not re.fullmatch(r"\.[^/\\\0]+", extension):
            raise self._fault("caption_extension should be an ending with its dot, such as '.txt'")
        folder = self._folder()
        tree = Tree.walk(folder, config.follow_links)
        if self._value("metadata_file"):
            return self._list_named(tree, config, repeats)
        own = replace(tree, files=tuple(file for file in tree.files if file.parent == folder))
        captions = CaptionFiles(own, config.captions, (extension.lower(),))
        listing = own.list_pictures(lambda picture: self._complete(captions.describe(picture), repeats, config))
        read = [self.path, *captions.read]
        why_not = f"caption_extension is {extension!r} in {self.where}"
        unread = find_unread(own, read, lambda _: why_not)
        rejected = (*listing.rejected, *own.find_misnamed(read))
        notes = (*listing.notes, *captions.notes())
        listing = replace(listing, rejected=rejected, notes=notes, unread=tuple(unread))
        return with_masks(listing, folder, self._masks(), config.follow_links)

    def _list_named(self, tree: Tree, config: SourceConfig, repeats: int) -> Listing:
        """List the pictures in the folder and below it that the ``metadata_file`` names."""
        file = self.path.parent / Path(self._value("metadata_file")).expanduser()
        entries, notes = read_kohya_metadata(file, tree)

        def describe(picture: Path) -> Sequence[Entry] | str:
            entry = entries.get(picture)
            return f"{file.name} does not name it" if entry is None else [self._completed(entry, repeats, config)]

        listing = tree.list_pictures(describe)
        unread = find_unread(tree, [self.path, file], lambda _: f"{file.name} speaks for their pictures")
        listing = replace(listing, notes=(*listing.notes, *notes), unread=tuple(unread))
        return with_masks(listing, tree.folder, self._masks(), config.follow_links)

    def _masks(self) -> Masks:
        """Return where the masks are: as in kohya's scripts a folder of them counts more than the alpha channels."""
        folder = self._value("conditioning_data_dir")
        if folder:
            return self.path.parent / Path(folder).expanduser()
        return "alpha" if self._value("alpha_mask") else None

    def _refuse_unsupported(self) -> None:
        for key, remedy in _REFUSED.items():
            if self.keys.get(key):
                raise UserError(f"{key} is not read", code="data.toml_unsupported", where=self.where, remedy=remedy)

    def _folder(self) -> Path:
        """Return the folder; one that is not absolute is relative to the TOML file, wherever one stands."""
        name = self._value("image_dir")
        if not name:
            likely = get_close_matches("image_dir", self.keys, n=1)
            remedy = f"call {likely[0]!r} 'image_dir'" if likely else None
            raise UserError("no 'image_dir'", code="data.toml_without_folder", where=self.where, remedy=remedy)
        return self.path.parent / Path(name).expanduser()

    def _complete(self, described: Sequence[Entry] | str, repeats: int, config: SourceConfig) -> Sequence[Entry] | str:
        return (
            described
            if isinstance(described, str)
            else [self._completed(entry, repeats, config) for entry in described]
        )

    def _completed(self, entry: Entry, repeats: int, config: SourceConfig) -> Entry:
        """Return a picture with the tokens of its class where it has no caption, and with prefix and suffix."""
        tokens, prefix, suffix = (self._value(key) for key in ("class_tokens", "caption_prefix", "caption_suffix"))
        captions = entry.captions or ((tokens,) if tokens else ())
        # a space parts them from the caption, as in kohya's scripts
        whole = tuple(" ".join(filter(None, (prefix, caption, suffix))) for caption in captions)
        return replace(entry, captions=whole, repeats=repeats, tag_rules=self._tag_rules(config))

    def _tag_rules(self, config: SourceConfig) -> TagRules | None:
        """Return what is done to tags by the file and, where it is silent, by the source; None: it says nothing."""
        said = {name: self._value(key) for key, name in _TAGS.items() if key in self.keys}
        if not said:
            return None
        rules = replace(TagRules.of(config), **said)
        if rules.keep < 0 or not 0 <= rules.dropout <= 1 or not rules.separator:
            what = "keep_tokens should be at least 0, caption_tag_dropout_rate from 0 to 1, caption_separator not empty"
            raise self._fault(what)
        return rules

    def _value(self, key: str) -> Any:
        kind, default = READ[key]
        value = self.keys.get(key, default)
        kinds = (int, float) if kind is float else kind
        # bool is a kind of int, but true is no count
        if value is not None and (not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool)):
            what = f"{key} should be {_KINDS[kind]}"
            raise UserError(what, code="data.toml_wrong_type", where=self.where)
        return value

    def _fault(self, what: str) -> UserError:
        return UserError(what, code="data.toml_wrong_value", where=self.where)
