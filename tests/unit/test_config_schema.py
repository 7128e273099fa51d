from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.errors import raises_code
from veneer.config.colour import rgb
from veneer.config.data_config import DataConfig
from veneer.config.keys import known_keys, nearest, schema_name, section_at
from veneer.config.load import build_config
from veneer.config.schema import RunConfig
from veneer.config.source_config import SourceConfig
from veneer.config.spellings import ELSEWHERE, MAIN_KEYS, RENAMED
from veneer.rng import MAX_SEED

MINIMAL: dict[str, Any] = {"base": "bundled", "data": {"sources": [{"path": "pictures"}]}}


def with_value(dotted: str, value: object) -> dict[str, Any]:
    """The smallest config with one more key."""
    mapping: dict[str, Any] = {"base": "bundled", "data": {"sources": [{"path": "pictures"}]}}
    *above, name = dotted.split(".")
    here: Any = mapping
    for part in above:
        here = here[int(part)] if part.isdigit() else here.setdefault(part, {})
    here[name] = value
    return mapping


def test_every_key_but_base_and_sources_has_a_default() -> None:
    config = build_config(MINIMAL, "test")
    assert (config.adapter.rank, config.adapter.alpha, config.adapter.dropout) == (4, None, 0.0)
    assert config.adapter.target_modules is None
    assert (config.train.learning_rate, config.train.optimizer.weight_decay, config.train.batch_size) == (1e-4, 0.01, 4)


def test_every_key_says_what_it_means() -> None:
    assert {key for key, meaning in known_keys().items() if not meaning} == set()
    assert len(known_keys()) > 40


def test_a_config_cannot_be_changed() -> None:
    config = build_config(MINIMAL, "test")
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("train.max_steps", "4", 'is "4", but should be a whole number'),
        ("train.max_steps", True, "is true, but should be a whole number"),
        ("train.max_steps", 4.0, "is 4.0, but should be a whole number"),
        ("train.max_steps", 0, "is 0, but should be at least 1"),
        ("train.learning_rate", "1e-4", 'is "1e-4", but should be a number'),
        ("train.learning_rate", True, "is true, but should be a number"),
        ("train.learning_rate", 0, "is 0, but should be greater than 0"),
        ("train.learning_rate", float("nan"), "is NaN, but should be a finite number"),
        ("train.learning_rate", float("inf"), "is Infinity, but should be a finite number"),
        ("adapter.rank", 0, "is 0, but should be at least 1"),
        ("adapter.rank", -4, "is -4, but should be at least 1"),
        ("adapter.text_encoders.text_encoder.rank", 0, "is 0, but should be at least 1"),
        ("adapter.target_modules", "to_q", 'is "to_q", but should be a list; write [to_q]'),
        ("adapter.target_modules", "attention_mpl", "'all_linear'; did you mean attention_mlp?"),
        ("adapter.blocks", "mid_block", 'is "mid_block", but should be a list; write [mid_block]'),
        ("objective.timestep_shift", 0, "is 0, but should be greater than 0"),
        ("objective.timestep_shift", "resolutoin", "but should be 'resolution' or 'none'; did you mean resolution?"),
        ("objective.timestep_shift", True, "is true, but should be a number"),
        ("adapter.target_modules", [], "is [], but should be a list that is not empty"),
        ("adapter.dropout", 1.0, "is 1.0, but should be less than 1"),
        ("adapter.text_encoders.text_encoder", True, "is true, but should be a section"),
        ("data.sources", [], "is [], but should be a list that is not empty"),
        ("data.sources.0.path", 4, "is 4, but should be a path"),
        ("data.sources.0.path", "", "is empty, but should be a path"),
        ("data.sources.0.path", "a\0b", "zero byte"),
        ("data.sources.0.path", "~nobody_of_that_name/a", "~nobody_of_that_name is nobody's home folder"),
        ("data.trigger", 12, 'is 12, but should be text; put it in quotes: "12"'),
        ("data.trigger", " ", "is empty"),
        ("data.flip", "yes", 'is "yes", but should be true or false'),
        ("data.flip", 1, "is 1, but should be true or false"),
        ("data.crop", "centre", "is \"centre\", but should be 'center' or 'random'; did you mean center?"),
        ("data.background", "whiteish", "is 'whiteish', but should be #rrggbb or a CSS colour name"),
        ("data.background", None, "needs quotes in YAML"),
        ("data.held_out", 1, "is 1, but should be less than 1"),
        ("data.held_out", -0.1, "is -0.1, but should be at least 0"),
        ("data.held_out", True, "is true, but should be a number"),
        ("data.resolution", 7, "is 7, but should be at least 8"),
        ("train.precision", "bf16", "did you mean bfloat16?"),
        ("train.optimizer.betas", [0.9], "missing"),
        ("sample.prompts", ["a", 4], 'is 4, but should be text; put it in quotes: "4"'),
        ("sample.guidance", 0.5, "is 0.5, but should be at least 1"),
        ("base", None, "is null, but should be text"),
        ("seed", -1, "is -1, but should be at least 0"),
        ("seed", MAX_SEED + 1, "is 9223372036854775808, but should be at most 9223372036854775807"),
    ],
)
def test_a_wrong_value_is_named_with_its_whole_key(key: str, value: object, fault: str) -> None:
    with raises_code("config.missing_key" if fault == "missing" else "config.invalid_value") as caught:
        build_config(with_value(key, value), "here")
    assert re.match(rf"here: {re.escape(key)}(\.\d)?: ", str(caught.value))
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)


def test_whole_numbers_may_stand_for_real_ones() -> None:
    assert build_config(with_value("adapter.alpha", 8), "test").adapter.alpha == 8.0


def test_warmup_must_end() -> None:
    with raises_code("config.invalid_value") as caught:
        build_config(with_value("train.warmup_steps", 400), "here")
    assert "here: train: warmup_steps is 400, but max_steps is 400" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("train.optimizer.epsilo", "train.optimizer.epsilon"),
        ("train.max_stps", "train.max_steps"),
        ("train.stepz", "train.max_steps"),
        ("trian", "train"),
        ("rank", "adapter.rank"),
        ("learning_rate", "train.learning_rate"),
        ("train.network_dim", "adapter.rank"),
        ("adapter.text_encoders.text_encoder.rnk", "adapter.text_encoders.text_encoder.rank"),
        ("data.sources.0.repeat", "data.sources.0.repeats"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known(key: str, meant: str) -> None:
    with raises_code("config.unknown_key") as caught:
        build_config(with_value(key, 1), "here")
    assert str(caught.value) == f"here: {key}: no such key; did you mean {meant}?"


def test_a_key_like_no_other_has_no_suggestion() -> None:
    with raises_code("config.unknown_key") as caught:
        build_config(with_value("zzzzzz", 1), "here")
    assert str(caught.value) == "here: zzzzzz: no such key"


def is_known(name: str) -> bool:
    key = tuple(name.split("."))
    return section_at(key) is not None or schema_name(key) in known_keys()


@pytest.mark.parametrize(("old", "new"), [pair for pair in RENAMED.items() if pair[0] != "output"])
def test_a_key_of_an_earlier_release_is_answered_with_its_name_of_now(old: str, new: str) -> None:
    with raises_code("config.unknown_key") as caught:
        build_config(with_value(old, 1), "here")
    unknown = next((section for section in ("evaluate", "adapter.text_encoder") if old.startswith(section)), old)
    assert str(caught.value) == f"here: {unknown}: no such key; did you mean {RENAMED[unknown]}?"
    assert is_known(new) and not is_known(old)
    assert nearest(tuple(old.split("."))) == new


@pytest.mark.parametrize("section", ["", "train.", "adapter."])
def test_another_trainers_name_is_answered_with_ours(section: str) -> None:
    for name, meant in ELSEWHERE.items():
        with raises_code("config.unknown_key") as caught:
            build_config(with_value(section + name, 1), "here")
        assert str(caught.value) == f"here: {section}{name}: no such key; did you mean {meant}?"
        assert is_known(meant)


def test_other_trainers_names_that_are_also_ours_elsewhere_are_few() -> None:
    ours = {known.rpartition(".")[2] for known in known_keys()}
    assert ours & set(ELSEWHERE) == {"steps"}, "in other trainers they are those of training, not of sampling"


@pytest.mark.parametrize(
    ("key", "value", "set_this"),
    [
        ("output", "runs/mine", "output.dir"),
        ("train.optimizer", "adamw", "train.optimizer.name"),
        ("data", "pictures", "data.sources"),
        ("data.prior", "a cat", "data.prior.prompt"),
    ],
)
def test_a_plain_value_for_a_section_is_answered_with_the_key_that_it_is_for(
    key: str, value: str, set_this: str
) -> None:
    with raises_code("config.invalid_value") as caught:
        build_config(with_value(key, value), "here")
    what = f'here: {key}: is "{value}", but should be a section with keys of its own; set {set_this}'
    assert str(caught.value) == what
    assert set(MAIN_KEYS.values()) <= set(known_keys())


def test_a_mistyped_required_key_is_reported_as_mistyped_and_the_rest_is_named() -> None:
    with raises_code("config.unknown_key") as caught:
        build_config({"bas": "bundled", "data": {"sources": [{"path": "a"}]}, "seed": "1"}, "here")
    assert str(caught.value) == "here: bas: no such key (also wrong: base, seed); did you mean base?"


def test_what_is_missing_is_explained() -> None:
    with raises_code("config.missing_key") as caught:
        build_config({"data": {"sources": [{"path": "a"}]}}, "here")
    what = "here: base: missing; bundled, a diffusers folder, a .safetensors file, or a hub id"
    assert str(caught.value).startswith(what)


def test_held_out_is_a_share_or_a_folder() -> None:
    assert build_config(with_value("data.held_out", 0), "test").data.held_out == 0.0
    assert build_config(with_value("data.held_out", 0.25), "test").data.held_out == 0.25
    assert build_config(with_value("data.held_out", "pictures/held"), "test").data.held_out == Path("pictures/held")


def test_the_home_folder_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    config = DataConfig(sources=(SourceConfig(path=Path("~/pictures")),))
    assert config.sources[0].path == Path("/home/somebody/pictures")


@pytest.mark.parametrize(
    ("colour", "value"),
    [("white", (255, 255, 255)), ("Green", (0, 128, 0)), ("#0aF010", (10, 240, 16)), ("RebeccaPurple", (102, 51, 153))],
)
def test_colours(colour: str, value: tuple[int, int, int]) -> None:
    assert rgb(colour) == value


def test_the_names_of_html_are_what_they_were() -> None:
    """HTML 4.01, section 6.5, with both spellings of gray: pictures with such a background train as before."""
    html = """
        black 000000, silver c0c0c0, gray 808080, grey 808080, white ffffff, maroon 800000, red ff0000, purple 800080,
        fuchsia ff00ff, green 008000, lime 00ff00, olive 808000, yellow ffff00, navy 000080, blue 0000ff, teal 008080,
        aqua 00ffff
    """
    for name, value in (pair.split() for pair in html.split(",")):
        assert rgb(name) == rgb(f" #{value}") == tuple(bytes.fromhex(value))


@pytest.mark.parametrize(
    "colour",
    ["#fff", "#12345g", "#1234567", "#12345678", "whit", "", "rgb(300, 0, 0)", "#" + "\N{ARABIC-INDIC DIGIT ONE}" * 6],
)
def test_what_is_no_colour(colour: str) -> None:
    with pytest.raises(ValueError, match="should be #rrggbb or a CSS colour name, such as white"):
        rgb(colour)


def test_the_schema_is_also_a_json_schema() -> None:
    schema = RunConfig.model_json_schema()
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["AdapterConfig"]["properties"]["rank"]["minimum"] == 1


def test_config_and_manifest_import_nothing_slow() -> None:
    code = (
        "import sys, veneer.config.load, veneer.data.manifest;"
        "slow = {'torch', 'PIL', 'numpy', 'diffusers', 'transformers'} & set(sys.modules);"
        "sys.exit(str(slow) if slow else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_config_is_hashed_by_its_values() -> None:
    adapted, other = (
        build_config(with_value("adapter.text_encoders.text_encoder.rank", rank), "test") for rank in (2, 3)
    )
    again = build_config(with_value("adapter.text_encoders.text_encoder.rank", 2), "test")
    assert hash(adapted) == hash(again) != hash(other)
