"""The order of pictures that lie elsewhere: each once an epoch, near its place, whatever was drawn before."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veneer.data.loader import PictureStream
from veneer.data.location import Location
from veneer.data.manifest import Sample, content_id
from veneer.data.remote import RemotePart


def sample(number: int, location: Location, repeats: int = 1) -> Sample:
    return Sample(content_id(str(number).encode()), location.path, ("a cat",), 8, 8, repeats, location=location)


def remote(count: int, shard_size: int, host: str = "https:/a.example", repeats: int = 1) -> list[Sample]:
    places = ((number // shard_size, number % shard_size) for number in range(count))
    parts = [RemotePart(Path(f"{host}/{shard:03d}.tar"), f"{place}.png", 512 * place, 9) for shard, place in places]
    return [sample(number, part, repeats) for number, part in enumerate(parts)]


def local(count: int) -> list[Sample]:
    return [sample(10_000 + number, Location(Path(f"{number}.png"))) for number in range(count)]


def ids(samples: list[Sample]) -> list[str]:
    return [one.id for one in samples]


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 20), st.integers(1, 30), st.integers(1, 3))
def test_every_picture_is_shown_once_an_epoch(count: int, shard: int, here: int, window: int, repeats: int) -> None:
    samples = [*remote(count, shard, repeats=repeats), *local(here)]
    stream = PictureStream(samples, 3, window)
    length = count * repeats + here
    for epoch in range(2):
        shown = Counter(ids(stream.draw(epoch * length, length)))
        assert shown == {one.id: one.repeats for one in samples}


def test_any_part_of_the_stream_is_the_same_when_drawn_alone() -> None:
    samples = [*remote(50, 8), *local(7)]
    whole = ids(PictureStream(samples, 5, 10).draw(0, 160))
    for start in (0, 9, 56, 57, 120):
        assert ids(PictureStream(samples, 5, 10).draw(start, 30)) == whole[start : start + 30]


def test_shards_are_read_one_after_the_other() -> None:
    """So far as the window goes: a block of 40 pictures touches 40 / 25 + 1 shards at most."""
    samples = remote(1000, 25)
    drawn = PictureStream(samples, 1, 40).draw(0, 2000)
    for start in range(0, 1000, 40):
        assert len({one.location.container for one in drawn[start : start + 40]}) <= 3
    shards = [list(dict.fromkeys(one.location.container for one in drawn[at : at + 1000])) for at in (0, 1000)]
    assert len(shards[0]) == len(shards[1]) == 40 and shards[0] != shards[1] != sorted(shards[1])
    within = [one.location.offset or 0 for one in drawn if one.location.container == shards[0][3]]
    assert within != sorted(within)


def test_a_window_over_all_is_a_full_shuffle() -> None:
    samples = remote(60, 7)
    here = [replace(one, location=Location(one.path)) for one in samples]
    assert ids(PictureStream(samples, 2, 10**6).draw(0, 60)) == ids(PictureStream(here, 2).draw(0, 60))


def test_pictures_on_disk_keep_their_order() -> None:
    alone = ids(PictureStream(local(30), 4).draw(0, 30))
    mixed = PictureStream([*remote(90, 10), *local(30)], 4, 5).draw(0, 120)
    assert [one.id for one in mixed if not one.location.is_remote] == alone
    places = [place for place, one in enumerate(mixed) if not one.location.is_remote]
    assert max(second - first for first, second in pairwise(places)) <= 5


@pytest.mark.parametrize("seed", [0, 1])
def test_the_order_does_not_depend_on_the_address(seed: int) -> None:
    orders = [ids(PictureStream(remote(80, 9, host), seed, 12).draw(0, 80)) for host in ("https:/a", "https:/b/c")]
    assert orders[0] == orders[1]
