"""Check a base's folder in diffusers' layout, part by part, before the libraries load it.

A library that meets a broken part fails in a way of its own, late, and in words about itself. What is checked here is
what every part needs, in the order in which a person would look: is it there, is it what its name says, is it whole.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from veneer.errors import UserError
from veneer.family.base_index import INDEX, find_index, is_in_index, read_index_file
from veneer.family.file_content import check_config, check_content, fetch_again
from veneer.family.shards import WeightFiles, find_weights

__all__ = ["PipelineFolder"]

_DIFFUSERS, _TRANSFORMERS = ("diffusion_pytorch_model",), ("model", "pytorch_model")
_SCHEDULER_CONFIG, _TOKENIZER_CONFIG, _WHOLE_TOKENIZER = (
    "scheduler_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
)
_ONE_BASE = "use a base whose parts are those of its pipeline"


class PipelineFolder:
    """A base in diffusers' layout.

    Args:
        path: its folder.

    Raises:
        UserError: its index cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.index_file = find_index(path) or path / INDEX
        self.index = read_index_file(self.index_file)

    def lacks(self, name: str) -> bool:
        """Return whether the index says that the base comes without a part."""
        return not is_in_index(self.index, name)

    def check_network(self, name: str, kind: type[Any]) -> WeightFiles:
        """Check a network's class, configuration and weight files; return those that it is to be read from.

        Args:
            name: the network's, which is that of its folder.
            kind: its class, of diffusers or transformers.

        Raises:
            UserError: something of it is missing, broken or another network's.
        """
        self._check_class(name, kind.__name__)
        check_network_config(self.path / name, kind)
        return check_network_weights(self.path / name, kind)

    def check_tokenizer(self, name: str) -> type[Any]:
        """Check a tokenizer's files; return its class.

        Raises:
            UserError: one is missing or broken.
        """
        from transformers import PreTrainedTokenizerBase

        kind = self._class_of(name, self._tokenizer_entry(name), PreTrainedTokenizerBase, "tokenizer")
        folder = self._folder(name)
        check_config(folder / _TOKENIZER_CONFIG)
        if (folder / _WHOLE_TOKENIZER).exists():
            check_config(folder / _WHOLE_TOKENIZER)
            return kind
        for file in getattr(kind, "vocab_files_names", {}).values():
            if file != _WHOLE_TOKENIZER:
                check_config(folder / file) if file.endswith(".json") else check_content(folder / file)
        _check_merges(folder)
        return kind

    def _tokenizer_entry(self, name: str) -> tuple[str, str]:
        """Return library and class of a tokenizer; of a processor, which prepares pictures as well, of its tokenizer.

        A processor needs torchvision, its tokenizer does not.
        """
        library, class_name = self._entry(name)
        if library == "transformers" and class_name.endswith("Processor"):
            named = check_config(self._folder(name) / _TOKENIZER_CONFIG).get("tokenizer_class")
            return library, named if isinstance(named, str) else class_name
        return library, class_name

    def check_scheduler(self, name: str = "scheduler") -> type[Any]:
        """Check a scheduler's configuration; return its class.

        Raises:
            UserError: it is missing or broken.
        """
        from diffusers import SchedulerMixin

        kind = self.class_of(name, SchedulerMixin, "scheduler")
        check_config(self._folder(name) / _SCHEDULER_CONFIG)
        return kind

    def class_of(self, name: str, kind_of: type[Any], title: str) -> type[Any]:
        """Return the class that the index gives a part, of diffusers or transformers; no other code is run.

        Args:
            name: the part's.
            kind_of: what it must be derived from.
            title: what such classes are called.

        Raises:
            UserError: it gives none, or one that is not there.
        """
        return self._class_of(name, self._entry(name), kind_of, title)

    def _class_of(self, name: str, entry: tuple[str, str], kind_of: type[Any], title: str) -> type[Any]:
        library, class_name = entry
        if library not in ("diffusers", "transformers"):
            what = f"its {name} is a {library}.{class_name}, code of another's that is not run"
            remedy = "use a base whose parts are of diffusers and transformers"
            raise UserError(what, code="base.foreign_part", where=self.index_file, remedy=remedy)
        module = importlib.import_module(library)
        kind = getattr(module, class_name, None)
        if not isinstance(kind, type):
            what = f"its {name} is a {class_name}, which {library} {module.__version__} does not have"
            remedy = f"update {library}, or correct the name"
            raise UserError(what, code="base.unknown_class", where=self.index_file, remedy=remedy)
        if not issubclass(kind, kind_of):
            what = f"its {name} is a {class_name}, which is no {title}"
            raise UserError(what, code="base.foreign_part", where=self.index_file, remedy=_ONE_BASE)
        return kind

    def _check_class(self, name: str, wanted: str) -> None:
        library, found = self._entry(name)
        if found != wanted:
            what = f"its {name} is a {library}.{found}, where this family has a {wanted}"
            raise UserError(what, code="base.foreign_part", where=self.index_file, remedy=_ONE_BASE)

    def _entry(self, name: str) -> tuple[str, str]:
        entry = self.index.get(name)
        if isinstance(entry, list) and len(entry) == 2 and all(isinstance(each, str) for each in entry):
            return entry[0], entry[1]
        what = f"names no {name}, without which there is no base"
        remedy = (
            f"{fetch_again(self.index_file)}, or name one that it was published without: base.components.{name}=PATH"
        )
        raise UserError(what, code="base.broken_index", where=self.index_file, remedy=remedy)

    def _folder(self, name: str) -> Path:
        return _part_folder(self.path / name)


def _check_merges(folder: Path) -> None:
    """Check that a byte-pair tokenizer has the merges of all its words: without them it splits text into letters.

    Raises:
        UserError: some are missing.
    """
    merges, vocabulary = folder / "merges.txt", folder / "vocab.json"
    if not merges.exists() or not vocabulary.exists():
        return
    lines = merges.read_bytes().decode("utf-8", "replace").splitlines()
    own = sum(len(line.split()) == 2 and not line.startswith("#version") for line in lines)
    joined = [word for word in check_config(vocabulary) if len(word.removesuffix("</w>")) > 1]
    needed = sum(not (word.startswith("<") and word.endswith(">")) for word in joined)
    if own < needed:
        what = f"has {own:,} of the {needed:,} merges that vocab.json needs"
        raise UserError(what, code="base.cut_short", where=merges, remedy=fetch_again(merges))


def _part_folder(folder: Path) -> Path:
    if not folder.is_dir():
        index = find_index(folder.parent) or Path(INDEX)
        what = f"has no folder {folder.name}, a part that its {index.name} names"
        raise UserError(what, code="base.part_missing", where=folder.parent, remedy=fetch_again(folder))
    return folder


def check_network_config(folder: Path, kind: type[Any]) -> dict[str, Any]:
    """Check that a network's configuration is there and of its class; return it.

    Raises:
        UserError: it is not.
    """
    file = _part_folder(folder) / "config.json"
    config = check_config(file)
    if _is_of_diffusers(kind):
        found, wanted = config.get("_class_name"), kind.__name__
    else:
        found, wanted = config.get("model_type"), kind.config_class.model_type
        if found == getattr(kind.config_class, "base_config_key", "") or found in _types_around(wanted):
            found = wanted
    if found is not None and found != wanted:
        what = f"is the configuration of a {found}, where a {wanted} is wanted"
        raise UserError(what, code="base.other_config", where=file, remedy=fetch_again(file))
    return config


def _types_around(model_type: str) -> Collection[str]:
    """Return the types of models that have one of a type within, whose configurations do as well: clip of its text."""
    return {model_type.removesuffix("_text_model"), model_type.removesuffix("_text")}


def check_network_weights(folder: Path, kind: type[Any]) -> WeightFiles:
    """Check that a network's weight files are there and whole; return those that are read.

    Raises:
        UserError: they are not.
    """
    names = sorted(path.name for path in _part_folder(folder).iterdir())
    found = find_weights(names, _DIFFUSERS if _is_of_diffusers(kind) else _TRANSFORMERS)
    if not found:
        raise _no_weights(folder, names, kind)
    found[0].check(folder)
    return found[0]


def _no_weights(folder: Path, names: Collection[str], kind: type[Any]) -> UserError:
    stem = (_DIFFUSERS if _is_of_diffusers(kind) else _TRANSFORMERS)[0]
    wanted = folder / f"{stem}.safetensors"
    if shards := [name for name in names if name.startswith(f"{stem}-") and name.endswith(".safetensors")]:
        what = f"holds {len(shards)} shards of weights, and no {wanted.name}.index.json that lists them"
        return UserError(what, code="base.no_weights", where=folder, remedy=fetch_again(Path(f"{wanted}.index.json")))
    others = [name for name in names if name.endswith((".safetensors", ".bin", ".pt", ".ckpt", ".msgpack", ".h5"))]
    if others:
        what = f"holds no {wanted.name}, but {others[0]}"
        remedy = (
            f"rename it if it is the {folder.name}'s" if others[0].endswith(".safetensors") else fetch_again(wanted)
        )
        return UserError(what, code="base.no_weights", where=folder, remedy=remedy)
    return UserError("is missing", code="base.file_missing", where=wanted, remedy=fetch_again(wanted))


def _is_of_diffusers(kind: type[Any]) -> bool:
    from diffusers import ModelMixin

    return issubclass(kind, ModelMixin)
