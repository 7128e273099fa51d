"""Settings and fingerprints that identify a run, in its checkpoints and in its adapter file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from veneer import __version__
from veneer.config.fingerprint import config_hash
from veneer.config.schema import RunConfig
from veneer.data.preflight import Dataset, read_prior
from veneer.family.fingerprint import fingerprint, settings_hash
from veneer.family.protocol import Family
from veneer.family.windows import TOKEN_WINDOWS
from veneer.weights.checkpoint import Provenance
from veneer.weights.training_adapter import TRAINING_ADAPTER, training_adapter_hash

__all__ = [
    "BASE",
    "BASE_NAME",
    "CONFIG_HASH",
    "HASHES",
    "PICTURES",
    "PRIOR",
    "REFERENCES",
    "SETTINGS_HASH",
    "TRIGGER",
    "Identity",
    "identify",
]

BASE, PICTURES, PRIOR = "base", "data.sources", "data.prior.path"
"""The config's keys for what it only points to; each has a fingerprint."""
BASE_NAME = "veneer.base"
"""In an adapter file's metadata: the last part of the base's path or hub id."""
CONFIG_HASH = "veneer.config.sha256"
"""In an adapter file's metadata: hash of the settings."""
SETTINGS_HASH = "veneer.base.settings.sha256"
"""In an adapter file's metadata: hash of the base's own settings, such as its scheduler and tokenizer."""
REFERENCES = "veneer.references"
"""In an adapter file's metadata: how many references each picture of its training had, where they had some."""
TRIGGER = "veneer.trigger"
"""In an adapter file's metadata: the words that call what it learned."""
HASHES: Mapping[str, str] = {
    BASE: "veneer.base.sha256",
    PICTURES: "veneer.data.fingerprint",
    PRIOR: "veneer.prior.fingerprint",
    TRAINING_ADAPTER: "veneer.training_adapter.sha256",
}
"""In an adapter file's metadata: fingerprints of what the settings point to, by the config's key."""


@dataclass(frozen=True)
class Identity:
    """All that decides the result of a run, wherever it runs.

    Attributes:
        config: resolved.
        hashes: fingerprints of what the config points to, by the config's key.
        settings: the base's own, by name, as its family has them.
        references: of each picture.
    """

    config: RunConfig
    hashes: Mapping[str, str]
    settings: Mapping[str, str] = field(default_factory=dict)
    references: int = 0

    @property
    def folder(self) -> Path:
        """The output folder."""
        return self.config.output.dir

    @property
    def provenance(self) -> Provenance:
        """The run's provenance, as its checkpoints record it."""
        threads = torch.get_num_threads()
        return Provenance(self.config.model_dump(mode="json"), self.hashes, __version__, threads, self.settings)

    @property
    def metadata(self) -> dict[str, str]:
        """Metadata of its adapter file: no path and no time, so that equal runs give equal bytes."""
        config = self.config
        metadata = {
            "veneer.version": __version__,
            BASE_NAME: os.path.basename(os.path.abspath(config.base)),
            "veneer.steps": str(config.train.max_steps),
            "veneer.seed": str(config.seed),
            CONFIG_HASH: config_hash(config),
            SETTINGS_HASH: settings_hash(self.settings),
            **{HASHES[key]: value for key, value in self.hashes.items()},
        }
        if config.data.trigger is not None:
            metadata[TRIGGER] = config.data.trigger
        if self.references:
            metadata[REFERENCES] = str(self.references)
        if config.data.token_windows > 1:
            metadata[TOKEN_WINDOWS] = str(config.data.token_windows)
        return metadata


def identify(config: RunConfig, pictures: Dataset, family: Family) -> Identity:
    """Take the fingerprints of a run; the base's weights are read once for it.

    Args:
        config: resolved; pictures of the class, where it wants some, have been painted.
        pictures: from ``survey``.
        family: the base, loaded.
    """
    hashes = {BASE: fingerprint(config.base), PICTURES: pictures.train.fingerprint()}
    if config.data.prior is not None:
        hashes[PRIOR] = read_prior(config).fingerprint()
    if config.adapter.training_adapter is not None:
        hashes[TRAINING_ADAPTER] = training_adapter_hash(config.adapter.training_adapter)
    return Identity(config, hashes, family.settings, pictures.train.references)
