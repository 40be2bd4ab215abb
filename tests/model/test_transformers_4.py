"""What transformers 4.57 makes of our exports, in an environment of its own."""

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from das_jax.model import huggingface
from tests.model.vocabularies import (
    BERT,
    byte_level,
    config,
    word_piece,
    write_sentencepiece,
    write_vocabulary,
)

VERSION = "4.57.6"
TEXTS = ["the <mask> shows", "The [MASK] drugs [DRUG]s café", "中文 </s> [SEP]", "the\n shows"]

READ = """
    import json, sys
    import transformers
    from transformers import AutoConfig, AutoTokenizer

    transformers.logging.set_verbosity_error()
    found = {}
    for directory, fast in json.load(sys.stdin)["directories"]:
        config = AutoConfig.from_pretrained(directory)
        tokenizer = AutoTokenizer.from_pretrained(directory, use_fast=fast)
        texts = json.loads(sys.argv[1])
        found[directory] = [dict(tokenizer(text)) for text in texts]
        found[directory] += [dict(tokenizer(*texts[:2])), sorted(tokenizer.all_special_ids)]
        found[directory] += [config.model_type, getattr(config, "num_hidden_layers", None)]
    print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def python(demo_cache: Path) -> Path:
    """An interpreter with transformers 4.57 and no PyTorch; installed once per machine."""
    directory = demo_cache / "tests" / f"transformers-{VERSION}"
    python, ready = directory / "bin" / "python", directory / "ready"
    if not ready.exists():
        shutil.rmtree(directory, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", directory], check=True)
        pip = [
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-compile",
            "--disable-pip-version-check",
        ]
        subprocess.run([*pip, f"transformers=={VERSION}"], check=True)
        ready.touch()
    return python


def read(python: Path, directories: list[tuple[Path, bool]]) -> dict[str, Any]:
    given = json.dumps({"directories": [(str(path), fast) for path, fast in directories]})
    command = [python, "-c", textwrap.dedent(READ), json.dumps(TEXTS)]
    ended = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def save(directory: Path, tokenizer: Tokenizer) -> Path:
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def inputs(place: Path) -> list[Path]:
    """Tokenizers as people have them."""
    names = dict(zip(("pad", "unk", "cls", "sep", "mask"), BERT, strict=False))
    named = {f"{name}_token": token for name, token in names.items()}
    lower, marked = byte_level(), word_piece(lowercase=True)
    lower.normalizer = normalizers.Lowercase()
    spaced = byte_level()
    spaced.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    marked.add_special_tokens(["[DRUG]"])
    found = [
        save(config(place / "bert", "bert", tokenizer_class="BertTokenizer"), word_piece()),
        save(config(place / "bert without configuration", "bert"), word_piece()),
        save(
            config(place / "cased", "bert", tokenizer_class="BertTokenizerFast"),
            word_piece(lowercase=False),
        ),
        save(
            config(
                place / "of version 5",
                "bert",
                tokenizer_class="TokenizersBackend",
                extra_special_tokens=["[DRUG]"],
                backend="tokenizers",
                is_local=True,
                **named,
            ),
            word_piece(),
        ),
        save(
            config(place / "marked", "bert", additional_special_tokens=["[DRUG]"]),
            marked,
        ),
        save(config(place / "roberta", "roberta"), byte_level()),
        save(config(place / "lower", "roberta", tokenizer_class="RobertaTokenizerFast"), lower),
        save(config(place / "spaced", "roberta", tokenizer_class="RobertaTokenizer"), spaced),
    ]
    for name, family, tokenizer in (
        ("vocab.txt", "bert", word_piece()),
        ("vocab.json", "roberta", byte_level()),
    ):
        found.append(config(place / name, family))
        write_vocabulary(found[-1], tokenizer)
    found.append(config(place / "sentencepiece", "xlm-roberta"))
    write_sentencepiece(found[-1])
    return found


@pytest.mark.slow
@pytest.mark.network
def test_both_versions_read_our_exports_alike(python: Path, tmp_path: Path, golden: Any) -> None:
    (tmp_path / "in").mkdir()
    checkpoint = huggingface.load(golden("bert").model)
    wanted, exported = {}, []
    for directory in inputs(tmp_path / "in"):
        tokenizer = huggingface.load_tokenizer(directory)
        target = tmp_path / "out" / directory.name
        huggingface.export(
            target, checkpoint.params, checkpoint.config, checkpoint.architecture, tokenizer
        )
        model_type = json.loads((directory / "config.json").read_text())["model_type"]
        about = {**json.loads((target / "config.json").read_text()), "model_type": model_type}
        (target / "config.json").write_text(json.dumps(about))
        # Written for that model's family.
        huggingface.write_tokenizer(target, tokenizer)
        exported.append((target, True))
        wanted[str(target)] = [dict(tokenizer(text)) for text in TEXTS]
        wanted[str(target)] += [
            dict(tokenizer(*TEXTS[:2])),
            sorted(tokenizer.all_special_ids),
            model_type,
            checkpoint.architecture.num_layers,
        ]
        theirs = AutoTokenizer.from_pretrained(target)
        assert [dict(theirs(text)) for text in TEXTS] == wanted[str(target)][: len(TEXTS)]
        assert dict(theirs(*TEXTS[:2])) == wanted[str(target)][len(TEXTS)]
        if directory.name in ("vocab.txt", "vocab.json"):
            # Its slow tokenizers are what the vocabularies were made for.
            exported.append((directory, False))
            wanted[str(directory)] = wanted[str(target)][:-1]
    found = read(python, exported)
    for directory, values in wanted.items():
        assert found[directory][: len(values)] == values, directory
