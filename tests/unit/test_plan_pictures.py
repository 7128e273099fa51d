"""Pictures that folders list against those that a run checks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.training import tiny_config, trainer_on
from veneer.data.buckets import Buckets
from veneer.data.caption_text import caption_of
from veneer.data.clip_frames import ClipFrames
from veneer.data.preflight import survey
from veneer.family.protocol import Family
from veneer.plan.assessment import make_plan
from veneer.plan.pictures import ClipShape, PictureCounts, latent_pixels, most_extent

SHAPES = (((64, 64), 12),)
CASES: dict[str, tuple[dict[str, Any], PictureCounts]] = {
    "plain": ({}, PictureCounts(9, 12, 12, shapes=SHAPES)),
    "caption dropout": ({"caption_dropout": 0.1}, PictureCounts(9, 12, 13, shapes=SHAPES)),
    "class pictures": ({"prior": {"prompt": "a shape", "count": 5}}, PictureCounts(9, 17, 13, shapes=SHAPES)),
}


@pytest.mark.parametrize(("data", "counts"), CASES.values(), ids=CASES)
def test_pictures_are_counted_in_folders_as_in_a_checked_dataset(
    tiny_pictures: Path, data: dict[str, Any], counts: PictureCounts
) -> None:
    config = tiny_config(tiny_pictures, data=data)
    found, listed = PictureCounts.from_folders(config)
    assert len(listed) == 12
    assert found == PictureCounts.from_dataset(survey(config.data), config) == counts


def test_sizes_are_those_of_the_buckets() -> None:
    shapes = (((40, 40), 2), ((2000, 3000), 3))
    counts, two = PictureCounts(10, 9, 5, shapes=shapes), Buckets((512, 1024), 8)
    assert counts.extents_in(two) == ((40, 40, 1), (608, 416, 1), (1216, 832, 1))
    assert counts.shown_in(two) == 10 * 8 // 5
    known = 2 * 40 * 40 + 3 * (608 * 416 + 1216 * 832)
    assert counts.pixels_in(two, (1216, 832, 1)) == known + 4 * 1216 * 832, "four have sizes that nobody knows"


def test_pictures_of_unknown_sizes_may_have_the_largest() -> None:
    counts, two = PictureCounts(10, 9, 5), Buckets((512, 1024), 8)
    assert (counts.extents_in(two), counts.shown_in(two)) == (((1024, 1024, 1),), 20)
    assert counts.pixels_in(two, (1024, 1024, 1)) == 2 * 9 * 1024 * 1024


def test_clips_count_with_their_frames_and_the_parts_that_are_seen() -> None:
    """Of 40 frames two parts of 17 are seen, of 20 one; 17 frames are 5 of latents, by fours."""
    clips = ((ClipShape(512, 512, 40, 16.0), 3), (ClipShape(512, 512, 20, 16.0), 1))
    counts = PictureCounts(5, 5, 5, shapes=(((512, 512), 1),), clips=clips)
    buckets = Buckets((512,), 8, clips=ClipFrames((17,), 4, 16.0))
    assert counts.extents_in(buckets) == ((512, 512, 1), (512, 512, 17))
    assert counts.shown_in(buckets) == 5
    assert counts.pixels_in(buckets, (512, 512, 17)) == 512 * 512 * (1 + 5 * (3 * 2 + 1))


def test_clips_of_unknown_shapes_may_have_the_most_frames() -> None:
    buckets = Buckets((512,), 8, clips=ClipFrames((17, 33), 4, 16.0))
    assert PictureCounts(5, 5, 5).extents_in(buckets) == (most_extent(buckets),) == ((512, 512, 33),)
    assert latent_pixels((512, 512, 33), 4) == 9 * 512 * 512


@pytest.mark.slow
@pytest.mark.parametrize("tags", [{}, {"tag_orders": 1}, {"keep_tags": 99}])
def test_texts_of_shuffled_tags_are_counted_and_told(family: Family, tiny_pictures: Path, tags: dict[str, Any]) -> None:
    source = {"path": str(tiny_pictures), "shuffle_tags": True, "tag_separator": " ", **tags}
    config = tiny_config(tiny_pictures, data={"sources": [source]}, train={"max_steps": 30})
    dataset = survey(config.data)
    counted = PictureCounts.from_dataset(dataset, config).captions
    with trainer_on(config, family) as trainer:
        drawn = {
            caption_of(draw, config.data, config.seed) for step in range(30) for draw in trainer.batches._draws(step)
        }
    held_out = {sample.captions[0] for sample in dataset.held_out.samples}
    assert len(drawn | held_out) <= counted <= len(drawn | held_out) * 1.5
    assert f"texts: {counted} of tags" in str(make_plan(config, family, dataset))
