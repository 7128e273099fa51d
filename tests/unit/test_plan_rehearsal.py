"""A rehearsed plan against the run itself: what it counts is what there is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import veneer
from tests.plans import changed, exact_config, memory_of, tensors_by_phase
from tests.training import bits_of, write_mixed_pictures
from tests.unit.test_plan_tracer import Watch
from veneer.config.load import build_config
from veneer.config.schema import RunConfig
from veneer.data.buckets import Buckets
from veneer.data.preflight import survey
from veneer.family.cache import Encoder
from veneer.family.protocol import Family
from veneer.family.published import read_published
from veneer.family.registry import load_family
from veneer.plan import abstract
from veneer.plan.assessment import assess_config, plan_loaded
from veneer.plan.machine import process_memory
from veneer.plan.memory import ENCODING, LOADING, STEP
from veneer.plan.plan import Plan
from veneer.plan.tracer import MemoryTracer
from veneer.run.folder import CHECKPOINTS, PLAN
from veneer.run.session import run_training
from veneer.train.loop import Trainer
from veneer.train.step import train_step
from veneer.weights.checkpoint import checkpoints_in

MB = 10**6


@pytest.fixture(scope="module")
def config(tiny_base: Path, tiny_pictures: Path) -> RunConfig:
    return exact_config(tiny_base, tiny_pictures)


@pytest.fixture(scope="module")
def plan(config: RunConfig, family: Family) -> Plan:
    """The plan that the public function gives of a base that is loaded."""
    return veneer.make_plan(config, family, survey(config.data))


def measured(config: RunConfig) -> int:
    """The most bytes that the storages of a real second step hold, each of them watched."""
    family = load_family(config.base)
    with closing(Trainer(config, family, survey(config.data))) as trainer:
        train_step(trainer.context, 0, trainer.batches.micro_batches(0))
        watch = Watch()
        micros = trainer.batches.micro_batches(1)
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
    assert tensors_by_phase(plan)[STEP] - caches == pytest.approx(measured(config), abs=60_000)


@pytest.mark.slow
def test_recomputed_blocks_show_in_the_plan(config: RunConfig, family: Family, plan: Plan) -> None:
    config = changed(config, "train", memory="checkpoint", batch_size=4)
    recomputed = plan_loaded(config, family)
    assert tensors_by_phase(recomputed)[STEP] == pytest.approx(measured(config), abs=60_000)
    assert tensors_by_phase(recomputed)[LOADING] == tensors_by_phase(plan)[LOADING]


def test_planning_leaves_the_base_as_it_was(config: RunConfig, family: Family, plan: Plan, tiny_base: Path) -> None:
    fresh, used = bits_of(load_family(str(tiny_base)).networks), bits_of(family.networks)
    assert fresh.keys() == used.keys() and all(torch.equal(fresh[name], used[name]) for name in fresh)


@pytest.mark.slow
def test_more_formats_take_disk_and_no_memory(config: RunConfig, family: Family, plan: Plan) -> None:
    formats: tuple[Any, ...] = ("diffusers", "kohya", "comfy", "peft")
    output = config.output.model_copy(update={"formats": formats})
    more = veneer.make_plan(config.model_copy(update={"output": output}), family, survey(config.data))
    assert plan.memory is not None and more.memory is not None and plan.disk is not None and more.disk is not None
    for one, other in zip(plan.memory.phases, more.memory.phases, strict=True):
        assert (one.name, one.tensors, one.parts) == (other.name, other.tensors, other.parts)
    assert more.file_bytes == plan.file_bytes
    assert more.disk.result > 1.8 * plan.disk.result > 3 * plan.file_bytes


def test_it_tells_what_timesteps_are_drawn_from(plan: Plan) -> None:
    assert str(plan.timesteps) == "timesteps: uniform, no shift, the base's own"


def test_the_public_function_gives_memory_disk_and_schedule(plan: Plan) -> None:
    memory = memory_of(plan)
    assert memory.before > 100 * MB  # PyTorch alone
    names = [phase.name for phase in memory.phases]
    assert names == [LOADING, ENCODING, STEP, "sampling 8 pictures", "scoring"]
    assert all(phase.process is not None and phase.process > memory.before for phase in memory.phases)
    assert plan.disk is not None and plan.schedule is not None
    assert (plan.schedule.pictures, plan.schedule.shown) == (12, 6)
    assert f"all tensors of a {STEP}" in str(plan) and "disk: " in str(plan)


@pytest.mark.slow
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


@pytest.mark.slow
def test_offloaded_parts_come_back_when_the_steps_are_done(
    config: RunConfig, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[str]()
    begin_phase, close = MemoryTracer.begin_phase, Trainer.close
    monkeypatch.setattr(MemoryTracer, "begin_phase", lambda self, name: (calls.append(name), begin_phase(self, name)))
    monkeypatch.setattr(Trainer, "close", lambda self: (calls.append("closed"), close(self)))
    phases = memory_of(plan_loaded(changed(config, "train", offload=True), family)).phases
    assert calls.index("closed") == calls.index(STEP) + 2  # in the phase after
    after = phases[[phase.name for phase in phases].index(STEP) + 1]
    assert "weights loaded again" in after.parts


def test_parts_of_the_step_are_named(plan: Plan, family: Family) -> None:
    parts = memory_of(plan).step.parts
    assert sum(parts.values()) == memory_of(plan).step.tensors
    weights = {name.removeprefix("weights: ") for name in parts if name.startswith("weights: ")}
    assert weights == {"unet", "text_encoder", "autoencoder"}
    assert parts["weights: unet"] == sum(p.nbytes for p in family.networks["unet"].parameters())
    assert parts["adapter"] == 4 * plan.trainable
    assert parts["optimiser state"] >= 2 * parts["adapter"]  # two moments, and a count of steps for each
    assert {"activations: convolutions", "activations: norms", "batch"} <= parts.keys()


def test_caches_are_counted(config: RunConfig, family: Family, plan: Plan) -> None:
    """Mean and deviation of 4 x 8 x 8 latents, 16 tokens of 32 numbers; mirrored pictures have latents of their own."""
    latent, caption = 4 * 4 * 8 * 8, 4 * 16 * 32
    assert memory_of(plan).caches == 12 * 2 * latent + 12 * caption
    flipped = changed(config, "data", flip=True)
    assert memory_of(plan_loaded(flipped, family, survey(flipped.data))).caches == 2 * 12 * 2 * latent + 12 * caption


@pytest.mark.slow
def test_the_largest_bucket_is_planned_and_all_are_kept(tiny_base: Path, family: Family, tmp_path: Path) -> None:
    """Latents of all sizes as they will be; a step of the 10 x 22 pixels of the largest, not of 16 x 16."""
    folder = write_mixed_pictures(tmp_path / "mixed")
    for name in (0, 5, 3, 8):  # those of 16 x 16
        (folder / f"{name}.png").unlink()
    config = exact_config(tiny_base, folder)
    dataset = survey(config.data)
    plan = plan_loaded(config, family, dataset)
    encoder, buckets = Encoder(family, config.data, config.seed), Buckets.of(config.data, family)
    posteriors = [encoder.centered(one, buckets.largest(one.width, one.height)) for one in dataset.train.samples]
    latents = sum(each.mean.nbytes + each.std.nbytes for each in posteriors)
    assert memory_of(plan).caches == latents + 6 * 4 * 16 * 32
    assert tensors_by_phase(plan)[STEP] - latents < tensors_by_phase(plan_loaded(config, family))[STEP]
    assert plan.buckets is not None and plan.schedule is not None and plan.schedule.pictures == 6
    assert [(row.width, row.height, row.pictures) for row in plan.buckets.rows] == [
        (10, 8, 2),
        (10, 22, 2),
        (22, 10, 2),
    ]
    assert "10 x 22" in str(plan) and plan.as_dict()["buckets"]["rows"][0]["pictures"] == 2


CUT: dict[str, dict[str, dict[str, Any]]] = {
    "sdxl": {
        "unet": {"layers_per_block": 1, "transformer_layers_per_block": (1, 1, 1)},
        "text_encoder": {"num_hidden_layers": 1},
        "text_encoder_2": {"num_hidden_layers": 1},
    },
    "flux-dev": {
        "transformer": {"num_layers": 1, "num_single_layers": 1},
        "text_encoder": {"num_hidden_layers": 1},
        "text_encoder_2": {"num_layers": 1},
    },
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name == "sdxl" else []) for name in CUT]
)
@pytest.mark.parametrize("side", [512, pytest.param(1024, marks=pytest.mark.slow)])
def test_bases_without_weights_are_planned(
    name: str, side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that a run does, with a few layers of each kind; pictures are sampled at 1024 pixels."""
    whole = read_published(name)
    cut = replace(whole, parts={part: {**config, **CUT[name].get(part, {})} for part, config in whole.parts.items()})
    monkeypatch.setattr(abstract, "read_published", lambda _: cut)
    values = {"base": name, "data": {"sources": [{"path": str(tmp_path)}], "resolution": side}}
    before = process_memory()
    quantization = "bfloat16" if name == "flux-dev" else "none"
    config = build_config({**values, "train": {"precision": "bfloat16", "quantization": quantization}}, "test")
    plan = assess_config(config, count_pictures=False, limit=10**15).plan
    assert process_memory() - before < 300 * MB
    denoiser, size = ("transformer", 2) if name == "flux-dev" else ("unet", 4)
    weights = memory_of(plan).step.parts[f"weights: {denoiser}"]
    assert weights == pytest.approx(size * plan.networks[denoiser].total, rel=0.01) and weights > 10**8
    assert plan.networks[denoiser].trainable > 0
    pictures = 1 if name == "flux-dev" else 8  # of a large base one at a time
    sampling = tensors_by_phase(plan)["sampling 1 picture" if pictures == 1 else f"sampling {pictures} pictures"]
    assert sampling > pictures * 3 * 1024 * 1024 * 4
