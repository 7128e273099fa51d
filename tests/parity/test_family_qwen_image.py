"""What is peculiar to Qwen-Image, against diffusers' own pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import QwenImagePipeline

from tests.errors import raises_code
from tests.families.qwen_image import write_tiny_qwen_image
from tests.families.qwen_parts import PREFIX, SUFFIX, tiny_tokenizer
from veneer.family.protocol import Conditioning
from veneer.family.qwen_image import QwenImage
from veneer.family.registry import load_family
from veneer.sample.generate import generate

LONG = ", ".join(["many words"] * 300)
CAPTIONS = ["", "a {} cat {0}", "the dog that sees a cat", LONG]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_qwen_image(tmp_path_factory.mktemp("base") / "qwen")


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    pipeline = QwenImagePipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def family(folder: Path) -> QwenImage:
    family = load_family(str(folder))
    assert isinstance(family, QwenImage)
    return family


def test_the_sentence_has_34_tokens_before_a_caption_and_5_behind_it(family: QwenImage, pipeline: Any) -> None:
    """As with the published tokenizer: the caption is what is left."""
    assert pipeline.prompt_template_encode == PREFIX + "{}" + SUFFIX
    assert pipeline.prompt_template_encode_start_idx == 34
    tokenizer = tiny_tokenizer()
    ids = tokenizer(pipeline.prompt_template_encode.format("a cat")).input_ids
    assert tokenizer.decode(ids[34:-5]) == "a cat"
    assert family.encode_text(["a cat"])["text"].shape[1] == len(ids) - 34


@torch.no_grad()
def test_captions_alone_are_what_the_pipeline_makes_of_a_padded_batch(family: QwenImage, pipeline: Any) -> None:
    """Braces in a caption are no place to write into, and a caption of over 512 tokens loses its end."""
    text, mask = pipeline.encode_prompt(CAPTIONS, "cpu", max_sequence_length=512)
    own = Conditioning.cat([family.encode_text([caption]) for caption in CAPTIONS])
    assert torch.equal(own["mask"], mask.bool()) and mask[-1].sum() == 512 == family.text_length
    torch.testing.assert_close(own["text"], text, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_last_hidden_states_are_those_after_the_final_norm(family: QwenImage, pipeline: Any) -> None:
    """transformers has them there since it has this model; another release might not."""
    ids = pipeline.tokenizer(PREFIX + "a cat" + SUFFIX, return_tensors="pt").input_ids
    last = pipeline.text_encoder.model(ids).last_hidden_state[:, 34:]
    torch.testing.assert_close(family.encode_text(["a cat"])["text"], last, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_what_stands_behind_a_caption_s_last_token_is_never_seen(family: QwenImage) -> None:
    text = Conditioning.cat([family.encode_text([caption]) for caption in CAPTIONS[1:3]])
    noise = torch.where(text["mask"][..., None], text["text"], 100 * torch.randn(text["text"].shape))
    noisy, t_B = torch.randn(2, 4, 4, 6), torch.tensor([0.2, 0.7], dtype=torch.float64)
    expected = family.predict(noisy, t_B, text)
    changed = Conditioning({"text": noise, "mask": text["mask"]})
    torch.testing.assert_close(family.predict(noisy, t_B, changed), expected, rtol=1e-5, atol=1e-6)
    unmasked = Conditioning({"text": noise, "mask": torch.ones_like(text["mask"])})
    assert not torch.allclose(family.predict(noisy, t_B, unmasked), expected, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_texts_of_one_length_have_no_mask(family: QwenImage, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the pipeline: attention without a mask has faster kernels. Rows are cut at their longest text."""
    told: list[Any] = []
    monkeypatch.setattr(family.networks["transformer"], "forward", _record(family, told))
    text = Conditioning.cat([family.encode_text([caption]) for caption in (*CAPTIONS[1:3], "a [] cat [0]")])
    noisy, t_B = torch.randn(2, 4, 4, 4), torch.tensor([0.2, 0.7], dtype=torch.float64)
    for rows in ([0, 1], [0, 2]):
        family.predict(noisy, t_B, text.rows(rows))
    masks = [call["encoder_hidden_states_mask"] for call in told]
    lengths = [call["encoder_hidden_states"].shape[1] for call in told]
    assert masks[1] is None and masks[0] is not None and masks[0].dtype == torch.bool
    assert lengths == [text["mask"][:2].sum(dim=1).max(), text["mask"][0].sum()]


def _record(family: QwenImage, told: list[Any]) -> Any:
    forward = family.networks["transformer"].forward

    def recording(**arguments: Any) -> Any:
        told.append(arguments)
        return forward(**arguments)

    return recording


@pytest.mark.slow
def test_a_scale_of_guidance_is_the_pipeline_s_true_one(family: QwenImage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its ``guidance_scale`` is for distilled bases; the other one does nothing without a negative prompt."""
    monkeypatch.setattr(family, "resolution", 16)
    own = generate(family, ["a cat", "the dog"], [1, 2], steps=2, guidance=3.0)
    expected = family.pipeline()(
        ["a cat", "the dog"],
        negative_prompt=[" ", " "],
        true_cfg_scale=3.0,
        generator=[torch.Generator().manual_seed(seed) for seed in (1, 2)],
        num_inference_steps=2,
        height=16,
        width=16,
    ).images
    plain = generate(family, ["a cat", "the dog"], [1, 2], steps=2, guidance=1.0)
    for one, other, without in zip(own, expected, plain, strict=True):
        assert np.array_equal(np.asarray(one), np.asarray(other))
        assert not np.array_equal(np.asarray(one), np.asarray(without))


def test_settings_tell_what_no_weight_tells(family: QwenImage) -> None:
    """A cache of latents and texts is of another base if one of these differs."""
    settings = family.settings
    assert {"vae.latents_mean", "vae.latents_std", "text_encoder.rms_norm_eps"} <= settings.keys()
    assert settings["text_encoder.num_hidden_layers"] == "2" and "text_encoder.rope_parameters" in settings


def test_an_autoencoder_without_a_deviation_for_each_channel_is_refused(pipeline: Any) -> None:
    vae = pipeline.vae
    own = vae.config.latents_std
    try:
        vae.register_to_config(latents_std=own[:-1])
        with raises_code("family.invalid_setting"):
            QwenImage(pipeline.components)
    finally:
        vae.register_to_config(latents_std=own)


def test_the_shift_is_the_scheduler_s_by_the_picture_s_size(family: QwenImage) -> None:
    """musubi-tuner documents about 2.2 for 1328 x 1328 with the published autoencoder: 83 x 83 tokens."""
    assert family.default_density == "logit_normal" and family.default_shift == "resolution"
    assert family.resolution_shift(83 * family.multiple, 83 * family.multiple) == pytest.approx(2.2, abs=0.15)
