"""``veneer report`` on runs: whole, killed, at work, enormous, and on an evaluation alone."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.errors import raises_code
from tests.reports import Page, evaluation, numbers_in, step_done, write_run
from tests.running import killed, quick_config, use_base
from veneer.cli.main import main
from veneer.evaluate.results import EVALUATION, read_evaluation, write_evaluation
from veneer.family.protocol import Family
from veneer.report.build import build_report, write_report
from veneer.run.folder import CHECKPOINTS, CONFIG, LOG, PLAN, REPORT, REPORT_DATA, SAMPLES, SHEET, clear
from veneer.run.lock import locked
from veneer.run.session import run_training
from veneer.train.events import StepDone
from veneer.verbs.evaluate import evaluate_adapter
from veneer.verbs.evaluation_inputs import EvaluationOptions
from veneer.weights.file import FILE_NAME

ROOT = Path(__file__).parents[2]
PROMPTS = ["a red cross", "a <b>bold</b> cat"]


@pytest.fixture(autouse=True)
def loaded_once(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    use_base(monkeypatch, family)


@pytest.fixture(scope="module")
def whole(family: Family, tiny_base: Path, tiny_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all that a report tells, read only."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    sections: dict[str, Any] = {
        "data": {"held_out": 0.34},
        "sample": {"every": 3, "prompts": PROMPTS},
        "validation": {"draws": 4, "every": 2},
    }
    with pytest.MonkeyPatch.context() as patch:
        use_base(patch, family, rehearse=True)
        run_training(quick_config(tiny_base, tiny_pictures, folder, **sections))
        evaluate_adapter(folder, EvaluationOptions(samples=4))
    return folder


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def page_of(folder: Path) -> Page:
    return Page(write_report(folder).read_text("utf-8"))


def test_a_whole_run_is_reported(run: Path, whole: Path) -> None:
    page, report = page_of(run), build_report(run)
    assert report.training and report.training.curve and report.evaluation == read_evaluation(run)
    assert [point.step for point in report.training.curve.points] == [1, 2, 3, 4, 5, 6]
    assert [each.step for each in report.training.scores] == [2, 4, 6]
    assert (report.training.ending.how, report.training.ending.step) == ("finished", 6)
    assert report.samples and report.samples.columns == ("base", "step 3", "step 6") and len(report.samples.rows) == 2
    assert (
        report.before_after
        and report.before_after.columns == ("base", "adapter")
        and report.before_after.rows == tuple(PROMPTS)
    )
    assert len(report.nearest_pairs) == 4 and all(each.painted and each.nearest for each in report.nearest_pairs)
    # its results are where it lies, be it copied
    assert report.findings and report.config == (run / CONFIG).read_text("utf-8").replace(str(whole), str(run))
    assert {"adapter file, SHA-256", "veneer.base.sha256", "veneer.data.fingerprint"} <= {
        each.name for each in report.facts
    }
    assert {each.section for each in report.missing} <= {"doctor", "help"}
    # loss, scores, intervals, four bands; pictures of two prompts and of copies
    assert len(page.of("svg")) == 7 and len(page.of("img")) == 6 + 4 + 8
    assert "a <b>bold</b> cat" in page.text and not page.of("b")


def test_the_pictures_are_those_of_the_run(run: Path) -> None:
    import base64
    import io

    report = build_report(run)
    assert report.samples is not None
    painted = report.samples.pictures[1][2]
    assert (painted.file, painted.description) == (f"{SAMPLES}/step-000000006.png", "a <b>bold</b> cat, step 6")
    picture = Image.open(io.BytesIO(base64.b64decode(painted.data.partition(",")[2]))).convert("RGB")
    with Image.open(run / painted.file) as sheet:
        real = sheet.convert("RGB").crop((136, 144, 264, 272))
    assert picture.size == (128, 128)
    assert (
        max(
            abs(a - b)
            for a, b in zip(picture.resize((1, 1)).getpixel((0, 0)), real.resize((1, 1)).getpixel((0, 0)), strict=True)
        )
        < 6
    )


def test_page_and_json_are_of_one_mind_and_repeat(run: Path) -> None:
    page = page_of(run)
    first = [(run / name).read_bytes() for name in (REPORT, REPORT_DATA)]
    data = json.loads(first[1])
    assert data["evaluation"] == json.loads((run / EVALUATION).read_text("utf-8"))
    problems = {float(sum(each["level"] == "problem" for each in data["findings"]))}
    assert {float(tag["value"]) for tag in page.of("data")} - problems <= set(numbers_in(data))
    write_report(run)
    assert [(run / name).read_bytes() for name in (REPORT, REPORT_DATA)] == first


def test_the_plan_is_held_against_the_run(run: Path) -> None:
    rows = {row.what: row for row in build_report(run).plan}
    plan = json.loads((run / PLAN).read_text("utf-8"))
    file = rows["adapter file"]
    assert file.planned == plan["file_bytes"] and file.measured == (run / FILE_NAME).stat().st_size
    assert rows["parameters of the adapter"].planned == rows["parameters of the adapter"].measured
    assert (rows["steps"].planned, rows["steps"].measured) == (6, 6)
    assert rows["memory on cpu, at most"].planned == plan["memory"]["peak"]
    last = max((run / CHECKPOINTS).iterdir())
    assert rows["a checkpoint"].planned == plan["disk"]["checkpoint"]
    assert rows["a checkpoint"].measured == sum(path.stat().st_size for path in last.iterdir())


def test_a_run_without_an_evaluation(run: Path) -> None:
    (run / EVALUATION).unlink()
    lines = (run / LOG).read_text("utf-8").splitlines(keepends=True)
    (run / LOG).write_text("".join(line for line in lines if '"Evaluated"' not in line), "utf-8")
    page, report = page_of(run), build_report(run)
    assert report.tone == "unmeasured" and "Whether the adapter helps is not known" in page.text
    assert {"help", "scores", "copying"} <= {each.section for each in report.missing}
    assert f"veneer evaluate {run}" in page.text and "validation.every=1" in page.text
    assert len(page.of("svg")) == 1


def test_a_killed_run(tiny_base: Path, tiny_pictures: Path, tmp_path: Path) -> None:
    config = quick_config(tiny_base, tiny_pictures, tmp_path / "run", validation={"every": 2}, data={"held_out": 0.34})
    killed(config, StepDone, 4)
    with (config.output.dir / LOG).open("ab") as log:
        log.write(b'{"event": "StepDone", "seco')
    page, report = page_of(config.output.dir), build_report(config.output.dir)
    assert report.training and (report.training.ending.how, report.training.ending.step) == ("cut off", 4)
    assert report.verdict.startswith("After step 2: ") and "cut off after 4 of 6 steps" in page.text
    assert report.before_after is None and "--resume" in page.text
    with locked(config.output.dir):
        assert "It is running: 4 of 6 steps." in page_of(config.output.dir).text


def test_an_evaluation_alone(run: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    write_evaluation(evaluation("a <turtle>"), alone)
    page = page_of(alone)
    assert "it lowers the denoising loss by 45.5" in page.text and "a <turtle>" in page.text
    assert not {f"{name}-title" for name in ("learning", "samples", "before-after", "plan", "doctor", "config")} & {
        tag["id"] for tag in page.of("h2")
    }
    assert len(page.of("img")) == 0  # neither picture is here


def test_what_is_no_run_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    line = capsys.readouterr().err
    assert CONFIG in line and line.count("\n") == 1
    with raises_code("report.not_a_run"):
        build_report(tmp_path)
    (tmp_path / EVALUATION).write_text("[]")
    with raises_code("evaluate.unreadable"):
        write_report(tmp_path)


def test_damaged_files_leave_holes_and_no_fault(run: Path) -> None:
    for path in (run / SHEET, run / PLAN, *(run / SAMPLES).glob("*.png"), *(run / "evaluation").glob("*.png")):
        path.write_bytes(path.read_bytes()[:100])
    (run / FILE_NAME).write_bytes(b"")
    report = build_report(run)
    assert (report.before_after, report.samples, report.plan) == (None, None, ())
    assert {"samples", "before_after", "plan", "doctor"} <= {each.section for each in report.missing}
    assert all(each.painted is None for each in report.nearest_pairs)
    page_of(run)


def test_sheets_that_cannot_be_taken_apart_are_shown_whole(run: Path) -> None:
    for path in (run / SHEET, *(run / SAMPLES).glob("*.png")):
        with Image.open(path) as sheet:
            sheet.convert("RGB").save(path)  # without its note
    report = build_report(run)
    assert report.before_after and report.samples and report.before_after.rows == report.samples.rows == ()
    assert report.samples.pictures[0][0].file == f"{SAMPLES}/timelapse.png"
    page_of(run)


def test_sheets_of_other_prompts_are_left_out(run: Path) -> None:
    from veneer.sample.files import read_note, write_sheet

    path = run / SAMPLES / "step-000000000.png"
    note = dict(read_note(path) or {})
    with Image.open(path) as sheet:
        sheet.load()
        write_sheet(sheet, path, {**note, "painted": "otherwise"})
    report = build_report(run)
    assert report.samples and report.samples.columns == ("step 3", "step 6")


def test_a_log_that_is_too_long_for_the_doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_run(tmp_path / "run", 10, [step_done(step, 1.0) for step in range(1, 11)])
    monkeypatch.setattr("veneer.report.build._MAX_DOCTOR_LOG", 100)
    monkeypatch.setattr("veneer.report.build.run_doctor", None)
    report = build_report(folder)
    assert report.findings is None and any("The log is long" in each.what for each in report.missing)


def test_what_the_log_says_of_memory_is_in_the_report(tmp_path: Path) -> None:
    line = {"event": "MemoryMeasured", "seconds": 1, "device": "cpu", "before": 300, "peak": 900}
    folder = write_run(tmp_path / "run", 5, [line])
    plan = {"trainable": 5, "file_bytes": 7, "memory": {"device": "cpu", "peak": 500}}
    (folder / PLAN).write_text(json.dumps(plan))
    row = next(row for row in build_report(folder).plan if row.what.startswith("memory"))
    assert (row.planned, row.measured) == (500, 900)  # a plan's peak is the whole process's, and so is this
    assert "+80.0\xa0%" in page_of(folder).text.replace(" %", "\xa0%")


def test_training_starts_without_an_earlier_report(run: Path) -> None:
    write_report(run)
    clear(run)
    assert not (run / REPORT).exists() and not (run / REPORT_DATA).exists()


def test_the_verbs_leave_a_report(
    tiny_base: Path, tiny_pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    quick = ["train.max_steps=2", "train.batch_size=1", "sample.steps=1", "validation.draws=1", "tracking.trackers=[]"]
    assert main(["train", str(tiny_pictures), f"base={tiny_base}", f"output.dir={folder}", *quick]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"report: {folder / REPORT}"
    before = (folder / REPORT).read_bytes()
    assert main(["evaluate", str(folder), "--samples", "2"]) == 0
    assert f"report: {folder / REPORT}" in capsys.readouterr().err
    assert (folder / REPORT).read_bytes() != before
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder / REPORT}\n"
    (folder / REPORT).unlink()
    assert main(["report", str(folder), "--json"]) == 0
    assert capsys.readouterr().out == (folder / REPORT_DATA).read_text("utf-8") and not (folder / REPORT).exists()


def test_a_report_that_cannot_be_had_undoes_no_work(tmp_path: Path) -> None:
    from veneer.cli.terminal.report import report_line

    assert report_line(tmp_path).startswith("no report: ") and "\n" not in report_line(tmp_path)


def test_the_pages_commands_run(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, "runs/pictures")
    page = (ROOT / "docs" / "report.md").read_text("utf-8")
    (block,) = re.findall(r"^<!-- commands: tested -->\n```sh\n(.*?)^```", page, re.S | re.M)
    commands = [shlex.split(line) for line in block.splitlines()]
    assert len(commands) == 2
    for program, *words in commands:
        assert program == "veneer" and main(words) == 0, words
    assert (tmp_path / "runs/pictures" / REPORT).is_file()


def test_the_page_shows_small_screenshots() -> None:
    page = (ROOT / "docs" / "report.md").read_text("utf-8")
    names = re.findall(r"\]\((report-\w+\.png)\)", page)
    assert {"report-light.png", "report-dark.png", "report-phone.png"} <= set(names)
    assert all((ROOT / "docs" / name).stat().st_size < 400_000 for name in names)
