"""Metadata of adapter files, in one table: which key is written, from which fact, and which programs show it.

``ss_*`` are the keys of kohya's sd-scripts, which A1111, Forge and Civitai read. ``modelspec.*`` are Stability AI's
specification of 2023 (https://github.com/Stability-AI/ModelSpec) in version 1.0.1, as sd-scripts writes it. All values
are texts. None is a path or a time, so that equal runs give equal bytes and a file tells nothing of the machine that
made it.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from veneer.files import public_name

if TYPE_CHECKING:  # a file's metadata is understood without torch
    from veneer.adapter.protocol import AdapterWeights
    from veneer.config.schema import RunConfig
    from veneer.data.buckets import Buckets, Size
    from veneer.data.manifest import Manifest, Sample

__all__ = [
    "HASH_KEYS",
    "HISTORY",
    "LABELLED",
    "TABLE",
    "BaseLabels",
    "Row",
    "Source",
    "TrainingFacts",
    "common",
    "completed",
    "derived",
    "training_metadata",
]

HISTORY = "veneer.history"
"""Key of what was done to an adapter since it was trained: a JSON list, oldest first."""
HASH_KEYS = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")
"""Keys of hashes of a file's own tensors, which are computed whenever a file is written."""
LABELLED = ("kohya", "comfy")
"""Formats whose files have the keys of the table; readers of the others look for none of them."""
_MOST_TAGS = 1000  # of a folder; where each caption is a sentence, there are as many as pictures
_MAKER = "veneer"


@dataclass(frozen=True)
class BaseLabels:
    """What programs and sites call a kind of base; its family says so.

    Attributes:
        architecture: modelspec's, without the adapter's ending.
        version: kohya's ``ss_base_model_version``; None: kohya's scripts know no such base.
        implementation: modelspec's: whose names a kohya file of it has.
        module: kohya's module that trains LoRA on it.
        is_v2: kohya's ``ss_v2``.
        clip_skip: layers of the text encoder from its end, where programs have a setting for it.
        webui: what A1111 and Forge call it in their lists.
        civitai: what Civitai calls it.
        tags: what the hub's cards call it.
        diffusers_reads: whether diffusers' pipeline has a reader for adapters of it; else peft reads them.
        is_modular: whether diffusers has modular pipelines of it alone.
        refuses_alpha: whether that reader takes ComfyUI's names without a layer's alpha only.
    """

    architecture: str
    version: str | None
    implementation: str = "diffusers"
    module: str = "networks.lora"
    is_v2: bool = False
    clip_skip: int | None = None
    webui: str = "Unknown"
    civitai: str = "Other"
    tags: tuple[str, ...] = ()
    diffusers_reads: bool = True
    is_modular: bool = False
    refuses_alpha: bool = False


@dataclass(frozen=True)
class TrainingFacts:
    """All that is known of a finished training, from which metadata is made.

    Attributes:
        config: resolved.
        name: of the adapter, as a prompt would call it.
        weights: what was trained; its numbers are not looked at.
        steps: that were trained.
        train: the pictures.
        held_out: how many pictures were measured on.
        class_pictures: how many pictures of the class kept it.
        base_name: last part of the base's path, or its hub id.
        labels: what programs call its kind.
        prediction: what it predicts: epsilon, v_prediction, sample, flow.
        buckets: the sizes that pictures were cut to.
        base_sha256: of the base's file, where it is a single one.
        base_legacy_hash: A1111's first hash of that file, 8 hex digits.
        license: of the base; None: it is not known.
        thumbnail: a small picture as a data URL.
        version: of Veneer.
    """

    config: RunConfig
    name: str
    weights: AdapterWeights
    steps: int
    train: Manifest
    held_out: int
    base_name: str
    labels: BaseLabels
    prediction: str
    buckets: Buckets
    class_pictures: int = 0
    base_sha256: str | None = None
    base_legacy_hash: str | None = None
    license: str | None = None
    thumbnail: str | None = None
    version: str = ""

    @cached_property
    def by_size(self) -> Mapping[Size, Sequence[Sample]]:
        """The pictures of each size (height, width), by size, rising."""
        found: dict[Size, list[Sample]] = {}
        for sample in self.train.samples:
            for size in self.buckets.sizes(sample.width, sample.height):
                found.setdefault(size, []).append(sample)
        return {size: found[size] for size in sorted(found)}

    @property
    def has_buckets(self) -> bool:
        """Whether pictures have other sizes than the one that the resolution names."""
        return any(size != self.buckets.most for size in self.by_size)

    @property
    def images(self) -> int:
        """Pictures of an epoch, repeats counted."""
        return _shown(sample for samples in self.by_size.values() for sample in samples)

    @property
    def batch(self) -> int:
        """Pictures of one optimiser step."""
        return self.config.train.batch_size * self.config.train.gradient_accumulation_steps

    @property
    def batches(self) -> int:
        """Forward passes of an epoch."""
        return math.ceil(self.images / self.config.train.batch_size)

    def epochs(self, steps: int) -> int:
        """Return how many epochs so many steps take, the last one perhaps in part."""
        return math.ceil(steps * self.batch / self.images)


_Value = str | int | float | bool | None


class Row(NamedTuple):
    """One key of the table.

    Attributes:
        key: in the file.
        value: made of the facts; None: the key is left out.
        fact: what it is, in words.
        shown: which programs show or use it.
    """

    key: str
    value: Callable[[TrainingFacts], _Value]
    fact: str
    shown: str = ""


def training_metadata(facts: TrainingFacts, format_name: str) -> dict[str, str]:
    """Return what a trained adapter's file says to other programs, beside Veneer's own keys.

    Args:
        facts: of the training.
        format_name: of the file; diffusers' and peft's readers look for nothing but the format's own metadata.
    """
    if format_name not in LABELLED:
        return {}
    values = {row.key: row.value(facts) for row in TABLE}
    return {key: str(value) for key, value in values.items() if value is not None}


_PRECISIONS = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}
"""modelspec's words; bases of other kinds of prediction have one alone, which the architecture says."""


def _optimizer(facts: TrainingFacts) -> str:
    settings = facts.config.train.optimizer
    return (
        f"torch.optim.adamw.AdamW(weight_decay={settings.weight_decay},betas={settings.betas},eps={settings.epsilon})"
    )


def _text_encoder_rate(facts: TrainingFacts) -> str | None:
    rates = [section.learning_rate for section in facts.config.adapter.text_encoders.values()]
    return None if not rates else str(rates[0] if len(rates) == 1 else rates)


def _dirs(facts: TrainingFacts) -> str:
    folders = _by_folder(facts.train.samples)
    return json.dumps(
        {name: {"n_repeats": _repeats(samples[0]), "img_count": len(samples)} for name, samples in folders.items()}
    )


def _repeats(sample: Sample) -> float:
    """Return how often an epoch shows a picture: a whole number where its source has no weight."""
    return sample.repeats if sample.weight == 1 else sample.rate


def _tags(facts: TrainingFacts) -> str:
    return json.dumps({name: _frequencies(samples) for name, samples in _by_folder(facts.train.samples).items()})


def _frequencies(samples: Sequence[Sample]) -> dict[str, int]:
    """Return how many pictures have each tag in a caption, the most frequent first; tags are split as kohya does."""
    counts: Counter[str] = Counter()
    for sample in samples:
        words = (tag.strip().lower() for caption in sample.captions for tag in caption.split(","))
        counts.update(dict.fromkeys((word for word in words if word), 1))  # once a picture, in the caption's order
    return dict(sorted(counts.items(), key=lambda item: -item[1])[:_MOST_TAGS])


def _by_folder(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """Return pictures by the name of their folder and their repeats; a name that is there twice gets a number."""
    groups: dict[tuple[Path, float], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.path.parent, _repeats(sample)), []).append(sample)
    named: dict[str, list[Sample]] = {}
    for (folder, _), group in groups.items():
        name, number = public_name(folder.name, "pictures"), 2
        while (unique := name if number == 2 and name not in named else f"{name} ({number})") in named:
            number += 1
        named[unique] = group
    return named


def _shown(samples: Iterable[Sample]) -> int:
    return round(sum(sample.rate for sample in samples))


def _buckets(facts: TrainingFacts) -> str:
    """Return kohya's statistics of buckets: sizes (width, height), pictures, and by how much aspect ratios differ."""
    buckets: dict[str, Any] = {}
    errors: list[float] = []
    for (height, width), samples in facts.by_size.items():
        buckets[str(len(buckets))] = {"resolution": [width, height], "count": _shown(samples)}
        errors += [abs(width / height - sample.width / sample.height) for sample in samples]
    return json.dumps({"buckets": buckets, "mean_img_ar_error": sum(errors) / len(errors)})


def _side_of(pick: Callable[[Iterable[int]], int]) -> Callable[[TrainingFacts], int | None]:
    """Return what tells the shortest or the longest side of all buckets; None where there are no buckets."""
    return lambda facts: pick(side for size in facts.by_size for side in size) if facts.has_buckets else None


def _if_buckets(value: Callable[[TrainingFacts], _Value]) -> Callable[[TrainingFacts], _Value]:
    return lambda facts: value(facts) if facts.has_buckets else None


def _architecture(facts: TrainingFacts) -> str:
    return f"{facts.labels.architecture}/lora"


def _description(facts: TrainingFacts) -> str:
    trigger = f" Its trigger is: {facts.config.data.trigger}" if facts.config.data.trigger else ""
    pictures = len(facts.train.samples)
    return f"Trained with Veneer on {pictures} picture{'s' * (pictures != 1)} in {facts.steps} steps.{trigger}"


_LISTS = "A1111, Forge: which base's list it is in"
_EDITOR = "A1111, Forge: card of the adapter"
_SWARM = "SwarmUI, ComfyUI: model's info"

TABLE: tuple[Row, ...] = (
    Row("ss_v2", lambda f: f.labels.is_v2, "whether the base is Stable Diffusion 2", _LISTS),
    Row("ss_base_model_version", lambda f: f.labels.version, "kind of base, by its family", _LISTS),
    Row("ss_network_module", lambda f: _module(f.weights, f.labels), "method and kind of base", _EDITOR),
    Row("ss_network_dim", lambda f: _size(f.weights, "rank"), "rank of the layers; `Dynamic` where they differ"),
    Row("ss_network_alpha", lambda f: _size(f.weights, "alpha"), "alpha of the layers; `Dynamic` where they differ"),
    Row("ss_network_args", lambda f: _arguments(f.weights), "method, and rank of convolutions, as JSON"),
    Row("ss_network_dropout", lambda f: f.config.adapter.dropout or None, "`adapter.dropout`"),
    Row("ss_output_name", lambda f: f.name, "name of the file", "A1111, Forge: the name in `<lora:NAME:1>`"),
    Row("ss_sd_model_name", lambda f: f.base_name, "name of the base's folder or file, or its hub id", _EDITOR),
    Row("ss_sd_model_hash", lambda f: f.base_legacy_hash, "A1111's old hash of the base, if it is a single file"),
    Row("ss_new_sd_model_hash", lambda f: f.base_sha256, "SHA-256 of the base, if it is a single file"),
    Row("ss_clip_skip", lambda f: f.labels.clip_skip, "layer of the text encoder, where there is a choice", _EDITOR),
    Row("ss_steps", lambda f: f.steps, "steps that were trained"),
    Row("ss_max_train_steps", lambda f: f.config.train.max_steps, "`train.max_steps`"),
    Row("ss_epoch", lambda f: f.epochs(f.steps), "epochs, the last one perhaps in part", "Civitai: epochs"),
    Row("ss_num_epochs", lambda f: f.epochs(f.config.train.max_steps), "epochs of `train.max_steps`"),
    Row("ss_num_batches_per_epoch", lambda f: f.batches, "batches of an epoch"),
    Row("ss_num_train_images", lambda f: f.images, "pictures of an epoch, repeats counted", _EDITOR),
    Row("ss_num_validation_images", lambda f: f.held_out, "pictures held out"),
    Row("ss_num_reg_images", lambda f: f.class_pictures, "pictures of the class"),
    Row("ss_seed", lambda f: f.config.seed, "`seed`"),
    Row("ss_learning_rate", lambda f: f.config.train.learning_rate, "`train.learning_rate`"),
    Row("ss_unet_lr", lambda f: f.config.train.learning_rate, "`train.learning_rate`"),
    Row("ss_text_encoder_lr", _text_encoder_rate, "learning rates of text encoders that were trained"),
    Row("ss_optimizer", _optimizer, "`train.optimizer`"),
    Row("ss_lr_scheduler", lambda f: f.config.train.lr_scheduler, "`train.lr_scheduler`"),
    Row("ss_lr_warmup_steps", lambda f: f.config.train.warmup_steps, "`train.warmup_steps`"),
    Row("ss_max_grad_norm", lambda f: f.config.train.max_grad_norm, "`train.max_grad_norm`"),
    Row("ss_resolution", lambda f: "({1}, {0})".format(*f.buckets.most), "`data.resolution`, the largest"),
    Row("ss_enable_bucket", _if_buckets(lambda f: True), "whether pictures have sizes of their own shape"),
    Row(
        "ss_bucket_no_upscale",
        _if_buckets(lambda f: not f.config.data.upscale),
        "`data.upscale`, where they have",
    ),
    Row("ss_min_bucket_reso", _side_of(min), "shortest side of all sizes, where they have"),
    Row("ss_max_bucket_reso", _side_of(max), "longest side of all sizes, where they have"),
    Row("ss_bucket_info", _buckets, "the sizes of the pictures, and how many have each, as JSON", _EDITOR),
    Row("ss_batch_size_per_device", lambda f: f.config.train.batch_size, "`train.batch_size`"),
    Row("ss_total_batch_size", lambda f: f.batch, "pictures of one step"),
    Row(
        "ss_gradient_accumulation_steps",
        lambda f: f.config.train.gradient_accumulation_steps,
        "`train.gradient_accumulation_steps`",
    ),
    Row("ss_mixed_precision", lambda f: _PRECISIONS[f.config.train.precision], "`train.precision`"),
    Row("ss_flip_aug", lambda f: f.config.data.flip, "`data.flip`"),
    Row("ss_color_aug", lambda f: f.config.data.color_jitter.is_on or None, "`data.color_jitter`, where it is on"),
    Row("ss_random_crop", lambda f: f.config.data.crop == "random", "`data.crop`"),
    Row("ss_caption_dropout_rate", lambda f: f.config.data.caption_dropout, "`data.caption_dropout`"),
    Row(
        "ss_min_snr_gamma",
        lambda f: f.config.objective.snr_gamma if f.config.objective.weighting == "min_snr" else None,
        "`objective.snr_gamma`, where it weighs",
    ),
    Row("ss_masked_loss", lambda f: True if f.train.masks else None, "whether pictures had masks, where some had"),
    Row(
        "ss_prior_loss_weight",
        lambda f: None if f.config.data.prior is None else f.config.data.prior.weight,
        "`data.prior.weight`",
    ),
    Row("ss_dataset_dirs", _dirs, "names of the folders, pictures and repeats of each, as JSON", _EDITOR),
    Row("ss_tag_frequency", _tags, "how many pictures have each tag, by folder, as JSON", f"{_EDITOR}; Civitai: tags"),
    Row("ss_training_comment", lambda f: f"{_MAKER} {f.version}".strip(), "Veneer and its version"),
    Row("modelspec.sai_model_spec", lambda f: "1.0.1", "version of the specification", _SWARM),
    Row("modelspec.architecture", _architecture, "kind of base, by its family", "SwarmUI: which base it is for"),
    Row("modelspec.implementation", lambda f: f.labels.implementation, "whose names the tensors have"),
    Row("modelspec.title", lambda f: f.name, "name of the file", _SWARM),
    Row("modelspec.resolution", lambda f: "{1}x{0}".format(*f.buckets.most), "`data.resolution`, the largest"),
    Row("modelspec.description", _description, "pictures, steps and trigger, in a sentence", _SWARM),
    Row("modelspec.trigger_phrase", lambda f: f.config.data.trigger, "`data.trigger`", _SWARM),
    Row("modelspec.prediction_type", lambda f: _PREDICTIONS.get(f.prediction), "what the base predicts"),
    Row("modelspec.encoder_layer", lambda f: f.labels.clip_skip, "layer of the text encoder, where there is a choice"),
    Row("modelspec.license", lambda f: f.license, "licence of the base, where it is known by its hub id", _SWARM),
    Row("modelspec.thumbnail", lambda f: f.thumbnail, "a small picture by the adapter, as a data URL", _SWARM),
)
"""Every key that is written beside Veneer's own, in the order of the docs; hashes of the file itself are added."""


# What the tensors alone tell: also of adapters that were not trained here, and of those that a tool has made.

_LYCORIS = "lycoris.kohya"
_LYCORIS_ARGUMENTS: Mapping[str, Mapping[str, str]] = {
    "dora": {"algo": "lora", "dora_wd": "True"},
    "doha": {"algo": "loha", "dora_wd": "True"},
    "dokr": {"algo": "lokr", "dora_wd": "True"},
    "oft": {"algo": "diag-oft"},
    "ia3_of_peft": {"algo": "ia3"},
    "norm": {"train_norm": "True"},
    "biased": {},
}
"""How LyCORIS' module for kohya's trainer is told to make a method; it has all others under their own names."""
_ONLY_IN_COMFY = ("replaced",)
"""Methods that no module of kohya's trainer reads, although its names can hold them."""


def _lycoris_arguments(weights: AdapterWeights) -> dict[str, str] | None:
    """Return LyCORIS' arguments for an adapter's methods; None: it is LoRA alone, which kohya's own module reads."""
    methods = sorted({adapter.method.name for adapter in weights.values()})
    if methods == ["lora"]:
        return None
    arguments: dict[str, str] = {}
    for name in methods:
        arguments |= {} if name == "lora" else _LYCORIS_ARGUMENTS.get(name, {"algo": name})
    return arguments


def _module(weights: AdapterWeights, labels: BaseLabels | None) -> str | None:
    """Return the module of kohya's trainer that reads an adapter's file; None where none does."""
    if any(adapter.method.name in _ONLY_IN_COMFY for adapter in weights.values()):
        return None
    if _lycoris_arguments(weights) is not None:
        return _LYCORIS
    return labels.module if labels else "networks.lora"


def _arguments(weights: AdapterWeights) -> str | None:
    if _module(weights, None) is None:
        return None
    arguments = _lycoris_arguments(weights) or {}
    convolutions = {path: adapter for path, adapter in weights.items() if math.prod(adapter.shape[2:]) > 1}
    if convolutions and (rank := _size(convolutions, "rank")) is not None:
        arguments |= {"conv_dim": rank, "conv_alpha": _size(convolutions, "alpha") or rank}
    return json.dumps(arguments) if arguments else None


def _size(weights: AdapterWeights, name: str) -> str | None:
    """Return the value that a size has on all layers, ``Dynamic`` where they differ, None where no layer has one."""
    values = {adapter.hyperparameters[name] for adapter in weights.values() if name in adapter.hyperparameters}
    return None if not values else f"{values.pop():g}" if len(values) == 1 else "Dynamic"


# What is made of other adapters.

_OF_TENSORS = ("ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_network_args")
"""Keys that tell what the tensors are."""
_STALE = (*HASH_KEYS, "veneer.tensors.sha256", "modelspec.thumbnail", *_OF_TENSORS)
"""Keys that are no longer true of other tensors; those that the new ones tell are written anew."""
_SAME_TENSORS = ("edit",)
"""Operations that leave all tensors as they are."""
_SAME_PICTURES = (*_SAME_TENSORS, "convert")
"""Operations after which an adapter paints what it painted."""


@dataclass(frozen=True)
class Source:
    """An adapter or a base that another adapter was made of.

    Attributes:
        name: of its file or folder, or hub id; of a path the last part is taken.
        sha256: of it.
    """

    name: str
    sha256: str | None = None

    def as_dict(self) -> dict[str, str]:
        """Return it as JSON has it."""
        name = public_name(Path(self.name).name, "adapter")
        return {"name": name} if self.sha256 is None else {"name": name, "sha256": self.sha256}


def derived(
    metadata: Mapping[str, str], operation: str, sources: Sequence[Source], **details: _Value
) -> dict[str, str]:
    """Return the metadata of an adapter that a tool has made of others.

    What is no longer true is left out: hashes of the old tensors, sizes (:func:`completed` writes the new ones), and
    the picture. What was done is added to ``veneer.history``, and where several adapters were joined, their names to
    ``modelspec.merged_from``.

    Args:
        metadata: of the adapter that it was made of; of several what they have in common (:func:`common`).
        operation: the verb: convert, edit, resize, blend, merge, extract, prune.
        sources: what it was made of.
        **details: how, a few short values by name, such as ``rank=4``.
    """
    stale = set() if operation in _SAME_TENSORS else set(_STALE)
    if operation in _SAME_PICTURES:
        stale.discard("modelspec.thumbnail")
    kept = {key: value for key, value in metadata.items() if key not in stale}
    entry: dict[str, Any] = {"operation": operation, "sources": [source.as_dict() for source in sources]}
    entry |= {key: value for key, value in details.items() if value is not None}
    kept[HISTORY] = json.dumps([*_history(metadata), entry])
    if len(sources) > 1:
        kept["modelspec.merged_from"] = ", ".join(Path(source.as_dict()["name"]).stem for source in sources)
    return kept


def _history(metadata: Mapping[str, str]) -> list[Any]:
    """Return what was done to an adapter so far; what is no list is somebody else's, and stands as it is."""
    if HISTORY not in metadata:
        return []
    try:
        history = json.loads(metadata[HISTORY])
    except (ValueError, RecursionError):
        return [metadata[HISTORY]]
    return history if isinstance(history, list) else [history]


def common(metadata: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return what several files say alike."""
    first, *others = metadata
    return {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}


_FROM_OWN: Mapping[str, tuple[str, ...]] = {
    "veneer.base": ("ss_sd_model_name",),
    "veneer.steps": ("ss_steps",),
    "veneer.seed": ("ss_seed",),
    "veneer.trigger": ("modelspec.trigger_phrase",),
}
"""What Veneer's own keys say, as other programs call it."""


def completed(
    metadata: Mapping[str, str], weights: AdapterWeights, *, name: str, labels: BaseLabels | None
) -> dict[str, str]:
    """Return the metadata of a ``LABELLED`` file with what the adapter and its base's kind tell.

    A1111 takes a file with metadata but without ``ss_base_model_version`` and ``ss_v2`` for one of Stable Diffusion 1,
    and hides it while another base is loaded.

    Args:
        metadata: what is said already; it stays, but what the tensors tell is told of these.
        weights: the adapter.
        name: of the file, without its ending.
        labels: what programs call the base's kind; None: it is not known.
    """
    told = {other: metadata[own] for own, others in _FROM_OWN.items() if own in metadata for other in others}
    told |= {} if labels is None else _of_base(labels, name)
    sizes = {"ss_network_module": _module(weights, labels), "ss_network_args": _arguments(weights)}
    sizes |= {"ss_network_dim": _size(weights, "rank"), "ss_network_alpha": _size(weights, "alpha")}
    own = {key: value for key, value in metadata.items() if key not in (*_OF_TENSORS, *HASH_KEYS)}
    return {"ss_output_name": name, **told, **own, **{key: value for key, value in sizes.items() if value is not None}}


def _of_base(labels: BaseLabels, name: str) -> dict[str, str]:
    own = {"modelspec.sai_model_spec": "1.0.1", "modelspec.title": name, "ss_v2": str(labels.is_v2)}
    own |= {"modelspec.architecture": f"{labels.architecture}/lora", "modelspec.implementation": labels.implementation}
    return own if labels.version is None else {**own, "ss_base_model_version": labels.version}
