"""What is made of captions once, before any draw: templates, the trigger's place, syntax of prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.errors import raises_code
from tests.training import tiny_config
from veneer.data.caption_text import all_texts, caption_of
from veneer.data.loader import SampleDraw
from veneer.data.manifest import Sample
from veneer.data.preflight import Dataset, survey


def surveyed(folder: Path, captions: dict[str, str], source: dict[str, Any] | None = None, **data: Any) -> Dataset:
    for number, (name, caption) in enumerate(captions.items()):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(folder / f"{name}.png")
        if caption:
            (folder / f"{name}.txt").write_text(caption)
    sources = [{"path": str(folder), **(source or {})}]
    return survey(tiny_config(folder, data={"sources": sources, "held_out": 0.0, **data}).data)


def captions_of(folder: Path, caption: str, **data: Any) -> tuple[str, ...]:
    (sample,) = surveyed(folder, {"a": caption}, **data).train.samples
    return sample.captions


def texts_of(sample: Sample, folder: Path, count: int = 100) -> list[str]:
    config = tiny_config(folder).data
    return [caption_of(SampleDraw(sample, draw_index, (16, 16)), config, 0) for draw_index in range(count)]


@pytest.mark.parametrize(
    ("caption", "data", "expected"),
    [
        ("1girl, solo,", {"trigger": "TOK"}, ("1girl, solo, TOK",)),
        ("1girl, solo,", {"trigger": "TOK", "trigger_placement": "start"}, ("TOK, 1girl, solo,",)),
        ("a tok cat", {"trigger": "TOK", "trigger_placement": "start"}, ("a tok cat",)),
        ("", {"trigger": "TOK", "trigger_placement": "start"}, ("TOK",)),
        ("a cat", {"caption_template": "a photo of {caption}"}, ("a photo of a cat",)),
        ("a cat", {"trigger": "TOK", "caption_template": "{trigger}, {caption}"}, ("TOK, a cat",)),
        ("a cat", {"trigger": "TOK", "caption_template": "a photo of {caption}."}, ("a photo of a cat, TOK",)),
        (
            "a cat",
            {"trigger": "TOK", "trigger_placement": "start", "caption_template": "a photo of {caption}."},
            ("TOK, a photo of a cat.",),
        ),
        (
            "a cat\na dog",
            {"caption_template": ["a photo of {caption}", "{caption}"]},
            ("a photo of a cat", "a cat", "a photo of a dog", "a dog"),
        ),
        ("", {"trigger": "TOK", "caption_template": ["a photo of {trigger}", "{caption}"]}, ("a photo of TOK",)),
        ("", {"trigger": "TOK", "caption_template": "a photo of {caption}"}, ("TOK",)),
        ("a [trigger] cat", {"trigger": "TOK"}, ("a TOK cat",)),
        ("a, b ||| c", {"trigger": "TOK"}, ("a, b, c, TOK",)),
    ],
)
def test_captions_are_completed(tmp_path: Path, caption: str, data: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert captions_of(tmp_path, caption, **data) == expected


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("a photo of {}", "has {}, and what is filled in"),
        ("a photo", "has neither"),
        ("{caption} {caption}", "has {caption} more than once"),
        ("{trigger} {caption}", "trigger is not set"),
    ],
)
def test_templates_that_cannot_be_filled_are_refused(tmp_path: Path, template: str, words: str) -> None:
    with raises_code("config.invalid_value", words):
        tiny_config(tmp_path, data={"caption_template": template})


def test_captions_that_no_template_shows_are_named(tmp_path: Path) -> None:
    notes = surveyed(tmp_path, {"a": "a cat"}, trigger="TOK", caption_template="a photo of {trigger}").notes
    assert any("captions are not read" in note and "a.txt" in note for note in notes)


@pytest.mark.parametrize("caption", ["a (red:1.2) cat", "((red)) cat", "<lora:a:1> cat", "a {red|blue} cat"])
def test_prompts_are_refused_as_captions_and_named(tmp_path: Path, caption: str) -> None:
    with raises_code("data.prompt_syntax") as caught:
        captions_of(tmp_path, caption)
    assert "a.txt" in str(caught.value) and "prompt_weights=strip" in str(caught.value)


def test_prompts_are_stripped_or_trained_on_as_text_where_asked(tmp_path: Path) -> None:
    caption = r"a (red:1.2) {cat|dog}, fate \(series\)"
    stripped = surveyed(tmp_path, {"a": caption}, prompt_weights="strip")
    assert stripped.train.samples[0].captions == ("a red cat, fate (series)", "a red dog, fate (series)")
    assert any("stripped" in note and "(red:1.2)" in note and "a.txt" in note for note in stripped.notes)
    text = surveyed(tmp_path, {"a": caption}, prompt_weights="text")
    assert text.train.samples[0].captions == (caption,)
    assert any("to the letter" in note for note in text.notes)


def test_alternatives_that_make_too_many_captions_are_told(tmp_path: Path) -> None:
    found = surveyed(tmp_path, {"a": "{a|b|c|d} {e|f|g|h} {i|j|k|l} {m|n} cat"}, prompt_weights="strip")
    assert len(found.train.samples[0].captions) == 64
    assert any("the first 64 are taken" in note and "a.txt" in note for note in found.notes)


def test_wildcards_are_refused_even_where_prompts_are_stripped(tmp_path: Path) -> None:
    with raises_code("data.prompt_syntax", "data.prompt_weights=text"):
        captions_of(tmp_path, "a __colour__ cat", prompt_weights="strip")


def test_a_caption_of_nothing_but_syntax_is_none(tmp_path: Path) -> None:
    with raises_code("data.no_caption"):
        captions_of(tmp_path, "<lora:a:1>", prompt_weights="strip")
    assert captions_of(tmp_path, "<lora:a:1>", prompt_weights="strip", trigger="TOK") == ("TOK",)


def test_escaped_brackets_are_read_as_in_prompts_and_sentences_are_left_alone(tmp_path: Path) -> None:
    dataset = surveyed(tmp_path, {"a": r"saber, fate \(series\)", "b": "a cat (asleep), [sic]"})
    assert sorted(sample.captions[0] for sample in dataset.train.samples) == [
        "a cat (asleep), [sic]",
        "saber, fate (series)",
    ]
    assert any("escaped brackets" in note and "a.txt" in note for note in dataset.notes)
    assert any("[sic]" in note and "b.txt" in note for note in dataset.notes)


TAGS = "a, b, c, d"


@pytest.mark.parametrize("source", [{"shuffle_tags": True}, {"tag_dropout": 0.5}])
def test_tags_vary_from_draw_to_draw_and_measurements_see_them_as_written(
    tmp_path: Path, source: dict[str, Any]
) -> None:
    (sample,) = surveyed(tmp_path, {"a": TAGS}, source, trigger="TOK").train.samples
    assert sample.captions == ("a, b, c, d, TOK",)
    texts = texts_of(sample, tmp_path)
    assert len(set(texts)) > 5
    assert all(text.endswith("TOK") for text in texts)
    assert all_texts(sample, tiny_config(tmp_path).data, 0) is None


def changed(folder: Path, **source: Any) -> list[str]:
    (sample,) = surveyed(folder, {"a": "a, b; c, d; e"}, {"shuffle_tags": True, **source}).train.samples
    return texts_of(sample, folder)


@pytest.mark.parametrize("key", [{"tag_separator": ";"}, {"keep_tags": 2}, {"tag_orders": 2}])
def test_each_key_of_tags_changes_what_is_shown(tmp_path: Path, key: dict[str, Any]) -> None:
    assert changed(tmp_path) == changed(tmp_path) != changed(tmp_path, **key)


def test_the_text_of_a_template_is_not_shuffled(tmp_path: Path) -> None:
    dataset = surveyed(
        tmp_path,
        {"a": TAGS},
        {"shuffle_tags": True},
        trigger="TOK",
        caption_template="one, two, {caption}, {trigger}, x",
    )
    texts = texts_of(dataset.train.samples[0], tmp_path)
    assert len(set(texts)) > 5
    assert all(text.startswith("one, two, ") and text.endswith(", TOK, x") for text in texts)


def test_a_few_orders_are_all_texts(tmp_path: Path) -> None:
    source = {"shuffle_tags": True, "tag_orders": 3}
    (sample,) = surveyed(tmp_path, {"a": TAGS}, source).train.samples
    assert set(texts_of(sample, tmp_path)) == set(all_texts(sample, tiny_config(tmp_path).data, 0) or ())


def test_what_is_done_to_tags_is_a_part_of_what_training_sees(tmp_path: Path) -> None:
    """So that a run does not go on with other ones: they are a source's keys, which the config's hash leaves out."""
    sources: list[dict[str, Any]] = [
        {},
        {"keep_tags": 1},
        {"shuffle_tags": True},
        {"shuffle_tags": True, "keep_tags": 1},
    ]
    prints = [surveyed(tmp_path, {"a": TAGS}, source).train.fingerprint() for source in sources]
    assert prints[0] == prints[1], "nothing is shuffled, so none is kept"
    assert len(set(prints)) == 3


def test_captions_that_are_one_tag_are_named(tmp_path: Path) -> None:
    dataset = surveyed(tmp_path, {"a": TAGS, "b": "a cat asleep"}, {"shuffle_tags": True})
    assert any("b.txt" in note and "a.txt" not in note and "tag_separator" in note for note in dataset.notes)
