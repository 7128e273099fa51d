"""What of an adapter's folder is given to others: its files, its card, its pictures, and nothing of this machine."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from veneer.config.document import read_yaml, write_yaml
from veneer.config.paths import names_only
from veneer.errors import UserError
from veneer.evaluate.results import EVALUATION
from veneer.family.registry import BUNDLED
from veneer.files import read_utf8
from veneer.run.folder import (
    CARD,
    CHECKPOINTS,
    CONFIG,
    COPYING,
    EVALUATED,
    GALLERY,
    LOG,
    PLAN,
    REPORT,
    REPORT_DATA,
    SAMPLES,
    SHEET,
    TENSORBOARD,
)
from veneer.sample.gallery import gallery_files
from veneer.weights.adapter_path import BEST, FILE_NAME
from veneer.weights.card import CardFacts, CardFile, model_card
from veneer.weights.licenses import license_of
from veneer.weights.summary import AdapterInfo, info

__all__ = ["PublicFile", "Publication", "adapter_files", "publication_of"]

_PEFT_CONFIG, _PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class PublicFile:
    """A file that is given to others.

    Attributes:
        name: its path there, with slashes.
        content: where it lies here, or what it says.
        about: what it is, in words.
    """

    name: str
    content: Path | bytes
    about: str

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


@dataclass(frozen=True)
class Publication:
    """An adapter as others get it.

    Attributes:
        files: in the order of their names.
        adapters: what each of the adapter's files is, by its name among them.
        left_out: files of the folder that stay here, and why.
        doubts: sentences on what the owner may not want others to see.
    """

    files: tuple[PublicFile, ...]
    adapters: dict[str, AdapterInfo]
    left_out: tuple[tuple[str, str], ...] = ()
    doubts: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """How many bytes all files have."""
        return sum(file.size for file in self.files)


def publication_of(place: Path) -> Publication:
    """Return what of an adapter is given to others; it is looked at, and nothing is written.

    Args:
        place: the adapter's file, or the folder of its run.

    Raises:
        UserError: there is no adapter, or it cannot be read.
    """
    folder = place if place.is_dir() else None
    adapters = adapter_files(place)
    files = [_adapter_file(path, folder or path.parent, each) for path, each in adapters.items()]
    if folder is not None:
        files += [_beside(folder, path) for path in adapters if path.name == _PEFT_WEIGHTS]
        files += _shown(folder)
    infos = {_name(path, folder or path.parent): each for path, each in adapters.items()}
    if not any(file.name == CARD for file in files):
        card = _card(place, infos)
        files.append(PublicFile(CARD, card.encode(), "a model card of what the file says"))
    doubts = _doubts(files, infos)
    return Publication(tuple(sorted(files, key=lambda file: file.name)), infos, _left_out(folder, files), doubts)


def adapter_files(place: Path) -> dict[Path, AdapterInfo]:
    """Return the adapter's files in a folder, or the one file, each with what it is.

    Raises:
        UserError: there is none, or one cannot be read.
    """
    if not place.is_dir():
        return {place: info(place)}
    peft = [path for depth in ("*", "*/*") for path in sorted(place.glob(f"{depth}/{_PEFT_WEIGHTS}"))]
    usual = [place / FILE_NAME, *sorted(place.glob("*.safetensors")), *peft]
    paths = dict.fromkeys(path for path in usual if path.is_file() and path.name != BEST)
    if not paths:
        what = "holds no adapter's file"
        raise UserError(what, code="weights.no_adapter_file", where=place, remedy="name the file itself")
    return {path: info(path) for path in paths}


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _adapter_file(path: Path, folder: Path, about: AdapterInfo) -> PublicFile:
    return PublicFile(_name(path, folder), path, f"the adapter, {about.format}")


def _beside(folder: Path, weights: Path) -> PublicFile:
    """Return peft's config, without which its tensors have no strength."""
    path = weights.with_name(_PEFT_CONFIG)
    if not path.is_file():
        raise UserError("is not there", code="publish.no_peft_config", where=path, remedy="convert the adapter again")
    return PublicFile(_name(path, folder), path, "peft's config of it")


def _shown(folder: Path) -> list[PublicFile]:
    """Return what lies beside an adapter and shows it."""
    found = []
    if (folder / CARD).is_file():
        found.append(PublicFile(CARD, folder / CARD, "the model card"))
    for path in gallery_files(folder / GALLERY):
        found.append(PublicFile(_name(path, folder), path, "a picture by the adapter, with its prompt"))
    if (folder / SHEET).is_file():
        found.append(PublicFile(SHEET, folder / SHEET, "base and adapter side by side; may show held-out pictures"))
    if (folder / CONFIG).is_file():
        values = names_only(read_yaml(read_utf8(folder / CONFIG), CONFIG).values)
        found.append(PublicFile(CONFIG, write_yaml(values).encode(), "the configuration, names instead of paths"))
    return found


_REASONS = {
    BEST: "the adapter of an earlier step",
    CHECKPOINTS: "state of the training",
    COPYING: "shows pictures that were trained on",
    EVALUATED: "pictures of the measurement",
    EVALUATION: "scores, which the card tells",
    LOG: "log, with paths",
    PLAN: "plan",
    "prior": "pictures of the class",
    REPORT: "report, with pictures that were trained on",
    REPORT_DATA: "report",
    SAMPLES: "pictures of earlier steps",
    TENSORBOARD: "curves",
}
"""Why files of a run stay here; all others are none that is known to be the adapter's."""


def _left_out(folder: Path | None, files: list[PublicFile]) -> tuple[tuple[str, str], ...]:
    if folder is None:
        return ()
    taken = {file.name.partition("/")[0] for file in files}
    names = sorted(path.name for path in folder.iterdir() if path.name not in taken)
    return tuple(
        (name, _REASONS.get(name, "not known to be the adapter's")) for name in names if not name.startswith(".")
    )


_REST = r"[^\s\"'`|<>]"
_PATH = re.compile(
    rf"(?<![\w:/.])/(?:home|Users|root|mnt|media|workspace|data|tmp)/{_REST}+|\b[A-Za-z]:[\\/](?!/){_REST}+"
)
"""A path of a machine, as far as a text shows one."""


def _doubts(files: list[PublicFile], adapters: dict[str, AdapterInfo]) -> tuple[str, ...]:
    """Return what tells a place on a machine: in the card, and in metadata that other tools wrote."""
    texts = {file.name: _text(file) for file in files if file.name in (CARD, CONFIG)}
    texts |= {
        f"{name}, {key} in its metadata,": value
        for name, adapter in adapters.items()
        for key, value in adapter.metadata.items()
    }
    found = {place: match[0] for place, text in texts.items() if (match := _PATH.search(text))}
    return tuple(f"{place} names a place on a machine, {path:.100}" for place, path in found.items())


def _text(file: PublicFile) -> str:
    return file.content.decode("utf-8", "replace") if isinstance(file.content, bytes) else read_utf8(file.content)


def _count(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 3 else 0


def _card(place: Path, adapters: dict[str, AdapterInfo]) -> str:
    """Return a card made of what the files themselves say."""
    about = next(iter(adapters.values()))
    said = [about.metadata.get(key) for key in ("ss_sd_model_name", "veneer.base")]
    base = next((name for name in (*said, about.family) if name), "an unknown base")
    trigger = next(iter(about.training.triggers), None)
    known = license_of(base)
    facts = CardFacts(
        title=place.stem,
        base=base,
        prompt=trigger or "a picture",
        files=tuple(CardFile(name, each.format, each.sha256) for name, each in adapters.items()),
        method=", ".join(about.methods),
        config={},
        license=known,
        trigger=trigger,
        references=_count(about.metadata.get("veneer.references", "")),
        base_id=base if known is not None and base != BUNDLED else None,
        version=about.metadata.get("veneer.version"),
    )
    return model_card(facts, None)
