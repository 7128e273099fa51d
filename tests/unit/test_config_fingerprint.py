"""What of a config shapes an adapter: all but a few keys, each of which has its reason."""

from __future__ import annotations

from typing import Any

import pytest

from tests.bases import Defaults
from veneer.config.fingerprint import config_hash, differences, training_settings
from veneer.config.keys import known_keys, schema_name
from veneer.config.load import build_config, resolve
from veneer.config.schema import RunConfig

SILENT = [
    "base",
    "base.path",
    "base.components",
    "base.expert",
    "data.cache",
    "data.held_out",
    "data.max_rejected",
    "data.sources",
    "data.split_from",
]
SILENT += ["data.workers", "data.worker_type"]
SILENT += [
    "validation.draws",
    "output.dir",
    "output.formats",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.offload",
    "train.offload_blocks",
]
SILENT += ["tracking.trackers", "tracking.project"]
SILENT += ["validation.pictures", "validation.every", "validation.patience"]
SILENT += [
    "sample.every",
    "sample.frames",
    "sample.guidance",
    "sample.prompts",
    "sample.references",
    "sample.steps",
    "data.prior.path",
    "adapter.training_adapter",
]


def config(**sections: Any) -> RunConfig:
    values: dict[str, Any] = {"base": "bundled", "data": {"sources": [{"path": "p"}], "trigger": "sks"}}
    values["data"] |= {"prior": {"prompt": "a cat"}, "aspect": "square", "upscale": True}
    values["data"] |= {"trigger_placement": "start", "caption_template": ["a {caption}"], "prompt_weights": "strip"}
    values["data"] |= {
        "crop_jitter": 0.1,
        "frames": [1, 17],
        "frame_extraction": "head",
        "frame_rate": 16.0,
        "shuffle_window": 100,
        "color_jitter": dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0.1),
    }
    values["objective"] = {"timestep_density": "logit_normal", "timestep_shift": 3.0}
    values["objective"] |= {"unmasked_weight": 0.1, "normalize_masked_area": False}
    values["adapter"] = {"blocks": ["blocks.1"], "text_encoders": {"text_encoder": {"blocks": ["layers.0"]}}}
    values["train"] = {"ema_decay": 0.9, "text_encoder_quantization": "none"}
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
    return resolve(build_config(values, "test"), Defaults(64))


def test_every_key_shapes_the_adapter_or_is_known_not_to() -> None:
    """A new key of the schema must be thought about: it shapes the adapter until it is put among the silent ones."""
    sections = {key for key in known_keys() if any(other.startswith(f"{key}.") for other in known_keys())}
    leaves = {key for key in known_keys() if key not in sections and not key.startswith("data.sources.")}
    expected = leaves - {key for key in SILENT}
    assert {schema_name(tuple(key.split("."))) for key in training_settings(config())} == expected


@pytest.mark.parametrize(
    "change",
    [
        {"output": {"dir": "elsewhere", "formats": ["peft"]}},
        {"base": "elsewhere"},
        {"sample": {"every": 3, "steps": 1}},
        {"adapter": {"training_adapter": "elsewhere.safetensors"}},
        {"tracking": {"trackers": [], "project": "mine"}},
        {"validation": {"draws": 2, "pictures": 3, "every": 5, "patience": 2}},
        {"train": {"checkpoint_every": 3, "keep_checkpoints": 9, "offload": False, "offload_blocks": 9}},
        {"data": {"sources": [{"path": "q"}], "held_out": 0.5, "trigger": "sks", "prior": {"prompt": "a cat"}}},
    ],
)
def test_what_has_no_say_is_in_no_hash(change: dict[str, Any]) -> None:
    assert config_hash(config(**change)) == config_hash(config())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seed": 1}, {"seed": (0, 1)}),
        (
            {"adapter": {"rank": 8}},
            {"adapter.rank": (4, 8), "adapter.alpha": (4.0, 8.0)},
        ),
        (
            {"adapter": {"blocks": ["blocks.2"]}},
            {"adapter.blocks": (["blocks.1"], ["blocks.2"])},
        ),
        ({"train": {"max_grad_norm": None}}, {"train.max_grad_norm": (1.0, None)}),
        ({"train": {"optimizer": {"betas": [0.5, 0.9]}}}, {"train.optimizer.betas": ([0.9, 0.999], [0.5, 0.9])}),
        ({"data": {"trigger": None}}, {"data.trigger": ("sks", None)}),
        ({"objective": {"timestep_shift": "resolution"}}, {"objective.timestep_shift": (3.0, "resolution")}),
        ({"objective": {"logit_mean": -0.5}}, {"objective.logit_mean": (0.0, -0.5)}),
        ({"objective": {"logit_std": 1.5}}, {"objective.logit_std": (1.0, 1.5)}),
    ],
)
def test_what_has_a_say_is_told_and_hashed(change: dict[str, Any], told: dict[str, Any]) -> None:
    assert differences(training_settings(config()), training_settings(config(**change))) == told
    assert config_hash(config(**change)) != config_hash(config())


def test_a_section_that_was_not_there_is_told_key_by_key() -> None:
    old, new = training_settings(config(adapter={"text_encoders": {}})), training_settings(config())
    assert differences(old, new)["adapter.text_encoders.text_encoder.rank"] == (None, 4)
    assert differences(old, old) == {}


def test_no_shift_is_no_setting_whatever_it_is_called() -> None:
    """So a run of a base without a shift goes on from checkpoints of before there were any."""
    hashes = {config_hash(config(objective={"timestep_shift": shift})) for shift in ("none", 1.0, None)}
    assert len(hashes) == 1
    assert "objective.timestep_shift" not in training_settings(config(objective={"timestep_shift": "none"}))
