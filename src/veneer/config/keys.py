"""The names a config may use, read off the schema; and which of them somebody may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, get_args

from pydantic import BaseModel

from veneer.config.document import Key
from veneer.config.schema import RunConfig

__all__ = ["described", "dotted", "known_keys", "nearest", "section_at"]

# what other trainers call it
_ELSEWHERE = {
    "batch_size": "train.batch_size",
    "train_batch_size": "train.batch_size",
    "gradient_accumulation_steps": "train.gradient_accumulation_steps",
    "gradient_checkpointing": "train.memory",
    "max_train_steps": "train.max_steps",
    "mixed_precision": "train.precision",
    "lr": "train.learning_rate",
    "learning_rate": "train.learning_rate",
    "text_encoder_lr": "adapter.text_encoder.learning_rate",
    "unet_lr": "train.learning_rate",
    "lr_scheduler": "train.lr_scheduler",
    "lr_warmup_steps": "train.warmup_steps",
    "network_dim": "adapter.rank",
    "dim": "adapter.rank",
    "network_alpha": "adapter.alpha",
    "lora_alpha": "adapter.alpha",
    "network_dropout": "adapter.dropout",
    "target_modules": "adapter.target_modules",
    "min_snr_gamma": "objective.snr_gamma",
    "snr_gamma": "objective.snr_gamma",
    "flip_aug": "data.flip",
    "random_crop": "data.crop",
    "caption_dropout_rate": "data.caption_dropout",
    "instance_prompt": "data.trigger",
    "instance_data_dir": "data.sources",
    "train_data_dir": "data.sources",
    "class_prompt": "data.prior.prompt",
    "class_data_dir": "data.prior.path",
    "num_class_images": "data.prior.count",
    "prior_loss_weight": "data.prior.weight",
    "num_repeats": "data.sources",
    "checkpointing_steps": "train.checkpoint_every",
    "save_every_n_steps": "train.checkpoint_every",
    "checkpoints_total_limit": "train.keep_checkpoints",
    "output_dir": "output",
    "pretrained_model_name_or_path": "base",
    "validation_prompt": "sample.prompts",
    "report_to": "tracking.trackers",
    "log_with": "tracking.trackers",
    "tracker_project_name": "tracking.project",
    "log_tracker_name": "tracking.project",
    "wandb_project": "tracking.project",
}


def dotted(key: Key) -> str:
    """A key as it is written on the command line: ``data.sources.0.path``."""
    return ".".join(map(str, key))


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The section an annotation holds, also as an optional or as the elements of a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section_of, get_args(annotation))), None)


def section_at(key: Key) -> type[BaseModel] | None:
    """The section whose fields stand right under ``key``; none if nothing may."""
    section: type[BaseModel] | None = RunConfig
    for part in key:
        if isinstance(part, str):
            known = section.model_fields.get(part) if section else None
            section = _section_of(known.annotation) if known else None
    return section


@lru_cache(maxsize=1)
def known_keys() -> dict[str, str]:
    """Every key that a config may have, dotted, with what it means; list places are left out."""
    return dict(_walk(RunConfig, ""))


def _walk(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, str]]:
    for name, known in section.model_fields.items():
        yield prefix + name, known.description or ""
        below = _section_of(known.annotation)
        if below is not None:
            yield from _walk(below, f"{prefix}{name}.")


def described(key: Key) -> str:
    """What a key means, in one line without markup; empty if there is no such key."""
    return known_keys().get(dotted(tuple(part for part in key if isinstance(part, str))), "").replace("``", "")


def nearest(key: Key) -> str | None:
    """The known key, dotted, that ``key`` may have been meant to be.

    In turn: the same name elsewhere, what other trainers call it, a like name beside it, a like name anywhere.
    """
    name = str(key[-1])
    leaves: dict[str, str] = {}
    for known in sorted(known_keys(), key=lambda known: (known.count("."), known), reverse=True):
        leaves[known.rpartition(".")[2]] = known
    section = section_at(key[:-1])
    beside = difflib.get_close_matches(name, section.model_fields if section else (), n=1)
    anywhere = difflib.get_close_matches(name, leaves, n=1, cutoff=0.75)
    if name in leaves or name in _ELSEWHERE:
        return leaves.get(name) or _ELSEWHERE[name]
    if beside:
        return dotted((*key[:-1], beside[0]))
    return leaves[anywhere[0]] if anywhere else None
