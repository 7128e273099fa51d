"""Points and pictures that TensorBoard, Trackio and Weights & Biases get of a run; none of them can stop it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.curves import curves, events_in, sheets
from tests.plans import plans_once  # noqa: F401
from tests.running import killed, logged, quick_config, record_events, use_base
from veneer.cli.main import main
from veneer.config.load import write_config
from veneer.config.schema import RunConfig, TrackingConfig
from veneer.family.protocol import Family
from veneer.run.events import TrackingStarted
from veneer.run.folder import SAMPLES, TENSORBOARD
from veneer.run.resume import Resume
from veneer.run.session import run_training
from veneer.run.signals import Interrupted
from veneer.run.trackers.callback import step_values
from veneer.run.trackers.protocol import TrackedRun
from veneer.run.trackers.registry import trackers_of
from veneer.run.trackers.tensorboard import TensorBoard
from veneer.train.events import StepDone, Warned
from veneer.train.smoothed_loss import SmoothedLoss
from veneer.weights.file import FILE_NAME

FAKES = Path(__file__).parents[1] / "fakes"
GOES_ON = Resume()


@pytest.fixture
def config(
    family: Family, tiny_base: Path, tiny_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> RunConfig:
    use_base(monkeypatch, family)
    sections: dict[str, Any] = {"train": {"checkpoint_every": 2}, "sample": {"every": 2}}
    sections["tracking"] = {"trackers": None}
    return quick_config(tiny_base, tiny_pictures, tmp_path / "run", **sections)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Trackio and wandb, or what stands for them here."""
    monkeypatch.syspath_prepend(FAKES)
    yield
    for name in ("trackio", "wandb"):
        sys.modules.pop(name, None)


def tracked_by(config: RunConfig, *names: str, **more: Any) -> RunConfig:
    return config.model_copy(update={"tracking": TrackingConfig(trackers=names, **more)})


def warnings(events: list[Any]) -> list[str]:
    return [event.text for event in events if isinstance(event, Warned)]


def run_of(name: str) -> Any:
    """The one run that a service has seen."""
    module = import_module(name)
    (run,) = (module.SERVER if name == "wandb" else module.DATABASE).values()
    return run


def points(name: str, curve: str) -> list[tuple[int, Any]]:
    return [(step, row[curve]) for step, row in run_of(name).rows if curve in row]


def picture(name: str, config: RunConfig, step: int) -> bytes:
    return (config.output.dir / SAMPLES / f"step-{step:09d}.png").read_bytes()


# which


def test_tensorboard_is_the_default_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert trackers_of(TrackingConfig()) == ("tensorboard",)
    assert trackers_of(TrackingConfig(trackers=())) == ()
    monkeypatch.setattr("veneer.run.trackers.registry.find_spec", lambda name: None)
    assert trackers_of(TrackingConfig()) == ()


def test_a_run_without_tensorboard_is_silent(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("veneer.run.trackers.registry.find_spec", lambda name: None)
    events = record_events(config)
    assert warnings(events) == [] and not [event for event in events if isinstance(event, TrackingStarted)]
    assert not (config.output.dir / TENSORBOARD).exists()


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb"])
def test_a_tracker_that_is_not_installed_is_missed_before_anything_else(
    name: str, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import veneer.cli.terminal.train  # noqa: F401 - what the command needs is installed

    # as wandb leaves a folder of its name behind, which Python would import
    (tmp_path / name).mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr("veneer.run.preparation.survey", lambda config: pytest.fail("this comes after the refusal"))
    write_config(tracked_by(config, name), tmp_path / "run.yaml")
    assert main(["train", str(tmp_path / "run.yaml")]) == 2
    line = f"veneer: error: tracking.trackers: {name} is not installed; pip install 'veneer[{name}]'\n"
    assert capsys.readouterr().err == line
    assert not config.output.dir.exists()


def test_a_tracker_nobody_knows_is_refused_by_the_schema(config: RunConfig, tmp_path: Path) -> None:
    write_config(config, tmp_path / "run.yaml")
    assert main(["train", str(tmp_path / "run.yaml"), "tracking.trackers=[tensorbord]"]) == 2


# TensorBoard


def test_tensorboard_has_every_curve_every_sheet_and_the_config(config: RunConfig) -> None:
    events = [event for event in record_events(config) if isinstance(event, StepDone)]
    found = curves(config.output.dir)
    assert [step for step, _ in found["loss/step"]] == [1, 2, 3, 4, 5, 6]
    assert [value for _, value in found["loss/step"]] == pytest.approx([event.loss for event in events])
    smooth = SmoothedLoss()
    assert [value for _, value in found["loss/smoothed"]] == pytest.approx([smooth.add(e.loss) for e in events])
    assert [value for _, value in found["gradient/norm"]] == pytest.approx([e.gradient_norm for e in events])
    assert [value for _, value in found["rate/unet"]] == pytest.approx([0.01] * 6)
    assert all(0.05 < value < 100 for _, value in found["memory/gb"] + found["memory/peak_gb"])
    assert {"result/base", "result/adapter", "result/difference"} <= found.keys()
    assert "loss/prior" not in found and "result/low" not in found  # one held-out picture has no interval
    assert sheets(config.output.dir) == {step: picture("", config, step) for step in (0, 2, 4, 6)}
    text = events_in(config.output.dir).Tensors("config")[0].tensor_proto.string_val[0].decode()
    assert "    learning_rate: 0.01\n" in text


def test_a_prior_has_a_curve_and_a_text_encoder_a_rate(config: RunConfig) -> None:
    values = config.model_dump(mode="python")
    values["data"]["prior"] = {"prompt": "a shape", "count": 2}
    values["adapter"]["text_encoders"] = {"text_encoder": {}}
    run_training(RunConfig.model_validate(values))
    found = curves(config.output.dir)
    assert [step for step, _ in found["loss/prior"]] == [1, 2, 3, 4, 5, 6]
    assert found["rate/text_encoder"][0][1] == pytest.approx(5e-5)


@pytest.mark.slow
def test_a_killed_run_that_goes_on_has_each_point_once(config: RunConfig, tmp_path: Path) -> None:
    whole = config.in_folder(tmp_path / "whole")
    run_training(whole)
    killed(config, StepDone, 5)  # the last checkpoint is of step 4
    assert [step for step, _ in curves(config.output.dir)["loss/step"]] == [1, 2, 3, 4]
    run_training(config, resume=GOES_ON)
    for name, expected in curves(whole.output.dir).items():
        steps = [step for step, _ in expected]
        found = curves(config.output.dir)[name]
        assert [step for step, _ in found] == steps, name
        if not name.startswith("memory/"):
            assert found == expected, name  # the smoothed loss too, as if nobody had stopped it
    assert sheets(config.output.dir) == sheets(whole.output.dir)


def test_what_was_told_after_the_checkpoint_is_dropped(config: RunConfig) -> None:
    killed(config, StepDone, 5)
    late = TensorBoard(TrackedRun(config.output.dir, "p", "r", {}))
    late.scalars(5, {"loss/step": 99.0})
    late.close(failed=True)
    run_training(config, resume=GOES_ON)
    assert [step for step, _ in curves(config.output.dir)["loss/step"]] == [1, 2, 3, 4, 5, 6]
    assert 99.0 not in [value for _, value in curves(config.output.dir)["loss/step"]]


@pytest.mark.slow
def test_a_finished_run_that_is_resumed_has_one_score(config: RunConfig) -> None:
    for resume in (None, GOES_ON, GOES_ON):
        run_training(config, resume=resume)
    assert len(curves(config.output.dir)["result/difference"]) == 1
    longer = config.model_copy(update={"train": config.train.model_copy(update={"max_steps": 8})})
    run_training(longer, resume=GOES_ON)
    assert [step for step, _ in curves(config.output.dir)["result/difference"]] == [6, 8]


@pytest.mark.slow
def test_overwrite_begins_anew(config: RunConfig) -> None:
    run_training(config)
    run_training(config, overwrite=True)
    assert len(list((config.output.dir / TENSORBOARD).iterdir())) == 1


def test_a_point_is_on_the_disk_once_it_is_told(tmp_path: Path) -> None:
    tracker = TensorBoard(TrackedRun(tmp_path, "p", "r", {}))
    tracker.scalars(1, {"loss/step": 0.5})
    assert curves(tmp_path)["loss/step"] == [(1, 0.5)]
    tracker.close(failed=False)


# the others


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_the_others_get_the_same(name: str, config: RunConfig) -> None:
    events = record_events(tracked_by(config, name, project="emoji"))
    steps = [(event.step, event.loss) for event in events if isinstance(event, StepDone)]
    assert points(name, "loss/step") == steps
    assert [step for step, _ in points(name, "loss/smoothed")] == [1, 2, 3, 4, 5, 6]
    assert [(s, each.content) for s, each in points(name, "samples")] == [
        (step, picture(name, config, step)) for step in (0, 2, 4, 6)
    ]
    (init,) = run_of(name).inits
    assert init["project"] == "emoji"
    assert init["config"]["train"]["max_steps"] == 6 and init["config"]["data"]["resolution"] == 16
    score = run_of(name).summary if name == "wandb" else run_of(name).rows[-1][1]
    assert score["result/base"] > 0
    (line,) = [event for event in logged(config.output.dir) if event["event"] == "TrackingStarted"]
    assert line["tracker"] == name and line["run"].startswith("run-")
    assert (config.output.dir / FILE_NAME).exists() and not (config.output.dir / TENSORBOARD).exists()


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_the_others_go_on_in_the_same_run_without_double_points(name: str, config: RunConfig) -> None:
    config = tracked_by(config, name)
    killed(config, StepDone, 5)
    # the log of step 5 was written before its listeners were told, so this process tells step 6 first
    run_of(name).log({"loss/step": 0.0}, step=5)
    run_training(config, resume=GOES_ON)
    assert [step for step, _ in points(name, "loss/step")] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in points(name, "samples")] == [0, 2, 4, 6]
    for _ in range(2):
        run_training(config, resume=GOES_ON)
    assert len(points(name, "result/base")) == (1 if name == "trackio" else 0)
    assert len(run_of(name).inits) == 4


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
def test_a_longer_run_goes_on_in_the_same_and_a_changed_one_in_another(config: RunConfig) -> None:
    config = tracked_by(config, "trackio")
    run_training(config)
    longer = config.model_copy(update={"train": config.train.model_copy(update={"max_steps": 8})})
    run_training(longer, resume=GOES_ON)
    assert [step for step, _ in points("trackio", "loss/step")] == [1, 2, 3, 4, 5, 6, 7, 8]
    other = longer.model_copy(update={"train": longer.train.model_copy(update={"max_steps": 9, "max_grad_norm": 2.0})})
    run_training(other, resume=Resume(allow=("train.max_grad_norm",)))
    _, second = import_module("trackio").DATABASE.values()
    assert [step for step, row in second.rows if "loss/step" in row] == [9]


@pytest.mark.usefixtures("installed")
def test_a_run_that_is_stopped_is_told_to_have_failed(config: RunConfig) -> None:
    def interrupt(event: object) -> None:
        if isinstance(event, StepDone) and event.step == 3:
            raise Interrupted(2, 3, None)

    with pytest.raises(Interrupted):
        run_training(tracked_by(config, "wandb"), callback=interrupt)
    run_training(tracked_by(config, "wandb"), resume=GOES_ON)
    assert run_of("wandb").exit_codes == [1, 0]


# faults


@pytest.mark.usefixtures("installed")
def test_a_tracker_that_fails_on_the_way_is_told_of_once_and_stops_nothing(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    scalars = TensorBoard.scalars

    def fill(self: TensorBoard, step: int, values: Any) -> None:
        if step == 3:
            self._records = RecordWriter(open("/dev/full", "wb"))  # noqa: SIM115
        scalars(self, step, values)

    monkeypatch.setattr(TensorBoard, "scalars", fill)
    events = record_events(tracked_by(config, "tensorboard", "trackio"))
    assert warnings(events) == ["tensorboard is told nothing more of this run: [Errno 28] No space left on device"]
    assert [event["text"] for event in logged(config.output.dir) if event["event"] == "Warned"] == warnings(events)
    assert [step for step, _ in points("trackio", "loss/step")] == [1, 2, 3, 4, 5, 6]
    assert (config.output.dir / FILE_NAME).exists()


@pytest.mark.usefixtures("installed")
def test_a_tracker_that_cannot_begin_is_told_of_and_stops_nothing(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(**_: Any) -> Any:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(import_module("wandb"), "init", down)
    events = record_events(tracked_by(config, "wandb", "tensorboard"))
    assert warnings(events) == ["wandb is told nothing of this run: no route to host"]
    assert len(curves(config.output.dir)["loss/step"]) == 6


@pytest.mark.usefixtures("installed")
def test_a_tracker_that_fails_at_the_end_costs_no_result(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise TimeoutError

    monkeypatch.setattr(import_module("trackio"), "finish", fail)
    events = record_events(tracked_by(config, "trackio"))
    assert warnings(events) == ["trackio is told nothing more of this run: TimeoutError"]
    assert (config.output.dir / FILE_NAME).exists()


def test_a_skipped_step_has_no_loss_and_no_norm() -> None:
    found = step_values(StepDone(1, float("nan"), None, {"unet": 0.1}, float("inf")), float("nan"))
    assert {name for name in found if not name.startswith("memory/")} == {"rate/unet"}


def test_the_command_that_shows_a_run_is_one_that_a_shell_takes(tmp_path: Path) -> None:
    tracker = TensorBoard(TrackedRun(tmp_path, "p", "r", {}))
    tracker.close(failed=False)
    (tmp_path / "my run").mkdir()
    spaced = TensorBoard(TrackedRun(tmp_path / "my run", "p", "r", {}))
    spaced.close(failed=False)
    assert tracker.shown_by == f"tensorboard --logdir {tmp_path / TENSORBOARD}"
    assert spaced.shown_by == f"tensorboard --logdir '{tmp_path / 'my run' / TENSORBOARD}'"
