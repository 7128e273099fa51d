"""A cache is filled before a training, which then encodes nothing, and pruned to what configurations need."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from diffusers import AutoencoderKL
from transformers import CLIPTextModel, T5EncoderModel

from tests.bases import write_tiny_flux
from tests.errors import raises_code
from tests.running import hashes, quick_config, without_rehearsals
from veneer.cli.main import main
from veneer.config.load import build_config, write_config
from veneer.config.schema import RunConfig
from veneer.data.preflight import survey
from veneer.evaluate.heldout import heldout_losses
from veneer.family.loading import load_run_base
from veneer.family.offload import Offloader
from veneer.family.sd import StableDiffusion
from veneer.run.session import run_training
from veneer.train.events import EncodingProgress
from veneer.train.loop import train
from veneer.verbs.data_cache import cache_usage, fill_cache, prune_cache


def config_of(base: Path, pictures: Path, cache: Path | None, **data: Any) -> RunConfig:
    values = {"sources": [{"path": str(pictures)}], "held_out": 0.25, "resolution": 16, **data}
    values |= {} if cache is None else {"cache": str(cache)}
    train = {"max_steps": 6, "batch_size": 4, "checkpoint_every": 0}
    return build_config({"base": str(base), "data": values, "train": train, "validation": {"draws": 2}}, "test")


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of what encodes, each time that it does."""
    calls: list[str] = []
    for name in ("encode_image", "encode_text"):
        encode = getattr(StableDiffusion, name)
        monkeypatch.setattr(
            StableDiffusion, name, lambda self, given, n=name, encode=encode: calls.append(n) or encode(self, given)
        )
    yield calls


def test_a_run_and_its_score_encode_nothing_that_the_cache_has(
    tiny_base: Path, tiny_pictures: Path, tmp_path: Path, encoded: list[str]
) -> None:
    config = config_of(tiny_base, tiny_pictures, tmp_path / "cache", flip=True)
    told: list[EncodingProgress] = []
    first = fill_cache(config, told.append)
    assert (first.found, first.total) == (0, told[-1].done) and first.computed == first.total
    assert first.total == len(encoded) + 1, "and the prompts that are painted, by their pipeline"
    encoded.clear()
    second = fill_cache(config, told.append)
    assert (second.found, second.computed) == (second.total, 0) and encoded == []
    family, dataset = load_run_base(config), survey(config.data)
    list(train(config, family, dataset))
    assert encoded == []
    heldout_losses(config, family, dataset.held_out)
    assert "encode_image" not in encoded, "texts are encoded each time, for an adapter may be in this text encoder"


def noting(method: Callable[..., Any], note: Callable[..., object]) -> Callable[..., Any]:
    """The method, of whose calls a note is taken."""

    def noted(*values: Any, **named: Any) -> Any:
        note(*values)
        return method(*values, **named)

    return noted


@pytest.mark.slow
@pytest.mark.parametrize("is_large", [False, True], ids=["sd", "flux"])
def test_a_second_start_encodes_nothing_and_reads_no_text_encoder(
    is_large: bool, tiny_base: Path, tiny_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither to train, nor to measure, nor to paint; of a large base no text encoder is read from its files."""
    without_rehearsals(monkeypatch)
    monkeypatch.setattr("veneer.family.flux.Flux.trained_side", 8)
    base = write_tiny_flux(tmp_path / "base") if is_large else tiny_base
    calls: list[str] = []
    encoders = (CLIPTextModel, "forward"), (T5EncoderModel, "forward"), (AutoencoderKL, "encode")
    for owner, name in encoders:
        monkeypatch.setattr(
            owner, name, noting(getattr(owner, name), lambda *_, told=owner.__name__: calls.append(told))
        )
    monkeypatch.setattr(Offloader, "_reload", noting(Offloader._reload, lambda _, name: calls.append(f"read {name}")))
    sections = {"sample": {"every": 3, "prompts": []}, "validation": {"every": 3}, "data": {"held_out": 0.25}}
    outcomes = []
    for run in ("first", "second"):
        calls.clear()
        config = quick_config(base, tiny_pictures, tmp_path / run, **sections)
        run_training(config.model_copy(update={"data": config.data.model_copy(update={"cache": tmp_path / "cache"})}))
        if run == "first":
            assert "CLIPTextModel" in calls and "AutoencoderKL" in calls
        else:
            # a small base's are in memory from the start, and once more where a run gives it back as it was
            assert {*calls} <= {"read autoencoder", "read transformer" if is_large else "read text_encoder"}
        outcomes.append(hashes(tmp_path / run))
    assert outcomes[0] == outcomes[1]


def test_a_score_from_the_cache_is_the_score(tiny_base: Path, tiny_pictures: Path, tmp_path: Path) -> None:
    plain, kept = (config_of(tiny_base, tiny_pictures, cache) for cache in (None, tmp_path / "cache"))
    family, held_out = load_run_base(plain), survey(plain.data).held_out
    losses = heldout_losses(plain, family, held_out)
    for _ in range(2):
        assert (heldout_losses(kept, family, held_out) == losses).all()


@pytest.mark.slow
def test_what_no_configuration_needs_is_removed(
    tiny_base: Path, tiny_pictures: Path, tmp_path: Path, encoded: list[str]
) -> None:
    own, other = (config_of(tiny_base, tiny_pictures, tmp_path / "cache", resolution=side) for side in (16, 32))
    old = tmp_path / "cache" / "ab" / f"{'0' * 62}.safetensors"
    old.parent.mkdir(parents=True)
    old.touch()
    for config in (own, other):
        fill_cache(config, lambda _: None)
    encoded.clear()
    assert prune_cache([own, other], unused=True).removed == 0 and not old.exists()
    done = prune_cache([own], unused=True)
    assert (done.removed, encoded) == (12, []), "the latents of the other resolution"
    assert fill_cache(own, lambda _: None).computed == 0
    (base,) = cache_usage(own)
    assert base.entries == {"posterior": 12, "text": 12, "prompt": 1} and base.name == tiny_base.name


def test_all_goes_that_is_older_or_too_much(tiny_base: Path, tiny_pictures: Path, tmp_path: Path) -> None:
    config = config_of(tiny_base, tiny_pictures, tmp_path / "cache")
    fill_cache(config, lambda _: None)
    assert prune_cache([config], unused=False, older=1.0).removed == 0
    assert prune_cache([config], unused=False, most=10**9).removed == 0
    assert prune_cache([config], unused=False, most=0).kept == 0
    assert cache_usage(config) == []


def test_what_the_disk_has_no_room_for_is_refused_before_it_is_encoded(
    tiny_base: Path, tiny_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoded: list[str]
) -> None:
    """By one entry of each kind, whose sizes are those of all others here."""
    config = config_of(tiny_base, tiny_pictures, tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr("veneer.verbs.data_cache.shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
        with raises_code("cache.no_room"):
            fill_cache(config, lambda _: None)
    assert encoded == ["encode_image", "encode_text"]
    done = fill_cache(config, lambda _: None)
    assert done.found == 2 and done.total == done.computed + 2
    (base,) = cache_usage(config)
    left = sum(base.sizes[kind] - base.sizes[kind] // base.entries[kind] for kind in ("posterior", "text"))
    prune_cache([config], unused=False, most=0)
    for free, has_room in ((left - 1, False), (left, True)):
        with monkeypatch.context() as patch:
            patch.setattr("veneer.verbs.data_cache.shutil.disk_usage", lambda _, free=free: SimpleNamespace(free=free))
            with nullcontext() if has_room else raises_code("cache.no_room"):
                fill_cache(config, lambda _: None)
        prune_cache([config], unused=False, most=0)


def test_a_disk_that_fills_up_ends_in_one_line_and_the_next_run_goes_on(
    tiny_base: Path, tiny_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the entry that finds no room gets onto the disk; it is not there for whoever reads."""
    config, write, written = config_of(tiny_base, tiny_pictures, tmp_path / "cache"), os.write, [0]

    def full(descriptor: int, content: memoryview) -> int:
        written[0] += 1
        if written[0] > 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, content[: len(content) // 2] if written[0] == 12 else content)

    with monkeypatch.context() as patch:
        patch.setattr("veneer.family.store_shard.os.write", full)
        with raises_code("files.unwritable") as caught:
            fill_cache(config, lambda _: None)
    told = str(caught.value)
    assert "No space left" in told and "make room" in told and len(told.splitlines()) == 1
    (stored,) = cache_usage(config)
    done = fill_cache(config, lambda _: None)
    assert done.found == sum(stored.entries.values()) > 0 and done.found + done.computed == done.total
    plain = config_of(tiny_base, tiny_pictures, None)
    family, held_out = load_run_base(config), survey(config.data).held_out
    assert (heldout_losses(config, family, held_out) == heldout_losses(plain, family, held_out)).all()


def test_without_a_folder_there_is_nothing_to_fill(tiny_base: Path, tiny_pictures: Path) -> None:
    with raises_code("cache.no_folder"):
        fill_cache(config_of(tiny_base, tiny_pictures, None), lambda _: None)


@pytest.mark.slow
def test_the_verb_says_what_was_there(
    tiny_base: Path, tiny_pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = shutil.copytree(tiny_pictures, tmp_path / "pictures")
    words = ["data", "cache", str(pictures), f"base={tiny_base}", f"data.cache={tmp_path / 'cache'}"]
    assert main(words) == 0 and "0 of 25 were there already, 25 entries" in capsys.readouterr().out
    assert main(words) == 0 and "25 of 25 were there already, 0 entries" in capsys.readouterr().out
    assert main([*words, "--list"]) == 0 and "posterior       12" in capsys.readouterr().out
    assert main([*words, "--prune"]) == 0 and "removed 0 entries" in capsys.readouterr().out
    assert main([*words, "--max-size", "0"]) == 0 and "removed 25 entries" in capsys.readouterr().out
    assert main([*words, "--list"]) == 0 and "holds nothing" in capsys.readouterr().out


@pytest.mark.slow
def test_the_commands_of_the_page_work(
    tiny_base: Path, tiny_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text("utf-8")
    section = page.partition("<!-- cache commands: tested -->")[2]
    commands = section.partition("```sh\n")[2].partition("```")[0].splitlines()
    assert len(commands) == 5
    for name in ("style", "portraits"):
        config = config_of(tiny_base, tiny_pictures, None)
        output = config.output.model_copy(update={"dir": tmp_path / name})
        write_config(config.model_copy(update={"output": output}), tmp_path / f"{name}.yaml")
    monkeypatch.chdir(tmp_path)
    quick = ["sample.steps=1", "tracking.trackers=[]"]
    for line in commands:
        _, *words = shlex.split(line, comments=True)
        assert main([*words, *(quick if words[0] == "train" else [])]) == 0, line
    assert cache_usage(config_of(tiny_base, tiny_pictures, tmp_path / "cache"))
