"""Verify an adapter file: compare the hashes in its metadata with those of what it was made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from veneer.config.fingerprint import config_hash
from veneer.config.load import load_config
from veneer.config.schema import RunConfig
from veneer.data.preflight import read_prior, survey
from veneer.errors import UserError
from veneer.family.fingerprint import fingerprint, settings_hash, settings_of
from veneer.family.registry import BUNDLED
from veneer.files import opens_paths
from veneer.run.folder import CONFIG, config_beside
from veneer.run.identity import BASE, BASE_NAME, CONFIG_HASH, HASHES, PICTURES, PRIOR, SETTINGS_HASH
from veneer.weights.file import info, tensor_hashes
from veneer.weights.training_adapter import TRAINING_ADAPTER, training_adapter_hash

__all__ = ["Check", "verify_adapter"]


@dataclass(frozen=True)
class Check:
    """The comparison of one hash.

    Attributes:
        subject: what it is the hash of.
        recorded: the hash in the file.
        current: the hash as it is now; None where the subject is not at hand.
        reason: why it is not.
    """

    subject: str
    recorded: str
    current: str | None
    reason: str | None = None

    @property
    def differs(self) -> bool:
        """Whether the subject is at hand, and another than when the file was made."""
        return self.current is not None and self.current != self.recorded


@opens_paths
def verify_adapter(file: Path, *, base: str | None = None) -> list[Check]:
    """Recompute each hash in a file's metadata, as far as its subject is at hand.

    Tensors and strength are in the file, settings in ``config.yaml`` beside it, which names base and pictures too. The
    hashes show damage and mix-ups. They are no signature: whoever changes a file on purpose can change them as well.

    Args:
        file: the adapter, or the folder of its run.
        base: where its base is; default: what the config beside it says, or the bundled one where the file says so. The
            file names any other by its folder's name alone, under which something else may be at hand.

    Raises:
        UserError: the file cannot be read, or has no hashes.
    """
    recorded, current = tensor_hashes(file)
    if recorded is None:
        what = "has no hashes in its metadata, so there is nothing to verify"
        raise UserError(what, code="verify.no_hashes", where=file)
    metadata = info(file).metadata
    config = _config_beside(file)
    base = base or (config.base if config else _bundled(metadata))
    hashes: dict[str, tuple[str, Callable[[], str]]] = {
        "config": (CONFIG_HASH, lambda: config_hash(_require_config(config))),
        "base": (HASHES[BASE], lambda: fingerprint(_require_base(base))),
        "base settings": (SETTINGS_HASH, lambda: settings_hash(settings_of(_require_base(base)))),
        "pictures": (HASHES[PICTURES], lambda: survey(_require_config(config).data).train.fingerprint()),
        "training adapter": (HASHES[TRAINING_ADAPTER], lambda: _training_adapter(_require_config(config))),
        "class pictures": (HASHES[PRIOR], lambda: read_prior(_require_config(config)).fingerprint()),
    }
    checks = [_check(subject, metadata[key], compute) for subject, (key, compute) in hashes.items() if key in metadata]
    return [Check("tensors", recorded, current), *checks]


def _check(subject: str, recorded: str, compute: Callable[[], str]) -> Check:
    try:
        return Check(subject, recorded, compute())
    except UserError as fault:
        return Check(subject, recorded, None, str(fault))


def _training_adapter(config: RunConfig) -> str:
    path = config.adapter.training_adapter
    if path is None:
        raise UserError(f"the {CONFIG} beside the file names none", code="verify.no_training_adapter")
    return training_adapter_hash(path)


def _config_beside(file: Path) -> RunConfig | None:
    path = config_beside(file)
    return load_config(path) if path.is_file() else None


def _bundled(metadata: Mapping[str, str]) -> str | None:
    """Return the bundled base if the file names it; another may lie under the name of any other."""
    return BUNDLED if metadata.get(BASE_NAME) == BUNDLED else None


def _require_base(base: str | None) -> str:
    if base is None:
        what, remedy = f"no {CONFIG} beside the file says where it is", "name it with --base"
        raise UserError(what, code="verify.base_unknown", remedy=remedy)
    return base


def _require_config(config: RunConfig | None) -> RunConfig:
    if config is None:
        raise UserError(f"no {CONFIG} beside the file", code="verify.no_config")
    return config
