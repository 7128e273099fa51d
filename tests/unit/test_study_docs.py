"""docs/study.md: its commands and its YAML are run, its figures are those of the studies."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.studies import draw_adapter
from tools.demo_study import __main__ as demo
from tools.publish import published
from veneer.cli.main import main
from veneer.study import results as study_results
from veneer.study import trial
from veneer.study.config import config_of_point, list_studies, load_study, points_of
from veneer.study.run import study_folder

STUDIES = Path(__file__).parents[2] / "studies"
QUICK = ["run.train.max_steps=2", "run.train.batch_size=1", "run.sample.steps=1", "run.validation.draws=1", "seeds=[0]"]
SMALL = {"rank": ["grid.adapter.rank=[1, 2]", "reference=rank 2"]}  # the tiny base has no room for rank 64


def block(before: str) -> str:
    """The fenced block that follows a line of the page."""
    found = re.search(rf"^{re.escape(before)}\n```\w+\n(.*?)^```", demo.PAGE.read_text("utf-8"), re.S | re.M)
    assert found, before
    return found[1]


@pytest.fixture
def desk(tiny_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the folders that the page speaks of."""
    for name in ("pictures", "unseen"):
        shutil.copytree(tiny_pictures, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.yaml").write_text(block("<!-- study: tested -->"), "utf-8")
    return tmp_path


@pytest.mark.slow
def test_commands(desk: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a run, each does what the page says; what a training makes is another test's matter."""
    commands = [shlex.split(line) for line in block("<!-- commands: tested -->").splitlines()]
    assert len(commands) >= 5
    quick = ["train.max_steps=2", "train.batch_size=1", "sample.steps=1", "validation.draws=1"]
    assert main(["train", "pictures", f"base={tiny_base}", *quick]) == 0
    monkeypatch.setattr(trial, "train_trial", draw_adapter)
    monkeypatch.setattr(study_results, "plot", lambda table, title: b"a plot")
    for program, *words in commands:
        assert program == "veneer"
        quick = [*QUICK, f"run.base={tiny_base}", *SMALL.get(words[1], [])] if words[0] == "study" else []
        assert main([*words, *quick]) == 0, words
    assert (desk / "runs/pictures-rank/study.md").is_file() and (desk / "runs/targets/study.png").is_file()
    assert (desk / "runs/pictures/pytorch_lora_weights-rank2.safetensors").is_file()


@pytest.mark.parametrize("marker", ["study", "points", "search"])
def test_the_pages_studies_can_be_read(marker: str, desk: Path) -> None:
    (desk / "s.yaml").write_text(block(f"<!-- {marker}: tested -->"), "utf-8")
    config = load_study(desk / "s.yaml").config
    assert len(points_of(config)) == {"study": 4, "points": 2, "search": 0}[marker]


@pytest.mark.parametrize("name", list(list_studies()))
def test_the_committed_studies_are_the_ready_made_ones_on_the_demo(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for how often, and how long."""
    monkeypatch.chdir(STUDIES.parent)
    study = load_study(STUDIES / f"{name}.yaml")
    ready = load_study(Path(name), (), study.run).config
    own = {"run": None, "seeds": ()}
    assert study.config.model_copy(update=own) == ready.model_copy(update=own) and len(study.config.seeds) >= 2
    assert study.run.data.sources[0].path.is_dir() and str(study.run.data.held_out).endswith("held_out")
    assert study_folder(study).name == f"demo-{name}"


def test_the_study_of_strengths_keeps_alpha_over_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(STUDIES.parent)
    study = load_study(STUDIES / "strength.yaml")
    adapters = [config_of_point(study, point).adapter for point in points_of(study.config)]
    assert [adapter.rank for adapter in adapters] == [adapter.alpha for adapter in adapters] == [1, 2, 4, 8, 64]


def test_the_page_quotes_the_studies_figures() -> None:
    figures, text = demo.rows(), published(demo.PAGE)
    assert set(re.findall(r"study/(\w+)\.png", text)) == set(figures) <= set(demo.TITLES)
    for name, rows in figures.items():
        assert f"study/{name}.png" in text and (demo.FOLDER / f"{name}.png").is_file()
        for row in rows:
            assert re.search(
                rf"^\| {re.escape(row['point'])} \|(.*\|)? {row['trainable']:,} \| {row['loss']:.4f} \|", text, re.M
            )
