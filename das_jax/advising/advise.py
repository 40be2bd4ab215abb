"""What to do with a model and texts: short probes, then longer ones of the best, then a recommendation."""

import dataclasses
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from rich.table import Table
from typing_extensions import TypedDict  # Pydantic reads that of typing from Python 3.12 on only.

from das_jax.advising.budget import Budget, Flops, Pace, check_steps, flops_of, steps_of
from das_jax.advising.candidates import (
    RATE,
    Candidates,
    names_of,
    overlay,
    write_comparison,
    write_configuration,
)
from das_jax.advising.recommendation import (
    Probe,
    Recommendation,
    finalists,
    probe_of,
    recommend,
)
from das_jax.comparing.budget import plain, total_flops
from das_jax.comparing.cells import VALIDATION, Cell, Point
from das_jax.comparing.compare import cells_of_comparison, report_of_comparison, show
from das_jax.comparing.file import Comparison, read_comparison
from das_jax.comparing.outcomes import Measured, measured, outcomes_of, seconds_of
from das_jax.comparing.run import WARM_UPS, Failure, run_cells
from das_jax.comparing.warm_up import warm_up_of
from das_jax.config.load import load_config
from das_jax.config.parse import dump_yaml
from das_jax.config.schema import Config
from das_jax.config.show import difference
from das_jax.errors import UserError
from das_jax.evaluation.terminal_tables import add_row, new_table
from das_jax.files import read_json, sweep, write_json, write_text
from das_jax.training.console import Console, clock
from das_jax.training.distributed import on_first_host
from das_jax.training.interruption import Interruption
from das_jax.training.run_directory import WHERE_NOT_WHAT

FIRST = 0.4
"""The share of the budget that all points have together, once each; the rest is for the best of them."""
FINALISTS = 5
SEEDS = (0, 1, 2)
"""Of the best points, which get intervals thereby."""
PACE_STEPS = 10


class _Decided(TypedDict):
    budget: str
    steps: list[int]
    pace: tuple[float, float, float, float]


_DECIDED = TypeAdapter(_Decided)


@dataclass(frozen=True)
class Advice:
    """What the probes came to.

    Attributes:
      config: the whole run's configuration.
      candidates: what was tried.
      probes: the points that were tried longest.
      steps: of these, on every domain.
      recommendation: what to do.
      promise: the rise of general loss that is allowed; None for no promise.
    """

    config: Config
    candidates: Candidates
    probes: Sequence[Probe]
    steps: Sequence[int]
    recommendation: Recommendation
    promise: float | None

    @property
    def settings(self) -> dict[str, Any]:
        """What to lay over the configuration, the promise included."""
        found = overlay(self.candidates.settings_of(self.recommendation.chosen.measured.point))
        general, config = {}, self.config
        assert config.general is not None
        if config.general.steps and config.general.warmup_learning_rate is None:
            # That of the probes, whatever their own rate was.
            general["warmup_learning_rate"] = config.training.learning_rate
        if self.promise is not None:
            general["may_rise"] = self.promise
        return {**found, "general": general} if general else found

    @property
    def sentences(self) -> list[str]:
        """What to do, and why."""
        chosen = self.recommendation.chosen
        domains, rise = chosen.reported
        runs = len(chosen.measured.outcomes)
        moved = f"{rise.mean:+.3f} {rise.interval('+')}".rstrip()
        return [
            f"Use {chosen.name}: after probes of {_range(self.steps)} steps a domain ({runs} seeds) the loss "
            f"on the domains is {domains}, that on general text {moved} nats from where it was, at "
            f"{chosen.flops:.2f} times the FLOPs of plain training.",
            f"Why: {self.recommendation.why}.",
        ]


def advise(
    config: Config,
    candidates: Candidates,
    budget: Budget,
    promise: float | None,
    directory: Path,
    console: Console,
    interruption: Interruption,
) -> Advice:
    """Probes the candidates, and recommends one; killed anywhere, the same call goes on.

    Args:
      config: of the whole run.
      candidates: what is tried.
      budget: what all probes together may take.
      promise: nats per predicted token by which the loss on general text may rise; None for no promise.
      directory: where the probes go, and the recommendation.
      console: where a person watches.
      interruption: says whether somebody asked to stop.

    Raises:
      UserError: there is no general text, the budget is too small, a candidate is not valid, or the
        directory holds the probes of another configuration.
      Interrupted: somebody asked it to stop; what is finished is kept.
    """
    if config.general is None:
        raise UserError(
            "what is forgotten is measured on general text, and the configuration has none; add `general:` "
            "with a source"
        )
    probes = _Probes(config, candidates, budget, promise, directory, console, interruption)
    finals, steps = probes.run()
    recommendation = recommend(finals, len(config.domains), promise)
    advice = Advice(config, candidates, finals, steps, recommendation, promise)
    on_first_host(lambda: write_text(directory / "recommended.yaml", _yaml(advice)))
    return advice


@dataclass
class _Probes:
    """Three comparisons, one after the other: how fast this machine is, all points, the best of them."""

    config: Config
    candidates: Candidates
    budget: Budget
    promise: float | None
    directory: Path
    console: Console
    interruption: Interruption

    def run(self) -> tuple[list[Probe], list[int]]:
        """The points that were tried longest, and the steps of each on every domain."""
        self._begin()
        decided = self._decided("first") or self._decide("first", self._first())
        tried = self._compare("first", self.candidates.of_all(), decided["steps"], SEEDS[:1])
        found = [self._probe(each) for each in measured(tried)]
        finals = finalists(found, len(self.config.domains), self.promise, FINALISTS)
        best = [each.measured.point for each in finals]
        pace = Pace(*decided["pace"])
        decided = self._decided("second") or self._decide("second", self._second(best, pace))
        some = self.candidates.of_some(best)
        final = measured(self._compare("second", some, decided["steps"], SEEDS))
        by_name = names_of(best)
        probes = [
            self._probe(dataclasses.replace(each, point=by_name[each.point.system]))
            for each in final
        ]
        return probes, decided["steps"]

    def _begin(self) -> None:
        """Writes what is equal for all, or looks whether it is what was written before."""
        path = self.directory / "config.yaml"

        def begin() -> None:
            self.directory.mkdir(parents=True, exist_ok=True)
            sweep(self.directory)
            if path.exists():
                validated = self.config.data.validation or VALIDATION
                now = dataclasses.replace(
                    self.config,
                    seeds=None,
                    data=dataclasses.replace(self.config.data, validation=validated),
                )
                for key, old, new in difference(load_config(path).config, now):
                    if key.startswith(WHERE_NOT_WHAT):
                        continue
                    raise UserError(
                        f"{self.directory} holds probes of another configuration: {key} was {old!r} and is "
                        f"now {new!r}; start it as it was, or give another --output"
                    )
                write_configuration(self.config, VALIDATION, path)  # The place may be another.
                return
            if others := [each.name for each in self.directory.iterdir()]:
                raise UserError(
                    f"{self.directory} holds other files ({', '.join(sorted(others)[:3])}); give an empty or "
                    "a new directory with --output"
                )
            write_configuration(self.config, VALIDATION, path)

        on_first_host(begin)

    def _decided(self, name: str) -> _Decided | None:
        """What was decided before: how long probes are depends on how fast the machine was then."""
        path = self.directory / f"{name}.json"
        if not on_first_host(path.exists):
            return None
        found = read_json(path, _DECIDED, "remove it, and the same command decides again")
        if found["budget"] != str(self.budget):
            raise UserError(
                f"{self.directory} holds probes for {found['budget']}, not {self.budget}; start it as it "
                "was, or give another --output"
            )
        return found

    def _decide(self, name: str, decided: _Decided) -> _Decided:
        on_first_host(lambda: write_json(self.directory / f"{name}.json", decided))
        return decided

    def _first(self) -> _Decided:
        """The steps of the probes of all points."""
        full, every = steps_of(self.config, 1.0), self.candidates.of_all()
        points = _points(cells_of_comparison(self._comparison("first", every, full, SEEDS[:1])))
        flops = [flops_of(point.config) for point in points]
        pace = self._measure_pace(points[0]) if self.budget.flops is None else Pace()
        return self._steps(FIRST, flops, pace)

    def _second(self, points: Sequence[Point], pace: Pace) -> _Decided:
        """The steps of the probes of the best points."""
        flops = [flops_of(_full(self.config, point)) for point in points for _ in SEEDS]
        return self._steps(1 - FIRST, flops, pace, warm_ups=len(SEEDS) - 1)

    def _steps(
        self, share: float, flops: Sequence[Flops], pace: Pace, warm_ups: int = 0
    ) -> _Decided:
        found = self.budget.share_of_steps(share, flops, pace, warm_ups)
        steps = steps_of(self.config, found)
        check_steps(steps, steps_of(self.config, 1.0), len(flops), self.budget)
        return {"budget": str(self.budget), "steps": steps, "pace": (*pace,)}

    def _measure_pace(self, point: Point) -> Pace:
        """A run of few steps, and another one, which finds the warm-up learned.

        Both are learned again if a process was killed meanwhile: nothing else tells how long they take.
        """
        steps = [min(PACE_STEPS, each) for each in steps_of(self.config, 1.0)]
        one = self.candidates.settings_of(point)
        other = {**one, RATE: 1.01 * self.config.training.learning_rate}
        systems = {"systems": {"one": one, "other": other}}
        comparison = self._comparison("pace", systems, steps, SEEDS[:1])
        cells = cells_of_comparison(comparison)
        self.console.log(f"how fast this machine is: {len(cells)} runs of {_range(steps)} steps")
        on_first_host(lambda: shutil.rmtree(comparison.output_dir / "cells", ignore_errors=True))
        times = [time.monotonic()]
        for some in (cells[:1], cells):
            if failures := self._learn(comparison, some):
                raise UserError(f"a first run of few steps failed: {failures[0].reason}")
            times.append(time.monotonic())
        # Every host has a clock of its own, and all must come to the same steps.
        began, between, ended = on_first_host(lambda: times)
        cell, warm_up = cells[-1], warm_up_of(self.config)
        flops, (outcome,) = flops_of(cell.config), outcomes_of(cells[-1:])
        per_flop = outcome.seconds / flops.steps
        overhead = ended - between - outcome.seconds - per_flop * flops.measured
        warming = 0.0 if warm_up is None else seconds_of(cell.run.path, [warm_up.name])
        return Pace(per_flop, max(0.0, overhead), warming, ended - began)

    def _compare(
        self, name: str, systems: dict[str, Any], steps: Sequence[int], seeds: Sequence[int]
    ) -> list[Cell]:
        """Learns the points, and shows them beside each other."""
        comparison = self._comparison(name, systems, steps, seeds)
        cells = cells_of_comparison(comparison)
        self.console.log(
            f"{name} probes: {len(_points(cells))} points, {len(seeds)} seed{'s' * (len(seeds) > 1)}, "
            f"{_range(steps)} steps a domain"
        )
        failures = self._learn(comparison, cells)
        report = report_of_comparison(comparison, cells, failures)
        show(report, comparison.output_dir / "report", self.console)
        return cells

    def _comparison(
        self, name: str, systems: dict[str, Any], steps: Sequence[int], seeds: Sequence[int]
    ) -> Comparison:
        """The comparison of some systems, as a file that `das-jax compare` could run as well."""
        path, config = self.directory / f"{name}.yaml", self.directory / "config.yaml"
        on_first_host(lambda: write_comparison(path, config, systems, steps, seeds))
        return read_comparison(path)

    def _learn(self, comparison: Comparison, cells: Sequence[Cell]) -> list[Failure]:
        output_dir, keep = comparison.output_dir, comparison.settings.keep
        warm_ups = self.directory / WARM_UPS  # The same for all three.
        return run_cells(cells, self.console, self.interruption, output_dir, keep, warm_ups)

    def _probe(self, measured: Measured) -> Probe:
        whole = _full(self.config, measured.point)
        return probe_of(measured, total_flops(whole) / total_flops(plain(whole)))


def _points(cells: Sequence[Cell]) -> list[Point]:
    return list({cell.point.title: cell.point for cell in cells}.values())


def _full(config: Config, point: Point) -> Config:
    """A point's configuration with the steps of the whole run."""
    return dataclasses.replace(point.config, domains=config.domains, training=point.config.training)


def _range(steps: Sequence[int]) -> str:
    low, high = min(steps), max(steps)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _yaml(advice: Advice) -> str:
    lines = [f"# {sentence}" for sentence in advice.sentences]
    return "\n".join([*lines, "# Use it with --with=THIS_FILE.", "", dump_yaml(advice.settings)])


def advice_table(advice: Advice) -> Table:
    """The points that were tried longest, the best in general text first."""
    table = new_table(
        "the points tried longest, on text that nothing was chosen on",
        *("point", "loss on the domains", "rise on general text", "FLOPs", "frontier"),
        caption=f"Means over {len(SEEDS)} seeds with 95 % intervals; nats per predicted token. FLOPs: in "
        "those of plain training, for the whole run. On the frontier stands what no other point beats in "
        "both.",
    )
    recommendation = advice.recommendation
    for probe in sorted(advice.probes, key=lambda each: each.rise.mean):
        domains, rise = probe.reported
        chosen = " (recommended)" if probe is recommendation.chosen else ""
        on = "yes" if probe in recommendation.frontier else ""
        add_row(table, f"{probe.name}{chosen}", str(domains), str(rise), f"{probe.flops:.2f}", on)
    return table


def price(advice: Advice) -> str:
    """What the whole run costs, in a sentence."""
    whole = _full(advice.config, advice.recommendation.chosen.measured.point)
    flops = flops_of(whole)
    seeds = len(advice.config.seeds or (advice.config.seed,))
    took = [
        each.seconds / flops_of(each.cell.config).steps
        for each in advice.recommendation.chosen.measured.outcomes.values()
    ]
    seconds = flops.steps * sum(took) / len(took)
    total = float(seeds * sum(flops))
    return (
        f"The whole run of {_range(steps_of(advice.config, 1.0))} steps a domain has {total:.2e} "
        f"useful FLOPs, about {clock(seeds * seconds)} of steps on this machine. Forgetting grows with the "
        "steps: what a probe kept, the run looks at after every domain."
    )
