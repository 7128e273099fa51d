"""Pictures of every family that are painted from kept prompts are those that its text encoders lead to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.families import CAPTIONS, FamilyCase, family_cases
from veneer.config.load import build_config
from veneer.family.pipeline_family import PipelineFamily
from veneer.family.prompt_cache import PromptCache
from veneer.family.protocol import Family
from veneer.family.registry import load_family
from veneer.family.store import Store
from veneer.sample.generate import generate_quietly, prompt_calls

CASES = family_cases()
QUICK: tuple[str, ...] = ("z_image",)


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in CASES]
)
def case(request: pytest.FixtureRequest) -> FamilyCase:
    return CASES[request.param]


@pytest.fixture(scope="module")
def family(case: FamilyCase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    """A base that paints small pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PipelineFamily, "trained_side", case.edits.side if case.edits else 8)
        yield load_family(str(case.write(tmp_path_factory.mktemp("base") / "tiny")))


@contextmanager
def counted(family: Family) -> Iterator[list[str]]:
    """The names of text encoders, each time that one is called."""
    calls: list[str] = []
    encoders = {name: getattr(family.pipeline(), name) for name in family.text_encoders}
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
        for name, encoder in encoders.items()
        for module in encoder.modules()
    ]
    yield calls
    for hook in hooks:
        hook.remove()


def test_pictures_from_kept_prompts_are_those_of_the_text_encoders(
    case: FamilyCase, family: Family, tmp_path: Path
) -> None:
    references: list[list[Image.Image]] = []
    if case.edits:
        noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
        references = [[Image.fromarray(noise)] * max(1, family.reference_counts.start)] * len(CAPTIONS)
    if not family.encodes_prompts_apart:
        config = build_config(
            {"base": "tiny", "data": {"sources": [{"path": "p"}], "cache": str(tmp_path)}}, origin="a test"
        )
        assert PromptCache.of(config, family) is None
        return
    cache = PromptCache(family, Store(tmp_path / "cache", "base"))
    steps = family.fewest_steps

    def paint(cache: PromptCache | None) -> list[bytes]:
        seeds = range(len(CAPTIONS))
        pictures = generate_quietly(family, CAPTIONS, seeds, steps=steps, references=references, cache=cache)
        return [picture.tobytes() for picture in pictures]

    plain = paint(None)
    with counted(family) as calls:
        for call in prompt_calls(cache, CAPTIONS, guidance=4.0, references=references):
            call()
        assert calls
        calls.clear()
        kept = [paint(cache), paint(PromptCache(family, Store(tmp_path / "cache", "base")))]
        assert calls == []
    assert kept == [plain, plain]
