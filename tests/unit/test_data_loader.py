from __future__ import annotations

from collections import Counter
from collections.abc import Callable
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
from veneer.config.keys import known_keys
from veneer.config.load import build_config, resolve
from veneer.config.schema import DataConfig, SourceConfig
from veneer.data.caption_text import caption_of
from veneer.data.loader import draw_samples
from veneer.data.manifest import Manifest, Sample, content_id
from veneer.data.preflight import read_prior, survey
from veneer.data.transform import load_pixels


def sample(number: int, repeats: int = 1, captions: tuple[str, ...] = ("a cat",)) -> Sample:
    return Sample(content_id(bytes([number])), Path(f"{number}.png"), captions, 8, 8, repeats)


def config(**options: Any) -> DataConfig:
    return DataConfig(sources=(SourceConfig(path=Path("pictures")),), **options)


manifests = st.lists(st.integers(1, 3), min_size=1, max_size=6).map(
    lambda repeats: Manifest(tuple(sample(number, count) for number, count in enumerate(repeats)))
)


@given(manifests, st.integers(0, 5), st.integers(1, 7), st.integers(1, 4))
def test_an_epoch_shows_each_picture_as_often_as_it_repeats(
    manifest: Manifest, seed: int, count: int, epochs: int
) -> None:
    length = sum(one.repeats for one in manifest.samples)
    steps = -(-length * epochs // count)
    shown = [draw for step in range(steps) for draw in draw_samples(manifest, seed, step, count)]
    assert [draw.draw_index for draw in shown] == list(range(steps * count))
    for epoch in range(epochs):
        times = Counter(draw.sample for draw in shown[epoch * length : (epoch + 1) * length])
        assert times == Counter({one: one.repeats for one in manifest.samples})


@given(manifests, st.integers(0, 5), st.integers(0, 20), st.integers(1, 3), st.integers(1, 3))
def test_the_pictures_of_a_run_are_numbered_whatever_a_steps_size(
    manifest: Manifest, seed: int, step: int, batch: int, accumulate: int
) -> None:
    whole = draw_samples(manifest, seed, step, batch * accumulate)
    assert whole == [
        draw_samples(manifest, seed, step * batch * accumulate + i, 1)[0] for i in range(batch * accumulate)
    ]


def test_order_depends_on_seed_and_epoch_and_not_on_names_or_listing() -> None:
    manifest = Manifest(tuple(sample(number) for number in range(20)))
    order = [draw.sample.id for draw in draw_samples(manifest, 0, 0, 20)]
    renamed = [replace(one, path=Path(one.id)) for one in reversed(manifest.samples)]
    assert [draw.sample.id for draw in draw_samples(Manifest(tuple(renamed)), 0, 0, 20)] == order
    assert [draw.sample.id for draw in draw_samples(manifest, 1, 0, 20)] != order
    assert [draw.sample.id for draw in draw_samples(manifest, 0, 1, 20)] != order
    assert order != [one.id for one in manifest.samples]


Seen = tuple[list[str], list[str], list[float], list[str], int]


def what_training_sees(mapping: dict[str, Any]) -> Seen:
    """Pictures, captions, pixels, held-out pictures and the prior of a first step."""
    run = resolve(build_config({"base": "bundled", "data": mapping}, "test"), Defaults(16))
    assert run.data.resolution is not None
    dataset, prior = survey(run.data), read_prior(run)
    picked = draw_samples(dataset.train, 0, 0, 12)
    pixels = [load_pixels(draw.sample, run.data, run.data.resolution, 0, draw.draw_index) for draw in picked]
    said = [caption_of(draw, run.data, 0) for draw in picked]
    said += [caption for one in prior.samples for caption in one.captions]
    held = sorted(one.id for one in dataset.held_out.samples)
    return [draw.sample.id for draw in picked], said, torch.stack(pixels).flatten().tolist(), held, len(prior.samples)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures that are not square, half transparent, with a caption file of two lines each."""
    folder = tmp_path_factory.mktemp("wide")
    for number in range(8):
        values = np.random.default_rng(number).integers(0, 256, (16, 24, 4), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"thing {number}\nof eight")
    return folder


CHANGES: dict[str, Callable[[dict[str, Any], Path], object]] = {
    "sources.path": lambda data, folder: data.update(sources=[{"path": str(folder), "repeats": 2}]),
    "sources.repeats": lambda data, folder: data["sources"][0].update(repeats=1),
    "sources.captions": lambda data, folder: data["sources"][0].update(captions="whole"),
    "trigger": lambda data, folder: data.update(trigger="tok"),
    "resolution": lambda data, folder: data.update(resolution=24),
    "held_out": lambda data, folder: data.update(held_out=0.5),
    "background": lambda data, folder: data.update(background="black"),
    "crop": lambda data, folder: data.update(crop="random"),
    "flip": lambda data, folder: data.update(flip=True),
    "caption_dropout": lambda data, folder: data.update(caption_dropout=0.5),
    "prior": lambda data, folder: data.pop("prior"),
    "prior.prompt": lambda data, folder: data["prior"].update(prompt="an animal"),
    "prior.count": lambda data, folder: data["prior"].update(count=2),
    "prior.path": lambda data, folder: data["prior"].update(path=str(folder)),
}


def test_every_field_has_a_test_that_it_changes_something() -> None:
    fields = {key.removeprefix("data.") for key in known_keys() if key.startswith("data.")}
    # the weight of the prior's loss is training's, and so is its test; the cache's is in test_family_store.py, that of
    # how texts are encoded in test_family_windows.py, that of references in test_data_references.py
    assert set(CHANGES) == fields - {"cache", "sources", "sources.references", "prior.weight", "token_windows"}


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
