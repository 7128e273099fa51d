"""Every family of ``tests/families`` against diffusers' own pipeline over the same tiny base."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args
from weakref import WeakKeyDictionary

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from tests.errors import raises_code
from tests.families import CAPTIONS, FamilyCase, family_cases
from tests.training import tiny_config
from veneer.adapter.inject import inject
from veneer.adapter.lora import LoraSpec
from veneer.adapter.registry import specs_of
from veneer.config.adapter_config import AdapterConfig, TargetPreset
from veneer.config.load import build_config
from veneer.data.manifest import Manifest
from veneer.data.preflight import survey
from veneer.data.transform import Geometry
from veneer.engine.memory_levels import prepare
from veneer.evaluate.heldout import HeldOutEvaluator
from veneer.family.protocol import Conditioning, Family
from veneer.family.registry import FAMILIES, family_class, load_family
from veneer.objective.loss import Objective
from veneer.plan.abstract import abstract_base
from veneer.plan.assessment import assess_config
from veneer.plan.memory import STEP
from veneer.plan.tracer import MemoryTracer
from veneer.sample.generate import check_steps, generate, generate_clips

CASES = family_cases()
TIMES = [(0.02, 0.98), (0.25, 0.7), (0.5, 1.0)]
SIZES = [(4, 4), (4, 6)]
"""Height and width of pictures, in the family's multiple of pixels."""
_TEXTS: WeakKeyDictionary[Family, dict[str, Conditioning]] = WeakKeyDictionary()
"""What each family makes of captions: some read them through thirty layers, and test after test asks for the same."""


QUICK = ("flux", "z_image", "qwen_image", "flux2_klein")
"""The families that the quick suite tries; the others' tests are slow ones, for there are many."""


def each(names: Iterable[str]) -> list[Any]:
    """The parameters of ``case`` for these families."""
    return [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in names]


EDITING = [name for name, case in CASES.items() if case.edits is not None]
CLIPS = [name for name, case in CASES.items() if case.frames]
EULER = [name for name, case in CASES.items() if case.paint is not None]


@pytest.fixture(scope="module", params=each(CASES))
def case(request: pytest.FixtureRequest) -> FamilyCase:
    return CASES[request.param]


@pytest.fixture(scope="module")
def folder(case: FamilyCase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return case.write(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def pipeline(case: FamilyCase, folder: Path) -> Any:
    kind = getattr(diffusers, case.pipeline)
    pipeline = kind.from_pretrained(folder) if case.open is None else case.open(folder, kind)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def family(folder: Path) -> Iterator[Family]:
    yield load_family(str(folder))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pixels_of(family: Family, size: tuple[int, int], count: int = 2, frames: int = 1) -> Tensor:
    height, width = (side * family.multiple for side in size)
    return draw(count, 3, *([frames] if frames > 1 else []), height, width).clamp(-1, 1)


def latents_of(family: Family, size: tuple[int, int], seed: int = 0, count: int = 2, frames: int = 1) -> Tensor:
    return draw(*family.encode_image(pixels_of(family, size, count, frames)).mean.shape, seed=seed)


def conditioning_of(
    family: Family, size: tuple[int, int], captions: tuple[str, ...] = CAPTIONS, frames: int = 1
) -> Conditioning:
    """Each caption is encoded alone, as a run does."""
    height, width = (side * family.multiple for side in size)
    known = _TEXTS.setdefault(family, {})
    for caption in captions:
        if caption not in known:
            with torch.no_grad():
                known[caption] = family.encode_text([caption])
    text = Conditioning.cat([known[caption] for caption in captions])
    return family.condition(text, [Geometry.whole(height, width, frames)] * len(captions))


def assert_close(own: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(own, expected, rtol=tolerance, atol=tolerance)


def test_each_pipeline_has_one_case_and_each_case_a_family() -> None:
    pipelines = [case.pipeline for case in CASES.values()]
    assert len(set(pipelines)) == len(pipelines) and set(pipelines) <= FAMILIES.keys()


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
def test_pictures_are_encoded_and_decoded_as_the_pipeline_does(
    case: FamilyCase, family: Family, pipeline: Any, size: tuple[int, int]
) -> None:
    pixels = pixels_of(family, size)
    own, expected = family.encode_image(pixels), case.encode(pipeline, pixels)
    assert_close(own.mean, expected[0], 1e-6)
    assert_close(own.std, expected[1], 1e-6)
    latents = draw(*own.mean.shape)
    assert_close(family.decode(latents), case.decode(pipeline, latents).clamp(-1, 1), 1e-5)


@torch.no_grad()
def test_the_last_axes_of_latents_are_rows_and_columns_of_the_picture(family: Family) -> None:
    """So a mask of the picture is one of the latents: each weighs the place that it is of."""
    rows, columns = latents_of(family, (4, 6)).shape[-2:]
    assert rows % 4 == 0 and rows * 6 == columns * 4


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("times", TIMES)
def test_a_prediction_and_its_loss_are_the_pipeline_s(
    case: FamilyCase, family: Family, pipeline: Any, size: tuple[int, int], times: tuple[float, float]
) -> None:
    """Captions of different lengths in one batch; each row has a time of its own.

    The loss is flow matching's (Lipman et al. 2023) over diffusers' own scheduler, elementwise, or Ho et al.'s (2020).
    """
    t_B = torch.tensor(times, dtype=torch.float64)
    clean, noise = latents_of(family, size), latents_of(family, size, seed=1)
    conditioning = conditioning_of(family, size)
    expected_noisy, told_B, target = (flow_step if case.is_flow else diffusion_step)(pipeline, clean, noise, t_B)
    noisy = family.noise.add_noise(clean, noise, t_B)
    assert_close(noisy, expected_noisy, 1e-6)
    answer = case.velocity(pipeline, noisy, told_B, CAPTIONS)
    assert_close(family.predict(noisy, t_B, conditioning), answer, case.tolerance)
    expected = (answer - target).square().flatten(1).mean(dim=1)
    own = Objective(family.noise).loss_B(family.predict, clean, noise, t_B, conditioning)
    assert_close(own, expected, max(case.tolerance, 1e-6))


def flow_step(pipeline: Any, clean: Tensor, noise: Tensor, t_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy latents, sigma and what is to be predicted."""
    scheduler, sigma_B = diffusers.FlowMatchEulerDiscreteScheduler(), t_B.float()
    scheduler.sigmas = scheduler.timesteps = sigma_B
    return scheduler.scale_noise(clean, sigma_B, noise), sigma_B, noise - clean


def diffusion_step(pipeline: Any, clean: Tensor, noise: Tensor, t_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy latents, the steps' numbers and what is to be predicted."""
    scheduler: Any = diffusers.DDPMScheduler.from_config(pipeline.scheduler.config)
    step_B = (t_B * scheduler.config.num_train_timesteps).long().clamp(max=scheduler.config.num_train_timesteps - 1)
    return scheduler.add_noise(clean, noise, step_B), step_B, noise


@torch.no_grad()
def test_a_batch_is_its_rows_one_by_one(family: Family) -> None:
    t_B, size = torch.tensor([0.3, 0.8], dtype=torch.float64), (4, 6)
    noisy = latents_of(family, size)
    both = family.predict(noisy, t_B, conditioning_of(family, size))
    for row in range(2):
        one = slice(row, row + 1)
        alone = family.predict(noisy[one], t_B[one], conditioning_of(family, size, CAPTIONS[one]))
        torch.testing.assert_close(both[one], alone, rtol=1e-4, atol=1e-5)


def test_a_family_takes_clips_if_its_case_does(case: FamilyCase, family: Family) -> None:
    assert (family.frame_stride is None, family.frame_rate is None) == (not case.frames, not case.frames)
    assert all(count % (family.frame_stride or 1) in (0, 1) for count in case.frames)


@torch.no_grad()
@pytest.mark.parametrize("case", each(CLIPS), indirect=True)
def test_clips_are_trained_on_as_the_pipeline_has_them(case: FamilyCase, family: Family, pipeline: Any) -> None:
    """Clips of one length after those of another: latents, predictions, losses, and a batch is its rows."""
    size = (4, 6)
    for frames in case.frames:
        pixels = pixels_of(family, size, frames=frames)
        own, expected = family.encode_image(pixels), case.encode(pipeline, pixels)
        assert_close(own.mean, expected[0], 1e-6)
        assert_close(own.std, expected[1], 1e-6)
        assert_close(family.decode(own.mean), case.decode(pipeline, own.mean).clamp(-1, 1), 1e-5)
        clean, noise = own.mean, draw(*own.mean.shape, seed=1)
        for times in TIMES:
            t_B = torch.tensor(times, dtype=torch.float64)
            noisy, told_B, target = flow_step(pipeline, clean, noise, t_B)
            answer = case.velocity(pipeline, noisy, told_B, CAPTIONS)
            conditioning = conditioning_of(family, size, frames=frames)
            assert_close(family.predict(noisy, t_B, conditioning), answer, case.tolerance)
            loss_B = Objective(family.noise).loss_B(family.predict, clean, noise, t_B, conditioning)
            expected_B = (answer - target).square().flatten(1).mean(dim=1)
            assert_close(loss_B, expected_B, max(case.tolerance, 1e-6))
            for row in range(2):
                one = slice(row, row + 1)
                told = conditioning_of(family, size, CAPTIONS[one], frames)
                assert_close(family.predict(noisy[one], t_B[one], told), answer[one], 1e-4)


@torch.no_grad()
@pytest.mark.parametrize("case", each(CLIPS), indirect=True)
def test_euler_steps_over_clips_end_in_the_pipeline_s_latents(case: FamilyCase, family: Family, pipeline: Any) -> None:
    assert case.paint is not None
    size, frames = (4, 4), case.frames[0]
    latents, conditioning = latents_of(family, size, frames=frames), conditioning_of(family, size, frames=frames)
    expected = case.paint(pipeline, latents, CAPTIONS, 3)
    for sigma, after in pairwise(pipeline.scheduler.sigmas):
        velocity = family.predict(latents, sigma.double().expand(2), conditioning)
        latents = latents + (after - sigma) * velocity
    torch.testing.assert_close(latents, expected, rtol=1e-3, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("case", each(CLIPS), indirect=True)
def test_clips_are_painted_as_the_pipeline_paints_them(case: FamilyCase, family: Family, pipeline: Any) -> None:
    frames, prompts = case.frames[0], ["a cat", "a dog that runs"]
    clips = generate_clips(family, prompts, [3, 4], frames=frames, steps=2, guidance=3.0)
    side: dict[str, Any] = {"height": family.resolution, "width": family.resolution, "output_type": "pil"}
    side |= case.unguided
    for prompt, seed, clip in zip(prompts, (3, 4), clips, strict=True):
        generator = torch.Generator().manual_seed(seed)
        settings: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 3.0, "num_frames": frames}
        (expected,) = pipeline(prompt, **settings, **side, generator=generator).frames
        assert len(clip) == len(expected) == frames
        for own, theirs in zip(clip, expected, strict=True):
            difference = np.asarray(own, dtype=np.int16) - np.asarray(theirs, dtype=np.int16)
            assert own.size == (family.resolution, family.resolution) and np.abs(difference).max() <= 1


def references_of(family: Family, size: tuple[int, int], count: int, rows: int = 2) -> list[list[Tensor]]:
    """Each row's references, of the size of what is painted."""
    height, width = (side * family.multiple for side in size)
    return [
        [draw(3, height, width, seed=9 + 5 * row + one).clamp(-1, 1) for one in range(count)] for row in range(rows)
    ]


def edit_conditioning(
    family: Family, size: tuple[int, int], references: list[list[Tensor]], captions: tuple[str, ...] = CAPTIONS
) -> Conditioning:
    """Each caption and each row's references are encoded alone, as a run does."""
    height, width = (side * family.multiple for side in size)
    pairs = list(zip(captions, references, strict=True))
    reads = family.text_reads_references
    texts = [
        family.encode_instructions([caption], [own]) if reads else family.encode_text([caption])
        for caption, own in pairs
    ]
    shown = Conditioning.cat([family.encode_references(own) for _, own in pairs])
    conditioning = family.condition(Conditioning.cat(texts), [Geometry.whole(height, width)] * len(pairs))
    return conditioning.joined_to(shown.tensors)


def test_a_family_edits_if_its_case_does(case: FamilyCase, family: Family) -> None:
    counts = () if case.edits is None else case.edits.counts
    assert all(count in family.reference_counts for count in counts)
    assert (family.reference_counts.stop > 1) == bool(counts)


@torch.no_grad()
@pytest.mark.parametrize("case", each(EDITING), indirect=True)
@pytest.mark.parametrize("size", SIZES)
def test_a_prediction_with_references_is_the_pipeline_s(
    case: FamilyCase, family: Family, pipeline: Any, size: tuple[int, int]
) -> None:
    assert case.edits is not None
    t_B, noisy = torch.tensor([0.3, 0.8], dtype=torch.float64), latents_of(family, size)
    for count in case.edits.counts:
        references = references_of(family, size, count)
        expected = case.edits.velocity(pipeline, noisy, t_B.float(), CAPTIONS, references)
        conditioning = edit_conditioning(family, size, references)
        both = family.predict(noisy, t_B, conditioning)
        assert len(conditioning.references) == count
        assert_close(both, expected, case.tolerance)
        other = edit_conditioning(family, size, references[::-1])
        assert not torch.allclose(both, family.predict(noisy, t_B, other), rtol=1e-4, atol=1e-6)
        for row in range(2):
            one = slice(row, row + 1)
            alone = edit_conditioning(family, size, references[one], CAPTIONS[one])
            torch.testing.assert_close(family.predict(noisy[one], t_B[one], alone), both[one], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_caption_and_the_time_matter(family: Family) -> None:
    """A family that left one of them out would pass for a right one where its reference did so too."""
    size, noisy = (4, 4), latents_of(family, (4, 4), count=1)
    text, other = (conditioning_of(family, size, (caption,)) for caption in CAPTIONS)
    early, late = (torch.tensor([t], dtype=torch.float64) for t in (0.2, 0.9))
    answer = family.predict(noisy, early, text)
    assert not torch.allclose(answer, family.predict(noisy, early, other), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(answer, family.predict(noisy, late, text), rtol=1e-4, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("case", each(EULER), indirect=True)
def test_euler_steps_over_the_predictions_end_in_the_pipeline_s_latents(
    case: FamilyCase, family: Family, pipeline: Any
) -> None:
    assert case.paint is not None
    size = (4, 4)
    latents, conditioning = latents_of(family, size), conditioning_of(family, size)
    expected = case.paint(pipeline, latents, CAPTIONS, 3)
    for sigma, after in pairwise(pipeline.scheduler.sigmas):
        velocity = family.predict(latents, sigma.double().expand(2), conditioning)
        latents = latents + (after - sigma) * velocity
    torch.testing.assert_close(latents, expected, rtol=1e-3, atol=1e-4)


def test_a_text_that_is_too_long_is_told(family: Family) -> None:
    long = ", ".join(["a"] * 3000)
    found = family.unread([*CAPTIONS, long])
    assert found.keys() == {long} and found[long].limit == family.text_length
    assert found[long].read + found[long].rest == long


def test_default_targets_are_in_the_networks_and_learn(case: FamilyCase, family: Family) -> None:
    """Each layer that is adapted by default has a gradient, but those that the denoiser makes nothing of."""
    spec = LoraSpec(2, 2.0, family.default_targets[family.denoiser])
    injection = inject(family.networks, {family.denoiser: spec}, seed=0)
    try:
        _gradients(family)
        without = {name for name, p in injection.named_parameters() if p.grad is None and "lora_B" in name}
        assert without == {f"{family.denoiser}.{path}.lora_B.weight" for path in case.unused}
        assert all(match.modules for match in injection.matches)
    finally:
        injection.eject()


def test_default_targets_reach_every_block_that_the_family_does_not_spare(family: Family) -> None:
    (spec,) = specs_of(AdapterConfig(rank=1), family).values()
    injection = inject(family.networks, {family.denoiser: spec}, seed=0)
    try:
        coverage = injection.block_coverage()[family.denoiser]
    finally:
        injection.eject()
    assert coverage.touched > 0 and (not coverage.left_out or family.default_blocks)


@pytest.mark.parametrize("preset", get_args(TargetPreset))
def test_presets_reach_every_block(family: Family, preset: TargetPreset) -> None:
    (spec,) = specs_of(AdapterConfig(rank=1, target_modules=preset), family).values()
    injection = inject(family.networks, {family.denoiser: spec}, seed=0)
    try:
        coverage = injection.block_coverage()[family.denoiser]
    finally:
        injection.eject()
    assert coverage.touched > 0 and not coverage.left_out


def _gradients(family: Family) -> None:
    noisy, t_B = latents_of(family, (4, 4)), torch.tensor([0.3, 0.8], dtype=torch.float64)
    family.predict(noisy, t_B, conditioning_of(family, (4, 4))).square().sum().backward()


@pytest.mark.parametrize("memory", ["lean", "leaner", "checkpoint"])
def test_gradients_are_the_same_at_every_memory_level(family: Family, memory: Any) -> None:
    spec = LoraSpec(2, 2.0, family.default_targets[family.denoiser])
    injection = inject(family.networks, {family.denoiser: spec}, seed=0)
    network = family.networks[family.denoiser]
    try:
        with torch.no_grad():
            for number, parameter in enumerate(injection.parameters()):
                parameter.add_(draw(*parameter.shape, seed=number), alpha=0.05)
        found = []
        for level in ("exact", memory):
            prepared = prepare(network, level)
            network.train()
            _gradients(family)
            found.append({name: p.grad for name, p in injection.named_parameters()})
            for parameter in injection.parameters():
                parameter.grad = None
            prepared.undo()
        for name, gradient in found[0].items():
            torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-5, msg=name)
    finally:
        network.eval()
        injection.eject()


def test_a_base_is_planned_from_its_configurations(family: Family, folder: Path, tmp_path: Path) -> None:
    abstract = abstract_base(tiny_config(tmp_path, base=str(folder)), MemoryTracer(torch.device("cpu")))
    assert (abstract.multiple, abstract.resolution) == (family.multiple, family.resolution)
    assert abstract.networks.keys() == family.networks.keys() and abstract.text_encoders == family.text_encoders
    for name, network in family.networks.items():
        shapes = {key: tensor.shape for key, tensor in network.state_dict().items()}
        assert {key: tensor.shape for key, tensor in abstract.networks[name].state_dict().items()} == shapes


@pytest.mark.slow
def test_the_memory_of_a_run_is_planned(case: FamilyCase, folder: Path, tmp_path: Path) -> None:
    """All that a run does is rehearsed without data, so nothing of a family may depend on the numbers of a tensor."""
    data = {"sources": [{"path": str(tmp_path)}], "resolution": 64}
    values = {"base": str(folder), "data": data, "sample": {"guidance": 4.0}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(family_class(case.pipeline), "trained_side", 8)
        plan = assess_config(build_config(values, "test"), count_pictures=False, limit=None).plan
    assert plan.memory is not None and plan.trainable > 0
    step = next(phase for phase in plan.memory.phases if phase.name == STEP)
    assert step.tensors > plan.total


def test_a_large_base_is_scored_and_painted_row_by_row(
    family: Family, folder: Path, tiny_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many rows as fit into memory with its weights; the numbers are those of all at once."""
    if 0 not in family.reference_counts:
        pytest.skip("it needs a reference beside each picture")
    config = tiny_config(tiny_pictures, base=str(folder), data={"resolution": 4 * family.multiple})
    sizes: list[int] = []

    def counted(noisy: Tensor, *arguments: Any) -> Tensor:
        sizes.append(len(noisy))
        return predict(noisy, *arguments)

    predict = family.predict
    monkeypatch.setattr(family, "predict", counted)
    held_out = Manifest(survey(config.data).held_out.samples[:1])
    found = []
    for at_once in (1, None):
        monkeypatch.setattr(type(family), "inference_batch_size", at_once)
        with torch.no_grad():
            found.append(HeldOutEvaluator(config, family, held_out).losses())
    assert sizes == [1] * config.validation.draws + [config.validation.draws]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)


def test_fewer_steps_than_the_scheduler_can_do_are_refused(family: Family, pipeline: Any) -> None:
    """diffusers makes NaN of one step where the schedule is stretched to end at ``shift_terminal``."""
    scheduler = pipeline.scheduler
    assert family.fewest_steps == (2 if scheduler.config.get("shift_terminal") else 1)
    check_steps(family, family.fewest_steps)
    if family.fewest_steps == 1:
        return
    scheduler.set_timesteps(1, mu=1.0)
    assert not scheduler.sigmas.isfinite().all()
    with raises_code("sample.too_few_steps"):
        generate(family, ["a cat"], [0], steps=1)
