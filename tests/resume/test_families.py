"""Every family of ``tests/families`` through all that a user does with a run: a tiny base, three steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from tests.families import FamilyCase, family_cases
from tests.key_tables import read_key_table
from tests.running import hashes, killed, quick_config, record_events, without_rehearsals
from veneer.adapter.apply import apply_adapter
from veneer.config.schema import RunConfig
from veneer.data.preflight import survey
from veneer.engine.adapter_bank import AdapterBank
from veneer.engine.blocks import repeated_blocks
from veneer.evaluate.heldout import score_adapter
from veneer.evaluate.results import read_evaluation
from veneer.family.protocol import Family
from veneer.family.registry import FAMILIES, family_class, load_family
from veneer.run.resume import Resume
from veneer.run.session import run_training
from veneer.sample.generate import generate, generate_each
from veneer.train.events import StepDone, Warned
from veneer.verbs.merge import merge_adapters
from veneer.weights.file import FILE_NAME, load

CASES = {
    name: case
    for name, case in family_cases().items()
    if 0 in family_class(case.pipeline).reference_counts  # type: ignore[attr-defined]
}
"""Without those that paint nothing without a reference, whose runs are in test_pairs.py."""
QUICK = "flux"
"""The family whose runs are tested in the quick suite; the others' are slow tests."""
SIDE = 8
"""Side of the squares that the tiny bases paint, in latents."""
PROMPT = "a red cross"


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[] if name == QUICK else [pytest.mark.slow]) for name in CASES]
)
def case(request: pytest.FixtureRequest) -> Iterator[FamilyCase]:
    case = CASES[request.param]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(family_class(case.pipeline), "trained_side", SIDE)
        without_rehearsals(patch)
        yield case


@pytest.fixture(scope="module")
def base(case: FamilyCase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return case.write(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def run(base: Path, tiny_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A finished run of three steps."""
    config = config_of(base, tiny_pictures, tmp_path_factory.mktemp("run") / "run")
    run_training(config)
    return config


def config_of(base: Path, pictures: Path, output: Path, **sections: Any) -> RunConfig:
    train = {"max_steps": 3, "learning_rate": 0.05, **sections.pop("train", {})}
    sections.setdefault("sample", {"prompts": [PROMPT], "steps": 2, "guidance": 1.0})
    return quick_config(
        base, pictures, output, train=train, data={"held_out": 0.25, **sections.pop("data", {})}, **sections
    )


def test_a_killed_run_goes_on_to_the_same_bits(run: RunConfig, base: Path, tiny_pictures: Path, tmp_path: Path) -> None:
    other = config_of(base, tiny_pictures, tmp_path / "run")
    killed(other, StepDone, 2)
    record_events(other, Resume())
    assert hashes(other.output.dir) == hashes(run.output.dir)


@pytest.mark.slow
def test_blocks_that_wait_in_cpu_memory_change_no_bit(
    run: RunConfig, base: Path, tiny_pictures: Path, tmp_path: Path
) -> None:
    """Of training, with its score and its pictures on the way; it stops and goes on in the other way."""
    other = config_of(base, tiny_pictures, tmp_path / "run", sample={"every": 2, "prompts": [PROMPT], "steps": 2})
    family = load_family(str(base))
    count = len(repeated_blocks(family.networks[family.denoiser]))
    offloaded = other.model_copy(update={"train": other.train.model_copy(update={"offload_blocks": count})})
    killed(offloaded, StepDone, 2)
    record_events(other, Resume())
    assert hashes(other.output.dir) == hashes(run.output.dir)
    again = offloaded.in_folder(tmp_path / "again")
    events = record_events(again)
    assert hashes(again.output.dir) == hashes(run.output.dir)
    assert any(isinstance(event, Warned) and event.code == "train.offload_blocks_on_cpu" for event in events)


def test_the_score_is_that_of_the_file(run: RunConfig, base: Path) -> None:
    family, evaluation = load_family(str(base)), read_evaluation(run.output.dir)
    assert evaluation is not None and evaluation.held_out is not None
    score = score_adapter(run, family, survey(run.data), load(run.output.dir, family.networks).weights)
    assert score.mean == pytest.approx(evaluation.held_out.mean, rel=1e-3, abs=1e-6) and score.mean != 0


def test_the_layers_are_in_the_tables_of_other_programs_names(case: FamilyCase, run: RunConfig) -> None:
    known = {row.path for table in case.key_tables for row in read_key_table(table)}
    layers = {path.partition(".")[2] for path in load(run.output.dir).weights}
    assert not case.key_tables or layers <= known


def test_the_pipeline_reads_the_whole_file_and_paints_what_veneer_paints(
    case: FamilyCase, run: RunConfig, base: Path
) -> None:
    if not case.loads_adapters:
        pytest.skip("diffusers has no reader for adapters of this family")
    family = load_family(str(base))
    weights = load(run.output.dir, family.networks).weights
    with apply_adapter(family.networks, weights):
        own = painted(family)
    theirs = load_family(str(base))
    pipeline: Any = theirs.pipeline()
    pipeline.load_lora_weights(run.output.dir, weight_name=FILE_NAME)
    layers = [m for network in theirs.networks.values() for _, m in network.named_modules() if hasattr(m, "lora_A")]
    assert len(layers) == len(weights) and all(layer.lora_A for layer in layers)
    assert closeness(own, painted(theirs)) <= 2
    assert closeness(own, painted(load_family(str(base)))) > 0  # it changes the picture


def painted(family: Family) -> Image.Image:
    return generate(family, [PROMPT], [3], steps=2, guidance=1.0)[0]


def closeness(one: Image.Image, other: Image.Image) -> int:
    """Return the largest difference of a colour, of 255."""
    first, second = (np.asarray(image.convert("RGB"), dtype=np.int32) for image in (one, other))
    return int(np.abs(first - second).max())


@pytest.mark.slow
def test_adapters_in_a_batch_paint_what_each_paints_alone(run: RunConfig, base: Path) -> None:
    family = load_family(str(base))
    weights = load(run.output.dir, family.networks).weights
    bank = AdapterBank(family.networks)
    bank.add("one", weights)
    both = generate_each(family, bank, ["one", None], [PROMPT] * 2, [3, 3], steps=2, guidance=1.0)
    plain = painted(family)
    with apply_adapter(family.networks, weights):
        adapted = painted(family)
    assert closeness(both[0], adapted) <= 2 and closeness(both[1], plain) <= 2 and closeness(plain, adapted) > 0


@pytest.mark.slow
def test_guidance_is_the_pipeline_s_own(base: Path) -> None:
    family = load_family(str(base))
    assert generate(family, [PROMPT], [3], steps=2, guidance=4.0)[0].size == (family.resolution, family.resolution)


@pytest.mark.slow
def test_an_adapter_is_merged_into_the_base_for_good(run: RunConfig, base: Path, tmp_path: Path) -> None:
    merged = merge_adapters([(run.output.dir, 1.0)], tmp_path / "merged").path
    family = load_family(str(base))
    with apply_adapter(family.networks, load(run.output.dir, family.networks).weights):
        own = painted(family)
    assert closeness(own, painted(load_family(str(merged)))) <= 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "sections",
    [
        {"train": {"ema_decay": 0.9, "gradient_accumulation_steps": 2, "memory": "lean"}},
        {"train": {"quantization": "torchao_int8", "memory": "checkpoint", "precision": "bfloat16"}},
        {"train": {"quantization": "bnb_nf4"}, "data": {"prior": {"prompt": "a cross", "count": 2}}},
        {"train": {"memory": "leaner"}, "data": {"caption_dropout": 0.5, "flip": True, "crop": "random"}},
        {"validation": {"every": 1}, "adapter": {"method": "dora"}},
    ],
    ids=["ema", "int8", "nf4 prior", "dropout", "dora"],
)
def test_other_settings_resume_to_the_same_bits(
    case: FamilyCase, base: Path, tiny_pictures: Path, tmp_path: Path, sections: dict[str, Any]
) -> None:
    one, two = (config_of(base, tiny_pictures, tmp_path / name, **dict(sections)) for name in ("one", "two"))
    run_training(one)
    killed(two, StepDone, 2)
    record_events(two, Resume())
    assert hashes(one.output.dir) == hashes(two.output.dir)


def test_the_pipelines_are_diffusers_own() -> None:
    assert all(hasattr(diffusers, name) for name in FAMILIES)
    assert torch.get_default_dtype() == torch.float32
