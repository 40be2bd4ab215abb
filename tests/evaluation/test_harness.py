"""lm-evaluation-harness on what a stage exports, where it is installed."""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from das_jax.data.settings import HarnessSettings, JSONLTable
from das_jax.errors import UserError
from das_jax.evaluation.columns import columns_of
from das_jax.evaluation.harness import Harness
from das_jax.methods.net import Net, mixed
from das_jax.model import huggingface
from das_jax.training.workspace import Workspace
from tests.conftest import Golden
from tests.evaluation.test_likelihood import word_tokenizer, workspace_of

TASK = """
task: exam
dataset_path: json
dataset_kwargs:
  data_files: {{test: {path}}}
  cache_dir: {cache}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""


def workspace_with(workspace: Workspace, harness: HarnessSettings) -> Workspace:
    evaluation = dataclasses.replace(workspace.config.evaluation, harness=harness)
    config = dataclasses.replace(workspace.config, evaluation=evaluation)
    return dataclasses.replace(workspace, config=config)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # It and what it imports have many.
def test_it_measures_a_local_task_as_we_do(golden: Callable[[str], Golden], tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    random = np.random.default_rng(0)
    rows = []
    for n in range(12):
        a, b, c, d, e = (f"w{w}" for w in random.choice(range(3, 80), 5, replace=False))
        rows.append({"context": f"{a} {b}", "choices": [c, f"{d} {e}"], "answer": n % 2})
    path = tmp_path / "exam.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    task = TASK.format(path=path, cache=tmp_path / "cache")
    (tmp_path / "tasks" / "exam.yaml").write_text(task)
    checkpoint = huggingface.load(golden("llama").model)
    workspace = workspace_of(
        checkpoint, word_tokenizer(), tmp_path, (), JSONLTable(kind="jsonl", path=str(path))
    )
    include = str(tmp_path / "tasks")
    harness = HarnessSettings(tasks=("exam",), include_path=include, metric="acc_norm")
    ours, theirs = columns_of(workspace_with(workspace, harness), {"tasks": {}})
    net = mixed(Net(workspace.model, checkpoint.params))
    expected, found = ours.measure(net)["scores"], theirs.measure(net)["scores"]
    assert (theirs.kind, theirs.name, theirs.about["metric"]) == ("harness", "exam", "acc_norm")
    assert found == pytest.approx(expected)
    assert 0 < expected["acc"] < 1

    few = Harness(workspace, dataclasses.replace(harness, limit=3))
    assert few.scores("exam", net.best)["acc"] * 3 == pytest.approx(
        round(few.scores("exam", net.best)["acc"] * 3)
    )
    assert few.key("exam") != Harness(workspace, harness).key("exam")
    (tmp_path / "tasks" / "exam.yaml").write_text(task + "description: new\n")
    assert Harness(workspace, harness).key("exam") != theirs.about["key"]
    unknown = dataclasses.replace(harness, tasks=("exams",))
    with pytest.raises(UserError, match="tasks has exams, which lm_eval"):
        Harness(workspace, unknown).check()
    with pytest.raises(UserError, match="metric is f1, but exam has acc, acc_norm"):
        Harness(workspace, dataclasses.replace(harness, metric="f1")).scores("exam", net.best)
    path.unlink()
    with pytest.raises(UserError, match="lm_eval could not measure exam"):
        Harness(workspace, harness).scores("exam", net.best)


def test_without_the_extra_or_a_decoder_it_says_so(
    golden: Callable[[str], Golden], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    settings = HarnessSettings(tasks=("exam",))
    for family, message in (
        ("llama", r"needs the lm-evaluation-harness: pip install 'das-jax\[harness\]'"),
        ("bert", "evaluation.harness is for decoders, but made is a masked language model"),
    ):
        checkpoint = huggingface.load(golden(family).model)
        workspace = workspace_of(checkpoint, word_tokenizer(), tmp_path, (), None)
        with pytest.raises(UserError, match=message):
            Harness(workspace, settings).check()
