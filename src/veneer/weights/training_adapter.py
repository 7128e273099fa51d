"""A frozen adapter that is in a distilled base only while it is trained and measured (``adapter.training_adapter``).

It takes the distillation back, so that an adapter that is trained on top of it does not have to; without it the base
paints in few steps again, with what was learned. It is no part of what is saved, nor of what is painted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from veneer.adapter.apply import apply_adapter
from veneer.adapter.layers import weighted_layers_of
from veneer.adapter.protocol import AdapterWeights
from veneer.adapter.registry import METHODS
from veneer.config.adapter_config import AdapterConfig
from veneer.errors import UserError
from veneer.weights.adapter_path import files_in
from veneer.weights.file import load
from veneer.weights.formats.left_out import LeftOut
from veneer.weights.hashes import file_sha256

__all__ = ["TRAINING_ADAPTER", "TrainingAdapter", "training_adapter_hash"]

TRAINING_ADAPTER = "adapter.training_adapter"
"""The config's key for it."""


class TrainingAdapter:
    """The training adapter of a base, in its denoiser or out of it; without one, nothing.

    Args:
        config: of the adapter that is trained.
        networks: the base's, by name; they are changed while it is in.
        denoiser: the one that it may change.

    Raises:
        UserError: its file is missing, broken, or of another base; or what is trained depends on the weights that it is
            trained on.

    Attributes:
        left_out: what of the file is no part of it.
    """

    def __init__(self, config: AdapterConfig, networks: Mapping[str, nn.Module], denoiser: str) -> None:
        self._networks, self.left_out = networks, list[LeftOut]()
        self._weights: AdapterWeights = {}
        self._inside = ExitStack()
        if config.training_adapter is not None:
            _check_additive(config.method)
            with _disable_current_modes():  # a plan has tensors without data, a file has not
                self._weights = _read(config.training_adapter, networks, denoiser, self.left_out)

    @property
    def is_there(self) -> bool:
        """Whether there is one."""
        return bool(self._weights)

    def apply(self) -> None:
        """Put it into the base, frozen: merged, or beside quantised layers."""
        if self._weights:
            # the weights without it wait outside a GPU's memory
            self._inside.enter_context(apply_adapter(self._networks, self._weights, originals=torch.device("cpu")))
            layers = weighted_layers_of(self._networks)
            for parameter in (one for name in self._weights for one in layers[name].parameters(recurse=False)):
                parameter.requires_grad_(False)

    def remove(self) -> None:
        """Take it out, which gives the base back, bit for bit; a second call does nothing."""
        self._inside.close()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Have it in the base inside."""
        self.apply()
        try:
            yield
        finally:
            self.remove()

    @contextmanager
    def removed(self) -> Iterator[None]:
        """Have the base without it inside, and with it, to the same bits, afterwards."""
        self.remove()
        try:
            yield
        finally:
            self.apply()


def training_adapter_hash(path: Path) -> str:
    """Return the SHA-256 of a training adapter's file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return file_sha256(*files_in(path))
    except OSError as error:
        raise _unreadable(path, error) from error


def _read(path: Path, networks: Mapping[str, nn.Module], denoiser: str, left_out: list[LeftOut]) -> AdapterWeights:
    if not path.exists():
        remedy = "fetch it, or train the base that the distilled one was made from"
        raise UserError("is not there", code="adapter.no_training_adapter", where=path, remedy=remedy)
    weights = load(path, networks, left_out=left_out).weights
    if other := next((name for name in weights if not name.startswith(f"{denoiser}.")), None):
        what = f"changes {other}, which is no layer of the {denoiser}"
        remedy = "texts are encoded without it: name an adapter of the denoiser alone"
        raise UserError(what, code="adapter.training_adapter_of_text", where=path, remedy=remedy)
    if not weights:
        what = f"has nothing for the {denoiser}"
        raise UserError(what, code="adapter.empty_training_adapter", where=path, remedy="name another file")
    return weights


def _unreadable(path: Path, error: OSError) -> UserError:
    what = f"cannot be read: {error.strerror or error}"
    return UserError(what, code="adapter.no_training_adapter", where=path)


def _check_additive(method: str) -> None:
    """Refuse a method whose delta W depends on the weights: it would be another one without the training adapter."""
    if not METHODS[method].is_additive:
        what = f"cannot be used with adapter.method {method}, which depends on the weights that it was trained on"
        raise UserError(what, code="adapter.not_additive", where=TRAINING_ADAPTER, remedy="use lora")
