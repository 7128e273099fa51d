"""The verbs at work, on a tiny base and twelve pictures."""

from __future__ import annotations

import errno
import io
import json
import os
import runpy
import shutil
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from tests.plans import plans_once  # noqa: F401
from tests.running import use_base, without_rehearsals
from veneer.cli.main import main
from veneer.config.load import load_config
from veneer.data.preflight import survey
from veneer.data.split_record import SPLIT
from veneer.evaluate.heldout import score_adapter
from veneer.evaluate.results import EVALUATION
from veneer.family.registry import load_family
from veneer.run.folder import (
    CARD,
    CHECKPOINTS,
    CONFIG,
    GALLERY,
    LOG,
    PLAN,
    REPORT,
    REPORT_DATA,
    SAMPLES,
    SHEET,
    TENSORBOARD,
    TIMELAPSE,
)
from veneer.sample.generate import generate
from veneer.train.loop import Trainer
from veneer.weights.checkpoint import MANIFEST, STATE
from veneer.weights.file import FILE_NAME, load
from veneer.weights.tensors_writer import TensorsWriter

ROOT = Path(__file__).parents[2]
QUICK = ("train.max_steps=4", "train.batch_size=2", "train.learning_rate=0.05", "sample.steps=2", "validation.draws=2")


class Run(NamedTuple):
    """A finished ``veneer train`` and what it printed."""

    folder: Path
    printed: str


def train_in(folder: Path, base: Path, pictures: Path, *more: str) -> tuple[str, ...]:
    output = (f"output.dir={folder}", f"base={base}")
    return ("train", str(pictures), *output, *QUICK, *more)


@pytest.fixture(autouse=True)
def runs_without_rehearsals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs rehearse no memory, but for the one that all look at."""
    without_rehearsals(monkeypatch)


@pytest.fixture(scope="module")
def run(tiny_base: Path, tiny_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run") / "shapes"
    with redirect_stdout(io.StringIO()) as printed:
        code = main(train_in(folder, tiny_base, tiny_pictures, "--trigger", "sks", "sample.every=2"))
    assert code == 0
    return Run(folder, printed.getvalue())


def events_of(folder: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    lines = (folder / LOG).read_text("utf-8").splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def test_train_leaves_a_whole_result(run: Run) -> None:
    names = {path.relative_to(run.folder).as_posix() for path in run.folder.rglob("*") if path.is_file()}
    sheets = {f"{SAMPLES}/step-{step:09d}.png" for step in (0, 2, 4)} | {f"{SAMPLES}/{TIMELAPSE}"}
    (curves,) = [name for name in names if name.startswith(f"{TENSORBOARD}/events.out.tfevents.")]
    last = {f"{CHECKPOINTS}/step-000000004/{name}" for name in (MANIFEST, STATE)}
    shown = {name for name in names if name.startswith(f"{GALLERY}/")} | sheets
    assert {f"{GALLERY}/01-a-blue-circle-sks.png"} == shown - sheets, "the only picture that is held out"
    adapters = {FILE_NAME, "shapes.safetensors"}  # kohya's is called as the run is
    told = {CARD, CONFIG, EVALUATION, LOG, PLAN, REPORT, REPORT_DATA, SHEET, SPLIT, curves}
    assert names == told | adapters | shown | last


def test_train_says_what_it_did(run: Run) -> None:
    lines = run.printed.splitlines()
    assert lines[0] == "pictures: 11 to train on, 1 held out, 0 left out"
    assert [line for line in lines if line.startswith("unet ")]
    steps = [line for line in lines if line.startswith("step ")]
    assert len(steps) == 4 and "loss" in steps[0] and "rate 5.0e-02" in steps[0] and "left" in steps[0]
    assert any(line.startswith("held-out loss ") for line in lines)
    assert f"adapter: {run.folder / FILE_NAME}" in lines
    assert f"curves: tensorboard --logdir {run.folder / TENSORBOARD}" in lines
    assert f"samples: {run.folder / SAMPLES / TIMELAPSE}, which grows with the run" in lines


def test_train_without_a_config_writes_the_resolved_one(run: Run, tiny_pictures: Path) -> None:
    config = load_config(run.folder / CONFIG)
    assert config.data.sources[0].path == tiny_pictures
    assert (config.data.trigger, config.data.resolution, config.adapter.alpha) == ("sks", 16, 4.0)
    assert config.train.max_steps == 4


def test_the_written_config_gives_the_same_bytes(run: Run, tmp_path: Path) -> None:
    assert main(["train", str(run.folder / CONFIG), f"output.dir={tmp_path / 'again'}"]) == 0
    assert (tmp_path / "again" / FILE_NAME).read_bytes() == (run.folder / FILE_NAME).read_bytes()
    assert (tmp_path / "again" / SHEET).read_bytes() == (run.folder / SHEET).read_bytes()


def test_the_log_has_every_event_in_order(run: Run) -> None:
    events = events_of(run.folder)
    # in a process that has held more before, nothing is told of memory; how far the encoding is, is told between
    names = [event["event"] for event in events if event["event"] not in ("EncodingProgress", "MemoryMeasured")]
    sample = ["SampleDue", "SamplesSaved"]
    step = ["StepDone", "StepDone", *sample]
    kept = ["CheckpointDue", "CheckpointSaved"]
    # with their trigger captions are longer than the tiny encoder reads, and in one it is the trigger that is cut
    began = ["Surveyed", "Warned", "Warned", "Planned", "TrainingStarted", "TrackingStarted", *sample]
    assert names == [*began, *step, *step, *kept, "Finished", "AdapterSaved", "AdapterSaved", "Score"]
    assert [event["step"] for event in events if event["event"] == "StepDone"] == [1, 2, 3, 4]
    # one picture is held out, so the interval is open: null, which JSON knows, and not Infinity
    assert (events[-1]["low"], events[-1]["pictures"]) == (None, 1)


def test_the_card_tells_score_and_hash(run: Run) -> None:
    card = (run.folder / CARD).read_text("utf-8")
    saved, score = events_of(run.folder)[-2:]
    assert saved["sha256"] in card
    assert f"{score['mean']:+.4f}" in card
    assert "`sks`" in card and "adapter.rank" in card
    assert str(run.folder.parent) not in card.split("## Use")[0]


def test_the_score_is_that_of_the_file_in_a_fresh_base(run: Run, tiny_base: Path) -> None:
    config = load_config(run.folder / CONFIG)
    factors = load(run.folder / FILE_NAME).weights
    score = score_adapter(config, load_family(str(tiny_base)), survey(config.data), factors)
    logged = events_of(run.folder)[-1]
    assert (logged["base"], logged["adapter"]) == pytest.approx((score.base, score.adapter), rel=1e-5)
    assert score.base != pytest.approx(score.adapter, rel=1e-3)


def test_the_base_is_not_left_adapted(
    tiny_base: Path, tiny_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = load_family(str(tiny_base))
    before = {name: tensor.clone() for name, tensor in family.networks["unet"].state_dict().items()}
    use_base(monkeypatch, family)
    assert main(train_in(tmp_path / "run", tiny_base, tiny_pictures)) == 0
    after = family.networks["unet"].state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def forbid(*_: object, **__: object) -> None:
    raise AssertionError("this takes long, and comes after the refusal")


def test_an_unwritable_output_is_refused_before_anything_long(
    tiny_base: Path,
    tiny_pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("veneer.run.preparation.survey", forbid)
    monkeypatch.setattr("veneer.run.preparation.load_run_base", forbid)
    (tmp_path / "file").write_text("in the way")
    assert main(train_in(tmp_path / "file" / "run", tiny_base, tiny_pictures)) == 2
    line = capsys.readouterr().err
    assert "cannot be written to" in line and "output.dir=FOLDER" in line


def test_a_read_only_output_is_refused(
    tiny_base: Path, tiny_pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if os.geteuid() == 0:  # root may write anywhere but into the kernel's own folders
        folder = Path("/proc/self")
    else:
        folder = tmp_path / "locked"
        folder.mkdir(mode=0o500)
    assert main(train_in(folder, tiny_base, tiny_pictures)) == 2
    assert "cannot be written to" in capsys.readouterr().err


def test_a_result_is_not_overwritten_unasked(
    run: Run, tiny_base: Path, tiny_pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("veneer.run.preparation.survey", forbid)
    before = (run.folder / FILE_NAME).read_bytes()
    assert main(train_in(run.folder, tiny_base, tiny_pictures)) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (run.folder / FILE_NAME).read_bytes() == before


@pytest.mark.slow
def test_overwrite_replaces_all_of_an_earlier_result(tiny_base: Path, tiny_pictures: Path, tmp_path: Path) -> None:
    first = train_in(tmp_path / "run", tiny_base, tiny_pictures, "sample.every=1")
    assert main(first) == 0
    before = (tmp_path / "run" / FILE_NAME).read_bytes()
    assert main(train_in(tmp_path / "run", tiny_base, tiny_pictures, "seed=1", "--overwrite")) == 0
    assert (tmp_path / "run" / FILE_NAME).read_bytes() != before
    assert not list((tmp_path / "run" / SAMPLES).glob("*"))


@pytest.mark.parametrize("mistake", ["adapter.rank=9999", "adapter.target_modules=[to_nothing]", "data.resolution=17"])
def test_a_mistake_costs_no_earlier_result(
    mistake: str, tiny_base: Path, tiny_pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"earlier")
    prior = ("data.prior.prompt=a shape", "data.prior.count=2") if "resolution" not in mistake else ()
    assert main(train_in(tmp_path, tiny_base, tiny_pictures, mistake, "--overwrite", *prior)) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_the_config_is_there_before_training_starts(
    tiny_base: Path, tiny_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> Iterator[object]:
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(Trainer, "run", interrupted)
    assert main(train_in(tmp_path, tiny_base, tiny_pictures)) == 130
    assert load_config(tmp_path / CONFIG).train.max_steps == 4
    assert not (tmp_path / FILE_NAME).exists()


def test_broken_pictures_are_left_out_with_a_reason(
    tiny_base: Path, tiny_pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for path in sorted(tiny_pictures.glob("*.png"))[:4]:
        (pictures / path.name).write_bytes(path.read_bytes())
    (pictures / "zero.png").touch()
    assert main(train_in(tmp_path / "run", tiny_base, pictures, "--trigger", "sks")) == 0
    out = capsys.readouterr().out
    assert "pictures: 4 to train on, 0 held out, 1 left out" in out
    assert f"left out: {pictures / 'zero.png'}: empty file" in out
    assert "no picture was held out, so there is no score" in out


@pytest.mark.slow
def test_missing_pictures_of_the_class_are_painted_once(
    tiny_base: Path, tiny_pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prior = ("data.prior.prompt=a shape", "data.prior.count=3")
    assert main(train_in(tmp_path, tiny_base, tiny_pictures, *prior)) == 0
    assert "painting 3 pictures of 'a shape'" in capsys.readouterr().out
    painted = {path.name: path.read_bytes() for path in (tmp_path / "prior").glob("*.png")}
    assert len(set(painted.values())) == 3
    assert all(event["prior_loss"] > 0 for event in events_of(tmp_path) if event["event"] == "StepDone")

    (tmp_path / "prior" / "prior-00001.png").unlink()
    assert main(train_in(tmp_path, tiny_base, tiny_pictures, *prior, "--overwrite")) == 0
    assert "painting 1 pictures" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in (tmp_path / "prior").glob("*.png")} == painted


def test_a_config_file_with_overrides_and_a_trigger(
    tiny_base: Path, tiny_pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "style.yaml"
    file.write_text(
        f"base: {tiny_base}\noutput: {{dir: {tmp_path / 'run'}}}\ndata:\n  sources: [{{path: {tiny_pictures}}}]\n"
    )
    command = ("train", str(file), *QUICK, "--preset", "rank-tiny", "--trigger", "it's 7", "adapter.alpha=3")
    assert main(command) == 0
    config = load_config(tmp_path / "run" / CONFIG)
    assert (config.data.trigger, config.adapter.alpha, config.train.max_steps) == ("it's 7", 3.0, 4)
    assert config.adapter.rank <= 2


def pixels(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.asarray(Image.open(path))


def test_sample_paints_each_prompt_from_its_seeds(
    run: Run, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    painting = ("--seed", "3", "--count", "2", "--steps", "2", "--out", str(tmp_path))
    prompts = ("--prompt", "A red cross, sks!", "--prompt", "…")
    assert main(["sample", str(run.folder), *prompts, *painting]) == 0
    names = ["00-a-red-cross-sks-3.png", "00-a-red-cross-sks-4.png", "01-empty-3.png", "01-empty-4.png"]
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / name) for name in names]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert not np.array_equal(pixels(tmp_path / names[0]), pixels(tmp_path / names[1]))


def test_sample_scale_is_the_adapters_strength(run: Run, tiny_base: Path, tmp_path: Path) -> None:
    base = generate(load_family(str(tiny_base)), ["a red cross"], [0], steps=2, guidance=4.0)[0]
    for scale in ("0", "1"):
        out = ("--out", str(tmp_path / scale), "--scale", scale)
        command = ("sample", str(run.folder / FILE_NAME), "--prompt", "a red cross", "--steps", "2", *out)
        assert main([*command, "--base", str(tiny_base)]) == 0
    off, on = (pixels(tmp_path / scale / "00-a-red-cross-0.png") for scale in ("0", "1"))
    assert np.array_equal(off, np.asarray(base))
    assert not np.array_equal(on, off)


def test_sample_into_an_unwritable_folder(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("veneer.verbs.merge.load_base", forbid)
    (tmp_path / "file").touch()
    assert main(["sample", str(run.folder), "--prompt", "a", "--out", str(tmp_path / "file")]) == 2
    assert "cannot be written to" in capsys.readouterr().err


def test_adapter_info(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["adapter", "info", str(run.folder)]) == 0
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    factors = load(run.folder / FILE_NAME).weights
    parameters = sum(each.down.numel() + each.up.numel() for each in factors.values())
    assert (rows["rank"], rows["alpha"], rows["networks"]) == ("4", "4", "unet")
    assert (rows["layers"], rows["parameters"]) == (str(len(factors)), f"{parameters:,}")
    assert rows["veneer.trigger"] == "sks"


def test_adapter_merge_is_what_diffusers_fuses(
    run: Run, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from diffusers import StableDiffusionPipeline

    out = tmp_path / "merged"
    assert main(["adapter", "merge", f"{run.folder}:0.5", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{out}\n"
    assert "rounding to float32 adds an error of 0 %" in printed.err
    ours = StableDiffusionPipeline.from_pretrained(out, safety_checker=None).unet.state_dict()

    reference = StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None)
    reference.load_lora_weights(run.folder, weight_name=FILE_NAME)
    reference.fuse_lora(lora_scale=0.5)
    reference.unload_lora_weights()
    theirs, before = reference.unet.state_dict(), load_family(str(tiny_base)).networks["unet"].state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name])
    assert sum(not torch.equal(ours[name], before[name]) for name in ours) == len(load(run.folder).weights)


def test_adapter_merge_writes_over_nothing(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "merged").mkdir()
    assert main(["adapter", "merge", str(run.folder), "--out", str(tmp_path / "merged")]) == 2
    assert "is there already" in capsys.readouterr().err


def test_adapter_merge_on_a_full_disk_is_one_line_and_leaves_nothing(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: TensorsWriter, name: str, tensor: torch.Tensor) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(TensorsWriter, "write", full)
    assert main(["adapter", "merge", str(run.folder), "--out", str(tmp_path / "merged")]) == 2
    assert "cannot be written: No space left" in (told := capsys.readouterr().err) and told.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_adapter_of_another_architecture(
    run: Run, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(run.folder / FILE_NAME)
    wide = {name: torch.zeros(4, 99) if name.endswith("lora_A.weight") else tensor for name, tensor in tensors.items()}
    save_file(wide, tmp_path / "other.safetensors")
    command = ("sample", str(tmp_path / "other.safetensors"), "--prompt", "a", "--base", str(tiny_base))
    assert main([*command, "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    merging = ("adapter", "merge", str(tmp_path / "other.safetensors"), "--out", str(tmp_path / "m"))
    assert main([*merging, "--base", str(tiny_base)]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.safetensors"], "an empty folder goes again"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--data", "/nonexistent"], "/nonexistent: no such folder"),
        (["--steps", "0"], "train.max_steps: is 0, but should"),
    ],
)
def test_the_example_tells_a_mistake_in_one_line(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = str(ROOT / "lora_complete_example.py")
    monkeypatch.setattr(sys, "argv", [example, *words, "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=f"^error: .*{told}[^\n]*$"):
        runpy.run_path(example, run_name="__main__")


@pytest.mark.slow
def test_the_example_on_too_few_pictures_to_hold_any_out(
    tiny_base: Path, tiny_pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = shutil.copytree(tiny_pictures, tmp_path / "few")
    lines = (few / "metadata.jsonl").read_text("utf-8").splitlines()
    (few / "metadata.jsonl").write_text("\n".join(lines[:4]), "utf-8")
    runpy.run_path(str(ROOT / "lora_complete_example.py"))["main"](str(tiny_base), few, tmp_path / "out", 2)
    assert capsys.readouterr().out.splitlines()[-1] == "no picture was held out, so there is no score"


@pytest.mark.slow
def test_the_example_on_a_base_and_pictures_of_ones_own(
    tiny_base: Path, tiny_pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example = runpy.run_path(str(ROOT / "lora_complete_example.py"))["main"]
    for name in ("one", "two"):
        example(str(tiny_base), tiny_pictures, tmp_path / name, 2)
    assert "held-out loss" in capsys.readouterr().out
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == [FILE_NAME, "sheet.png", "test_image.png"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
