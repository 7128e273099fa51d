"""The files of one network, and what in them keeps it from being loaded."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import nn
from torch.serialization import get_unsafe_globals_in_checkpoint

from veneer.errors import UserError
from veneer.family.file_content import check_config, fetch_again
from veneer.family.libraries import in_one_line
from veneer.family.shards import Shards, WeightFiles

__all__ = ["NetworkFiles"]


@dataclass(frozen=True)
class NetworkFiles:
    """A network of a base in diffusers' layout, on disk.

    Attributes:
        kind: its class, of diffusers or transformers.
        base: the base's folder.
        name: the network's, which is that of its folder within.
        files: those that its weights are read from.
    """

    kind: type[Any]
    base: Path
    name: str
    files: WeightFiles

    @property
    def folder(self) -> Path:
        """Its folder."""
        return self.base / self.name

    @property
    def config(self) -> dict[str, Any]:
        """Its configuration.

        Raises:
            UserError: it is missing or broken.
        """
        return check_config(self.folder / "config.json")

    def without_weights(self) -> nn.Module:
        """Make the network with its weights on the meta device; its buffers have the values that its class gives them.

        Raises:
            UserError: the configuration makes none.
        """
        try:
            return self._make()
        except Exception as error:
            what = f"makes no {self.kind.__name__} ({in_one_line(error)})"
            where = self.folder / "config.json"
            raise UserError(what, code="base.broken_config", where=where, remedy=self._restore_config()) from error

    def _make(self) -> nn.Module:
        from accelerate import init_empty_weights
        from diffusers import ModelMixin

        if issubclass(self.kind, ModelMixin):
            config = self.kind.load_config(str(self.base), subfolder=self.name)
            with init_empty_weights():
                return cast(nn.Module, self.kind.from_config(config))
        config = cast(Any, self.kind).config_class.from_pretrained(str(self.base), subfolder=self.name)
        with init_empty_weights():
            network: nn.Module = self.kind(config)
        cast(Any, network).tie_weights()  # after the block, within which each assigned parameter becomes another
        return network

    def _restore_config(self) -> str:
        return f"undo what was changed in it, or {fetch_again(self.folder / 'config.json')}"

    def refuse_other_names(self, missing: Collection[str], unexpected: Collection[str]) -> None:
        """Refuse weights of other names than the network has.

        Raises:
            UserError: there are some.
        """
        for problem, keys in (
            ("has no", missing),
            ("has weights that the configuration has no place for:", unexpected),
        ):
            if keys:
                what = f"{problem} {min(keys)}" + (f", and {len(keys) - 1} more weights" if len(keys) > 1 else "")
                raise self._wrong_weights(what)

    def _wrong_weights(self, what: str) -> UserError:
        where = self.folder / self.files.name
        remedy = f"it is damaged or not the file that belongs to config.json: {fetch_again(where)}"
        return UserError(what, code="base.wrong_weights", where=where, remedy=remedy)

    @contextmanager
    def causes(self) -> Iterator[None]:
        """Look for the cause in the network's files if the libraries fail at them within the block.

        Raises:
            UserError: they did.
        """
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            self.without_weights()  # first, for weights are compared with what it makes
            self._compare_shapes()
            raise self._unknown(error) from error

    def _compare_shapes(self) -> None:
        """Refuse the first weight that has another shape in the files than in the network.

        Raises:
            UserError: there is one.
        """
        if self.files.is_pickled or self.files.has_foreign_names:
            return
        own = {name: tuple(tensor.shape) for name, tensor in self.without_weights().state_dict().items()}
        stored = Shards(self.files.files(self.folder)).shapes
        prefix = "" if own.keys() & stored.keys() else f"{next(iter(stored), '').partition('.')[0]}."
        for name, shape in own.items():
            if (found := stored.get(prefix + name, shape)) != shape:
                what = f"{name} has the shape {list(found)}, and config.json asks for {list(shape)}"
                raise self._wrong_weights(what)

    def _unknown(self, error: Exception) -> UserError:
        where = self.folder / self.files.name
        if code := self._code_within():
            what = f"holds more than tensors: opening it would run {code}, so it was not opened"
            remedy = "give a base with .safetensors files"
            return UserError(what, code="base.pickle", where=where, remedy=remedy)
        remedy = f"try another release of the library, or {fetch_again(where)}"
        what = f"cannot be loaded ({in_one_line(error)})"
        return UserError(what, code="base.unreadable", where=self.folder, remedy=remedy)

    def _code_within(self) -> str:
        """Return what a pickle among the files asks to run that is not needed for tensors; empty if nothing."""
        for file in self.files.files(self.folder) if self.files.is_pickled else ():
            with suppress(Exception):  # it is told by the libraries' own error then
                if names := get_unsafe_globals_in_checkpoint(str(file)):
                    return names[0]
        return ""
