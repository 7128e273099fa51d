"""Runs with texts in several windows: trained, stored, resumed, planned, painted and measured the same way."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from tests.bases import write_tiny_flux
from tests.errors import raises_code
from tests.running import quick_config, record_events, without_rehearsals
from tests.training import tiny_config
from veneer.adapter.apply import apply_adapter
from veneer.config.load import load_config, resolve
from veneer.config.schema import RunConfig
from veneer.data.preflight import survey
from veneer.engine.adapter_bank import AdapterBank
from veneer.evaluate.heldout import score_adapter
from veneer.family.cache import Encoder
from veneer.family.loading import load_base
from veneer.family.store import Store
from veneer.family.windows import TOKEN_WINDOWS, token_windows_of
from veneer.plan.abstract import abstract_base
from veneer.plan.assessment import assess_config
from veneer.plan.memory import STEP
from veneer.plan.tracer import MemoryTracer
from veneer.run.folder import CARD, CONFIG
from veneer.run.resume import Resume
from veneer.run.session import run_training
from veneer.sample.generate import generate
from veneer.study.config import build_study, points_of
from veneer.study.context import StudyContext
from veneer.study.ranks import RankStudyOptions, study_ranks
from veneer.train.events import Warned
from veneer.train.loop import train
from veneer.verbs.evaluate import evaluate_adapter
from veneer.verbs.evaluation_inputs import EvaluationOptions
from veneer.verbs.merge import load_merged
from veneer.verbs.sample import PictureWritten, SampleOptions, sample_adapter
from veneer.weights.file import FILE_NAME, info, load

LONG = "the cat, " * 3 + "x" * 8
"""Of 17 tokens, 14 of which are in the first window."""


@pytest.fixture(scope="module")
def pictures(tiny_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three captioned pictures, the caption of one over the tiny base's 14 tokens."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, path in enumerate(sorted(tiny_pictures.glob("*.png"))[:3]):
        shutil.copy(path, folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(LONG if number == 0 else f"a {'cat' if number == 1 else 'the'}")
    return folder


def config_of(base: Path, pictures: Path, output: Path, windows: int, **sections: Any) -> RunConfig:
    data = {"token_windows": windows, "held_out": 0.34, **sections.pop("data", {})}
    sample = {"prompts": [LONG], "steps": 1, **sections.pop("sample", {})}
    return quick_config(base, pictures, output, data=data, sample=sample, **sections)


@pytest.fixture(scope="module")
def runs(tiny_base: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[int, Path]:
    """Finished runs by their number of windows, read only."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        without_rehearsals(patch)
        for windows in (1, 2):
            run_training(config_of(tiny_base, pictures, folder / str(windows), windows, train={"max_steps": 2}))
    return {windows: folder / str(windows) for windows in (1, 2)}


def test_the_setting_changes_what_is_learned_and_is_in_the_files(runs: Mapping[int, Path]) -> None:
    one, two = (load(runs[windows] / FILE_NAME).weights for windows in (1, 2))
    assert one.keys() == two.keys()
    first = {path: next(iter(vars(adapter).values())) for path, adapter in one.items()}
    second = {path: next(iter(vars(adapter).values())) for path, adapter in two.items()}
    assert any(not torch.equal(first[path], second[path]) for path in first)
    assert load_config(runs[2] / CONFIG).data.token_windows == 2
    with safe_open(runs[2] / FILE_NAME, "pt") as file:
        assert file.metadata()[TOKEN_WINDOWS] == "2"
    assert TOKEN_WINDOWS not in info(runs[1]).metadata
    assert "texts in 2 windows" in (runs[2] / CARD).read_text("utf-8")
    assert "windows of the text encoder" not in (runs[1] / CARD).read_text("utf-8")


def test_an_adapter_is_painted_with_its_training_s_windows(
    runs: Mapping[int, Path], tiny_base: Path, tmp_path: Path
) -> None:
    alone = Path(shutil.copy(runs[2] / FILE_NAME, tmp_path / "adapter.safetensors"))
    told: list[Any] = []
    options = SampleOptions(steps=1)
    (path,) = sample_adapter(alone, [LONG], tmp_path / "s", base=str(tiny_base), options=options, callback=told.append)
    assert told == [PictureWritten(path)]
    family = load_merged(alone, str(tiny_base), 1.0)
    assert family.token_windows == 2
    (picture,) = generate(family, [LONG], [0], steps=1)
    assert Image.open(path).tobytes() == picture.tobytes()
    sample_adapter(runs[1], [LONG], tmp_path / "t", options=options, callback=told.append)
    assert [event.code for event in told if isinstance(event, Warned)] == ["data.cut_captions"]


def test_a_run_warns_of_what_lies_behind_all_windows(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    family, texts = load_base(str(tiny_base), token_windows=2), {LONG: "a.txt", LONG * 2: "b.txt"}
    assert family.unread(list(texts)).keys() == {LONG * 2}


@pytest.mark.parametrize("windows", [1, 2])
def test_scores_are_of_the_same_windows(
    windows: int, runs: Mapping[int, Path], pictures: Path, tiny_base: Path, tmp_path: Path
) -> None:
    found = evaluate_adapter(runs[windows], EvaluationOptions(samples=0, out=tmp_path / "run"))
    config = load_config(runs[windows] / CONFIG)
    family = load_base(str(tiny_base), token_windows=windows)
    score = score_adapter(config, family, survey(config.data), load(runs[windows] / FILE_NAME).weights)
    assert found.held_out == score
    alone = Path(shutil.copy(runs[windows] / FILE_NAME, tmp_path / "adapter.safetensors"))
    options = EvaluationOptions(base=str(tiny_base), data=(pictures,), samples=0, out=tmp_path / "alone")
    told = [note for note in evaluate_adapter(alone, options).notes if "tokens that the text encoder reads" in note]
    assert len(told) == (windows == 1)


def test_a_run_is_not_resumed_with_another_number(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        without_rehearsals(patch)
        run_training(config_of(tiny_base, pictures, tmp_path / "run", 1, train={"max_steps": 1}))
        changed = config_of(tiny_base, pictures, tmp_path / "run", 3, train={"max_steps": 2})
        with raises_code("resume.run_changed") as caught:
            record_events(changed, Resume())
    assert "data.token_windows: 1 -> 3" in str(caught.value)


def test_the_store_tells_windows_apart(tiny_base: Path, tiny_pictures: Path, tmp_path: Path) -> None:
    for windows in (1, 2, 1, 2):
        family = load_base(str(tiny_base), token_windows=windows)
        data = tiny_config(tiny_pictures, data={"token_windows": windows}).data
        text = Encoder(family, data, 0, Store(tmp_path, "base")).texts([LONG])
        assert text["text"].shape[1] == 2 + 14 * windows


def test_a_base_that_was_loaded_otherwise_is_refused(family: Any, tiny_pictures: Path) -> None:
    with raises_code("family.other_token_windows") as caught:
        Encoder(family, tiny_config(tiny_pictures, data={"token_windows": 3}).data, 0)
    assert str(caught.value) == (
        "data.token_windows: is 3, and the base was loaded with 1; load_base(..., token_windows=3)"
    )


@pytest.mark.slow
def test_a_plan_counts_longer_texts(tiny_base: Path, tiny_pictures: Path) -> None:
    def caches(windows: int) -> int:
        config = tiny_config(tiny_pictures, base=str(tiny_base), data={"token_windows": windows})
        memory = assess_config(config, count_pictures=True, limit=2**40).plan.memory
        assert memory is not None and memory.caches is not None
        return memory.caches

    captions = 12
    # float32 rows of 32 numbers for each further token
    assert caches(3) - caches(1) == captions * 2 * 14 * 32 * 4


def test_a_family_that_has_one_window_refuses_more(tmp_path: Path, tiny_pictures: Path) -> None:
    folder = write_tiny_flux(tmp_path / "flux")
    config = tiny_config(tiny_pictures, base=str(folder), data={"token_windows": 2})
    with raises_code("family.token_windows") as caught:
        abstract_base(config, MemoryTracer(torch.device("cpu")))
    assert str(caught.value) == (
        "data.token_windows: is 2, but the text encoders of a flux base read a text in 1; leave it out"
    )


@pytest.mark.parametrize(("windows", "codes"), [(1, ["data.cut_captions"]), (2, [])])
def test_ranks_are_measured_with_the_training_s_windows(
    windows: int, codes: list[str], runs: Mapping[int, Path], tmp_path: Path
) -> None:
    (tmp_path / "new").mkdir()
    Image.new("RGB", (16, 16), "teal").save(tmp_path / "new" / "a.png")
    (tmp_path / "new" / "a.txt").write_text(LONG)
    told: list[object] = []
    study_ranks(runs[windows], [1], RankStudyOptions(data=tmp_path / "new"), callback=told.append)
    assert [event.code for event in told if isinstance(event, Warned) and event.details] == codes


def test_a_loop_of_one_s_own_tells_of_cut_captions_first(family: Any, pictures: Path, tiny_base: Path) -> None:
    config = config_of(tiny_base, pictures, Path("nowhere"), 1)
    events = train(resolve(config, family), family, survey(config.data))
    first = next(events)
    events.close()
    assert isinstance(first, Warned) and first.code == "data.cut_captions" and len(first.details) == 1


def test_trials_of_one_study_read_alike(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    run = config_of(tiny_base, pictures, tmp_path / "run", 1).model_dump(mode="json")
    study = build_study({"run": run, "points": {"long": {"data.token_windows": 2}}}, "study.yaml")
    events: list[object] = []
    context = StudyContext(study, tmp_path / "out", events.append)
    (told,) = [event for event in events if isinstance(event, Warned)]
    assert told.code == "data.cut_captions" and told.details[0].endswith("not read: '…xxx'")
    with raises_code("study.differing_base") as caught:
        context.trial(points_of(study.config)[0], 0)
    assert "data.token_windows: is 2 here, and 1 in the study's own run" in str(caught.value)


def test_a_text_encoder_learns_from_all_windows_and_each_row_may_have_its_own(
    tiny_base: Path, pictures: Path, tmp_path: Path
) -> None:
    """An adapter on a text encoder, which a bank gives to some rows of a batch: windows are encoded one by one."""
    with pytest.MonkeyPatch.context() as patch:
        without_rehearsals(patch)
        adapter = {"text_encoders": {"text_encoder": {"learning_rate": 0.1}}}
        config = config_of(tiny_base, pictures, tmp_path / "run", 3, adapter=adapter, train={"max_steps": 3})
        run_training(config)
    weights = load(tmp_path / "run" / FILE_NAME).weights
    family = load_base(str(tiny_base), token_windows=3)
    bank = AdapterBank(family.networks)
    bank.add("own", weights)
    with torch.no_grad():
        base = family.encode_text([LONG])["text"]
        with bank.rows(["own", None]):
            each = family.encode_text([LONG, LONG])["text"]
        with apply_adapter(family.networks, weights):
            adapted = family.encode_text([LONG])["text"]
    assert float((adapted - base).abs().max()) > 1e-3
    torch.testing.assert_close(each, torch.cat([adapted, base]), rtol=0, atol=2e-5)


@pytest.mark.slow
def test_a_plan_of_a_text_encoder_s_adapter_has_room_for_all_windows(tiny_base: Path, tiny_pictures: Path) -> None:
    def peak(windows: int) -> int:
        adapter = {"text_encoders": {"text_encoder": {}}}
        config = tiny_config(tiny_pictures, base=str(tiny_base), data={"token_windows": windows}, adapter=adapter)
        memory = assess_config(config, count_pictures=False, limit=2**40).plan.memory
        assert memory is not None
        return max(phase.tensors for phase in memory.phases if phase.name == STEP)

    assert peak(1) < peak(2) < peak(4)


@pytest.mark.parametrize(
    ("metadata", "windows"),
    [
        ({}, 1),
        ({TOKEN_WINDOWS: "3"}, 3),
        ({"ss_max_token_length": "None"}, 1),
        ({"ss_max_token_length": "75"}, 1),
        ({"ss_max_token_length": "225"}, 3),
        ({"ss_max_token_length": "150", TOKEN_WINDOWS: "4"}, 4),
    ],
)
def test_a_file_says_how_its_texts_were_read(metadata: dict[str, str], windows: int) -> None:
    assert token_windows_of(metadata) == windows


@pytest.mark.parametrize("value", ["0", "-1", "many", "", "11", "9" * 5000, "3.0", "\u00b2"])
def test_a_number_that_cannot_be_is_refused(value: str) -> None:
    with raises_code("weights.bad_token_windows"):
        token_windows_of({TOKEN_WINDOWS: value})
