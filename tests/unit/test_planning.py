"""The plan of a run against the run itself: what it counts is what there is, whichever way it is asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch

import veneer
from tests.training import bits_of, tiny_config
from tests.unit.test_plan_ledger import Watch
from veneer.config.load import build_config
from veneer.config.schema import RunConfig
from veneer.data.preflight import survey
from veneer.errors import UserError
from veneer.family import published
from veneer.family.loading import load_base
from veneer.family.protocol import Family
from veneer.family.registry import load_family
from veneer.plan import rehearsal, sketch
from veneer.plan.account import Plan
from veneer.plan.machine import free_memory, process_memory
from veneer.plan.memory import ENCODING, LOADING, STEP, Memory, Phase
from veneer.plan.rehearsal import Pictures, foresee, look_ahead, plan_run
from veneer.plan.tracer import MemoryTracer
from veneer.run.folder import CHECKPOINTS, PLAN
from veneer.run.session import run_training
from veneer.train.loop import Trainer
from veneer.train.step import train_step
from veneer.weights.checkpoint import checkpoints_in

MB = 10**6


@pytest.fixture(scope="module")
def config(tiny_base: Path, tiny_pictures: Path) -> RunConfig:
    return tiny_config(
        tiny_pictures, base=str(tiny_base), train={"memory": "exact", "offload": False}, data={"held_out": 0.0}
    )


@pytest.fixture(scope="module")
def plan(config: RunConfig, family: Family) -> Plan:
    """As the public door gives it, of a base that is loaded."""
    return veneer.make_plan(config, family, survey(config.data))


def memory_of(plan: Plan) -> Memory:
    assert plan.memory is not None
    return plan.memory


def tensors_of(plan: Plan) -> dict[str, int]:
    return {phase.name: phase.tensors for phase in memory_of(plan).phases}


def changed(config: RunConfig, section: str, **values: Any) -> RunConfig:
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


def measured(config: RunConfig) -> int:
    """The most bytes that the storages of a real second step hold, each of them watched."""
    family = load_family(config.base)
    with closing(Trainer(config, family, survey(config.data))) as trainer:
        train_step(trainer.context, 0, trainer.feed.micros(0))
        watch = Watch()
        micros = trainer.feed.micros(1)
        for held in _held(trainer, family, micros):
            watch.see(held)
        with watch:
            train_step(trainer.context, 1, micros)
    return watch.peak


def _held(trainer: Trainer, family: Any, micros: list[Any]) -> Iterator[torch.Tensor]:
    for network in (*family.networks.values(), family.pipeline().vae):
        yield from (*network.parameters(), *network.buffers())
    for state in trainer.context.optimizer.state.values():
        yield from state.values()
    for micro in micros:
        yield from (made for made in vars(micro).values() if isinstance(made, torch.Tensor))


def test_the_planned_tensors_of_a_step_are_those_of_the_step(config: RunConfig, plan: Plan) -> None:
    caches = memory_of(plan).caches
    assert caches is not None
    assert tensors_of(plan)[STEP] - caches == pytest.approx(measured(config), abs=60_000)


def test_recomputed_blocks_show_in_the_plan(config: RunConfig, family: Family, plan: Plan) -> None:
    config = changed(config, "train", memory="checkpoint", batch=4)
    recomputed = plan_run(config, family)
    assert tensors_of(recomputed)[STEP] == pytest.approx(measured(config), abs=60_000)
    assert tensors_of(recomputed)[LOADING] == tensors_of(plan)[LOADING]


def test_a_plan_from_configurations_is_that_of_the_loaded_base(config: RunConfig, plan: Plan) -> None:
    ahead = look_ahead(config, known=True, limit=None)
    assert ahead.fits and ahead.verdict is not None and ahead.remedies == ()
    assert tensors_of(ahead.plan) == tensors_of(plan)
    assert (ahead.plan.networks, ahead.plan.course, ahead.plan.disk) == (plan.networks, plan.course, plan.disk)
    grown = [[phase.peak - memory_of(p).before for phase in memory_of(p).phases] for p in (ahead.plan, plan)]
    assert grown[0] == pytest.approx(grown[1], rel=1e-2)


def test_planning_leaves_the_base_as_it_was(config: RunConfig, family: Family, plan: Plan, tiny_base: Path) -> None:
    fresh, used = bits_of(load_family(str(tiny_base)).networks), bits_of(family.networks)
    assert fresh.keys() == used.keys() and all(torch.equal(fresh[name], used[name]) for name in fresh)


def test_the_public_door_gives_memory_disk_and_course(plan: Plan) -> None:
    memory = memory_of(plan)
    assert memory.before > 100 * MB  # PyTorch alone
    names = [phase.name for phase in memory.phases]
    assert names == [LOADING, ENCODING, STEP, "painting 8 pictures", "scoring"]
    assert all(phase.process is not None and phase.process > memory.before for phase in memory.phases)
    assert plan.disk is not None and plan.course is not None
    assert (plan.course.pictures, plan.course.shown) == (12, 6)
    assert f"all tensors of a {STEP}" in str(plan) and "disk: " in str(plan)


def test_the_best_adapter_takes_room_in_a_file_and_in_each_checkpoint(
    config: RunConfig, plan: Plan, tmp_path: Path
) -> None:
    scored = changed(changed(config, "validation", every=2, pictures=2, draws=1), "data", held_out=0.25)
    scored = changed(scored, "train", checkpoint_every=2).in_folder(tmp_path / "run")
    run_training(scored)
    (planned, before) = (json.loads((tmp_path / "run" / PLAN).read_text())["disk"], plan.disk)
    real = sum(path.stat().st_size for path in checkpoints_in(tmp_path / "run" / CHECKPOINTS)[-1].iterdir())
    assert (
        before and planned["checkpoint"] > before.checkpoint and planned["checkpoint"] == pytest.approx(real, rel=0.15)
    )


def test_parts_that_rest_come_back_when_the_steps_are_done(
    config: RunConfig, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = list[str]()
    phase, close = MemoryTracer.phase, Trainer.close
    monkeypatch.setattr(MemoryTracer, "phase", lambda self, name: (told.append(name), phase(self, name)))
    monkeypatch.setattr(Trainer, "close", lambda self: (told.append("closed"), close(self)))
    resting = config.model_copy(update={"train": config.train.model_copy(update={"offload": True})})
    phases = memory_of(plan_run(resting, family)).phases
    assert told.index("closed") == told.index(STEP) + 2  # in the phase after
    after = phases[[each.name for each in phases].index(STEP) + 1]
    assert "weights that come back" in after.parts


def test_parts_of_the_step_are_named(plan: Plan, family: Family) -> None:
    parts = memory_of(plan).step.parts
    assert sum(parts.values()) == memory_of(plan).step.tensors
    weights = {name.removeprefix("weights: ") for name in parts if name.startswith("weights: ")}
    assert weights == {"unet", "text_encoder", "autoencoder"}
    assert parts["weights: unet"] == sum(p.nbytes for p in family.networks["unet"].parameters())
    assert parts["adapter"] == 4 * plan.trainable
    assert parts["optimiser state"] >= 2 * parts["adapter"]  # two moments, and a count of steps for each
    assert {"activations: convolutions", "activations: norms", "batch"} <= parts.keys()


@pytest.mark.parametrize(
    ("data", "pictures"),
    [({}, Pictures(9, 12, 12)), ({"caption_dropout": 0.1}, Pictures(9, 12, 13))],
    ids=["plain", "caption dropout"],
)
def test_pictures_are_listed_as_they_are_surveyed(
    tiny_pictures: Path, data: dict[str, Any], pictures: Pictures
) -> None:
    config = tiny_config(tiny_pictures, data=data)
    assert Pictures.listed(config) == Pictures.of(survey(config.data), config) == pictures


def test_the_class_has_pictures_too(tiny_pictures: Path) -> None:
    config = tiny_config(tiny_pictures, data={"prior": {"prompt": "a shape", "count": 5}})
    assert Pictures.listed(config) == Pictures.of(survey(config.data), config) == Pictures(9, 17, 13)


def test_caches_are_counted(config: RunConfig, family: Family, plan: Plan) -> None:
    """Mean and deviation of 4 x 8 x 8 latents, 16 tokens of 32 numbers; mirrored pictures have latents of their own."""
    latent, caption = 4 * 4 * 8 * 8, 4 * 16 * 32
    assert memory_of(plan).caches == 12 * 2 * latent + 12 * caption
    flipped = changed(config, "data", flip=True)
    assert memory_of(plan_run(flipped, family, survey(flipped.data))).caches == 2 * 12 * 2 * latent + 12 * caption


def _invented(config: RunConfig, *_: Any, **__: Any) -> Plan:
    size = 10 * MB * config.train.batch_size
    return Plan(MappingProxyType({}), 0, Memory("cpu", (Phase(STEP, size, {"all": size}, size),), None))


def test_what_does_not_fit_gets_remedies(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "rehearse", _invented)
    monkeypatch.setattr(rehearsal, "process_memory", lambda: 100 * MB)
    wanted = changed(config, "train", batch=8)
    outlook = look_ahead(wanted, known=True, limit=150 * MB)
    assert memory_of(outlook.plan).peak == 180 * MB and outlook.fits is False
    assert [(dict(r.changes), r.peak) for r in outlook.remedies] == [
        ({"train.batch_size": 4, "train.gradient_accumulation_steps": 2}, 140 * MB)
    ]


def test_a_run_that_does_not_fit_is_warned_of(
    config: RunConfig, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "rehearse", _invented)
    plan, warned = foresee(config, family, survey(config.data), {})
    assert warned is None and memory_of(plan).peak > memory_of(plan).before
    monkeypatch.setattr(rehearsal, "free_memory", lambda device: memory_of(plan).before + 15 * MB)
    _, warned = foresee(config, family, survey(config.data), {})
    assert warned is not None and warned.text.startswith("does not fit: ")
    assert "; would fit: train.batch_size=1 train.gradient_accumulation_steps=2 (" in warned.text


def test_what_this_process_holds_is_its_own() -> None:
    free, held = free_memory(torch.device("cpu")), process_memory()
    assert free is not None and free > held > 50 * MB


@pytest.mark.parametrize("base", ["sd21", "sdxl", "flux-dev"])
def test_what_has_no_weights_is_not_loaded(base: str) -> None:
    with pytest.raises(UserError, match="can only be planned"):
        load_base(base)


_SMALL: dict[str, dict[str, Any]] = {
    "sdxl": {"layers_per_block": 1, "transformer_layers_per_block": (1, 1, 1)},
    "flux-dev": {"num_layers": 1, "num_single_layers": 1},
}

_LAYERS = ("num_hidden_layers", "num_layers")


@pytest.mark.parametrize("name", _SMALL)
def test_families_without_weights_here_are_planned(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole of what a run would do, at 1024 pixels, with a few layers of each kind."""
    whole = published.PUBLISHED[name]
    cut = replace(
        whole,
        denoiser={**whole.denoiser, **_SMALL[name]},
        text_encoders=tuple({**of, **{key: 1 for key in _LAYERS if key in of}} for of in whole.text_encoders),
    )
    monkeypatch.setattr(sketch, "PUBLISHED", {name: cut})
    values = {"base": name, "data": {"sources": [{"path": str(tmp_path)}]}, "train": {"precision": "bfloat16"}}
    before = process_memory()
    plan = look_ahead(build_config(values, "test"), known=False, limit=10**15).plan
    assert process_memory() - before < 300 * MB
    denoiser = sketch.DENOISERS.get("flux" if name == "flux-dev" else name, "unet")
    assert memory_of(plan).step.parts[f"weights: {denoiser}"] == 2 * plan.networks[denoiser].total > 10**8
    assert plan.networks[denoiser].trainable > 0
