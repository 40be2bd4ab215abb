"""Grafts written beside their base, read by torch and read back."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import numpy as np
import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from das_jax.errors import UserError
from das_jax.model import huggingface, huggingface_grafts
from das_jax.model.grafts.adapter import Adapter
from das_jax.model.grafts.blocks import Blocks
from das_jax.model.grafts.capsules import Capsules
from das_jax.model.grafts.graft import Graft
from das_jax.model.grafts.lora import LoRA
from das_jax.model.grafts.plugins import Plugins
from das_jax.model.grafts.prompt import Prompt
from das_jax.model.huggingface_grafts import Base, over
from das_jax.model.language_model import LanguageModel, Params

# peft asks transformers for what it is about to lose.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning")

TOKENS = np.array([[2, 5, 9, 3, 11, 12, 3], [2, 7, 3, 20, 3, 0, 0]])

GRAFTS = [
    ("bert", Adapter(5)),
    ("xlm-roberta", Adapter(4)),
    ("roberta", Adapter(4, "houlsby_alone")),
    ("bert", Adapter(5, "pfeiffer")),
    ("roberta", Adapter(4, "parallel", 1.5)),
    ("bert", LoRA(2, 3.0)),
    ("roberta", LoRA(3, 4.0, ("key", "output"))),
    ("roberta", LoRA(1, 0.5, ("attention_output", "intermediate"))),
    ("bert", Blocks(3)),
    ("roberta", Blocks(1)),
    ("bert", Capsules(3, 4, 2)),
    ("roberta", Plugins(3, 5)),
    ("bert", Prompt(5)),
    ("xlm-roberta", Prompt(4)),
]


class Learned(NamedTuple):
    """A graft with random parameters, and LayerNorms if it trains them, and where it was written."""

    checkpoint: huggingface.Checkpoint
    base: Base
    graft: Graft
    params: Params
    directory: Path

    def logits(self, graft: Graft, params: Params) -> np.ndarray:
        model = LanguageModel(self.checkpoint.architecture, graft=graft)
        mask = TOKENS != 0
        hidden = model.encode(params, self.tokens, mask)
        return np.asarray(model.logits(params, hidden))[mask]

    @property
    def tokens(self) -> np.ndarray:
        return np.where(TOKENS == 0, self.checkpoint.architecture.pad_token_id, TOKENS)

    def torch_logits(self, model: Any) -> np.ndarray:
        mask = TOKENS != 0
        with torch.no_grad():
            answer = model(torch.tensor(self.tokens), attention_mask=torch.tensor(mask))
        # Those of a prompt come before the text's.
        return answer.logits.numpy()[:, -mask.shape[1] :][mask]


@pytest.fixture
def learn(stored: Callable[..., Path]) -> Callable[[str, Graft], Learned]:
    def make(family: str, graft: Graft) -> Learned:
        directory = stored(family)
        checkpoint = huggingface.load(directory)
        random = np.random.default_rng(3)
        own = graft.init(checkpoint.architecture, jax.random.key(0), checkpoint.params)
        trained = {"graft": own}
        if isinstance(graft, Adapter) and graft.traits.norms:
            trained["layers"] = {
                sublayer: {"layer_norm": leaves["layer_norm"]}
                for sublayer, leaves in checkpoint.params["layers"].items()
            }
        moved = jax.tree.map(
            lambda x: (x + 0.2 * random.normal(size=x.shape)).astype(np.float32), trained
        )
        params = over(checkpoint.params, moved)
        base = Base(str(directory), checkpoint.weights_hash())
        target = directory.with_name("graft")
        huggingface_grafts.write(target, graft, params, base, checkpoint.architecture)
        return Learned(checkpoint, base, graft, params, target)

    return make


@pytest.mark.parametrize(("family", "graft"), GRAFTS, ids=str)
def test_torch_and_we_read_what_was_written(
    learn: Callable[[str, Graft], Learned], family: str, graft: Graft
) -> None:
    learned = learn(family, graft)
    expected = learned.logits(graft, learned.params)
    plain = learned.logits(None, learned.checkpoint.params)
    assert np.abs(expected - plain).max() > 1e-3

    read, changes = huggingface_grafts.read(
        learned.directory, learned.base, learned.checkpoint.architecture
    )
    assert read == graft or set(read.targets) == set(graft.targets)
    chex.assert_trees_all_equal(over(learned.checkpoint.params, changes), learned.params)

    readme = (learned.directory / "README.md").read_text()
    (loader,) = re.findall("```python\n(.*?)```", readme, re.DOTALL)
    names: dict[str, Any] = {}
    exec(loader, names)
    model = names["load"](learned.base.name, str(learned.directory))
    largest = np.abs(expected).max()
    np.testing.assert_allclose(learned.torch_logits(model), expected, atol=1e-5 * largest)

    # safetensors orders metadata at random, so that more of it would give other bytes every time.
    for file in learned.directory.glob("*.safetensors"):
        with safe_open(file, framework="numpy") as handle:
            assert handle.metadata() == {"format": "pt"}


def test_an_adapter_of_peft_s_is_read(
    stored: Callable[..., Path], make_model: Callable[..., Any], learn: Any, tmp_path: Path
) -> None:
    learned = learn("bert", LoRA())
    config = LoraConfig(r=2, lora_alpha=5, target_modules=["query", "output.dense"])
    model = get_peft_model(make_model("bert"), config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    model.save_pretrained(tmp_path / "peft")
    graft, changes = huggingface_grafts.read(
        tmp_path / "peft", learned.base, learned.checkpoint.architecture
    )
    # An ending matches both projections of that name.
    assert graft == LoRA(2, 5.0, ("query", "attention_output", "output"))
    actual = learned.logits(graft, over(learned.checkpoint.params, changes))
    expected = learned.torch_logits(model)
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())


def test_a_prompt_of_peft_s_is_read(
    make_model: Callable[..., Any], learn: Any, tmp_path: Path
) -> None:
    learned = learn("roberta", LoRA())
    config = PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=3)
    model = get_peft_model(make_model("roberta"), config).eval()
    model.save_pretrained(tmp_path / "peft")
    graft, changes = huggingface_grafts.read(
        tmp_path / "peft", learned.base, learned.checkpoint.architecture
    )
    assert graft == Prompt(3)
    actual = learned.logits(graft, over(learned.checkpoint.params, changes))
    expected = learned.torch_logits(model)
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())


def edited(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_what_cannot_be_read_says_so(learn: Callable[[str, Graft], Learned]) -> None:
    learned = learn("bert", LoRA(2, 3.0))
    architecture, directory = learned.checkpoint.architecture, learned.directory

    def refused(match: str, base: Base = learned.base, where: Path = directory) -> None:
        with pytest.raises(UserError, match=match) as caught:
            huggingface_grafts.read(where, base, architecture)
        assert "\n" not in str(caught.value)

    other = Base("another/model", "0" * 64)
    refused("was trained on .* and the weights of another/model are others", other)
    refused(r"has neither graft.json nor adapter_config.json", where=directory.parent)

    config, about = directory / "adapter_config.json", directory / "graft.json"
    for file, changes, match in (
        (config, {"use_dora": True}, "use_dora is True, which cannot be read here"),
        (config, {"bias": "all"}, "bias is all, .* save it with bias none"),
        (config, {"r": 0}, "r and lora_alpha are no rank"),
        (config, {"r": 3}, "lora_A.weight has the shape"),
        (
            about,
            {"graft": "knots"},
            "graft is knots, where adapter, blocks, capsules, lora, plugins, prompt are known",
        ),
        (about, {"base": None}, "is damaged"),
        (about, {"graft": "blocks", "settings": {"every": "x"}}, "settings.every: .*integer"),
        (about, {"graft": "blocks", "settings": {"every": 2}}, "`every` be one of 1, 3"),
        (
            about,
            {"graft": "prompt"},
            "peft_type is LORA and num_virtual_tokens None, which is no prompt",
        ),
        (about, {"graft": "adapter", "settings": {"bottleneck": 0}}, "give at least 1"),
        (about, {"graft": "adapter", "settings": {"form": "x"}}, "settings.form: .*'houlsby'"),
    ):
        content = file.read_text()
        edited(file, **changes)
        refused(match)
        file.write_text(content)

    weights = directory / "adapter_model.safetensors"
    tensors = load_file(weights)
    name = "base_model.model.bert.encoder.layer.1.attention.self.query.lora_B.weight"
    save_file({k: v for k, v in tensors.items() if k != name}, weights)
    refused(f"lacks {name}")
    save_file({**tensors, "more": tensors[name]}, weights)
    refused("holds more, which this graft does not have")
    save_file({**tensors, name: tensors[name] * np.nan}, weights)
    refused("infinite or NaN")


def test_a_graft_that_is_not_finite_is_not_written(learn: Callable[[str, Graft], Learned]) -> None:
    learned = learn("bert", LoRA(2, 3.0))
    before = {file.name: file.read_bytes() for file in learned.directory.iterdir()}
    spoilt = over(
        learned.params, jax.tree.map(lambda x: x * np.nan, {"graft": learned.params["graft"]})
    )
    with pytest.raises(UserError, match="infinite numbers or NaN"):
        huggingface_grafts.write(
            learned.directory, learned.graft, spoilt, learned.base, learned.checkpoint.architecture
        )
    assert before == {file.name: file.read_bytes() for file in learned.directory.iterdir()}
    # The same again are the same bytes.
    huggingface_grafts.write(
        learned.directory,
        learned.graft,
        learned.params,
        learned.base,
        learned.checkpoint.architecture,
    )
    assert before == {file.name: file.read_bytes() for file in learned.directory.iterdir()}
