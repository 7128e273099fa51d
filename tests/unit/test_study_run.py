"""Studies at work, on a tiny base and twelve pictures."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tests.conftest import write_tiny_pictures
from tests.errors import raises_code
from tests.studies import EventRecorder, draw_adapter, lighten, shared_base
from tests.training import laid_over
from veneer.adapter.merge import merge
from veneer.cli.main import main
from veneer.cli.terminal import study as screen
from veneer.config.load import load_config, resolve
from veneer.data.preflight import survey
from veneer.evaluate.comparison import Losses
from veneer.evaluate.heldout import heldout_losses
from veneer.family.registry import load_family
from veneer.plan.parameters import plan_parameters
from veneer.run.events import PriorSamplingStarted
from veneer.run.folder import CONFIG, LOG
from veneer.run.session import run_training
from veneer.run.signals import Interrupted
from veneer.study import results as study_results
from veneer.study import trial as trials
from veneer.study.config import Study, build_study, dump_study, points_of
from veneer.study.context import StudyContext
from veneer.study.plot import plot
from veneer.study.results import StudyResults, TrialFinished, TrialStarted
from veneer.study.run import run_study, study_folder
from veneer.study.statistics import TrialFailure
from veneer.study.trial import TRIALS
from veneer.train.events import StepDone, Warned
from veneer.weights.file import FILE_NAME, load


@pytest.fixture
def make(tiny_base: Path, tiny_pictures: Path) -> Callable[..., Study]:
    """A study of four steps a training; ``run`` is laid over its run."""

    def made(run: dict[str, Any] | None = None, **more: Any) -> Study:
        values: dict[str, Any] = {
            "base": str(tiny_base),
            "data": {"sources": [{"path": str(tiny_pictures)}], "held_out": 0.25, "resolution": 16},
            "train": {"max_steps": 4, "batch_size": 2, "learning_rate": 0.05, "checkpoint_every": 2},
            "validation": {"draws": 2},
        }
        told = {"grid": {"adapter.rank": [1, 2]}} if not {"points", "search"} & set(more) else {}
        return build_study({"run": laid_over(values, run or {}), "seeds": [0, 1], **told, **more}, "test")

    return made


@pytest.fixture(autouse=True)
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``done`` does is done whole; it comes before this."""
    lighten(monkeypatch)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters are drawn, not trained."""
    monkeypatch.setattr(trials, "train_trial", draw_adapter)


@pytest.fixture(scope="module")
def done(tiny_base: Path, tiny_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Any]]:
    """A finished study of ranks 1 and 2 with two seeds: its folder and its study."""
    run = {
        "base": str(tiny_base),
        "data": {"sources": [{"path": str(tiny_pictures)}], "held_out": 0.25},
        "train": {"max_steps": 4, "batch_size": 2, "learning_rate": 0.05},
        "validation": {"draws": 2},
    }
    study = build_study({"run": run, "seeds": [0, 1], "grid": {"adapter.rank": [1, 2]}}, "test")
    folder = tmp_path_factory.mktemp("study") / "ranks"
    run_study(study, folder)
    yield folder, study


def test_a_study_leaves_tables_a_plot_and_its_trials(done: tuple[Path, Study]) -> None:
    folder, study = done
    assert {path.name for path in folder.iterdir()} == {
        TRIALS,
        *(f"study.{e}" for e in ("md", "json", "csv", "yaml", "png")),
    }
    assert Image.open(folder / "study.png").width > 500
    assert (folder / "study.yaml").read_text("utf-8") == dump_study(study.config, folder)
    told = json.loads((folder / "study.json").read_text("utf-8"))
    assert [row["point"] for row in told["rows"]] == ["rank 1", "rank 2"] and told["reference"] == "rank 2"
    for row in told["rows"]:
        assert set(row["losses"]) == {"0", "1"} and row["seconds"] > 0 and row["file_bytes"] > 1000
        assert row["memory_bytes"] is None or row["memory_bytes"] > 10**7
    assert told["rows"][0]["versus_reference"]["seeds"] == 2


@pytest.mark.slow
def test_a_trial_is_what_train_makes(done: tuple[Path, Study], tmp_path: Path) -> None:
    """The same adapter bytes as a run of the same config, scored by the rod of the study."""
    folder, _ = done
    (place,) = (folder / TRIALS).glob("rank-2-seed1-*")
    config = load_config(place / CONFIG, [f"output.dir={tmp_path / 'run'}", "sample.steps=1"])
    result = run_training(config)
    ours = load(place)
    again = load(result.adapter)
    assert all(np.array_equal(ours.weights[name].up, again.weights[name].up) for name in again.weights)
    assert (place / FILE_NAME).read_bytes() == result.adapter.read_bytes()


def test_counts_are_the_plans(done: tuple[Path, Study]) -> None:
    folder, _ = done
    rows = json.loads((folder / "study.json").read_text("utf-8"))["rows"]
    for row, rank in zip(rows, (1, 2), strict=True):
        (place, _) = sorted((folder / TRIALS).glob(f"rank-{rank}-*"))
        config = load_config(place / CONFIG)
        assert row["trainable"] == plan_parameters(config, load_family(config.base)).trainable
        assert row["file_bytes"] == (place / FILE_NAME).stat().st_size


def test_losses_are_measured_with_one_noise_for_all_seeds(done: tuple[Path, Study]) -> None:
    folder, study = done
    (place,) = (folder / TRIALS).glob("rank-2-seed1-*")
    (told,) = place.glob("score-*.json")
    family = load_family(study.run.base)
    merge(family.networks, [(load(place).weights, 1.0)])
    reference = resolve(study.run, family)
    expected = heldout_losses(reference, family, survey(reference.data).held_out)
    assert np.array_equal(np.array(json.loads(told.read_text("utf-8"))), expected)


def test_what_is_done_is_not_done_again(done: tuple[Path, Study], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, study = done

    def refuse(*arguments: object) -> None:
        raise AssertionError("trained or measured again")

    monkeypatch.setattr(trials, "train_trial", refuse)
    monkeypatch.setattr(StudyContext, "_measure", refuse)
    before, recorder = (folder / "study.json").read_bytes(), EventRecorder()
    run_study(study, folder, callback=recorder)
    assert [event.cached for event in recorder.of_type(TrialFinished)] == [True] * 4 and not recorder.of_type(
        TrialStarted
    )
    assert (folder / "study.json").read_bytes() == before


@pytest.mark.usefixtures("drawn")
def test_a_larger_grid_trains_only_what_is_new(done: tuple[Path, Study], tmp_path: Path) -> None:
    folder, study = done
    shutil.copytree(folder, tmp_path / "more")
    more = build_study(
        {**study.config.model_dump(mode="json", exclude_none=True), "grid": {"adapter.rank": [1, 3]}}, "t"
    )
    recorder = EventRecorder()
    table = run_study(more, tmp_path / "more", callback=recorder).table
    assert [(event.point, event.seed) for event in recorder.of_type(TrialStarted)] == [("rank 3", 0), ("rank 3", 1)]
    assert [row.point for row in table.rows] == ["rank 1", "rank 3"]


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize(
    ("change", "trained", "measured"),
    [
        ({"validation": {"draws": 3}}, 0, 3),  # another rod: two trials and the base
        ({"train": {"max_steps": 3}}, 2, 2),
        ({"train": {"memory": "checkpoint"}}, 2, 2),  # of which the table tells time and memory
        ({"sample": {"steps": 3}, "output": {"dir": "elsewhere"}}, 0, 0),
    ],
    ids=["rod", "training", "memory", "neither"],
)
def test_a_change_costs_what_hangs_on_it(
    make: Callable[..., Study],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    trained: int,
    measured: int,
) -> None:
    run_study(make(seeds=[0]), tmp_path)
    counts = {"trained": 0, "measured": 0}
    train, measure = trials.train_trial, StudyContext._measure

    def training(*arguments: Any) -> Any:
        counts["trained"] += 1
        return train(*arguments)

    def measuring(*arguments: Any) -> Losses:
        counts["measured"] += 1
        return measure(*arguments)

    monkeypatch.setattr(trials, "train_trial", training)
    monkeypatch.setattr(StudyContext, "_measure", measuring)
    run_study(make(change, seeds=[0]), tmp_path)
    assert counts == {"trained": trained, "measured": measured}


@pytest.mark.usefixtures("drawn")
def test_other_pictures_are_other_trials(make: Callable[..., Study], tmp_path: Path) -> None:
    pictures = write_tiny_pictures(tmp_path / "pictures")
    source = {"data": {"sources": [{"path": str(pictures)}]}}
    run_study(make(source, seeds=[0]), tmp_path / "study")
    moved = pictures.rename(tmp_path / "moved")
    recorder = EventRecorder()
    run_study(make({"data": {"sources": [{"path": str(moved)}]}}, seeds=[0]), tmp_path / "study", callback=recorder)
    assert not recorder.of_type(TrialStarted)  # they lie elsewhere and are the same
    Image.new("RGB", (64, 64), "red").save(moved / "red_square.png")
    run_study(make({"data": {"sources": [{"path": str(moved)}]}}, seeds=[0]), tmp_path / "study", callback=recorder)
    assert len(recorder.of_type(TrialStarted)) == 2


@pytest.mark.slow
def test_a_stopped_study_goes_on_to_the_same_table(make: Callable[..., Study], tmp_path: Path) -> None:
    """Stopped in its second training: the first is kept, the second goes on from its checkpoint.

    The base has its bits back each time.
    """
    study = make(seeds=[0])
    unet = shared_base(study.run.base).networks["unet"]
    base = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    whole = run_study(study, tmp_path / "whole").table

    def stop(event: object) -> None:
        recorder(event)
        if isinstance(event, StepDone) and event.step == 3 and len(recorder.of_type(TrialStarted)) == 2:
            raise Interrupted(2, event.step)

    recorder = EventRecorder()
    with pytest.raises(Interrupted):
        run_study(study, tmp_path / "cut", callback=stop)
    assert "rank 1" in (tmp_path / "cut" / "study.md").read_text("utf-8")
    after = unet.state_dict()
    assert after.keys() == base.keys() and all(bool((after[name] == base[name]).all()) for name in base)
    again = EventRecorder()
    table = run_study(study, tmp_path / "cut", callback=again).table
    assert [event.point for event in again.of_type(TrialStarted)] == ["rank 2"]
    assert [event.step for event in again.of_type(StepDone)] == [3, 4]
    assert [row.losses for row in table.rows] == [row.losses for row in whole.rows]
    assert [row.versus_reference for row in table.rows] == [row.versus_reference for row in whole.rows]


def test_a_trial_stopped_while_it_is_measured_is_not_trained_again(
    make: Callable[..., Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, measure, calls = make(seeds=[0]), StudyContext._measure, []

    def interrupt(*arguments: Any) -> Losses:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(StudyContext, "_measure", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_study(study, tmp_path)
    recorder = EventRecorder()
    run_study(study, tmp_path, callback=recorder)
    assert [event.step for event in recorder.of_type(StepDone)] == [1, 2, 3, 4]  # of rank 2 alone


@pytest.mark.usefixtures("drawn")
def test_a_trial_that_fails_loses_no_other(
    make: Callable[..., Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = trials.train_trial

    def fail(inputs: Any, *arguments: Any) -> Any:
        if inputs.run.config.adapter.rank == 1 and inputs.run.config.seed == 1:
            raise RuntimeError("CUDA out of memory\nTried to allocate")
        return train(inputs, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(trials, "train_trial", fail)
        result = run_study(make(), tmp_path)
    assert [len(row.losses) for row in result.table.rows] == [1, 2]
    text = (tmp_path / "study.md").read_text("utf-8")
    assert "- not done: rank 1, seed 1: RuntimeError: CUDA out of memory" in text and "1 of 2" in text
    (error,) = tmp_path.glob(f"{TRIALS}/rank-1-seed1-*/error.txt")
    assert "Tried to allocate" in error.read_text("utf-8") and "Traceback" in error.read_text("utf-8")
    recorder = EventRecorder()
    again = run_study(make(), tmp_path, callback=recorder)  # the next call tries it again
    assert [(e.point, e.seed) for e in recorder.of_type(TrialStarted)] == [("rank 1", 1)] and not again.table.failures


def test_a_training_that_diverges_is_named(make: Callable[..., Study], tmp_path: Path) -> None:
    study = make(points={"good": {"train.learning_rate": 0.01}, "bad": {"train.learning_rate": 1e30}}, seeds=[0])
    table = run_study(study, tmp_path).table
    assert [row.point for row in table.rows] == ["good"]
    assert table.failures[0].point == "bad" and "not finite" in table.failures[0].reason
    assert table.reference is None and "against bad" not in (tmp_path / "study.md").read_text("utf-8")


def test_nothing_trained_is_an_error(make: Callable[..., Study], tmp_path: Path) -> None:
    with raises_code("study.nothing_trained") as caught:
        run_study(make(grid={"train.learning_rate": [1e30]}, seeds=[0]), tmp_path)
    caught.match(r"no training of the study ended; learning_rate 1e\+30, seed 0: .*not finite")


@pytest.mark.parametrize(
    ("more", "code", "where"),
    [
        ({"grid": {"adapter.rank": [1, 640]}}, "adapter.rank_too_large", "point 'rank 640'"),
        ({"points": {"x": {"adapter.target_modules": ["to_x"]}}}, "adapter.target_matches_nothing", "point 'x'"),
        ({"run": {"data": {"held_out": 0.0}}}, "study.nothing_held_out", "test"),
        ({"run": {"base": "nowhere"}}, "base.not_found", "nowhere"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_trained(
    make: Callable[..., Study], tmp_path: Path, more: dict[str, Any], code: str, where: str
) -> None:
    recorder = EventRecorder()
    with raises_code(code) as caught:
        run_study(make(**more), tmp_path, callback=recorder)
    assert caught.value.where == where
    assert not recorder.of_type(TrialStarted)


def test_training_on_what_is_measured_on_is_refused(make: Callable[..., Study], tmp_path: Path) -> None:
    """Fewer pictures are split otherwise, so that some that the study holds out would be learned."""
    held = write_tiny_pictures(tmp_path / "held")
    few = write_tiny_pictures(tmp_path / "few")
    lines = (few / "metadata.jsonl").read_text("utf-8").splitlines(keepends=True)
    points: dict[str, Any] = {"half": {"data.sources": [{"path": str(few)}]}, "all": {"adapter.rank": 4}}
    share = make({"data": {"sources": [{"path": str(held)}], "held_out": 0.5}}, points=points, seeds=[0])
    unseen = {sample.path.name for sample in survey(share.run.data).held_out.samples}
    kept = [line for line in lines if json.loads(line)["file_name"] in unseen]
    (few / "metadata.jsonl").write_text("".join(kept), "utf-8")
    with raises_code("study.leak") as caught:
        run_study(share, tmp_path / "study")
    caught.match(r"point 'half': trains on . pictures that the study measures on")


@pytest.mark.usefixtures("drawn")
def test_ranks_are_counted_for_a_budget(make: Callable[..., Study], tmp_path: Path) -> None:
    points: dict[str, Any] = {
        "q": {"adapter.target_modules": ["to_q"]},
        "q + v": {"adapter.target_modules": ["to_q", "to_v"]},
        "own": {"adapter.target_modules": ["to_k"], "adapter.rank": 1},
        "all": {"adapter.target_modules": ["to_q", "to_k", "to_v", "to_out.0"], "adapter.rank": 2},
    }
    table = run_study(make(points=points, budget="all", seeds=[0]), tmp_path).table
    counts = {row.point: row.trainable for row in table.rows}
    assert counts["own"] < 0.3 * counts["all"]  # a rank that is set is left alone
    for name in ("q", "q + v"):
        (place,) = (tmp_path / TRIALS).glob(f"{name.replace(' ', '-')}-seed*")
        rank = load_config(place / CONFIG).adapter.rank
        step = counts[name] / rank
        assert abs(counts[name] - counts["all"]) <= step / 2  # no other rank comes closer
    assert "| point | rank | parameters |" in (tmp_path / "study.md").read_text("utf-8")


@pytest.mark.usefixtures("drawn")
def test_a_class_is_painted_once_for_all_trials(make: Callable[..., Study], tmp_path: Path) -> None:
    prior = {"prompt": "a square", "count": 2}
    recorder = EventRecorder()
    run = {"data": {"prior": prior}, "sample": {"steps": 1}}
    run_study(make(run, seeds=[0, 1]), tmp_path, callback=recorder)
    assert [event.count for event in recorder.of_type(PriorSamplingStarted)] == [2]
    assert len(list((tmp_path / "prior" / "a-square").glob("*.png"))) == 2


def test_time_is_summed_over_the_parts_of_a_cut_training(tmp_path: Path) -> None:
    events = [("Surveyed", 0.5), ("TrainingStarted", 1.0), ("StepDone", 2.0), ("StepDone", 3.5), ("Resumed", 0.1)]
    events += [("TrainingStarted", 7.0), ("StepDone", 7.25), ("Finished", 9.0)]
    lines = [json.dumps({"event": name, "seconds": seconds}) for name, seconds in events]
    (tmp_path / LOG).write_text("\n".join(lines) + "\n", "utf-8")
    assert trials.training_seconds(tmp_path / LOG) == 2.75


def test_without_matplotlib_there_is_no_plot_and_a_word(
    done: tuple[Path, Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, study = done
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "study.png").unlink()
    monkeypatch.setattr(study_results, "plot", plot)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    recorder = EventRecorder()
    result = run_study(study, tmp_path / "copy", callback=recorder)
    assert [path.suffix for path in result.files] == [".md", ".json", ".csv"]
    assert "pip install 'veneer[study]'" in recorder.of_type(Warned)[-1].text


def test_a_study_goes_beside_its_runs_output(make: Callable[..., Study]) -> None:
    assert study_folder(make({"output": {"dir": "runs/shapes"}})) == Path("runs/shapes-study")


@pytest.mark.parametrize(("output", "above"), [(".", "here"), ("..", "above")])
def test_a_study_goes_beside_a_working_directory(
    make: Callable[..., Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, above: str
) -> None:
    (tmp_path / "above" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "above" / "here")
    (place,) = tmp_path.rglob(above)
    assert study_folder(make({"output": {"dir": output}})) == place.with_name(f"{above}-study")


def test_nothing_is_beside_the_root_of_a_disk(make: Callable[..., Study]) -> None:
    with raises_code("study.no_folder") as caught:
        study_folder(make({"output": {"dir": "/"}}))
    caught.match(r"run\.output\.dir: has no place beside it for a study; choose one with --out")


def test_the_command_line(
    tiny_base: Path, tiny_pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = [
        "run.train.max_steps=2",
        "run.train.batch_size=2",
        "run.validation.draws=2",
        f"run.base={tiny_base}",
        "seeds=[0]",
    ]
    words = ["study", "rank", *quick, "grid.adapter.rank=[1, 2]", "reference=rank 2", "run.data.held_out=0.25"]
    where = ["--config", str(tiny_pictures), "--trigger", "sks", "--out", str(tmp_path / "out")]
    assert main([*words, *where]) == 0
    printed = capsys.readouterr().out
    assert "pictures: 9 to train on, 3 held out" in printed and "[1/2] rank 1, seed 0" in printed
    assert "| rank 1 | " in printed and f"written: {tmp_path / 'out' / 'study.png'}" in printed
    assert load_config(next((tmp_path / "out" / TRIALS).glob("rank-1-*")) / CONFIG).data.trigger == "sks"
    assert main([*words, *where]) == 0
    assert "(done before)" in capsys.readouterr().out


@pytest.mark.usefixtures("drawn")
def test_a_stopped_study_gives_the_terminal_back(
    make: Callable[..., Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object) -> None:
        raise Interrupted(2, 1)

    written, errors = io.StringIO(), sys.stderr
    monkeypatch.setattr(trials, "train_trial", stop)
    monkeypatch.setattr(screen, "Console", lambda: Console(file=written, force_terminal=True, width=80))
    with pytest.raises(Interrupted):
        screen.run_study_in_terminal(make(), tmp_path, "local")
    hidden, shown = "\x1b[?25l", "\x1b[?25h"
    assert written.getvalue().rfind(shown) > written.getvalue().rfind(hidden) > 0 and sys.stderr is errors


def test_the_command_line_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, told in (
        (["study", "rank"], "has no run to study"),
        (["study", "rank", "--trigger", "x"], "--trigger: means something only with --config"),
        (["study", "nothing.yaml"], "neither a file nor a ready-made study"),
    ):
        assert main(words) == 2
        assert told in capsys.readouterr().err


def test_a_place_that_there_is_not(make: Callable[..., Study], tmp_path: Path) -> None:
    recorder = EventRecorder()
    with raises_code("study.unknown_runner") as caught:
        run_study(make(), tmp_path / "study", on="moon", callback=recorder)
    caught.match("--on moon")
    assert not recorder.events and not (tmp_path / "study").exists()  # before the pictures are read


@pytest.mark.usefixtures("drawn")
def test_the_table_is_written_anew_after_each_training(make: Callable[..., Study], tmp_path: Path) -> None:
    """So that what is killed has one."""
    counts: list[int] = []

    def callback(event: object) -> None:
        if isinstance(event, TrialFinished):
            told = json.loads((tmp_path / "study.json").read_text("utf-8"))
            counts.append(sum(len(row["losses"]) for row in told["rows"]))

    run_study(make(), tmp_path, callback=callback)
    assert counts == [1, 2, 3, 4]


@pytest.mark.usefixtures("drawn")
def test_what_ended_later_is_no_failure(make: Callable[..., Study], tmp_path: Path) -> None:
    context = StudyContext(make(), tmp_path, EventRecorder())
    results = StudyResults(context, EventRecorder())
    (first, _) = points_of(context.study.config)
    trial = context.trial(first, 0)
    results.add_failure(TrialFailure(first.name, 0, "the machine went away"))
    results.add(context.run(trial, EventRecorder()))
    assert not results.table().failures
