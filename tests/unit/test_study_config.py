"""A study's file: its points, its refusals, the ready-made ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.errors import raises_code
from veneer.config.load import build_config, dump_config
from veneer.config.schema import RunConfig
from veneer.errors import UserError
from veneer.study.config import (
    FIXED,
    Study,
    build_study,
    config_of_point,
    dump_study,
    list_studies,
    load_study,
    points_of,
)

HERE = Path.cwd()
RUN: dict[str, Any] = {
    "base": "bundled",
    "data": {"sources": [{"path": str(HERE / "pictures")}]},
    "output": {"dir": str(HERE / "runs/adapter")},
}


def run(**more: Any) -> RunConfig:
    return build_config({**RUN, **more}, "test")


def study(**more: Any) -> Study:
    return build_study({"run": RUN, **more}, "test")


def configs(of: Study) -> dict[str, RunConfig]:
    return {point.name: config_of_point(of, point) for point in points_of(of.config)}


def test_a_grid_is_every_combination_in_its_order() -> None:
    found = configs(study(grid={"adapter.rank": [1, 4], "train.learning_rate": [0.001, 0.01]}))
    assert list(found) == [
        "rank 1, learning_rate 0.001",
        "rank 1, learning_rate 0.01",
        "rank 4, learning_rate 0.001",
        "rank 4, learning_rate 0.01",
    ]
    assert [(c.adapter.rank, c.train.learning_rate) for c in found.values()] == [
        (1, 0.001),
        (1, 0.01),
        (4, 0.001),
        (4, 0.01),
    ]


def test_points_set_several_keys_dotted_or_nested() -> None:
    dotted = {"adapter.target_modules": ["to_q"], "adapter.rank": 8}
    found = configs(study(points={"one": dotted, "two": {"adapter": {"target_modules": ["to_q"], "rank": 8}}}))
    assert found["one"] == found["two"] == run(adapter={"target_modules": ["to_q"], "rank": 8, "alpha": 4.0})


def test_a_section_may_be_set_to_its_defaults() -> None:
    assert configs(study(points={"both": {"adapter.text_encoders.text_encoder": {}}}))["both"] == run(
        adapter={"text_encoders": {"text_encoder": {}}}
    )


def test_names_of_the_same_ending_are_told_apart() -> None:
    grid = {
        "adapter.rank": [2],
        "adapter.text_encoders.text_encoder.rank": [4],
        "adapter.target_modules": [["to_q", "to_v"]],
    }
    grid |= {"data.flip": [True]}
    names = [point.name for point in points_of(study(grid=grid).config)]
    assert names == ["adapter.rank 2, adapter.text_encoders.text_encoder.rank 4, target_modules to_q + to_v, flip true"]


@pytest.mark.parametrize(("alpha", "kept"), [(None, 4.0), (2.0, 2.0)])
def test_another_rank_keeps_alpha(alpha: float | None, kept: float) -> None:
    """Not the strength alpha/rank, which with Adam would be another rate for each rank."""
    adapter = {"rank": 4, "alpha": alpha, "text_encoders": {"text_encoder": {"rank": 4, "alpha": 8.0}}}
    of = build_study(
        {
            "run": {**RUN, "adapter": adapter},
            "points": {
                "more": {"adapter.rank": 16, "adapter.text_encoders.text_encoder.rank": 2},
                "own": {"adapter.rank": 16, "adapter.alpha": 1.0},
                "other": {"train.max_steps": 3},
            },
        },
        "test",
    )
    found = configs(of)
    assert found["more"].adapter.alpha == kept
    assert found["own"].adapter.alpha == 1.0
    assert found["other"].adapter.alpha == alpha
    assert found["more"].adapter.text_encoders["text_encoder"].alpha == 8.0


def test_a_run_may_be_named(tmp_path: Path) -> None:
    named = tmp_path / "run.yaml"
    named.write_text(dump_config(run(seed=3)), "utf-8")
    grid = {"adapter.rank": [1]}
    assert build_study({"run": str(named), "grid": grid}, "test").run == run(seed=3)
    folder = build_study({"run": str(tmp_path), "grid": grid}, "test").run
    assert folder.data.sources[0].path == tmp_path and folder.base == "bundled"


def test_overrides_and_another_run(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("run: {base: nowhere}\ngrid: {adapter.rank: [1, 2]}\n", "utf-8")
    told = ["seeds=[7]", "grid.adapter.rank=[3]", "run.train.max_steps=9", "grid.data.flip=[true]"]
    of = load_study(file, told, run())
    assert of.name == "study" and of.config.seeds == (7,) and of.run == run(train={"max_steps": 9})
    assert [point.name for point in points_of(of.config)] == ["rank 3, flip true"]
    file.write_text("search: {space: {adapter.rank: [1, 2]}}\n", "utf-8")
    search = load_study(
        file, ["search.trials=3", "search.space.train.max_steps={low: 1, high: 9}"], run()
    ).config.search
    assert search is not None and search.trials == 3 and set(search.space) == {"adapter.rank", "train.max_steps"}


def test_an_override_may_name_a_run(tmp_path: Path) -> None:
    named = tmp_path / "run.yaml"
    named.write_text(dump_config(run(seed=3)), "utf-8")
    assert load_study(Path("rank"), [f"run={named}"]).run == run(seed=3)
    changed = load_study(Path("rank"), [f"run={named}", "run.train.max_steps=9"]).run
    assert changed == run(seed=3, train={"max_steps": 9})
    file = tmp_path / "study.yaml"
    file.write_text(f"run: {named}\ngrid: {{adapter.rank: [1]}}\n", "utf-8")
    assert load_study(file, ["run.train.max_steps=9"]).run == changed


@pytest.mark.parametrize(
    ("text", "override"),
    [
        ("grid:", "grid.adapter.rank=[1, 2]"),
        ("search:", "search.space.adapter.rank=[1, 2]"),
        ("search: {space: }", "search.space.adapter.rank=[1, 2]"),
    ],
)
def test_an_override_fills_a_blank_section(text: str, override: str, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(text, "utf-8")
    config = load_study(file, [override], run()).config
    assert (config.grid or (config.search and config.search.space)) == {"adapter.rank": (1, 2)}
    file.write_text(f"{text}\nrun:", "utf-8")
    told = ["run.base=bundled", f"run.data={{sources: [{{path: {HERE / 'pictures'}}}]}}"]
    assert load_study(file, [override, *told]).run.data == run().data


@pytest.mark.parametrize(
    ("text", "override", "told"),
    [
        ("grid: 3", "grid.adapter.rank=[1]", "grid.adapter.rank=[1]: grid is 3 in the study, which has no keys to set"),
        ("search: {space: [1]}", "search.space.adapter.rank=[1]", "space is [1] in the study"),
        ("grid: {adapter.rank: [1]}", "run=", "has no run to study"),
        ("grid: {adapter.rank: [1]}\nrun: [3]", "run.seed=1", "run is [3] in the study"),
    ],
)
def test_an_override_of_what_has_no_keys_is_refused(text: str, override: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(text, "utf-8")
    with pytest.raises(UserError) as caught:
        load_study(file, [override])
    assert told in str(caught.value)


def test_it_is_written_so_that_it_reads_back_equal(tmp_path: Path) -> None:
    of = study(
        grid={"adapter.target_modules": [["to_q"], ["to_v"]]}, seeds=[1, 2], margin=0.1, reference="target_modules to_v"
    )
    (tmp_path / "study.yaml").write_text(dump_study(of.config, tmp_path), "utf-8")
    assert load_study(tmp_path / "study.yaml").config == of.config


def sources(of: Study) -> list[Path]:
    return [config.data.sources[0].path for config in configs(of).values()]


def test_relative_paths_are_written_whole(tmp_path: Path) -> None:
    relative = {"base": "bundled", "data": {"sources": [{"path": "pictures"}]}}
    points = {"a": {"data.sources": [{"path": "few"}]}, "b": {"data": {"sources": [{"path": "many"}]}}}
    of = build_study({"run": relative, "points": points}, "test")
    (tmp_path / "study.yaml").write_text(dump_study(of.config, tmp_path), "utf-8")
    read = load_study(tmp_path / "study.yaml")
    assert read.run == run()
    assert sources(read) == [HERE / "few", HERE / "many"]


def test_relative_paths_of_a_file_start_in_its_folder(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    relative = "run: {base: bundled, data: {sources: [{path: pictures}]}}\n"
    file.write_text(
        f"{relative}points: {{a: {{data.sources: [{{path: x}}]}}, b: {{data: {{sources: [{{path: ../y}}]}}}}}}\n",
        "utf-8",
    )
    study = load_study(file)
    assert study.run.data.sources[0].path == tmp_path / "pictures"
    assert study.run.output.dir == tmp_path / "runs/adapter"
    assert sources(study) == [tmp_path / "x", tmp_path / "../y"]
    choices = "{data.sources: [[{path: x}], [{path: y}]]}"
    file.write_text(f"{relative}grid: {choices}\n", "utf-8")
    assert sources(load_study(file)) == [tmp_path / "x", tmp_path / "y"]
    file.write_text(f"{relative}search: {{space: {choices}}}\n", "utf-8")
    search = load_study(file).config.search
    assert search is not None and str(tmp_path / "y") in str(search.space)
    (tmp_path / "pictures").mkdir()
    file.write_text("run: pictures\ngrid: {adapter.rank: [1]}\n", "utf-8")
    assert load_study(file).run.data.sources[0].path == tmp_path / "pictures"
    assert load_study(file, ["run.data.cache=here"]).run.data.cache == Path("here"), "the command line's"


@pytest.mark.parametrize("name", list_studies())
def test_ready_made_studies_fit_any_run(name: str) -> None:
    of = load_study(Path(name), (), run())
    assert of.name == name and len(of.config.seeds) >= 3
    assert len(configs(of)) == len(points_of(of.config)) >= 5
    assert list_studies()[name].endswith("?")


def test_the_ready_made_studies_are_the_papers() -> None:
    rank, targets = (load_study(Path(name), (), run()) for name in ("rank", "targets"))
    assert [config.adapter.rank for config in configs(rank).values()] == [1, 2, 4, 8, 64]
    chosen = [config.adapter.target_modules for config in configs(targets).values()]
    assert {len(each) for each in chosen} == {1, 2, 4}
    assert [each for each in chosen if len(each) == 1] == [("to_q",), ("to_k",), ("to_v",), ("to_out.0",)]
    assert targets.config.budget == "all four"


@pytest.mark.parametrize("key", FIXED)
def test_what_decides_the_measure_is_the_same_for_all(key: str) -> None:
    for name in (key, f"{key}.x", key.partition(".")[0]):
        with raises_code("study.fixed_key") as caught:
            study(points={"a": {name: 1}})
        caught.match("same for all points")
        with raises_code("study.fixed_key"):
            study(search={"space": {name: [1]}})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("grid: {adapter.rnak: [1]}", "s.yaml:1: adapter.rnak: no such key; did you mean adapter.rank?"),
        ("seeds: [0]\ngird: {}", "s.yaml:2: gird: no such key; did you mean grid?"),
        ("seeds: [0]", "a study has one of grid, points and search, not none"),
        ("grid: {adapter.rank: [1]}\npoints: {a: {adapter.rank: 1}}", "not grid and points"),
        ("grid:\n  adapter.rank: [a, 1]", 's.yaml:2: adapter.rank: is "a", but should be a whole number'),
        ("points:\n  x:\n    adapter: {rank: 0}", "s.yaml:3: adapter.rank: is 0, but should be at least 1"),
        ("points: {x: {seed: 1}}", "seed: seed is the same for all points of a study; give seeds instead"),
        ("grid: {train: [1]}", "s.yaml:1: train: is 1, but should be a section"),
        ("grid: {train.max_steps.x: [1]}", "s.yaml:1: train.max_steps.x: train.max_steps has no x"),
        ("grid: {adapter.rank: []}", "should be a list that is not empty"),
        ("grid: {adapter.rank: 3}", "s.yaml:1: grid.adapter.rank: should be a list"),
        ("points: {a: 3}", "points.a: should be keys with their values"),
        ("search: {trails: 3, space: {adapter.rank: [1]}}", "search.trails: no such key; did you mean trials?"),
        ("search: {space: {adapter.rank: {low: 3, high: 1}}}", "low is 3 and high 1"),
        ("search: {space: {adapter.rank: {low: 0, high: 1, log: true}}}", "low is 0, which has no logarithm"),
        ("search: {space: {adapter.rank: {low: 1, hihg: 3}}}", "hihg: no such key; did you mean high?"),
        ("search: {space: {adapter.rank: 1}}", "should be a list to choose from, or low and high"),
        ("search: {sampler: random, space: {adapter.rank: [1]}}", "search.sampler: should be 'tpe'"),
        ("search: {space: {adapter.rank: [1]}}\nreference: a", "which a search has none of"),
        ("seeds: [0, 0]\ngrid: {adapter.rank: [1]}", "a seed is given twice"),
        ("seeds: [9223372036854775808]\ngrid: {adapter.rank: [1]}", "seeds.0: should be less than or equal to 922"),
        ("seeds: []\ngrid: {adapter.rank: [1]}", "s.yaml:1: seeds: should be a list that is not empty"),
        ("margin: 1.5\ngrid: {adapter.rank: [1]}", "margin: should be less than 1"),
        ("grid: {adapter.rank: [1, 2]}\nreference: rank 3", "reference: no point is called 'rank 3'; did you mean"),
        ("points: {a: {data.flip: true}}\nbudget: a", "sets no adapter.rank, so it is no budget"),
        ("- 1", "should be a list of keys"),
        ("grid: {adapter.rank: [1]}\nrun: 3", "should be a run's configuration"),
    ],
)
def test_a_mistake_is_told_in_one_line(text: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(text, "utf-8")
    with pytest.raises(UserError) as caught:
        load_study(file, (), None if "run:" in text else run())
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_a_study_needs_a_run_and_a_name_that_there_is(tmp_path: Path) -> None:
    with raises_code("study.no_run") as caught:
        load_study(Path("rank"))
    caught.match("has no run to study")
    with raises_code("study.unknown") as caught:
        load_study(Path("rnak"))
    caught.match("one of rank, targets")
    with raises_code("config.missing_key") as caught:
        build_study({"run": {"data": RUN["data"]}, "grid": {"adapter.rank": [1]}}, "test")
    caught.match("test: base: missing")


@given(st.lists(st.integers(1, 64), min_size=1, max_size=5, unique=True))
def test_a_rank_is_a_point(ranks: list[int]) -> None:
    found = configs(study(grid={"adapter.rank": ranks}))
    assert [config.adapter.rank for config in found.values()] == ranks
