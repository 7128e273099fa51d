"""Whole runs with a training adapter: resumed to the same bits, planned, scored, verified."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.errors import raises_code
from tests.running import hashes, killed, quick_config, record_events, without_rehearsals
from tests.training import bits_of
from veneer.adapter.inject import inject
from veneer.adapter.lora import LoraFactors, LoraSpec
from veneer.cli.main import main
from veneer.config.schema import RunConfig
from veneer.data.preflight import survey
from veneer.engine.quantized import QuantizedLayer
from veneer.evaluate.results import Evaluated, Score
from veneer.family.loading import load_base
from veneer.family.registry import load_family
from veneer.plan.assessment import assess_config, plan_loaded
from veneer.plan.memory import STEP
from veneer.run.folder import CARD
from veneer.run.resume import Resume
from veneer.run.session import run_training
from veneer.train.events import SampleDue, StepDone
from veneer.train.loop import Trainer
from veneer.verbs.evaluate import evaluate_adapter
from veneer.weights.file import FILE_NAME, AdapterFile, info, load, save
from veneer.weights.training_adapter import TrainingAdapter

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def runs_without_rehearsals() -> Iterator[None]:
    """What a plan counts of it is one test's matter, which asks for it itself."""
    with pytest.MonkeyPatch.context() as patch:
        without_rehearsals(patch)
        yield


@pytest.fixture(scope="module")
def file(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("adapter") / "undistil.safetensors"
    networks = load_family(str(tiny_base)).networks
    injection = inject(networks, {"unet": LoraSpec(2, 2.0, ("to_q", "to_v", "to_out.0"))}, 0)
    generator = torch.Generator().manual_seed(1)
    weights = {
        name: LoraFactors(one.down, 0.1 * torch.randn(one.up.shape, generator=generator), 2.0)
        for name, one in injection.weights().items()
        if isinstance(one, LoraFactors)
    }
    injection.eject()
    save(AdapterFile(weights, {}), path)
    return path


def config_of(base: Path, pictures: Path, output: Path, file: Path | None, **sections: Any) -> RunConfig:
    adapter = {} if file is None else {"training_adapter": str(file)}
    return quick_config(base, pictures, output, **{"adapter": adapter, **sections})


@pytest.mark.parametrize("quantization", ["none", "torchao_int8"])
def test_a_killed_run_goes_on_to_the_same_bits(
    quantization: str, tiny_base: Path, tiny_pictures: Path, tmp_path: Path, file: Path
) -> None:
    sections: dict[str, Any] = {"train": {"quantization": quantization, "memory": "lean"}, "sample": {"every": 2}}
    one, two = (config_of(tiny_base, tiny_pictures, tmp_path / name, file, **sections) for name in ("one", "two"))
    run_training(one)
    killed(two, StepDone, 3)
    moved = shutil.copy(file, tmp_path / "moved.safetensors")
    record_events(config_of(tiny_base, tiny_pictures, two.output.dir, moved, **sections), Resume())
    assert hashes(two.output.dir) == hashes(one.output.dir)
    plain = config_of(tiny_base, tiny_pictures, tmp_path / "plain", None, **sections)
    run_training(plain)
    assert hashes(plain.output.dir)[0] != hashes(one.output.dir)[0]
    layers = [set(load(config.output.dir, load_family(str(tiny_base)).networks).weights) for config in (one, plain)]
    assert layers[0] == layers[1]


def test_a_run_does_not_go_on_with_another_one(
    tiny_base: Path, tiny_pictures: Path, tmp_path: Path, file: Path
) -> None:
    killed(config_of(tiny_base, tiny_pictures, tmp_path / "run", file), StepDone, 2)
    weights = load(file).weights
    save(AdapterFile(dict(list(weights.items())[1:]), {}), tmp_path / "other.safetensors")
    for other in (tmp_path / "other.safetensors", None):
        with raises_code("resume.run_changed", "adapter.training_adapter: "):
            run_training(config_of(tiny_base, tiny_pictures, tmp_path / "run", other), resume=Resume())


@pytest.mark.parametrize("quantization", ["torchao_int8", "bnb_nf4"])
def test_a_quantised_base_has_it_beside_its_layers(
    quantization: Any, tiny_base: Path, tiny_pictures: Path, tmp_path: Path, file: Path
) -> None:
    """With it the quantised base predicts nearly what the merged one does; while samples are due it is the base."""
    sections: dict[str, Any] = {"sample": {"every": 1}, "train": {"quantization": quantization}}
    config = config_of(tiny_base, tiny_pictures, tmp_path / "run", file, **sections)
    full, quantised = load_family(str(tiny_base)), load_base(str(tiny_base), quantization)
    assert any(isinstance(module, QuantizedLayer) for module in quantised.networks["unet"].modules())
    noisy, t_B = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(2)), torch.tensor([0.3, 0.8])
    text = full.encode_text(["a red cross", "a circle"])

    def predict(family: Any) -> torch.Tensor:
        with torch.no_grad():
            answer: torch.Tensor = family.predict(noisy, t_B.double(), text).float()
        return answer

    plain, coarse = predict(full), predict(quantised)
    adapters = [TrainingAdapter(config.adapter, base.networks, "unet") for base in (full, quantised)]
    with adapters[0].applied(), adapters[1].applied():
        change, coarse_change = predict(full) - plain, predict(quantised) - coarse
    assert float((coarse_change - change).norm() / change.norm()) < 0.25
    assert torch.equal(predict(quantised), coarse) and torch.equal(predict(full), plain)
    trainer = Trainer(config, quantised, survey(config.data))
    seen = []
    for event in trainer.run():
        if isinstance(event, SampleDue) and event.step == 0:
            seen.append(torch.equal(predict(quantised), coarse))
            trainer.stop()
    trainer.close()
    assert seen == [True]


def test_it_is_in_the_scores_and_not_in_the_pictures(
    tiny_base: Path, tiny_pictures: Path, tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sections: dict[str, Any] = {"validation": {"every": 3, "draws": 2}, "sample": {"every": 3}}
    config = config_of(tiny_base, tiny_pictures, tmp_path / "run", file, **sections)
    events = record_events(config)
    plain = config_of(tiny_base, tiny_pictures, tmp_path / "plain", None, **sections)
    run_training(plain)
    sheets = [config.output.dir / "samples" / "step-000000000.png" for config in (config, plain)]
    assert sheets[0].read_bytes() == sheets[1].read_bytes()
    last = [event for event in events if isinstance(event, Evaluated)][-1]
    (score,) = [event for event in events if isinstance(event, Score)]
    assert score.mean == pytest.approx(last.held_out.mean, rel=1e-4)
    evaluation = evaluate_adapter(config.output.dir)
    assert evaluation.held_out == score
    card = (config.output.dir / CARD).read_text("utf-8")
    assert file.name in card and str(file.parent) not in card
    kept = info(config.output.dir / FILE_NAME).metadata["veneer.training_adapter.sha256"]
    assert len(kept) == 64
    assert main(["adapter", "verify", str(config.output.dir)]) == 0
    assert "training adapter" in capsys.readouterr().out
    moved = file.rename(tmp_path / "gone.safetensors")
    try:
        without = evaluate_adapter(config.output.dir)
    finally:
        moved.rename(file)
    assert without.held_out != score and any("is not there" in note for note in without.notes)


def test_a_plan_counts_it(tiny_base: Path, tiny_pictures: Path, tmp_path: Path, file: Path) -> None:
    with_it, plain = (config_of(tiny_base, tiny_pictures, tmp_path / "run", path) for path in (file, None))
    sketched, bare = (assess_config(one, count_pictures=False, limit=None).plan for one in (with_it, plain))
    assert f"training adapter: {file.name}, in the base while it is trained and scored only" in str(sketched)
    assert sketched.trainable == bare.trainable and sketched.file_bytes == bare.file_bytes
    family = load_family(str(tiny_base))
    before = {name: tensor.clone() for name, tensor in bits_of(family.networks).items()}
    loaded = plan_loaded(with_it, family)
    assert all(torch.equal(tensor, before[name]) for name, tensor in bits_of(family.networks).items())
    assert sketched.memory and loaded.memory and bare.memory
    tensors = [next(phase.tensors for phase in plan.memory.phases if phase.name == STEP) for plan in (sketched, bare)]
    assert tensors[0] > tensors[1]


def test_a_distilled_base_is_warned_of_unless_one_is_named(
    tiny_base: Path, tiny_pictures: Path, tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turbo = shutil.copytree(tiny_base, tmp_path / "tiny-turbo")
    codes = []
    for path in (None, file):
        config = config_of(turbo, tiny_pictures, tmp_path / f"run-{path is None}", path, train={"max_steps": 1})
        codes.append([getattr(event, "code", "") for event in record_events(config)])
    assert "family.distilled_base" in codes[0] and "family.distilled_base" not in codes[1]
    assert main(["plan", "--base", str(turbo)]) == 0
    assert "warning: by its name, tiny-turbo" in capsys.readouterr().out
