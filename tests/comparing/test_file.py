"""The file of a comparison, and what is wrong with one."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from das_jax.comparing.cells import base_of, cells_of, orders_of, points_of, seeds_of
from das_jax.comparing.file import Comparison, read_comparison
from das_jax.errors import UserError
from das_jax.training.run_directory import RunDirectory
from tests.comparing.conftest import Write
from tests.project import Project

PLAIN = {"method.name": "naive"}


def test_the_comparisons_that_ship_load() -> None:
    for path in (Path(__file__).parents[2] / "configs" / "comparisons").glob("*.yaml"):
        points = points_of(read_comparison(path))
        bounds = {each.system for each in points if each.bound}
        assert bounds in ({"joint", "alone"}, set())


def test_points_are_the_product_of_what_is_varied(grid: Comparison) -> None:
    points = points_of(grid)
    rates = [1e-4, 1e-3, 1e-2]
    assert [(each.system, each.config.training.learning_rate) for each in points[:3]] == [
        ("plain", rate) for rate in rates
    ]
    assert [
        (each.config.training.learning_rate, each.config.method.strength) for each in points[3:]
    ] == [(rate, strength) for rate in rates for strength in (5.0, 50.0)]
    assert len({(each.system, each.name) for each in points}) == 9


def test_a_system_that_sets_a_key_itself_is_not_varied_in_it(write_comparison: Write) -> None:
    path = write_comparison(
        systems={"plain": {**PLAIN, "training.learning_rate": 5e-3}, "das": {}},
        vary={"training.learning_rate": [1e-4, 1e-3]},
    )
    found = [
        (each.system, each.config.training.learning_rate)
        for each in points_of(read_comparison(path))
    ]
    assert found == [("plain", 5e-3), ("das", 1e-4), ("das", 1e-3)]


def test_layers_lie_over_each_other(write_comparison: Write, tmp_path: Path) -> None:
    """Configuration, settings for all, overlay files, the system's own, the command line."""
    (tmp_path / "over.yaml").write_text(
        yaml.safe_dump({"method": {"name": "replay", "share": 0.5}, "training": {"b1": 0.5}})
    )
    path = write_comparison(
        settings={"training.steps": 7, "training.b1": 0.8, "training.b2": 0.99},
        systems={"one": {"with": "over.yaml", "method.share": 0.25}, "two": PLAIN},
    )
    one, two = points_of(read_comparison(path, ["--training.b2=0.9", "--seeds=[3, 4]"]))
    assert (one.config.method.share, one.config.training.b1) == (0.25, 0.5)
    assert (two.config.training.b1, two.config.training.b2) == (0.8, 0.9)
    assert one.config.training.steps == two.config.training.steps == 7


def test_what_is_varied_changes_no_warm_up_and_there_is_text_to_choose_on(grid: Comparison) -> None:
    for point in points_of(grid):
        assert point.config.general is not None
        assert point.config.general.warmup_learning_rate == 1e-2
        assert point.config.data.validation == 0.05


def test_cells_are_runs_of_their_own(grid: Comparison, project: Project) -> None:
    base = base_of(grid)
    orders = [("papers", "reviews"), ("reviews", "papers")]
    cells = cells_of(points_of(grid)[:1], orders, [0, 5], Path("out"))
    assert [(cell.order, cell.seed) for cell in cells] == [(1, 0), (1, 5), (2, 0), (2, 5)]
    last = cells[-1].config
    assert [domain.name for domain in last.domains] == ["reviews", "papers"]
    assert last.domains[0] == base.domains[1]
    assert (last.seed, last.seeds) == (5, None)
    assert last.output_dir == "out/cells/plain/learning_rate=0.0001/order-2/seed-5"


def test_orders(write_comparison: Write) -> None:
    def orders(wanted: Any) -> list[tuple[str, ...]]:
        comparison = read_comparison(write_comparison(systems={"plain": PLAIN}, orders=wanted))
        return orders_of(comparison, base_of(comparison))

    own, other = ("papers", "reviews"), ("reviews", "papers")
    assert orders(1) == [own]
    assert orders(2) == [own, other]
    assert orders([[*other]]) == [other]
    with pytest.raises(UserError, match="orders is 3, but 2 domains have 2"):
        orders(3)
    with pytest.raises(UserError, match=r"orders\.0 is papers; every order has all domains once"):
        orders([["papers"]])
    with pytest.raises(UserError, match=r"orders\.1 is there twice"):
        orders([[*own], [*own]])


def test_seeds_are_the_configurations_own_where_there_are_no_others(
    grid: Comparison, write_comparison: Write
) -> None:
    assert seeds_of(grid, base_of(grid)) == (0,)
    several = read_comparison(write_comparison(settings={"seeds": [3, 5]}, systems={"a": PLAIN}))
    assert seeds_of(several, base_of(several)) == (3, 5)
    (cell, _) = cells_of(points_of(several), [("papers", "reviews")], (3, 5), Path("out"))
    assert (cell.config.seed, cell.config.seeds) == (3, None)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"sytems": {}}, r"comparison.yaml:\d+: sytems is no setting of a comparison; these are"),
    ({"systems": {}}, r"systems: .* at least 1 item"),
    ({"seeds": [1, 2**32 + 1]}, r"comparison.yaml:\d+: seeds holds 1 and 4294967297, which are"),
    ({"budget": "hours"}, r"budget: input should be 'steps' or 'flop', not \"hours\""),
    (
        {"reference": "x"},
        r"comparison.yaml:\d+: reference is x, which is none of the systems \(a\)",
    ),
    ({"vary": {"training.b1": 0.5}}, r"vary\.training"),
    (
        {"systems": {"a": {"vary": {"training.b1": 0.5}}}},
        "training.b1 is varied over 0.5; give a list",
    ),
    ({"bounds": {"a": {}}}, "a is also a system"),
    ({"systems": {"a": {"with": "none.yaml"}}}, "none.yaml does not exist"),
    ({"systems": {"a": {"with": 3}}}, "a.with must be a file or a list of files"),
    (
        {"systems": {"a": {"training.stepz": 3}}},
        r"system a \(.*comparison.yaml:\d+\): .*comparison.yaml:\d+: training.stepz is no setting",
    ),
    (
        {"systems": {"a": {"training.steps": 3}}},
        "system a .*: training.steps is 3, and 5 of the others; give it under `settings`, for all",
    ),
    (
        {"systems": {"a": {"general.warmup_learning_rate": 0.5}}},
        "general.warmup_learning_rate is 0.5, and 0.01",
    ),
    ({"systems": {"a": {"seed": 3}}}, "seed is 3, and 0 of the others; give it under `settings`"),
    ({"systems": {"a": {"output_dir": "x"}}}, "output_dir is x, but cells go below"),
    ({"settings": {"data.validation": 0.0}}, "data.validation is 0, but a comparison chooses on"),
    (
        {"systems": {"a": {"training": {"b1": 0.5}, "training.b1": 0.6}}},
        "training.b1 was given before",
    ),
]


@pytest.mark.parametrize(("keys", "sentence"), BAD)
def test_bad_files(write_comparison: Write, keys: dict[str, Any], sentence: str) -> None:
    path = write_comparison(**{"systems": {"a": PLAIN}, **keys})
    with pytest.raises(UserError, match=sentence):
        points_of(read_comparison(path))


def test_the_command_line_sets_nothing_that_is_varied(write_comparison: Write) -> None:
    path = write_comparison(systems={"a": PLAIN}, vary={"training.learning_rate": [1.0, 2.0]})
    with pytest.raises(UserError, match=r"--training.learning_rate=3 sets what a varies"):
        read_comparison(path, ["--training.learning_rate=3"])


def test_cells_know_the_run_that_they_are(grid: Comparison, tmp_path: Path) -> None:
    (cell,) = cells_of(points_of(grid)[:1], [("papers", "reviews")], [0], tmp_path)
    assert cell.run == RunDirectory(tmp_path / "cells/plain/learning_rate=0.0001/order-1/seed-0")
