"""peft's format: ``base_model.model.PATH.lora_A.weight`` of one network, the strength in a JSON file beside it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from veneer.adapter.layers import layers_of
from veneer.adapter.protocol import LayerAdapter
from veneer.errors import UserError
from veneer.files import open_regular
from veneer.weights.formats.names import require_base, resolve, spellings
from veneer.weights.formats.peft_config import PeftConfig, parse_config
from veneer.weights.formats.protocol import BaseNames, FileContent
from veneer.weights.formats.tensors import adapters_of, rename_tensors

__all__ = ["CONFIG_NAME", "FILE_NAME", "PEFT", "PeftFormat"]

FILE_NAME, CONFIG_NAME = "adapter_model.safetensors", "adapter_config.json"
"""The names under which ``PeftModel.save_pretrained`` writes tensors and config."""

_ROOT = "base_model.model."
_LONGEST_CONFIG = 2**24  # bytes; one that names each layer of a large base has some hundred thousand


class PeftFormat:
    """What ``PeftModel.save_pretrained`` writes."""

    name = "peft"
    metadata_keys = ("format",)
    _naming = "peft"

    def detects(self, names: Collection[str]) -> bool:
        """Return whether a name begins as peft's do."""
        return any(name.startswith(_ROOT) for name in names)

    def read(self, content: FileContent) -> dict[str, LayerAdapter]:
        """Return each layer's adapter, with the strength that the config beside the file tells.

        Raises:
            UserError: the file is not whole, has no config beside it, or one that contradicts its tensors.
        """
        config = PeftConfig(parse_config(_config_beside(content.path)))
        tensors = rename_tensors(content.tensors, lambda name: name.removeprefix(_ROOT))
        return adapters_of(tensors, self._naming, config.of)

    def network_of(self, layer: str) -> None:
        """Return None: a file is of one network and does not say of which."""

    def paths(self, layers: Collection[str], base: BaseNames | None) -> dict[str, str]:
        """Return the layers of a base that have these paths within their network.

        Raises:
            UserError: there is no base, or not exactly one of its layers has such a path.
        """
        aliases: dict[str, set[str]] = {}
        for full in layers_of(require_base(base, self.name, layers).networks):
            for name in spellings(full.partition(".")[2]):
                aliases.setdefault(name, set()).add(full)
        return resolve(layers, aliases)


def _config_beside(path: Path) -> str:
    """Return the text of the config beside a file.

    Raises:
        UserError: there is none, or it cannot be read or is far too long.
    """
    place, remedy = path.parent / CONFIG_NAME, "it tells alpha, and so the adapter's strength"
    try:
        with open_regular(place) as file:
            text = file.read(_LONGEST_CONFIG + 1)
    except FileNotFoundError:
        raise UserError(f"has no {CONFIG_NAME} beside it", code="weights.no_peft_config", remedy=remedy) from None
    except OSError as error:
        what = f"{CONFIG_NAME} beside it cannot be read: {error.strerror or error}"
        raise UserError(what, code="weights.no_peft_config", remedy=remedy) from error
    if len(text) > _LONGEST_CONFIG:
        what = f"{CONFIG_NAME} beside it has more than {_LONGEST_CONFIG:,} bytes"
        raise UserError(what, code="weights.bad_config", remedy="put the config that peft wrote there")
    return text.decode("utf-8", "replace")


PEFT = PeftFormat()
