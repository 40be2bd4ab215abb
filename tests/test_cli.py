"""The command line as far as it needs no model; what the verbs do is tested in tests/training."""

import argparse
import importlib
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from das_jax import __version__, cli, stopping
from das_jax.config.fields import describe
from das_jax.config.load import load_config
from das_jax.errors import UserError

VERBS = [cli._name(verb) for verb in cli.VERBS]
ROOT = Path(__file__).parents[1]
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")

Options = list[argparse.Namespace]


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Options]:
    """`replaced(verb, action)`: the options that the verb is called with, in place of what it does."""

    def replace(verb: str, action: Callable[[], None] = lambda: None) -> Options:
        seen: Options = []

        def run(options: argparse.Namespace) -> None:
            seen.append(options)
            action()

        monkeypatch.setattr(importlib.import_module(f"das_jax.commands.{verb}"), "run", run)
        return seen

    return replace


def help_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        cli.main([*arguments, "--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_the_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    shown = help_of(capsys)
    assert all(re.search(rf"^    {verb}\b", shown, re.MULTILINE) for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_every_verb_has_an_example_that_is_understood(
    verb: str,
    capsys: pytest.CaptureFixture[str],
    replaced: Callable[..., Options],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (example,) = re.findall(r"^example: das-jax (.+)$", help_of(capsys, verb), re.MULTILINE)
    seen = replaced(verb)
    assert shlex.split(example)[0] == verb
    assert cli.main(shlex.split(example)) == 0
    (options,) = seen
    if "config" in options and verb != "compare":
        monkeypatch.chdir(ROOT)
        load_config(options.config, options.overrides)


def test_help_comes_at_once() -> None:
    """What is heavy is imported after the arguments are known to be good and signals are watched."""
    script = "import sys; from das_jax import cli; cli._parser(); print(*sys.modules)"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {"jax", "numpy", "rich", "transformers"} & set(done.stdout.split())


def test_a_configuration_is_checked_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    """In every verb that takes one: a typo is answered in half a second of processor time."""
    (tmp_path / "typo.yaml").write_text("output_dir: x\ntrainin: {}\n")
    script = """
import sys
from das_jax import cli
for words in ("prepare", "pretrain", "advise --minutes=1", "importance", "finetune --task=a",
              "plan --topology=v5e:2x4", "methods", "config", "evaluate runs/x --tasks"):
    assert cli.main([*words.split(), "typo.yaml"]) == 2
print(*sys.modules)
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stderr.count("typo.yaml:2: trainin is no setting; did you mean training?\n") == 9
    heavy = {
        "jax",
        "numpy",
        "transformers",
        "tensorflow_datasets",
        "orbax",
        "pyarrow",
        "matplotlib",
    }
    assert not heavy & set(done.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pretrain", QUICKSTART, "--training.steps", "7"], "7 is not understood"),
        (["pretrain", QUICKSTART, "later"], "later is not understood; settings are given as --key"),
        (
            ["pretrain", QUICKSTART, "--training.steps"],
            "given as --key=value, not as --training.steps",
        ),
        (["export", "a", "b", "--seed=1"], "--seed=1 is not understood"),
        (["evaluate", "run", "--training.steps=3"], "das-jax evaluate takes no settings"),
        (["report", "run", "--outptu=x"], "did you mean --output?"),
        (["config", "--training.steps=3"], "changes a configuration, and none is given"),
        (["methods", "--with=x.yaml"], "changes a configuration, and none is given"),
        (["pretrain"], "required: CONFIG"),
        (["learn", QUICKSTART], "'learn'"),
        ([], "required: VERB"),
    ],
)
def test_what_is_not_understood(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["pretrain", "{}"],
        ["pretrain", QUICKSTART, "--output_dir={}"],
        ["prepare", QUICKSTART, "--data.cache_dir={}"],
        ["importance", QUICKSTART, "--output={}"],
        ["importance", QUICKSTART, "--published={}"],
        ["finetune", QUICKSTART, "--task=a", "--output={}"],
        ["finetune", QUICKSTART, "--task=a", "--checkpoint={}"],
        ["evaluate", "{}"],
        ["evaluate", "run", "--tasks={}"],
        ["report", "{}"],
        ["report", "run", "--output={}"],
        ["export", "{}", "there"],
        ["export", "run", "{}"],
        ["plan", QUICKSTART, "--topology=v5e:2x4", "--json={}"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("gs://bucket/x", "is not on this machine"),
        ("s3:/x", "is not on this machine"),
        ('""', "is empty"),
        ("a" * 300, "has a name of 300 bytes"),
        ("a/" * 2500, "is 5,000 bytes long"),
        ("~nouser/x", "begins with ~nouser"),
    ],
    ids=lambda text: text[:12],
)
def test_what_can_be_no_path_is_said_before_anything_is_done(
    arguments: list[str],
    path: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if path == '""' and "_dir=" not in arguments[-1]:
        path = ""
    assert cli.main([word.format(path) for word in arguments]) == 2
    shown = capsys.readouterr().err
    assert re.fullmatch(r"das-jax: .+\n", shown)
    assert said in shown
    assert len(shown) < 300
    assert os.listdir(tmp_path) == []


def test_a_seed_beside_seeds_would_mean_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pretrain", QUICKSTART, "--seeds=[0,1]", "--seed=3"]) == 2
    assert "--seed=3 means nothing beside seeds (command line)" in capsys.readouterr().err


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"das-jax {__version__}\n"


def test_an_option_is_not_guessed_from_its_beginning(
    replaced: Callable[..., Options],
) -> None:
    """`--out` may be a mistyped setting: the configuration will say so."""
    seen = replaced("importance")
    assert cli.main(["importance", QUICKSTART, "--out=x"]) == 0
    assert seen[0].overrides == ["--out=x"]
    assert seen[0].output == Path("importance.safetensors")


def test_a_mistake_of_the_users_is_one_sentence(
    replaced: Callable[..., Options], capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise UserError("papers.txt, line 3, is empty; fill it")

    replaced("pretrain", refuse)
    assert cli.main(["pretrain", QUICKSTART]) == 2
    assert capsys.readouterr() == ("", "das-jax: papers.txt, line 3, is empty; fill it\n")


def test_a_mistake_of_ours_is_not_hidden(replaced: Callable[..., Options]) -> None:
    def fail() -> None:
        raise RuntimeError("a bug")

    replaced("pretrain", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["pretrain", QUICKSTART])


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_signals(
    number: signal.Signals,
    status: int,
    replaced: Callable[..., Options],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def work() -> None:
        os.kill(os.getpid(), number)
        stopping.check()

    replaced("prepare", work)
    before = signal.getsignal(number)
    assert cli.main(["prepare", QUICKSTART]) == status
    shown = capsys.readouterr()
    assert shown.out.startswith("stopped; ")
    assert len(shown.out.splitlines()) == 1
    assert shown.err == ""
    assert signal.getsignal(number) is before


def test_config_shows_values_and_where_they_come_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", QUICKSTART, "--training.steps=7", "--method.name=naive"]) == 0
    rows = dict(re.findall(r"│ (\S+) +│ (.+?) *│\n", capsys.readouterr().out))
    assert re.sub(r" +", " ", rows["training.steps"]) == "7 │ command line"
    assert re.sub(r" +", " ", rows["method.name"]) == "naive │ command line"
    assert re.fullmatch(r"demo:bert-tiny +│ .*quickstart\.yaml:\d+", rows["model.path"])
    assert not any(key.startswith("method.importance") for key in rows)


def test_config_without_a_file_shows_all_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config"]) == 0
    shown = capsys.readouterr().out
    rows = re.findall(r"^│ (\S+) ", shown, re.MULTILINE)
    assert rows == [setting.key for setting in describe()], "one line each, none wrapped"
    assert "Tokens in one chunk, special tokens included." in shown
