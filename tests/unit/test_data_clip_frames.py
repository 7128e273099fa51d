from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bases import Defaults
from tests.errors import raises_code
from veneer.config.data_config import DataConfig
from veneer.config.source_config import SourceConfig
from veneer.data.buckets import Buckets
from veneer.data.clip_frames import ClipFrames, FrameSpan
from veneer.data.loader import DrawSchedule
from veneer.data.manifest import Manifest, Sample

WAN = Defaults(64, multiple=16, frame_stride=4, frame_rate=16.0)


def clip(frames: int, rate: float | None = 16.0, name: str = "a") -> Sample:
    return Sample(name, Path(f"{name}.mp4"), ("a cat",), 64, 64, 1, frames=frames, frame_rate=rate)


def config(**options: Any) -> DataConfig:
    return DataConfig(sources=(SourceConfig(path=Path("clips")),), **options)


def frames_of(base: Defaults = WAN, **options: Any) -> ClipFrames:
    return ClipFrames.of(config(**options), base)


@pytest.mark.parametrize(
    ("sample", "count"),
    [
        (clip(1, None), 1),  # a picture
        (clip(33), 33),
        (clip(200), 33),
        (clip(32), 17),
        (clip(17), 17),
        (clip(16), 13),  # shorter than all of them: the most that the base takes of it
        (clip(3), 1),
        (clip(65, 32.0), 33),  # 65 frames at 32 a second are 33 at 16
        (clip(64, 32.0), 17),
        (clip(9, 8.0), 17),
        (clip(33, 15.985), 33),  # taken frame by frame, for the rates are about the same
    ],
)
def test_a_clip_goes_to_the_longest_count_that_it_has_frames_for(sample: Sample, count: int) -> None:
    assert frames_of(frames=(33, 17)).count(sample) == count


def test_counts_that_the_base_does_not_take_are_refused() -> None:
    for frames, near in ((16, "17"), (2, "1"), (34, "33")):
        with raises_code("data.unfit_frames") as caught:
            frames_of(frames=(frames,))
        assert caught.value.remedy == f"use {near}"
    with raises_code("data.frames_for_pictures"):
        frames_of(Defaults(64), frames=(1, 17))
    assert frames_of(Defaults(64), frames=(1,)).count(clip(40, 25.0)) == 1
    assert frames_of(replace(WAN, frame_stride=8), frames=(17, 33)).counts == (17, 33)


def test_a_rate_that_is_set_is_that_of_all_clips() -> None:
    assert frames_of(frames=(5,), frame_rate=8.0).available(clip(33, 16.0)) == 17
    assert frames_of(Defaults(64), frames=(1,)).available(clip(33, 25.0)) == 33


@given(st.integers(1, 200), st.sampled_from([8.0, 16.0, 24.0, 23.976, 30.0]), st.integers(0, 50))
def test_what_a_draw_sees_lies_in_the_clip(frames: int, rate: float, draw: int) -> None:
    one = clip(frames, rate)
    for extraction in ("chunk", "random", "head"):
        own = frames_of(frames=(5, 17), frame_extraction=extraction)
        for span in (own.span(one, 0, draw), own.centered(one)):
            assert span is not None and span.count == own.count(one) and span.start >= 0
            assert span.start + span.count <= own.available(one)
            times = np.array(span.times(rate))
            assert times[-1] <= (frames - 1) / rate + 1e-6
            assert np.allclose(np.diff(times), 1 / span.rate_of(rate))


def test_draws_take_turns_over_the_clip_as_the_config_says() -> None:
    def starts(extraction: str, count: int = 400) -> Counter[int]:
        own = frames_of(frames=(17,), frame_extraction=extraction)
        spans = [own.span(clip(60), 3, draw) for draw in range(count)]
        assert spans == [own.span(clip(60), 3, draw) for draw in range(count)]
        return Counter(span.start for span in spans if span)

    assert starts("head").keys() == {0}
    chunks = starts("chunk")  # the middles of three parts of 20 frames
    assert chunks.keys() == {1, 21, 41} and min(chunks.values()) > 100
    anywhere = starts("random", 2000)
    assert anywhere.keys() == set(range(60 - 17 + 1)) and max(anywhere.values()) < 100
    own = frames_of(frames=(17,), frame_extraction="random")
    assert own.span(clip(60), 0, 0) != own.span(clip(60), 1, 0)
    assert own.span(clip(60), 0, 0).varies and not own.span(clip(17), 0, 0).varies  # type: ignore[union-attr]


def test_pictures_have_no_span() -> None:
    own = frames_of(frames=(17,))
    assert own.span(clip(1, None), 0, 0) is own.centered(clip(1, None)) is None
    assert own.starts(clip(1, None)) == 1 and own.starts(clip(60)) == 3


def test_a_batch_has_one_size_and_one_number_of_frames_and_nothing_is_left_out() -> None:
    frames = [1, 1, 17, 20, 33, 40, 5]
    samples = tuple(clip(count, None if count == 1 else 16.0, str(n)) for n, count in enumerate(frames))
    schedule = DrawSchedule(Manifest(samples), Buckets.of(config(frames=(17, 33)), WAN), 0, 2)
    assert {extent[2]: len(own) for extent, own in schedule.members.items()} == {1: 2, 5: 1, 17: 2, 33: 2}
    shown: Counter[str] = Counter()
    for number in range(70):
        draws = schedule.micro_batch(number)
        assert len({draw.extent for draw in draws}) == 1
        shown.update(draw.sample.id for draw in draws)
    assert set(shown.values()) == {20}


def test_times_are_those_of_the_rate() -> None:
    assert FrameSpan(3, 2, 16.0).times(32.0) == [2 / 16, 3 / 16, 4 / 16]
    assert FrameSpan(2, 0, 24.0).times(23.976) == [0, 1 / 23.976]
