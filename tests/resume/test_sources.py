"""Shards, tables, a dataset of the hub and streams train the adapter that the same pictures in a folder train."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow
import pytest
import torch
import webdataset
from datasets import Dataset, Features, Value
from pyarrow import parquet
from safetensors.torch import load_file

import veneer
from tests.running import hashes, killed, quick_config, use_base
from veneer.family.registry import BUNDLED, load_family
from veneer.run.resume import Resume
from veneer.run.session import run_training
from veneer.train.events import StepDone
from veneer.weights.file import FILE_NAME

PICTURES = sorted((veneer.demo_path() / "train").glob("*.png"))[:8]


def caption(picture: Path) -> str:
    return picture.stem.replace("-", " ")


def as_folder(folder: Path) -> str:
    for picture in PICTURES:
        (folder / picture.name).write_bytes(picture.read_bytes())
        (folder / f"{picture.stem}.txt").write_text(caption(picture))
    return str(folder)


def as_list(folder: Path) -> str:
    for picture in PICTURES:
        (folder / picture.name).write_bytes(picture.read_bytes())
    rows = {"file_name": [one.name for one in PICTURES], "text": list(map(caption, PICTURES))}
    parquet.write_table(pyarrow.table(rows), folder / "metadata.parquet")
    return str(folder)


def as_shards(folder: Path) -> str:
    with webdataset.ShardWriter(f"{folder}/s-%02d.tar", maxcount=3, verbose=0) as writer:
        for picture in PICTURES:
            writer.write({"__key__": picture.stem, "png": picture.read_bytes(), "txt": caption(picture)})
    return f"{folder}/s-{{00..02}}.tar"


def as_stream(folder: Path) -> str:
    as_shards(folder)
    for shard in folder.iterdir():
        fsspec.filesystem("memory").pipe_file(f"/streams/{shard.name}", shard.read_bytes())
        shard.unlink()
    return "memory://streams/s-{00..02}.tar"


def as_tables(folder: Path) -> str:
    images = [{"bytes": picture.read_bytes(), "path": picture.name} for picture in PICTURES]
    features = Features(image=datasets.Image(), text=Value("string"))
    whole = Dataset.from_dict({"image": images, "text": list(map(caption, PICTURES))}, features)
    for shard in range(2):
        whole.shard(2, shard, contiguous=True).to_parquet(folder / f"train-{shard}.parquet", batch_size=3)
    return str(folder)


def as_hub(folder: Path) -> str:
    as_tables(folder)
    return "hub:ada/emoji"


KINDS = (as_list, as_shards, as_stream, as_tables, as_hub)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder, whole = tmp_path / "pictures", datasets.load_dataset
    folder.mkdir()

    def here(name: str, **options: Any) -> Any:
        assert name == "ada/emoji"
        return whole(str(folder), cache_dir=str(tmp_path / "hub"), **options)

    monkeypatch.setattr(datasets, "load_dataset", here)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield folder
    memory = fsspec.filesystem("memory")
    if memory.exists("/streams"):
        memory.rm("/streams", recursive=True)


@pytest.mark.slow
@pytest.mark.parametrize("make", KINDS)
def test_any_source_trains_what_a_folder_does_and_goes_on_to_the_same_bits(
    make: Callable[[Path], str], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_base(monkeypatch, load_family(BUNDLED))
    (tmp_path / "plain").mkdir()
    sources = {"plain": as_folder(tmp_path / "plain"), "whole": make(place)}
    configs = {
        name: quick_config(Path(BUNDLED), Path(source), tmp_path / f"run-{name}", train={"max_steps": 3})
        for name, source in sources.items()
    }
    for config in configs.values():
        run_training(config)
    often = quick_config(Path(BUNDLED), Path(sources["whole"]), tmp_path / "run-often", train={"max_steps": 3})
    killed(often, StepDone, 2)
    run_training(often, resume=Resume())
    assert hashes(often.output.dir) == hashes(configs["whole"].output.dir)
    plain, other = (config.output.dir / FILE_NAME for config in configs.values())
    assert_same(plain, other)


def assert_same(first: Path, second: Path) -> None:
    one, other = load_file(first), load_file(second)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("make", [as_shards, as_tables])
def test_the_command_line_takes_shards_and_tables(make: Callable[[Path], str], tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    source = make(folder)
    options = ["train.max_steps=3", "train.checkpoint_every=1", "sample.steps=1", "sample.prompts=[a red cross]"]
    command = [sys.executable, "-m", "veneer", "train", source, f"output.dir={tmp_path / 'run'}", *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run" / FILE_NAME).is_file()
