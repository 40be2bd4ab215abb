"""What decoders write, as text, and the command that shows it."""

import functools
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from das_jax import cli
from das_jax.evaluation.continuations import continuations, ending_tokens, open_writer
from das_jax.model import huggingface, huggingface_grafts
from das_jax.model.generation import generate
from das_jax.model.grafts.files import Base
from das_jax.model.grafts.lora import LoRA
from das_jax.model.language_model import LanguageModel, Params
from tests.conftest import GOLDEN
from tests.data.conftest import decoder_tokenizer
from tests.data.test_supervised import PLAIN

Capture = pytest.CaptureFixture[str]
Command = Callable[..., int]
Store = Callable[..., Path]

TOKENS, LORA = 6, LoRA(r=2, alpha=8.0)


@functools.cache
def llama(seed: int) -> tuple[LanguageModel, Params]:
    """A random one with as many words as the tokenizer."""
    arch = replace(huggingface.architecture_of(GOLDEN / "llama" / "model"), vocab_size=350)
    model = LanguageModel(arch)
    return model, jax.device_get(jax.jit(model.init)(jax.random.key(seed)))


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """`command(checkpoint, ...)`: what `das-jax generate` returns, with such lines as its standard input."""

    def run(*words: str, lines: str = "\n") -> int:
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        return cli.main(["generate", *words, f"--cache_dir={tmp_path / 'cache'}"])

    return run


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """`store(name, seed=0)`: a stage with a random Llama, whose tokenizer puts a token before a text."""

    def write(
        name: str, seed: int = 0, graft: LoRA | None = None, merge: bool = True, **config: Any
    ) -> Path:
        config = {
            **huggingface.read_config(GOLDEN / "llama" / "model"),
            "vocab_size": 350,
            **config,
        }
        model, params = llama(seed)
        arch = model.architecture
        base = Base(str(tmp_path / "base"), huggingface.weights_hash(model, params))
        if graft is not None:
            own = graft.init(arch, jax.random.key(1), params)
            own = jax.tree.map(lambda x: x + 0.5, own)
            model, params = replace(model, graft=graft), {**params, "graft": own}
        tokenizer = decoder_tokenizer(opens=True)
        tokenizer.chat_template = PLAIN if name == "chat" else None
        huggingface_grafts.export_net(
            *(tmp_path / name / "huggingface", model, jax.device_get(params), None),
            base=lambda: base,
            config=config,
            tokenizer=tokenizer,
            merge=merge,
        )
        return tmp_path / name

    return write


def test_models_are_shown_one_after_the_other(
    store: Store, command: Command, capsys: Capture
) -> None:
    paths = [str(store("base")), str(store("other", seed=1) / "huggingface")]
    words = ["--prompt", "the quick", "--prompt", " brown fox jumps", f"--tokens={TOKENS}"]
    assert command(*paths, *words) == 0
    shown = capsys.readouterr().out
    expected = []
    for path in paths:
        writer = open_writer(path, Path())
        prompts = [
            np.array([1, *writer.tokenizer.encode(text, add_special_tokens=False)])
            for text in words[1:4:2]
        ]
        found = generate(writer.net.model, writer.net.params, prompts, TOKENS, ends=[0, 2])
        texts = [
            f"{text}{writer.tokenizer.decode(own, skip_special_tokens=True)}"
            for text, (own,) in zip(words[1:4:2], found, strict=True)
        ]
        expected.append(f"### {path}\n\n{texts[0]}\n\n{texts[1]}\n")
    assert shown == "\n".join(expected)
    assert expected[0].partition("\n")[2] != expected[1].partition("\n")[2]


def test_a_prompt_is_asked_as_the_template_says(
    store: Store, command: Command, capsys: Capture
) -> None:
    path = store("chat")
    writer = open_writer(str(path), Path())
    asked = writer.tokenizer.apply_chat_template(
        [{"role": "user", "content": "which fox?"}], add_generation_prompt=True, return_dict=False
    )
    prompts = [np.array(asked)] * 2
    ((tokens,), _) = generate(writer.net.model, writer.net.params, prompts, TOKENS, ends=[0, 2])
    answer = writer.tokenizer.decode(tokens, skip_special_tokens=True)
    assert continuations(writer, ["which fox?"] * 2, TOKENS, asked=True)[0] == [answer]
    lines = "which fox?\n\nwhich fox?\n"
    assert command(str(path), "--chat", f"--tokens={TOKENS}", lines=lines) == 0
    assert capsys.readouterr().out == f"which fox?\n\n{answer}\n\nwhich fox?\n\n{answer}\n"


def test_a_graft_beside_its_base_writes_what_the_merged_model_does(store: Store) -> None:
    store("base")
    grafted, merged, base = (
        continuations(open_writer(str(path), Path()), ["the quick", " dog"], TOKENS)
        for path in (
            store("grafted", graft=LORA, merge=False),
            store("merged", graft=LORA),
            store("base"),
        )
    )
    assert grafted == merged != base


def test_every_token_that_ends_a_text_is_known(store: Store) -> None:
    path = store("base", eos_token_id=[0, 4]) / "huggingface"
    tokenizer = huggingface.load_tokenizer(path)
    assert ending_tokens(tokenizer) == (0, 4)
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": 3}))
    assert ending_tokens(tokenizer) == (0, 3)


def test_what_is_no_decoder_or_no_prompt_is_refused(
    store: Store, command: Command, capsys: Capture
) -> None:
    path, bert = str(store("base")), str(GOLDEN / "bert" / "model")
    for words, sentence in (
        ([bert, "--prompt=a"], f"{bert}: the model is a bert masked LM, which fills gaps"),
        ([path], "there is no prompt; give --prompt TEXT, or one a line"),
        ([path, "--prompt=a", "--chat"], "has no chat template, so nothing says how"),
        ([path, "--prompt=a", "--top_p=0.9"], "--top_p says how tokens are drawn, and none are"),
        ([path, "--prompt=a", "--temperature=1", "--top_p=2"], "top_p is 2.0; it must be"),
        ([path, "--prompt=a", "--tokens=0"], "--tokens is 0; it must be 1 or more"),
        (["no/such", "--prompt=a"], "no/such is no directory and could not be fetched"),
    ):
        assert command(*words) == 2
        assert sentence in capsys.readouterr().err
