"""What is peculiar to the Qwen-Image-Edit bases, against diffusers' own pipelines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import QwenImageEditPipeline, QwenImageEditPlusPipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from PIL import Image
from torch import Tensor

from tests.errors import raises_code
from tests.families.qwen_image_edit import DIMENSIONS, open_pipeline, write_tiny_edit
from tests.families.qwen_image_edit_plus import CASE as PLUS
from tests.families.qwen_parts import EDIT_PREFIX, SUFFIX, tiny_tokenizer
from veneer.family.protocol import Conditioning
from veneer.family.qwen_image_edit import QwenImageEdit, QwenImageEditPlus
from veneer.family.qwen_processor import QwenProcessor
from veneer.family.registry import load_family
from veneer.plan.tracer import MemoryTracer
from veneer.sample.generate import generate

PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
KINDS: dict[str, tuple[Callable[[Path], Path], Any]] = {
    "edit": (write_tiny_edit, QwenImageEditPipeline),
    "plus": (PLUS.write, QwenImageEditPlusPipeline),
}


@pytest.fixture(scope="module", params=KINDS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[QwenImageEdit, Any]:
    write, kind = KINDS[request.param]
    folder = write(tmp_path_factory.mktemp("base") / "edit")
    family, pipeline = load_family(str(folder)), open_pipeline(folder, kind)
    pipeline.set_progress_bar_config(disable=True)
    assert isinstance(family, QwenImageEdit)
    return family, pipeline


@pytest.fixture(scope="module")
def family(both: tuple[QwenImageEdit, Any]) -> QwenImageEdit:
    return both[0]


def pictures(count: int, side: int = 32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(count)
    return [torch.rand(3, side, side, generator=generator) * 2 - 1 for _ in range(count)]


def test_the_sentence_has_64_tokens_before_an_instruction_and_5_behind_it(both: tuple[QwenImageEdit, Any]) -> None:
    """A picture's tokens stand behind those 64, and the transformer sees them."""
    family, pipeline = both
    within = "{}" if isinstance(family, QwenImageEditPlus) else PICTURE + "{}"
    assert pipeline.prompt_template_encode == EDIT_PREFIX + within + SUFFIX
    assert pipeline.prompt_template_encode_start_idx == 64
    tokenizer = tiny_tokenizer()
    ids = tokenizer(EDIT_PREFIX + "turn it" + SUFFIX).input_ids
    assert tokenizer.decode(ids[64:-5]) == "turn it"


@torch.no_grad()
def test_an_instruction_is_read_beside_its_picture(family: QwenImageEdit) -> None:
    """The smallest picture that the text encoder reads is 4 tokens, between two that mark it."""
    one, other = (family.encode_instructions(["turn it"], [pictures(count)[:1]])["text"] for count in (1, 2))
    words = len(tiny_tokenizer()("turn it" + SUFFIX).input_ids)
    name = len(tiny_tokenizer()("Picture 1: ").input_ids) if isinstance(family, QwenImageEditPlus) else 0
    assert one.shape == other.shape == (1, name + 4 + 2 + words, 24)
    assert not torch.allclose(one, other, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_every_picture_of_several_is_read_in_order(family: QwenImageEdit) -> None:
    if not isinstance(family, QwenImageEditPlus):
        assert family.reference_counts == range(1, 2)
        return
    first, second = pictures(2)
    one, other = (family.encode_instructions(["turn it"], [own])["text"] for own in ([first, second], [second, first]))
    assert one.shape == other.shape and not torch.allclose(one, other, rtol=1e-3, atol=1e-4)
    assert family.reference_counts == range(1, 4)


def test_the_text_encoder_sees_a_picture_at_the_pipeline_s_area(
    family: QwenImageEdit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a run's resolution is: when the base paints, it sees that area too."""
    monkeypatch.setattr(pipeline_qwenimage_edit, "calculate_dimensions", DIMENSIONS[0])
    monkeypatch.setattr(pipeline_qwenimage_edit_plus, "calculate_dimensions", DIMENSIONS[1])
    area = 384**2 if isinstance(family, QwenImageEditPlus) else 1024**2
    seen = family._seen(torch.zeros(3, 64, 96))
    assert seen.size == tuple(DIMENSIONS[0](area, 1.5)[:2]) and seen.width > seen.height
    assert abs(seen.width * seen.height / area - 1) < 0.06


@torch.no_grad()
def test_diffusers_does_not_say_which_tokens_are_a_picture_s(both: tuple[QwenImageEdit, Any]) -> None:
    """transformers 5 gives a picture's tokens rows and columns only if it is told; so all stand in one row."""
    family, pipeline = both
    inputs = family._inputs("turn it", pictures(1))
    assert "mm_token_type_ids" not in inputs
    own = family.encode_instructions(["turn it"], [pictures(1)])["text"]
    types = (inputs["input_ids"] == pipeline.text_encoder.config.image_token_id).int()
    told = pipeline.text_encoder(**inputs, mm_token_type_ids=types, output_hidden_states=True).hidden_states[-1]
    pipeline.text_encoder.model.rope_deltas = None
    assert types.sum() == 4 and not torch.allclose(told[:, 64:], own, rtol=1e-3, atol=1e-4)


def test_a_long_instruction_loses_its_end_and_not_its_picture(family: QwenImageEdit) -> None:
    long = ", ".join(["many words"] * 300)
    with torch.no_grad():
        text = family.encode_instructions([long], [pictures(1)])["text"]
        short = family.encode_instructions([""], [pictures(1)])["text"]
    assert family.text_length == 1024 and abs(text.shape[1] - short.shape[1] - 1024) <= 2
    assert family.unread([long])[long].is_cut


@torch.no_grad()
def test_a_reference_is_no_noise_and_its_place_is_told(family: QwenImageEdit) -> None:
    text = family.encode_instructions(["turn it"], [pictures(1)])
    noisy, t_B = torch.randn(1, 4, 4, 6), torch.tensor([0.6], dtype=torch.float64)
    shown = text.joined_to(Conditioning.of_references([torch.randn(1, 4, 8, 4)]).tensors)
    answer = family.predict(noisy, t_B, shown)
    assert answer.shape == noisy.shape
    assert not torch.allclose(answer, family.predict(noisy, t_B, text), rtol=1e-3, atol=1e-4)


def test_a_plan_counts_a_picture_s_tokens(family: QwenImageEdit) -> None:
    """Without the numbers of its pixels: 37 x 37 tokens of 1024 x 1024 pixels, 14 x 14 of 384 x 384."""
    tokens = 14**2 if isinstance(family, QwenImageEditPlus) else 37**2
    tracer = MemoryTracer(torch.device("cpu"))
    with tracer.unrecorded(), torch.no_grad():
        inputs = family._inputs("turn it", [torch.zeros(3, 32, 32)])
    sentence = len(tiny_tokenizer()(family._sentence("turn it", 1)).input_ids)
    assert inputs.keys() == {"input_ids"} and inputs["input_ids"].shape == (1, sentence + tokens)


def test_how_pictures_are_seen_is_a_setting(family: QwenImageEdit) -> None:
    assert "longest_edge" in family.settings["processor.size"]
    assert family.text_reads_references and family.resolution % family.multiple == 0


def test_2511_is_told_by_its_transformer(family: QwenImageEdit) -> None:
    expected = "Qwen-Image-Edit-2511" if isinstance(family, QwenImageEditPlus) else "Qwen-Image-Edit"
    assert family.labels.architecture == expected and family.labels.version == "qwen_image_edit"


def test_a_processor_that_is_missing_is_one_line(tmp_path: Path) -> None:
    folder = write_tiny_edit(tmp_path / "edit")
    (folder / "processor" / "preprocessor_config.json").unlink()
    with raises_code("base.unreadable"):
        load_family(str(folder))


@pytest.mark.slow
def test_a_picture_is_the_pipeline_s(both: tuple[QwenImageEdit, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """With guidance, whose other pass reads a blank beside the picture."""
    family, pipeline = both
    monkeypatch.setattr(family, "resolution", 32)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    own = generate(family, ["turn it"], [3], steps=2, guidance=3.0, references=[[image]])[0]
    expected = pipeline(
        image=[image] if isinstance(family, QwenImageEditPlus) else image,
        prompt=["turn it"],
        negative_prompt=[" "],
        true_cfg_scale=3.0,
        generator=[torch.Generator().manual_seed(3)],
        num_inference_steps=2,
        height=32,
        width=32,
    ).images[0]
    assert np.array_equal(np.asarray(own), np.asarray(expected)) and np.asarray(own).std() > 0


def test_the_processor_is_transformers_own() -> None:
    """Which can be made where torchvision is, that makes clips; it is asked for its picture processor without it."""
    pytest.importorskip("torchvision")
    from transformers import Qwen2VLProcessor, Qwen2VLVideoProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer, image_processor = tiny_tokenizer(), Qwen2VLImageProcessorPil()
    theirs = Qwen2VLProcessor(image_processor, tokenizer, Qwen2VLVideoProcessor())
    images = [Image.new("RGB", size) for size in ((64, 32), (90, 140))]
    told: dict[str, Any] = {"text": [f"a {PICTURE} cat", f"{PICTURE}"], "images": images}
    own = QwenProcessor(tokenizer, image_processor)(**told, padding=True, return_tensors="pt")
    for name, tensor in theirs(**told, padding=True, return_tensors="pt").items():
        assert name == "mm_token_type_ids" or torch.equal(own[name], tensor)


def test_a_picture_has_as_many_tokens_as_patches_after_merging() -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    processor = QwenProcessor(tiny_tokenizer(), Qwen2VLImageProcessorPil())
    images = [Image.new("RGB", size) for size in ((64, 32), (90, 140))]
    found = processor([f"a {PICTURE} cat", f"{PICTURE}"], images, padding=True, return_tensors="pt")
    pad = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    counts = (found["input_ids"] == pad).sum(dim=1)
    assert counts.tolist() == [int(grid.prod()) // 4 for grid in found["image_grid_thw"]]
    assert len(found["pixel_values"]) == 4 * counts.sum()
    assert found["attention_mask"].sum(dim=1).tolist() == [len(row[row != 0]) for row in found["input_ids"]]
