"""Every adapter method but LoRA, which the other tests are of, through all that a user does with a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.errors import raises_code
from tests.running import hashes, killed, quick_config, record_events, without_rehearsals
from tests.training import tiny_config, tiny_run
from veneer.adapter.merge import combine
from veneer.adapter.registry import METHODS, TRAINED
from veneer.adapter.resize import cut, resize
from veneer.config.schema import RunConfig
from veneer.data.preflight import survey
from veneer.engine.adapter_bank import AdapterBank
from veneer.evaluate.heldout import score_adapter
from veneer.evaluate.results import read_evaluation
from veneer.family.protocol import Family
from veneer.family.registry import load_family
from veneer.plan.assessment import assess_config, plan_loaded
from veneer.plan.memory import STEP
from veneer.plan.parameters import plan_parameters
from veneer.plan.plan import Plan
from veneer.run.folder import BEST
from veneer.run.resume import Resume
from veneer.run.session import run_training
from veneer.train.events import Finished, StepDone
from veneer.verbs.merge import merge_adapters
from veneer.verbs.resize import resize_adapter
from veneer.verbs.sample import SampleOptions, sample_adapter
from veneer.verbs.verify import verify_adapter
from veneer.weights.file import FILE_NAME, AdapterFile, info, load, save

OTHERS = [name for name in TRAINED if name != "lora"]
both_networks: dict[str, Any] = {"text_encoders": {"text_encoder": {"dropout": 0.2}}, "dropout": 0.3, "alpha": 2.0}


@pytest.fixture(params=OTHERS, scope="module")
def method(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def run(method: str, tiny_base: Path, tiny_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A finished run with scores on the way; its folder is ``config.output.dir``."""
    config = method_config(method, tiny_base, tiny_pictures, tmp_path_factory.mktemp("run") / "run")
    with pytest.MonkeyPatch.context() as patch:
        without_rehearsals(patch)
        run_training(config)
    return config


def method_config(method: str, base: Path, pictures: Path, output: Path, **train: Any) -> RunConfig:
    adapter = {"method": method, "target_modules": ["to_q", "to_out.0", "conv1"], **both_networks}
    changes = {"adapter": adapter, "validation": {"every": 2}, "train": train, "data": {"held_out": 0.25}}
    return quick_config(base, pictures, output, **changes)


@pytest.mark.parametrize(
    "train",
    [
        {"ema_decay": 0.9, "memory": "leaner"},
        pytest.param({"quantization": "torchao_int8", "memory": "checkpoint"}, marks=pytest.mark.slow),
    ],
    ids=lambda train: " ".join(train),
)
def test_a_killed_run_goes_on_to_the_same_bits(
    method: str,
    tiny_base: Path,
    tiny_pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    train: dict[str, Any],
) -> None:
    without_rehearsals(monkeypatch)
    one, two = (method_config(method, tiny_base, tiny_pictures, tmp_path / name, **train) for name in ("one", "two"))
    run_training(one)
    killed(two, StepDone, 5)  # after a score, so the checkpoint has the best adapter in it
    record_events(two, Resume())
    assert hashes(two.output.dir) == hashes(one.output.dir)
    assert (two.output.dir / BEST).read_bytes() == (one.output.dir / BEST).read_bytes()


@pytest.mark.slow
def test_the_plan_is_what_was_written(run: RunConfig, tiny_base: Path) -> None:
    """Counted from the base's configurations alone, on the loaded base, and in the file."""
    sketched = assess_config(run, count_pictures=False, limit=None).plan
    loaded = plan_loaded(run, load_family(str(tiny_base)))
    file = info(run.output.dir)
    assert sketched.trainable == loaded.trainable == file.parameters
    assert {name: each.targets for name, each in sketched.networks.items()} == {
        name: each.targets for name, each in loaded.networks.items()
    }
    assert sketched.file_bytes == loaded.file_bytes
    steps = [_parts_of_step(plan) for plan in (sketched, loaded)]
    assert steps[0] == steps[1] and steps[0]["adapter"] >= 4 * file.parameters


def _parts_of_step(plan: Plan) -> dict[str, int]:
    """What a training step holds; of the autoencoder, which has left, the two see different remains."""
    assert plan.memory is not None
    parts = next(phase for phase in plan.memory.phases if phase.name == STEP).parts
    return {name: size for name, size in parts.items() if name != "weights: autoencoder"}


def test_the_file_has_the_planned_bytes(method: str, family: Family, tiny_pictures: Path, tmp_path: Path) -> None:
    adapter = {"method": method, "target_modules": ["conv1", "proj_in", "to_q"], **both_networks}
    config, metadata = tiny_config(tiny_pictures, adapter=adapter, train={"max_steps": 1}), {"trigger": "Ölgemälde"}
    planned = plan_parameters(config, family, metadata)
    last = tiny_run(config, family)[-1]
    assert isinstance(last, Finished)
    save(AdapterFile(last.weights, metadata), tmp_path / FILE_NAME)
    assert planned.file_bytes == (tmp_path / FILE_NAME).stat().st_size
    assert planned.trainable == info(tmp_path).parameters


def test_the_file_says_what_it_is_and_verifies(run: RunConfig, method: str) -> None:
    file = info(run.output.dir)
    assert (file.format, file.methods, file.needs_base) == ("diffusers", (METHODS[method].title,), False)
    assert not [check.subject for check in verify_adapter(run.output.dir) if check.differs or check.current is None]


def test_the_score_is_that_of_the_file(run: RunConfig, tiny_base: Path) -> None:
    family = load_family(str(tiny_base))
    evaluation = read_evaluation(run.output.dir)
    assert evaluation is not None and evaluation.held_out is not None
    score = score_adapter(run, family, survey(run.data), load(run.output.dir).weights)
    assert score.mean == pytest.approx(evaluation.held_out.mean, rel=1e-3, abs=1e-6) and score.mean != 0


def test_it_paints_and_is_merged_for_good(run: RunConfig, tiny_base: Path, tmp_path: Path) -> None:
    adapted, still = (
        sample_adapter(run.output.dir, ["a red cross"], tmp_path / name, options=SampleOptions(steps=2, scale=scale))
        for name, scale in (("one", 1.0), ("zero", 0.0))
    )
    merged = merge_adapters([(run.output.dir, 1.0)], tmp_path / "merged").path
    before, after = (load_family(str(base)).networks for base in (tiny_base, merged))
    changed = set()
    for prefix, network in before.items():
        other = after[prefix].state_dict()
        changed |= {f"{prefix}.{n}" for n, tensor in network.state_dict().items() if not torch.equal(tensor, other[n])}
    layers = {f"{path}.weight" for path in load(run.output.dir).weights}
    assert changed == layers
    assert adapted[0].read_bytes() != still[0].read_bytes()


def test_what_a_method_cannot_do_is_refused_in_one_line(run: RunConfig, tiny_base: Path, tmp_path: Path) -> None:
    weights = load(run.output.dir).weights
    if all(each.low_rank() is not None for each in weights.values()):
        pytest.skip("the method can do all of it")
    bank = AdapterBank(load_family(str(tiny_base)).networks)
    for code, act in {
        "adapter.cannot_combine": lambda: combine([(weights, 0.5), (weights, 0.5)]),
        "adapter.cannot_batch": lambda: bank.add("one", weights),
        "adapter.cannot_resize": lambda: resize(weights, 1),
    }.items():
        with raises_code(code) as error:
            act()
        assert "\n" not in str(error.value) and error.value.remedy
    with raises_code("adapter.cannot_resize"):
        cut(weights, 1)
    with raises_code("adapter.cannot_resize"):
        resize_adapter(run.output.dir, 1, tmp_path / "cut.safetensors")
