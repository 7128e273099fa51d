"""What an adapter file's metadata says of its training: trigger words, frequent tags, settings.

Tools write under keys of their own: kohya's trainer ``ss_*``, the Model Metadata Standard ``modelspec.*``, Veneer
``veneer.*``. All values are texts, and any may be anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from veneer.weights.small_json import parse_small_json

__all__ = ["TrainingSummary", "training_summary"]

_MOST_TAGS = 20
_LONGEST_TAG = 200  # characters; one is a word or a phrase
_TRIGGERS = ("modelspec.trigger_phrase", "veneer.trigger")
_FACTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("title", ("modelspec.title", "ss_output_name")),
    ("author", ("modelspec.author",)),
    ("date", ("modelspec.date", "ss_training_started_at")),
    ("licence", ("modelspec.license",)),
    ("architecture", ("modelspec.architecture",)),
    ("base", ("veneer.base", "ss_base_model_version", "ss_sd_model_name")),
    ("kohya's module", ("ss_network_module",)),
    ("steps", ("veneer.steps", "ss_steps")),
    ("epochs", ("ss_epoch", "ss_num_epochs")),
    ("pictures", ("ss_num_train_images",)),
    ("resolution", ("modelspec.resolution", "ss_resolution")),
    ("batch size", ("ss_total_batch_size", "ss_batch_size_per_device")),
    ("learning rate", ("ss_learning_rate", "ss_unet_lr")),
    ("optimizer", ("ss_optimizer",)),
    ("lr scheduler", ("ss_lr_scheduler",)),
    ("precision", ("ss_mixed_precision",)),
    ("prediction", ("modelspec.prediction_type",)),
    ("clip skip", ("ss_clip_skip",)),
    ("seed", ("veneer.seed", "ss_seed")),
    ("made from", ("modelspec.merged_from",)),
)
"""What is told of a training, with the keys that have it; the first that says something counts."""
_NOTHING = ("", "None", "null", "{}")
"""What tools write where they have nothing to say."""


@dataclass(frozen=True)
class TrainingSummary:
    """What an adapter's metadata says of its training.

    Attributes:
        triggers: words that call what it learned.
        tags: the most frequent of its captions, with how often each was there, falling.
        facts: the rest in words, by what it is.
    """

    triggers: tuple[str, ...] = ()
    tags: Mapping[str, int] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)


def training_summary(metadata: Mapping[str, str]) -> TrainingSummary:
    """Return what metadata says of a training; what makes no sense is left out."""
    said = {key: value for key, value in metadata.items() if value.strip() not in _NOTHING}
    triggers = dict.fromkeys(said[key].strip() for key in _TRIGGERS if key in said)
    found = {name: next((said[key] for key in keys if key in said), None) for name, keys in _FACTS}
    facts = {name: value for name, value in found.items() if value is not None}
    return TrainingSummary(tuple(triggers), _most_frequent(said.get("ss_tag_frequency", "{}")), facts)


def _most_frequent(text: str) -> dict[str, int]:
    """Return the most frequent tags of kohya's JSON, which counts them for each folder of pictures."""
    counts: Counter[str] = Counter()
    for tag, count in _tags(_parsed(text)):
        counts[tag] += count
    # of tags that are as frequent the alphabet decides
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_MOST_TAGS])


def _tags(folders: Any) -> Iterator[tuple[str, int]]:
    for tags in folders.values() if isinstance(folders, dict) else ():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            if type(count) is int and 0 < count < 2**53 and 0 < len(tag.strip()) < _LONGEST_TAG:
                yield tag.strip(), count


def _parsed(text: str) -> Any:
    try:
        return parse_small_json(text)
    except ValueError:
        return None
