"""Bases whose parts lie in several places, laid out as one folder of links in diffusers' layout.

A denoiser's file, an autoencoder's, a text encoder's, as other programs keep them; or one file that has all. The folder
has a link to each, and beside the link of a single file the configuration that its weights fit: of the diffusers folder
it lies in, of the published architectures, or of the folder that the base names. It is temporary; whatever loads,
plans, identifies or reloads a base takes it for a folder like any other.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from veneer.errors import UserError
from veneer.family.abstract import make_network
from veneer.family.base_index import INDEX, find_index
from veneer.family.file_content import check_config
from veneer.family.foreign_weights import foreign_weights, has_several_parts
from veneer.family.gguf_file import open_weights
from veneer.family.libraries import silence_libraries
from veneer.family.pipeline_folder import PipelineFolder
from veneer.family.published import PUBLISHED, read_published

__all__ = ["MARK", "Assembly", "denoiser_class", "fits_published", "is_assembled", "real_place"]

MARK = "assembled.json"
"""File that says of such a folder where its parts are."""
_FOLDERS: dict[object, Path] = {}
_CONFIG = "config.json"
_PART_CONFIGS = ("tokenizer_config.json", "processor_config.json", "preprocessor_config.json")


def is_assembled(folder: Path) -> bool:
    """Return whether a folder is one of links."""
    return (folder / MARK).is_file()


def real_place(path: Path) -> Path:
    """Return where a file of such a folder is."""
    inner = next((above for above in path.parents if is_assembled(above)), None)
    if inner is None:
        return path
    parts = json.loads((inner / MARK).read_text("utf-8"))
    return Path(parts.get(path.relative_to(inner).parts[0], path)) if path.is_symlink() or path.exists() else path


def denoiser_class(family: Any) -> type[Any]:
    """Return the class of a family's denoiser."""
    kind: type[Any] = family._network_classes()[family.denoiser]
    return kind


def fits_published(file: Path, pipeline: str, family: Any) -> bool:
    """Return whether a file has the weights of one of a pipeline's published denoisers, by name and shape."""
    kind, opened = denoiser_class(family), open_weights(file)
    configs = [one.parts[family.denoiser] for one in map(read_published, PUBLISHED) if one.pipeline == pipeline]
    networks = ((config, make_network(kind, config, torch.float32)) for config in configs)
    return any(foreign_weights(network, config, opened) is not None for config, network in networks)


@dataclass(frozen=True)
class Assembly:
    """The parts of a base and where they are.

    Attributes:
        place: a diffusers folder, or a single file with the denoiser and perhaps further parts.
        components: a file or a folder of each part that is to be taken from elsewhere.
        pipeline: diffusers' class.
        family: the family's class.
    """

    place: Path
    components: Mapping[str, Path]
    pipeline: str
    family: Any

    def folder(self) -> Path:
        """Return the folder of links; it is removed when the process ends.

        Raises:
            UserError: a part is nowhere, or its weights fit no configuration that is known.
        """
        self._check_components()
        key = (self.pipeline, *((name, path, path.stat().st_mtime_ns) for name, path in self._named()))
        if key not in _FOLDERS:
            folder = Path(tempfile.mkdtemp(prefix="veneer-base-"))
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            with silence_libraries():
                self._fill(folder)
            _FOLDERS[key] = folder
        return _FOLDERS[key]

    def _named(self) -> Iterator[tuple[str, Path]]:
        yield "", self.place
        yield from sorted(self.components.items())

    def _check_components(self) -> None:
        known = self.family.part_names()
        for name, path in self.components.items():
            if name not in known:
                what, remedy = f"a {self.pipeline} has no {name}", f"it has {', '.join(known)}"
                raise UserError(what, code="base.unknown_component", where=f"base.components.{name}", remedy=remedy)
            if not path.exists():
                where = f"base.components.{name}"
                raise UserError(f"{path} is not there", code="base.file_missing", where=where)

    @property
    def _around(self) -> Path | None:
        """The diffusers folder that has the other parts, if there is one."""
        folder = self.place if self.place.is_dir() else self.place.parent
        return None if find_index(folder) is None else folder

    def _fill(self, folder: Path) -> None:
        networks = self.family._network_classes()
        around = {} if self._around is None else PipelineFolder(self._around).index
        index: dict[str, Any] = {key: value for key, value in around.items() if key in self.family.stored_options}
        index["_class_name"] = self.pipeline
        places: dict[str, str] = {}
        missing: list[str] = []
        for name in self.family.part_names():
            found = self._lay(folder, name, networks.get(name))
            if found is not None:
                kind = networks.get(name)
                own = [kind.__module__.partition(".")[0], kind.__name__] if kind else _entry(found, around.get(name))
                index[name], places[name] = own, str(found)
            elif name not in self.family.optional_parts:
                missing.append(name)
        if missing:
            what = f"has no {' and no '.join(missing)}"
            remedy = f"name what has it: {' '.join(f'base.components.{name}=PATH' for name in missing)}"
            raise UserError(what, code="base.part_missing", where=self.place, remedy=remedy)
        (folder / INDEX).write_text(json.dumps(index), "utf-8")
        (folder / MARK).write_text(json.dumps(places), "utf-8")

    def _lay(self, folder: Path, name: str, kind: type[Any] | None) -> Path | None:
        """Put a part into the folder; return where it is, or None where it is nowhere."""
        named = self.components.get(name)
        if named is not None and named.is_dir():
            return _link(folder / name, _folder_of(named, name))
        if kind is not None:
            file = named or (self.place if self._may_have(name) else None)
            if file is not None and self._lay_file(folder / name, kind, file, is_named=named is not None):
                return file
        if self._around is not None and (self._around / name).is_dir():
            return _link(folder / name, self._around / name)
        if name == "scheduler":
            return self._write_scheduler(folder / name)
        return None

    def _may_have(self, name: str) -> bool:
        """Return whether the base is a file that has a part, or may have it beside the denoiser."""
        if not self.place.is_file() or name == self.family.denoiser:
            return self.place.is_file()
        return has_several_parts(open_weights(self.place).header.tensors)

    def _lay_file(self, folder: Path, kind: type[Any], file: Path, *, is_named: bool) -> bool:
        """Put a single file's part into the folder, with the configuration that its weights fit."""
        opened = open_weights(file)
        for config in self._configs(folder.name, file, kind):
            if foreign_weights(make_network(kind, config, torch.float32), config, opened) is not None:
                folder.mkdir()
                (folder / _CONFIG).write_text(json.dumps(_with_class(config, kind)), "utf-8")
                stem = "diffusion_pytorch_model" if hasattr(kind, "load_config") else "model"
                (folder / f"{stem}{file.suffix.lower()}").symlink_to(file.resolve())
                return True
        if is_named or folder.name == self.family.denoiser:
            what = f"its weights are those of no {kind.__name__} whose configuration is known"
            remedy = f"give the base as a folder that has its {folder.name}/config.json, and the file as a component"
            raise UserError(what, code="base.no_configs", where=file, remedy=remedy)
        return False

    def _configs(self, name: str, file: Path, kind: type[Any]) -> Iterator[dict[str, Any]]:
        """Yield the configurations that a part may have: of the folder, beside the file, and the published ones."""
        for path in ([] if self._around is None else [self._around / name / _CONFIG]) + [file.parent / _CONFIG]:
            if path.is_file() and _is_of(config := check_config(path), kind):
                yield config
        seen: list[Mapping[str, Any]] = []
        for published in map(read_published, PUBLISHED):
            own = published.parts.get(name) if published.pipeline == self.pipeline else None
            if own is not None and own not in seen:
                seen.append(own)
                yield dict(own)

    def _write_scheduler(self, folder: Path) -> Path | None:
        """Write the scheduler that the published architecture of the denoiser has."""
        denoiser = check_config(folder.parent / self.family.denoiser / _CONFIG)
        for published in map(read_published, PUBLISHED):
            own = published.parts.get(self.family.denoiser, {})
            if published.pipeline == self.pipeline and all(denoiser.get(key) == own[key] for key in own):
                folder.mkdir()
                (folder / "scheduler_config.json").write_text(json.dumps(published.parts["scheduler"]), "utf-8")
                return folder
        return None


def _is_of(config: Mapping[str, Any], kind: type[Any]) -> bool:
    """Return whether a configuration is of a class, as far as it says."""
    if hasattr(kind, "load_config"):
        return config.get("_class_name") == kind.__name__
    return str(config.get("model_type", "")).startswith(kind.config_class.model_type.removesuffix("_text_model"))


def _with_class(config: Mapping[str, Any], kind: type[Any]) -> dict[str, Any]:
    return {**config, "_class_name": kind.__name__} if hasattr(kind, "load_config") else dict(config)


def _folder_of(named: Path, name: str) -> Path:
    """Return the part's folder: the one that was named, or the one of the part in a whole base."""
    return named / name if find_index(named) is not None and (named / name).is_dir() else named


def _link(place: Path, target: Path) -> Path:
    place.symlink_to(target.resolve(), target_is_directory=True)
    return target


def _entry(folder: Path, around: object) -> list[str]:
    """Return library and class of a part that is no network: as the base around it says, or its own files do."""
    told = around if find_index(folder.parent) is None else PipelineFolder(folder.parent).index.get(folder.name)
    if isinstance(told, list):
        return told
    for name in _PART_CONFIGS:
        config = check_config(folder / name) if (folder / name).is_file() else {}
        for key in ("tokenizer_class", "processor_class"):
            if isinstance(config.get(key), str):
                return ["transformers", config[key]]
    if (folder / "scheduler_config.json").is_file():
        return ["diffusers", str(check_config(folder / "scheduler_config.json").get("_class_name"))]
    what = "says of no class that reads it"
    raise UserError(
        what, code="base.broken_config", where=folder, remedy="give the folder of a tokenizer or a scheduler"
    )
