"""What is stored of a base's work is what the base would compute again."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.errors import raises_code
from veneer.config.load import build_config, resolve
from veneer.config.schema import RunConfig
from veneer.data.preflight import survey
from veneer.family import cache
from veneer.family.protocol import Family
from veneer.family.registry import load_family
from veneer.family.store import Store, old_files
from veneer.family.store_shard import Shard
from veneer.train.events import Finished, Warned
from veneer.train.loop import train


def counting(value: float) -> tuple[Callable[[], dict[str, Tensor]], list[int]]:
    calls: list[int] = []

    def compute() -> dict[str, Tensor]:
        calls.append(1)
        return {"it": torch.tensor([value])}

    return compute, calls


def test_a_key_is_computed_once_and_read_from_then_on(tmp_path: Path) -> None:
    compute, calls = counting(3.0)
    for _ in range(2):
        assert Store(tmp_path, "base").get_or_compute(("posterior", "id", 64, False), compute)["it"].item() == 3.0
    assert len(calls) == 1


KEYS = [
    ("posterior", "id", 64, False),
    ("posterior", "id", 64, True),
    ("posterior", "id", 32, False),
    ("caption", "id"),
]


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(KEYS, 2)))
def test_all_that_a_picture_depends_on_is_in_its_key(
    one: tuple[object, ...], other: tuple[object, ...], tmp_path: Path
) -> None:
    store = Store(tmp_path, "base")
    store.get_or_compute(one, counting(1.0)[0])
    assert store.get_or_compute(other, counting(2.0)[0])["it"].item() == 2.0


def test_another_base_has_other_numbers(tmp_path: Path) -> None:
    Store(tmp_path, "one").get_or_compute(("caption", "a cat"), counting(1.0)[0])
    assert Store(tmp_path, "other").get_or_compute(("caption", "a cat"), counting(2.0)[0])["it"].item() == 2.0


def config_of(base: Path, pictures: Path, cache: Path | None) -> RunConfig:
    data = {
        "sources": [{"path": str(pictures)}],
        "held_out": 0,
        "flip": True,
        "cache": None if cache is None else str(cache),
    }
    mapping = {"base": str(base), "data": data, "train": {"max_steps": 4, "batch_size": 4, "checkpoint_every": 0}}
    return build_config(mapping, origin="a test")


def losses(config: RunConfig, family: Family) -> list[float]:
    config = resolve(config, family)
    return [event.loss for event in train(config, family, survey(config.data)) if hasattr(event, "loss")]


def test_a_run_with_a_cache_is_the_run_without_one_and_a_second_one_encodes_nothing(
    tiny_base: Path, tiny_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = load_family(str(tiny_base))
    plain = losses(config_of(tiny_base, tiny_pictures, None), family)
    config = config_of(tiny_base, tiny_pictures, tmp_path / "cache")
    assert losses(config, family) == plain

    def refuse(*given: object) -> None:
        raise AssertionError("was encoded again")

    monkeypatch.setattr(type(family), "encode_image", refuse)
    monkeypatch.setattr(type(family), "encode_text", refuse)
    assert losses(config, family) == plain


def test_a_base_with_other_settings_is_served_nothing_of_this_one(
    tiny_base: Path, tiny_pictures: Path, tmp_path: Path
) -> None:
    losses(config_of(tiny_base, tiny_pictures, tmp_path / "cache"), load_family(str(tiny_base)))
    copy = Path(shutil.copytree(tiny_base, tmp_path / "copy"))
    path = copy / "vae" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "scaling_factor": 0.5}))
    other = load_family(str(copy))
    plain = losses(config_of(copy, tiny_pictures, None), other)
    assert losses(config_of(copy, tiny_pictures, tmp_path / "cache"), other) == plain


@pytest.mark.parametrize(
    ("what", "value"),
    [
        ("torch.__version__", "0.0"),
        ("torch.get_num_threads", lambda: 77),
        ("torch.backends.cpu.get_cpu_capability", lambda: "abacus"),
        ("veneer.family.cache.fingerprint", lambda base: "other weights"),
    ],
)
def test_what_moves_the_last_bits_has_a_cache_of_its_own(
    tiny_base: Path, tiny_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, value: object
) -> None:
    family, config = load_family(str(tiny_base)), config_of(tiny_base, tiny_pictures, tmp_path)
    one, same = cache.store_of(config, family), cache.store_of(config, family)
    monkeypatch.setattr(what, value)
    other = cache.store_of(config, family)
    assert one is not None and same is not None and other is not None
    assert one._base == same._base != other._base


@pytest.mark.parametrize("package", ["diffusers", "transformers", "pillow"])
def test_another_release_of_what_computes_them_is_another_key(
    family: Family, tiny_base: Path, tiny_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    values = {"base": str(tiny_base), "data": {"sources": [{"path": str(tiny_pictures)}], "cache": str(tmp_path)}}
    config, releases = build_config(values, "test"), cache.version
    stores = [cache.store_of(config, family)]
    monkeypatch.setattr(cache, "version", lambda name: "0.0" if name == package else releases(name))
    stores.append(cache.store_of(config, family))
    digests = {store.digest(("text", "a cat")) for store in stores if store is not None}
    assert len(digests) == 2


@pytest.mark.parametrize("part", ["autoencoder", "text encoder"])
def test_what_is_not_finite_is_refused_by_its_cause_and_never_stored(
    tiny_base: Path, tiny_pictures: Path, tmp_path: Path, part: str
) -> None:
    """A base whose autoencoder overflows, as SDXL's first one does in float16, is no matter of the learning rate."""
    broken = load_family(str(tiny_base))
    network = broken.networks["text_encoder"] if part == "text encoder" else broken.pipeline().vae
    with torch.no_grad():
        next(network.parameters()).fill_(torch.nan)
    values = {"base": str(tiny_base), "data": {"sources": [{"path": str(tiny_pictures)}], "cache": str(tmp_path)}}
    config = resolve(build_config({**values, "train": {"on_nonfinite": "skip"}}, "test"), broken)
    with raises_code("base.not_finite") as caught:
        list(train(config, broken, survey(config.data)))
    assert part in str(caught.value)
    for path in tmp_path.rglob("*.shard"):
        shard = Shard(path)
        for tensors in map(shard.read, shard.refresh()):
            assert tensors is not None and all(bool(tensor.isfinite().all()) for tensor in tensors.values())


def test_latents_of_pictures_that_were_decoded_otherwise_are_computed_anew(
    tiny_base: Path, tiny_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = load_family(str(tiny_base))
    config = resolve(config_of(tiny_base, tiny_pictures, tmp_path), family)
    encoded: list[Tensor] = []
    encode = family.encode_image
    monkeypatch.setattr(family, "encode_image", lambda pixels: encoded.append(pixels) or encode(pixels))
    sample = survey(config.data).train.samples[0]
    counts = []
    for version in (cache.DECODING, cache.DECODING, cache.DECODING + 1):
        monkeypatch.setattr(cache, "DECODING", version)
        cache.Encoder(family, config.data, seed=0, store=cache.store_of(config, family)).centered(sample, (16, 16))
        counts.append(len(encoded))
    assert counts == [1, 1, 2]


def encoder_calls(config: RunConfig, family: Family, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a run encodes, by the name of the member that does it."""
    calls: list[str] = []
    with monkeypatch.context() as patch:
        for name in ("encode_image", "encode_text"):
            encode = getattr(family, name)
            patch.setattr(family, name, lambda *given, name=name, encode=encode: calls.append(name) or encode(*given))
        list(train(config, family, survey(config.data)))
    return calls


def test_a_picture_is_encoded_again_by_its_content_and_by_nothing_else(
    family: Family, tiny_base: Path, tiny_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New times and names change nothing; a pixel of one picture that is another one lets this one be encoded."""
    pictures = Path(shutil.copytree(tiny_pictures, tmp_path / "pictures"))
    config = resolve(config_of(tiny_base, pictures, tmp_path / "cache"), family)
    config = config.model_copy(update={"data": config.data.model_copy(update={"flip": False})})
    assert Counter(encoder_calls(config, family, monkeypatch)) == {"encode_image": 12, "encode_text": 12}
    for path in pictures.glob("*.png"):
        os.utime(path, (1, 1))
    assert encoder_calls(config, family, monkeypatch) == []
    with Image.open(pictures / "red_cross.png") as image:
        image.putpixel((0, 0), (0, 0, 1))
        image.save(pictures / "red_cross.png")
    assert encoder_calls(config, family, monkeypatch) == ["encode_image"]


def test_files_of_the_old_layout_are_named_and_left_alone(
    family: Family, tiny_base: Path, tiny_pictures: Path, tmp_path: Path
) -> None:
    old = tmp_path / "ab" / f"{'0' * 62}.safetensors"
    old.parent.mkdir()
    old.write_bytes(b"old")
    config = resolve(config_of(tiny_base, tiny_pictures, tmp_path), family)
    warned = [event.code for event in train(config, family, survey(config.data)) if isinstance(event, Warned)]
    assert warned == ["cache.old_layout"] and old.read_bytes() == b"old"
    assert list(old_files(tmp_path)) == [old]


def test_a_run_goes_on_where_its_cache_is_deleted_under_it(
    family: Family, tiny_base: Path, tiny_pictures: Path, tmp_path: Path
) -> None:
    plain = losses(config_of(tiny_base, tiny_pictures, None), family)
    config = resolve(config_of(tiny_base, tiny_pictures, tmp_path / "cache"), family)
    found = []
    for event in train(config, family, survey(config.data)):
        found += [event.loss] if hasattr(event, "loss") else []
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    assert found == plain


def test_a_store_that_cannot_be_written_costs_time_and_not_the_run(
    family: Family, tiny_base: Path, tiny_pictures: Path, tmp_path: Path
) -> None:
    """As where its disk is full: what could be stored is read, all else is computed, and the run says so once."""
    place = tmp_path / "cache"
    values = {"base": str(tiny_base), "data": {"sources": [{"path": str(tiny_pictures)}], "cache": str(place)}}
    config = resolve(build_config({**values, "train": {"max_steps": 2}}, "test"), family)
    ends, warnings = [], []
    for writable in (True, False):
        if not writable:
            shutil.rmtree(place)
            place.write_text("a file, so there is no place for a folder", "utf-8")
        events = list(train(config, family, survey(config.data)))
        warnings.append([event.text for event in events if isinstance(event, Warned)])
        ends += [event.weights for event in events if isinstance(event, Finished)]
    (none, (warning,)), (one, other) = warnings, ends
    assert not none and warning.startswith("nothing more is kept in data.cache for later runs: ")
    assert one.keys() == other.keys()
    states = [(one[name].state_dict(), other[name].state_dict()) for name in one]
    assert all(torch.equal(first[key], second[key]) for first, second in states for key in first)
