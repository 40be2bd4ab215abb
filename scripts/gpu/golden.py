#!/usr/bin/env python3
"""The golden arrays on this machine's GPU: every family's hidden states, losses, gradients for gates and
parameters, soft-masked ones too, and DAS's train step.

Float32 with products that are not rounded first, at the tolerances of the CPU, and bfloat16 within the bounds
that its test states. The other golden tests run there by hand: `pytest --platform=gpu tests/test_golden*.py`.
"""

import os
import sys

import pytest

from scripts.gpu.measure import Report, part

FILES = ("tests/test_golden_models.py", "tests/test_golden.py")
CHOSEN = "not float64 and (logits or gates or gradients or importance or steps or bfloat16)"
TINY = "not float64 and (gpt2 or bfloat16)"
WORKERS = 4
"""Most of the time goes to compiling; each worker has programs of its own to compile."""


class Outcomes:
    """A pytest plugin: puts the outcome of every test into the report as soon as it is known."""

    def __init__(self, report: Report) -> None:
        self.report = report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # What a fixture says counts only where the test itself has nothing to say.
        if report.when != "call" and report.passed:
            return
        self.report.add(
            report.nodeid,
            {
                "outcome": report.outcome,
                "seconds": report.duration,
                **({} if report.passed else {"why": _why(report)}),
            },
        )

    def summary(self) -> dict[str, object]:
        tests = {name: result["outcome"] for name, result in self.report.results.items()}
        return {
            **{of: list(tests.values()).count(of) for of in ("passed", "failed", "skipped")},
            "failing": [name for name, outcome in tests.items() if outcome == "failed"],
        }


def _why(report: pytest.TestReport) -> str:
    """The line that says what went wrong."""
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2]
    crash = getattr(report.longrepr, "reprcrash", None)
    return report.longreprtext[-400:] if crash is None else crash.message


def main(report: Report, tiny: bool) -> None:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    outcomes = Outcomes(report)
    options = ["-k", TINY, "-n0"] if tiny else ["-k", CHOSEN, "--platform=gpu", f"-n{WORKERS}"]
    # Tests of one model stand side by side and share what it compiled, so each worker gets a run of them.
    # Numbers are tested here: a warning is shown, and the benchmark plugin, which dislikes workers, left out.
    options += ["--dist=worksteal", "-W", "default", "-p", "no:benchmark", "-p", "no:cacheprovider"]
    status = pytest.main(["-q", *options, *FILES], plugins=[outcomes])
    report.add("summary", outcomes.summary() | {"status": int(status)})
    sys.exit(status)


if __name__ == "__main__":
    part("golden", main)
