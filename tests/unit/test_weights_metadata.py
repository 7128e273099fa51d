"""Metadata of adapter files: what other programs read, and what tools keep of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lycoris.wrapper import network_module_dict

from tests.adapters import adapter
from tests.bases import Defaults
from veneer.adapter.lora import LoraFactors
from veneer.adapter.protocol import Method
from veneer.adapter.registry import METHODS
from veneer.config.load import build_config
from veneer.data.buckets import Buckets
from veneer.data.manifest import Manifest, Mask, Sample
from veneer.files import public_name
from veneer.weights.metadata import (
    HISTORY,
    TABLE,
    BaseLabels,
    Source,
    TrainingFacts,
    common,
    completed,
    derived,
    training_metadata,
)

SDXL = BaseLabels("stable-diffusion-xl-v1-base", "sdxl_base_v1-0", implementation="sgm", webui="SDXL")


def sample(place: str, *captions: str, repeats: int = 1) -> Sample:
    return Sample(place, Path(place), captions, 512, 512, repeats)


def facts(**sections: Any) -> TrainingFacts:
    values = {
        "base": "owner/base",
        "data": {"sources": [{"path": "/home/alice/set/pictures"}], "resolution": 512, "trigger": "zxc"},
        "train": {"batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 10},
        "seed": 7,
    }
    pictures = (
        sample("/home/alice/set/pictures/a.png", "Red, cat , zxc", repeats=3),
        sample("/home/alice/set/pictures/b.png", "red, dog", "red, hound", repeats=3),
        sample("/home/alice/other/pictures/c.png", "a tree"),
    )
    config = build_config({**values, **sections}, "test")
    return TrainingFacts(
        config=config,
        buckets=Buckets.of(config.data, Defaults(512, multiple=8)),
        name="shapes",
        weights=adapter(0),
        steps=5,
        train=Manifest(pictures),
        held_out=1,
        base_name="owner/base",
        labels=SDXL,
        prediction="epsilon",
        version="0.1.0",
    )


def test_what_is_said_of_a_training() -> None:
    said = training_metadata(facts(), "kohya")
    expected = {
        "ss_v2": "False",
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "2",
        "ss_network_alpha": "3",
        "ss_output_name": "shapes",
        "ss_sd_model_name": "owner/base",
        "ss_steps": "5",
        "ss_num_train_images": "7",
        "ss_num_batches_per_epoch": "4",
        "ss_epoch": "3",  # 5 steps of 4 pictures, of 7 an epoch
        "ss_num_epochs": "6",
        "ss_total_batch_size": "4",
        "ss_seed": "7",
        "ss_mixed_precision": "no",
        "ss_resolution": "(512, 512)",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.resolution": "512x512",
        "modelspec.trigger_phrase": "zxc",
        "modelspec.prediction_type": "epsilon",
    }
    assert expected.items() <= said.items()
    assert json.loads(said["ss_network_args"]) == {"conv_dim": "2", "conv_alpha": "3"}
    assert not any(value == "None" for value in said.values())


def test_tags_are_counted_by_picture_and_folder() -> None:
    said = training_metadata(facts(), "kohya")
    tags = json.loads(said["ss_tag_frequency"])
    assert tags == {"pictures": {"red": 2, "cat": 1, "zxc": 1, "dog": 1, "hound": 1}, "pictures (2)": {"a tree": 1}}
    assert next(iter(tags["pictures"])) == "red"
    assert json.loads(said["ss_dataset_dirs"]) == {
        "pictures": {"n_repeats": 3, "img_count": 2},
        "pictures (2)": {"n_repeats": 1, "img_count": 1},
    }


@pytest.mark.parametrize("format_name", ["diffusers", "peft"])
def test_files_whose_readers_look_for_nothing_get_nothing(format_name: str) -> None:
    assert training_metadata(facts(), format_name) == {}


def test_what_does_not_apply_is_left_out() -> None:
    said = training_metadata(replace(facts(), labels=BaseLabels("stable-diffusion", None), prediction="flow"), "kohya")
    left_out = {"ss_base_model_version", "modelspec.prediction_type", "ss_clip_skip", "ss_min_snr_gamma"}
    assert not left_out & said.keys()
    weighed = facts(objective={"weighting": "min_snr"})
    assert training_metadata(weighed, "comfy")["ss_min_snr_gamma"] == "5.0"
    first, *others = facts().train.samples
    masked = Manifest((replace(first, mask=Mask("hash", first.location, 0.5)), *others))
    assert "ss_masked_loss" not in said
    assert training_metadata(replace(facts(), train=masked), "kohya")["ss_masked_loss"] == "True"


def test_no_key_is_twice_in_the_table() -> None:
    keys = [row.key for row in TABLE]
    assert len(set(keys)) == len(keys)
    assert all(row.fact for row in TABLE)


@dataclass(frozen=True)
class Layer:
    """What metadata asks of a layer."""

    method: Method
    hyperparameters: Mapping[str, float] = field(default_factory=lambda: {"rank": 4.0, "alpha": 2.0})
    shape: tuple[int, ...] = (8, 8)


_OTHERS = ("lora", "replaced")


def said_of(*methods: str) -> tuple[str | None, dict[str, str]]:
    weights: Any = {f"unet.{name}": Layer(METHODS[name]) for name in methods}
    said = completed({}, weights, name="x", labels=SDXL)
    return said.get("ss_network_module"), json.loads(said.get("ss_network_args", "{}"))


@pytest.mark.parametrize(
    "method", sorted(name for name, method in METHODS.items() if "kohya" in method.endings and name not in _OTHERS)
)
def test_lycoris_knows_every_method_by_the_name_that_is_written(method: str) -> None:
    module, arguments = said_of(method)
    assert module == "lycoris.kohya"
    assert arguments.get("algo", "lora") in network_module_dict


def test_the_module_reads_all_layers_of_a_file() -> None:
    assert said_of("lora") == ("networks.lora", {})
    assert said_of("lora", "norm") == ("lycoris.kohya", {"train_norm": "True"})
    assert said_of("dora") == ("lycoris.kohya", {"algo": "lora", "dora_wd": "True"})
    assert said_of("lora", "replaced") == (None, {}), "no module of kohya's trainer reads it"
    assert said_of("doha")[1] == {"algo": "loha", "dora_wd": "True"}


def test_ranks_that_differ_are_called_dynamic() -> None:
    mixed = {**adapter(0, rank=2), "other.0": LoraFactors(torch.ones(3, 4), torch.ones(4, 3), 1.0)}
    said = completed({}, mixed, name="x", labels=SDXL)
    assert (said["ss_network_dim"], said["ss_network_alpha"]) == ("Dynamic", "Dynamic")


def test_a_file_of_the_bases_list_says_its_base() -> None:
    """A1111 takes a file that says other things and not this for one of Stable Diffusion 1."""
    own = {"veneer.trigger": "zxc", "veneer.steps": "5", "veneer.base": "base", "ss_network_dim": "64"}
    said = completed(own, adapter(0), name="x", labels=SDXL)
    assert said["ss_base_model_version"] == "sdxl_base_v1-0" and said["ss_v2"] == "False"
    assert (said["ss_output_name"], said["ss_steps"], said["modelspec.trigger_phrase"]) == ("x", "5", "zxc")
    assert said["ss_network_dim"] == "2", "what the tensors tell is told of these tensors"
    assert own.items() - {("ss_network_dim", "64")} <= said.items()


def test_what_was_said_before_stays() -> None:
    own = {"ss_output_name": "theirs", "ss_base_model_version": "sd_v1", "modelspec.title": "Theirs"}
    assert own.items() <= completed(own, adapter(0), name="x", labels=SDXL).items()


def test_a_derived_file_says_what_it_was_made_of_and_no_more_what_it_was() -> None:
    old = training_metadata(replace(facts(), thumbnail="data:image/png;base64,AA=="), "kohya")
    old |= {"sshs_model_hash": "ab", "sshs_legacy_hash": "cd", "modelspec.hash_sha256": "0xab"}
    new = derived(old, "resize", [Source("/home/alice/x.safetensors", "ab" * 32)], rank=1)
    gone = {"ss_network_dim", "ss_network_alpha", "ss_network_module", "ss_network_args", "modelspec.thumbnail"}
    assert old.keys() - new.keys() == gone | {"sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256"}
    assert json.loads(new[HISTORY]) == [
        {"operation": "resize", "sources": [{"name": "x.safetensors", "sha256": "ab" * 32}], "rank": 1}
    ]
    twice = derived(new, "edit", [Source("y.safetensors")])
    assert [step["operation"] for step in json.loads(twice[HISTORY])] == ["resize", "edit"]
    assert derived(old, "convert", [Source("x")]).get("modelspec.thumbnail")


def test_joined_files_say_what_they_have_in_common() -> None:
    one, other = {"ss_v2": "False", "ss_seed": "1"}, {"ss_v2": "False", "ss_seed": "2"}
    new = derived(common([one, other]), "blend", [Source("a.safetensors"), Source("b.safetensors")])
    assert new["modelspec.merged_from"] == "a, b"
    assert new["ss_v2"] == "False" and "ss_seed" not in new


@pytest.mark.parametrize("history", ["no json", "7", "[" * 100_000])
def test_a_history_that_is_somebody_elses_stays(history: str) -> None:
    steps = json.loads(derived({HISTORY: history}, "edit", [])[HISTORY])
    assert len(steps) == 2 and str(steps[0]) == history


def test_the_users_own_name_is_told_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/alice")
    assert [public_name(name, "pictures") for name in ("alice", "Alice", "", "..", "cats")] == ["pictures"] * 4 + [
        "cats"
    ]
    assert Source("/home/alice").as_dict() == {"name": "adapter"}


def test_a1111_shows_tags_resolution_and_size_of_the_dataset() -> None:
    """As ``read_metadata_from_safetensors`` and ``get_metadata_table`` do (sd_models.py, ui_edit_user_metadata.py)."""
    said = training_metadata(facts(), "kohya")
    read: dict[str, Any] = {key: json.loads(text) if text[:1] == "{" else text for key, text in said.items()}
    shown = ("ss_output_name", "ss_sd_model_name", "ss_network_module")
    assert all(isinstance(read[key], str) for key in shown), "they are escaped as texts"
    assert sum(int(each["img_count"]) for each in read["ss_dataset_dirs"].values()) == 3
    (bucket,) = read["ss_bucket_info"]["buckets"].values()
    assert (bucket["resolution"], int(bucket["count"])) == ([512, 512], 7)
    tags = [(tag.strip(), int(count)) for each in read["ss_tag_frequency"].values() for tag, count in each.items()]
    assert max(tags, key=lambda tag: tag[1]) == ("red", 2)


def test_squares_of_one_size_say_nothing_of_buckets() -> None:
    said = training_metadata(facts(), "kohya")
    assert said["ss_bucket_info"] == (
        '{"buckets": {"0": {"resolution": [512, 512], "count": 7}}, "mean_img_ar_error": 0.0}'
    )
    assert not {"ss_enable_bucket", "ss_bucket_no_upscale", "ss_min_bucket_reso", "ss_max_bucket_reso"} & said.keys()


def test_buckets_are_told_as_kohyas_trainer_does() -> None:
    """``ss_bucket_info`` is ``BaseDataset.bucket_info`` of sd-scripts' train_util.py: sizes are (width, height)."""
    square, tall = facts().train.samples[0], sample("/t.png", "a tall one", repeats=2)
    pictures = Manifest(
        (square, replace(tall, width=640, height=960), replace(tall, width=300, height=300, weight=0.5))
    )
    said = training_metadata(replace(facts(), train=pictures), "kohya")
    info = json.loads(said["ss_bucket_info"])
    assert [(one["resolution"], one["count"]) for one in info["buckets"].values()] == [
        ([288, 288], 1),
        ([512, 512], 3),
        ([416, 608], 2),
    ]
    assert info["mean_img_ar_error"] == pytest.approx(abs(416 / 608 - 640 / 960) / 3)
    assert (said["ss_enable_bucket"], said["ss_bucket_no_upscale"], said["ss_num_train_images"]) == (
        "True",
        "True",
        "6",
    )
    assert (said["ss_min_bucket_reso"], said["ss_max_bucket_reso"]) == ("288", "608")


@pytest.mark.parametrize(("resolution", "told"), [("832x1216", (832, 1216)), ([512, 768], (768, 768))])
def test_the_largest_resolution_is_told(resolution: Any, told: tuple[int, int]) -> None:
    data = {"sources": [{"path": "/p"}], "resolution": resolution}
    said = training_metadata(facts(data=data), "kohya")
    assert (said["ss_resolution"], said["modelspec.resolution"]) == (str(told), "{}x{}".format(*told))


def test_the_docs_have_the_table() -> None:
    docs = (Path(__file__).parents[2] / "docs" / "adapters.md").read_text("utf-8").splitlines()
    start = docs.index("| key | what it says | read or shown by |") + 2
    assert docs[start : start + len(TABLE)] == [f"| `{row.key}` | {row.fact} | {row.shown} |" for row in TABLE]
