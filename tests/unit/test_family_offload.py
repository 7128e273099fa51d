"""Parts that no step needs are offloaded while it runs, and restored with their bits when they are called."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.errors import raises_code
from tests.running import hashes, quick_config, without_rehearsals
from tests.training import tiny_config, trainer_on
from veneer.config.schema import RunConfig
from veneer.data.preflight import survey
from veneer.family.protocol import Family
from veneer.family.registry import load_family
from veneer.family.store import MemoryStore
from veneer.plan.assessment import assess_config, plan_loaded
from veneer.plan.memory import STEP
from veneer.run.session import run_training
from veneer.train.events import StepDone
from veneer.train.loop import Trainer

BOTH = ("autoencoder", "text_encoder")


@pytest.fixture
def family(tiny_base: Path) -> Family:
    return load_family(str(tiny_base))


def parts(family: Family) -> dict[str, nn.Module]:
    pipeline: Any = family.pipeline()
    return {"autoencoder": pipeline.vae, "text_encoder": pipeline.text_encoder}


def storages(module: nn.Module) -> list[weakref.ref[torch.UntypedStorage]]:
    return [weakref.ref(parameter.untyped_storage()) for parameter in module.parameters()]


def freed(storages: list[weakref.ref[torch.UntypedStorage]]) -> float:
    """Share of the storages that nobody holds any more."""
    gc.collect()
    return sum(storage() is None for storage in storages) / len(storages)


def bytes_of(module: nn.Module) -> int:
    return sum(parameter.untyped_storage().nbytes() for parameter in module.parameters())


def test_an_offloaded_part_is_out_of_memory_and_is_restored_with_its_bits(family: Family) -> None:
    pieces = parts(family)
    before = {name: [p.clone() for p in part.parameters()] for name, part in pieces.items()}
    objects = {name: list(part.parameters()) for name, part in pieces.items()}
    held = {name: storages(part) for name, part in pieces.items()}
    family.offload(BOTH)
    for name, part in pieces.items():
        assert freed(held[name]) == 1
        assert bytes_of(part) == 4 * len(before[name])
        assert all(bool(p.isnan().all()) for p in part.parameters())
        assert [p.shape for p in part.parameters()] == [p.shape for p in before[name]]
    family.offload(())
    for name, part in pieces.items():
        assert all(torch.equal(p, was) for p, was in zip(part.parameters(), before[name], strict=True))
        assert all(p is was for p, was in zip(part.parameters(), objects[name], strict=True))
        assert not any(module._forward_pre_hooks for module in part.modules())


def test_each_part_is_restored_when_it_is_called(family: Family) -> None:
    """By the family's own functions, and by whoever has the modules."""
    pixels, latents = torch.zeros(1, 3, 16, 16), torch.zeros(1, 4, 8, 8)
    pieces = parts(family)
    calls = {
        "encode_text": lambda: family.encode_text(["a cat"])["text"],
        "encode_image": lambda: family.encode_image(pixels).mean,
        "decode": lambda: family.decode(latents),
        "vae": lambda: pieces["autoencoder"].decode(latents).sample,
        "text encoder": lambda: pieces["text_encoder"](torch.zeros(1, 4, dtype=torch.long))[0],
    }
    with torch.no_grad():
        expected = {name: call() for name, call in calls.items()}
        for name, call in calls.items():
            family.offload(BOTH)
            assert torch.equal(call(), expected[name])
            offloaded = [part for part in pieces.values() if next(part.parameters()).isnan().all()]
            assert len(offloaded) == 1, name


def test_a_part_that_was_changed_stays(family: Family) -> None:
    text_encoder = parts(family)["text_encoder"]
    with torch.no_grad():
        next(text_encoder.parameters()).data.add_(1)
    before = [p.clone() for p in text_encoder.parameters()]
    family.offload(BOTH)
    assert all(torch.equal(p, was) for p, was in zip(text_encoder.parameters(), before, strict=True))


def test_a_cast_part_is_restored_cast(family: Family) -> None:
    family.to(torch.device("cpu"), torch.bfloat16)
    before = [p.clone() for p in parts(family)["autoencoder"].parameters()]
    family.offload(BOTH)
    family.offload(())
    after = list(parts(family)["autoencoder"].parameters())
    assert {p.dtype for p in after} == {torch.bfloat16}
    assert all(torch.equal(p, was) for p, was in zip(after, before, strict=True))


def test_files_that_are_gone_are_named(tiny_base: Path, tmp_path: Path) -> None:
    import shutil

    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    family = load_family(str(base))
    family.offload(["autoencoder"])
    shutil.rmtree(base / "text_encoder")
    family.offload(BOTH)  # what cannot be read again is not offloaded
    assert not next(text_encoder_of(family).parameters()).isnan().any()
    shutil.rmtree(base / "vae")
    with raises_code("base.part_missing") as caught:
        family.offload(())
    assert str(caught.value).endswith("; it was whole when the run began, and must be until the run ends")


def text_encoder_of(family: Family) -> nn.Module:
    """The text encoder, without a call that would restore it."""
    return family.networks["text_encoder"]


def offloaded_while_training(config: RunConfig, family: Family) -> set[str]:
    pieces = parts(family)
    trainer = Trainer(config, family, survey(config.data))
    found: list[set[str]] = []
    for event in trainer.run():
        if isinstance(event, StepDone):
            found.append({name for name, part in pieces.items() if bool(next(part.parameters()).isnan().all())})
    trainer.close()
    assert not any(bool(p.isnan().any()) for part in pieces.values() for p in part.parameters())
    assert all(one == found[0] for one in found)
    return found[0]


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({}, set(BOTH)),
        ({"train": {"offload": False}}, set()),
        ({"data": {"crop": "random"}}, {"text_encoder"}),
        ({"adapter": {"text_encoders": {"text_encoder": {}}}}, {"autoencoder"}),
        ({"data": {"flip": True, "caption_dropout": 0.5}}, set(BOTH)),
    ],
)
def test_what_a_step_needs_stays(
    sections: dict[str, Any], expected: set[str], family: Family, tiny_base: Path, tiny_pictures: Path
) -> None:
    assert offloaded_while_training(tiny_config(tiny_pictures, **sections), family) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    "sections",
    [
        {"sample": {"every": 2}, "validation": {"every": 3}},
        pytest.param(
            {
                "data": {"flip": True, "caption_dropout": 0.3},
                "train": {"precision": "bfloat16", "gradient_accumulation_steps": 2},
            },
            marks=pytest.mark.slow,
        ),
        pytest.param({"data": {"crop": "random"}}, marks=pytest.mark.slow),
    ],
)
def test_bits_are_the_same_with_and_without(
    sections: dict[str, Any],
    tiny_base: Path,
    tiny_pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_rehearsals(monkeypatch)
    found = []
    for offload in (True, False):
        changes = {**sections, "train": {**sections.get("train", {}), "offload": offload}}
        config = quick_config(tiny_base, tiny_pictures, tmp_path / str(offload), **changes)
        run_training(config)
        pictures = [*sorted((config.output.dir / "samples").glob("*.png")), config.output.dir / "sheet.png"]
        found.append((hashes(config.output.dir), [path.read_bytes() for path in pictures if path.exists()]))
    assert found[0] == found[1]


def kept_by(trainer: Trainer) -> dict[tuple[object, ...], dict[str, Tensor]]:
    store = trainer.batches.encoder.store
    assert isinstance(store, MemoryStore)
    return store.kept


def test_nothing_is_encoded_in_vain(family: Family, tiny_pictures: Path) -> None:
    """What is encoded ahead is what the steps take, no more and no less, also when the run goes on in its middle."""
    sections = {"data": {"flip": True, "caption_dropout": 0.3}, "train": {"max_steps": 4, "batch_size": 2}}
    config = tiny_config(tiny_pictures, **sections)
    for first in (0, 2):
        with trainer_on(config, family) as trainer:
            for encode in trainer.batches.encoding_calls(range(first, 4)):
                encode()
            ahead = set(kept_by(trainer))
        with trainer_on(config, family) as trainer:
            for step in range(first, 4):
                trainer.batches.micro_batches(step)
            assert set(kept_by(trainer)) == ahead


def test_looking_ahead_ends_when_there_is_nothing_new(family: Family, tiny_pictures: Path) -> None:
    config = tiny_config(tiny_pictures, data={"held_out": 0.25})
    with trainer_on(config, family) as trainer:
        assert len(trainer.batches.encoding_calls(range(10**12))) == 9 + 9


@pytest.mark.slow
def test_the_plan_offloads_them(tiny_base: Path, tiny_pictures: Path, tmp_path: Path, family: Family) -> None:
    """Sketched and on the loaded base: a step holds less by the parts' bytes, painting as much as ever."""
    whole = {name: sum(p.nbytes for p in part.parameters()) for name, part in parts(family).items()}
    roles = {"autoencoder": "weights: autoencoder", "text_encoder": "weights: text_encoder"}
    for make in (lambda c: assess_config(c, count_pictures=False, limit=None).plan, lambda c: plan_loaded(c, family)):
        plans = []
        for offload in (True, False):
            plan = make(quick_config(tiny_base, tiny_pictures, tmp_path, train={"offload": offload}))
            assert plan.memory
            plans.append({phase.name: phase for phase in plan.memory.phases})
        for name, role in roles.items():
            saved = plans[1][STEP].parts[role] - plans[0][STEP].parts.get(role, 0)
            left = sum(4 for _ in parts(family)[name].parameters())  # one number in place of each weight
            assert whole[name] - left <= saved <= whole[name], role
        others = [phase for phase in plans[0] if phase.startswith("painting")]
        assert [plans[0][name].tensors for name in others] == [plans[1][name].tensors for name in others]
    assert not any(bool(p.isnan().any()) for part in parts(family).values() for p in part.parameters())
