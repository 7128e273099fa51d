"""An SDXL base does what a base does: it loads, trains, resumes, is planned, scored, painted with and merged into."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from tests.bases import write_single_file, write_tiny_sdxl
from tests.running import hashes, killed, quick_config, use_base, without_rehearsals
from tests.training import gradients_of, tiny_config
from veneer.config.load import resolve
from veneer.config.schema import RunConfig
from veneer.errors import UserError
from veneer.family.protocol import Family
from veneer.family.registry import load_family
from veneer.family.unread import Unread
from veneer.plan.abstract import abstract_base
from veneer.plan.parameters import plan_parameters
from veneer.plan.pictures import PictureCounts
from veneer.plan.rehearsal import RunInputs, rehearse
from veneer.run.resume import Resume
from veneer.run.session import run_training
from veneer.train.events import StepDone
from veneer.verbs.evaluate import evaluate_adapter
from veneer.verbs.evaluation_inputs import EvaluationOptions
from veneer.verbs.merge import merge_adapters
from veneer.verbs.sample import SampleOptions, sample_adapter
from veneer.weights.file import FILE_NAME, load

BOTH: dict[str, Any] = {
    "text_encoders": {"text_encoder": {"rank": 2, "alpha": 1.0}, "text_encoder_2": {"rank": 3, "dropout": 0.2}},
    "dropout": 0.3,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_sdxl(tmp_path_factory.mktemp("base") / "xl")


@pytest.fixture(scope="module")
def family(base: Path) -> Family:
    return load_family(str(base))


def equal(one: Any, other: Any) -> bool:
    own, others = one.state_dict(), other.state_dict()
    return own.keys() == others.keys() and all(torch.equal(own[name], others[name]) for name in own)


def test_a_folder_is_known_by_its_pipeline(family: Family) -> None:
    assert family.name == "sdxl" and family.text_encoders == ("text_encoder", "text_encoder_2")
    assert (family.resolution, family.multiple, family.text_length) == (16, 2, 14)
    long = "a cat " * 40
    assert family.unread(["a cat", long]) == {long: Unread(80, 14, "a cat " * 7, "a cat " * 33)}


@pytest.mark.parametrize("marks", [(), ("v_pred",), ("v_pred", "ztsnr")], ids=["epsilon", "v", "v to zero SNR"])
def test_a_single_file_is_known_by_its_weights_and_says_what_it_predicts(
    base: Path, family: Family, tmp_path: Path, marks: tuple[str, ...]
) -> None:
    """The configs come from the folder that it lies in, which says epsilon."""
    for path in base.iterdir():
        (tmp_path / path.name).symlink_to(path)
    single = load_family(str(write_single_file(base, tmp_path / "base.safetensors", marks)))
    assert single.name == "sdxl"
    assert all(equal(network, single.networks[name]) for name, network in family.networks.items())
    pipeline: Any = single.pipeline()
    assert equal(pipeline.vae, cast(Any, family.pipeline()).vae)
    assert single.noise.prediction == ("v_prediction" if "v_pred" in marks else "epsilon")
    assert (float(single.noise.snr(torch.ones(1).double())) == 0) == ("ztsnr" in marks)
    assert pipeline.scheduler.config.prediction_type == single.noise.prediction  # painted as it is trained
    assert (single.settings == family.settings) == (not marks)


def test_a_refiner_is_refused(base: Path, tmp_path: Path) -> None:
    """It takes other conditions, from one text encoder."""
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionXLImg2ImgPipeline"}')
    with pytest.raises(UserError) as caught:
        load_family(str(tmp_path))
    assert caught.value.code == "base.unknown_family"


FAST = "both text encoders"
VARIANTS: dict[str, dict[str, Any]] = {
    "texts cached on disk": {"data": {"cache": "cache"}},
    "both text encoders": {"adapter": BOTH, "data": {"crop": "random", "flip": True, "caption_dropout": 0.3}},
    "bfloat16 and recomputing": {"adapter": BOTH, "train": {"precision": "bfloat16", "memory": "checkpoint"}},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant",
    [pytest.param(VARIANTS[name], id=name, marks=[] if name == FAST else pytest.mark.slow) for name in VARIANTS],
)
def test_a_killed_run_goes_on_to_the_same_bits(
    base: Path,
    family: Family,
    tiny_pictures: Path,
    tmp_path: Path,
    variant: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    use_base(monkeypatch, family)
    train = {"max_steps": 4, "checkpoint_every": 2, **variant.get("train", {})}
    one, two = (
        quick_config(base, tiny_pictures, tmp_path / name, **{**variant, "train": train}) for name in ("one", "two")
    )
    run_training(one)
    killed(two, StepDone, 3)
    run_training(two, resume=Resume())
    assert hashes(two.output.dir) == hashes(one.output.dir)


def test_a_layer_whose_output_is_not_read_has_a_gradient_of_zero(family: Family, tiny_pictures: Path) -> None:
    """The first text encoder's last one; so that every parameter has a state in the optimiser."""
    gradients = gradients_of(tiny_config(tiny_pictures, adapter=BOTH), family)
    unread = {name for name in gradients if name.startswith("text_encoder.") and ".layers.2." in name}
    assert len(unread) == 2 * 4
    assert {name for name, gradient in gradients.items() if not gradient.any()} == unread


@pytest.mark.parametrize("memory", ["lean", "leaner", "checkpoint"])
def test_memory_levels_give_the_same_gradients(family: Family, tiny_pictures: Path, memory: str) -> None:
    """Hidden states in the middle of a text encoder are among what a step reads."""
    exact = gradients_of(tiny_config(tiny_pictures, adapter=BOTH), family)
    other = gradients_of(tiny_config(tiny_pictures, adapter=BOTH, train={"memory": memory}), family)
    assert exact.keys() == other.keys() and {name.partition(".")[0] for name in exact} == set(family.networks)
    for name, gradient in exact.items():
        torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=1e-6 * max(1, float(gradient.abs().max())))


@pytest.fixture(scope="module")
def run(base: Path, tiny_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A finished run with adapters of all three networks."""
    place = tmp_path_factory.mktemp("runs") / "run"
    sections: dict[str, Any] = {"adapter": BOTH, "data": {"held_out": 0.25}, "train": {"max_steps": 4}}
    config = quick_config(base, tiny_pictures, place, **sections)
    with pytest.MonkeyPatch.context() as patch:
        without_rehearsals(patch)
        run_training(config)
    return config


def test_the_file_has_all_that_was_planned(run: RunConfig, family: Family) -> None:
    weights = load(run.output.dir / FILE_NAME, family.networks).weights
    planned = plan_parameters(run, family)
    assert sum(layer.parameter_count for layer in weights.values()) == planned.trainable
    assert {path.partition(".")[0] for path in weights} == set(family.networks)
    (second,) = {layer.hyperparameters["rank"] for path, layer in weights.items() if path.startswith("text_encoder_2.")}
    assert second == 3


def test_it_is_scored(run: RunConfig, base: Path) -> None:
    found = evaluate_adapter(run.output.dir, EvaluationOptions(samples=0))
    assert found.held_out is not None and np.isfinite(found.held_out.mean)


def test_it_is_painted_with_and_merged_to_the_same_picture(run: RunConfig, tmp_path: Path) -> None:
    options = SampleOptions(steps=2)
    (own,) = sample_adapter(run.output.dir, ["a red cross"], tmp_path / "own", options=options)
    merged = merge_adapters([(run.output.dir, 1.0)], tmp_path / "merged").path
    family = load_family(str(merged))
    assert family.name == "sdxl"
    from veneer.sample.generate import generate

    (picture,) = generate(family, ["a red cross"], [0], steps=2)
    np.testing.assert_allclose(np.asarray(picture, int), np.asarray(Image.open(own), int), atol=1)


def test_an_unknown_text_encoder_is_refused_with_those_that_there_are(family: Family, tiny_pictures: Path) -> None:
    config = tiny_config(tiny_pictures, adapter={"text_encoders": {"text_encoder_3": {}}})
    with pytest.raises(UserError) as caught:
        plan_parameters(config, family)
    assert caught.value.code == "adapter.unknown_text_encoder"
    assert "it has text_encoder, text_encoder_2" in str(caught.value)


@pytest.mark.slow
def test_it_is_planned_from_its_configurations_as_it_is_when_loaded(run: RunConfig, family: Family) -> None:
    """Without a weight being read, to the byte."""
    config = resolve(run, family)
    inputs = RunInputs(torch.device("cpu"), PictureCounts(shown=12, distinct=12, captions=12))
    abstract = rehearse(config, lambda tracer: abstract_base(config, tracer), inputs)
    loaded = rehearse(config, lambda tracer: tracer.without_data(family), inputs)
    assert abstract.networks == loaded.networks and abstract.networks.keys() == family.networks.keys()
    assert abstract.memory is not None and loaded.memory is not None and len(abstract.memory.phases) > 3
    phases = [[(phase.name, phase.tensors) for phase in memory.phases] for memory in (abstract.memory, loaded.memory)]
    assert phases[0] == phases[1]
    assert abstract.file_bytes == loaded.file_bytes


def test_painting_leaves_the_base_as_it_was(family: Family) -> None:
    """A scheduler notes its steps as it is painted with; each pipeline has one of its own."""
    first, second = (cast(Any, family.pipeline()).scheduler for _ in range(2))
    first.set_timesteps(3)
    assert len(first.timesteps) == 3 != len(second.timesteps)
    assert len(cast(Any, family.pipeline()).scheduler.timesteps) == len(second.timesteps)
