"""The example of docs/data.md: what square crops lose of portraits, and buckets keep."""

from __future__ import annotations

import numpy as np
import pytest

from tools.portraits import MULTIPLE, PAGE, PICTURE, PORTRAITS, SECTION, SIDE, Portrait, table
from tools.publish import published
from veneer.data.buckets import Buckets, cropped_share
from veneer.data.transform import cut


def test_the_page_has_the_table_and_the_picture() -> None:
    assert published(PAGE, SECTION) == table()
    assert PICTURE.is_file() and f"]({PICTURE.name})" in PAGE.read_text("utf-8")


@pytest.mark.parametrize("portrait", PORTRAITS, ids=lambda portrait: portrait.shape)
def test_buckets_keep_the_heads(portrait: Portrait) -> None:
    (size,) = Buckets((SIDE,), MULTIPLE).sizes(portrait.width, portrait.height)
    assert portrait.head_kept(size) == 1 and cropped_share(portrait.width, portrait.height, size) < 0.05


def test_what_is_said_of_a_head_is_what_is_seen_of_it() -> None:
    """Of the highest portrait a square has the lower 39 % of the head: the ears and eyes are gone."""
    portrait = PORTRAITS[3]
    drawing = portrait.draw()
    whole, square = (np.asarray(image.convert("L")) for image in (drawing, cut(drawing, (1080, 1080))))
    _, top, side = portrait.head
    gone = (1920 - 1080) // 2 - top
    assert portrait.head_kept((1080, 1080)) == pytest.approx(1 - gone / side, abs=0.01)
    assert np.array_equal(square, whole[420:1500])
