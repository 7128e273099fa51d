from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.bases import Defaults
from veneer.config.data_config import DataConfig
from veneer.config.keys import known_keys
from veneer.config.load import build_config, resolve
from veneer.config.source_config import SourceConfig
from veneer.data.buckets import Buckets, Extent
from veneer.data.caption_text import caption_of
from veneer.data.loader import DrawSchedule, PictureStream, SampleDraw
from veneer.data.manifest import Manifest, Sample, content_id
from veneer.data.preflight import read_prior, survey
from veneer.data.transform import load_pixels
from veneer.rng import key


def sample(number: int, repeats: int = 1, captions: tuple[str, ...] = ("a cat",)) -> Sample:
    return Sample(content_id(bytes([number])), Path(f"{number}.png"), captions, 8, 8, repeats)


def config(**options: Any) -> DataConfig:
    return DataConfig(sources=(SourceConfig(path=Path("pictures")),), **options)


BUCKETS = Buckets((8,), 8)
FOUR_SIZES = Buckets((64,), 8)
shapes = st.sampled_from([(64, 64), (96, 64), (64, 96), (40, 24)])


def drawn(manifest: Manifest, seed: int, batch: int, numbers: Iterable[int], buckets: Buckets) -> list[SampleDraw]:
    schedule = DrawSchedule(manifest, buckets, seed, batch)
    return [draw for number in numbers for draw in schedule.micro_batch(number)]


manifests = st.lists(st.integers(1, 3), min_size=1, max_size=6).map(
    lambda repeats: Manifest(tuple(sample(number, count) for number, count in enumerate(repeats)))
)
mixed = st.lists(st.tuples(st.integers(1, 3), shapes), min_size=1, max_size=9).map(
    lambda pictures: Manifest(
        tuple(
            replace(sample(number, count), width=shape[0], height=shape[1])
            for number, (count, shape) in enumerate(pictures)
        )
    )
)


def as_before_buckets(manifest: Manifest, seed: int, step: int, count: int) -> list[tuple[Sample, int]]:
    """The draws of a step as they were when all pictures were squares of one size."""
    length = sum(sample.repeats for sample in manifest.samples)

    def epoch(number: int) -> list[Sample]:
        repeated = [(sample, turn) for sample in manifest.samples for turn in range(sample.repeats)]
        repeated.sort(key=lambda repeat: key(seed, number, repeat[0].id, repeat[1], "order"))
        return [sample for sample, _ in repeated]

    return [(epoch(draw // length)[draw % length], draw) for draw in range(step * count, (step + 1) * count)]


@given(manifests, st.integers(0, 5), st.integers(0, 30), st.integers(1, 5))
def test_of_one_size_all_draws_are_as_they_were_before_there_were_buckets(
    manifest: Manifest, seed: int, number: int, batch: int
) -> None:
    now = [(draw.sample, draw.draw_index) for draw in drawn(manifest, seed, batch, [number], BUCKETS)]
    assert now == as_before_buckets(manifest, seed, number, batch)


@given(manifests, st.integers(0, 5), st.integers(1, 7), st.integers(1, 4))
def test_an_epoch_shows_each_picture_as_often_as_it_repeats(
    manifest: Manifest, seed: int, count: int, epochs: int
) -> None:
    length = sum(one.repeats for one in manifest.samples)
    steps = -(-length * epochs // count)
    shown = drawn(manifest, seed, count, range(steps), BUCKETS)
    assert [draw.draw_index for draw in shown] == list(range(steps * count))
    for epoch in range(epochs):
        times = Counter(draw.sample for draw in shown[epoch * length : (epoch + 1) * length])
        assert times == Counter({one: one.repeats for one in manifest.samples})


@given(manifests, st.integers(0, 5), st.integers(0, 20), st.integers(1, 3), st.integers(1, 3))
def test_of_one_size_a_run_s_pictures_are_the_same_in_batches_of_any_size(
    manifest: Manifest, seed: int, step: int, batch: int, accumulate: int
) -> None:
    count = batch * accumulate
    whole = drawn(manifest, seed, count, [step], BUCKETS)
    assert whole == drawn(manifest, seed, 1, range(step * count, (step + 1) * count), BUCKETS)
    assert whole == drawn(manifest, seed, batch, range(step * accumulate, (step + 1) * accumulate), BUCKETS)


@given(mixed, st.integers(0, 3), st.integers(1, 4))
def test_each_micro_batch_has_one_size_and_each_picture_its_exact_share(
    manifest: Manifest, seed: int, batch: int
) -> None:
    """Over as many micro-batches as an epoch has pictures, each is shown ``batch`` times its repeats."""
    length = sum(one.repeats for one in manifest.samples)
    schedule = DrawSchedule(manifest, FOUR_SIZES, seed, batch)
    batches = [schedule.micro_batch(number) for number in range(length)]
    for number, draws in enumerate(batches):
        assert [draw.draw_index for draw in draws] == list(range(number * batch, (number + 1) * batch))
        assert len({draw.size for draw in draws}) == 1
        assert all(FOUR_SIZES.sizes(draw.sample.width, draw.sample.height) == (draw.size,) for draw in draws)
    times = Counter(draw.sample for draws in batches for draw in draws)
    assert times == Counter({one: one.repeats * batch for one in manifest.samples})


@given(mixed, st.integers(0, 3), st.integers(0, 3000))
def test_a_micro_batch_is_found_without_those_before_it(manifest: Manifest, seed: int, number: int) -> None:
    schedule = DrawSchedule(manifest, FOUR_SIZES, seed, 2)
    before = [schedule.micro_batch(place) for place in range(max(0, number - 3), number + 1)]
    assert drawn(manifest, seed, 2, [number], FOUR_SIZES) == before[-1]


def test_at_all_times_a_bucket_has_had_its_share_to_within_two_turns() -> None:
    shares = [(64, 64)] * 90 + [(96, 64)] * 55 + [(64, 96)] * 30 + [(40, 24)] * 2 + [(128, 64)]
    pictures = [replace(sample(n, 1), width=w, height=h) for n, (w, h) in enumerate(shares)]
    schedule = DrawSchedule(Manifest(tuple(pictures)), FOUR_SIZES, 0, 1)
    turns: Counter[Extent] = Counter()
    for number in range(1000):
        turns[schedule.micro_batch(number)[0].extent] += 1
        for extent, members in schedule.members.items():
            assert abs(turns[extent] - (number + 1) * len(members) / len(shares)) < 2


def test_each_picture_is_drawn_at_each_of_its_sizes() -> None:
    manifest, buckets = Manifest((replace(sample(0), width=64, height=64), sample(1))), Buckets((16, 64), 8)
    seen = Counter((draw.sample.path.name, draw.size) for draw in drawn(manifest, 0, 1, range(3), buckets))
    assert seen == {("0.png", (16, 16)): 1, ("0.png", (64, 64)): 1, ("1.png", (8, 8)): 1}


@given(st.lists(st.floats(0.05, 3.5), min_size=1, max_size=5), st.integers(0, 3), st.integers(1, 60))
def test_a_picture_of_a_weight_is_shown_as_often_to_within_one(weights: list[float], seed: int, epochs: int) -> None:
    samples = [replace(sample(number), weight=weight) for number, weight in enumerate(weights)]
    stream = PictureStream(samples, seed)
    place, shown = 0, list[Sample]()
    for epoch in range(epochs):
        count = stream._shown_before(epoch + 1) - place
        shown += stream.draw(place, count)
        place += count
        for one in samples:
            assert abs(shown.count(one) - (epoch + 1) * one.weight) <= 1 + 1e-9
    assert shown == [stream.draw(number, 1)[0] for number in range(place)]


def test_whole_weights_are_repeats() -> None:
    weighed = Manifest(tuple(replace(sample(number), weight=2.0) for number in range(5)))
    repeated = Manifest(tuple(sample(number, 2) for number in range(5)))
    orders = [[draw.sample.id for draw in drawn(one, 0, 2, range(20), BUCKETS)] for one in (weighed, repeated)]
    assert orders[0] == orders[1]


def test_order_depends_on_seed_and_epoch_and_not_on_names_or_listing() -> None:
    manifest = Manifest(tuple(sample(number) for number in range(20)))

    def order(manifest: Manifest, seed: int, step: int) -> list[str]:
        return [draw.sample.id for draw in drawn(manifest, seed, 20, [step], BUCKETS)]

    first = order(manifest, 0, 0)
    renamed = [replace(one, path=Path(one.id)) for one in reversed(manifest.samples)]
    assert order(Manifest(tuple(renamed)), 0, 0) == first
    assert order(manifest, 1, 0) != first and order(manifest, 0, 1) != first
    assert first != [one.id for one in manifest.samples]


Seen = tuple[list[str], list[str], list[float], list[str], int]


def what_training_sees(mapping: dict[str, Any]) -> Seen:
    """Pictures, captions, pixels, held-out pictures and the prior of a first step."""
    run = resolve(build_config({"base": "bundled", "data": mapping}, "test"), Defaults(16))
    dataset, prior = survey(run.data), read_prior(run)
    picked = drawn(dataset.train, 0, 1, range(12), Buckets.of(run.data, Defaults(16)))
    pixels = [load_pixels(draw.sample, run.data, draw.size, 0, draw.draw_index) for draw in picked]
    said = [caption_of(draw, run.data, 0) for draw in picked]
    said += [caption for one in prior.samples for caption in one.captions]
    held = sorted(one.id for one in dataset.held_out.samples)
    return (
        [draw.sample.id for draw in picked],
        said,
        torch.cat([one.flatten() for one in pixels]).tolist(),
        held,
        len(prior.samples),
    )


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """Pictures that are not square, half transparent, with a caption file of two lines each."""
    folder = tmp_path / "wide" / "2_things"
    folder.mkdir(parents=True)
    for number in range(8):
        values = np.random.default_rng(number).integers(0, 256, (16, 24, 4), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"thing {number}\nof eight")
    return folder.parent


CHANGES: dict[str, Callable[[dict[str, Any], Path], object]] = {
    "sources.path": lambda data, folder: data.update(sources=[{"path": str(folder), "repeats": 2}]),
    "sources.repeats": lambda data, folder: data["sources"][0].update(repeats=1),
    "sources.shuffle_tags": lambda data, folder: data["sources"][0].update(shuffle_tags=True, tag_separator="t"),
    "sources.tag_dropout": lambda data, folder: data["sources"][0].update(tag_dropout=0.5),
    "sources.captions": lambda data, folder: data["sources"][0].update(captions="whole"),
    "sources.numbered_folders": lambda data, folder: data["sources"][0].update(numbered_folders=False),
    "sources.follow_links": lambda data, folder: [
        data["sources"][0].update(follow_links=True),
        Path(data["sources"][0]["path"], "more").symlink_to(folder),
    ],
    "trigger": lambda data, folder: data.update(trigger="tok"),
    "sources.weight": lambda data, folder: data["sources"].append({"path": str(folder), "weight": 0.1}),
    "caption_template": lambda data, folder: data.update(caption_template=["a photo of {caption}"]),
    "resolution": lambda data, folder: data.update(resolution=24),
    "aspect": lambda data, folder: data.update(aspect="square"),
    "upscale": lambda data, folder: data.update(resolution=24, upscale=True),
    "held_out": lambda data, folder: data.update(held_out=0.5),
    "background": lambda data, folder: data.update(background="black"),
    "crop": lambda data, folder: data.update(crop="random"),
    "flip": lambda data, folder: data.update(flip=True),
    "crop_jitter": lambda data, folder: data.update(crop_jitter=0.2),
    "color_jitter.brightness": lambda data, folder: data.update(color_jitter={"brightness": 0.2}),
    "color_jitter.contrast": lambda data, folder: data.update(color_jitter={"contrast": 0.2}),
    "color_jitter.saturation": lambda data, folder: data.update(color_jitter={"saturation": 0.2}),
    "color_jitter.hue": lambda data, folder: data.update(color_jitter={"hue": 0.1}),
    "caption_dropout": lambda data, folder: data.update(caption_dropout=0.5),
    "prior": lambda data, folder: data.pop("prior"),
    "prior.prompt": lambda data, folder: data["prior"].update(prompt="an animal"),
    "prior.count": lambda data, folder: data["prior"].update(count=2),
    "prior.path": lambda data, folder: data["prior"].update(path=str(folder)),
}


def test_every_field_has_a_test_that_it_changes_something() -> None:
    fields = {key.removeprefix("data.") for key in known_keys() if key.startswith("data.")}
    # the weight of the prior's loss is training's, and so is its test; the cache's is in test_family_store.py, that of
    # how texts are encoded in test_family_windows.py, that of references in test_data_references.py, that of masks in
    # test_data_sources_masks.py, those of the keys that say more of another key in test_data_tags.py and
    # test_data_captions.py, that of workers in test_data_prefetch.py, that of what may be broken in
    # test_data_preflight.py, those of tables and shards in test_data_parquet.py, test_data_hub.py and
    # test_data_shuffle_window.py, those of clips in test_data_clip_frames.py and
    # test_data_image_sequences.py, that of another run's split in test_data_split_record.py
    elsewhere = {"cache", "color_jitter", "sources", "sources.references", "prior.weight", "token_windows"}
    elsewhere |= {"sources.image_sequences", "frames", "frame_extraction", "frame_rate"}
    elsewhere |= {"split_from", "workers", "worker_type", "max_rejected", "shuffle_window"}
    elsewhere |= {"sources.columns", "sources.columns.image", "sources.columns.text", "sources.split"}
    elsewhere |= {"sources.masks", "sources.tag_separator", "sources.keep_tags", "sources.tag_orders"}
    assert set(CHANGES) == fields - elsewhere - {"trigger_placement", "prompt_weights"}


@pytest.mark.parametrize("field", CHANGES)
def test_changing_a_field_changes_what_training_sees(field: str, wide: Path, tiny_pictures: Path) -> None:
    def base() -> dict[str, Any]:
        return {
            "sources": [{"path": str(wide), "repeats": 2}],
            "held_out": 0.2,
            "prior": {"prompt": "a thing", "path": str(wide), "count": 4},
        }

    changed = base()
    CHANGES[field](changed, tiny_pictures)
    if field == "prior.path":
        changed["prior"]["count"] = 12
        before = base() | {"prior": {"prompt": "a thing", "path": str(wide), "count": 12}}
    else:
        before = base()
    assert what_training_sees(before) == what_training_sees(before)
    assert what_training_sees(changed) != what_training_sees(before)
