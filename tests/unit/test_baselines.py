"""LoRA's rivals: what each trains, that it starts as nothing and is undone, and what is said of the figures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tools.baselines import __main__ as baselines
from tools.baselines.methods import LORA, METHODS, Bottleneck, bottleneck, full, merged
from tools.publish import published
from veneer.config.load import build_config
from veneer.data.preflight import survey
from veneer.family.protocol import Conditioning, Family

NAMES = list(METHODS)


def predict(family: Family) -> torch.Tensor:
    """Return the denoiser's output for two noisy latents."""
    noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    text = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return family.predict(noisy, torch.tensor([0.01, 0.9]), Conditioning({"text": text}))


def bits(networks: Mapping[str, nn.Module]) -> dict[str, torch.Tensor]:
    return {f"{name}.{key}": value.clone() for name in networks for key, value in networks[name].state_dict().items()}


def shift(parameters: list[nn.Parameter]) -> None:
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.05)


@pytest.mark.parametrize("name", NAMES)
def test_a_method_starts_as_nothing_changes_the_output_and_is_undone(name: str, family: Family) -> None:
    before, base = bits(family.networks), predict(family)
    flags = [parameter.requires_grad for parameter in family.networks["unet"].parameters()]
    with METHODS[name].teach(family.networks) as taught:
        torch.testing.assert_close(predict(family), base)
        shift(taught.parameters)
        assert (predict(family) - base).abs().max() > 1e-3
    after = bits(family.networks)
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert torch.equal(predict(family), base)
    assert [parameter.requires_grad for parameter in family.networks["unet"].parameters()] == flags


def test_full_fine_tuning_reaches_every_weight(family: Family) -> None:
    unet = family.networks["unet"]
    with full(family.networks) as taught:
        assert {id(p) for p in taught.parameters} == {id(p) for p in unet.parameters()}
        noisy, text = torch.ones(1, 4, 8, 8), torch.ones(1, 16, 32)
        conditioning = Conditioning({"text": text})
        torch.autograd.backward(family.predict(noisy, torch.tensor([0.5]), conditioning).square().sum())
        assert all(p.grad is not None for p in taught.parameters)
    assert all(p.grad is None for p in unet.parameters())


def test_bottlenecks_are_where_houlsby_has_them_and_train_alone(family: Family) -> None:
    with bottleneck(family.networks) as taught:
        widths = [p.shape[1] for p in taught.parameters[::4]]  # of each W_down
        assert len(widths) % 3 == 0 and set(widths) == {16, 32}
        assert all(p.requires_grad for p in taught.parameters)
        assert not any(p.requires_grad for p in family.networks["unet"].parameters())


def test_a_bottleneck_is_the_closed_form() -> None:
    """h + W_up gelu(W_down h + b) + c, with the normal distribution function of erf."""
    layer = Bottleneck(3, 2, "x")
    shift(list(layer.parameters()))
    hidden = torch.randn(1, 5, 3, generator=torch.Generator().manual_seed(0))
    down, narrow_bias, up, bias = (p.detach().double().numpy() for p in layer.parameters())
    inner = hidden.double().numpy() @ down.T + narrow_bias
    gelu = inner * np.vectorize(lambda x: 0.5 * (1 + math.erf(x / math.sqrt(2))))(inner)
    expected = hidden.double().numpy() + gelu @ up.T + bias
    np.testing.assert_allclose(layer(hidden).detach().numpy(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(Bottleneck(3, 2, "x").down.weight, Bottleneck(3, 2, "x").down.weight)
    assert not torch.equal(Bottleneck(3, 2, "x").down.weight, Bottleneck(3, 2, "y").down.weight)


def test_merged_is_the_base_without_more_modules(family: Family) -> None:
    modules = [type(module) for module in family.networks["unet"].modules()]
    with merged(family.networks) as taught:
        assert not taught.parameters
        assert [type(module) for module in family.networks["unet"].modules()] == modules


def test_one_step_of_full_fine_tuning_is_adamws_closed_form(family: Family, tiny_pictures: Path) -> None:
    """The first step of AdamW is rate x (sign of the gradient + decay x weight), but where the gradient is tiny."""
    config = build_config(
        {
            "base": "bundled",
            "data": {"sources": [{"path": str(tiny_pictures)}], "held_out": 0.25},
            "train": {"max_steps": 1, "batch_size": 2, "optimizer": {"weight_decay": 0.5}},
        },
        "test",
    )
    before = family.networks["unet"].get_parameter("conv_in.weight").detach().clone()
    with full(family.networks) as taught:
        baselines.train(family, config, survey(config.data), taught, 1e-2)
        moved = family.networks["unet"].get_parameter("conv_in.weight").detach() - before * (1 - 1e-2 * 0.5)
    near = (moved.abs() - 1e-2).abs() < 1e-4
    assert near.float().mean() > 0.95


def figures() -> dict[str, Any]:
    """As a finished run leaves them: LoRA a tenth better than the base on each of four pictures."""
    base = [1.0, 1.2, 0.8, 1.1]
    return {
        "settings": baselines.SETTINGS,
        "machine": "a machine",
        "losses": {"base": base, **{name: [each - 0.1 for each in base] for name in NAMES}},
        "tried": {name: {"0.001": 0.5, "0.003": 0.4, "0.01": 0.6} for name in NAMES},
        "parameters": {name: 1234 for name in NAMES},
        "seconds": {
            str(size): {"base": [1.0, 2.0], baselines.MERGED: [1.0, 2.0], **{name: [1.5, 3.0] for name in NAMES}}
            for size in baselines.BATCHES
        },
    }


def test_the_table_tells_the_figures() -> None:
    text = baselines.table(figures())
    ratio = "1.500 (1.500 to 1.500)"
    gap = "-0.1000 [-0.1000, -0.1000]"
    assert f"| {LORA} | 1,234 | 0.003 | 0.9250 | {gap} |  | {ratio} | {ratio} |" in text
    assert f"| {baselines.MERGED} |  |  |  |  |  | 1.000 (1.000 to 1.000) | 1.000 (1.000 to 1.000) |" in text
    assert f"{LORA}: 0.001 0.5000, 0.003 0.4000, 0.01 0.6000" in text


def test_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the second training; and other settings begin anew."""
    calls: list[tuple[str, float]] = []

    def losses(family: object, name: str, config: Any, rate: float) -> tuple[Any, int]:
        calls.append((name, rate))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return np.full((2, 3), rate), 7

    monkeypatch.setattr(baselines, "_taught_losses", losses)
    monkeypatch.setattr(baselines, "heldout_losses", lambda *given: np.ones((2, 3)))
    path = tmp_path / "figures.json"
    with pytest.raises(KeyboardInterrupt):
        baselines.train_all(path)
    baselines.train_all(path)
    tried = [(name, rate) for name in NAMES for rate in METHODS[name].rates]
    finals = [(name, min(METHODS[name].rates)) for name in NAMES]  # the least loss, here
    assert sorted(calls) == sorted([*tried, *finals, tried[1]])
    done = baselines.read(path)
    assert done["losses"]["base"] == [1.0, 1.0] and not baselines.finished(done)
    path.write_text(json.dumps({**done, "settings": {"steps": 1}}), "utf-8")
    assert not baselines.read(path)["losses"]


def test_the_page_quotes_the_figures() -> None:
    told = baselines.read(baselines.FIGURES)
    expected = baselines.table(told) if baselines.finished(told) else "Not measured yet.\n"
    assert published(baselines.PAGE) == expected
