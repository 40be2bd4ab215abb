"""Runs that freeze the model and train a graft: what moves, what is kept, and what serves and is exported."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForMaskedLM

from das_jax import cli
from das_jax.config.load import load_config
from das_jax.errors import UserError
from das_jax.methods.contract import Learned, Place
from das_jax.methods.lora import LoRA
from das_jax.methods.net import Net
from das_jax.methods.settings.grafts import LoRASettings
from das_jax.model import huggingface
from das_jax.model.grafts.adapter import Adapter
from das_jax.model.grafts.blocks import Blocks
from das_jax.model.grafts.graft import Graft
from das_jax.model.grafts.lora import LoRA as LoRAGraft
from das_jax.model.grafts.prompt import Prompt
from das_jax.model.language_model import LanguageModel, Params
from das_jax.model.units import parameter_paths
from das_jax.training.checkpoint import Checkpoints
from das_jax.training.saved import params_shapes
from das_jax.training.sharding import SMALLEST_SPLIT, make_sharding
from tests.project import Project, Start, write_model

STEPS, RATE = 3, 1e-2


class Case(NamedTuple):
    """A method, what it grafts, and which parameters of the model itself it trains."""

    method: dict[str, Any]
    graft: Graft
    trained: str = "graft/.*"

    def __str__(self) -> str:
        return self.method["name"]


CASES = [
    Case(
        {"name": "adapter", "bottleneck": 3, "mode": "per_domain", "start": "nearest"},
        Adapter(3),
        "graft/.*|layers/.*/layer_norm/.*",
    ),
    Case(
        {"name": "block_expansion", "every": 2, "mode": "per_domain", "start": "previous"},
        Blocks(2),
    ),
    Case({"name": "prompt", "length": 4, "mode": "per_domain"}, Prompt(4)),
    Case(
        {"name": "lora", "r": 2, "targets": ["output", "query"], "mode": "sequential"},
        LoRAGraft(2, 8.0, ("query", "output")),
    ),
]


def configuration(project: Project, path: Path, method: dict[str, Any], **others: Any) -> Path:
    """The project's without general text, with another method and few steps."""
    values = yaml.safe_load(project.config.read_text()) | {"method": method, "general": None}
    values["training"] |= {"steps": STEPS, "learning_rate": RATE, "checkpoint_every": 9}
    topic, _ = values["evaluation"]["tasks"]
    values["evaluation"] |= {"finetune_seeds": 1, "tasks": [{**topic, "epochs": 1}]}
    values |= others
    path.write_text(yaml.safe_dump(values))
    return path


def losses(run: Path) -> dict[str, dict[str, float]]:
    return json.loads((run / "scores.json").read_text())["heldout_loss"]


def learned(stage: Path) -> Any:
    """The parameters that a finished stage left."""
    sharding = make_sharding(1)
    with Checkpoints(stage / "checkpoints", sharding, print, read_only=True) as checkpoints:
        restored = checkpoints.restore_latest(
            lambda info: {"params": sharding.shapes("params", params_shapes(info))}
        )
    assert restored is not None
    assert restored.step == STEPS + 1
    return jax.device_get(restored.state["params"])


def optimized(stage: Path) -> set[str]:
    """What Adam knows of, as the checkpoint after the last step says."""
    info = json.loads((stage / "checkpoints" / str(STEPS) / "info" / "metadata").read_text())
    paths = info["shapes"]["opt_state"]
    return {path.split("/nu/")[1] for path in paths if "/nu/" in path}


def torch_logits(exported: Path, base: Path, tokens: np.ndarray) -> np.ndarray:
    """Of an exported stage, read as its README says if it has one."""
    if (exported / "README.md").exists():
        (loader,) = re.findall(
            "```python\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL
        )
        names: dict[str, Any] = {}
        exec(loader, names)
        model = names["load"](str(base), str(exported))
    else:
        model = AutoModelForMaskedLM.from_pretrained(exported).eval()
    with torch.no_grad():
        # Those of a prompt come before the text's.
        return model(torch.tensor(tokens)).logits.numpy()[:, -tokens.shape[1] :]


class Done(NamedTuple):
    """A finished run of a case, and what its stages left."""

    case: Case
    run: Path
    base: Path
    stages: list[Path]
    params: list[Any]

    @property
    def per_domain(self) -> bool:
        return self.case.method["mode"] == "per_domain"


@pytest.fixture(scope="module")
def done(
    request: pytest.FixtureRequest, project: Project, tmp_path_factory: pytest.TempPathFactory
) -> Done:
    directory = tmp_path_factory.mktemp("grafted")
    config = configuration(project, directory / "run.yaml", request.param.method)
    run = directory / "run"
    assert cli.main(["pretrain", str(config), f"--output_dir={run}", "--quiet"]) == 0
    stages = [run / "01-papers", run / "02-reviews"]
    return Done(request.param, run, project.directory / "model", stages, [*map(learned, stages)])


every_case = pytest.mark.parametrize("done", CASES, indirect=True, ids=str, scope="module")


@pytest.mark.slow
@every_case
def test_only_what_is_trained_moves_and_has_a_state(done: Done) -> None:
    base = huggingface.load(done.base).params
    before = dict(zip(parameter_paths(base), jax.tree.leaves(base), strict=True))
    for stage, params in zip(done.stages, done.params, strict=True):
        paths = parameter_paths(params)
        moved = {
            path
            for path, x in zip(paths, jax.tree.leaves(params), strict=True)
            if path not in before or not np.array_equal(x, before[path])
        }
        assert moved == {path for path in paths if re.fullmatch(done.case.trained, path)}
        assert optimized(stage) == moved


@pytest.mark.slow
@every_case
def test_a_domain_keeps_its_graft_or_goes_on_with_the_last(done: Done) -> None:
    rows = losses(done.run)
    if not done.case.graft.prefix:  # Few steps do not mend what a prompt disturbs at first.
        assert rows["papers"]["papers"] < rows["base model"]["papers"]
    if done.per_domain:
        assert rows["reviews"]["papers"] == rows["papers"]["papers"], "to the last bit"
        return
    assert rows["reviews"]["papers"] != rows["papers"]["papers"]
    grafts = [jax.tree.leaves(params["graft"]) for params in done.params]
    farthest = max(float(np.abs(a - b).max()) for a, b in zip(*grafts, strict=True))
    assert farthest <= 1.1 * STEPS * RATE


@pytest.mark.slow
# peft asks transformers for what it is about to lose.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning")
@every_case
def test_an_export_computes_what_we_do(done: Done, tmp_path: Path) -> None:
    tokens = np.array([[2, 5, 9, 30, 11, 12, 3], [2, 7, 4, 20, 51, 60, 3]])
    architecture = huggingface.load(done.base).architecture
    model = LanguageModel(architecture, graft=done.case.graft)
    for stage, params in zip(done.stages, done.params, strict=True):
        target, again = tmp_path / stage.name, tmp_path / f"again-{stage.name}"
        assert cli.main(["export", str(stage), str(target)]) == 0
        ours = np.asarray(model.logits(params, model.encode(params, tokens, tokens >= 0)))
        theirs = torch_logits(target, done.base, tokens)
        np.testing.assert_allclose(theirs, ours, atol=1e-4 * np.abs(ours).max())
        if done.per_domain:  # However much was learned since.
            domain = stage.name.partition("-")[2]
            assert cli.main(["export", str(done.run), str(again), f"--domain={domain}"]) == 0
            for file in target.glob("*.safetensors"):
                assert (again / file.name).read_bytes() == file.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("done", CASES[:1], indirect=True, ids=str, scope="module")
def test_a_task_is_asked_of_its_domains_own_graft(done: Done) -> None:
    assert cli.main(["evaluate", str(done.run), "--quiet"]) == 0
    found = json.loads((done.run / "evaluation.json").read_text())
    topic = {row: x["weights"] for row, x in found["tasks"]["topic"]["rows"].items()}
    assert topic["papers"] == topic["reviews"] != topic["base model"]
    facts = {row: x["weights"] for row, x in found["cloze"]["facts"]["rows"].items()}
    assert facts["papers"] in (topic["base model"], topic["papers"]), "the nearest"


@dataclass
class FakeDomain:
    """One after two others, its own history and text: how well each net explains that is given."""

    model: LanguageModel
    stages: list[Params]
    fits: tuple[float, ...] = ()
    domains: tuple[tuple[str, ...], ...] = (("law",), ("news",))
    said: list[str] = field(default_factory=list)
    rng: jax.Array = field(default_factory=lambda: jax.random.key(3))

    @property
    def history(self) -> "FakeDomain":
        return self

    texts = history

    def base(self) -> Net:
        return Net(self.model, {})

    def net(self, stage: int) -> Net:
        """Merged."""
        return Net(self.model, {"of": stage})

    def learned(self, stage: int) -> Learned:
        return Learned(self.stages[stage], ())

    def losses(self, nets: list[Net]) -> list[float]:
        assert [net.params for net in nets] == [{}, {"of": 0}, {"of": 1}]
        return [*self.fits]

    def log(self, sentence: str) -> None:
        self.said.append(sentence)


@pytest.mark.parametrize(
    ("start", "fits", "begins", "said"),
    [
        (None, (), None, []),
        ("fresh", (), None, []),
        ("previous", (), 1, []),
        ("nearest", (3, 2, 4), 0, ["begins with what law left, the nearest to its text"]),
        ("nearest", (3, 2, 2), 1, ["begins with what news left, the nearest to its text"]),
        ("nearest", (3, 4, 5), None, ["begins afresh: the base model is the nearest to its text"]),
    ],
)
def test_a_domains_graft_begins_fresh_as_the_last_or_as_the_nearest(
    model: LanguageModel,
    objective: Any,
    params: Params,
    start: Any,
    fits: tuple[float, ...],
    begins: int | None,
    said: list[str],
) -> None:
    settings = LoRASettings(mode="per_domain", start=start, r=2)
    method = LoRA(model, objective, settings)
    fresh = method.graft.init(model.architecture, jax.random.key(3), params)
    stages = [{**params, "graft": jax.tree.map(lambda x, n=n: x + n, fresh)} for n in (1, 2)]
    plan = method.plan(Place(2, ("code",), (8,)))
    domain: Any = FakeDomain(model, stages, fits)
    # What the engine hands over.
    handed = params if plan.start == "base" else stages[-1]
    begun = method.begin(Learned(handed, ()), domain).params
    expected = {**params, "graft": fresh} if begins is None else stages[begins]
    jax.tree.map(np.testing.assert_array_equal, begun, expected)
    assert domain.said == said


def test_one_graft_for_all_has_no_other_start(project: Project) -> None:
    for start in ("fresh", "nearest"):
        with pytest.raises(UserError) as caught:
            load_config(project.config, [f"--method={{name: lora, start: {start}}}"])
        assert str(caught.value) == (
            f"command line: method.start ({start}) needs mode: per_domain; with sequential there is one, "
            "which is trained on."
        )
    fitting = ("{name: lora, start: previous}", "{name: adapter, start: nearest}")
    for method in fitting:
        load_config(project.config, [f"--method={method}"])


def test_equal_targets_are_one_graft(model: LanguageModel, objective: Any) -> None:
    """Whatever their order; a program and a file are equal then, too."""
    grafts = {
        LoRA(model, objective, LoRASettings(targets=targets)).graft
        for targets in (("output", "query"), ("query", "output"), ("query", "output", "query"))
    }
    assert grafts == {LoRAGraft(targets=("query", "output"))}


@pytest.mark.slow
def test_two_processes_with_everything_split_are_one_run(
    project: Project, start: Start, tmp_path: Path
) -> None:
    """From a graft that every one of them makes itself, to the losses of one device."""
    wide = write_model(tmp_path / "model", hidden_size=64, intermediate_size=256)
    # So wide that an adapter's matrices are split as well.
    method = {"name": "adapter", "bottleneck": SMALLEST_SPLIT // (2 * 64)}
    config = configuration(
        project, tmp_path / "run.yaml", method, model={"path": str(wide)}, evaluation={}
    )
    meshes = {"alone": ((), 1, 1), "split": (("--mesh.state=parameters",), 2, 2)}
    for name, (arguments, hosts, devices) in meshes.items():
        command = ("pretrain", config, f"--output_dir={tmp_path / name}", *arguments)
        for ended in start(*command, "--training.eps=1e-4", hosts=hosts, devices=devices):
            assert ended.status == 0, ended
    rows, expected = (losses(tmp_path / name) for name in ("split", "alone"))
    assert rows["reviews"]["papers"] == rows["papers"]["papers"]
    for row, wanted in expected.items():
        assert rows[row] == pytest.approx(wanted, rel=1e-5)
