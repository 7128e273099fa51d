"""A base is made whole in seconds at tiny sizes: drawn, trained within a time, gone on with, written, measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import veneer.base
from tests.packages import NAMES, few_steps, make_packages
from tests.recording import Recorder
from tools.build_base import build, card, command, concepts, demo, drawings, engine, fit, varied
from tools.build_base.design import DESIGNS, LARGE, SMALL, TINY
from tools.build_base.engine import Engine
from tools.build_base.fit import Fit, Pace, Task
from tools.build_base.quality import Quality
from veneer.engine.cuda_graph import GraphedBackward

RECIPE = Fit(steps=6, schedule=8, batch=2, rate=1e-2, warmup=2, log_every=2, save_every=3)


def task_of(module: nn.Module, seen: list[int] | None = None) -> Task:
    def batch_of(step: int) -> dict[str, Tensor]:
        if seen is not None:
            seen.append(step)
        return {"x": torch.randn(2, 3, generator=Engine().generator(step, stream=1))}

    return Task(module, batch_of, lambda batch: module(batch["x"]).square().mean())


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def test_a_fit_that_is_cut_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole, first, second = linear(), linear(), linear()
    wanted = fit.fit(task_of(whole), RECIPE, tmp_path / "whole")

    def cut(batch: Any) -> Tensor:
        if len(seen) == 5:
            raise KeyboardInterrupt
        return task_of(first).loss_of(batch)

    seen: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        fit.fit(replace(task_of(first, seen), loss_of=cut), RECIPE, tmp_path / "cut")
    again: list[int] = []
    got = fit.fit(task_of(second, again), RECIPE, tmp_path / "cut")
    assert again == [3, 4, 5]  # from the last state, after three steps
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))
    assert (tmp_path / "whole" / "state.safetensors").read_bytes() == (
        tmp_path / "cut" / "state.safetensors"
    ).read_bytes()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A clock that only goes on when it is told to."""
    now = [100.0]
    monkeypatch.setattr(fit.time, "monotonic", lambda: now[0])

    def forward(seconds: float) -> None:
        now[0] += seconds

    return forward


def timed(clock: Callable[[float], None], seconds: Callable[[int], float]) -> tuple[nn.Module, Task]:
    module = linear()
    task = task_of(module)

    def batch_of(step: int) -> Any:
        clock(seconds(step))
        return task.batch_of(step)

    return module, replace(task, batch_of=batch_of)


def test_a_timed_fit_makes_as_many_steps_as_fit_in(tmp_path: Path, clock: Callable[[float], None]) -> None:
    many = RECIPE.of_steps(1_000_000)
    _, task = timed(clock, lambda step: 5.0 if step == 0 else 1.0)  # the first takes long to set up
    fit.fit(task, many, tmp_path, pace=Pace(seconds=100.0))
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert 88 <= rows[-1]["step"] <= 95
    assert rows[-1]["rate"] < 0.5 * many.rate  # which has fallen, as at the end of the recipe's own steps


def test_a_timed_fit_ends_where_steps_become_slower(tmp_path: Path, clock: Callable[[float], None]) -> None:
    module, task = timed(clock, lambda step: 1.0 if step < 30 else 10.0)
    average = fit.fit(task, RECIPE.of_steps(1_000_000), tmp_path, pace=Pace(seconds=100.0))
    assert set(average) == {"weight", "bias"} and (tmp_path / "state.safetensors").exists()
    restored = linear()
    seen: list[int] = []
    fit.fit(task_of(restored, seen), RECIPE.of_steps(1_000_000), tmp_path, pace=Pace(seconds=-1.0))
    assert seen == [] and torch.equal(restored.weight, module.weight)  # the time is over again at once


def test_states_are_written_every_so_many_seconds(tmp_path: Path, clock: Callable[[float], None]) -> None:
    _, task = timed(clock, lambda step: 1.0)
    saved: list[dict[str, Tensor]] = []
    fit.fit(task, RECIPE.of_steps(200), tmp_path, pace=Pace(100.0, save_seconds=30.0, saved=saved.append))
    assert len(saved) == 3


@pytest.mark.parametrize(
    ("on", "is_own_choice", "is_on"),
    [
        (Engine(), False, False),
        (Engine(), True, True),
        (Engine(precision="bfloat16"), False, True),
        (Engine(precision="float32"), True, False),
        (Engine(torch.device("cuda"), precision="float32"), True, False),
    ],
)
def test_precision_is_each_networks_own_unless_told(on: Engine, is_own_choice: bool, is_on: bool) -> None:
    assert on.autocast(is_own_choice)._enabled == is_on


def test_recorded_passes_train_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, recorded = linear(), linear()
    wanted = fit.fit(task_of(plain), RECIPE, tmp_path / "plain")
    recorders: list[Recorder] = []

    def graphed(backward: Any, parameters: Any) -> GraphedBackward:
        recorders.append(Recorder(parameters))
        return GraphedBackward(backward, parameters, recorders[-1])

    monkeypatch.setattr(engine, "GraphedBackward", graphed)
    got = fit.fit(task_of(recorded), RECIPE, tmp_path / "recorded", Engine(is_graphed=True))
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)
    assert recorders[0].counts["record"] == 1 and recorders[0].counts["replay"] == RECIPE.steps
    assert (tmp_path / "plain" / "log.jsonl").read_text().count("loss") == 3


def test_what_cannot_be_recorded_is_done_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(backward: Any, parameters: Any) -> GraphedBackward:
        return GraphedBackward(backward, parameters, Recorder(parameters, RuntimeError("it waits for the device")))

    monkeypatch.setattr(engine, "GraphedBackward", refused)
    fit.fit(task_of(linear()), RECIPE, tmp_path, Engine(is_graphed=True))
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[-2]["step"] == RECIPE.steps and rows[-1] == {"no CUDA graph": "it waits for the device"}


def test_losses_may_be_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    plain, compiled = linear(), linear()
    wanted = fit.fit(task_of(plain), RECIPE, tmp_path / "plain")
    got = fit.fit(task_of(compiled), RECIPE, tmp_path / "compiled", Engine(is_compiled=True))
    assert all(torch.allclose(wanted[name], got[name]) for name in wanted)


def test_cudnn_tries_its_kernels_while_it_trains_on_a_gpu_and_no_longer() -> None:
    for where, is_on in ((Engine(), False), (Engine(torch.device("cuda")), True)):
        with where.tuned():
            assert torch.backends.cudnn.benchmark == is_on
        assert not torch.backends.cudnn.benchmark


def layers_of(size: int) -> Tensor:
    """Two drawings with soft edges, colours multiplied by opacity."""
    random = np.random.default_rng(0)
    alpha = random.integers(0, 256, (2, 2 * size, 2 * size, 1), dtype=np.uint16)
    colour = random.integers(0, 256, (2, 2 * size, 2 * size, 3), dtype=np.uint16)
    return torch.from_numpy(np.concatenate([colour * alpha // 255, alpha], -1).astype(np.uint8))


def test_a_drawing_that_is_not_varied_is_painted_as_it_is_drawn() -> None:
    layers = layers_of(8)
    painted = varied.paint(layers, varied.as_drawn(torch.arange(2)))
    drawn = torch.from_numpy(drawings.on_white(layers.numpy())).permute(0, 3, 1, 2) / 127.5 - 1
    assert (painted - drawn).abs().max() < 1.01 / 127.5
    flipped = varied.paint(layers, varied.mirrored(varied.as_drawn(torch.arange(2))))
    assert torch.allclose(flipped, painted.flip(-1), atol=1e-5)


def test_no_rim_is_left_around_a_drawing_on_a_ground_of_its_colour() -> None:
    """Averaged with the black of nothing, half-covered pixels of a drawing would be darker than both."""
    alpha = np.zeros((1, 32, 32, 1), np.uint16)
    alpha[:, 9:23, 9:23] = 255
    colour = np.broadcast_to(np.array([200, 100, 50], np.uint16), (1, 32, 32, 3))
    layer = torch.from_numpy(np.concatenate([colour * alpha // 255, alpha], -1).astype(np.uint8))
    turned = varied.places(*(torch.tensor([[value]]) for value in (0.8, 0.3, 0.0, 0.1, 0.0)))
    ones = torch.ones(1, 1)
    ground = torch.tensor([[200, 100, 50]]) / 255
    scene = varied.Scenes(torch.tensor([[0]]), turned, varied.tints(ones, ones), ground)
    painted = varied.paint(layer, scene)
    assert torch.allclose(painted, (2 * ground - 1)[:, :, None, None].expand_as(painted), atol=0.01)


def test_a_place_puts_a_drawing_where_it_says() -> None:
    size = 16
    whole = torch.full((1, 2 * size, 2 * size, 4), 255, dtype=torch.uint8)
    whole[..., :3] = 0
    place = varied.places(*(torch.tensor([[value]]) for value in (0.5, 0.0, 0.0, -0.5, 0.5)))
    ones = torch.ones(1, 1)
    scene = varied.Scenes(torch.tensor([[0]]), place, varied.tints(ones, ones), torch.ones(1, 3))
    dark = varied.paint(whole, scene)[0].mean(0) < 0
    assert dark[8:, :8].all() and dark.sum() == 64  # the lower left quarter


def test_varied_pictures_say_what_they_show() -> None:
    shown = [(concepts.Concept(name, "x"), style) for style in ("a", "b") for name in NAMES]
    rows = varied.varied_rows(shown, torch.ones(16), {"a": "", "b": ", b style"}, 400, seed=5)
    firsts = [row[0][1] for row in rows.captions]
    pairs = [" and " in caption for caption in firsts]
    grounds = ["background" in caption for caption in firsts]
    assert 0.15 < sum(pairs) / 400 < 0.35 and 0.2 < sum(grounds) / 400 < 0.45
    for index, caption in enumerate(firsts):
        first, second = (shown[int(place)] for place in rows.scenes.drawing_BL[index])
        assert first[1] == second[1] and first[0].words in caption and caption.endswith("b style") == (first[1] == "b")
        assert (f" and {concepts.article(second[0].words)} {second[0].words} emoji" in caption) == pairs[index]
        assert first != second or not pairs[index]
        is_white = bool((rows.scenes.ground_B3[index] == 1).all())
        assert is_white != grounds[index]
        assert (rows.scenes.place_BL23[index, 1, 0, 2].abs() < 3) == pairs[index]
    again = varied.varied_rows(shown, torch.ones(16), {"a": "", "b": ", b style"}, 400, seed=5)
    assert torch.equal(again.scenes.place_BL23, rows.scenes.place_BL23) and again.captions == rows.captions


def test_designs_stay_within_what_a_base_may_weigh() -> None:
    from tools.build_base.plan import parameters, plan_table

    assert 2 * parameters(LARGE) < 58_000_000  # with a sheet and a tokenizer: under 60
    text = plan_table(LARGE, 300)
    assert "| denoiser |" in text and "million parameters" in text
    bundled = json.loads((veneer.base.path() / "quality.json").read_text())["parameters"]
    assert parameters(SMALL) == pytest.approx(bundled, rel=0.01)


def test_the_bundled_bases_card_is_that_of_its_design() -> None:
    figures = json.loads((veneer.base.path() / "quality.json").read_text())
    steps = {phase: getattr(SMALL, phase).steps for phase in build.PHASES}
    assert card.text_of(SMALL, Quality(**figures), steps) == (veneer.base.path() / "README.md").read_text()
    text = card.text_of(LARGE, Quality(**figures), {**steps, "finish": 77})
    assert "96 x 96" in text and "Then 77 steps" in text and "two things side by side" in text and "IconPark" in text


def test_the_demos_licence_is_that_of_its_size() -> None:
    text = demo.LICENCE.format(spec=drawings.PACKAGES["openmoji"].spec, px=SMALL.pixels)
    assert text == (veneer.base.demo_path() / "LICENSE.txt").read_text()


def test_shares_name_every_style_once() -> None:
    for design in DESIGNS.values():
        extra = {concepts.VARIED} if design.is_varied else set()
        assert set(design.shares) == set(design.finish_shares) == set(design.styles) | extra
        assert len(set(design.styles.values())) == len(design.styles)
        assert sum(design.shares.values()) == pytest.approx(1.0)


def test_styles_to_test_with_are_never_trained_on() -> None:
    from tools.build_base.card import sets_of

    for design in DESIGNS.values():
        assert not {"openmoji", "streamline-emojis", "fluent-emoji", "emojione-v1"} & set(sets_of(design))
        free = {"Apache-2.0", "MIT", "CC BY 4.0"}
        assert {drawings.PACKAGES[name].licence for name in sets_of(design)} <= free


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_packages(tmp_path / "work" / "packages", monkeypatch)


@pytest.mark.slow
@pytest.mark.usefixtures("packages")
def test_a_whole_base_is_made_measured_and_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import StableDiffusionPipeline

    written: list[set[str]] = []
    job = build.Job(
        few_steps(TINY),
        tmp_path / "work",
        tmp_path / "out",
        budget=build.Budget.of(300),
        written=lambda folder: written.append({path.name for path in folder.iterdir()}),
    )
    build.build(job)
    assert build.steps_made(job.work) == {"autoencoder": 2, "denoiser": 2, "finish": 2}
    assert "quality.json" not in written[0] and {"unet", "quality.json", "sheet.png", "README.md"} <= written[-1]
    pipeline = StableDiffusionPipeline.from_pretrained(job.model)
    assert pipeline("an ant emoji", num_inference_steps=1).images[0].size == (32, 32)
    weights = (job.model / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    monkeypatch.setattr(build, "publish", lambda *_: None)
    build.build(job)  # nothing is left to be trained
    assert (job.model / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == weights


@pytest.mark.usefixtures("packages")
def test_the_command_makes_a_base_and_the_demos_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DESIGNS, "tiny", few_steps(TINY))
    monkeypatch.setattr(demo, "SUBJECT", ("ant",))
    monkeypatch.setattr(build, "publish", lambda *_: None)
    folders = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(
        "sys.argv", ["build_base", "--design", "tiny", "--minutes", "9", "--precision", "bfloat16", *folders]
    )
    command.main()
    assert (tmp_path / "out" / "model" / "unet" / "config.json").exists()
    rows = (tmp_path / "out" / "demo" / "held_out" / "metadata.jsonl").read_text().splitlines()
    assert len(rows) == len(NAMES)


def test_the_command_tells_a_plan(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["build_base", "--design", "tiny", "--plan"])
    command.main()
    assert "| finish |" in capsys.readouterr().out
