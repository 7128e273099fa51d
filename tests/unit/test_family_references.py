"""References on their way to text encoders and denoiser: encoded once, cached by content, refused where not taken."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.errors import raises_code
from tests.families.flux_kontext import CASE
from tests.training import tiny_config
from veneer.config.schema import RunConfig
from veneer.data.loader import SampleDraw
from veneer.data.preflight import survey
from veneer.data.transform import load_centered, load_centered_references
from veneer.evaluate.heldout import HeldOutEvaluator
from veneer.family.cache import Encoder
from veneer.family.flux_kontext import FluxKontext
from veneer.family.networks import LoadOptions
from veneer.family.protocol import Conditioning, Family
from veneer.family.references import check_references
from veneer.family.store import MemoryStore, Store
from veneer.train.loop import Trainer

SIDE = 16
SIZE = (SIDE, SIDE)


class Reading(FluxKontext):
    """A base whose text encoder sees the references too; it counts what it encodes."""

    text_reads_references = True
    asked: list[str]

    def encode_instructions(self, captions: Sequence[str], references: Sequence[Sequence[Tensor]]) -> Conditioning:
        self.asked += [f"text {caption}" for caption in captions]
        text = self.encode_text(captions)
        seen_B = torch.stack([torch.stack(list(own)).mean() + own[0][0, 0, 0] for own in references])
        return Conditioning({**text.tensors, "text": text["text"] + seen_B[:, None, None]})

    def encode_references(self, references: Sequence[Tensor]) -> Conditioning:
        self.asked += ["references"]
        return super().encode_references(references)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return CASE.write(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Reading:
    base = Reading.load(folder, LoadOptions(torch.float32))
    base._tokenizers["text_encoder_2"].model_max_length = 8  # short texts are quick
    return base


@pytest.fixture
def reading(loaded: Reading) -> Reading:
    loaded.asked = []
    return loaded


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures with one caption; the first two are made from the same one."""
    folder, rows = tmp_path_factory.mktemp("pairs"), []
    for number in range(4):
        for name, seed in ((f"after-{number}.png", number), (f"before-{number}.png", 9 + number)):
            pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name)
        rows.append({"file_name": f"after-{number}.png", "reference_file_name": f"before-{max(number, 1)}.png"})
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps({**row, "text": "red"}) for row in rows), "utf-8")
    return folder


def config_of(pairs: Path, **data: Any) -> RunConfig:
    return tiny_config(pairs, data={"resolution": SIDE, "aspect": "square", "held_out": 0.0, **data})


def draws_of(config: RunConfig, count: int = 8) -> list[SampleDraw]:
    samples = survey(config.data).train.samples
    return [SampleDraw(samples[number % len(samples)], number, SIZE) for number in range(count)]


def test_references_have_places_among_the_tensors() -> None:
    first, second = torch.zeros(2, 4, 2, 2), torch.ones(2, 4, 2, 3)
    both = Conditioning({"text": torch.zeros(2, 1)}).joined_to(Conditioning.of_references([first, second]).tensors)
    assert [tensor.shape for tensor in both.references] == [first.shape, second.shape]
    assert both.rows([1]).references[1].shape == (1, 4, 2, 3)
    assert not Conditioning({"text": first}).references
    with pytest.raises(ValueError, match="cannot be joined"):
        Conditioning.cat([both, Conditioning({"text": torch.zeros(1, 1)})])


@pytest.mark.parametrize(("data", "times"), [({}, 3), ({"flip": True}, 6), ({"crop": "random"}, 24)])
def test_each_distinct_reference_is_encoded_once(reading: Reading, pairs: Path, data: Any, times: int) -> None:
    """Two pictures have one reference in common; a text is encoded with each reference that it is about."""
    config = config_of(pairs, **data)
    encoder, draws = Encoder(reading, config.data, seed=0), draws_of(config, 24)
    for draw in draws:
        encoder.references([draw])
        encoder.texts([draw.sample.captions[0]], [draw])
    assert (reading.asked.count("references"), reading.asked.count("text red")) == (times, times)


@torch.no_grad()
def test_what_is_kept_is_what_would_be_encoded(reading: Reading, pairs: Path) -> None:
    config = config_of(pairs)
    encoder = Encoder(reading, config.data, seed=0)
    draws = draws_of(config, 4)
    texts, references = encoder.texts(["red"] * 4, draws), encoder.references(draws)
    for place, draw in enumerate(draws):
        pixels = load_centered_references(draw.sample, config.data, SIZE)
        direct = reading.encode_image(pixels[0][None]).mean
        assert torch.equal(references.references[0][place : place + 1], direct)
        assert torch.equal(texts["text"][place], reading.encode_instructions(["red"], [pixels])["text"][0])
    assert torch.equal(texts["text"][0], texts["text"][1]) and not torch.equal(texts["text"][1], texts["text"][2])


def test_a_store_keeps_them_by_content(reading: Reading, pairs: Path, tmp_path: Path) -> None:
    config = config_of(pairs)
    found = []
    for _ in range(2):
        encoder = Encoder(reading, config.data, 0, Store(tmp_path, "base"))
        draws = draws_of(config, 4)
        found.append((encoder.references(draws).references[0], encoder.texts(["red"] * 4, draws)["text"]))
    assert (reading.asked.count("references"), reading.asked.count("text red")) == (3, 3)
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@pytest.mark.parametrize("data", [{}, {"flip": True}, {"caption_dropout": 0.5}])
def test_all_is_encoded_before_the_first_step(reading: Reading, pairs: Path, data: Any) -> None:
    config = config_of(pairs, **data)
    trainer = Trainer(config, reading, survey(config.data))
    try:
        for encode in trainer.batches.encoding_calls(range(3)):
            encode()
        asked = list(reading.asked)
        micros = [trainer.batches.micro_batches(step) for step in range(3)]
        assert reading.asked == asked and asked
        assert all(len(micro.references.references) == 1 for step in micros for micro in step)
    finally:
        trainer.close()


def test_a_score_is_of_the_references_too(reading: Reading, pairs: Path, tmp_path: Path) -> None:
    config = config_of(pairs)
    losses = HeldOutEvaluator(config, reading, survey(config.data).train).losses()
    assert reading.asked.count("references") == 3 and reading.asked.count("text red") == 4
    for number in range(4):
        for name in (f"after-{number}.png", f"before-{number}.png"):
            (tmp_path / name).write_bytes((pairs / name).read_bytes())
    text = (pairs / "metadata.jsonl").read_text("utf-8")
    (tmp_path / "metadata.jsonl").write_text(text.replace("before-3", "before-2"), "utf-8")
    other = HeldOutEvaluator(config_of(tmp_path), reading, survey(config_of(tmp_path).data).train).losses()
    assert (losses[:3] == other[:3]).all() and (losses[3] != other[3]).all()


def test_a_picture_is_encoded_once_whatever_it_is_made_from(reading: Reading, pairs: Path, tmp_path: Path) -> None:
    """Two pairs of one picture share its latents, and have noise of their own."""
    for name in ("after-0.png", "before-1.png", "before-2.png"):
        (tmp_path / name).write_bytes((pairs / name).read_bytes())
    rows = [{"file_name": "after-0.png", "reference_file_name": f"before-{n}.png", "text": "red"} for n in (1, 2)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    config = config_of(tmp_path)
    first, second = draws_of(config, 2)
    encoder = Encoder(reading, config.data, 0)
    assert torch.equal(encoder.posterior(first).mean, encoder.posterior(second).mean)
    assert isinstance(encoder.store, MemoryStore) and len(encoder.store.kept) == 1
    direct = reading.encode_image(load_centered(first.sample, config.data, SIZE)[None]).mean
    assert torch.equal(encoder.centered(first.sample, SIZE).mean, direct)


def test_a_base_takes_as_many_as_it_says(loaded: Reading, family: Family, pairs: Path) -> None:
    for count in (0, 1):
        check_references(loaded, count, "here")
    for base, count in ((loaded, 2), (family, 1)):
        with raises_code("family.references"):
            check_references(base, count, "here")
    assert (loaded.usual_references, family.usual_references) == (1, 0)
    with raises_code("family.references"):
        Trainer(config_of(pairs), family, survey(config_of(pairs).data))
