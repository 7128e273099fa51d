"""The study of ranks: which one loses nothing, and ``veneer adapter resize --study``."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file

from tests.errors import raises_code
from tests.resizing import save_run_of_rank_4
from veneer.adapter.merge import merge
from veneer.adapter.resize import resize
from veneer.cli.main import main
from veneer.config.load import load_config
from veneer.data.preflight import survey
from veneer.evaluate.heldout import heldout_losses
from veneer.family.registry import load_family
from veneer.run.folder import CONFIG
from veneer.study.ranks import RankStudyOptions, study_ranks
from veneer.train.events import Warned
from veneer.verbs.resize import resize_adapter
from veneer.weights.file import FILE_NAME, AdapterFile, load, save


@pytest.fixture(scope="module")
def run(tiny_base: Path, tiny_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run_of_rank_4(tiny_base, tiny_pictures, tmp_path_factory.mktemp("run") / "shapes")


def test_the_smallest_rank_that_loses_nothing_is_advised(run: Path) -> None:
    study = study_ranks(run)
    assert [row.point for row in study.table.rows] == ["rank 1", "rank 2", "rank 4"]
    assert study.table.reference == "rank 4" and study.table.pictures == 3
    one, two, _ = study.table.rows
    assert one.versus_reference is not None and two.versus_reference is not None
    assert abs(two.versus_reference.mean) < 1e-4 < abs(one.versus_reference.mean)
    assert study.retained["rank 1"] < 0.95 < study.retained["rank 2"] <= study.retained["rank 4"] == 1
    sizes = [row.trainable for row in study.table.rows]
    assert sizes == [sizes[0], 2 * sizes[0], 4 * sizes[0]]


def test_a_rank_is_scored_as_the_cut_file_is(run: Path) -> None:
    config = load_config(run / CONFIG)
    family = load_family(config.base)
    merge(family.networks, [(resize(load(run).weights, 1), 1.0)])
    expected = heldout_losses(config, family, survey(config.data).held_out)
    found = study_ranks(run, [1], RankStudyOptions()).table.rows[0]
    assert found.loss == pytest.approx(float(expected.mean()), rel=1e-12)


def test_shares_of_energy_are_measured_beside_ranks(run: Path) -> None:
    study = study_ranks(run, [1], RankStudyOptions(margin=1.0), energies=[0.999, 0.5])
    assert [row.point for row in study.table.rows] == ["rank 1", "energy 0.5", "energy 0.999", "rank 4"]
    losses = {row.point: row.loss for row in study.table.rows}
    assert losses["energy 0.5"] == losses["rank 1"]  # one direction has more than half of it
    assert abs(losses["energy 0.999"] - losses["rank 4"]) < 1e-4
    sizes = [row.trainable for row in study.table.rows]
    assert sizes[0] == sizes[1] < sizes[2] < sizes[3]
    assert study.retained["energy 0.999"] ** 2 >= 0.999
    only = study_ranks(run, energies=[0.999])
    assert [row.point for row in only.table.rows] == ["energy 0.999", "rank 4"]
    with raises_code("study.no_lower_rank", "name lower shares with --energy"):
        study_ranks(run, energies=[1.0])


def test_pictures_of_its_own(run: Path, tiny_base: Path, tiny_pictures: Path, tmp_path: Path) -> None:
    """A file that lies alone is measured on a folder, all of it, with the trigger that the file tells."""
    shutil.copy(run / FILE_NAME, tmp_path / "style.safetensors")
    with raises_code("study.nothing_held_out") as caught:
        study_ranks(tmp_path / "style.safetensors")
    caught.match("--data FOLDER")
    new = changed(tiny_pictures, tmp_path / "new")
    how = RankStudyOptions(base=str(tiny_base), data=new, draws=2)
    alone = study_ranks(tmp_path / "style.safetensors", [2], how)
    beside = study_ranks(run, [2], RankStudyOptions(data=new))
    assert alone.table.pictures == 12
    assert [row.loss for row in alone.table.rows] == [row.loss for row in beside.table.rows]


def changed(folder: Path, to: Path) -> Path:
    """The same pictures as other files."""
    shutil.copytree(folder, to)
    for path in to.glob("*.png"):
        ImageOps.invert(Image.open(path).convert("RGB")).save(path)
    return to


def test_pictures_that_were_trained_on_say_nothing_of_ranks(
    run: Path, tiny_base: Path, tiny_pictures: Path, tmp_path: Path
) -> None:
    recorder: list[object] = []
    study = study_ranks(run, [2], RankStudyOptions(data=tiny_pictures), callback=recorder.append)
    assert study.table.pictures == 3
    assert recorder[0] == Warned("study.provenance", "9 pictures to measure on were trained on, so left out")
    held_out = {sample.path.name for sample in survey(load_config(run / CONFIG).data).held_out.samples}
    seen = Path(shutil.copytree(tiny_pictures, tmp_path / "seen"))
    for name in held_out:
        (seen / name).unlink()
    lines = (seen / "metadata.jsonl").read_text().splitlines(keepends=True)
    (seen / "metadata.jsonl").write_text("".join(x for x in lines if json.loads(x)["file_name"] not in held_out))
    with raises_code("study.all_trained_on") as caught:
        study_ranks(run, [2], RankStudyOptions(data=seen))
    caught.match("every picture in it was trained on")
    # the run's pictures may be gone, and then nobody can tell
    gone = Path(shutil.copytree(run, tmp_path / "gone"))
    (gone / CONFIG).write_text((gone / CONFIG).read_text().replace(str(tiny_pictures), str(tmp_path / "none")))
    study_ranks(gone, [2], RankStudyOptions(data=tiny_pictures), callback=recorder.append)
    assert any("the run's own pictures: " in str(event) for event in recorder)


def test_another_base_or_no_captions_are_told(run: Path, tiny_base: Path, tiny_pictures: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tiny_base, tmp_path / "other"))
    (weights,) = (other / "vae").glob("*.safetensors")
    save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, weights)
    recorder: list[object] = []
    study_ranks(run, [2], RankStudyOptions(base=str(other)), callback=recorder.append)
    assert "is not the base that the adapter's file names" in str(recorder[0])
    plain = AdapterFile(load(run).weights)
    save(plain, tmp_path / "plain.safetensors")
    new = changed(tiny_pictures, tmp_path / "new")
    (new / "metadata.jsonl").unlink()
    with raises_code("data.no_caption") as caught:
        study_ranks(tmp_path / "plain.safetensors", [2], RankStudyOptions(base=str(tiny_base), data=new))
    caught.match(r"have no caption: .*; write a \.txt beside each$")


def test_the_command_line(run: Path, tiny_pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["adapter", "resize", str(run), "--rank", "3", "--out", str(tmp_path / "three.safetensors")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "three.safetensors")
    words = ["adapter", "resize", str(run), "--study", "--rank", "1", "--rank", "2", "--out", str(tmp_path / "ranks")]
    assert main([*words, "--data", str(tiny_pictures), "--margin", "0.1"]) == 0
    printed = capsys.readouterr().out
    assert "rank 2: held-out loss" in printed and "of delta W's norm kept" in printed and "| rank 4 | " in printed
    assert {path.name for path in (tmp_path / "ranks").iterdir()} == {
        f"ranks.{e}" for e in ("md", "csv", "json", "png")
    }
    content = json.loads((tmp_path / "ranks" / "ranks.json").read_text("utf-8"))
    assert set(content["retained"]) == {"rank 1", "rank 2", "rank 4"} and content["margin"] == 0.1
    for words, fault in (
        ([], "--rank: one rank is needed"),
        (["--rank", "9"], "not more than 9"),
        (["--rank", "2", "--data", str(tiny_pictures)], "--data: means something only with --study"),
        (["--rank", "2", "--margin", "0.02"], "--margin: means something only with --study"),
    ):
        assert main(["adapter", "resize", str(run), *words]) == 2
        assert fault in capsys.readouterr().err


def test_the_advised_command_is_one_that_a_shell_takes(
    run: Path, tiny_base: Path, tiny_pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a space in the file's name, and the base that was asked for."""
    file = shutil.copy(run / FILE_NAME, tmp_path / "my style.safetensors")
    words = ["adapter", "resize", str(file), "--base", str(tiny_base)]
    assert main([*words, "--study", "--data", str(tiny_pictures), "--rank", "1", "--margin", "1"]) == 0
    printed = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert printed == ["veneer", *words[:3], "--rank", "1", *words[3:]]


def test_the_smallest_share_of_energy_is_advised(
    run: Path, tiny_base: Path, tiny_pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = shutil.copy(run / FILE_NAME, tmp_path / "style.safetensors")
    words = ["adapter", "resize", str(file)]
    more = ["--base", str(tiny_base), "--data", str(tiny_pictures), "--margin", "1"]
    assert main([*words, "--study", "--energy", "0.999", "--energy", "0.5", *more]) == 0
    printed = capsys.readouterr().out
    assert "energy 0.5: held-out loss" in printed
    assert shlex.split(printed.splitlines()[-1]) == ["veneer", *words, "--energy", "0.5", "--base", str(tiny_base)]


def test_ranks_that_cannot_be_are_refused(run: Path, tmp_path: Path) -> None:
    with raises_code("adapter.rank_not_lower"):
        study_ranks(run, [9])
    with raises_code("study.no_lower_rank") as caught:
        study_ranks(run, [4])
    caught.match("the adapter's rank is 4 already; name lower ones with --rank")
    one = resize_adapter(run, 1, tmp_path / "one.safetensors").path
    shutil.copy(run / CONFIG, tmp_path / CONFIG)
    with raises_code("study.no_lower_rank") as caught:
        study_ranks(one)
    caught.match("rank is 1, which nothing is below")
