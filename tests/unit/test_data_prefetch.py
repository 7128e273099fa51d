"""Pictures are the same whoever loads them; what a worker fails at is told where it is needed."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.errors import raises_code
from tests.training import tiny_config, trainer_on, write_noise_pictures
from veneer.data import prefetch
from veneer.data.manifest import Sample
from veneer.data.prefetch import PixelLoader, PixelRequest
from veneer.data.preflight import survey
from veneer.data.transform import load_centered, load_pixels
from veneer.family.protocol import Conditioning, Family
from veneer.train.step import MicroBatch

RANDOM: dict[str, Any] = {"trigger": "noise", "crop": "random", "flip": True, "caption_dropout": 0.3}


def loader_on(folder: Path, **data: Any) -> tuple[PixelLoader, tuple[Sample, ...]]:
    config = tiny_config(write_noise_pictures(folder), data={**RANDOM, **data})
    return PixelLoader(config.data, seed=3), survey(config.data).train.samples


def requests_of(samples: tuple[Sample, ...]) -> list[PixelRequest]:
    draws = [PixelRequest("picture", sample, (16, 16), number) for number, sample in enumerate(samples)]
    return [*draws, *(PixelRequest("picture", sample, (16, 16), None) for sample in samples)]


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_pixels_are_those_of_the_transform(tmp_path: Path, workers: int) -> None:
    loader, samples = loader_on(tmp_path, workers=workers)
    config = tiny_config(tmp_path, data=RANDOM).data
    requests = requests_of(samples)
    loader.expect(requests)
    for request in reversed(requests):
        (pixels,) = loader.load(request)
        if request.draw_index is None:
            assert torch.equal(pixels, load_centered(request.sample, config, (16, 16)))
        else:
            assert torch.equal(pixels, load_pixels(request.sample, config, (16, 16), 3, request.draw_index))
    loader.close()


def test_what_is_expected_is_loaded_by_workers_and_no_more_of_it_is_held_than_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader, samples = loader_on(tmp_path, workers=2)
    threads: list[str] = []
    load = prefetch._load

    def recorded(*given: Any) -> Any:
        threads.append(threading.current_thread().name)
        return load(*given)

    monkeypatch.setattr(prefetch, "_load", recorded)
    first, second = requests_of(samples)[:3], requests_of(samples)[3:5]
    loader.expect(first)
    loader.expect(first)
    for request in first[:2]:
        loader.load(request)
    assert set(loader._begun) == set(first[2:])
    loader.expect(second)
    assert set(loader._begun) == set(second)
    for request in second:
        loader.load(request)
    assert all(name.startswith("pictures") for name in threads) and len(threads) <= 5
    loader.load(first[2])  # dropped, so loaded here and now
    assert threads[-1] == "MainThread"
    loader.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_changes_is_told_where_it_is_needed(tmp_path: Path, workers: int) -> None:
    loader, samples = loader_on(tmp_path, workers=workers)
    requests = requests_of(samples)[:3]
    requests[1].sample.path.unlink()
    requests[2].sample.path.write_bytes(b"other bytes")
    loader.expect(requests)
    loader.load(requests[0])
    with raises_code("data.picture_gone"):
        loader.load(requests[1])
    with raises_code("data.picture_changed"):
        loader.load(requests[2])
    loader.close()


def batches(family: Family, pictures: Path, steps: range, **data: Any) -> list[MicroBatch]:
    train = {"max_steps": 6, "batch_size": 2, "gradient_accumulation_steps": 2}
    config = tiny_config(pictures, data={**RANDOM, **data}, train=train)
    with trainer_on(config, family) as trainer:
        return [micro for step in steps for micro in trainer.batches.micro_batches(step)]


def same(one: list[MicroBatch], other: list[MicroBatch]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(_same(*pair) for pair in pairs)


def _same(one: MicroBatch, other: MicroBatch) -> bool:
    assert isinstance(one.text, Conditioning) and isinstance(other.text, Conditioning)
    tensors = [(getattr(one, name), getattr(other, name)) for name in ("latents", "noise", "t_B", "weight_B")]
    tensors += [(one.text.tensors[name], other.text.tensors[name]) for name in one.text.tensors]
    return all(torch.equal(*pair) for pair in tensors) and one.samples == other.samples


@pytest.mark.parametrize("crop", ["random", "center"])
def test_batches_have_the_same_bits_with_any_number_of_workers(family: Family, tmp_path: Path, crop: str) -> None:
    pictures = write_noise_pictures(tmp_path)
    plain = batches(family, pictures, range(6), workers=0, crop=crop)
    for workers in (1, 2, 4):
        assert same(batches(family, pictures, range(6), workers=workers, crop=crop), plain)
    assert same(batches(family, pictures, range(4, 6), workers=2, crop=crop), plain[8:]), "as after a resume"


@pytest.mark.slow
def test_batches_have_the_same_bits_with_processes(family: Family, tmp_path: Path) -> None:
    pictures = write_noise_pictures(tmp_path)
    plain = batches(family, pictures, range(6), workers=0)
    for workers in (1, 2, 4):
        assert same(batches(family, pictures, range(6), workers=workers, worker_type="process"), plain)


@pytest.mark.slow
def test_a_killed_worker_process_costs_time_and_nothing_else(tmp_path: Path) -> None:
    loader, samples = loader_on(tmp_path, workers=1, worker_type="process")
    requests = requests_of(samples)
    loader.expect(requests[:1])
    loader.load(requests[0])
    pool: Any = loader._pool
    for worker in list(pool._processes):
        os.kill(worker, signal.SIGKILL)
    for first in (1, 3):
        loader.expect(requests[first : first + 2])
        for request in requests[first : first + 2]:
            loader.load(request)
    loader.close()
