"""The page, as far as it needs no browser."""

import copy
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from das_jax.evaluation.comparison import summarise_all
from das_jax.evaluation.report import (
    changed_settings,
    render,
    shade,
    share_shade,
    write_pages,
    write_report,
)
from das_jax.evaluation.summary import summarise
from tests.evaluation.conftest import EVALUATION, HELDOUT, MakeRun

VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """The page's elements; what is opened must be closed, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.headings: list[str] = []
        self.cells: dict[str, list[tuple[str, str]]] = {}
        """Of every table, by its label: (class, text) of every cell."""
        self._open: list[str] = []
        self._table = ""
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        known = {name: value or "" for name, value in attributes}
        self.tags.append(tag)
        self.attributes += known.items()
        if known.get("role") == "region":
            self._table = known["aria-label"]
        if known.get("class") == "facts":
            self._table = "facts"
        if tag == "td":
            self.cells.setdefault(self._table, []).append((known.get("class", ""), ""))
        if tag in ("h1", "h2", "h3", "h4"):
            self.headings.append("")
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attributes]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self._open:
            kind, text = self.cells[self._table][-1]
            self.cells[self._table][-1] = kind, text + data
        elif self._open and self._open[-1] in ("h1", "h2", "h3", "h4"):
            self.headings[-1] += data

    def values(self, name: str) -> list[str]:
        return [value for attribute, value in self.attributes if attribute == name]


def test_the_page_of_a_run(make_run: MakeRun) -> None:
    run = make_run("das", evaluation=EVALUATION)
    write_report(run)
    page = Page((run / "report" / "index.html").read_text())
    assert page.headings == [
        "das",
        "What ran",
        "End tasks",
        "Held-out loss",
        "Cloze facts",
        "Curves",
        "What is protected",
        "Still free, layer by layer",
        "What maps have in common",
    ]
    # Training loss, held-out loss, effective mask, raw importance of three kinds.
    assert page.values("class").count("plot") == 6
    assert {f"#{name}" for name in page.values("id")} >= set(page.values("href")) - {"data:,"}


def test_learned_cells_are_marked_and_changes_coloured(make_run: MakeRun) -> None:
    page = Page(render([summarise(make_run("das"))]))
    cells = page.cells["held-out loss of das"]
    assert cells[:6] == [
        ("before", "8.000"),
        ("before", "9.000"),
        ("before", "8.500"),
        ("learned", "4.000"),
        ("", "5.000"),
        ("", "5.500"),
    ]
    assert cells[6:] == [
        ("worse-5", "4.500+0.500"),
        ("learned better-5", "3.000−2.000"),
        ("", "5.500+0.000"),
        ("worse-3", "4.250+0.250"),
        ("better-5", "3.250−1.750"),
        ("learned better-5", "2.000−3.500"),
    ]


def test_of_end_tasks_more_is_better_and_baselines_stand_below(make_run: MakeRun) -> None:
    summary = summarise(make_run("das", evaluation=EVALUATION))
    table = summary.tables["tasks"]
    assert shade(table, 3, 1) == "learned better-5"
    assert shade(table, 2, 1) == "worse-3"
    cells = [text for _, text in Page(render([summary])).cells["end tasks of das"]]
    assert cells[-4:] == ["0.250", "0.250", "0.375", "0.375"]
    assert cells[4] == "0.750 ± 0.124+0.350 ± 0.124"
    assert shade(table, 2, 0) == "learned better-2", "twice the noise"


@pytest.mark.parametrize(
    ("share", "expected"), [(-0.2, 0), (0.0, 0), (0.51, 3), (1.0, 5), (1.001, 5)]
)
def test_shades_of_shares(share: float, expected: int) -> None:
    assert share_shade(share) == f"share-{expected}"


def test_measures_say_what_they_mean_and_where_they_start(make_run: MakeRun) -> None:
    text = render([summarise(make_run("das", evaluation=EVALUATION))])
    cells = Page(text).cells["Measures of held-out loss of das"]
    assert [cell[1] for cell in cells[3:6]] == [
        "0.250",
        "",
        "forgetting: the best score before the last domain, less the last; less is better",
    ]
    starts = re.findall(r"The first row counted is <i>(.*?)</i>(.*?)\.", text)
    assert starts == [("news", ", the model after the warm-up and before the first domain")] * 3
    assert "Means over 3 fine-tuning seeds (0, 1, 2)" in text
    assert "One pre-training seed (0), so there are no intervals" in text


def test_without_a_warm_up_nothing_is_said_of_one(make_run: MakeRun) -> None:
    general = {"name": "news", "source": {"kind": "demo", "name": "news"}}
    heldout = {row: losses for row, losses in HELDOUT.items() if row != "news"}
    text = render([summarise(make_run("das", heldout=heldout, general=general))])
    assert "The first row counted is <i>base model</i>." in text
    assert "after the warm-up" not in text


def test_a_method_without_importance_has_no_such_section(make_run: MakeRun) -> None:
    page = render([summarise(make_run("naive", method="naive"))])
    assert "Training loss" in page
    for absent in ("protected", "Effective mask", "Raw importance", "End tasks", "Cloze"):
        assert absent not in page


def test_several_runs_are_compared(make_run: MakeRun) -> None:
    naive = make_run("naive", method="naive", evaluation=EVALUATION)
    page = Page(render(summarise_all([make_run("das", evaluation=EVALUATION), naive])))
    assert page.headings[:12] == [
        "das, naive",
        "Comparison",
        "After reviews: end tasks",
        "After reviews: held-out loss",
        "After reviews: cloze facts",
        "By OP of end tasks",
        "By OP of held-out loss",
        "By X-Delta of held-out loss",
        "By X-Delta of cloze facts",
        "By F of end tasks",
        "By F of held-out loss",
        "By FUAR of cloze facts",
    ]
    assert page.headings.count("What is protected") == 1
    differing = [text for _, text in page.cells["Settings that differ"]]
    assert differing == ["das", "naive"], (
        "the method's name; other settings of it one run alone has"
    )
    ids = page.values("id")
    assert len(ids) == len(set(ids)), "plots share no id"
    assert {f"#{name}" for name in ids} >= set(page.values("href")) - {"data:,"}
    assert {f"#{name}" for name in ids} >= set(page.values("xlink:href"))


def test_a_difference_that_may_be_chance_has_no_colour(make_run: MakeRun, tmp_path: Path) -> None:
    """Of two runs the last models, and of each what changed: +.002 +- .020 is no blue."""
    for name, shift in (("das", 0.0), ("naive", -0.1)):
        for seed, more in enumerate((0.002, 0.0101, -0.0061)):
            heldout = copy.deepcopy(HELDOUT)
            heldout["acl"]["reviews"] -= more
            heldout["reviews"]["acl"] += more * (1 + shift)
            heldout["reviews"]["news"] += shift + more / 10 * (shift != 0)
            make_run(f"{name}/seed-{seed}", seed=seed, heldout=heldout)
    text = render(summarise_all([tmp_path / name for name in ("das", "naive")]))
    cells = Page(text).cells
    assert cells["held-out loss of das"][8] == ("unclear", "5.498 ± 0.020−0.002 ± 0.020")
    assert cells["Last models by held-out loss"][3:] == [
        ("better-5", "4.150 ± 0.002−0.100 ± 0.002"),
        ("unclear", "3.252 ± 0.018−0.000 ± 0.002"),
        ("", "2.000 ± 0.000+0.000 ± 0.000"),
    ]
    assert text.count("may be chance: the interval includes zero") == 3
    assert '<p class="headline">naive against das: better in held-out X-Delta +0.100 [' in text
    assert "Bars are 95 % intervals over pre-training seeds (Student&#x27;s t)." in text


def test_names_are_text_and_not_markup(make_run: MakeRun) -> None:
    text = render([summarise(make_run("<b>x</b> & $y_1$"))])
    Page(text)
    assert "<b>x" not in text
    assert "mathdefault" not in text, "nor is anything taken for TeX"
    assert "&lt;b&gt;x&lt;/b&gt; &amp; $y_1$" in text
    assert "1 x &lt;cpu&gt;" in text


def test_names_in_plots_are_text_and_not_markup(make_run: MakeRun) -> None:
    paths = [make_run(name) for name in ("<b>x</b>", "_y$")]
    text = render(summarise_all(paths))
    Page(text)
    assert "<b>x" not in text


def test_the_page_needs_nothing_else(make_run: MakeRun) -> None:
    text = render(summarise_all([make_run(name, evaluation=EVALUATION) for name in "ab"]))
    page = Page(text)
    assert not {"script", "img", "iframe", "object"} & set(page.tags)
    assert page.values("src") == []
    addresses = page.values("href") + page.values("xlink:href")
    assert {address for address in addresses if not address.startswith("#")} == {"data:,"}
    assert not re.search(r"https?:|@import|url\((?!#)", text)


def test_settings_in_which_runs_differ_that_have_them(make_run: MakeRun) -> None:
    masks = [{"name": "das", "soft_mask": {"apply_to": each}} for each in ("update", "gradient")]
    runs = [
        make_run("a", method=masks[0]),
        make_run("b", method=masks[1], seed=1, mesh={"data": 1}),
        make_run("c", method="naive"),
    ]
    assert changed_settings(summarise_all(runs)) == {
        "method.name": ["das", "das", "naive"],
        "method.soft_mask.apply_to": ["update", "gradient", "–"],
    }


def test_equal_runs_have_equal_pages(make_run: MakeRun) -> None:
    summary = summarise(make_run("das"))
    assert render([summary]) == render([summary])


def test_a_run_in_its_middle_has_a_page(make_run: MakeRun) -> None:
    for rows in (1, 2, 3):
        heldout = dict(list(HELDOUT.items())[:rows])
        Page(render([summarise(make_run(f"das-{rows}", heldout=heldout))]))


def test_the_csv_files_stand_beside_the_page(make_run: MakeRun, tmp_path: Path) -> None:
    page = write_pages([summarise(make_run("das"))], tmp_path / "out")
    assert page == tmp_path / "out" / "index.html"
    names = ["agreement", "costs", "importance", "measures", "metrics", "ranks", "scores"]
    assert {path.name for path in page.parent.iterdir()} == {
        *(f"{name}.csv" for name in names),
        "index.html",
    }
