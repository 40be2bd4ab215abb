"""What happens before the first step: how long it takes, and that nothing is compiled twice."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.project import Project

ROOT = Path(__file__).parents[2]
COUNTING = """
import collections, json, sys
from jax import monitoring
from das_jax import cli
events = collections.Counter()
monitoring.register_event_listener(lambda event, **_: events.update([event]))
monitoring.register_event_duration_secs_listener(lambda event, *_, **__: events.update([event]))
status = cli.main(sys.argv[1:])
print(json.dumps(events))
sys.exit(status)
"""


@pytest.mark.slow
def test_a_second_start_compiles_nothing(project: Project, reference: Path, tmp_path: Path) -> None:
    """And it says, once, how long its first step took to come."""
    command = [sys.executable, "-c", COUNTING, "pretrain", project.config]
    begun = time.monotonic()
    done = subprocess.run(
        [*command, f"--output_dir={tmp_path / 'run'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    elapsed = time.monotonic() - begun
    *_, counts = done.stdout.splitlines()
    events = json.loads(counts)
    programs = events["/jax/core/compile/backend_compile_duration"]
    assert programs > 10
    assert events["/jax/compilation_cache/compile_requests_use_cache"] == programs
    assert events["/jax/compilation_cache/cache_hits"] == programs

    (said,) = re.findall(r"^(.+): first step done (\d+) seconds after", done.stdout, re.MULTILINE)
    rows = [
        {"stage": path.parent.name, **json.loads(line)}
        for path in sorted((tmp_path / "run").glob("*/metrics.jsonl"))
        for line in path.read_text().splitlines()
    ]
    (first,) = [row for row in rows if "seconds_to_first_step" in row]
    assert (first["stage"], first["step"]) == ("00-news", 2), "in the first row of the run"
    assert said == ("news", f"{first['seconds_to_first_step']:.0f}")
    assert elapsed / 10 < first["seconds_to_first_step"] < elapsed


def test_the_age_of_a_process() -> None:
    script = "import time; time.sleep(0.5); from das_jax.training.console import process_seconds"
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", f"{script}; print(process_seconds())"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    age, elapsed = float(done.stdout), time.monotonic() - begun
    assert 0.5 < age < elapsed + 0.05, "the kernel counts in hundredths"
