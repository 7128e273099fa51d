"""One step: gradients however its pictures are split, dropout, clipping, prior preservation, faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.errors import raises_code
from tests.networks import worst
from tests.tolerance import ROUNDINGS, distance, unit_roundoff
from tests.training import Recorder, bits_of, gradients_of, tiny_config, trainer_on
from veneer.engine.precision import Precision, precision_of
from veneer.errors import UserError
from veneer.family.protocol import Family
from veneer.family.registry import load_family
from veneer.train import step
from veneer.train.step import MicroBatch, NonFinite, train_step

BOTH: dict[str, Any] = {"text_encoders": {"text_encoder": {}}}


def split(pictures: Path, batch: int, accumulate: int, **adapter: Any) -> Any:
    return tiny_config(
        pictures, train={"batch_size": batch, "gradient_accumulation_steps": accumulate}, adapter=adapter
    )


@pytest.fixture(scope="module")
def magnified(tiny_base: Path, tiny_pictures: Path) -> Callable[..., float]:
    """How far gradients are moved, in a measure, by the smallest changes of the weights, over the size of these."""
    share, family = 2.0**-12, load_family(str(tiny_base))  # far above float32's rounding, far below the weights
    generator = torch.Generator().manual_seed(0)
    exact = gradients_of(tiny_config(tiny_pictures, adapter=BOTH), family)
    with torch.no_grad():
        for parameter in (p for network in family.networks.values() for p in network.parameters()):
            parameter.mul_(1 + share * (2.0 * torch.randint(0, 2, parameter.shape, generator=generator) - 1))
    moved = gradients_of(tiny_config(tiny_pictures, adapter=BOTH), family)
    return lambda measure: float(measure(moved, exact)) / share


@pytest.fixture(scope="module")
def split_error(magnified: Callable[..., float]) -> float:
    """How far two ways to the same float32 gradients may be from each other, as ``worst`` measures it."""
    return 2 * ROUNDINGS * unit_roundoff(torch.float32) * magnified(worst)


@pytest.fixture(scope="module")
def bfloat16_error(magnified: Callable[..., float]) -> float:
    """How far gradients in bfloat16 may be from those in float32: by some three roundings of each weight."""
    return 3 * unit_roundoff(torch.bfloat16) * magnified(distance)


@pytest.mark.parametrize("adapter", [{}, BOTH], ids=["unet", "both"])
@pytest.mark.parametrize(("batch", "accumulate"), [(1, 4), (2, 2)])
def test_four_pictures_give_one_gradient_however_split(
    family: Family, tiny_pictures: Path, batch: int, accumulate: int, adapter: Any, split_error: float
) -> None:
    whole = gradients_of(split(tiny_pictures, 4, 1, **adapter), family)
    found = gradients_of(split(tiny_pictures, batch, accumulate, **adapter), family)
    assert all(gradient.any() for gradient in whole.values())
    assert worst(found, whole) <= split_error < 1e-3


def test_accumulation_is_a_mean_over_more_pictures(family: Family, tiny_pictures: Path) -> None:
    """Elementwise: the gradient of 2 x 2 is the mean of the gradients of its halves."""
    config = split(tiny_pictures, 2, 2)
    with trainer_on(config, family) as trainer:
        recorder = Recorder(dict(trainer.injection.named_parameters()))
        context = replace(trainer.context, optimizer=recorder, max_grad_norm=None)
        micros = trainer.batches.micro_batches(0)
        halves = []
        for micro in micros:
            train_step(context, 0, [replace(micro, weight_B=micro.weight_B * 2)])
            halves.append(recorder.gradients)
        train_step(context, 0, micros)
    for name, gradient in recorder.gradients.items():
        torch.testing.assert_close(gradient, (halves[0][name] + halves[1][name]) / 2, rtol=1e-5, atol=1e-8)


@contextmanager
def calls_of(modules: list[nn.Module]) -> Iterator[list[int]]:
    """How often each was called, counted as it happens."""
    counts = [0] * len(modules)

    def count(place: int) -> None:
        counts[place] += 1

    hooks = [m.register_forward_pre_hook(lambda *_, place=place: count(place)) for place, m in enumerate(modules)]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("adapter", [{}, BOTH], ids=["unet", "both"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputed_blocks_give_the_same_gradients(
    family: Family, tiny_pictures: Path, adapter: dict[str, Any], dropout: float
) -> None:
    """Elementwise and to the bit, dropout's masks included; and blocks are recomputed, as their calls show."""
    stored = tiny_config(tiny_pictures, adapter={**adapter, "dropout": dropout}, train={"memory": "lean"})
    again = tiny_config(tiny_pictures, adapter={**adapter, "dropout": dropout}, train={"memory": "checkpoint"})
    inside = [family.networks["unet"].get_submodule("down_blocks.0.attentions.0.transformer_blocks.0.attn1")]
    if adapter:
        inside += [m for n, m in family.networks["text_encoder"].named_modules() if n.endswith("layers.0.self_attn")]
    with calls_of(inside) as calls:
        exact = gradients_of(stored, family)
        once = calls.copy()
        recomputed = gradients_of(again, family)
    assert once == [1] * len(inside)
    assert calls == [3] * len(inside)
    assert exact.keys() == recomputed.keys()
    for name, gradient in exact.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=0, atol=0)


def test_only_the_adapter_has_gradients_and_only_it_changes(family: Family, tiny_pictures: Path) -> None:
    before = bits_of(family.networks)
    with trainer_on(split(tiny_pictures, 2, 1, **BOTH), family) as trainer:
        own = {id(parameter) for parameter in trainer.injection.parameters()}
        asked = {id(p) for net in family.networks.values() for p in net.parameters() if p.requires_grad}
        assert asked == own
        started = {name: p.detach().clone() for name, p in trainer.injection.named_parameters()}
        train_step(trainer.context, 0, trainer.batches.micro_batches(0))
        assert all(not torch.equal(p, started[name]) for name, p in trainer.injection.named_parameters())
    after = bits_of(family.networks)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_dropout_changes_gradients_and_is_keyed(family: Family, tiny_pictures: Path) -> None:
    plain, wet = split(tiny_pictures, 2, 1), split(tiny_pictures, 2, 1, dropout=0.5)
    first, torch_state = gradients_of(wet, family), torch.get_rng_state()
    torch.manual_seed(12345)  # whatever else a program draws has no say
    second, without = gradients_of(wet, family), gradients_of(plain, family)
    torch.set_rng_state(torch_state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], without[name]) for name in first)


def test_dropout_seeds_no_generator_but_those_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another GPU's may be drawn from meanwhile; here only the CPU's is in use."""
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("all GPUs are seeded"))
    before = torch.get_rng_state()
    with step._keyed_dropout(torch.device("cpu"), 2**62):
        drawn = torch.rand(3)
    assert torch.equal(drawn, torch.rand(3, generator=torch.Generator().manual_seed(2**62)))
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_is_another_in_each_step_and_micro_batch(family: Family, tiny_pictures: Path) -> None:
    with trainer_on(split(tiny_pictures, 2, 1, dropout=0.5), family) as trainer:
        recorder = Recorder(dict(trainer.injection.named_parameters()))
        context = replace(trainer.context, optimizer=recorder)
        (micro,) = trainer.batches.micro_batches(0)
        half = replace(micro, weight_B=micro.weight_B / 2)
        seen = []
        for step, micros in ((0, [micro]), (1, [micro]), (0, [half, half])):
            train_step(context, step, micros)
            seen.append(torch.cat([gradient.flatten() for gradient in recorder.gradients.values()]))
    assert not any(torch.allclose(one, other) for one, other in ((seen[0], seen[1]), (seen[0], seen[2])))


def test_a_step_leaves_torchs_generator_and_the_modes_alone(family: Family, tiny_pictures: Path) -> None:
    before = torch.get_rng_state()
    with trainer_on(split(tiny_pictures, 2, 1, dropout=0.5), family) as trainer:
        train_step(trainer.context, 0, trainer.batches.micro_batches(0))
        assert not any(module.training for net in family.networks.values() for module in net.modules())
    assert torch.equal(torch.get_rng_state(), before)


def test_gradients_are_scaled_down_to_the_norm(family: Family, tiny_pictures: Path) -> None:
    free = gradients_of(tiny_config(tiny_pictures, train={"max_grad_norm": None}), family)
    norm = torch.stack([g.square().sum() for g in free.values()]).sum().sqrt()
    low, high = float(norm) / 10, float(norm) * 10
    cut = gradients_of(tiny_config(tiny_pictures, train={"max_grad_norm": low}), family)
    for name, gradient in free.items():
        torch.testing.assert_close(cut[name], gradient / 10, rtol=1e-4, atol=1e-9)
    uncut = gradients_of(tiny_config(tiny_pictures, train={"max_grad_norm": high}), family)
    assert all(torch.equal(uncut[name], free[name]) for name in free)


def with_latent(micro: MicroBatch, value: float) -> MicroBatch:
    latent = micro.latents.clone()
    latent[1, 0, 0, 0] = value
    return replace(micro, latents=latent)


def test_a_loss_that_is_not_finite_names_step_picture_and_time(family: Family, tiny_pictures: Path) -> None:
    with trainer_on(split(tiny_pictures, 2, 2), family) as trainer:
        started = trainer.state_dict()
        good, bad = trainer.batches.micro_batches(6)
        with pytest.raises(NonFinite) as caught:
            train_step(trainer.context, 6, [good, with_latent(bad, float("nan"))])
        after = trainer.state_dict()
    assert (caught.value.step, caught.value.samples) == (7, (bad.samples[1].id,))
    assert caught.value.times == (float(bad.t_B[1]),)
    assert f"at time {float(bad.t_B[1]):.3f}" in str(caught.value)
    assert str(bad.samples[1].path) in str(caught.value) and "\n" not in str(caught.value)
    assert isinstance(caught.value, UserError)
    assert started.keys() == after.keys() and all(torch.equal(started[name], after[name]) for name in started)


def test_a_gradient_that_is_not_finite_stops_as_well(family: Family, tiny_pictures: Path) -> None:
    with trainer_on(split(tiny_pictures, 2, 1), family) as trainer:
        (micro,) = trainer.batches.micro_batches(0)
        started = trainer.state_dict()
        with pytest.raises(NonFinite, match="gradient") as caught:
            train_step(trainer.context, 0, [replace(micro, weight_B=torch.full((2,), 1e38))])
        assert all(torch.equal(started[name], tensor) for name, tensor in trainer.state_dict().items())
    assert caught.value.samples == tuple(sample.id for sample in micro.samples)


def test_the_prior_weighs_in_as_the_paper_has_it(family: Family, tiny_pictures: Path, tmp_path: Path) -> None:
    """Elementwise: gradient = gradient of the subject + weight x gradient of the class (Ruiz et al. 2023, eq. 2)."""
    prior = {"prompt": "a shape", "count": 4, "path": str(class_folder(tiny_pictures, tmp_path)), "weight": 0.25}
    with trainer_on(tiny_config(tiny_pictures, data={"prior": prior}), family) as trainer:
        recorder = Recorder(dict(trainer.injection.named_parameters()))
        context = replace(trainer.context, optimizer=recorder, max_grad_norm=None)
        (micro,) = trainer.batches.micro_batches(0)
        assert micro.is_prior_B.tolist() == [False, False, True, True]
        result, both = train_step(context, 0, [micro]), recorder.gradients
        own = train_step(context, 0, [replace(micro, weight_B=torch.tensor([0.5, 0.5, 0.0, 0.0]))])
        own_gradients = recorder.gradients
        train_step(context, 0, [replace(micro, weight_B=torch.tensor([0.0, 0.0, 0.5, 0.5]))])
    assert result.prior_loss is not None and result.loss == pytest.approx(own.loss)
    for name, gradient in both.items():
        expected = own_gradients[name] + 0.25 * recorder.gradients[name]
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6 * float(gradient.abs().max()))


def class_folder(pictures: Path, folder: Path) -> Path:
    """Four pictures of the class, with captions that must not count."""
    for path in sorted(pictures.glob("*.png"))[:4]:
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_missing_prior_pictures_are_a_mistake_said_before_training(
    family: Family, tiny_pictures: Path, tmp_path: Path
) -> None:
    config = tiny_config(tiny_pictures, data={"prior": {"prompt": "a shape", "path": str(tmp_path / "none")}})
    with raises_code("data.no_prior", "no picture of the class"), trainer_on(config, family):
        pass


def test_bfloat16_is_near_float32_but_not_it(family: Family, tiny_pictures: Path, bfloat16_error: float) -> None:
    exact = gradients_of(tiny_config(tiny_pictures), family)
    rough = gradients_of(tiny_config(tiny_pictures, train={"precision": "bfloat16"}), family)
    assert exact.keys() == rough.keys()
    for name, gradient in exact.items():
        assert rough[name].dtype == torch.float32
        assert not torch.equal(rough[name], gradient)
    assert distance(rough, exact) <= bfloat16_error < 0.2


def test_weights_may_be_stored_in_bfloat16(tiny_base: Path, tiny_pictures: Path, bfloat16_error: float) -> None:
    family, device = load_family(str(tiny_base)), torch.device("cpu")
    exact = gradients_of(tiny_config(tiny_pictures), family)
    config = tiny_config(tiny_pictures, train={"precision": "bfloat16"})
    family.to(device, precision_of("bfloat16", device).dtype)
    rough = gradients_of(config, family)
    assert all(gradient.dtype == torch.float32 for gradient in rough.values())
    assert distance(rough, exact) <= bfloat16_error


def test_float16_on_the_cpu_is_refused_in_one_line(family: Family, tiny_pictures: Path) -> None:
    before = bits_of(family.networks)
    config = tiny_config(tiny_pictures, train={"precision": "float16"})
    with pytest.raises(UserError, match=r"train\.precision.*bfloat16"), trainer_on(config, family):
        pass
    assert bits_of(family.networks).keys() == before.keys()  # nothing was injected


def test_float16_scales_its_loss_and_skips_a_step_that_overflows(family: Family, tiny_pictures: Path) -> None:
    """The CPU can do float16's arithmetic, slowly: enough to test the scaling that a GPU's run relies on."""
    with trainer_on(tiny_config(tiny_pictures), family) as trainer:
        half = Precision(torch.float16, torch.device("cpu"))
        context = replace(trainer.context, precision=half, scaler=half.scaler())
        started = {name: p.detach().clone() for name, p in trainer.injection.named_parameters()}
        context.scaler.load_state_dict({**context.scaler.state_dict(), "scale": 2.0**40})
        over = train_step(context, 0, trainer.batches.micro_batches(0))
        assert over.skipped and context.scaler.get_scale() == 2.0**39
        assert all(torch.equal(p, started[name]) for name, p in trainer.injection.named_parameters())
        context.scaler.load_state_dict({**context.scaler.state_dict(), "scale": 2.0**10})
        fine = train_step(context, 0, trainer.batches.micro_batches(0))
        assert not fine.skipped and fine.gradient_norm > 0
        assert any(not torch.equal(p, started[name]) for name, p in trainer.injection.named_parameters())


def test_a_loss_that_is_not_finite_before_any_change_is_the_bases(family: Family, tiny_pictures: Path) -> None:
    """The adapter adds nothing in the first step, so a lower learning rate could not help."""
    with trainer_on(tiny_config(tiny_pictures), family, moved=False) as trainer:
        micros = [replace(micro, latents=micro.latents * torch.nan) for micro in trainer.batches.micro_batches(0)]
        remedies = []
        for number in (0, 1):
            with raises_code("train.loss_not_finite") as caught:
                train_step(trainer.context, number, micros)
            remedies.append(str(caught.value).partition("; ")[2])
    first, later = remedies
    assert "the base gives this" in first and "learning_rate" not in first
    assert later.startswith("lower train.learning_rate")


def test_losses_are_read_after_the_backward_pass(
    family: Family, tiny_pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU reading waits for all that was asked of it, which should be the backward pass too."""
    order: list[str] = []
    backward, tolist = torch.autograd.backward, torch.Tensor.tolist

    def noted(name: str, function: Any) -> Any:
        return lambda *args, **kwargs: (order.append(name), function(*args, **kwargs))[1]

    with trainer_on(tiny_config(tiny_pictures), family) as trainer:
        micros = trainer.batches.micro_batches(0)
        monkeypatch.setattr(torch.autograd, "backward", noted("backward", backward))
        monkeypatch.setattr(torch.Tensor, "tolist", noted("read", tolist))
        train_step(trainer.context, 0, micros)
    assert order[0] == "backward" and "read" in order


def test_what_only_the_cpu_reads_stays_there(family: Family, tiny_pictures: Path) -> None:
    with trainer_on(tiny_config(tiny_pictures), family) as trainer:
        (micro,) = replace(trainer.batches, device=torch.device("meta")).micro_batches(0)
    assert (micro.latents.device.type, micro.is_prior_B.device.type) == ("meta", "cpu")
