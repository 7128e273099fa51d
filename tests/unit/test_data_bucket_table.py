"""What the buckets of a set crop away, and what share of the training each picture has."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from veneer.data.bucket_table import BucketTable
from veneer.data.buckets import Buckets
from veneer.data.location import Location
from veneer.data.manifest import Sample
from veneer.data.picture_header import upright_size
from veneer.plan.bucket_text import bucket_lines

LARGE = Buckets((1024,), 8)


def sample(name: str, width: int, height: int, repeats: int = 1, weight: float = 1.0) -> Sample:
    return Sample(name, Path(name), ("a",), width, height, repeats, weight=weight)


def table_of(*pictures: Sample, buckets: Buckets = LARGE) -> BucketTable:
    table = BucketTable.of(pictures, buckets)
    assert table is not None
    return table


MIXED = (sample("a.png", 2000, 2000), sample("b.png", 2000, 3000, 3), sample("c.png", 1216, 832, weight=0.5))


def test_rows_count_pictures_shares_and_what_is_lost() -> None:
    table = table_of(*MIXED, sample("d.png", 832, 1216, weight=0.5))
    found = [(row.width, row.height, row.pictures) for row in table.rows]
    assert found == [(832, 1216, 2), (1024, 1024, 1), (1216, 832, 1)]
    assert [row.share for row in table.rows] == pytest.approx([3.5 / 5, 1 / 5, 0.5 / 5])
    # 2000 x 3000 pixels are 2 : 3, and 832 x 1216 are 13 : 19
    lost = 1 - (2 / 3) / (13 / 19)
    assert table.rows[0].cropped == pytest.approx(lost / 2) and table.most_cropped == pytest.approx(lost)
    assert table.cropped == pytest.approx(lost / 4)


def test_each_picture_has_its_share_at_all_of_its_sizes() -> None:
    table = table_of(*MIXED[:2], sample("s.png", 400, 400), buckets=Buckets((512, 1024), 8))
    told = {one.picture: (one.share, one.sizes) for one in table.pictures}
    assert told["a.png"] == (pytest.approx(2 / 9), ("512x512", "1024x1024"))
    assert told["b.png"] == (pytest.approx(6 / 9), ("416x608", "832x1216"))
    assert told["s.png"] == (pytest.approx(1 / 9), ("384x384",))
    assert [one.picture for one in table.extremes] == ["s.png", "b.png"]


def test_of_very_many_only_the_extremes_are_listed() -> None:
    many = [sample(f"{number}.png", 1024, 1024) for number in range(10_001)]
    table = table_of(*many, sample("often.png", 1024, 1024, 9))
    assert [one.picture for one in table.pictures] == ["0.png", "often.png"]
    assert table.rows[0].pictures == 10_002


def test_nothing_has_no_table() -> None:
    assert BucketTable.of((), LARGE) is None


def test_lines_for_a_person() -> None:
    lines = "\n".join(bucket_lines(table_of(*MIXED))).splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["bucket", "pictures", "share", "cropped", "away", "at", "most"],
        ["832", "x", "1216", "1", "66.7%", "2.6%", "2.6%"],
        ["1024", "x", "1024", "1", "22.2%", "0.0%", "0.0%"],
    ]
    assert lines[-2].split()[:3] == ["all", "3", "100.0%"]
    assert lines[-1] == "share of a picture: 11.11% (c.png) to 66.67% (b.png)"


def test_squares_seen_whole_and_alike_need_no_lines() -> None:
    assert bucket_lines(table_of(MIXED[0], sample("z.png", 1024, 1024))) == []


def test_many_buckets_are_summed_up() -> None:
    shapes = [sample(f"{number}.png", 1400 + 200 * number, 2400) for number in range(40)]
    lines = "\n".join(bucket_lines(table_of(*shapes))).splitlines()
    assert len(lines) == 13 and lines[11].split()[1] == "more"


@pytest.mark.parametrize("orientation", [None, 3, 6, 8])
@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_the_size_of_a_picture_is_in_its_header(tmp_path: Path, ending: str, orientation: int | None) -> None:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.new("RGB", (40, 20)).save(tmp_path / f"a.{ending}", exif=exif)
    expected = (20, 40) if orientation in (6, 8) else (40, 20)
    assert upright_size(Location(tmp_path / f"a.{ending}")) == expected


def test_a_picture_that_cannot_be_read_has_no_size(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    assert upright_size(Location(tmp_path / "a.png")) is None
    assert upright_size(Location(tmp_path / "gone.png")) is None
