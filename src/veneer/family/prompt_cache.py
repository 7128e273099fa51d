"""Keep what a base's pipeline makes of prompts, so that a run that starts again reads no text encoder to paint them.

Each of diffusers' pipelines turns its prompts into embeddings by one method, ``encode_prompt``: what it returned is
kept under what it was called with. Its text encoders are out of the pipeline until something is not kept.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from veneer.adapter.protocol import AdapterWeights
from veneer.config.schema import RunConfig
from veneer.family.cache import store_of
from veneer.family.protocol import Family, device_of
from veneer.family.store import TensorStore
from veneer.family.store_shard import Tensors

__all__ = ["PromptCache", "adapts_texts"]

_STRUCTURE = "structure"
_PLACES = ("device",)
"""Arguments of ``encode_prompt`` that its numbers do not depend on, beside what the store's own key holds."""


def adapts_texts(family: Family, weights: AdapterWeights) -> bool:
    """Check whether an adapter is in a text encoder, which then makes other embeddings than the base's own."""
    return any(not name.startswith(f"{family.denoiser}.") for name in weights)


@dataclass(frozen=True)
class PromptCache:
    """What a base's pipeline makes of prompts, where its text encoders are as they were loaded.

    Attributes:
        family: the base.
        store: keeps it.
    """

    family: Family
    store: TensorStore

    @classmethod
    def of(cls, config: RunConfig, family: Family) -> PromptCache | None:
        """Return that of a run.

        None: it keeps nothing on the disk, its adapter changes what text encoders make, or its pipeline has no one
        method that calls them.
        """
        can_keep = family.encodes_prompts_apart and not config.adapter.text_encoders
        store = store_of(config, family) if can_keep else None
        return None if store is None else cls(family, store)

    def pipeline(self) -> Any:
        """Return the base's pipeline, which has text encoders as soon as a prompt is not kept."""
        pipeline: Any = self.family.pipeline(texts=False)
        pipeline.encode_prompt = _KeptPrompts(self, pipeline)
        return pipeline

    @contextmanager
    def encoding_pipeline(self) -> Iterator[Any]:
        """Give a pipeline that encodes prompts and then stops, which ends the block."""
        pipeline = self.pipeline()
        pipeline.prepare_latents = pipeline.scheduler.set_timesteps = _stop
        with suppress(_Encoded):
            yield pipeline

    def arguments(self, prompts: Sequence[str]) -> Mapping[str, object]:
        """Return how the pipeline is told of prompts: where that takes text encoders, it is kept too."""
        family = self.family
        if family.token_windows == 1:
            return family.pipeline_prompts(prompts)
        key = ("prompt", family.token_windows, *prompts)
        kept = self.store.get_or_compute(key, lambda: _packed(dict(family.pipeline_prompts(prompts))))
        told: dict[str, object] = _unpacked(kept, device_of(family))
        return told


class _Encoded(Exception):
    """A pipeline has encoded its prompts, which was all that was wanted."""


def _stop(*_: object, sigmas: object = None, **__: object) -> None:
    raise _Encoded


class _KeptPrompts:
    """The method ``encode_prompt`` of a pipeline, whose results are kept.

    Args:
        cache: keeps them.
        pipeline: without text encoders; it has them once one is needed.
    """

    def __init__(self, cache: PromptCache, pipeline: Any) -> None:
        self._cache, self._pipeline = cache, pipeline
        self._encode: Callable[..., Any] = pipeline.encode_prompt

    def __call__(self, *values: object, **named: object) -> Any:
        """Return what the pipeline makes of prompts."""
        bound = inspect.signature(self._encode).bind(*values, **named)
        bound.apply_defaults()
        if any(value is not None for name, value in bound.arguments.items() if "embeds" in name):
            return self._encode(*values, **named)  # nothing is encoded
        told = {name: value for name, value in bound.arguments.items() if name not in _PLACES}
        key = ("prompt", type(self._pipeline).__name__, json.dumps(_described(told), sort_keys=True))
        kept = self._cache.store.get_or_compute(key, lambda: _packed(self._encode_anew(values, named)))
        return _unpacked(kept, device_of(self._cache.family))

    @torch.no_grad()
    def _encode_anew(self, values: tuple[object, ...], named: Mapping[str, object]) -> Any:
        """Let the text encoders encode, which are in the pipeline from now on."""
        whole: Any = self._cache.family.pipeline()
        for name in self._cache.family.text_encoders:
            setattr(self._pipeline, name, getattr(whole, name))
        return self._encode(*values, **named)


def _described(value: object) -> Any:
    """Return an argument of ``encode_prompt`` as JSON has it; pixels are told by a hash.

    Raises:
        TypeError: it is of another kind.
    """
    if isinstance(value, Mapping):
        return {str(name): _described(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_described(one) for one in value]
    if isinstance(value, Image.Image):
        return [value.mode, *value.size, hashlib.sha256(value.tobytes()).hexdigest()]
    if isinstance(value, Tensor):
        content = value.detach().cpu().float().numpy().tobytes()
        return [str(value.dtype), *value.shape, hashlib.sha256(content).hexdigest()]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, torch.dtype):
        return str(value)
    raise TypeError(f"an argument of encode_prompt is a {type(value).__name__}")


def _packed(value: object) -> Tensors:
    """Return nested tuples, lists and dicts of tensors as a store keeps them."""
    tensors: Tensors = {}
    structure = json.dumps(_taken_apart(value, tensors)).encode()
    return {**tensors, _STRUCTURE: torch.frombuffer(bytearray(structure), dtype=torch.uint8)}


def _taken_apart(value: object, tensors: Tensors) -> Any:
    """Put all tensors of a value into ``tensors``; return how they stand in it."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return name
    if isinstance(value, tuple | list):
        return {"list" if isinstance(value, list) else "tuple": [_taken_apart(one, tensors) for one in value]}
    if isinstance(value, Mapping):
        return {"dict": {name: _taken_apart(one, tensors) for name, one in value.items()}}
    if value is None:
        return None
    raise TypeError(f"encode_prompt returns a {type(value).__name__}")


def _unpacked(kept: Tensors, device: torch.device) -> Any:
    return _put_together(json.loads(bytes(kept[_STRUCTURE].tolist())), kept, device)


def _put_together(structure: Any, kept: Tensors, device: torch.device) -> Any:
    if structure is None:
        return None
    if isinstance(structure, str):
        return kept[structure].to(device)
    ((kind, parts),) = structure.items()
    if kind == "dict":
        return {name: _put_together(one, kept, device) for name, one in parts.items()}
    several = [_put_together(one, kept, device) for one in parts]
    return several if kind == "list" else tuple(several)
