"""A large base's text encoders are read to encode the texts of a run, and gone before its denoiser is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Qwen3Config, Qwen3Model

from tests.bases import write_tiny_flux, write_tiny_sdxl
from tests.errors import raises_code
from tests.running import hashes, quick_config, without_rehearsals
from tests.training import tiny_config
from veneer.data.preflight import survey
from veneer.engine.placeholders import is_placeholder
from veneer.engine.quantized import QuantizedLayer, quantization_of
from veneer.family.loading import load_base, load_run_base
from veneer.family.networks import LoadOptions, load_network, make_network
from veneer.family.protocol import Family
from veneer.family.registry import load_family
from veneer.plan.abstract import abstract_base
from veneer.plan.assessment import plan_loaded
from veneer.plan.memory import ENCODING, LOADING, STEP
from veneer.plan.rehearsal import RunInputs, rehearse
from veneer.plan.tracer import MemoryTracer
from veneer.run.session import run_training
from veneer.train.events import StepDone
from veneer.train.loop import Trainer

LARGE = ("text_encoder", "text_encoder_2", "transformer")


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny FLUX.1 whose text encoders and transformer lie in bfloat16, as the published one's do."""
    folder = write_tiny_flux(tmp_path_factory.mktemp("flux") / "base")
    for name in LARGE:
        for path in (folder / name).glob("*.safetensors"):
            weights = {key: weight.bfloat16() for key, weight in load_file(path).items()}
            save_file(weights, path, {"format": "pt"})
    return folder


@pytest.fixture(scope="module", autouse=True)
def small_pictures() -> Any:
    from veneer.family.flux import Flux

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Flux, "trained_side", 8)
        yield


def parts_of(family: Family) -> dict[str, nn.Module]:
    return dict(family.on_demand)


def is_unread(part: nn.Module) -> bool:
    return any(map(is_placeholder, part.parameters()))


def in_memory(family: Family) -> set[str]:
    return {name for name, part in parts_of(family).items() if not is_unread(part)}


def test_nothing_but_the_autoencoder_is_read_before_it_is_called(flux: Path) -> None:
    whole, family = load_family(str(flux)), load_base(str(flux), on_demand=True)
    assert in_memory(family) == set() and in_memory(whole) == set(LARGE)
    assert family.settings == whole.settings
    with torch.no_grad():
        mine, theirs = family.encode_text(["a cat"]), whole.encode_text(["a cat"])
        assert in_memory(family) == {"text_encoder", "text_encoder_2"}
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs.tensors)
        family.offload(("text_encoder", "text_encoder_2"))
        assert in_memory(family) == {"transformer"}
        noisy, t_B = torch.ones(1, channels(whole), 4, 4), torch.tensor([0.5], dtype=torch.float64)
        assert torch.equal(family.predict(noisy, t_B, mine), whole.predict(noisy, t_B, theirs))
    family.offload(())
    for name, part in parts_of(family).items():
        expected = parts_of(whole)[name].state_dict()
        assert all(torch.equal(weight, expected[key]) for key, weight in part.state_dict().items())
        assert not any(module._forward_pre_hooks for module in part.modules())


def channels(family: Family) -> int:
    return family.encode_image(torch.zeros(1, 3, 16, 16)).mean.shape[1]


@pytest.mark.parametrize("format", [None, "bnb_nf4", "none"])
def test_text_encoders_are_held_in_16_bits_or_fewer_and_dropped(format: str | None, flux: Path) -> None:
    """In the 16 bits of their files they make the same embeddings as in float32, to the bit."""
    plain = load_family(str(flux))
    family = load_base(str(flux), "bnb_nf4", text_encoder_quantization=format, on_demand=True)
    formats = [quantization_of(part) for part in parts_of(family).values()]
    assert formats == [format or "bfloat16"] * 2 + ["bnb_nf4"]
    with torch.no_grad():
        mine, theirs = family.encode_text(["a cat"]), plain.encode_text(["a cat"])
    for name, tensor in theirs.tensors.items():
        assert torch.equal(mine[name], tensor) is (format != "bnb_nf4"), name
    encoder: Any = parts_of(family)["text_encoder_2"]
    assert not is_unread(encoder)
    family.offload(("text_encoder", "text_encoder_2"))
    layers = [module for module in encoder.modules() if isinstance(module, QuantizedLayer)]
    assert is_unread(encoder) and bool(layers) is (format != "none")
    assert all(is_placeholder(part) for layer in layers for part in layer.parts)
    assert sum(p.untyped_storage().nbytes() for p in encoder.parameters()) <= 8 * len(list(encoder.parameters()))
    with torch.no_grad():
        again = family.encode_text(["a cat"])
    assert all(torch.equal(again[name], mine[name]) for name in mine.tensors)


def test_a_text_encoder_that_was_changed_stays(flux: Path) -> None:
    family = load_base(str(flux), on_demand=True)
    family.offload(())
    encoder = parts_of(family)["text_encoder"]
    next(encoder.parameters()).data.add_(1)
    family.offload(("text_encoder", "text_encoder_2"))
    assert in_memory(family) == {"text_encoder", "transformer"}


@pytest.mark.parametrize("sections", [{}, {"adapter": {"text_encoders": {"text_encoder": {}}}}], ids=["alone", "texts"])
@pytest.mark.slow
def test_a_run_has_the_bits_of_one_that_has_all_in_memory(
    sections: dict[str, Any], flux: Path, tiny_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_rehearsals(monkeypatch)
    found = []
    for offload in (True, False):
        train = {"max_steps": 2, "offload": offload, "quantization": "bnb_nf4"}
        config = quick_config(flux, tiny_pictures, tmp_path / str(offload), train=train, **sections)
        run_training(config)
        found.append(hashes(config.output.dir))
    assert found[0] == found[1]


@pytest.mark.parametrize("tags", [{}, {"shuffle_tags": True, "tag_separator": " ", "tag_dropout": 0.2}])
def test_text_encoders_are_gone_before_the_denoiser_is_read(
    flux: Path, tiny_pictures: Path, tags: dict[str, Any]
) -> None:
    """Also where each draw shows a text of its own."""
    data = {"sources": [{"path": str(tiny_pictures), **tags}]}
    config = tiny_config(tiny_pictures, base=str(flux), train={"max_steps": 2, "batch_size": 2}, data=data)
    family = load_run_base(config)
    trainer = Trainer(config, family, survey(config.data))
    assert in_memory(family) == set()  # adapters are in, nothing was read for them
    together: list[set[str]] = []
    transformer: Any = parts_of(family)["transformer"]
    handle = transformer.register_forward_hook(lambda *_: together.append(in_memory(family)))
    for event in trainer.run():
        if isinstance(event, StepDone):
            assert in_memory(family) == {"transformer"}
    assert together and all(one == {"transformer"} for one in together)
    handle.remove()
    trainer.close()
    assert in_memory(family) == {"transformer"}  # text encoders come back when somebody calls them
    family.encode_text(["a cat"])
    assert in_memory(family) == set(LARGE)


def test_an_adapter_that_starts_from_the_weights_has_them(flux: Path, tiny_pictures: Path) -> None:
    config = tiny_config(tiny_pictures, base=str(flux), adapter={"method": "dora"})
    assert in_memory(load_run_base(config)) == set(LARGE)


def test_a_training_adapter_has_weights_to_be_merged_into(flux: Path, tiny_pictures: Path, tmp_path: Path) -> None:
    adapter = {"training_adapter": str(tmp_path / "a.safetensors")}
    config = tiny_config(tiny_pictures, base=str(flux), adapter=adapter)
    assert in_memory(load_run_base(config)) == set(LARGE)


def test_files_are_checked_before_anything_is_read(flux: Path, tmp_path: Path) -> None:
    import shutil

    base = Path(shutil.copytree(flux, tmp_path / "base"))
    path = base / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    del weights["proj_out.weight"]
    save_file(weights, path, {"format": "pt"})
    with raises_code("base.wrong_weights"):
        load_base(str(base), on_demand=True)


def test_small_bases_are_read_at_once(tmp_path: Path) -> None:
    family = load_base(str(write_tiny_sdxl(tmp_path / "xl")), text_encoder_quantization=None, on_demand=True)
    assert not family.on_demand
    assert not any(map(is_unread, family.networks.values()))
    assert {quantization_of(network) for network in family.networks.values()} == {"none"}


def test_a_copy_without_data_has_all_weights_and_leaves_the_base_unread(flux: Path) -> None:
    family = load_base(str(flux), "bnb_nf4", text_encoder_quantization=None, on_demand=True)
    whole = load_base(str(flux), "bnb_nf4", text_encoder_quantization=None)
    bytes_of = []
    for one in (family, whole):
        tracer = MemoryTracer(torch.device("cpu"))
        tracer.without_data(one)
        bytes_of.append(tracer.weight_bytes)
    assert abs(bytes_of[0] - bytes_of[1]) < 1000 < bytes_of[0] and in_memory(family) == set()


@pytest.mark.slow
def test_the_plan_has_text_encoders_and_denoiser_one_after_the_other(flux: Path, tiny_pictures: Path) -> None:
    def config(**train: Any) -> Any:
        return tiny_config(tiny_pictures, base=str(flux), train={"quantization": "bnb_nf4", **train})

    family = load_run_base(config())
    loaded = plan_loaded(config(), family)
    sketched = rehearse(config(), lambda tracer: abstract_base(config(), tracer), RunInputs(torch.device("cpu")))
    at_once = config(offload=False)
    whole = rehearse(at_once, lambda tracer: abstract_base(at_once, tracer), RunInputs(torch.device("cpu")))
    assert in_memory(family) == set()
    for plan in (loaded, sketched):
        assert plan.memory and whole.memory
        phases, before = ({p.name: p for p in one.memory.phases} for one in (plan, whole) if one.memory)
        texts = {f"weights: {name}" for name in ("text_encoder", "text_encoder_2")}
        assert "weights: autoencoder" in phases[LOADING].parts
        assert all(phases[LOADING].parts.get(f"weights: {name}", 0) < 1000 for name in LARGE)
        assert phases[ENCODING].parts["weights: text_encoder_2"] > 10_000
        assert phases[STEP].parts.get("weights: text_encoder_2", 0) < 1000
        assert phases[ENCODING].parts.get("weights: transformer", 0) < 1000
        step, step_before = (one[STEP].parts["weights: transformer"] for one in (phases, before))
        assert step == pytest.approx(step_before, abs=1000)
        assert all(before[STEP].parts[text] > 10_000 for text in texts)
        assert "read to encode texts, and gone before a step: text_encoder" in str(plan.memory)
        assert "read to encode texts" not in str(whole.memory)
    assert loaded.memory.peak == pytest.approx(sketched.memory.peak, rel=0.05)


def test_names_of_earlier_releases_of_transformers_are_read_weight_by_weight(tmp_path: Path) -> None:
    config = Qwen3Config(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, head_dim=8
    )
    Qwen3Model(config).save_pretrained(tmp_path / "text_encoder")
    path = tmp_path / "text_encoder" / "model.safetensors"
    save_file({f"model.{name}": weight for name, weight in load_file(path).items()}, path, {"format": "pt"})
    options = LoadOptions(text_encoders=("text_encoder",), text_encoder_quantization="bnb_nf4")
    made = make_network(Qwen3Model, tmp_path, "text_encoder", options)
    read = load_network(Qwen3Model, tmp_path, "text_encoder", options)
    assert is_unread(made) and not is_unread(read)
    assert [name for name, _ in made.named_parameters()] == [name for name, _ in read.named_parameters()]
