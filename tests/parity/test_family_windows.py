"""Texts in several windows of the text encoder, against kohya's way and diffusers' own pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from tests.bases import write_tiny_sdxl
from veneer.family.loading import load_base
from veneer.family.protocol import Family
from veneer.sample.generate import generate

LENGTH, INNER = 16, 14  # tokens of the tiny encoders, with and without marks
CAPTIONS = ["", "a cat", "x" * INNER, "x" * (INNER + 1), "the cat, " * 7, "x" * 100]


def kohya_ids(tokenizer: Any, text: str, windows: int) -> Tensor:
    """Ids of a text (n, L), as sd-scripts 48d368f has them (library/strategy_base.py, _get_input_ids)."""
    most = windows * INNER + 2
    cut = {"padding": "max_length", "truncation": True, "max_length": most}
    ids = tokenizer(text, **cut, return_tensors="pt").input_ids[0]
    rows = []
    for start in range(1, most - LENGTH + 2, INNER):
        row = torch.cat([ids[:1], ids[start : start + INNER], ids[-1:]])
        if tokenizer.pad_token_id != tokenizer.eos_token_id:
            if row[-2] not in (tokenizer.eos_token_id, tokenizer.pad_token_id):
                row[-1] = tokenizer.eos_token_id
            if row[1] == tokenizer.pad_token_id:
                row[1] = tokenizer.eos_token_id
        rows.append(row)
    return torch.stack(rows)


def kohya_join(states_NLD: Tensor) -> Tensor:
    """Hidden states of a text's windows (n, L, D) as one sequence (1, T, D) (library/strategy_sdxl.py)."""
    states = states_NLD.reshape(1, -1, states_NLD.shape[-1])
    parts = [states[:, :1], *(states[:, at : at + INNER] for at in range(1, states.shape[1], LENGTH)), states[:, -1:]]
    return torch.cat(parts, dim=1)


@pytest.fixture(scope="module")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_sdxl(tmp_path_factory.mktemp("base") / "sdxl")


def in_windows(base: Path, count: int) -> Family:
    return load_base(str(base), token_windows=count)


@pytest.mark.parametrize("windows", [2, 3])
@torch.no_grad()
def test_stable_diffusion_s_texts_are_kohya_s(tiny_base: Path, windows: int) -> None:
    family, pipeline = in_windows(tiny_base, windows), StableDiffusionPipeline.from_pretrained(tiny_base)
    encoder = CLIPTextModel.from_pretrained(tiny_base, subfolder="text_encoder")
    for caption in CAPTIONS:
        ids = kohya_ids(pipeline.tokenizer, caption, windows)
        own = family.encode_text([caption])["text"]
        assert own.shape[1] == windows * INNER + 2
        alone = torch.cat([encoder(row[None])[0] for row in ids])
        assert torch.equal(own, kohya_join(alone)), caption
        torch.testing.assert_close(own, kohya_join(encoder(ids)[0]), rtol=0, atol=2e-6)


@pytest.mark.parametrize("windows", [2, 3])
@torch.no_grad()
def test_sdxl_s_texts_are_kohya_s_and_the_pooled_one_is_of_the_first_window(tiny_sdxl: Path, windows: int) -> None:
    family, pipeline = in_windows(tiny_sdxl, windows), StableDiffusionXLPipeline.from_pretrained(tiny_sdxl)
    first = CLIPTextModel.from_pretrained(tiny_sdxl, subfolder="text_encoder")
    second = CLIPTextModelWithProjection.from_pretrained(tiny_sdxl, subfolder="text_encoder_2")
    for caption in CAPTIONS[1:]:
        parts = []
        for tokenizer, encoder in ((pipeline.tokenizer, first), (pipeline.tokenizer_2, second)):
            ids = kohya_ids(tokenizer, caption, windows)
            outputs = [encoder(row[None], output_hidden_states=True) for row in ids]
            parts.append(kohya_join(torch.cat([output.hidden_states[-2] for output in outputs])))
        own = family.encode_text([caption])
        assert torch.equal(own["text"], torch.cat(parts, dim=-1)), caption
        assert torch.equal(own["pooled"], outputs[0].text_embeds), caption
    nothing = family.encode_text([""])
    assert not nothing["text"].any() and not nothing["pooled"].any()
    assert nothing["text"].shape[1] == windows * INNER + 2


@pytest.mark.parametrize("base", ["tiny_base", "tiny_sdxl"])
@torch.no_grad()
def test_one_window_is_what_it_was_and_rows_of_any_length_join(request: pytest.FixtureRequest, base: str) -> None:
    folder = request.getfixturevalue(base)
    plain, one, two = load_base(str(folder)), in_windows(folder, 1), in_windows(folder, 2)
    for name, tensor in plain.encode_text(CAPTIONS).tensors.items():
        assert torch.equal(one.encode_text(CAPTIONS)[name], tensor)
    both = two.encode_text(CAPTIONS)
    for row, caption in enumerate(CAPTIONS):
        for name, tensor in two.encode_text([caption]).tensors.items():
            torch.testing.assert_close(both[name][row : row + 1], tensor, rtol=0, atol=2e-6)
    # a text is seen further, and its first window as before
    long = CAPTIONS[-2]
    assert not torch.equal(two.encode_text([long])["text"], two.encode_text([long[:20]])["text"])
    same = plain.encode_text([long])["text"][:, : INNER + 1]
    assert torch.equal(two.encode_text([long])["text"][:, : INNER + 1], same)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("base", ["tiny_base", "tiny_sdxl"])
def test_diffusers_paints_the_same_from_the_embeddings(
    request: pytest.FixtureRequest, base: str, guidance: float
) -> None:
    folder = request.getfixturevalue(base)
    family, long = in_windows(folder, 3), "the cat, " * 7
    kind: Any = StableDiffusionPipeline if base == "tiny_base" else StableDiffusionXLPipeline
    with torch.no_grad():
        text, empty = family.encode_text([long]), family.encode_text([""])
    told = {"prompt_embeds": text["text"], "negative_prompt_embeds": empty["text"]}
    if base == "tiny_sdxl":
        told |= {"pooled_prompt_embeds": text["pooled"], "negative_pooled_prompt_embeds": empty["pooled"]}
    pipeline = kind.from_pretrained(folder)
    generator = torch.Generator().manual_seed(3)
    how = {"num_inference_steps": 2, "guidance_scale": guidance, "height": 16, "width": 16}
    theirs = pipeline(**told, **how, generator=generator).images
    ours = generate(family, [long], [3], steps=2, guidance=guidance)
    assert np.array_equal(levels(ours), levels(theirs))
    shorter = generate(in_windows(folder, 1), ["a cat"], [3], steps=2, guidance=guidance)
    assert not np.array_equal(levels(ours), levels(shorter))


def levels(pictures: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(picture, dtype=np.int16) for picture in pictures])


def test_what_is_not_read_begins_where_the_windows_end(tiny_base: Path) -> None:
    family = in_windows(tiny_base, 3)
    assert (family.text_length, family.token_windows) == (3 * INNER, 3)
    text = "a " * 42 + "b " * 8
    (one,) = family.unread([text, "a " * 42]).values()
    assert (one.limit, one.rest) == (42, "b " * 8)
    with torch.no_grad():
        assert torch.equal(family.encode_text([text])["text"], family.encode_text(["a " * 42])["text"])
        assert not torch.equal(family.encode_text([text])["text"], family.encode_text(["a " * 41])["text"])
