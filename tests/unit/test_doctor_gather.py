"""What the doctor gathers from a run's folder, and its command: whole runs on the tiny base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.errors import raises_code
from tests.plans import plans_once  # noqa: F401
from tests.running import killed, logged, quick_config, record_events
from tests.training import tiny_config
from veneer.adapter.dora import DoraFactors
from veneer.adapter.layers import layers_of
from veneer.adapter.lora import LoraFactors, delta_weight
from veneer.cli.main import main
from veneer.config.adapter_config import TextEncoderAdapterConfig
from veneer.config.load import build_config, load_config, write_config
from veneer.config.schema import RunConfig
from veneer.data.manifest import Manifest
from veneer.data.preflight import survey
from veneer.doctor.diagnosis import RULES, Diagnosis
from veneer.doctor.finding import Change
from veneer.doctor.gather import gather_evidence, run_doctor
from veneer.doctor.measurements import measure, shuffle_captions, without_words
from veneer.doctor.readers.adapter import weight_changes
from veneer.doctor.readers.pictures import caption_statistics
from veneer.doctor.rules import endings
from veneer.doctor.rules.memory import memory_changes
from veneer.errors import UserError
from veneer.evaluate.heldout import HeldOutEvaluator, heldout_losses
from veneer.family.registry import load_family
from veneer.plan.text import format_bytes
from veneer.run.folder import CONFIG, LOG
from veneer.run.lock import locked
from veneer.run.resume import Resume
from veneer.run.session import run_training
from veneer.train.events import StepDone
from veneer.weights.file import FILE_NAME, AdapterFile, load, save


@pytest.fixture(scope="module")
def config(tiny_base: Path, tiny_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    output = tmp_path_factory.mktemp("doctor") / "run"
    return quick_config(tiny_base, tiny_pictures, output, data={"held_out": 0.25, "trigger": "sks"})


@pytest.fixture(scope="module")
def run(config: RunConfig) -> Path:
    """A finished run's folder; read only."""
    record_events(config)
    return config.output.dir


def test_gathers_what_a_run_left(run: Path, config: RunConfig) -> None:
    evidence = gather_evidence(run)
    events = {event["event"]: event for event in logged(run)}
    assert evidence.config.train == config.train and evidence.config.data.resolution == 16
    assert (evidence.ending.how, evidence.ending.step) == ("finished", 6)
    losses = [event["loss"] for event in logged(run) if event["event"] == "StepDone"]
    assert [one.loss for one in evidence.loss_curve] == pytest.approx(losses)
    assert (evidence.pictures.train, evidence.pictures.held_out, evidence.pictures.left_out) == (9, 3, 0)
    assert evidence.pictures.near_duplicates == evidence.pictures.small == 0 and evidence.pictures.smallest == 64
    assert evidence.held_out is not None and evidence.training is not None
    assert evidence.held_out.mean == pytest.approx(events["Score"]["mean"])
    assert evidence.checkpoints == (5, 6)
    assert evidence.measurements is None and evidence.memory is None


def test_captions_are_summed_up_without_the_trigger(run: Path) -> None:
    captions = gather_evidence(run).captions
    assert captions is not None
    assert (captions.pictures, captions.distinct) == (9, 9)
    assert captions.shared_words == {"a": 1.0}


def test_the_norm_of_delta_stands_beside_that_of_the_base(run: Path, tiny_base: Path) -> None:
    change = gather_evidence(run).weight_changes["unet"]
    layers = layers_of(load_family(str(tiny_base)).networks)
    factors = load(run / FILE_NAME).weights
    delta = sum(float(delta_weight(each).double().square().sum()) for each in factors.values()) ** 0.5
    base = sum(float(layers[name].weight.detach().double().square().sum()) for name in factors) ** 0.5
    assert change.delta == pytest.approx(delta, rel=1e-6)
    assert change.base == pytest.approx(base, rel=1e-6)


def test_a_method_that_is_not_additive_has_a_size_beside_the_base_alone(tiny_base: Path, tmp_path: Path) -> None:
    layers = layers_of(load_family(str(tiny_base)).networks)
    name = next(name for name in layers if name.endswith("attn1.to_q"))
    weight = layers[name].weight.detach()
    lora = LoraFactors(weight[:2].clone(), weight[:, :2].clone(), 2.0)
    adapter = DoraFactors(lora, 2 * weight.norm(dim=1, keepdim=True))
    change = weight_changes({name: adapter}, str(tiny_base))["unet"]
    assert change.delta == pytest.approx(float(adapter.delta_weight(weight).double().norm()), rel=1e-5)
    assert change.base == pytest.approx(float(weight.double().norm()))
    assert weight_changes({name: adapter}, str(tmp_path)) == {}
    other = next(name for name, layer in layers.items() if layer.weight.shape != weight.shape)
    assert weight_changes({other: adapter}, str(tiny_base)) == {}


@pytest.mark.slow
def test_the_text_encoder_is_found_in_the_base_too(
    run: Path, config: RunConfig, tiny_base: Path, tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "run")
    adapter = config.adapter.model_copy(update={"text_encoders": {"text_encoder": TextEncoderAdapterConfig()}})
    write_config(gather_evidence(run).config.model_copy(update={"adapter": adapter}), tmp_path / "run" / CONFIG)
    layers = layers_of(load_family(str(tiny_base)).networks)
    queries = [name for name in layers if name.startswith("text_encoder") and name.endswith("q_proj")]
    words = {name: layers[name].weight.detach() for name in queries}
    part = {name: LoraFactors(weight[:2].clone(), weight[:, :2].clone(), 2.0) for name, weight in words.items()}
    save(AdapterFile({**load(run / FILE_NAME).weights, **part}), tmp_path / "run" / FILE_NAME)
    evidence = gather_evidence(tmp_path / "run", measured=True)
    assert evidence.weight_changes.keys() == {"unet", "text_encoder"}
    moved = evidence.weight_changes["text_encoder"]
    delta = sum(float(delta_weight(each).double().square().sum()) for each in part.values()) ** 0.5
    base = sum(float(weight.double().square().sum()) for weight in words.values()) ** 0.5
    assert (moved.layers, moved.delta, moved.base) == (len(part), pytest.approx(delta), pytest.approx(base))
    # of use or not, it makes a difference
    assert evidence.measurements is not None and evidence.measurements.text_encoder is not None
    assert evidence.measurements.text_encoder.mean != 0


@pytest.mark.slow
def test_measuring_leaves_the_base_its_bits_and_repeats(run: Path, tiny_base: Path) -> None:
    family, evidence = load_family(str(tiny_base)), gather_evidence(run)
    before = {name: tensor.clone() for name, tensor in family.networks["unet"].state_dict().items()}
    dataset, factors = survey(evidence.config.data), load(run / FILE_NAME).weights
    first, second = (measure(evidence.config, family, dataset, factors, ["a"]) for _ in range(2))
    assert first == second
    assert first.train_captions is not None and first.train_captions.base.pictures == 9
    assert first.without_shared_words is not None and first.text_encoder is None
    after = family.networks["unet"].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_other_captions_are_measured_as_if_the_pictures_were_encoded_anew(run: Path, tiny_base: Path) -> None:
    family, config = load_family(str(tiny_base)), gather_evidence(run).config
    train = survey(config.data).train
    other = Manifest(shuffle_captions(train).samples[2:5])
    evaluator = HeldOutEvaluator(config, family, train)
    losses = evaluator.losses()
    assert np.array_equal(evaluator.with_captions_of(other).losses(), heldout_losses(config, family, other))
    assert np.array_equal(evaluator.losses(), losses) and not np.array_equal(
        evaluator.with_captions_of(other).losses(), losses[2:5]
    )


def test_an_adapter_of_nothing_makes_no_difference_to_captions(run: Path, tiny_base: Path) -> None:
    family, evidence = load_family(str(tiny_base)), gather_evidence(run)
    nothing = {
        name: type(each)(each.down, torch.zeros_like(each.up), each.alpha)
        for name, each in load(run / FILE_NAME).weights.items()
    }
    captions = measure(evidence.config, family, survey(evidence.config.data), nothing).train_captions
    assert captions is not None and captions.base == captions.adapter


def test_captions_are_shuffled_so_that_every_one_differs(run: Path) -> None:
    train = survey(gather_evidence(run).config.data).train
    other = shuffle_captions(train)
    assert [sample.id for sample in other.samples] == [sample.id for sample in train.samples]
    assert all(new.captions[0] not in old.captions for new, old in zip(other.samples, train.samples, strict=True))
    same = type(train)(tuple(type(one)(one.id, one.path, ("a",), 1, 1, 1) for one in train.samples))
    assert shuffle_captions(same).samples == ()


def test_words_are_taken_out_whole(run: Path) -> None:
    train = survey(gather_evidence(run).config.data).train
    bare = without_words(train, ["a", "sks", "RED"])
    before = {sample.id: sample.captions[0] for sample in train.samples}
    after = {sample.id: sample.captions[0] for sample in bare.samples}
    assert {before[id]: after[id] for id in before}["a black square, sks"] == "black square"


@pytest.mark.slow
def test_a_killed_run(config: RunConfig, tmp_path: Path) -> None:
    config = config.in_folder(tmp_path / "run")
    killed(config, StepDone, 4)
    evidence = gather_evidence(tmp_path / "run")
    assert (evidence.ending.how, evidence.ending.step) == ("cut off", 4)
    # what the plan says of memory, which sufficed, so that no change of it is tried
    assert evidence.memory is not None
    assert not evidence.memory.is_scarce and evidence.memory.peak_after == {}
    with locked(tmp_path / "run"):
        assert gather_evidence(tmp_path / "run").ending.how == "running"


def test_a_folder_without_a_log_is_judged_by_what_is_there(run: Path, config: RunConfig, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / LOG).unlink()
    evidence = gather_evidence(tmp_path / "run")
    # the steps are those that the adapter's file tells
    assert (evidence.ending.how, evidence.ending.step, evidence.memory) == ("unknown", 6, None)
    assert (evidence.pictures.train, evidence.pictures.held_out) == (9, 3)
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(run / CONFIG, bare / CONFIG)
    diagnosis, evidence = run_doctor(bare)
    assert evidence.ending.step == 0 and evidence.pictures.train == 9
    assert not {"cut_off", "out_of_memory", "few_pictures"} & {finding.name for finding in diagnosis.findings}
    assert "its log, run.jsonl, must be here" in [one.how for one in diagnosis.unjudged]
    gone = load_config(bare / CONFIG, [f"data.sources=[{{path: {tmp_path / 'x'}}}]"])
    write_config(gone, bare / CONFIG)
    diagnosis, evidence = run_doctor(bare)
    assert evidence.pictures.train == 0
    assert [finding.name for finding in diagnosis.findings] == ["trigger_unused"]  # of its configuration
    assert not any("0 training" in said for finding in diagnosis.findings for said in finding.evidence)


def test_many_pictures_that_no_log_counted_are_not_looked_at_unasked(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / LOG).unlink()
    monkeypatch.setattr("veneer.doctor.readers.pictures._SURVEYED_UNASKED", 11)
    assert gather_evidence(tmp_path / "run").pictures.near_duplicates is None


def test_what_a_run_told_of_captions_that_are_cut_is_told_again(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    with (tmp_path / "run" / LOG).open("a") as log:
        told = {"event": "Warned", "code": "data.cut_captions", "text": "5 of 9 captions", "details": list("abcde")}
        log.write("".join(json.dumps(line) + "\n" for line in (told, told, {**told, "code": "data.small_pictures"})))
    diagnosis, evidence = run_doctor(tmp_path / "run")
    assert evidence.unread_texts[-1] == "5 of 9 captions; a; b; c; and 2 more"
    assert evidence.unread_texts.count("5 of 9 captions; a; b; c; and 2 more") == 1
    assert "captions_cut" in [finding.name for finding in diagnosis.findings]


def test_measuring_tells_of_captions_that_are_cut_where_no_log_does(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / LOG).unlink()
    assert gather_evidence(tmp_path / "run").unread_texts == ()
    cut, trigger = gather_evidence(tmp_path / "run", measured=True).unread_texts
    assert "longer than the 14 tokens" in cut and "the trigger" in trigger


@pytest.mark.slow
def test_a_torn_line_is_passed_over(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    log = tmp_path / "run" / LOG
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:6]) + lines[6][:10])
    evidence = gather_evidence(tmp_path / "run")
    assert evidence.ending.how == "cut off" and evidence.held_out is not None


def test_a_run_that_was_stopped_and_goes_on_is_judged_by_its_last_life(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    log = tmp_path / "run" / LOG
    steps = [line for line in log.read_text().splitlines() if '"StepDone"' in line][:2]
    stopped = [*steps, json.dumps({"event": "Stopped", "seconds": 1, "step": 2})]
    resumed = json.dumps({"event": "Resumed", "seconds": 0, "step": 2, "path": "c", "losses": []})
    endings_seen = []
    for lines in (stopped, [*stopped, resumed]):
        log.write_text("".join(f"{line}\n" for line in lines))
        ending = gather_evidence(tmp_path / "run").ending
        endings_seen.append((ending.how, ending.step))
    assert endings_seen == [("stopped", 2), ("cut off", 2)]


def test_a_run_whose_patience_ran_out_has_ended_though_steps_are_left(run: Path, tmp_path: Path) -> None:
    """Also one that was killed on its last paintings and resumed: it does not say again why it ended."""
    shutil.copytree(run, tmp_path / "run")
    log = tmp_path / "run" / LOG
    steps = [line for line in log.read_text().splitlines() if '"StepDone"' in line][:4]
    early, resumed, finished = (
        json.dumps({"event": event, "seconds": 1, "step": 4}) for event in ("EarlyStopped", "Resumed", "Finished")
    )
    for last in ([early, finished], [early, resumed, finished]):
        log.write_text("".join(f"{line}\n" for line in [*steps, *last]))
        evidence = gather_evidence(tmp_path / "run")
        assert (evidence.ending.how, evidence.ending.step) == ("stopped early", 4)
        assert evidence.has_finished and endings.unfinished(evidence) is None


def test_pictures_that_are_gone_are_missed_and_no_fault(run: Path, tmp_path: Path, config: RunConfig) -> None:
    shutil.copytree(run, tmp_path / "run")
    gone = config.data.model_copy(
        update={"sources": (config.data.sources[0].model_copy(update={"path": tmp_path / "x"}),)}
    )
    write_config(config.model_copy(update={"data": gone}), tmp_path / "run" / CONFIG)
    evidence = gather_evidence(tmp_path / "run")
    assert evidence.captions is None and evidence.pictures.near_duplicates is None and evidence.pictures.train == 9
    with raises_code("data.no_such_folder"):
        gather_evidence(tmp_path / "run", measured=True)


def test_twins_and_lookalikes_are_counted(run: Path, config: RunConfig, tiny_pictures: Path, tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "pictures"
    shutil.copytree(tiny_pictures, folder)
    lines = (folder / "metadata.jsonl").read_text("utf-8")
    shutil.copy(folder / "red_cross.png", folder / "twin.png")
    Image.open(folder / "blue_circle.png").save(folder / "alike.jpg", quality=90)
    for name in ("twin.png", "alike.jpg"):
        lines += json.dumps({"file_name": name, "text": "a copy"}) + "\n"
    (folder / "metadata.jsonl").write_text(lines, "utf-8")
    source = config.data.sources[0].model_copy(update={"path": folder})
    data = config.data.model_copy(update={"sources": (source,), "held_out": 0.0, "resolution": 16})
    shutil.copytree(run, tmp_path / "run")
    write_config(gather_evidence(run).config.model_copy(update={"data": data}), tmp_path / "run" / CONFIG)
    pictures = gather_evidence(tmp_path / "run").pictures
    assert (pictures.duplicates, pictures.near_duplicates) == (1, 2)
    assert pictures.near_duplicate_examples == ("alike.jpg", "blue_circle.png") and pictures.small_examples == ()
    Image.open(folder / "red_cross.png").resize((10, 10)).save(folder / "red_cross.png")
    pictures = gather_evidence(tmp_path / "run").pictures
    assert pictures.near_duplicate_examples == ("alike.jpg", "blue_circle.png") and pictures.small_examples == (
        "red_cross.png",
    )


def broken(monkeypatch: pytest.MonkeyPatch, fault: Exception) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise fault

    monkeypatch.setattr("veneer.train.loop.train_step", fail)


def changes_of(config: RunConfig) -> dict[str, Change]:
    return {change.override: change for change in memory_changes(config)}


@pytest.mark.slow
def test_want_of_memory_is_told_and_named(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken(monkeypatch, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand more"))
    config = config.in_folder(tmp_path / "run")
    with pytest.raises(UserError, match=r"^out of memory: CUDA .* 2 GiB and more; .*doctor"):
        run_training(config)
    halved = "train.batch_size=1"
    monkeypatch.setattr("veneer.doctor.readers.memory.memory_changes", lambda config: [changes_of(config)[halved]])
    assert main(["doctor", str(tmp_path / "run"), "--json"]) == 1
    finding = json.loads(capsys.readouterr().out)["findings"][0]
    assert finding["name"] == "out_of_memory" and "OutOfMemoryError: CUDA out of memory" in finding["evidence"][0]
    # the plan's peak as it was, and after a change
    before, after = gather_evidence(tmp_path / "run").memory, changes_of(config)[halved]
    assert before is not None and before.peak_after[halved] < before.peak
    (why,) = [one["why"] for one in finding["changes"] if one["override"] == halved]
    assert why == f"{after.why}; the plan's peak is then {format_bytes(before.peak_after[halved])}"


@pytest.mark.slow
def test_a_fault_is_cut_from_the_log_of_a_run_that_goes_on(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config.in_folder(tmp_path / "run")
    killed(config, StepDone, 4)
    with monkeypatch.context() as patched:
        broken(patched, ValueError("gone"))
        with pytest.raises(ValueError, match="gone"):
            run_training(config, resume=Resume())
    assert gather_evidence(tmp_path / "run").ending.text == "gone"
    run_training(config, resume=Resume())
    assert gather_evidence(tmp_path / "run").ending.how == "finished"
    assert "Failed" not in [event["event"] for event in logged(tmp_path / "run")]


def test_the_command_says_what_it_saw_and_what_to_try(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor", str(run)])
    printed = capsys.readouterr().out
    assert code == 1  # six steps on a base of random weights are no training
    assert "  saw  " in printed and "  try  " in printed and "Not judged" in printed
    assert str(run) in printed  # the command that would tell more can be pasted


def test_the_same_as_data(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor", str(run), "--json", "--measure"])
    data = json.loads(capsys.readouterr().out)
    assert data["has_problems"] is (code == 1)
    assert all(finding["evidence"] for finding in data["findings"])
    assert all("=" in change["override"] for finding in data["findings"] for change in finding["changes"])


def test_a_folder_that_is_no_run_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(tmp_path)]) == 2
    assert CONFIG in capsys.readouterr().err
    assert main(["doctor", str(tmp_path / "none")]) == 2
    assert "none: is no folder; give the folder" in capsys.readouterr().err
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / CONFIG).touch()
    assert main(["doctor", str(tmp_path)]) == 2
    assert f"such as {tmp_path / 'cat'}" in capsys.readouterr().err
    with raises_code("doctor.not_a_run"):
        run_doctor(tmp_path)


def test_a_healthy_run_is_called_so(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("veneer.doctor.gather.diagnose", lambda evidence: Diagnosis((), ()))
    assert main(["doctor", str(run)]) == 0
    assert capsys.readouterr().out.startswith("No problem was found in this run: 6 steps; ")


def test_an_adapter_that_gives_no_numbers_is_said_to(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    huge = {
        name: LoraFactors(each.down * 1e15, torch.ones_like(each.up) * 1e15, each.alpha)
        for name, each in load(run / FILE_NAME).weights.items()
    }
    save(AdapterFile(huge), tmp_path / "run" / FILE_NAME)
    evidence = gather_evidence(tmp_path / "run", measured=True)
    assert evidence.measurements is None and "not finite" in evidence.measurement_error
    assert np.isfinite(evidence.weight_changes["unet"].delta)


def test_the_page_s_commands(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text("utf-8")
    commands = page.split("```")[1].strip().splitlines()
    shutil.copytree(run, tmp_path / "runs" / "cat")
    monkeypatch.chdir(tmp_path)
    assert len(commands) == 3
    for command in commands:
        program, *words = command.split()
        assert program == "veneer" and main(words) in (0, 1), command
        assert capsys.readouterr().err == ""


def test_the_page_names_every_finding() -> None:
    page = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text("utf-8")
    rows = page.split("## What it finds")[1].split("## How far")[0]
    assert [rule.__name__ for rule in RULES if f"`{rule.__name__}`" not in rows] == []


def test_one_caption_in_several_templates_is_one(tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("a cat")
    data = {"caption_template": ["a photo of {caption}", "{caption}"], "held_out": 0.0}
    config = tiny_config(tmp_path, data=data)
    for dataset in (None, survey(config.data)):
        statistics = caption_statistics(config, dataset)
        assert statistics is not None and (statistics.pictures, statistics.distinct) == (3, 1)


def test_words_of_a_template_are_none_that_captions_share(tmp_path: Path) -> None:
    for number in range(4):
        Image.new("RGB", (32, 32), (60 * number, 0, 0)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"a sketch of thing{number}", "utf-8")
    data = {
        "sources": [{"path": str(tmp_path)}],
        "trigger": "sks",
        "caption_template": "a photo of {caption} by {trigger}",
    }
    config = build_config({"base": "bundled", "data": data}, "test")
    for dataset in (survey(config.data), None):
        statistics = caption_statistics(config, dataset)
        assert statistics is not None and dict(statistics.shared_words) == {"sketch": 1.0}
