"""Make bases without weights: a family's own modules on the meta device, from configurations alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import nn

from veneer.family.base_index import INDEX, find_index, is_in_index, read_index_file
from veneer.family.file_content import check_config
from veneer.family.hub import fetch_file, fetch_index

__all__ = ["AbstractTokenizer", "Config", "make_network", "make_scheduler", "read_configs"]

Config = Mapping[str, Any]
"""A part's configuration, as its ``config.json`` or ``scheduler_config.json`` has it."""


class AbstractTokenizer:
    """A tokenizer that needs no files and reads no text: its ids are zeros.

    Args:
        length: tokens of each text, marks included.
        marks: tokens that mark a text's beginning and end.
    """

    pad_token_id = bos_token_id = eos_token_id = 0
    pad_token = bos_token = eos_token = ""

    def __init__(self, length: int, marks: int) -> None:
        self.model_max_length, self._marks = length, marks

    def __len__(self) -> int:
        """Return the number of tokens that it knows, which is one."""
        return 1

    def num_special_tokens_to_add(self) -> int:
        """Return the number of marks."""
        return self._marks

    def encode(self, text: str) -> list[int]:
        """Return as many ids as a text has words, which is what a pipeline puts before a caption."""
        return [0] * len(text.split())

    def __call__(self, texts: Sequence[str], **options: object) -> Any:
        """Return ``input_ids`` and ``attention_mask`` of texts as long as can be, as lists or as tensors (B, L).

        Of a text in windows, which is asked for without marks, there are no ids. Texts that are to be as long as the
        longest of them are empty: pipelines ask so what they cut off.
        """
        if options.get("add_special_tokens") is False:
            return SimpleNamespace(input_ids=[[] for _ in texts])
        length = int(cast(Any, options.get("max_length")) or self.model_max_length)
        if options.get("padding") == "longest":
            length = self._marks
        if options.get("return_tensors") is None:
            return SimpleNamespace(
                input_ids=[[0] * length for _ in texts], attention_mask=[[1] * length for _ in texts]
            )
        from transformers import BatchEncoding  # some pipelines take its parts by name, some as attributes

        ids_BL = torch.zeros(len(texts), length, dtype=torch.long)
        return BatchEncoding({"input_ids": ids_BL, "attention_mask": torch.ones_like(ids_BL)})


def read_configs(place: str, names: Iterable[str], optional: Collection[str] = ()) -> dict[str, Config]:
    """Return the configurations of parts of a pipeline, and what its index says, under the index's name.

    Args:
        place: a folder in diffusers' layout, or a hub id.
        names: of the parts.
        optional: those of them that the pipeline may lack; such a part that it lacks is left out.

    Raises:
        UserError: one is not there, or is no JSON object.
    """
    index = read_index_file(_index_file(place))
    present = [name for name in names if name not in optional or is_in_index(index, name)]
    return {INDEX: index, **{name: check_config(_config_file(place, name)) for name in present}}


def _config_file(place: str, name: str) -> Path:
    return _file(place, f"{name}/scheduler_config.json" if name == "scheduler" else f"{name}/config.json")


def _index_file(place: str) -> Path:
    return find_index(Path(place)) or Path(place) / INDEX if Path(place).is_dir() else fetch_index(place)


def _file(place: str, file: str) -> Path:
    return Path(place) / file if Path(place).is_dir() else fetch_file(place, file)


def make_network(kind: type[Any], config: Config, dtype: torch.dtype) -> nn.Module:
    """Return a network on the meta device.

    Args:
        kind: its class, of diffusers or transformers.
        config: its configuration.
        dtype: of its weights.
    """
    from diffusers import ModelMixin

    with torch.device("meta"):
        if issubclass(kind, ModelMixin):
            network: nn.Module = kind.from_config(dict(config))
        else:
            network = kind(kind.config_class.from_dict(dict(config)))
    return nn.Module.to(network.eval(), dtype)  # diffusers' own warns of layers that published weights keep in float32


def make_scheduler(config: Config) -> Any:
    """Return the diffusers scheduler of a configuration."""
    import diffusers

    return getattr(diffusers, config["_class_name"]).from_config(dict(config))
