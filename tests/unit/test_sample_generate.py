"""Generation: each picture of its own seed, whatever its batch; diffusers paints the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from tests.training import tiny_config, trainer_on
from veneer.family.loading import load_base
from veneer.family.prompt_cache import PromptCache
from veneer.family.protocol import Family
from veneer.family.registry import load_family
from veneer.family.store import Store
from veneer.sample.generate import generate, generate_quietly

PROMPTS = ("a cat", "the dog", "a cat")
SEEDS = (3, 4, 5)


def levels(pictures: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(picture, dtype=np.int16) for picture in pictures])


def test_a_picture_does_not_depend_on_its_batch(family: Family) -> None:
    distributed = levels(generate(family, PROMPTS, SEEDS, steps=3))
    for batch in (1, 2):
        # batched matrix products may round otherwise: one level of 255
        assert np.abs(levels(generate(family, PROMPTS, SEEDS, steps=3, batch=batch)) - distributed).max() <= 1
    alone = levels(generate(family, PROMPTS[1:2], SEEDS[1:2], steps=3))
    assert np.abs(alone[0] - distributed[1]).max() <= 1


def test_the_same_twice_whatever_torch_drew_before(family: Family) -> None:
    first = levels(generate(family, PROMPTS, SEEDS, steps=3))
    torch.manual_seed(7)
    assert np.array_equal(levels(generate(family, PROMPTS, SEEDS, steps=3)), first)


def test_seed_prompt_steps_and_guidance_each_change_the_picture(family: Family) -> None:
    def painted(prompt: str = "a cat", seed: int = 3, steps: int = 3, guidance: float = 4.0) -> np.ndarray:
        return levels(generate(family, [prompt], [seed], steps=steps, guidance=guidance))

    plain = painted()
    others = (painted(prompt="the dog"), painted(seed=4), painted(steps=4), painted(guidance=1.0))
    assert all(not np.array_equal(other, plain) for other in others)


@pytest.mark.parametrize("base", ["tiny_base", "tiny_base_v"])
def test_it_is_what_diffusers_paints(request: pytest.FixtureRequest, base: str) -> None:
    folder = request.getfixturevalue(base)
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    generator = torch.Generator().manual_seed(3)
    theirs = pipeline("a cat", generator=generator, num_inference_steps=3, guidance_scale=4.0).images
    ours = generate(load_family(str(folder)), ["a cat"], [3], steps=3, guidance=4.0)
    assert np.array_equal(levels(ours), levels(theirs))


def test_the_adapter_in_the_networks_is_seen(family: Family, tiny_pictures: Path) -> None:
    plain = levels(generate(family, ["a cat"], [3], steps=3))
    with trainer_on(tiny_config(tiny_pictures), family):
        assert not np.array_equal(levels(generate(family, ["a cat"], [3], steps=3)), plain)
    assert np.array_equal(levels(generate(family, ["a cat"], [3], steps=3)), plain)


def test_nothing_is_printed(family: Family, capfd: pytest.CaptureFixture[str]) -> None:
    generate(family, ["a cat"], [3], steps=2)
    assert capfd.readouterr() == ("", "")


def test_nothing_to_paint_is_nothing(family: Family) -> None:
    assert generate(family, [], []) == []


def test_a_prompt_that_is_cut_is_told_once_and_no_library_says_it_too(
    family: Family, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.warns(UserWarning) as caught:
        generate(family, ["a cat " * 10, "a cat", "a cat " * 10], SEEDS, steps=1)
    assert [str(warning.message) for warning in caught] == [
        "1 of 2 prompts is longer than the 14 tokens that the text encoder reads, so the rest has no effect; "
        "prompt 1: of 20 tokens only 14 are read; not read: 'a cat a cat a cat'"
    ]
    assert caught[0].filename == __file__
    assert capfd.readouterr() == ("", "")


def test_prompts_that_are_seen_whole_warn_of_nothing(family: Family, recwarn: pytest.WarningsRecorder) -> None:
    generate(family, ["", "a cat"], (1, 2), steps=1)
    assert not [one for one in recwarn if one.category is UserWarning]


def test_prompts_of_several_windows_are_kept_too(tiny_base: Path, tmp_path: Path) -> None:
    """The family itself encodes these; a second time it is not asked, and the pictures are the same."""
    family = load_base(str(tiny_base), token_windows=2)
    plain = levels(generate(family, PROMPTS, SEEDS, steps=2))
    for texts in ("encoded", "kept"):
        cache = PromptCache(family, Store(tmp_path / "cache", "base"))
        assert np.array_equal(levels(generate_quietly(family, PROMPTS, SEEDS, steps=2, cache=cache)), plain), texts
        assert cache.store.computed == (texts == "encoded")  # type: ignore[attr-defined]
