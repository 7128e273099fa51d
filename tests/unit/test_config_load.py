from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.bases import Defaults
from tests.errors import raises_code
from veneer.config.adapter_config import AdapterConfig, TargetPreset, TextEncoderAdapterConfig
from veneer.config.base_name import BaseName, components_of, expert_of
from veneer.config.data_config import ColorJitterConfig, DataConfig, PriorConfig
from veneer.config.document import read_yaml
from veneer.config.keys import known_keys, schema_name
from veneer.config.load import (
    build_config,
    config_from_folder,
    dump_config,
    list_presets,
    load_config,
    resolve,
    write_config,
)
from veneer.config.objective_config import Density, ObjectiveConfig
from veneer.config.paths import names_only
from veneer.config.schema import OutputConfig, RunConfig, SampleConfig, TrackingConfig, ValidationConfig
from veneer.config.source_config import ColumnsConfig, SourceConfig
from veneer.config.train_config import OptimizerConfig, TrainConfig, WeightFormat
from veneer.errors import UserError
from veneer.rng import MAX_SEED
from veneer.weights.adapter_path import FILE_NAMES

MINIMAL = "base: bundled\ndata:\n  sources: [{path: pictures}]\n"


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    return write(tmp_path, MINIMAL)


def write(folder: Path, text: str) -> Path:
    path = folder / "style.yaml"
    path.write_text(text, "utf-8")
    return path


def test_a_file_is_read(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, MINIMAL + "train:\n  learning_rate: 1e-3\n"))
    assert config.train.learning_rate == 1e-3
    assert config.data.sources[0].path == tmp_path / "pictures", "relative to the file, wherever it is read from"


@pytest.mark.parametrize(
    ("text", "message", "code"),
    [
        (
            "train:\n  optimizer:\n    epsilo: 1e-4\n",
            "style.yaml:6: train.optimizer.epsilo: no such key; did you mean",
            "unknown_key",
        ),
        ("train:\n\n  max_steps: '4'\n", 'style.yaml:6: train.max_steps: is "4"', "invalid_value"),
        (
            "adapter:\n  rank: 4\n  rank: 8\n",
            "style.yaml:6: adapter.rank is given twice, first in line 5",
            "duplicate_key",
        ),
        (
            "train:\n  optimizer:\n    betas:\n      - 0.9\n      - 2\n",
            "style.yaml:8: train.optimizer.betas.1: is 2",
            "invalid_value",
        ),
        ("adapter: [\n", "style.yaml:5: not YAML", "not_yaml"),
    ],
)
def test_a_fault_is_named_with_its_line(tmp_path: Path, text: str, message: str, code: str) -> None:
    with raises_code(f"config.{code}") as caught:
        load_config(write(tmp_path, MINIMAL + text))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message", "code"),
    [("- a", "should be a list of keys", "not_a_mapping"), ("", "base: missing", "missing_key")],
)
def test_a_file_that_is_no_config(tmp_path: Path, text: str, message: str, code: str) -> None:
    with raises_code(f"config.{code}") as caught:
        load_config(write(tmp_path, text))
    assert message in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with raises_code("files.not_found"):
        load_config(tmp_path / "style.yaml")


def test_overrides_win_over_the_file_and_the_file_over_presets(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "adapter: {rank: 5}\n")
    assert load_config(write(tmp_path, MINIMAL), presets=["rank-large"]).adapter.rank == 64
    path = write(tmp_path, MINIMAL + "adapter: {rank: 5}\n")
    config = load_config(path, presets=["rank-large"])
    assert (config.adapter.rank, config.adapter.dropout) == (5, 0.05), "sections are merged key by key"
    assert load_config(path, ["adapter.rank=6"], ["rank-large"]).adapter.rank == 6
    assert load_config(path, ["train.max_steps=6", "train.max_steps=7"]).train.max_steps == 7


def test_later_presets_win(minimal: Path) -> None:
    assert load_config(minimal, presets=["rank-tiny", "style"]).adapter.rank == 8
    assert load_config(minimal, presets=["style", "rank-tiny"]).adapter.rank == 2


def test_lists_are_replaced_whole(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "adapter: {target_modules: [to_q, to_k]}\n")
    assert load_config(path, ["adapter.target_modules=[to_v]"]).adapter.target_modules == ("to_v",)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.learning_rate=1e-3", "train.learning_rate", 1e-3),
        ("data.sources.0.repeats=3", "data.sources.0.repeats", 3),
        ("data.trigger=a toy, red", "data.trigger", "a toy, red"),
        ("data.trigger=no", "data.trigger", "no"),
        ("data.trigger=a=b", "data.trigger", "a=b"),
        ("data.background=#ff0000", "data.background", "#ff0000"),
        ("data.resolution=", "data.resolution", None),
        ("adapter.text_encoders.text_encoder.rank=2", "adapter.text_encoders.text_encoder.rank", 2),
        ("adapter.text_encoders.text_encoder={}", "adapter.text_encoders.text_encoder.rank", 4),
        ("sample.prompts=[a cat, a dog]", "sample.prompts", ("a cat", "a dog")),
    ],
)
def test_an_override_is_yaml(minimal: Path, override: str, key: str, value: object) -> None:
    found: Any = load_config(minimal, [override])
    for part in key.split("."):
        found = found[int(part)] if part.isdigit() else found[part] if isinstance(found, dict) else getattr(found, part)
    assert found == value


@pytest.mark.parametrize(
    ("override", "message", "code"),
    [
        (
            "train.max_steps",
            "train.max_steps: should be key=value; for example train.max_steps=200",
            "malformed_override",
        ),
        ("=4", "=4: should be key=value; for example train.max_steps=200", "malformed_override"),
        (
            "train..max_steps=4",
            "train..max_steps=4: should be key=value; for example train.max_steps=200",
            "malformed_override",
        ),
        ("train.max_steps=ten", 'train.max_steps=ten: is "ten", but should be a whole number', "invalid_value"),
        ("train.max_stps=10", "train.max_stps=10: no such key; did you mean train.max_steps?", "unknown_key"),
        ("train.steps=10", "train.steps=10: no such key; did you mean train.max_steps?", "unknown_key"),
        ("evaluate.draws=2", "evaluate.draws=2: evaluate is no key; did you mean validation?", "unknown_key"),
        ("output=x", 'output=x: is "x", but should be a section with keys of its own; set output.dir', "invalid_value"),
        ("output.formats=[peft,peft]", "output.formats=[peft,peft]: names one twice", "invalid_value"),
        ("trian.max_steps=10", "trian.max_steps=10: trian is no key; did you mean train?", "unknown_key"),
        ("seed.x=1", "seed.x=1: seed has no x", "unknown_key"),
        ("adapter.3=1", "adapter.3=1: adapter has no 3", "unknown_key"),
        ("3=1", "3=1: a config has no 3", "unknown_key"),
        (
            "data.sources.1.repeats=2",
            "data.sources.1.repeats=2: data.sources has 1 elements, counted from 0",
            "unknown_element",
        ),
        ("data.sources.path=a", "data.sources.path=a: data.sources has 1 elements, counted from 0", "unknown_element"),
        ("sample.prompts=[a", "sample.prompts=[a:1: not YAML: expected ',' or ']', but got '<stream end>'", "not_yaml"),
    ],
)
def test_a_faulty_override_is_named(minimal: Path, override: str, message: str, code: str) -> None:
    with raises_code(f"config.{code}") as caught:
        load_config(minimal, [override])
    assert str(caught.value) == message


def test_a_section_under_a_value_is_a_mistake(tmp_path: Path) -> None:
    with raises_code("config.unknown_key") as caught:
        load_config(write(tmp_path, MINIMAL + "train: 4\n"), ["train.max_steps=1"])
    assert str(caught.value) == "train.max_steps=1: train has no max_steps"


def test_every_preset_says_why_and_can_be_taken(minimal: Path) -> None:
    presets = list_presets()
    assert {"rank-tiny", "rank-small", "rank-medium", "rank-large", "style", "subject"} == set(presets)
    assert all(len(why) > 40 and "#" not in why for why in presets.values())
    plain = load_config(minimal, ["data.prior.prompt=a cat"])
    for name in presets:
        assert load_config(minimal, ["data.prior.prompt=a cat"], [name]) != plain, name


@pytest.mark.parametrize(
    ("name", "ranks"), [("tiny", (1, 2)), ("small", (4, 8)), ("medium", (16, 32)), ("large", (64,))]
)
def test_rank_presets_have_the_rank_they_name(minimal: Path, name: str, ranks: tuple[int, ...]) -> None:
    assert load_config(minimal, presets=[f"rank-{name}"]).adapter.rank in ranks


def test_the_subject_preset_asks_for_the_class(minimal: Path) -> None:
    with raises_code("config.missing_key") as caught:
        load_config(minimal, presets=["subject"])
    assert re.match(r"preset subject:\d+: data.prior.prompt: missing; Names the class", str(caught.value))


def test_an_unknown_preset_is_named_with_the_nearest(minimal: Path) -> None:
    with raises_code("config.unknown_preset") as caught:
        load_config(minimal, presets=["stile"])
    assert str(caught.value) == "stile: no such preset; did you mean style?"
    with raises_code("config.unknown_preset") as caught:
        load_config(minimal, presets=["zzz"])
    assert "there are rank-large, rank-medium" in str(caught.value)


def test_a_folder_is_enough(tmp_path: Path) -> None:
    config = config_from_folder(tmp_path / "cats", "tok", ["train.max_steps=5"], ["rank-tiny"])
    assert config.data.sources == (SourceConfig(path=tmp_path / "cats"),)
    assert (config.base, config.data.trigger, config.output.dir) == ("bundled", "tok", Path("runs/cats"))
    assert (config.train.max_steps, config.adapter.rank) == (5, 2)
    assert config_from_folder(tmp_path, None, ["base=mine", "output.dir=there"]).base == "mine"


def test_resolving_fills_in_what_was_left_open(minimal: Path) -> None:
    asked = load_config(
        minimal, ["adapter.rank=8", "adapter.text_encoders.text_encoder.rank=2", "data.prior.prompt=a cat"]
    )
    config = resolve(asked, Defaults(512))
    assert (config.adapter.alpha, config.data.resolution) == (8.0, 512)
    assert config.adapter.text_encoders["text_encoder"].alpha == 2.0
    assert config.adapter.target_modules == ("to_q", "to_k", "to_v", "to_out.0")
    assert config.adapter.text_encoders["text_encoder"].target_modules == ("q_proj", "k_proj", "v_proj", "out_proj")
    assert config.data.prior is not None and config.data.prior.path == config.output.dir / "prior"
    assert config.output.dir == minimal.parent / "runs/adapter"
    assert resolve(config, Defaults(64)) == config


def test_resolving_keeps_what_was_said(minimal: Path) -> None:
    said = ["adapter.alpha=1", "data.resolution=32", "data.prior={prompt: a cat, path: cats}"]
    config = resolve(load_config(minimal, said), Defaults(512))
    assert (config.adapter.alpha, config.data.resolution) == (1.0, 32)
    assert config.data.prior is not None and config.data.prior.path == Path("cats")


def test_a_config_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run" / "config.yaml"
    config = config_from_folder(tmp_path, "tok")
    config = config.in_folder(Path.cwd() / config.output.dir)  # what is relative is written whole
    write_config(config, path)
    assert load_config(path) == config

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with raises_code("files.unwritable"):
        write_config(config_from_folder(tmp_path, "other"), path)
    assert load_config(path) == config
    assert [file.name for file in path.parent.iterdir()] == ["config.yaml"]


shares = st.floats(0, 1, exclude_max=True)
positives = st.floats(0, exclude_min=True, allow_infinity=False)
counts = st.integers(1)
words = st.text(min_size=1).filter(lambda text: bool(text.strip()))
targets = st.lists(words, min_size=1, max_size=3).map(tuple)
folders = st.text(st.characters(exclude_characters="\0~", codec="utf-8"), min_size=1).map(Path) | st.just(Path("0.1"))
several = st.lists(folders, max_size=2).map(tuple)


def of(model: type[Any], **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Instances with any value in every field; choices are read off the annotations."""
    for name, field in model.model_fields.items():
        if name not in fields:
            assert get_args(field.annotation), name
            fields[name] = st.sampled_from(get_args(field.annotation))
    return st.builds(model, **fields)


def held_in_folder(config: DataConfig, folder: Path) -> DataConfig:
    return config.model_copy(update={"held_out": folder, "split_from": None})


resolutions = st.integers(8) | st.sampled_from(["832x1216", "8x8"])
templates = st.sampled_from(["a photo of {caption}", "{caption}, drawn"])
source_configs = of(
    SourceConfig,
    path=folders,
    repeats=counts,
    weight=positives,
    references=several,
    follow_links=st.booleans(),
    numbered_folders=st.booleans(),
    image_sequences=st.none() | positives,
    masks=st.none() | st.sampled_from(["alpha", "beside"]) | folders,
    tag_separator=st.sampled_from([",", ";"]),
    shuffle_tags=st.booleans(),
    keep_tags=st.integers(0, 9),
    tag_dropout=shares,
    tag_orders=st.none() | counts,
    split=words,
    columns=st.builds(ColumnsConfig, image=st.none() | words, text=st.none() | words),
)
data_configs = of(
    DataConfig,
    sources=st.lists(source_configs, min_size=1, max_size=2).map(tuple),
    trigger=st.none() | words,
    caption_template=st.none() | st.lists(templates, min_size=1, max_size=2).map(tuple),
    resolution=st.none() | resolutions | st.lists(resolutions, min_size=1, max_size=3, unique=True).map(tuple),
    upscale=st.booleans(),
    frames=st.none() | st.lists(counts, min_size=1, max_size=3, unique=True).map(tuple),
    frame_rate=st.none() | positives,
    held_out=shares,
    split_from=st.none() | folders,
    max_rejected=shares,
    background=st.sampled_from(["white", "#00ff7f"]),
    crop_jitter=st.floats(0, 0.49),
    flip=st.booleans(),
    color_jitter=of(ColorJitterConfig, brightness=shares, contrast=shares, saturation=shares, hue=st.floats(0, 0.5)),
    shuffle_window=st.none() | counts,
    caption_dropout=shares,
    token_windows=st.integers(1, 10),
    cache=st.none() | folders,
    workers=st.integers(0, 64),
    prior=st.none() | of(PriorConfig, prompt=words, count=counts, weight=positives, path=st.none() | folders),
)
data_configs |= st.builds(held_in_folder, data_configs, folders)
presets = st.sampled_from(get_args(TargetPreset))
ranked = {"rank": counts, "alpha": st.none() | positives, "target_modules": st.none() | targets | presets}
ranked |= {"dropout": shares, "blocks": st.none() | targets}
text_encoders = of(TextEncoderAdapterConfig, **ranked, learning_rate=positives)
optimizers = of(
    OptimizerConfig,
    weight_decay=positives,
    betas=st.tuples(shares, shares),
    epsilon=positives,
)


def base_of(path: str, components: dict[str, Path], expert: str | None) -> dict[str, Any]:
    named = {} if expert is None else {"expert": expert}
    return {"path": path, "components": {name: str(place) for name, place in components.items()}, **named}


names = words.filter(lambda text: not text.startswith("~"))  # nobody's home folder
configs = of(
    RunConfig,
    base=names
    | st.builds(
        base_of,
        names,
        st.dictionaries(words, folders, min_size=1, max_size=2),
        st.sampled_from([None, "high_noise", "low_noise"]),
    ),
    data=data_configs,
    seed=st.integers(0, MAX_SEED),
    output=of(
        OutputConfig,
        dir=folders,
        formats=st.lists(st.sampled_from(list(FILE_NAMES)), min_size=1, unique=True).map(tuple),
    ),
    adapter=of(
        AdapterConfig,
        **ranked,
        training_adapter=st.none() | folders,
        text_encoders=st.dictionaries(words, text_encoders, max_size=2),
    ),
    objective=of(
        ObjectiveConfig,
        timestep_density=st.none() | st.sampled_from(get_args(Density)),
        logit_mean=st.none() | st.floats(allow_nan=False, allow_infinity=False),
        logit_std=st.none() | positives,
        timestep_shift=st.none() | positives | st.sampled_from(["resolution", "none"]),
        snr_gamma=positives,
        unmasked_weight=shares,
        normalize_masked_area=st.booleans(),
    ),
    train=of(
        TrainConfig,
        max_steps=st.integers(10),
        batch_size=counts,
        gradient_accumulation_steps=counts,
        learning_rate=positives,
        optimizer=optimizers,
        warmup_steps=st.integers(0, 9),
        max_grad_norm=st.none() | positives,
        text_encoder_quantization=st.none() | st.sampled_from(get_args(WeightFormat)),
        offload=st.booleans(),
        offload_blocks=st.integers(0, 10**4),
        cuda_graphs=st.booleans(),
        ema_decay=st.none() | st.floats(0, 1, exclude_min=True, exclude_max=True),
        checkpoint_every=st.integers(0),
        keep_checkpoints=counts,
    ),
    sample=of(
        SampleConfig,
        every=st.integers(0),
        prompts=st.lists(st.text(), min_size=3, max_size=3).map(tuple),
        references=st.just(()) | st.lists(several, min_size=3, max_size=3).map(tuple),
        steps=counts,
        guidance=st.floats(1, allow_infinity=False),
        frames=counts,
    ),
    tracking=of(
        TrackingConfig,
        trackers=st.none() | st.lists(st.sampled_from(["tensorboard", "trackio", "wandb"]), max_size=3).map(tuple),
        project=words,
    ),
    validation=of(ValidationConfig, draws=counts, pictures=counts, every=counts, patience=st.integers(0)),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(configs)
def test_what_is_dumped_loads_equal(config: RunConfig) -> None:
    document = read_yaml(dump_config(config), "dumped")
    assert build_config(document.values, "dumped") == config


def test_a_dump_names_every_key(minimal: Path) -> None:
    config = resolve(
        load_config(
            minimal,
            [
                "data.prior.prompt=a cat",
                "adapter.text_encoders.text_encoder={}",
                "base.components.vae=vae.safetensors",
                "base.expert=low_noise",
            ],
        ),
        Defaults(64),
    )
    dumped = read_yaml(dump_config(config), "dumped").lines
    named = {schema_name(key) for key in dumped}
    assert set(known_keys()) <= named


def test_a_base_has_components_in_files_and_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    data = "data: {sources: [{path: p}]}"
    whole, text = tmp_path / "whole.yaml", tmp_path / "text.yaml"
    whole.write_text(f"base: {{path: ./m, components: {{vae: vae.safetensors}}}}\n{data}\n")
    text.write_text(f"base: ./m\n{data}\n")
    first = load_config(whole)
    assert first.base == BaseName(str(tmp_path / "m"), {"vae": str(tmp_path / "vae.safetensors")})
    assert str(first.base) == str(tmp_path / "m") and first.base != str(tmp_path / "m")
    second = load_config(text, ["base.components.vae=elsewhere.safetensors"])
    assert components_of(second.base) == {"vae": "elsewhere.safetensors"}
    assert build_config(first.model_dump(mode="json"), "request").base == first.base
    assert components_of(load_config(whole, ["base=other"]).base) == {}
    third = load_config(text, ["base.expert=low_noise"])
    assert expert_of(third.base) == "low_noise" and third.base != load_config(text).base
    assert build_config(third.model_dump(mode="json"), "request").base == third.base
    assert names_only(first.model_dump(mode="json"))["base"] == {
        "path": "m",
        "components": {"vae": "vae.safetensors"},
    }


@pytest.mark.parametrize(
    "base",
    [{"components": {}}, {"path": "m", "compnents": {}}, {"path": "m", "components": {"vae": 3}}, 3, ""],
)
def test_a_wrong_base_is_one_line(base: Any) -> None:
    with pytest.raises(UserError) as caught:
        build_config({"base": base, "data": {"sources": [{"path": "p"}]}}, "request")
    assert "base" in str(caught.value) and "\n" not in str(caught.value)
