"""What a person sees."""

import io
import os
import subprocess
import sys

import pytest
import rich.console

from das_jax.training import console as module
from das_jax.training.console import Console


class Clock:
    """time.monotonic, moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_plain_lines_come_now_and_then_and_once_at_the_end(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Console().progress("acl", 300) as line:
        line.update(0, "compiling")
        clock.now += 40  # The first step is compiled, and says nothing of the others.
        line.update(1)
        for step in range(2, 301):
            clock.now += 0.5
            line.update(step, "loss 3.210, 9,000 tokens/s" if step % 50 == 0 else None)
    assert capsys.readouterr().out.splitlines() == [
        "acl: 1/300, compiling",
        "acl: 61/300, loss 3.210, 9,000 tokens/s, 0:02:00 left",
        "acl: 121/300, loss 3.210, 9,000 tokens/s, 0:01:30 left",
        "acl: 181/300, loss 3.210, 9,000 tokens/s, 0:01:00 left",
        "acl: 241/300, loss 3.210, 9,000 tokens/s, 0:00:30 left",
        "acl: 300/300, loss 3.210, 9,000 tokens/s, in 0:03:10",
    ]


def test_a_short_pass_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Console().progress("held-out loss", 3) as line:
        assert list(line.counting("abc")) == ["a", "b", "c"]
    assert capsys.readouterr().out == ""


def test_a_pass_that_was_stopped_does_not_say_that_it_ended(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Console().progress("acl", 300) as line:
        line.update(7, "loss 3.210")
    assert capsys.readouterr().out == ""


def test_documents_are_counted(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Console().counter("preparing acl") as count:
        count(10, 1000)
        clock.now += 40
        count(80_000, 9_000_000)
    assert capsys.readouterr().out.splitlines() == [
        "preparing acl: 80,000 documents, 9,000,000 tokens, 2,000 documents/s"
    ]


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, quiet: bool) -> tuple[Console, io.StringIO]:
    screen = io.StringIO()
    original = rich.console.Console

    def terminal(**options: object) -> rich.console.Console:
        return original(file=screen, force_terminal=True, width=100, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(rich.console, "Console", terminal)
    return Console(quiet), screen


def test_a_terminal_gets_a_bar_that_stays_and_passes_that_vanish(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    console, screen = on_a_terminal(monkeypatch, quiet=False)
    assert console.live
    with console.progress("acl", 30) as line:
        line.update(30, "loss 3.210, 9,000 tokens/s")
        console.log("a line above")
    shown = screen.getvalue()
    assert "━" in shown
    assert "30/30" in shown
    assert "loss 3.210, 9,000 tokens/s" in shown
    assert "a line above\n" in shown
    with console.progress("held-out loss", 3, transient=True) as line:
        list(line.counting("abc"))
    assert screen.getvalue().endswith("\x1b[1A\x1b[2K"), "the last line was taken away"


def test_quiet_is_plain_on_a_terminal_too(monkeypatch: pytest.MonkeyPatch) -> None:
    console, screen = on_a_terminal(monkeypatch, quiet=True)
    with console.progress("acl", 30) as line:
        line.update(30, "loss 3.210")
    assert screen.getvalue() == "acl: 30/30, loss 3.210, in 0:00:00\n"


def test_text_is_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    long = "[red]papers[/red] /a/b " * 20
    Console().log(long)
    assert capsys.readouterr().out == long + "\n"


@pytest.mark.parametrize("full", [True, False])
def test_an_output_that_cannot_be_written_stops_nothing(full: bool) -> None:
    """A log on a full disk is said once; a reader who left (`| head`) need not be told."""
    script = """
from das_jax.training.console import Console
console = Console()
for number in range(3):
    console.log(f"line {number}")
with console.progress("training", 3) as line:
    line.update(3, "loss 1.0")
"""
    if full:
        output = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, output = os.pipe()
        os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-c", script],
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(output)
    said = (
        "warning: the output cannot be written (No space left on device); work goes on without it\n"
    )
    assert (done.returncode, done.stderr) == (0, said if full else "")
