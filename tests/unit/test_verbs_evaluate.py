"""``veneer evaluate`` at work: on runs and on files of others, with what the user names and without."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.errors import raises_code
from tests.running import quick_config, use_base
from tests.score_models import write_tiny_clip, write_tiny_dino
from veneer.cli.main import main
from veneer.config.load import load_config, write_config
from veneer.evaluate.prompts import drift_prompts
from veneer.evaluate.results import EVALUATION, Evaluation, read_evaluation
from veneer.evaluate.score_models import ScoreModelPaths
from veneer.family.protocol import Family
from veneer.run.folder import CONFIG, COPYING, EVALUATED
from veneer.run.session import run_training
from veneer.verbs.evaluate import evaluate_adapter
from veneer.verbs.evaluation_inputs import EvaluationOptions
from veneer.weights.file import FILE_NAME

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def loaded_once(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    use_base(monkeypatch, family)


@pytest.fixture(scope="module")
def trained(family: Family, tiny_base: Path, tiny_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, read only."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        use_base(patch, family)
        data = {"held_out": 0.34, "trigger": "sks"}
        run_training(quick_config(tiny_base, tiny_pictures, folder, data=data, validation={"draws": 2, "every": 3}))
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def alone(trained: Path, tmp_path: Path) -> Path:
    """The adapter without its run."""
    return Path(shutil.copy(trained / FILE_NAME, tmp_path / "adapter.safetensors"))


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """Five pictures that nobody has seen, captioned."""
    folder = tmp_path / "new"
    folder.mkdir()
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"thing {number}")
    return folder


def other_notes(found: Evaluation) -> tuple[str, ...]:
    """The notes that are not about texts: the tiny base reads 14 letters of each."""
    return tuple(note for note in found.notes if "14 tokens" not in note)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_is_measured_whole(run: Path) -> None:
    found = evaluate_adapter(run, EvaluationOptions(samples=6))
    assert found.held_out and found.training and found.gap and found.drift and found.copying
    assert (found.held_out.pictures, found.training.pictures, found.drift.pictures) == (4, 8, 6)
    assert found.gap.mean == pytest.approx(found.held_out.mean - found.training.mean)
    assert (found.adapter, found.step, len(found.bands)) == (FILE_NAME, 6, 2)
    assert found.drift_source == "pictures of other things that the base sampled"
    things = found.prompt_fidelity
    assert things is not None and (things.prompts, things.pictures, things.chance) == (6, 1, pytest.approx(1 / 6))
    assert things.difference.value == pytest.approx(things.adapter.value - things.base.value)
    assert len(found.copying.samples) == 6 and other_notes(found) == ()
    assert all((run / each.picture).is_file() for each in found.copying.samples)
    assert Image.open(run / COPYING).width > 6 * 128
    assert read_evaluation(run) == found


def test_it_says_the_same_as_the_run_itself(run: Path) -> None:
    at_the_end = read_evaluation(run)
    found = evaluate_adapter(run, EvaluationOptions(samples=0))
    assert at_the_end is not None and found.held_out is not None and at_the_end.held_out is not None
    assert found.held_out.adapter == pytest.approx(at_the_end.held_out.adapter, rel=1e-5)
    assert found.held_out.base == at_the_end.held_out.base
    assert (found.copying, found.drift, found.prompt_fidelity) == (None, None, None)


@pytest.mark.slow
def test_two_evaluations_write_equal_files(run: Path) -> None:
    evaluate_adapter(run, EvaluationOptions(samples=4))
    first = files_of(run)
    evaluate_adapter(run, EvaluationOptions(samples=4))
    assert files_of(run) == first
    # pictures of an earlier one are not taken for those of a smaller one
    assert evaluate_adapter(run, EvaluationOptions(samples=2)).drift is not None
    assert len(list((run / EVALUATED / "drift").glob("*.png"))) == 2


def test_a_file_has_a_folder_of_its_own(run: Path) -> None:
    before = (run / EVALUATION).read_bytes()
    found = evaluate_adapter(run / "best.safetensors", EvaluationOptions(samples=0))
    assert (run / EVALUATION).read_bytes() == before
    assert read_evaluation(run / "best-evaluation") == found and found.adapter == "best.safetensors"


def test_an_adapter_of_another_program_is_measured_on_what_is_named(
    alone: Path, new: Path, tiny_base: Path, tiny_pictures: Path, tmp_path: Path
) -> None:
    how = EvaluationOptions(base=str(tiny_base), data=(new,), training=(tiny_pictures,), trigger="sks", samples=4)
    found = evaluate_adapter(alone, how)
    assert found.held_out and found.held_out.pictures == 5 and found.held_out.draws == 8
    assert found.training and found.training.pictures == 8 and found.copying
    assert found.base == str(tiny_base) and found.step == 6
    assert other_notes(found) == (
        "the training pictures are not those that the adapter's file names, so it may have seen held-out ones",
    )
    assert read_evaluation(tmp_path / "adapter-evaluation") == found


def test_what_is_not_named_is_not_measured(alone: Path, new: Path, tiny_base: Path) -> None:
    found = evaluate_adapter(alone, EvaluationOptions(base=str(tiny_base), data=(new,), samples=2))
    assert found.held_out is not None
    assert (found.training, found.gap, found.copying) == (None, None, None)
    assert any("--training" in note for note in found.notes)
    with raises_code("evaluate.no_pictures") as caught:
        evaluate_adapter(alone)
    caught.match(r"no config\.yaml beside the adapter names pictures to measure on; .*--data FOLDER")


def test_the_trigger_is_in_the_captions_but_not_in_those_of_other_things(
    alone: Path, new: Path, tiny_base: Path, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    class Spy:
        def __getattr__(self, name: str) -> Any:
            return getattr(family, name)

        def encode_text(self, captions: Any) -> Any:
            said.extend(captions)
            return family.encode_text(captions)

    monkeypatch.setattr("veneer.verbs.evaluate.load_base", lambda base: Spy())
    evaluate_adapter(alone, EvaluationOptions(base=str(tiny_base), data=(new,), prior=new, trigger="sks", samples=0))
    assert {"thing 0, sks", "thing 0"} <= set(said)


def test_the_file_s_own_trigger_calls_it_unless_another_is_given(
    run: Path, alone: Path, new: Path, tiny_base: Path
) -> None:
    """As beside its run, where the configuration tells the trigger."""
    beside = evaluate_adapter(run, EvaluationOptions(data=(new,), samples=0))
    own, other = (
        evaluate_adapter(alone, EvaluationOptions(base=str(tiny_base), data=(new,), trigger=trigger, samples=0))
        for trigger in (None, "zwx")
    )
    assert beside.held_out and own.held_out and other.held_out and beside.held_out.draws != own.held_out.draws
    told = evaluate_adapter(alone, EvaluationOptions(base=str(tiny_base), data=(new,), trigger="sks", samples=0))
    assert own.held_out == told.held_out and own.held_out.base != other.held_out.base


def test_a_trigger_is_for_the_pictures_that_are_named(run: Path, new: Path) -> None:
    plain = evaluate_adapter(run, EvaluationOptions(data=(new,), samples=0))
    other = evaluate_adapter(run, EvaluationOptions(data=(new,), trigger="zwx", samples=0))
    assert plain.held_out and other.held_out and plain.held_out.base != other.held_out.base
    with raises_code("evaluate.trigger_without_data") as caught:
        evaluate_adapter(run, EvaluationOptions(trigger="zwx", samples=0))
    caught.match(r"--trigger: is for the captions of named pictures, and none are named")
    for path in new.glob("*.txt"):
        path.unlink()
    evaluate_adapter(run, EvaluationOptions(data=(new,), trigger="zwx", samples=0))  # words that stand for a caption


def test_another_base_than_the_file_tells_of_is_told(
    run: Path, alone: Path, new: Path, tiny_base: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(tiny_base, tmp_path / "other"))
    (weights,) = (other / "vae").glob("*.safetensors")
    save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, weights)
    doubt = f"{other} is not the base that the adapter's file names, so the adapter may do less here than on its own"
    assert doubt in evaluate_adapter(alone, EvaluationOptions(base=str(other), data=(new,), samples=0)).notes
    assert doubt in evaluate_adapter(run, EvaluationOptions(base=str(other), samples=0)).notes
    assert not any("base" in note for note in evaluate_adapter(run, EvaluationOptions(samples=0)).notes)


def test_what_the_run_held_out_of_its_folder_is_not_taken_for_trained_on(run: Path, tiny_pictures: Path) -> None:
    plain = evaluate_adapter(run, EvaluationOptions(samples=0))
    assert evaluate_adapter(run, EvaluationOptions(training=(tiny_pictures,), samples=0)) == plain


@pytest.mark.slow
def test_pictures_of_the_class_have_the_run_s_prompt_for_a_caption(
    run: Path, new: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in new.glob("*.txt"):
        path.unlink()
    with raises_code("data.no_caption") as caught:
        evaluate_adapter(run, EvaluationOptions(prior=new, samples=0))
    caught.match(r"5 of 5 pictures have no caption: .*; write a \.txt beside each$")
    found = []
    for prompt in ("a shape", "a cat"):
        config = load_config(run / CONFIG, [f"data.prior={{prompt: {prompt}, path: {new}}}"])
        write_config(config, run / CONFIG)
        own = evaluate_adapter(run, EvaluationOptions(samples=0)).drift
        named = evaluate_adapter(run, EvaluationOptions(prior=new, samples=0))
        assert own is not None and named.drift == own and named.drift_source == str(new)
        found.append(own)
    assert found[0] != found[1]


def test_pictures_to_measure_on_that_were_trained_on_are_left_out(run: Path, new: Path, tiny_pictures: Path) -> None:
    found = evaluate_adapter(run, EvaluationOptions(data=(new, tiny_pictures), samples=0))
    assert found.held_out is not None and found.held_out.pictures == 5 + 4
    assert any("8 pictures to measure on were trained on" in note for note in found.notes)


def test_a_folder_that_has_changed_since_is_told(run: Path, tiny_pictures: Path, tmp_path: Path) -> None:
    """With one more picture the share that is held out may be another, and hold what was trained on."""
    changed = Path(shutil.copytree(tiny_pictures, tmp_path / "pictures"))
    lines = (changed / "metadata.jsonl").read_text().splitlines(keepends=True)
    (changed / "metadata.jsonl").write_text("".join(lines[:-1]))
    text = (run / CONFIG).read_text().replace(str(tiny_pictures), str(changed))
    (run / CONFIG).write_text(text)
    assert any("are not those that" in note for note in evaluate_adapter(run, EvaluationOptions(samples=0)).notes)


def test_what_is_said_of_the_named_pictures_is_among_the_notes(run: Path, new: Path) -> None:
    """Captions that are not read change a score as they change a training."""
    (new / "captions.json").write_text("{}")
    found = evaluate_adapter(run, EvaluationOptions(data=(new,), samples=0))
    assert any(str(new / "captions.json") in note for note in found.notes)


def test_a_run_whose_pictures_are_gone_is_measured_on_others(run: Path, new: Path, tiny_pictures: Path) -> None:
    (run / CONFIG).write_text((run / CONFIG).read_text().replace(str(tiny_pictures), "gone"))
    with raises_code("data.no_such_folder"):
        evaluate_adapter(run, EvaluationOptions(samples=0))
    found = evaluate_adapter(run, EvaluationOptions(data=(new,), samples=0))
    assert found.held_out is not None and found.training is None
    assert f"the run's own pictures: {run / 'gone'}: no such folder" in found.notes


def test_models_of_the_users_judge(run: Path, tmp_path: Path) -> None:
    models = ScoreModelPaths(str(write_tiny_clip(tmp_path / "clip")), str(write_tiny_dino(tmp_path / "dino")))
    found = evaluate_adapter(run, EvaluationOptions(models=models, samples=0))
    assert [score.name for score in found.scores] == ["clip_image", "clip_text", "dino_image"]
    assert all(score.pictures == 4 and np.isfinite(score.high) for score in found.scores)
    assert other_notes(found) == ("FID and KID of 4 pictures would say nothing; 8 captions are the least",)


def test_models_that_are_not_there_are_missed_before_anything_long(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("veneer.verbs.evaluate.load_base", None)
    assert main(["evaluate", str(run), "--clip", str(run / "nothing")]) == 2
    line = capsys.readouterr().err
    assert "CLIP's weights are not there" in line and line.count("\n") == 1


@pytest.mark.parametrize("how", [EvaluationOptions(samples=0), EvaluationOptions(samples=2)])
def test_the_base_is_left_as_it_was(run: Path, family: Family, how: EvaluationOptions) -> None:
    before = {name: weight.clone() for name, weight in family.networks["unet"].state_dict().items()}
    evaluate_adapter(run, how)
    after = family.networks["unet"].state_dict()
    assert all(bool((before[name] == after[name]).all()) for name in before)


def test_lines_for_a_person_and_json_for_a_program(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), "--samples", "2"]) == 0
    lines = capsys.readouterr()
    assert lines.out.startswith("held-out loss ") and "memorisation gap " in lines.out
    assert "sampling 2 pictures" in lines.err and "measuring the denoising loss" in lines.err
    assert main(["evaluate", str(run), "--samples", "2", "--json"]) == 0
    told = capsys.readouterr().out
    assert told == (run / EVALUATION).read_text("utf-8")
    assert set(json.loads(told)) == set(Evaluation.__dataclass_fields__)


@pytest.mark.slow
def test_the_pages_commands_run(
    trained: Path, tiny_base: Path, tiny_pictures: Path, new: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Word for word, but for the base of the file without a run."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, "runs/pictures")
    shutil.copytree(tiny_pictures, "pictures")
    shutil.copytree(new, "others")
    shutil.copy(trained / FILE_NAME, "adapter.safetensors")
    page = (ROOT / "docs" / "evaluate.md").read_text("utf-8")
    (block,) = re.findall(r"^<!-- commands: tested -->\n```sh\n(.*?)^```", page, re.S | re.M)
    commands = [shlex.split(line) for line in block.splitlines()]
    assert len(commands) == 5
    for program, *words in commands:
        assert program == "veneer"
        base = ("--base", str(tiny_base), "--samples", "2") if words[1] == "adapter.safetensors" else ()
        assert main([*words, *base]) == 0, words
    assert Path("best", EVALUATION).is_file() and Path("adapter-evaluation", EVALUATION).is_file()


def test_other_things_are_named_by_no_caption() -> None:
    known = ["A turtle emoji", "a red fox, pencil style"]
    for base, count in (("bundled", 400), ("some/base", 30)):
        captions = drift_prompts(base, known, count)
        assert len(captions) == len(set(captions)) == count
        assert captions[:5] == drift_prompts(base, known, 5)
    assert "a turtle emoji" not in drift_prompts("bundled", known, 999)
    assert "a turtle emoji" in drift_prompts("bundled", [], 999)
    assert "an ant emoji" in drift_prompts("bundled", known, 999)
    assert "a horse" not in drift_prompts("some/base", ["This is a horse, running"], 99)


@pytest.mark.parametrize(
    ("known", "lacking"),
    [
        ("a photo of sks dog", {"a dog in a park"}),
        ("two dogs", {"a dog in a park"}),
        ("sks shoes on a beach", {"a pair of shoes"}),
        ("a Cat", {"two cats on a sofa"}),
        ("a hotdog and a carpet", set()),
    ],
)
def test_no_everyday_thing_shows_the_subject(known: str, lacking: set[str]) -> None:
    everything = drift_prompts("some/base", [], 999)
    assert set(everything) - set(drift_prompts("some/base", [known], 999)) == lacking


def test_captions_that_the_base_does_not_see_whole_are_noted(run: Path, new: Path, tmp_path: Path) -> None:
    """What is measured is what the base sees of them: the trigger, appended to a long caption, is not."""
    (new / "0.txt").write_text("x" * 20)
    evaluation = evaluate_adapter(run, EvaluationOptions(data=(new,), samples=0, out=tmp_path / "out"))
    (cut,) = [note for note in evaluation.notes if "longer than the 14 tokens" in note]
    (trigger,) = [note for note in evaluation.notes if "the trigger 'sks'" in note]
    assert f"{new / '0.txt'}"[:-4] in cut and "not read: '…xxxxxx, sks'" in cut
    assert "is not seen whole in 7 of 13 captions" in trigger
