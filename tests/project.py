"""A tiny BERT, three tiny corpora, and the run that learns them: a warm-up and two domains with DAS."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, LlamaConfig, PreTrainedTokenizerFast

from das_jax.model import huggingface, huggingface_config
from das_jax.model.language_model import LanguageModel

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [a + b + c for a in "bdfgklmnprst" for b in "aeiou" for c in ("", "n")][:91]


def write_text(path: Path, seed: int, documents: int = 60) -> Path:
    """Documents in which every word is followed by one of two, others in every corpus."""
    generator = np.random.default_rng(seed)
    follower = generator.integers(len(WORDS), size=(len(WORDS), 2))
    lines = []
    for _ in range(documents):
        words = [int(generator.integers(len(WORDS)))]
        for _ in range(int(generator.integers(10, 40))):
            words.append(int(follower[words[-1], generator.integers(2)]))
        lines.append(" ".join(WORDS[word] for word in words))
    path.write_text("\n".join(lines) + "\n")
    return path


def write_model(directory: Path, **changes: Any) -> Path:
    """A BERT of two layers, 16 wide, random, with a WordPiece tokenizer of 96 words."""
    values = {
        "vocab_size": 96,
        "num_hidden_layers": 2,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 32,
        **changes,
    }
    config = BertConfig(**values).to_dict()
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    architecture = huggingface_config.architecture_of(directory)
    vocabulary = {word: i for i, word in enumerate(SPECIAL + WORDS)}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokens = {
        f"{token.lower()}_token": f"[{token}]" for token in ("PAD", "UNK", "CLS", "SEP", "MASK")
    }
    huggingface.export(
        directory,
        jax.device_get(jax.jit(LanguageModel(architecture).init)(jax.random.key(1))),
        config,
        architecture,
        PreTrainedTokenizerFast(tokenizer_object=backend, **tokens),
    )
    return directory


def write_decoder(directory: Path, **changes: Any) -> Path:
    """A Llama of two layers, 16 wide, two heads of its four sharing keys and values; its tokenizer knows the
    words and what ends a text.
    """
    values = {
        "vocab_size": 96,
        "num_hidden_layers": 2,
        "hidden_size": 16,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 32,
        "tie_word_embeddings": True,
        "eos_token_id": 0,
        **changes,
    }
    config = LlamaConfig(**values).to_dict()
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    architecture = huggingface_config.architecture_of(directory)
    vocabulary = {word: i for i, word in enumerate(["<end>", "<unk>", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    huggingface.export(
        directory,
        jax.device_get(jax.jit(LanguageModel(architecture).init)(jax.random.key(1))),
        config,
        architecture,
        PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", unk_token="<unk>"),
    )
    return directory


def write_tasks(directory: Path) -> dict[str, Any]:
    """An end task of a domain, one of general knowledge, facts and pairs; the settings that name them."""
    generator = np.random.default_rng(7)
    tasks = []
    for name, domain in (("topic", "papers"), ("tone", None)):
        task = {"name": name, "domain": domain, "length": 16, "epochs": 2, "batch_size": 8}
        for split, rows in (("train", 21), ("test", 13)):
            path = directory / f"{name}-{split}.csv"
            lines = ["text,label"]
            for _ in range(rows):
                words = generator.integers(len(WORDS), size=6)
                text = " ".join(WORDS[word] for word in words)
                lines.append(f"{text},{'low' if words[0] < len(WORDS) // 2 else 'high'}")
            path.write_text("\n".join(lines) + "\n")
            task[split] = {"kind": "csv", "path": str(path)}
        tasks.append(task)
    facts = directory / "facts.jsonl"
    pairs_of_words = [(WORDS[i], WORDS[i + 1]) for i in range(10)]
    lines = [
        json.dumps({"sentence": f"{one} [MASK] .", "answer": two}) for one, two in pairs_of_words
    ]
    facts.write_text("\n".join([*lines, '{"sentence": "[MASK]", "answer": "two words"}']) + "\n")
    pairs = directory / "pairs.jsonl"
    lines = [
        json.dumps({"sentence_good": f"{one} {two} {one}", "sentence_bad": f"{one} {one} {two}"})
        for one, two in pairs_of_words
    ]
    pairs.write_text("\n".join(lines) + "\n")
    return {
        "tasks": tasks,
        "cloze": [{"name": "facts", "path": str(facts)}],
        "minimal_pairs": [{"name": "order", "path": str(pairs)}],
    }


class Ended(NamedTuple):
    """What became of a command: the exit status (negative: the signal that killed it), what it printed,
    and how long it took from the blow to the end.
    """

    status: int
    output: str
    errors: str
    seconds: float


Start = Callable[..., Any]
"""`start(*arguments, at="module:Class.function", number=1, when="before", name="SIGKILL")` runs `das-jax
ARGUMENTS` in a process of its own and strikes it there; without `at` it is left alone. With `hosts` and
`devices` there are several, and as many answers; `tests/training/launcher.py` knows more.
"""


@pytest.fixture(scope="session")
def start() -> Iterator[Start]:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.training.launcher"],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as launcher:
        assert launcher.stdin is not None
        assert launcher.stdout is not None
        requests, answers = launcher.stdin, launcher.stdout

        def start(*arguments: Any, **how: Any) -> Any:
            requests.write(json.dumps({"arguments": [*map(str, arguments)], **how}) + "\n")
            requests.flush()
            answer = json.loads(answers.readline())
            return [Ended(*host) for host in answer] if "hosts" in how else Ended(*answer)

        yield start
        requests.close()


class Project(NamedTuple):
    """A configuration file and all it names."""

    directory: Path
    config: Path

    def write(self, path: Path, **changes: Any) -> Path:
        """Another configuration, with other values for dotted keys (written with double underscores)."""
        values = yaml.safe_load(self.config.read_text())
        for key, value in changes.items():
            *groups, last = key.split("__")
            inner = values
            for group in groups:
                inner = (
                    inner[int(group)] if isinstance(inner, list) else inner.setdefault(group, {})
                )
            inner[last] = value
        path.write_text(yaml.safe_dump(values))
        return path


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    directory = tmp_path_factory.mktemp("project")
    texts = {
        name: str(write_text(directory / f"{name}.txt", seed))
        for seed, name in enumerate(("news", "papers", "reviews"))
    }

    def corpus(name: str, **more: Any) -> dict[str, Any]:
        return {"name": name, "source": {"kind": "text", "path": texts[name]}, **more}

    config = directory / "run.yaml"
    values = {
        "output_dir": str(directory / "unused"),
        "model": {"path": str(write_model(directory / "model"))},
        "data": {"length": 16, "heldout": 0.2, "cache_dir": str(directory / "cache")},
        "general": corpus("news", steps=4),
        "domains": [corpus("papers"), corpus("reviews")],
        "training": {
            "steps": 5,
            "batch_size": 8,
            "learning_rate": 1e-2,
            "log_every": 3,
            "checkpoint_every": 2,
        },
        "method": {
            "name": "das",
            "contrastive": {"anchor": "masked"},
            "importance": {"examples": 24, "batch_size": 8},
        },
        "evaluation": {"batch_size": 8, "finetune_seeds": 2, **write_tasks(directory)},
    }
    config.write_text(yaml.safe_dump(values))
    return Project(directory, config)


@pytest.fixture(scope="session")
def reference(project: Project, start: Start) -> Path:
    """The run directory of a run that was never interrupted."""
    directory = project.directory / "reference"
    ended = start("pretrain", project.config, f"--output_dir={directory}")
    assert ended.status == 0, ended.errors
    return directory
