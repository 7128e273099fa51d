"""FLUX.2's peculiarities against diffusers' own pipelines; what all families share is in ``test_families``."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import Flux2KleinPipeline, Flux2Pipeline
from diffusers.pipelines.flux2.pipeline_flux2 import format_input
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from torch import Tensor, nn

from tests.families import CAPTIONS
from tests.families.flux2_dev import write_tiny_dev
from tests.families.flux2_klein import write_tiny_klein
from tests.native_files import write_native_file
from tests.parity.test_families import conditioning_of, latents_of
from veneer.adapter.inject import inject
from veneer.adapter.lora import LoraSpec
from veneer.config.objective_config import ObjectiveConfig
from veneer.family.abstract import make_network
from veneer.family.flux2 import Flux2Dev, Flux2Klein
from veneer.family.key_names.flux2 import flux2_names
from veneer.family.networks import LoadOptions
from veneer.family.published import read_published
from veneer.family.registry import load_family
from veneer.objective.loss import Objective

LOAD = LoadOptions()
T = torch.tensor([0.3, 0.8], dtype=torch.float64)


@pytest.fixture(scope="module")
def klein_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_klein(tmp_path_factory.mktemp("base") / "klein")


@pytest.fixture(scope="module")
def dev_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_dev(tmp_path_factory.mktemp("base") / "dev")


@pytest.fixture(scope="module")
def klein(klein_folder: Path) -> Flux2Klein:
    return Flux2Klein(Flux2KleinPipeline.from_pretrained(klein_folder).components)


@pytest.fixture(scope="module")
def dev(dev_folder: Path) -> Flux2Dev:
    return Flux2Dev(Flux2Pipeline.from_pretrained(dev_folder).components)


def told(family: Flux2Dev | Flux2Klein, patch: pytest.MonkeyPatch) -> Mapping[str, Any]:
    """What the transformer is given for latents of 4 x 6 tokens."""
    transformer, given = family.networks["transformer"], {}
    forward: Callable[..., Any] = transformer.forward

    def keep(**arguments: Any) -> Any:
        given.update(arguments)
        return forward(**arguments)

    patch.setattr(transformer, "forward", keep)
    with torch.no_grad():
        family.predict(latents_of(family, (4, 6)), T, conditioning_of(family, (4, 6)))
    return given


def test_dev_is_told_a_guidance_of_1_and_klein_none(
    dev: Flux2Dev, klein: Flux2Klein, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert torch.equal(told(dev, monkeypatch)["guidance"], torch.ones(2))
    assert told(klein, monkeypatch)["guidance"] is None


def test_places_have_four_numbers_as_the_pipeline_has_them(klein: Flux2Klein, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts are told apart by the last, rows and columns of a picture by the two before it."""
    given = told(klein, monkeypatch)
    text = Flux2KleinPipeline._prepare_text_ids(torch.zeros(1, 512, 8))[0]
    picture = Flux2KleinPipeline._prepare_latent_ids(torch.zeros(1, 16, 4, 6))[0]
    assert torch.equal(given["txt_ids"], text) and torch.equal(given["img_ids"], picture.float())
    assert given["hidden_states"].shape == (2, 4 * 6, 16) and given["timestep"].tolist() == T.float().tolist()


@torch.no_grad()
def test_latents_are_squares_standardised_by_numbers_among_the_weights(klein_folder: Path) -> None:
    family = load_family(str(klein_folder))
    pixels = torch.rand(1, 3, 16, 24) * 2 - 1
    before, settings = family.encode_image(pixels), dict(family.settings)
    assert before.mean.shape == (1, 16, 4, 6) and settings["vae.bn.eps"] == "0.0001"
    family.pipeline().vae.bn.running_mean += 1  # type: ignore[attr-defined]
    after = family.encode_image(pixels)
    assert not torch.allclose(after.mean, before.mean) and torch.equal(after.std, before.std)
    changed = {key for key, value in family.settings.items() if settings[key] != value}
    assert changed == {"vae.bn.running_mean"}, "so a cache of the old latents is another one"


def test_a_text_s_padding_and_template_are_settings(dev: Flux2Dev, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, before = dev.pipeline().components["tokenizer"], dict(dev.settings)
    monkeypatch.setattr(tokenizer, "padding_side", "left")
    monkeypatch.setattr(tokenizer, "chat_template", f"{tokenizer.chat_template} ")
    changed = {key for key, value in dev.settings.items() if before.get(key) != value}
    assert changed == {"tokenizer.padding_side", "tokenizer.chat_template"}


@torch.no_grad()
def test_klein_reads_three_layers_of_a_conversation_without_thinking(klein: Flux2Klein) -> None:
    parts = klein.pipeline().components
    text = "<|im_start|>user\na cat<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    inputs = parts["tokenizer"](text, return_tensors="pt", padding="max_length", max_length=512)
    states = parts["text_encoder"](**inputs, output_hidden_states=True).hidden_states
    expected = torch.cat([states[layer] for layer in (9, 18, 27)], dim=-1)
    torch.testing.assert_close(klein.encode_text(["a cat"])["text"], expected)


@torch.no_grad()
def test_dev_reads_three_layers_behind_a_system_message(dev: Flux2Dev) -> None:
    parts = dev.pipeline().components
    text = f"<s>[SYSTEM_PROMPT]{SYSTEM_MESSAGE}[/SYSTEM_PROMPT][INST]a cat[/INST]"
    inputs = parts["tokenizer"](
        text, return_tensors="pt", padding="max_length", max_length=512, add_special_tokens=False
    )
    states = parts["text_encoder"](**inputs, output_hidden_states=True).hidden_states
    expected = torch.cat([states[layer] for layer in (10, 20, 30)], dim=-1)
    torch.testing.assert_close(dev.encode_text(["a cat"])["text"], expected)


@torch.no_grad()
@pytest.mark.parametrize("name", ["klein", "dev"])
def test_a_caption_is_read_up_to_its_limit_and_not_further(name: str, request: pytest.FixtureRequest) -> None:
    """Where both are too long, the end of the template is cut first."""
    family = request.getfixturevalue(name)
    limit = family.text_length
    assert not family.unread(["x" * limit]) and family.unread(["x" * (limit + 1)])

    def encoded(text: str) -> Tensor:
        tensor: Tensor = family.encode_text([text])["text"]
        return tensor

    full = "x" * (limit - 1)
    assert not torch.equal(encoded(f"{full}a"), encoded(f"{full}b"))
    assert torch.equal(encoded(f"{full}xa"), encoded(f"{full}xb"))


def test_a_processor_of_texts_and_pictures_is_read_as_its_tokenizer(dev_folder: Path, tmp_path: Path) -> None:
    """The published index names one that needs torchvision, and texts do not."""
    folder = shutil.copytree(dev_folder, tmp_path / "dev")
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    index["tokenizer"] = ["transformers", "PixtralProcessor"]
    (folder / "model_index.json").write_text(json.dumps(index), "utf-8")
    family, plain = load_family(str(folder)), load_family(str(dev_folder))
    with torch.no_grad():
        assert torch.equal(family.encode_text(CAPTIONS)["text"], plain.encode_text(CAPTIONS)["text"])


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_processor_makes_the_tokens_of_its_tokenizer(
    dev: Flux2Dev, monkeypatch: pytest.MonkeyPatch, side: str
) -> None:
    """Its own code, which transformers gives out with torchvision alone, over texts."""
    import transformers.processing_utils
    from transformers import PixtralImageProcessorPil

    monkeypatch.setattr(transformers.utils, "is_vision_available", lambda: False)
    from transformers.models.pixtral.processing_pixtral import PixtralProcessor

    tokenizer: Any = dev.pipeline().components["tokenizer"]
    monkeypatch.setattr(tokenizer, "padding_side", side)
    pictures = PixtralImageProcessorPil()
    processor = PixtralProcessor(image_processor=pictures, tokenizer=tokenizer, chat_template=tokenizer.chat_template)
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": False}
    options |= {"padding": "max_length", "truncation": True, "max_length": 512}
    messages = format_input([*CAPTIONS, "", "x [IMG] " * 200])
    theirs, own = (one.apply_chat_template(messages, **options) for one in (processor, tokenizer))
    assert torch.equal(own["input_ids"], theirs["input_ids"])
    assert torch.equal(own["attention_mask"], theirs["attention_mask"])


def test_times_are_shifted_by_size_as_both_fluxes_were_trained(klein: Flux2Klein) -> None:
    """As Black Forest Labs told OneTrainer's authors; in painting the pipeline shifts more, and by its steps."""
    objective = Objective.from_config(ObjectiveConfig(), klein)
    assert (klein.default_shift, objective.density.name) == ("resolution", "logit_normal")
    shift = objective.density.shift_of(64 * klein.multiple, 64 * klein.multiple)
    assert shift == pytest.approx(math.exp(1.15), rel=1e-12)


@pytest.mark.parametrize(
    ("name", "kind", "blocks", "layers", "parameters"),
    [
        ("flux2-klein-4b", Flux2Klein, 25, 80, 18_677_760),
        pytest.param("flux2-klein-9b", Flux2Klein, 32, 112, 31_981_568, marks=pytest.mark.slow),
        pytest.param("flux2-dev", Flux2Dev, 56, 160, 83_361_792, marks=pytest.mark.slow),
    ],
)
def test_the_default_targets_reach_every_block(
    name: str, kind: type[Flux2Dev | Flux2Klein], blocks: int, layers: int, parameters: int
) -> None:
    """Those of other families reach the double blocks alone: 5 of klein 4B's 25."""
    network = published_transformer(name)
    plain = adapted(network, ("to_q", "to_k", "to_v", "to_out.0"))
    own = adapted(network, kind.default_targets["transformer"])
    assert len({block_of(path) for path in own}) == blocks > 3 * len({block_of(path) for path in plain})
    assert (len(own), sum(own.values())) == (layers, parameters)
    modules = dict(network.named_modules())
    assert all(isinstance(modules[path.removeprefix("transformer.")], nn.Linear) for path in own)


def published_transformer(name: str) -> nn.Module:
    from diffusers import Flux2Transformer2DModel

    return make_network(Flux2Transformer2DModel, read_published(name).parts["transformer"], torch.float32)


def adapted(network: nn.Module, targets: tuple[str, ...]) -> dict[str, int]:
    injection = inject({"transformer": network}, {"transformer": LoraSpec(16, 16.0, targets)}, seed=0)
    try:
        return injection.parameter_counts()
    finally:
        injection.eject()


def block_of(path: str) -> str:
    return ".".join(path.split(".")[1:3])


def test_a_distilled_klein_says_what_training_does_to_it(klein_folder: Path, tmp_path: Path) -> None:
    assert Flux2Klein.load(klein_folder, LOAD).distilled is None
    distilled = Flux2Klein.load(write_tiny_klein(tmp_path / "klein", is_distilled=True), LOAD)
    assert distilled.distilled is not None and "train its base" in distilled.distilled
    assert distilled.pipeline().config["is_distilled"]


def test_programs_call_the_sizes_by_their_names(klein: Flux2Klein, dev: Flux2Dev) -> None:
    assert (dev.labels.architecture, dev.labels.version, dev.labels.civitai) == ("Flux.2-dev", "flux_2_dev", "Flux.2 D")
    assert (klein.labels.architecture, klein.labels.version) == ("Flux.2-klein", None), "of no published size"
    small = Flux2Klein.abstract(read_published("flux2-klein-4b").parts, torch.float32)
    assert (small.labels.version, small.labels.civitai) == ("flux_2_klein_4b", "Flux.2 Klein 4B-base")


@pytest.mark.parametrize("name", ["klein", "dev"])
@pytest.mark.parametrize("stem", ["", "model.diffusion_model."])
def test_a_file_of_the_transformer_is_known_and_read(
    name: str, stem: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """diffusers has one kind for both, and reads none with a stem; [klein] has no weights for a guidance scale."""
    from diffusers import Flux2Transformer2DModel

    folder = shutil.copytree(request.getfixturevalue(f"{name}_folder"), tmp_path / "base")
    file = write_native_file(folder, folder / "flux2.safetensors", flux2_names, stem)
    theirs = load_family(str(folder)).networks["transformer"]
    if not stem:
        theirs = Flux2Transformer2DModel.from_single_file(file, config=str(folder), subfolder="transformer")
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    family = load_family(str(file))
    assert type(family) is type(request.getfixturevalue(name))
    own, expected = family.networks["transformer"].state_dict(), theirs.state_dict()
    assert own.keys() == expected.keys() and all(torch.equal(own[key], expected[key]) for key in own)
