"""Every family of ``tests/families`` that edits, through all that a user does with a run on pairs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.errors import raises_code
from tests.families import FamilyCase, family_cases
from tests.running import hashes, killed, quick_config, record_events, without_rehearsals
from tests.training import trainer_on
from veneer.adapter.apply import apply_adapter
from veneer.config.schema import RunConfig
from veneer.data.manifest import Manifest
from veneer.data.preflight import Dataset, survey
from veneer.evaluate.heldout import score_adapter
from veneer.evaluate.results import read_evaluation
from veneer.family.protocol import Family
from veneer.family.registry import family_class, load_family
from veneer.plan.assessment import make_plan
from veneer.plan.memory import STEP
from veneer.run.events import BestAdapterSaved, SamplesSaved
from veneer.run.folder import SHEET
from veneer.run.resume import Resume
from veneer.run.session import run_training
from veneer.sample.files import read_note, read_pictures
from veneer.sample.generate import generate
from veneer.train.events import StepDone, Warned
from veneer.verbs.evaluate import evaluate_adapter
from veneer.verbs.evaluation_inputs import EvaluationOptions
from veneer.verbs.sample import SampleOptions, sample_adapter
from veneer.weights.file import FILE_NAME, info, load

EDITORS = {name: case for name, case in family_cases().items() if case.edits is not None}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=EDITORS)
def case(request: pytest.FixtureRequest) -> Iterator[FamilyCase]:
    case = EDITORS[request.param]
    with pytest.MonkeyPatch.context() as patch:
        assert case.edits is not None
        patch.setattr(family_class(case.pipeline), "trained_side", case.edits.side)
        without_rehearsals(patch)
        yield case


@pytest.fixture(scope="module")
def base(case: FamilyCase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return case.write(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def pairs(case: FamilyCase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures, each made from as many others as the base takes; wider than high."""
    folder, rows = tmp_path_factory.mktemp("pairs"), []
    count = max(case.edits.counts) if case.edits else 0
    for number in range(8):
        names = [f"after-{number}.png", *(f"before-{number}-{one}.png" for one in range(count))]
        for place, name in enumerate(names):
            pixels = np.random.default_rng([number, place]).integers(0, 256, (20, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name)
        rows.append({"file_name": names[0], "reference_file_names": names[1:], "text": f"make it {number % 3}"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return folder


def config_of(base: Path, pairs: Path, output: Path, **sections: Any) -> RunConfig:
    train = {"max_steps": 3, "learning_rate": 0.05, **sections.pop("train", {})}
    sample = {"prompts": [], "steps": 2, "guidance": 1.0, **sections.pop("sample", {})}
    data = {"held_out": 0.25, **sections.pop("data", {})}
    return quick_config(base, pairs, output, train=train, sample=sample, data=data, **sections)


@pytest.fixture(scope="module")
def run(base: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A finished run of three steps."""
    config = config_of(base, pairs, tmp_path_factory.mktemp("run") / "run")
    run_training(config)
    return config


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"data": {"flip": True, "crop": "random"}, "train": {"memory": "lean", "gradient_accumulation_steps": 2}},
        {"data": {"flip": True, "caption_dropout": 0.5}, "train": {"offload": False, "ema_decay": 0.9}},
        {"validation": {"every": 1}, "sample": {"every": 2}},
    ],
    ids=["plain", "random crop", "flip", "validation"],
)
def test_a_killed_run_goes_on_to_the_same_bits(
    base: Path, pairs: Path, tmp_path: Path, sections: dict[str, Any]
) -> None:
    one, two = (config_of(base, pairs, tmp_path / name, **dict(sections)) for name in ("one", "two"))
    events = record_events(one)
    killed(two, StepDone, 2)
    record_events(two, Resume())
    assert hashes(one.output.dir) == hashes(two.output.dir)
    if "validation" in sections:
        assert any(isinstance(event, BestAdapterSaved) for event in events)
        assert sum(isinstance(event, SamplesSaved) for event in events) == 2


def test_a_cache_on_disk_gives_the_same_bits(run: RunConfig, base: Path, pairs: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        other = config_of(base, pairs, tmp_path / name, data={"cache": str(tmp_path / "cache")})
        run_training(other)
        assert hashes(other.output.dir)[0] == hashes(run.output.dir)[0]


def test_the_reference_is_told_and_is_no_part_of_the_noise_or_the_loss(base: Path, pairs: Path, tmp_path: Path) -> None:
    """Latents, noise and times are of the picture alone; the references are the means of their own posteriors."""
    family = load_family(str(base))
    config = config_of(base, pairs, tmp_path, data={"resolution": family.resolution, "held_out": 0.0})
    with trainer_on(config, family) as trainer:
        (micro,) = trainer.batches.micro_batches(0)
        size = micro.geometries[0].target
        shown = trainer.batches.encoder.centered_references(micro.samples[0], size)
    latent = family.encode_image(torch.zeros(1, 3, *size)).mean
    assert micro.latents.shape == micro.noise.shape == (2, *latent.shape[1:])
    assert len(micro.references.references) == len(micro.samples[0].references)
    for batch, alone in zip(micro.references.references, shown.references, strict=True):
        assert torch.equal(batch[:1], alone)


def test_the_score_is_that_of_the_file(run: RunConfig, base: Path) -> None:
    family, evaluation = load_family(str(base)), read_evaluation(run.output.dir)
    assert evaluation is not None and evaluation.held_out is not None
    score = score_adapter(run, family, survey(run.data), load(run.output.dir, family.networks).weights)
    assert score.mean == pytest.approx(evaluation.held_out.mean, rel=1e-3, abs=1e-6) and score.mean != 0


def test_the_sheet_shows_what_was_edited(run: RunConfig, case: FamilyCase) -> None:
    note, rows = read_note(run.output.dir / SHEET), read_pictures(run.output.dir / SHEET)
    count = max(case.edits.counts) if case.edits else 0
    names = ["reference"] if count == 1 else [f"reference {number}" for number in range(1, count + 1)]
    assert note is not None and rows is not None
    assert note["labels"] == [*names, "base", "adapter", "real"] and len(rows) == len(names) + 3
    assert note["columns"] == [sample.captions[0] for sample in survey(run.data).held_out.samples]


def test_the_pipeline_reads_the_whole_file_and_paints_what_veneer_paints(
    case: FamilyCase, run: RunConfig, base: Path
) -> None:
    if not case.loads_adapters:
        pytest.skip("diffusers has no reader for adapters of this family")
    references = [Image.open(one.path) for one in survey(run.data).train.samples[0].references]

    def painted(family: Family) -> np.ndarray[Any, Any]:
        picture = generate(family, ["make it 1"], [3], steps=2, guidance=1.0, references=[references])[0]
        return np.asarray(picture, dtype=np.int32)

    family, theirs = load_family(str(base)), load_family(str(base))
    plain = painted(family)
    with apply_adapter(family.networks, load(run.output.dir, family.networks).weights):
        own = painted(family)
    pipeline: Any = theirs.pipeline()
    pipeline.load_lora_weights(run.output.dir, weight_name=FILE_NAME)
    assert np.abs(own - painted(theirs)).max() <= 2 < np.abs(own - plain).max()


def test_the_card_edits_a_picture_and_the_file_says_that_it_edits(run: RunConfig, case: FamilyCase) -> None:
    card, count = (run.output.dir / "README.md").read_text("utf-8"), max(case.edits.counts) if case.edits else 0
    assert "pipeline_tag: image-to-image" in card and card.count("load_image(") == count
    assert info(run.output.dir).metadata["veneer.references"] == str(count)


def test_an_adapter_paints_edits(case: FamilyCase, run: RunConfig, pairs: Path, tmp_path: Path) -> None:
    files = tuple(one.path for one in survey(run.data).train.samples[0].references)
    options = SampleOptions(steps=2, guidance=1.0, references=files)
    first, second = sample_adapter(run.output.dir, ["make it 1", "make it 2"], tmp_path, options=options)
    others = tuple(sorted(pairs.glob("before-7*")))
    with Image.open(first) as one, Image.open(sample(run, tmp_path / "other", others)) as other:
        assert one.tobytes() != other.tobytes()
    assert second.is_file()
    with raises_code("family.references"):
        sample(run, tmp_path, files * 9)
    if 0 in family_class(case.pipeline).reference_counts:  # type: ignore[attr-defined]
        with pytest.warns(match="learned to edit"):
            sample(run, tmp_path, ())
    with raises_code("data.changed_picture"):
        sample(run, tmp_path, (tmp_path / "none.png",))


def sample(run: RunConfig, out: Path, references: tuple[Path, ...]) -> Path:
    options = SampleOptions(steps=2, guidance=1.0, references=references)
    return sample_adapter(run.output.dir, ["make it 1"], out, options=options)[0]


def test_an_evaluation_paints_edits_too(run: RunConfig, base: Path, tmp_path: Path) -> None:
    evaluation = evaluate_adapter(run.output.dir, EvaluationOptions(samples=2, out=tmp_path))
    assert evaluation.held_out is not None and evaluation.copying is not None


def test_a_plan_counts_the_references(case: FamilyCase, run: RunConfig, base: Path) -> None:
    family, dataset = load_family(str(base)), survey(run.data)
    if 0 not in family.reference_counts:
        pytest.skip("it paints nothing without references")
    alone = Manifest(tuple(replace(sample, references=()) for sample in dataset.train.samples))
    own, without = (make_plan(run, family, pictures).memory for pictures in (dataset, Dataset(alone, dataset.held_out)))
    assert own is not None and own.caches is not None and without is not None and without.caches is not None
    assert own.caches > without.caches
    steps = [{phase.name: phase.tensors for phase in memory.phases}[STEP] for memory in (own, without)]
    assert steps[0] > steps[1]


@pytest.mark.parametrize(
    ("sample", "code"),
    [
        ({"prompts": ["make it 1"]}, "sample.no_references"),
        ({"prompts": ["make it 1"], "references": ["none.png"]}, "data.changed_picture"),
    ],
)
def test_prompts_without_their_references_are_refused_before_training(
    base: Path, pairs: Path, tmp_path: Path, sample: dict[str, Any], code: str
) -> None:
    with raises_code(code):
        run_training(config_of(base, pairs, tmp_path / "run", sample=sample))


def test_a_base_that_is_made_to_edit_says_what_it_does_without_references(
    case: FamilyCase, base: Path, tiny_pictures: Path, tmp_path: Path
) -> None:
    config = config_of(base, tiny_pictures, tmp_path / "run", train={"max_steps": 1})
    if 0 not in family_class(case.pipeline).reference_counts:  # type: ignore[attr-defined]
        with raises_code("family.references"):
            run_training(config)
        return
    warned = [event.code for event in record_events(config) if isinstance(event, Warned)]
    assert ("data.no_references" in warned) == bool(family_class(case.pipeline).usual_references)  # type: ignore[attr-defined]


def test_a_base_that_paints_from_text_alone_refuses_pairs(tiny_base: Path, pairs: Path, tmp_path: Path) -> None:
    with raises_code("family.references"):
        run_training(config_of(tiny_base, pairs, tmp_path / "run"))
