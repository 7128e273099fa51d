from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from veneer.config.data_config import DataConfig
from veneer.config.source_config import SourceConfig
from veneer.data.caption_text import all_texts, caption_of
from veneer.data.loader import SampleDraw
from veneer.data.manifest import Sample, content_id
from veneer.rng import uniform


def sample(number: int, captions: tuple[str, ...] = ("a cat",)) -> Sample:
    return Sample(content_id(bytes([number])), Path(f"{number}.png"), captions, 8, 8, 1)


def config(**options: Any) -> DataConfig:
    return DataConfig(sources=(SourceConfig(path=Path("pictures")),), **options)


def test_captions_are_drawn_among_all() -> None:
    one = sample(0, captions=("a", "b", "c"))
    drawn = [caption_of(SampleDraw(one, draw_index, (8, 8)), config(), 0) for draw_index in range(300)]
    assert drawn == [caption_of(SampleDraw(one, draw_index, (8, 8)), config(), 0) for draw_index in range(300)]
    assert set(drawn) == {"a", "b", "c"} and min(Counter(drawn).values()) > 60
    assert drawn != [caption_of(SampleDraw(one, draw_index, (8, 8)), config(), 1) for draw_index in range(300)]


def test_captions_drop_out_as_often_as_asked() -> None:
    one = sample(0)
    drawn = [
        caption_of(SampleDraw(one, draw_index, (8, 8)), config(caption_dropout=0.3), 0) for draw_index in range(1000)
    ]
    assert set(drawn) == {"a cat", ""}
    assert 250 < drawn.count("") < 350
    assert all(caption_of(SampleDraw(one, draw_index, (8, 8)), config(), 0) == "a cat" for draw_index in range(100))


def test_the_random_keys_of_a_caption_are_those_of_every_release() -> None:
    """A run that was begun before goes on with the captions that it would have had."""
    one = sample(0, captions=("a", "b", "c"))
    for draw_index in range(50):
        place = int(uniform(7, draw_index, one.id, "caption") * 3)
        expected = "" if uniform(7, draw_index, one.id, "caption dropout") < 0.2 else one.captions[place]
        assert caption_of(SampleDraw(one, draw_index, (8, 8)), config(caption_dropout=0.2), 7) == expected


def test_all_texts_are_those_that_are_drawn() -> None:
    one = sample(0, captions=("a", "b"))
    for options in ({}, {"caption_dropout": 0.3}):
        drawn = {caption_of(SampleDraw(one, draw_index, (8, 8)), config(**options), 0) for draw_index in range(100)}
        assert drawn == set(all_texts(one, config(**options), 0) or ())
