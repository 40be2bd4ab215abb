import io
import json
from pathlib import Path

import numpy as np
from matplotlib.image import imread
from rich.console import Console

from das_jax.evaluation.importance_report import importance_table, write_heat_map
from das_jax.evaluation.report import score_rows, score_table, write_report
from das_jax.model.units import Units

SCORES = {
    "base model": {"news": 5.0, "acl": 6.0},
    "acl": {"news": 5.2, "acl": 4.0},
    "reviews": {"news": 5.2001, "acl": 3.9},
}


def shown(table: object) -> str:
    console = Console(width=120, file=io.StringIO())
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_rows_say_what_was_learned_and_what_was_forgotten() -> None:
    rows = dict(score_rows(SCORES))
    assert [kind for _, _, kind in rows["base model"]] == ["", ""]
    assert [kind for _, _, kind in rows["acl"]] == ["worse", "learned"]
    # A change of less than half a thousandth is none.
    assert [kind for _, _, kind in rows["reviews"]] == ["", "better"]
    np.testing.assert_allclose([change for _, change, _ in rows["acl"]], [0.2, -2.0])


def test_the_table_shows_losses_and_changes() -> None:
    text = shown(score_table(SCORES))
    assert "nats per masked token" in text
    assert "5.200 (+0.200)" in text
    assert "4.000 (-2.000)" in text


def test_the_page_stands_alone_and_escapes_names(tmp_path: Path) -> None:
    stage = tmp_path / "01-acl"
    stage.mkdir()
    rows = [{"step": step, "loss": 5.0, "effective_mask/heads": 0.4} for step in (1, 2)]
    (stage / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "report" / "index.html"
    write_report(path, "<b>runs</b>", SCORES, [stage, tmp_path / "02-reviews"])
    page = path.read_text()
    assert "&lt;b&gt;runs" in page
    assert page.count("data:image/png;base64,") == 3
    assert "http" not in page


def units(seed: int) -> Units:
    generator = np.random.default_rng(seed)
    return Units(*(generator.random((2, count)) for count in (4, 600, 32)))


def test_an_importance_map_is_a_row_per_layer_and_kind_and_a_picture(tmp_path: Path) -> None:
    importance, raw = units(0), units(1)
    text = shown(importance_table(importance, raw, Units(*(0.05 * x for x in raw))))
    assert text.count("intermediate") == 2
    assert f"{importance.heads[0].mean():.3f}" in text
    assert text.count("5.0%") >= 6
    path = tmp_path / "map.png"
    write_heat_map(path, importance)
    assert imread(path).shape[1] > 500
