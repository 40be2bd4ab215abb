"""Google Cloud, systemd and the mounted bucket, faked (fakes/)."""

import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FAKES = Path(__file__).parent / "fakes"
SLICE = ("--name=das", "--zone=us-west4-a", "--bucket=gs://my-bucket")


@dataclass(frozen=True)
class Cloud:
    """A checkout with the scripts, and a faked Google Cloud."""

    path: Path
    checkout: Path

    def plan(self, *slices: str, hosts: int = 1) -> None:
        (self.path / "plan").write_text("".join(f"{line}\n" for line in slices))
        (self.path / "hosts").write_text(str(hosts))

    def environment(self, home: Path) -> dict[str, str]:
        path = f"{FAKES}:{os.environ['PATH']}"
        return os.environ | {"PATH": path, "CLOUD": str(self.path), "HOME": str(home)}

    def on_host(self, home: Path, *words: str) -> subprocess.Popen[bytes]:
        """A verb of on_vm.sh on a host with that home."""
        return subprocess.Popen(["bash", home / "on_vm.sh", *words], env=self.environment(home))

    @contextmanager
    def started(self, script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        # Tests that run in the background, as under nohup, ignore Ctrl-C, and what they start would too.
        as_typed = ["env", "--default-signal=INT"]
        with subprocess.Popen(
            [*as_typed, self.checkout / "scripts" / "tpu_vm" / script, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment(self.path / "home"),
            start_new_session=True,
        ) as process:
            try:
                yield process
            finally:
                with suppress(ProcessLookupError):  # It has ended, as it should.
                    os.killpg(process.pid, signal.SIGKILL)

    def run(self, script: str, *arguments: str) -> tuple[int, str, str]:
        """The exit status, output and errors of a script."""
        with self.started(script, *arguments) as process:
            output, errors = process.communicate(timeout=60)
        return process.returncode, output, errors

    def calls(self) -> list[list[str]]:
        file = self.path / "calls"
        return (
            [shlex.split(line) for line in file.read_text().splitlines()] if file.exists() else []
        )

    def wait_for(self, verb: str) -> None:
        """Waits until a script has done that."""
        while verb not in self.story():
            time.sleep(0.05)

    def story(self) -> list[str]:
        """What was done: verbs of gcloud, and those of on_vm.sh; without looking."""
        verbs = []
        for call in self.calls():
            if call[0] == "storage":
                continue
            (command,) = [w for w in call if w.startswith("--command=")] or [""]
            verbs.append(command.split()[2] if command else call[3 + (call[0] == "alpha")])
        return [verb for verb in verbs if verb not in ("describe", "scp", "status")]

    def delete(self) -> None:
        """Somebody deletes the slice."""
        shutil.rmtree(self.path / "slice")

    def logs(self) -> dict[str, str]:
        """What the bucket has of every host, by the beginning of its name."""
        files = sorted((self.bucket / "logs" / "das").glob("host-*"))
        return {file.name[:6]: file.read_text() for file in files}

    @property
    def bucket(self) -> Path:
        return self.path / "my-bucket"


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    checkout, cloud = tmp_path / "check out", tmp_path / "cloud"
    shutil.copytree(ROOT / "scripts" / "tpu_vm", checkout / "scripts" / "tpu_vm")
    key = cloud / "home" / ".ssh" / "google_compute_engine.pub"
    key.parent.mkdir(parents=True)
    key.touch()
    (cloud / "agent").write_text("3072 SHA256:abc me (RSA)\n")
    for command in (
        ["init", "--quiet"],
        ["add", "."],
        ["-c", "user.name=n", "-c", "user.email=e", "commit", "--quiet", "--message=m"],
    ):
        subprocess.run(["git", *command], cwd=checkout, check=True)
    return Cloud(cloud, checkout)
