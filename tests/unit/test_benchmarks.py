"""The benchmarks' own arithmetic, and that the page quotes the figures that were kept."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks import growth, peers, timing
from benchmarks.__main__ import BENCHMARKS
from benchmarks.page import PAGE, figures_of
from tests.networks import NETWORKS, adapt, gradients
from tools.publish import published
from veneer.family.registry import load_family


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda benchmark: benchmark.NAME)
def test_the_page_quotes_the_figures(benchmark: ModuleType) -> None:
    figures = figures_of(benchmark.NAME)
    assert published(PAGE, benchmark.NAME) == benchmark.section(figures), "run: python -m benchmarks"


def test_ways_are_timed_in_turn_after_one_untimed_round(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    clock = iter(range(100))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    ways = {name: lambda name=name: called.append(name) for name in "abc"}
    seconds = timing.interleaved(ways, 3, undo={"b": lambda: called.append("undone")})
    assert "".join(called).replace("undone", "-") == "ab-c" + "b-ca" + "cab-" + "ab-c"
    assert seconds == {name: [1, 1, 1] for name in "abc"}


def test_a_ratio_is_of_the_same_round() -> None:
    # the machine got ten times slower after the first round, which is no difference between the ways
    found = timing.ratio([2.0, 20.0, 30.0, 20.0, 24.0], [1.0, 10.0, 10.0, 10.0, 10.0])
    assert (found.middle, found.low, found.high) == (2.0, 2.0, 2.4)
    assert str(found) == "2.000 (2.000 to 2.400)"
    assert timing.ratio([3.0], [2.0]) == timing.Ratio(1.5, 1.5, 1.5)


def test_a_slope_is_the_power_of_growth() -> None:
    sizes = [1, 2, 4, 8]
    assert timing.slope(sizes, [3.0 * size**1.5 for size in sizes]) == pytest.approx(1.5)
    assert timing.slope(sizes, [5.0] * 4) == pytest.approx(0.0)


def test_the_example_s_loop_trains_its_adapters_alone(tiny_base: Path, tmp_path: Path) -> None:
    pipeline: Any = load_family(str(tiny_base)).pipeline()
    before = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
    Image.new("RGB", (40, 24), "teal").save(tmp_path / "teal.png")
    steps = peers.text_to_image_steps(pipeline, [(tmp_path / "teal.png", "a teal sheet")], side=16)
    assert all(math.isfinite(next(steps)) for _ in range(2))
    learned = {name: p for name, p in pipeline.unet.named_parameters() if p.requires_grad}
    assert learned and all(".lora_" in name for name in learned)
    assert any(bool(p.any()) for name, p in learned.items() if ".lora_B." in name), "B begins at zero"
    after = {name.replace(".base_layer", ""): value for name, value in pipeline.unet.state_dict().items()}
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_without_attention_all_gradients_flow() -> None:
    network = NETWORKS["sd"]
    model = adapt(network)
    _, whole = gradients(network, model)
    with growth.no_attention():
        _, found = gradients(network, model)
    assert found.keys() == whole.keys()
    assert not any(torch.equal(found[name], whole[name]) for name in whole)


def test_growth_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "PLOT", tmp_path / "growth.png")
    steps = [{"size": side, "lean": 0.1 * side**2, "bytes": 2.0**20 * side**2} for side in (64, 128)]
    growth.draw({"pixels": steps, "adapters": [{"size": n, "bank": 0.5, "bank bytes": 2**20 * n} for n in (1, 4)]})
    with Image.open(growth.PLOT) as picture:
        assert picture.format == "PNG" and picture.width > 600
    rows = list(growth.rows_of("pixels", steps))
    assert [row.split(" | ")[-2:] for row in rows] == [["1.00", "1.00 |"]] * 2, "linear in tokens"
