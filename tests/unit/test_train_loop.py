"""A run, whole: its events, its bits, and that every field of the config changes what it says."""

from __future__ import annotations

import ast
import inspect
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

import veneer.train.loop
from tests.errors import raises_code
from tests.plans import changed
from tests.training import (
    Recorder,
    bits_of,
    gradients_of,
    losses_of,
    tiny_config,
    tiny_run,
    trainer_on,
    write_noise_pictures,
)
from veneer.adapter.protocol import AdapterWeights
from veneer.adapter.targets import BlockCoverage
from veneer.data.caption_text import caption_of
from veneer.data.preflight import survey
from veneer.engine import prepare
from veneer.errors import UserError
from veneer.family.protocol import Conditioning, Family
from veneer.family.registry import load_family
from veneer.train.batches import BatchBuilder
from veneer.train.events import (
    CheckpointDue,
    EncodingProgress,
    Finished,
    SampleDue,
    StepDone,
    StepSkipped,
    Stopped,
    TrainingStarted,
    Warned,
)
from veneer.train.loop import Trainer, train
from veneer.train.step import MicroBatch, NonFinite, train_step
from veneer.weights.file import AdapterFile
from veneer.weights.file import save as save_file


def trained(config: Any, family: Family) -> AdapterWeights:
    last = tiny_run(config, family)[-1]
    assert isinstance(last, Finished)
    return last.weights


def tensors(factors: AdapterWeights) -> dict[str, Tensor]:
    return {f"{n}.{what}": t for n, f in factors.items() for what, t in (("A", f.down), ("B", f.up))}


def same(ours: AdapterWeights, theirs: AdapterWeights) -> bool:
    one, other = tensors(ours), tensors(theirs)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_events_of_a_run(family: Family, tiny_pictures: Path) -> None:
    config = tiny_config(tiny_pictures, train={"max_steps": 4, "lr_scheduler": "linear"}, sample={"every": 2})
    events = tiny_run(config, family)
    encoding = [event for event in events if isinstance(event, EncodingProgress)]
    assert [encoding[0].done, encoding[-1].done] == [0, encoding[0].total] and encoding[0].found == 0
    kinds = [type(event) for event in events if not isinstance(event, EncodingProgress)]
    two = [StepDone, StepDone, SampleDue]
    assert events[0] == TrainingStarted(start_step=0, max_steps=4, blocks={"unet": BlockCoverage(5, 5)})
    assert kinds == [TrainingStarted, SampleDue, *two, *two, CheckpointDue, Finished]
    steps = [event for event in events if isinstance(event, StepDone)]
    assert [event.step for event in steps] == [1, 2, 3, 4]
    assert [event.rates["unet"] for event in steps] == pytest.approx([0.01, 0.0075, 0.005, 0.0025])
    assert all(math.isfinite(event.loss) and event.gradient_norm > 0 and event.prior_loss is None for event in steps)
    assert [event.step for event in events if isinstance(event, SampleDue)] == [0, 2, 4]


def test_names_that_leave_blocks_out_are_told_and_blocks_that_were_named_are_not(
    family: Family, tiny_pictures: Path
) -> None:
    names = {"target_modules": ["mid_block.attentions.0.proj_in"]}
    for adapter, told in ((names, 1), ({"blocks": ["mid_block"]}, 0)):
        events = tiny_run(tiny_config(tiny_pictures, adapter=adapter, train={"max_steps": 1}), family)
        warnings = [event for event in events if isinstance(event, Warned)]
        assert [warning.code for warning in warnings] == ["adapter.blocks_left_out"] * told
        if told:
            assert "reaches 1 of 5 blocks of the unet, none of down_blocks." in warnings[0].text


@pytest.mark.parametrize(("every", "steps"), [(0, []), (1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (5, [5]), (9, [5])])
def test_checkpoints_are_due_every_so_often_and_at_the_end(
    family: Family, tiny_pictures: Path, every: int, steps: list[int]
) -> None:
    events = tiny_run(tiny_config(tiny_pictures, train={"max_steps": 5, "checkpoint_every": every}), family)
    assert [event.step for event in events if isinstance(event, CheckpointDue)] == steps


@pytest.mark.parametrize("at", [0, 1, 3], ids=["before the first step", "in a step", "in the last step"])
def test_a_loop_that_is_stopped_ends_after_the_step_with_a_checkpoint(
    family: Family, tiny_pictures: Path, at: int
) -> None:
    with trainer_on(tiny_config(tiny_pictures, train={"checkpoint_every": 0}), family, moved=False) as trainer:
        events: list[Any] = []
        for event in trainer.run():
            events.append(event)
            if getattr(event, "step", 0) == at:
                trainer.stop()
        assert events[-2:] == [CheckpointDue(at), Stopped(at)] and trainer.steps_done == at
        assert len(losses_of(events)) == at


def test_a_step_that_is_not_finite_is_skipped_on_request(
    family: Family, tiny_pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It changes nothing, and those after it go on as if it had not been: their moments do not count it."""
    config = tiny_config(tiny_pictures, train={"max_steps": 3, "on_nonfinite": "skip"})
    micros = BatchBuilder.micro_batches

    def broken(feed: BatchBuilder, step: int) -> list[MicroBatch]:
        found = micros(feed, step)
        return [replace(each, latents=each.latents * math.nan) for each in found] if step == 1 else found

    monkeypatch.setattr(BatchBuilder, "micro_batches", broken)
    states, events = [], []
    with trainer_on(config, family, moved=False) as trainer:
        for event in trainer.run():
            events.append(event)
            if isinstance(event, StepDone):
                states.append(trainer.state_dict())
    first, second, third = (event for event in events if isinstance(event, StepDone))
    assert math.isfinite(first.loss) and math.isnan(second.loss) and math.isfinite(third.loss)
    (skipped,) = (event for event in events if isinstance(event, StepSkipped))
    assert (skipped.step, skipped.reason) == (2, "loss_not_finite")
    assert str(skipped).startswith("step 2 changed nothing: the loss is not finite, with ")
    same_bits = {name: torch.equal(states[0][name], states[1][name]) for name in states[0]}
    assert {name for name, same in same_bits.items() if not same} == {"step"}
    counts = {int(tensor) for name, tensor in states[2].items() if name.startswith("optimizer.step.")}
    assert counts == {2}
    with pytest.raises(NonFinite), trainer_on(tiny_config(tiny_pictures), family) as stopping:
        list(stopping.run())


def test_the_loop_neither_prints_nor_writes(
    family: Family, tiny_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_run(tiny_config(tiny_pictures), family)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_the_loop_is_on_one_screen() -> None:
    run = next(n for n in ast.walk(ast.parse(inspect.getsource(veneer.train.loop))) if getattr(n, "name", "") == "run")
    assert isinstance(run, ast.FunctionDef) and run.end_lineno is not None
    assert run.end_lineno - run.lineno < 25


def test_two_runs_give_the_same_bits_and_the_same_file(family: Family, tiny_pictures: Path, tmp_path: Path) -> None:
    config = tiny_config(
        tiny_pictures,
        adapter={"text_encoders": {"text_encoder": {}}, "dropout": 0.2},
        data={"flip": True, "crop": "random"},
    )
    first = trained(config, family)
    torch.manual_seed(99)
    torch.randn(7)
    second = trained(config, family)
    assert same(first, second)
    hashes = {save_file(AdapterFile(f), tmp_path / str(n)) for n, f in enumerate((first, second))}
    assert len(hashes) == 1


def test_another_seed_gives_other_bits(family: Family, tiny_pictures: Path) -> None:
    assert not same(trained(tiny_config(tiny_pictures), family), trained(tiny_config(tiny_pictures, seed=1), family))


def test_the_base_has_its_bits_back_when_the_run_ends_or_is_left(family: Family, tiny_pictures: Path) -> None:
    before = bits_of(family.networks)
    config = tiny_config(tiny_pictures, adapter={"text_encoders": {"text_encoder": {}}}, train={"memory": "checkpoint"})
    tiny_run(config, family)
    left = train(config, family, survey(config.data))
    next(left)
    next(left)
    left.close()
    after = bits_of(family.networks)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(getattr(m, "gradient_checkpointing", False) for n in family.networks.values() for m in n.modules())


def put_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(veneer.train.loop, "optimizer_for", broken)


@pytest.mark.parametrize("fault", ["a network that is prepared already", "any other"])
def test_a_trainer_that_cannot_be_made_leaves_the_base_as_it_was(
    tiny_base: Path, tiny_pictures: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = load_family(str(tiny_base))
    config = tiny_config(tiny_pictures, train={"memory": "checkpoint"})
    encoder, handle = family.networks["text_encoder"], None
    with monkeypatch.context() as patched:
        if fault == "any other":
            put_a_fault(patched)
        else:
            handle = prepare(encoder)
        before = [(type(module), vars(module).keys()) for net in family.networks.values() for module in net.modules()]
        flags = [p.requires_grad for net in family.networks.values() for p in net.parameters()]
        with pytest.raises((UserError, KeyboardInterrupt)):
            tiny_run(config, family)
    after = [(type(module), vars(module).keys()) for net in family.networks.values() for module in net.modules()]
    assert after == before
    assert [p.requires_grad for net in family.networks.values() for p in net.parameters()] == flags
    if handle is not None:
        handle.undo()
    assert isinstance(tiny_run(config, family)[-1], Finished)


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "text encoder": {"adapter": {"text_encoders": {"text_encoder": {}}, "dropout": 0.3}},
    "bfloat16": {"train": {"precision": "bfloat16"}},
    "checkpoint": {"train": {"memory": "checkpoint"}},
    "average": {"train": {"ema_decay": 0.5}, "sample": {"every": 1}},
    "random": {
        "data": {"crop": "random", "flip": True, "caption_dropout": 0.5},
        "train": {"gradient_accumulation_steps": 2},
    },
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_resuming_at_any_step_gives_the_bits_of_the_uninterrupted_run(
    tiny_base: Path, family: Family, tiny_pictures: Path, variant: dict[str, Any]
) -> None:
    """Through safetensors' bytes, into a trainer of another process' making: another family, nothing cached."""
    train_section = {"max_steps": 4, "lr_scheduler": "cosine", "warmup_steps": 1, **variant.get("train", {})}
    config = tiny_config(tiny_pictures, **{**variant, "train": train_section})
    whole = tiny_run(config, family)
    with trainer_on(config, family, moved=False) as trainer:
        events = trainer.run()
        states = [save(trainer.state_dict()) for event in events if isinstance(event, TrainingStarted | StepDone)]
    for step in (1, 3):
        with trainer_on(config, load_family(str(tiny_base)), moved=False) as other:
            other.load_state_dict(load(states[step]))
            rest = list(other.run())
            final = save(other.state_dict())
        assert isinstance(rest[0], TrainingStarted) and rest[0].start_step == step
        assert losses_of(rest) == losses_of(whole)[step:]
        assert isinstance(whole[-1], Finished) and isinstance(rest[-1], Finished)
        assert same(rest[-1].weights, whole[-1].weights)
        assert final == states[4]  # the optimiser's moments as well


def test_a_state_of_another_run_is_refused_and_changes_nothing(family: Family, tiny_pictures: Path) -> None:
    with trainer_on(tiny_config(tiny_pictures, adapter={"rank": 2}), family) as small:
        foreign = small.state_dict()
    with trainer_on(tiny_config(tiny_pictures), family) as trainer:
        train_step(trainer.context, 0, trainer.batches.micro_batches(0))
        before = trainer.state_dict()
        torn = next(name for name in before if name.startswith("optimizer."))
        layer = torn.split(".", 2)[2]
        for broken in (foreign, {name: t for name, t in before.items() if not name.endswith(layer)}):
            with raises_code("checkpoint.other_run"):
                trainer.load_state_dict(broken)
        with raises_code("checkpoint.other_run", "another run: optimizer"):
            kept = {n: t for n, t in before.items() if not (n.startswith("optimizer.") and n.endswith(layer))}
            trainer.load_state_dict(kept)
        with raises_code("checkpoint.other_run"):
            trainer.load_state_dict({name: t for name, t in before.items() if name != "step"})
        after = trainer.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_loss_falls(family: Family, tiny_pictures: Path) -> None:
    """On one and the same picture and noise, which a rank of 4 can learn."""
    with trainer_on(tiny_config(tiny_pictures, train={"learning_rate": 0.003}), family, moved=False) as trainer:
        micros, losses = trainer.batches.micro_batches(0), []
        for step in range(15):
            losses.append(train_step(trainer.context, step, micros).loss)
    assert losses[-1] < 0.9 * losses[0]


CHANGES: dict[str, dict[str, Any]] = {
    "seed": {"seed": 1},
    "rank": {"adapter": {"rank": 2}},
    "alpha": {"adapter": {"alpha": 8.0}},
    "targets": {"adapter": {"target_modules": ["to_q"]}},
    "blocks": {"adapter": {"blocks": ["mid_block"]}},
    "dropout": {"adapter": {"dropout": 0.5}},
    "text_encoder": {"adapter": {"text_encoders": {"text_encoder": {}}}},
    "timesteps": {"objective": {"timestep_density": "high_noise"}},
    "logit_normal": {"objective": {"timestep_density": "logit_normal"}},
    "logit_mean": {"objective": {"timestep_density": "logit_normal", "logit_mean": 0.5}},
    "logit_std": {"objective": {"timestep_density": "logit_normal", "logit_std": 0.5}},
    "shift": {"objective": {"timestep_shift": 3.0}},
    "weighting": {"objective": {"weighting": "min_snr"}},
    "gamma": {"objective": {"weighting": "min_snr", "snr_gamma": 0.5}},
    "batch": {"train": {"batch_size": 3}},
    "accumulate": {"train": {"gradient_accumulation_steps": 2}},
    "rate": {"train": {"learning_rate": 0.02}},
    "weight_decay": {"train": {"optimizer": {"weight_decay": 0.5}}},
    "betas": {"train": {"optimizer": {"betas": [0.5, 0.9]}}},
    "epsilon": {"train": {"optimizer": {"epsilon": 0.1}}},
    "schedule": {"train": {"lr_scheduler": "linear"}},
    "warmup": {"train": {"warmup_steps": 2}},
    "max_grad_norm": {"train": {"max_grad_norm": 1e-9}},
    "ema": {"train": {"ema_decay": 0.5}},
    "precision": {"train": {"precision": "bfloat16"}},
    "steps": {"train": {"max_steps": 4}},
    "resolution": {"data": {"resolution": 8}},
    "caption_dropout": {"data": {"caption_dropout": 0.9}},
    "trigger": {"data": {"trigger": "shapes"}},
}


@pytest.fixture(scope="module")
def plain(family: Family, tiny_pictures: Path) -> AdapterWeights:
    return trained(tiny_config(tiny_pictures), family)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_each_field_changes_the_adapter(
    family: Family, tiny_pictures: Path, plain: AdapterWeights, change: Any
) -> None:
    assert not same(trained(tiny_config(tiny_pictures, **change), family), plain)


def test_a_preset_trains_what_its_names_do(family: Family, tiny_pictures: Path, plain: AdapterWeights) -> None:
    config = tiny_config(tiny_pictures)
    assert same(trained(changed(config, "adapter", target_modules="attention"), family), plain)
    more = trained(changed(config, "adapter", target_modules="attention_mlp"), family)
    assert more.keys() > plain.keys()


@pytest.mark.parametrize("change", [{"flip": True}, {"crop": "random"}], ids=["flip", "crop"])
def test_mirroring_and_cutting_change_the_adapter(family: Family, tmp_path: Path, change: dict[str, Any]) -> None:
    """On pictures that are neither symmetric nor square, as the others are."""
    data = {"trigger": "noise"}
    write_noise_pictures(tmp_path)
    still = trained(tiny_config(tmp_path, data=data), family)
    assert same(trained(tiny_config(tmp_path, data=data), family), still)
    assert not same(trained(tiny_config(tmp_path, data={**data, **change}), family), still)


def test_what_should_change_nothing_changes_nothing(family: Family, tiny_pictures: Path, plain: AdapterWeights) -> None:
    keeping: dict[str, Any] = {"checkpoint_every": 1, "keep_checkpoints": 9, "on_nonfinite": "skip"}
    sections: dict[str, Any] = {"train": keeping, "sample": {"every": 1}}
    sections |= {"validation": {"draws": 3}}
    assert same(trained(tiny_config(tiny_pictures, **sections), family), plain)


def test_a_schedule_is_followed_to_the_update(family: Family, tiny_pictures: Path) -> None:
    """In the warm-up's first step the rate is zero, so the adapter is still the one that was put in."""
    with trainer_on(tiny_config(tiny_pictures, train={"warmup_steps": 2}), family, moved=False) as trainer:
        events = (event for event in trainer.run() if not isinstance(event, EncodingProgress))
        next(events)
        start = {name: p.detach().clone() for name, p in trainer.injection.named_parameters()}
        first = next(events)
        assert isinstance(first, StepDone) and first.rates == {"unet": 0.0}
        assert all(torch.equal(p, start[name]) for name, p in trainer.injection.named_parameters())
        next(events)
        assert not all(torch.equal(p, start[name]) for name, p in trainer.injection.named_parameters())


def test_the_text_encoder_has_rank_alpha_targets_and_rate_of_its_own(family: Family, tiny_pictures: Path) -> None:
    text: dict[str, Any] = {"rank": 2, "alpha": 1.0, "target_modules": ["q_proj"], "learning_rate": 1e-3}
    events = tiny_run(tiny_config(tiny_pictures, adapter={"text_encoders": {"text_encoder": text}}), family)
    first = next(event for event in events if isinstance(event, StepDone))
    assert isinstance(events[-1], Finished)
    own = {name: f for name, f in events[-1].weights.items() if name.startswith("text_encoder.")}
    assert len(own) == 2 and all(name.endswith(".q_proj") for name in own)
    assert all((f.rank, f.alpha) == (2, 1.0) and bool((f.up != 0).any()) for f in own.values())
    assert first.rates == {"unet": 0.01, "text_encoder": 1e-3}
    unet = [f for name, f in events[-1].weights.items() if name.startswith("unet.")]
    assert all((f.rank, f.alpha) == (4, 4.0) for f in unet)


def test_text_is_encoded_in_the_step_only_if_it_is_trained(family: Family, tiny_pictures: Path) -> None:
    with trainer_on(tiny_config(tiny_pictures), family) as trainer:
        assert isinstance(trainer.batches.micro_batches(0)[0].text, Conditioning)
    with trainer_on(tiny_config(tiny_pictures, adapter={"text_encoders": {"text_encoder": {}}}), family) as trainer:
        assert trainer.batches.micro_batches(0)[0].text == [
            caption_of(pick, trainer.batches.config.data, trainer.batches.config.seed)
            for pick in trainer.batches._draws(0)
        ]


def test_alpha_scales_the_gradient(family: Family, tiny_pictures: Path) -> None:
    """At B = 0 the output is that of the base, so B's gradient is proportional to alpha (Hu et al. 2021, eq. 3)."""
    grads = {}
    for alpha in (4.0, 8.0):
        config = tiny_config(tiny_pictures, adapter={"alpha": alpha}, train={"max_grad_norm": None})
        with trainer_on(config, family, moved=False) as trainer:
            recorder = Recorder(dict(trainer.injection.named_parameters()))
            train_step(replace(trainer.context, optimizer=recorder), 0, trainer.batches.micro_batches(0))
            grads[alpha] = {n: g for n, g in recorder.gradients.items() if "lora_B" in n}
    for name, gradient in grads[8.0].items():
        torch.testing.assert_close(gradient, 2 * grads[4.0][name], rtol=1e-4, atol=1e-8)


def test_a_resolution_that_latents_cannot_have_is_refused(family: Family, tiny_pictures: Path) -> None:
    config = tiny_config(tiny_pictures, data={"resolution": 17})
    with raises_code("data.unfit_resolution", match=r"data\.resolution: 17 is not a multiple of 2.*use 16"):
        Trainer(config, family, survey(config.data))


def test_a_base_of_v_and_zero_terminal_snr_trains(tiny_base_v: Path, tiny_pictures: Path) -> None:
    config = tiny_config(tiny_pictures, objective={"weighting": "min_snr", "timestep_density": "high_noise"})
    gradients = gradients_of(config, load_family(str(tiny_base_v)))
    assert all(bool(gradient.isfinite().all()) for gradient in gradients.values())
