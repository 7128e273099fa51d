"""Scores while training: told, the best kept, the run ended in time, and all of it the same after a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.errors import raises_code
from tests.running import hashes, killed, logged, quick_config, record_events, use_base
from veneer.config.schema import RunConfig
from veneer.data.preflight import survey
from veneer.errors import UserError
from veneer.evaluate.comparison import Losses
from veneer.evaluate.heldout import HeldOutEvaluator, score_adapter
from veneer.evaluate.results import Evaluated, read_evaluation
from veneer.family.protocol import Family
from veneer.run.events import BestAdapterSaved, EarlyStopped
from veneer.run.folder import BEST, CHECKPOINTS
from veneer.run.resume import Resume
from veneer.run.session import run_training
from veneer.train.events import CheckpointDue, EvaluationDue, StepDone, Stopped, Warned
from veneer.weights.checkpoint import checkpoints_in
from veneer.weights.file import FILE_NAME, info, load

NEWEST = Resume()
# by step: the best is that of step 4, and after it come none that are better
COURSE = {1: 0.9, 2: 0.8, 3: 0.85, 4: 0.5, 5: 0.6, 6: 0.55, 7: 0.7, 8: 0.9}


@pytest.fixture(autouse=True)
def loaded_once(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    use_base(monkeypatch, family)


def config_of(base: Path, pictures: Path, output: Path, **sections: Any) -> RunConfig:
    values: dict[str, Any] = {"validation": {"every": 1}, "data": {"held_out": 0.25}, "train": {"keep_checkpoints": 9}}
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return quick_config(base, pictures, output, **values)


@pytest.fixture
def config(tiny_base: Path, tiny_pictures: Path, tmp_path: Path) -> RunConfig:
    return config_of(tiny_base, tiny_pictures, tmp_path / "run")


@pytest.fixture
def course(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out losses of the adapter as ``COURSE`` has them, with a little noise; the base's are 1.0."""
    measure, shapes = HeldOutEvaluator.losses, {}
    monkeypatch.setattr("veneer.run.validation.Validator._base_losses", _base_losses)

    def losses(evaluator: HeldOutEvaluator) -> Losses:
        step = _steps_done(evaluator)
        if step is None or evaluator not in shapes:
            found = measure(evaluator)
            shapes[evaluator] = found.shape
            if step is None:
                return found
        return np.full(shapes[evaluator], COURSE[step]) + 0.001 * np.arange(shapes[evaluator][0])[:, None]

    monkeypatch.setattr(HeldOutEvaluator, "losses", losses)


def _base_losses(validator: Any) -> dict[str, Losses]:
    return {kind: np.ones_like(losses) for kind, losses in validator._losses().items()}


_TRAINERS: list[Any] = []


def _steps_done(evaluator: HeldOutEvaluator) -> int | None:
    return _TRAINERS[-1].steps_done if _TRAINERS else None


@pytest.fixture(autouse=True)
def trainers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The trainer of the run that is training."""
    from veneer.train.loop import Trainer

    run, close = Trainer.run, Trainer.close

    def begin(trainer: Any, *arguments: Any) -> Any:
        _TRAINERS.append(trainer)
        return run(trainer, *arguments)

    def end(trainer: Any) -> None:
        _TRAINERS.clear()
        close(trainer)

    monkeypatch.setattr(Trainer, "run", begin)
    monkeypatch.setattr(Trainer, "close", end)


def evaluated(events: list[Any]) -> list[Evaluated]:
    return [event for event in events if isinstance(event, Evaluated)]


def test_scores_come_when_they_are_due(tiny_base: Path, tiny_pictures: Path, tmp_path: Path) -> None:
    config = config_of(
        tiny_base, tiny_pictures, tmp_path / "run", validation={"every": 4}, train={"checkpoint_every": 4}
    )
    events = record_events(config)
    assert [event.step for event in evaluated(events)] == [4, 6]
    names = [type(event).__name__ for event in events if getattr(event, "step", 0) == 4]
    assert names == ["StepDone", "EvaluationDue", "Evaluated", "CheckpointDue", "CheckpointSaved"]
    lines = [line for line in logged(config.output.dir) if line["event"] == "Evaluated"]
    assert lines[0]["held_out"]["pictures"] == 3 and lines[0]["training"]["pictures"] == 8
    assert len(lines[0]["bands"]) == 1 and lines[0]["gap"]["held_out"] == 3


def test_without_being_asked_there_are_none(config: RunConfig) -> None:
    quiet = config.model_copy(update={"validation": config.validation.model_copy(update={"every": 0})})
    events = record_events(quiet)
    assert not [event for event in events if isinstance(event, (Evaluated, EvaluationDue, BestAdapterSaved))]
    assert not (quiet.output.dir / BEST).exists()


@pytest.mark.slow
def test_scoring_changes_nothing_of_the_adapter(config: RunConfig, tmp_path: Path) -> None:
    record_events(config)
    evaluate_less = config.validation.model_copy(update={"every": 0})
    quiet = config.model_copy(update={"validation": evaluate_less}).in_folder(tmp_path / "quiet")
    record_events(quiet)
    assert (config.output.dir / FILE_NAME).read_bytes() == (quiet.output.dir / FILE_NAME).read_bytes()


def test_a_score_is_that_of_the_adapter_as_it_would_be_saved(
    tiny_base: Path, tiny_pictures: Path, tmp_path: Path, family: Family
) -> None:
    """With an average, of the average; the last score is that of the file, up to merging's rounding."""
    config = config_of(tiny_base, tiny_pictures, tmp_path / "run", train={"ema_decay": 0.9})
    last = evaluated(record_events(config))[-1]
    score = score_adapter(config, family, survey(config.data), load(config.output.dir / FILE_NAME).weights)
    assert (last.held_out.base, last.held_out.adapter) == pytest.approx((score.base, score.adapter), rel=1e-5)
    assert score.base != pytest.approx(score.adapter, rel=1e-4)


def test_the_best_is_kept_beside_the_last(course: None, config: RunConfig) -> None:
    config = with_steps(config, 8)
    events = record_events(config)
    assert [event.best_step for event in evaluated(events)] == [1, 2, 2, 4, 4, 4, 4, 4]
    (kept,) = (event for event in events if isinstance(event, BestAdapterSaved))
    assert (kept.step, kept.last_step, kept.path) == (4, 8, config.output.dir / BEST)
    assert kept.difference is not None and kept.difference.mean == pytest.approx(0.4)
    assert info(config.output.dir / BEST).metadata["veneer.steps"] == "4"
    assert info(config.output.dir / FILE_NAME).metadata["veneer.steps"] == "8"
    short = with_steps(config, 4).in_folder(config.output.dir.parent / "short")
    record_events(short)
    # the settings in the metadata differ, which say how long the run was to be; the tensors do not
    best, last = (load(path).weights for path in (config.output.dir / BEST, short.output.dir / FILE_NAME))
    assert best.keys() == last.keys()
    assert all(
        torch.equal(best[name].up, last[name].up) and torch.equal(best[name].down, last[name].down) for name in best
    )


def with_steps(config: RunConfig, steps: int, **evaluate: Any) -> RunConfig:
    train = config.train.model_copy(update={"max_steps": steps})
    return config.model_copy(update={"train": train, "validation": config.validation.model_copy(update=evaluate)})


def test_patience_ends_a_run_and_says_why(course: None, config: RunConfig) -> None:
    config = with_steps(config, 8, patience=2)
    events = record_events(config)
    assert [event.step for event in events if isinstance(event, StepDone)] == [1, 2, 3, 4, 5, 6]
    (stop,) = (event for event in events if isinstance(event, EarlyStopped))
    assert (stop.step, stop.best_step, stop.scores) == (6, 4, 2)
    assert str(stop).startswith(
        "stopped after step 6: 2 scores in a row are not better than that of step 4; held-out loss 0.5010 -> 0.5510"
    )
    assert not [event for event in events if isinstance(event, Stopped)]
    assert info(config.output.dir / FILE_NAME).metadata["veneer.steps"] == "6"
    evaluation = read_evaluation(config.output.dir)
    assert evaluation is not None and evaluation.step == 6
    # its last state is kept, as any last one is
    assert checkpoints_in(config.output.dir / CHECKPOINTS)[-1].name == "step-000000006"


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        pytest.param(StepDone, 1, marks=pytest.mark.slow),
        (Evaluated, 4),
        pytest.param(CheckpointDue, 4, marks=pytest.mark.slow),
        (StepDone, 6),
    ],
)
def test_a_killed_run_comes_to_the_same_end(
    course: None, config: RunConfig, tmp_path: Path, kind: type, step: int
) -> None:
    one, two = (with_steps(config, 8, patience=2).in_folder(tmp_path / n) for n in ("one", "two"))
    run_training(one)
    killed(two, kind, step)
    record_events(two, NEWEST)
    assert hashes(two.output.dir) == hashes(one.output.dir)
    assert (two.output.dir / BEST).read_bytes() == (one.output.dir / BEST).read_bytes()
    without_time = [
        [
            {k: v for k, v in line.items() if k not in ("seconds", "path", "losses")}
            for line in logged(c.output.dir)
            if line["event"] in ("StepDone", "Evaluated", "EarlyStopped", "BestAdapterSaved")
        ]
        for c in (one, two)
    ]
    assert without_time[0] == without_time[1]


@pytest.mark.slow
def test_a_run_that_was_ended_is_not_trained_on_by_a_resume(course: None, config: RunConfig) -> None:
    config = with_steps(config, 8, patience=2)
    record_events(config)
    before = hashes(config.output.dir)
    assert not [event for event in record_events(config, NEWEST) if isinstance(event, StepDone)]
    assert hashes(config.output.dir) == before
    # more patience goes on with it
    events = record_events(with_steps(config, 8, patience=5), NEWEST)
    assert [event.step for event in events if isinstance(event, StepDone)] == [7, 8]
    (kept,) = (event for event in events if isinstance(event, BestAdapterSaved))
    assert kept.step == 4


@pytest.mark.slow
def test_the_best_goes_along_into_another_folder(course: None, config: RunConfig, tmp_path: Path) -> None:
    """A checkpoint alone has all that is needed, not the log or the file beside it."""
    config = with_steps(config, 8)
    killed(config, StepDone, 7)
    branch = config.in_folder(tmp_path / "branch")
    events = record_events(branch, Resume(config.output.dir / CHECKPOINTS / "step-000000006"))
    (kept,) = (event for event in events if isinstance(event, BestAdapterSaved))
    assert kept.step == 4 and (branch.output.dir / BEST).exists()


@pytest.mark.slow
def test_scores_of_another_measure_are_forgotten_with_a_word(course: None, config: RunConfig) -> None:
    config = with_steps(config, 8)
    killed(config, StepDone, 6)
    assert (config.output.dir / BEST).exists()
    events = record_events(with_steps(config, 8, draws=2), NEWEST)
    assert [event.text for event in events if isinstance(event, Warned) and "forgotten" in event.text]
    assert [event.best_step for event in evaluated(events)] == [6, 6, 6]


@pytest.mark.slow
def test_a_score_that_cannot_be_had_is_a_warning(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = HeldOutEvaluator.losses

    def losses(evaluator: HeldOutEvaluator) -> Losses:
        if _steps_done(evaluator) == 3:
            raise UserError("the denoising loss on x.png is not finite", code="train.loss_not_finite")
        return measure(evaluator)

    monkeypatch.setattr(HeldOutEvaluator, "losses", losses)
    events = record_events(config)
    assert [event.step for event in evaluated(events)] == [1, 2, 4, 5, 6]
    assert "no score of step 3: the denoising loss" in [e.text[:38] for e in events if isinstance(e, Warned)]


@pytest.mark.slow
def test_a_folder_that_does_not_take_the_best_is_no_end(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> str:
        raise UserError("cannot be written: No space left on device", code="files.cannot_write")

    monkeypatch.setattr("veneer.run.validation.save", full)
    events = record_events(config)
    assert any("the best adapter is not in its file" in e.text for e in events if isinstance(e, Warned))
    assert (config.output.dir / FILE_NAME).exists()


def test_asking_for_scores_with_nothing_held_out_is_refused_first(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = config.data.model_copy(update={"held_out": 0.0})
    monkeypatch.setattr("veneer.run.preparation.load_run_base", None)
    text = r"validation\.every: no picture is held out .*; hold some out with data\.held_out"
    with raises_code("validation.nothing_held_out", match=text):
        run_training(config.model_copy(update={"data": data}))


@pytest.mark.slow
def test_at_the_end_both_kinds_are_measured_and_written(config: RunConfig, family: Family) -> None:
    result = run_training(config)
    evaluation = read_evaluation(config.output.dir)
    assert evaluation is not None and evaluation.held_out == result.score
    assert evaluation.training is not None and evaluation.gap is not None and evaluation.step == 6
    assert (evaluation.adapter, evaluation.drift, evaluation.copying) == (FILE_NAME, None, None)


@pytest.mark.slow
def test_pictures_of_the_class_show_the_drift(tiny_base: Path, tiny_pictures: Path, tmp_path: Path) -> None:
    data = {"prior": {"prompt": "a shape", "count": 3}}
    config = config_of(tiny_base, tiny_pictures, tmp_path / "run", data=data)
    run_training(config)
    evaluation = read_evaluation(config.output.dir)
    assert evaluation is not None and evaluation.drift is not None and evaluation.drift.pictures == 3
    assert evaluation.drift_source == "pictures of the class"
    assert not torch.isnan(torch.tensor(evaluation.drift.mean))
