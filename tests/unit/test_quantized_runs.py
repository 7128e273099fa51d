"""Whole runs on a quantised base: they learn, they go on to the same bits, and the plan counts what they weigh."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.errors import raises_code
from tests.running import hashes, killed, quick_config, record_events, without_rehearsals
from tests.training import tiny_config, trainer_on
from veneer.config.fingerprint import training_settings
from veneer.data.preflight import survey
from veneer.engine.memory_levels import MEMORY_LEVELS
from veneer.engine.quantization import FORMATS
from veneer.family.cache import store_of
from veneer.family.loading import load_base
from veneer.family.registry import load_family
from veneer.plan.assessment import assess_config, plan_loaded
from veneer.plan.memory import STEP
from veneer.run.resume import Resume
from veneer.run.session import run_training
from veneer.train.events import StepDone
from veneer.train.loop import Trainer
from veneer.weights.file import FILE_NAME, load


@pytest.fixture(autouse=True, scope="module")
def runs_without_rehearsals() -> Iterator[None]:
    """What a plan counts of a quantised base is another test's matter."""
    with pytest.MonkeyPatch.context() as patch:
        without_rehearsals(patch)
        yield


@pytest.fixture(scope="module")
def plain(tiny_base: Path, tiny_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("plain") / "run"
    run_training(quick_config(tiny_base, tiny_pictures, output))
    return output


@pytest.mark.parametrize(
    "format", [pytest.param(name, marks=[] if name == "bnb_nf4" else [pytest.mark.slow]) for name in FORMATS]
)
def test_a_run_ends_with_another_adapter_in_the_same_file(
    format: str, plain: Path, tiny_base: Path, tiny_pictures: Path, tmp_path: Path
) -> None:
    config = quick_config(tiny_base, tiny_pictures, tmp_path / "run", train={"quantization": format})
    result = run_training(config)
    networks = load_family(str(tiny_base)).networks
    found, other = (load(folder / FILE_NAME, networks).weights for folder in (config.output.dir, plain))
    assert {name: each.shape for name, each in found.items()} == {name: each.shape for name, each in other.items()}
    assert hashes(config.output.dir)[0] != hashes(plain)[0]
    ups = [torch.cat([factors[name].up.flatten() for name in sorted(other)]) for factors in (found, other)]
    far = float((ups[0] - ups[1]).norm() / ups[1].norm())
    assert 0 < far < 0.8, "a base that is nearly the same teaches nearly the same"
    assert {each.up.dtype for each in found.values()} == {torch.float32}
    assert result.score is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    "memory", ["exact", *(pytest.param(name, marks=pytest.mark.slow) for name in ("leaner", "checkpoint"))]
)
def test_a_killed_run_goes_on_to_the_same_bits(
    memory: str, tiny_base: Path, tiny_pictures: Path, tmp_path: Path
) -> None:
    changes = {
        "train": {"quantization": "bnb_nf4", "memory": memory},
        "adapter": {"text_encoders": {"text_encoder": {}}, "dropout": 0.2},
    }
    one, two = (quick_config(tiny_base, tiny_pictures, tmp_path / name, **changes) for name in ("one", "two"))
    run_training(one)
    killed(two, StepDone, 3)
    record_events(two, Resume())
    assert hashes(two.output.dir) == hashes(one.output.dir)


def test_a_run_does_not_go_on_in_another_format(tiny_base: Path, tiny_pictures: Path, tmp_path: Path) -> None:
    config = quick_config(tiny_base, tiny_pictures, tmp_path / "run", train={"quantization": "bnb_nf4"})
    killed(config, StepDone, 3)
    other = quick_config(tiny_base, tiny_pictures, tmp_path / "run", train={"quantization": "torchao_int8"})
    with raises_code("resume.run_changed") as caught:
        run_training(other, resume=Resume())
    assert "train.quantization: bnb_nf4 -> torchao_int8" in str(caught.value)
    assert training_settings(config)["train.quantization"] == "bnb_nf4"


@pytest.mark.slow
def test_the_plan_counts_the_bits(tiny_base: Path, tiny_pictures: Path, tmp_path: Path) -> None:
    """From the configurations alone and on the loaded base, to the same bytes; parameters stay parameters."""
    totals, weights = set(), {}
    forms = {name: FORMATS[name] for name in ("bfloat16", "bnb_nf4", "torchao_int8")}
    for format in ("none", *forms):
        config = quick_config(tiny_base, tiny_pictures, tmp_path, train={"quantization": format})
        sketched, loaded = (
            assess_config(config, count_pictures=False, limit=None).plan,
            plan_loaded(config, load_base(str(tiny_base), format)),
        )
        assert sketched.memory and loaded.memory
        totals |= {sketched.total, loaded.total}
        found = [
            next(p for p in plan.memory.phases if p.name == STEP).parts["weights: unet"] for plan in (sketched, loaded)
        ]
        assert found[0] == found[1]
        weights[format] = found[0]
    assert len(totals) == 1
    modules = list(load_family(str(tiny_base)).networks["unet"].modules())
    for name, format in forms.items():
        kinds = (torch.nn.Linear, torch.nn.Conv2d) if format.packs_kernels else (torch.nn.Linear,)
        packed = [m.weight.flatten(1) for m in modules if type(m) in kinds]
        saved = sum(4 * weight.numel() - sum(format.part_sizes((len(weight), len(weight[0])))) for weight in packed)
        assert weights["none"] - weights[name] == saved


def test_a_trainer_wants_the_base_as_the_configuration_says(
    tiny_base: Path, tiny_pictures: Path, tmp_path: Path
) -> None:
    config = quick_config(tiny_base, tiny_pictures, tmp_path, train={"quantization": "bnb_nf4"})
    with raises_code("quantization.other_format"):
        Trainer(config, load_family(str(tiny_base)), survey(config.data))


def test_a_quantised_base_has_a_cache_of_its_own(tiny_base: Path, tiny_pictures: Path, tmp_path: Path) -> None:
    family = load_family(str(tiny_base))
    kept = [
        quick_config(tiny_base, tiny_pictures, tmp_path, data={"cache": str(tmp_path)}, train={"quantization": format})
        for format in ("none", "bnb_nf4")
    ]
    stores = [store_of(config, family) for config in kept]
    assert stores[0] is not None and stores[1] is not None
    assert stores[0]._base != stores[1]._base


@pytest.mark.parametrize("memory", MEMORY_LEVELS)
def test_in_the_precision_of_products_the_bits_are_those_of_a_full_base(
    memory: str, tiny_base: Path, tiny_pictures: Path
) -> None:
    """Autocast rounds each weight for each product; a base that was rounded before gives the same."""
    ends = []
    for format in ("none", "bfloat16"):
        train = {"memory": memory, "precision": "bfloat16", "quantization": format}
        with trainer_on(tiny_config(tiny_pictures, train=train), load_base(str(tiny_base), format)) as trainer:
            losses = [event.loss for event in trainer.run() if isinstance(event, StepDone)]
            ends.append((losses, trainer.state_dict()))
    assert ends[0][0] == ends[1][0]
    assert [name for name, tensor in ends[0][1].items() if not torch.equal(tensor, ends[1][1][name])] == []
