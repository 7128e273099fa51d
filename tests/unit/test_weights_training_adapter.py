"""A training adapter is in the base while steps are done, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.errors import raises_code
from tests.training import bits_of, tiny_config
from veneer.adapter.inject import inject
from veneer.adapter.lora import LoraFactors, LoraSpec
from veneer.adapter.merge import merge
from veneer.adapter.protocol import AdapterWeights
from veneer.config.adapter_config import AdapterConfig
from veneer.config.schema import RunConfig
from veneer.data.preflight import survey
from veneer.family.protocol import Family
from veneer.train.events import Finished, SampleDue, StepDone, TrainingStarted, Warned
from veneer.train.loop import train
from veneer.weights.file import AdapterFile, save
from veneer.weights.training_adapter import TrainingAdapter, training_adapter_hash


def factors(path: str, family: Family, seed: int) -> LoraFactors:
    network, _, layer = path.partition(".")
    weight = family.networks[network].get_submodule(layer).weight
    assert isinstance(weight, Tensor)
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(2, weight.shape[1], generator=generator)
    return LoraFactors(down, torch.randn(weight.shape[0], 2, generator=generator) * 0.1, 2.0)


@pytest.fixture(scope="module")
def weights(family: Family) -> AdapterWeights:
    """An adapter of the attention, as people publish for a distilled base."""
    injection = inject(family.networks, {"unet": LoraSpec(2, 2.0, ("to_q", "to_v"))}, 0)
    paths = sorted(injection.weights())
    injection.eject()
    return {path: factors(path, family, seed) for seed, path in enumerate(paths)}


@pytest.fixture(scope="module")
def file(weights: AdapterWeights, family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("adapter") / "undistil.safetensors"
    save(AdapterFile(weights, {}), path)
    return path


def config_with(file: Path, pictures: Path, **sections: Any) -> RunConfig:
    return tiny_config(pictures, adapter={"training_adapter": str(file)}, **sections)


def bits(family: Family) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in bits_of(family.networks).items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_it_goes_in_and_out_without_a_trace(family: Family, file: Path) -> None:
    adapter = TrainingAdapter(AdapterConfig(training_adapter=file), family.networks, "unet")
    before = bits(family)
    with adapter.applied():
        inside = bits(family)
        with adapter.removed():
            assert same(bits(family), before)
        assert same(bits(family), inside) and not same(inside, before)
    assert same(bits(family), before) and adapter.is_there
    nothing = TrainingAdapter(AdapterConfig(), family.networks, "unet")
    with nothing.applied():
        assert same(bits(family), before) and not nothing.is_there


def test_a_run_with_it_ends_as_one_on_the_merged_base(
    family: Family, tiny_pictures: Path, file: Path, weights: AdapterWeights
) -> None:
    config, plain = config_with(file, tiny_pictures), tiny_config(tiny_pictures)
    before = bits(family)
    events = list(train(config, family, survey(config.data)))
    assert same(bits(family), before)
    inside = merge(family.networks, [(weights, 1.0)])
    try:
        expected = list(train(plain, family, survey(plain.data)))
    finally:
        inside.undo()
    found, wanted = events[-1], expected[-1]
    assert isinstance(found, Finished) and isinstance(wanted, Finished)
    assert [e.loss for e in events if isinstance(e, StepDone)] == [e.loss for e in expected if isinstance(e, StepDone)]
    assert found.weights.keys() == wanted.weights.keys()
    for path, own in found.weights.items():
        for part, tensor in own.state_dict().items():
            assert torch.equal(tensor, wanted.weights[path].state_dict()[part]), path
    without = list(train(plain, family, survey(plain.data)))[-1]
    assert isinstance(without, Finished)
    assert any(not torch.equal(own.up, without.weights[path].up) for path, own in found.weights.items())  # type: ignore[attr-defined]


def test_it_is_out_while_samples_are_due(family: Family, tiny_pictures: Path, file: Path) -> None:
    config = config_with(file, tiny_pictures, sample={"every": 1}, train={"max_steps": 2})
    layer = family.networks["unet"].get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
    own = layer.weight.clone() if isinstance(layer.weight, Tensor) else None
    seen: dict[str, list[bool]] = {}
    for event in train(config, family, survey(config.data)):
        if isinstance(event, (SampleDue, StepDone, TrainingStarted)):
            seen.setdefault(type(event).__name__, []).append(torch.equal(layer.weight, own))  # type: ignore[arg-type]
        assert isinstance(event, (SampleDue, Finished)) or not any(
            p.requires_grad for p in layer.parameters(recurse=False)
        )
    assert seen == {"SampleDue": [True] * 3, "StepDone": [False] * 2, "TrainingStarted": [False]}


def test_what_cannot_be_one_is_refused(family: Family, tmp_path: Path, file: Path) -> None:
    def refused(code: str, path: Path, **values: Any) -> None:
        with raises_code(code) as caught:
            TrainingAdapter(AdapterConfig(training_adapter=path, **values), family.networks, "unet")
        assert "\n" not in str(caught.value)

    refused("adapter.no_training_adapter", tmp_path / "nowhere.safetensors")
    refused("adapter.not_additive", file, method="dora")
    text = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    save(
        AdapterFile({text: factors("text_encoder.encoder.layers.0.self_attn.q_proj", family, 0)}, {}), tmp_path / "text"
    )
    refused("adapter.training_adapter_of_text", tmp_path / "text")
    other = {"transformer.transformer_blocks.0.attn.to_q": LoraFactors(torch.ones(2, 4), torch.ones(4, 2), 2.0)}
    save(AdapterFile(other, {}), tmp_path / "other")
    with raises_code("weights.unknown_layer"):
        TrainingAdapter(AdapterConfig(training_adapter=tmp_path / "other"), family.networks, "unet")
    with raises_code("adapter.no_training_adapter"):
        training_adapter_hash(tmp_path / "nowhere.safetensors")


def test_what_of_its_file_is_left_out_is_told(
    family: Family, tiny_pictures: Path, weights: AdapterWeights, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    save(AdapterFile(weights, {}), tmp_path / "a.safetensors")
    tensors = load_file(tmp_path / "a.safetensors") | {"bundle_emb.word.string_to_param": torch.ones(2, 4)}
    save_file(tensors, tmp_path / "b.safetensors")
    config = config_with(tmp_path / "b.safetensors", tiny_pictures, train={"max_steps": 1})
    warnings = [event for event in train(config, family, survey(config.data)) if isinstance(event, Warned)]
    assert [warning.code for warning in warnings] == ["adapter.training_adapter_left_out"]
