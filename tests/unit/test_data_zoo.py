"""Of a folder of hostile files each good picture is kept and each bad one named, and nothing outside is read."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.zoo import Zoo, encoded, write_zoo
from veneer.cli.main import main
from veneer.config.data_config import DataConfig
from veneer.config.source_config import SourceConfig
from veneer.data.manifest import content_id
from veneer.data.preflight import Dataset, survey


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return write_zoo(tmp_path_factory.mktemp("zoo") / "pictures")


@pytest.fixture(scope="module")
def found(zoo: Zoo) -> Dataset:
    return survey(config_of(zoo))


def config_of(zoo: Zoo, **options: object) -> DataConfig:
    source = SourceConfig.model_validate({"path": zoo.folder, **options})
    return DataConfig(sources=(source,), trigger="tok", held_out=0.0)


def test_there_are_more_than_sixty_of_them(zoo: Zoo) -> None:
    assert zoo.files >= 60 and len(zoo.bad) >= 40 and len(zoo.good) >= 30


def test_each_good_picture_is_kept(zoo: Zoo, found: Dataset) -> None:
    assert {one.path.relative_to(zoo.folder).as_posix() for one in found.train.samples} == zoo.good


def test_each_bad_one_is_named_with_its_reason(zoo: Zoo, found: Dataset) -> None:
    reasons = {one.path.relative_to(zoo.folder).as_posix(): one.reason for one in found.train.rejected}
    assert set(reasons) == set(zoo.bad)
    wrong = {name: reasons[name] for name, pattern in zoo.bad.items() if not re.search(pattern, reasons[name])}
    assert not wrong
    notes = " ".join(found.notes)
    assert all(name in notes for name in zoo.noted)
    assert "not read in" in notes and "rating" in notes


def test_captions_come_in_every_encoding(zoo: Zoo, found: Dataset) -> None:
    captions = {one.path.name: one.captions for one in found.train.samples}
    assert captions["bom.png"] == ("a red bird, tok",)
    assert captions["crlf.png"] == ("a red bird, tok", "a blue bird, tok")
    assert captions["utf16.png"] == ("a red bird, \u732b, tok",)
    assert captions["json.png"] == ("a red bird, red, bird, tok",)
    assert captions["plain.png"] == ("tok",)


def test_nothing_outside_the_folder_is_trained_on_unless_it_is_asked_for(zoo: Zoo, found: Dataset) -> None:
    secret = content_id(encoded(99))
    assert secret not in {one.id for one in found.train.samples}
    followed = survey(config_of(zoo, follow_links=True))
    assert secret in {one.id for one in followed.train.samples}
    assert "device.png" in {one.path.name for one in followed.train.rejected}


def test_it_is_said_in_the_same_order_each_time(zoo: Zoo, found: Dataset) -> None:
    again = survey(config_of(zoo))
    assert (again.train.rejected, again.notes) == (found.train.rejected, found.notes)


_WATCHED = """
import json, re, sys
from pathlib import Path
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from veneer.config.data_config import DataConfig
from veneer.config.source_config import SourceConfig
from veneer.data.preflight import survey
source = SourceConfig.model_validate({"path": sys.argv[1]})
dataset = survey(DataConfig(sources=(source,), trigger="tok", held_out=0.0))
# getrusage's would count the process that this one was started from
(peak,) = re.findall(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
print(json.dumps({"peak": int(peak) * 1024, "opened": opened, "good": len(dataset.train.samples)}))
"""


@pytest.mark.slow
def test_nothing_outside_is_opened_and_memory_stays_under_a_gigabyte(zoo: Zoo) -> None:
    ran = subprocess.run([sys.executable, "-c", _WATCHED, str(zoo.folder)], capture_output=True, text=True, check=True)
    result = json.loads(ran.stdout.splitlines()[-1])
    opened = [Path(name) for name in result["opened"]]
    assert not [path for path in opened if zoo.outside in path.parents or path == Path("/dev/zero")]
    assert any(zoo.folder in path.parents for path in opened)
    assert result["good"] == len(zoo.good)
    assert result["peak"] < 1e9, f"{result['peak']:,} bytes"


@pytest.mark.slow
def test_a_training_on_it_completes(zoo: Zoo, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["train.max_steps=3", "sample.steps=1", "validation.draws=1", "tracking.trackers=[]"]
    assert main(["train", str(zoo.folder), "--trigger", "tok", f"output.dir={tmp_path / 'out'}", *quick]) == 0
    said = capsys.readouterr()
    assert (tmp_path / "out" / "pytorch_lora_weights.safetensors").is_file()
    events = [json.loads(line) for line in (tmp_path / "out" / "run.jsonl").read_text().splitlines()]
    named = " ".join(json.dumps(event, ensure_ascii=False) for event in events if event["event"] == "Surveyed")
    assert all(json.dumps(name, ensure_ascii=False)[1:-1] in named for name in zoo.bad)
    assert "Traceback" not in said.err
