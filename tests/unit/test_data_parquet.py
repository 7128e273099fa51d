"""Tables as the datasets library and pyarrow write them."""

from __future__ import annotations

import io
import pickle
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from datasets import Dataset, Features, Sequence, Value
from PIL import Image
from pyarrow import parquet

from tests.errors import raises_code
from veneer.config.data_config import DataConfig
from veneer.config.source_config import SourceConfig
from veneer.data.preflight import survey
from veneer.data.sources.protocol import Listing
from veneer.data.sources.registry import read_source

datasets.disable_progress_bars()


def picture(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16 + number, 16), (number * 20 % 256, 90, 30)).save(file, "PNG")
    return file.getvalue()


def listed(path: Path, trigger: str | None = None, **keys: Any) -> Listing:
    return read_source(SourceConfig(path=path, **keys), trigger)


def table(count: int, **more: list[Any]) -> dict[str, list[Any]]:
    images = [{"bytes": picture(number), "path": f"{number}.png"} for number in range(count)]
    return {"image": images, "text": [f"a cat {number}" for number in range(count)], **more}


FEATURES = {"image": datasets.Image(), "text": Value("string")}


def test_tables_that_datasets_writes(tmp_path: Path) -> None:
    """Same pictures to the byte and captions as the library reads from the files that it wrote, shard after shard."""
    content = Dataset.from_dict(table(12, label=list(range(12))), Features(**FEATURES, label=Value("int64")))
    for shard in range(3):
        content.shard(3, shard, contiguous=True).to_parquet(f"{tmp_path}/train-{shard:05d}.parquet", batch_size=3)
    files = sorted(map(str, tmp_path.iterdir()))
    theirs = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / ".cache"))
    theirs = theirs.cast_column("image", datasets.Image(decode=False))
    for place in (tmp_path, tmp_path / "train-{00000..00002}.parquet"):
        entries = listed(place).entries
        assert [entry.location.read() for entry in entries] == [row["image"]["bytes"] for row in theirs]
        assert [entry.captions for entry in entries] == [(row["text"],) for row in theirs]
    assert str(entries[5].path) == f"{tmp_path}/train-00001.parquet[1]"
    assert pickle.loads(pickle.dumps(entries[5].location)).read() == entries[5].location.read()
    assert len(survey(DataConfig(sources=(SourceConfig(path=tmp_path),), held_out=0.0)).train.samples) == 12


def test_pictures_are_read_a_row_group_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Dataset.from_dict(table(9), Features(FEATURES)).to_parquet(tmp_path / "a.parquet", batch_size=3)
    assert parquet.ParquetFile(tmp_path / "a.parquet").num_row_groups == 3
    entries, read = listed(tmp_path / "a.parquet").entries, []
    whole = parquet.ParquetFile.read_row_group

    def counted(self: Any, part: int, **options: Any) -> Any:
        read.append(part)
        return whole(self, part, **options)

    monkeypatch.setattr(parquet.ParquetFile, "read_row_group", counted)
    monkeypatch.setattr(parquet.ParquetFile, "read", None)
    assert [one.location.read() for one in entries] == list(map(picture, range(9)))
    assert read == [0, 1, 2]


def test_columns_by_other_names_and_types(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = {"picture": [picture(0)], "captions": [["a cat", "a hound ", ""]], "id": ["x"]}
    parquet.write_table(pyarrow.table(rows), path)
    assert [(one.captions, one.location.read()) for one in listed(path).entries] == [(("a cat", "a hound"), picture(0))]
    parquet.write_table(pyarrow.table({"jpg": [picture(1)], "json": [{"caption": "a dog", "width": 3}]}), path)
    assert [one.captions for one in listed(path).entries] == [("a dog",)]


def test_what_cannot_be_told_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    two = {"before": [picture(0)], "after": [picture(1)], "title": ["a cat"], "story": ["it sat"]}
    parquet.write_table(pyarrow.table(two), path)
    with raises_code("data.which_column", "columns: {image: before}"):
        listed(path)
    with raises_code("data.which_column", "columns: {text: title}"):
        listed(path, columns={"image": "after"})
    with raises_code("data.no_such_column"):
        listed(path, columns={"image": "middle"})
    found = listed(path, columns={"image": "after", "text": "story"}).entries
    assert [(one.captions, one.location.read()) for one in found] == [(("it sat",), picture(1))]
    parquet.write_table(pyarrow.table({"text": ["a cat"]}), path)
    with raises_code("data.no_picture_column"):
        listed(path)


def test_a_row_without_a_picture_is_put_aside(tmp_path: Path) -> None:
    content = table(2)
    content["image"][1] = None
    Dataset.from_dict(content, Features(FEATURES)).to_parquet(tmp_path / "a.parquet")
    found = survey(DataConfig(sources=(SourceConfig(path=tmp_path),), held_out=0.0)).train
    assert len(found.samples) == 1
    assert [(one.path.name, one.reason) for one in found.rejected] == [("a.parquet[1]", "the row has no picture")]


def test_faults_of_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Dataset.from_dict(table(4), Features(FEATURES)).to_parquet(tmp_path / "a.parquet")
    monkeypatch.setattr("veneer.data.table_file._MAX_GROUP", 100)
    with raises_code("data.row_group_too_large"):
        listed(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    with raises_code("data.broken_table"):
        listed(tmp_path / "b.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").rename(tmp_path / "c.parquet")
    with raises_code("data.pyarrow_missing", "pip install 'veneer[parquet]'"):
        listed(tmp_path / "c.parquet")


def test_several_captions_of_a_row(tmp_path: Path) -> None:
    features = Features(image=datasets.Image(), text=Sequence(Value("string")))
    content = table(1) | {"text": [["a cat", "a pet"]]}
    Dataset.from_dict(content, features).to_parquet(tmp_path / "a.parquet")
    assert [one.captions for one in listed(tmp_path).entries] == [("a cat", "a pet")]


def test_a_list_beside_pictures_as_datasets_reads_it(tmp_path: Path) -> None:
    """The convention of its imagefolder: the same pictures, to the byte, and texts."""
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    rows = {"file_name": [f"{number}.png" for number in range(3)], "text": ["a cat", "a dog", "a cow"]}
    parquet.write_table(pyarrow.table(rows), tmp_path / "metadata.parquet")
    options = {"data_dir": str(tmp_path), "split": "train", "cache_dir": str(tmp_path / ".cache")}
    theirs = datasets.load_dataset("imagefolder", **options).cast_column("image", datasets.Image(decode=False))
    entries = listed(tmp_path).entries
    assert [entry.captions for entry in entries] == [(row["text"],) for row in theirs]
    assert [str(entry.path) for entry in entries] == [row["image"]["path"] for row in theirs]
    assert [entry.location.read() for entry in entries] == list(map(picture, range(3)))
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1-")
    with raises_code("data.broken_table"):
        listed(tmp_path)
