"""Signals only ask; safe places look; what reaches none in time is ended."""

import gc
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from das_jax import stopping
from das_jax.stopping import Interrupted
from das_jax.training import interruption
from das_jax.training.interruption import Interruption
from tests.project import Project

ROOT = Path(__file__).parents[2]


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets no slow machine end the process of the tests."""
    monkeypatch.setattr(interruption, "START_GRACE", 600.0)
    monkeypatch.setattr(interruption, "GRACE", 600.0)


@pytest.mark.usefixtures("patient")
def test_a_signal_in_a_destructor_or_a_collection_is_not_lost() -> None:
    class Struck:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            sum(range(1000))  # Python runs a handler between two instructions.

    def collected(phase: str, info: dict[str, int]) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        sum(range(1000))

    for strike in (Struck, lambda: gc.callbacks.append(collected)):
        watched = Interruption()
        with watched.watched():
            strike()
            gc.collect()
            if collected in gc.callbacks:
                gc.callbacks.remove(collected)
            assert watched.requested is not None
            with pytest.raises(Interrupted, match="the same command goes on from there"):
                stopping.check()
        stopping.check()


@pytest.mark.usefixtures("patient")
def test_other_threads_go_on() -> None:
    watched = Interruption()
    went_on = []

    def work() -> None:
        stopping.check()
        went_on.append(True)

    with watched.watched():
        os.kill(os.getpid(), signal.SIGTERM)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert went_on


SCRIPT = """
import hashlib, os, signal, sys, threading, time
from das_jax.training import interruption
interruption.GRACE = interruption.START_GRACE = interruption.AGAIN = 0.2
watched = interruption.Interruption()

def strike(*numbers):
    def run():
        for number in numbers:
            time.sleep(0.4)
            os.kill(os.getpid(), number)
    threading.Thread(target=run, daemon=True).start()

def long_native_call():
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 1 << 30)

with watched.watched():
"""


@pytest.mark.parametrize(
    ("work", "status", "said"),
    [
        ("strike(signal.SIGTERM); long_native_call()", 0, "stopped at once; "),
        ("strike(signal.SIGINT); long_native_call()", 130, "stopped at once; "),
        ("strike(signal.SIGTERM); threading.Lock().acquire() and time.sleep(60)", 0, "stopped at"),
        (
            "strike(signal.SIGINT, signal.SIGINT)\n    with watched.deferred(): long_native_call()",
            130,
            "stopped at once; ",
        ),
        (
            "strike(signal.SIGTERM)\n"
            "    with watched.finishing(lambda: print('saved', flush=True)): long_native_call()",
            0,
            "saved\nstopped at once; ",
        ),
        (
            "pid = os.fork()\n"
            "    if pid == 0: time.sleep(60)\n"
            "    time.sleep(0.2); os.kill(pid, signal.SIGTERM)\n"
            "    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), watched.requested)",
            0,
            "-15 None",
        ),
    ],
)
def test_what_reaches_no_safe_place_is_ended(work: str, status: int, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT + "    " + work],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (status, "")
    assert done.stdout.startswith(said)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "moment", "number"),
    [
        ("prepare", 0.3, signal.SIGTERM),
        ("prepare", 1.5, signal.SIGINT),
        ("pretrain", 1.0, signal.SIGTERM),
        ("config", 0.5, signal.SIGINT),
    ],
)
def test_a_signal_while_it_starts(
    project: Project, tmp_path: Path, verb: str, moment: float, number: int
) -> None:
    """What is imported for seconds runs destructors and collections, in which a signal must not get lost."""
    script = f"""
import os, sys, threading, time
from das_jax import cli, stopping
def strike():
    time.sleep({moment})
    os.kill(os.getpid(), {int(number)})
threading.Thread(target=strike, daemon=True).start()
sys.argv[0] = "das-jax"
sys.exit(cli.main())
"""
    settings = [f"--data.cache_dir={tmp_path / 'cache'}", f"--output_dir={tmp_path / 'run'}"]
    done = subprocess.run(
        [sys.executable, "-c", script, verb, project.config, *settings],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode == (130 if number == signal.SIGINT else 0)
    assert len(done.stdout.splitlines()) == 1
    assert done.stdout.startswith("stopped")
    assert not list(tmp_path.glob("cache/corpora/*/corpus.json"))
