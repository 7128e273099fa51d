"""An adapter file held against what it tells of its making."""

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
from veneer.run.folder import CONFIG, config_beside
from veneer.run.identity import BASE, BASE_NAME, CONFIG_HASH, HASHES, PICTURES, PRIOR, SETTINGS_HASH
from veneer.weights.file import info, tensor_hashes

__all__ = ["Check", "verify_adapter"]


@dataclass(frozen=True)
class Check:
    """One thing that a file tells of its making.

    Attributes:
        what: the thing.
        told: its hash as the file tells it.
        found: as it is now; None where the thing is not at hand.
        missing: why it is not.
    """

    what: str
    told: str
    found: str | None
    missing: str | None = None

    @property
    def differs(self) -> bool:
        """Whether the thing is at hand and not what the file tells."""
        return self.found is not None and self.found != self.told


def verify_adapter(file: Path, *, base: str | None = None) -> list[Check]:
    """Recompute each hash in a file's metadata, as far as what it is of is at hand.

    Tensors and strength are in the file; settings in ``config.yaml`` beside it, which names base and pictures too. The
    hashes tell damage and mix-ups. They are no signature: whoever changes a file on purpose can change them as well.

    Args:
        file: the adapter, or the folder of its run.
        base: where its base is; default: what the config beside it says, or the bundled one where the file says so. The
            file tells any other by its folder's name alone, under which something else may be at hand.

    Raises:
        UserError: the file cannot be read, or tells nothing of its making.
    """
    told, found = tensor_hashes(file)
    if told is None:
        raise UserError("tells nothing of its making, so there is nothing to verify", where=file)
    metadata = info(file).metadata
    config = _config_beside(file)
    base = base or (config.base if config else _bundled(metadata))
    ways: dict[str, tuple[str, Callable[[], str]]] = {
        "config": (CONFIG_HASH, lambda: config_hash(_needed(config))),
        "base": (HASHES[BASE], lambda: fingerprint(_named(base))),
        "base settings": (SETTINGS_HASH, lambda: settings_hash(settings_of(_named(base)))),
        "pictures": (HASHES[PICTURES], lambda: survey(_needed(config).data).train.fingerprint()),
        "class pictures": (HASHES[PRIOR], lambda: read_prior(_needed(config)).fingerprint()),
    }
    checks = [_check(what, metadata[key], way) for what, (key, way) in ways.items() if key in metadata]
    return [Check("tensors", told, found), *checks]


def _check(what: str, told: str, way: Callable[[], str]) -> Check:
    try:
        return Check(what, told, way())
    except UserError as missing:
        return Check(what, told, None, str(missing))


def _config_beside(file: Path) -> RunConfig | None:
    path = config_beside(file)
    return load_config(path) if path.is_file() else None


def _bundled(metadata: Mapping[str, str]) -> str | None:
    return BUNDLED if metadata.get(BASE_NAME) == BUNDLED else None


def _named(base: str | None) -> str:
    if base is None:
        raise UserError(f"no {CONFIG} beside the file tells where it is", remedy="name it with --base")
    return base


def _needed(config: RunConfig | None) -> RunConfig:
    if config is None:
        raise UserError(f"no {CONFIG} beside the file")
    return config
