"""``veneer data cache`` is killed by the kernel again and again: nothing wrong is read, nothing is encoded twice."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from veneer.config.load import build_config, write_config
from veneer.config.schema import RunConfig
from veneer.family.loading import load_run_base
from veneer.family.store_shard import INDEX, SHARD, Shard, Tensors
from veneer.rng import uniform
from veneer.verbs.data_cache import fill_cache

KILLS = 20
PICTURES = 16


def config_of(base: Path, pictures: Path, cache: Path) -> RunConfig:
    """Latents of 128 pixels, mirrored ones too, and captions."""
    data = {"sources": [{"path": str(pictures)}], "resolution": 128, "flip": True, "held_out": 0.1, "cache": str(cache)}
    train = {"max_steps": 200, "batch_size": 4, "checkpoint_every": 0}
    return build_config({"base": str(base), "data": data, "train": train}, "test")


def write_pictures(folder: Path) -> Path:
    folder.mkdir()
    for number in range(PICTURES):
        pixels = np.random.default_rng(number).integers(0, 256, (128, 128, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"picture {number}", "utf-8")
    return folder


def entries_in(cache: Path) -> dict[bytes, Tensors]:
    """What a reader finds, by the digest of its key."""
    found: dict[bytes, Tensors] = {}
    for path in cache.glob(f"*/*{SHARD}"):
        shard = Shard(path)
        for row in shard.refresh():
            tensors = shard.read(row)
            assert tensors is not None, "a line of the index speaks of what is not there"
            assert shard.entry(row).digest not in found, "it was encoded twice"
            found[shard.entry(row).digest] = tensors
    return found


def lines_in(cache: Path) -> int:
    """Bytes of all indices: they grow as entries are stored."""
    return sum(path.stat().st_size for path in cache.glob(f"*/*{INDEX}"))


def kill_while_caching(file: Path, cache: Path, wait: float) -> None:
    """Start the verb; kill it some time after it began to store."""
    command = [sys.executable, "-m", "veneer", "data", "cache", str(file)]
    before = lines_in(cache)
    with (file.parent / "errors").open("wb") as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env=os.environ)
    try:
        while lines_in(cache) == before:
            assert process.poll() is None, (file.parent / "errors").read_text("utf-8")
            time.sleep(0.001)
        time.sleep(wait)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_twenty_kills_of_the_verb_give_no_wrong_latent_and_lose_none(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each a run completes on a copy: it encodes what was not stored, to the bits of one that nobody killed."""
    pictures, cache, file = write_pictures(tmp_path / "pictures"), tmp_path / "cache", tmp_path / "config.yaml"
    fresh, config = (config_of(tiny_base, pictures, place) for place in (tmp_path / "fresh", cache))
    write_config(config, file)
    family = load_run_base(config)
    monkeypatch.setattr("veneer.verbs.data_cache.load_run_base", lambda _: family)
    whole = fill_cache(fresh, lambda _: None)
    expected = entries_in(tmp_path / "fresh")
    assert len(expected) == whole.computed == whole.total
    stored: list[int] = []
    for life in range(KILLS):
        if stored and stored[-1] > whole.total // 2:
            shutil.rmtree(cache)
        kill_while_caching(file, cache, 0.05 * uniform(life, "wait"))
        found = entries_in(cache)
        stored.append(len(found))
        assert all(same(tensors, expected[digest]) for digest, tensors in found.items())
        copy = Path(shutil.copytree(cache, tmp_path / f"after {life}"))
        done = fill_cache(config_of(tiny_base, pictures, copy), lambda _: None)
        assert (done.found, done.computed) == (len(found), whole.total - len(found))
        completed = entries_in(copy)
        assert completed.keys() == expected.keys()
        assert all(same(tensors, expected[digest]) for digest, tensors in completed.items())
        shutil.rmtree(copy)
    assert len(set(stored)) > KILLS // 2, f"the kills struck at the same places: {stored}"


def same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
