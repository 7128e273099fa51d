"""``veneer plan`` on a screen and as data."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from tests.plans import plans_once  # noqa: F401
from tests.unit.test_cli import refusal
from veneer.cli.main import main
from veneer.cli.terminal import plan as command
from veneer.config.schema import RunConfig
from veneer.plan import assessment
from veneer.plan.memory import ENCODING, LOADING, STEP, Memory, Phase
from veneer.plan.plan import NetworkPlan, Plan, Schedule
from veneer.plan.probe import Probe

PAGE = Path(__file__).parents[2] / "docs" / "plan.md"
FOUND = Probe(300 * 10**6, {LOADING: 10**6, ENCODING: 2 * 10**6, STEP: 4 * 10**6}, 1.5)


def printed(*arguments: str) -> str:
    with redirect_stdout(io.StringIO()) as text:
        assert main(["plan", *arguments]) == 0
    return text.getvalue()


def told(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(printed(*arguments, "--json"))
    return found


def invented(config: RunConfig, *_: Any, **__: Any) -> Plan:
    """A plan in which pictures are all that takes memory."""
    size = 10**7 * config.train.batch_size
    phases = [Phase(name, size, {"all": size}, size) for name in (LOADING, ENCODING, STEP)]
    memory = Memory("cpu", tuple(phases), None)
    networks = {"unet": NetworkPlan(10, 1000, {"to_q": 1}, {"to_q": 10})}
    return Plan(networks, 40, memory, Schedule(100, config.train.batch_size, 1, None))


@pytest.fixture
def words(tiny_base: Path, tiny_pictures: Path) -> tuple[str, ...]:
    return str(tiny_pictures), f"base={tiny_base}"


@pytest.fixture(autouse=True)
def _probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process measures has tests of its own."""
    monkeypatch.setattr(command, "probe", lambda config: FOUND)


def test_a_plan_says_all_that_a_run_takes(words: tuple[str, ...]) -> None:
    text = printed(*words)
    for line in (
        r"^unet +11,648 +[\d,]+ +\d\.\d{3}% +56$",
        r"^  to_q +[\d,]+ +14$",
        r"^adapter file: [\d,]+ bytes$",
        r"^weights: unet +[\d.]+ [KM]B$",
        r"^activations: convolutions +[\d.]+ [KM]B$",
        r"^optimiser state +[\d.]+ KB$",
        r"^caches +[\d.]+ KB$",
        r"^peak of a training step +[\d.]+ [MG]B$",
        r"^other peaks: loading .*, encoding a picture .*, sampling 8 pictures .*, scoring ",
        r"^schedule: [\d,]+ steps of \d+ pictures, [\d,]+ shown, [\d,.]+ epochs of \d+$",
        r"^disk: [\d.]+ [KM]B, \d checkpoints of [\d.]+ KB and the adapter$",
        r"^fits: [\d.]+ [MG]B while .*, and [\d.]+ GB are free$",
    ):
        assert re.search(line, text, re.M), f"{line}\n{text}"
    assert "would make it fit" not in text and "time: " not in text


def test_the_same_as_data(words: tuple[str, ...]) -> None:
    found = told(*words)
    assert found["trainable"] == 11_648 and found["fits"] is True and found["remedies"] == []
    memory = found["memory"]
    step = next(phase for phase in memory["phases"] if phase["name"] == STEP)
    assert sum(step["parts"].values()) == step["tensors"] < step["process"] == step["peak"] <= memory["peak"]
    assert found["schedule"]["shown"] == found["schedule"]["steps"] * found["schedule"]["batch"]
    assert "probe" not in found


@pytest.mark.slow
def test_measured_stands_below_and_the_time_too(words: tuple[str, ...]) -> None:
    text = printed(*words, "--probe", "train.max_steps=2400")
    assert re.search(r"^probe +measured +planned +error$", text, re.M)
    assert re.search(r"^training step +4.00 MB +[\d.]+ MB +[+-][\d.]+%$", text, re.M)
    assert text.endswith("time: 1.50 s a step, 1:00:00 for 2,400 steps\n")
    found = told(*words, "--probe", "train.max_steps=2400")["probe"]
    assert (found["peak"], found["seconds"], found["before"]) == (4 * 10**6, 3600, 300 * 10**6)


def test_what_would_make_it_fit_is_told(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assessment, "rehearse", invented)
    found = told(*words, "train.batch_size=8", "--memory", str(assessment.process_memory() + 50 * 10**6))
    assert found["fits"] is False
    assert found["remedies"][0]["changes"] == {"train.batch_size": 4, "train.gradient_accumulation_steps": 2}
    text = printed(*words, "train.batch_size=8", "--memory", str(assessment.process_memory() + 50 * 10**6))
    assert (
        "\ndoes not fit: " in text
        and "\nwhat would make it fit:\n  train.batch_size=4 train.gradient_accumulation_steps=2 (" in text
    )


def test_nothing_helps_where_there_is_nothing(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assessment, "rehearse", invented)
    text = printed(*words, "--memory", "1MB")
    assert "1.00 MB are free" in text and text.rstrip().endswith("lower data.resolution")


def test_the_words_may_be_wrong(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    assert "is missing" in refusal(capsys, "plan")
    assert "--memory: 'much' is no size" in refusal(capsys, "plan", *words, "--memory", "much")
    assert "is no folder" in refusal(capsys, "plan", "--base", "nowhere")


@pytest.mark.slow
def test_train_prints_the_same_first(words: tuple[str, ...], tmp_path: Path) -> None:
    """But for what the process held before, and pictures, which it has looked at."""
    quick = ("train.max_steps=1", "sample.steps=1", "validation.draws=1", "data.held_out=0")
    ahead = told(*words, *quick)
    with redirect_stdout(io.StringIO()):
        assert main(["train", *words, *quick, f"output.dir={tmp_path / 'run'}"]) == 0
    begun = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert begun["networks"] == ahead["networks"] and begun["schedule"] == ahead["schedule"]
    for before, now in zip(ahead["memory"]["phases"], begun["memory"]["phases"], strict=True):
        assert (before["name"], before["parts"]) == (now["name"], now["parts"])
        grown = [phase["process"] - of["memory"]["before"] for phase, of in ((before, ahead), (now, begun))]
        assert grown[0] == pytest.approx(grown[1], rel=0.02)


def test_the_commands_of_the_page(
    tiny_base: Path, tiny_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_pictures, tmp_path / "pictures")
    monkeypatch.chdir(tmp_path)
    found = re.search(r"^```sh\n(.*?)^```", PAGE.read_text("utf-8"), re.S | re.M)
    assert found is not None
    commands = [shlex.split(line) for line in found[1].splitlines()]
    assert len(commands) >= 5
    monkeypatch.setattr(assessment, "rehearse", invented)
    for program, verb, *rest in commands:
        assert (program, verb) == ("veneer", "plan")
        base = () if "--base" in rest else (f"base={tiny_base}",)
        assert printed(*rest, *base)
