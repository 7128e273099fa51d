"""Datasets of the hub by name, through the datasets library, with a folder in the place of the hub."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
import webdataset
from datasets import Dataset, Features, Value
from PIL import Image
from pyarrow import parquet

from tests.errors import raises_code
from veneer.config.data_config import DataConfig
from veneer.config.load import build_config
from veneer.config.paths import anchored, portable
from veneer.config.source_config import SourceConfig
from veneer.data.preflight import survey
from veneer.data.sources.protocol import Listing
from veneer.data.sources.registry import read_source

NAME = "hub:ada/cats"


def picture(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16 + number, 16), (number * 20 % 256, 90, 30)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the library takes for what the hub has under the name, and for its own cache."""
    folder, load = tmp_path / "repository", datasets.load_dataset
    folder.mkdir()
    monkeypatch.setattr("datasets.config.HF_CACHE_HOME", str(tmp_path))

    def load_here(name: str, **options: Any) -> Any:
        assert name == "ada/cats" and "trust_remote_code" not in options
        return load(str(folder), cache_dir=str(tmp_path / "cache"), **options)

    monkeypatch.setattr(datasets, "load_dataset", load_here)
    return folder


def listed(**keys: Any) -> Listing:
    return read_source(SourceConfig(path=Path(NAME), **keys), None)


def as_tables(folder: Path) -> None:
    images = [{"bytes": picture(number), "path": None} for number in range(6)]
    features = Features(image=datasets.Image(), text=Value("string"))
    whole = Dataset.from_dict({"image": images, "text": [f"a cat {number}" for number in range(6)]}, features)
    for shard in range(2):
        whole.shard(2, shard, contiguous=True).to_parquet(folder / f"train-0000{shard}-of-00002.parquet")


def as_folder(folder: Path) -> None:
    lines = ["file_name,text"]
    for number in range(6):
        (folder / f"{number}.png").write_bytes(picture(number))
        lines.append(f"{number}.png,a cat {number}")
    (folder / "metadata.csv").write_text("\n".join(lines))


def as_shards(folder: Path) -> None:
    with webdataset.ShardWriter(f"{folder}/train-%03d.tar", maxcount=4, verbose=0) as writer:
        for number in range(6):
            writer.write({"__key__": f"{number}", "png": picture(number), "json": {"caption": f"a cat {number}"}})


@pytest.mark.parametrize("make", [as_tables, as_folder, as_shards])
def test_a_dataset_however_it_is_stored(hub: Path, make: Callable[[Path], None]) -> None:
    make(hub)
    entries = listed().entries
    assert [(one.location.read(), one.captions) for one in entries] == [
        (picture(number), (f"a cat {number}",)) for number in range(6)
    ]
    assert [str(one.path) for one in entries[:2]] == [f"{NAME}[0]", f"{NAME}[1]"]


def test_pictures_are_trained_on_from_there(hub: Path) -> None:
    as_tables(hub)
    found = survey(DataConfig(sources=(SourceConfig(path=Path(NAME)),), held_out=0.0)).train
    assert [one.captions for one in found.samples] == [(f"a cat {number}",) for number in range(6)]
    with raises_code("data.no_such_split", "test"):
        listed(split="test")


def test_what_cannot_be_fetched_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach 'ada/cats'\non the Hub (OfflineModeIsEnabled)")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with raises_code("data.not_fetched", "Couldn't reach 'ada/cats' on the Hub (OfflineModeIsEnabled)"):
        listed()
    monkeypatch.setitem(sys.modules, "datasets", None)
    with raises_code("data.datasets_missing", "pip install 'veneer[hub-datasets]'"):
        listed()


def test_a_table_names_no_file_of_this_disk(hub: Path, tmp_path: Path) -> None:
    secret = tmp_path.parent / f"{tmp_path.name}-secret.png"
    secret.write_bytes(picture(0))
    features = Features(image=datasets.Image(), text=Value("string"))
    rows = {"image": [{"bytes": None, "path": str(secret)}], "text": ["a cat"]}
    parquet.write_table(pyarrow.table(rows, schema=features.arrow_schema), hub / "train.parquet")
    with raises_code("data.table_names_file"):
        listed()


def test_code_of_a_dataset_is_not_run(hub: Path, tmp_path: Path) -> None:
    as_tables(hub)
    (hub / "cats.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert len(listed().entries) == 6
    shutil.copy(hub / "cats.py", hub / "repository.py")
    with raises_code("data.not_fetched"):
        listed()
    assert not (tmp_path / "ran").exists()


def test_a_name_is_no_path(tmp_path: Path) -> None:
    values = {"base": "bundled", "data": {"sources": [{"path": NAME}, {"path": "p"}]}}
    there = anchored(values, tmp_path)
    assert [one["path"] for one in there["data"]["sources"]] == [NAME, str(tmp_path / "p")]
    assert portable(there, tmp_path)["data"]["sources"][0]["path"] == NAME
    config = build_config(there, "test")
    assert config.model_dump(mode="json")["data"]["sources"][0]["path"] == NAME
    url = {"base": "bundled", "data": {"sources": [{"path": "https://a.example/s-{0..9}.tar"}]}}
    again = build_config(build_config(anchored(url, tmp_path), "test").model_dump(mode="json"), "test")
    assert again.model_dump(mode="json")["data"]["sources"][0]["path"] == "https://a.example/s-{0..9}.tar"
