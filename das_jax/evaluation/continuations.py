"""How decoders go on with texts, as text: prompts become tokens, and tokens text again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import TypeAdapter
from transformers import PreTrainedTokenizerBase

from das_jax.data.chat import chat
from das_jax.data.records import Conversation
from das_jax.errors import UserError
from das_jax.files import read_json
from das_jax.methods.net import Net
from das_jax.model import huggingface, huggingface_grafts
from das_jax.model.generation import GREEDY, Sampling, check_writes, generate
from das_jax.model.grafts.files import Base
from das_jax.model.huggingface_config import architecture_of
from das_jax.model.language_model import LanguageModel
from das_jax.training.serving import as_exported, grafted
from das_jax.training.workspace import named_directory

_CONFIG = TypeAdapter(dict[str, Any])


class Writer(NamedTuple):
    """A decoder and its tokenizer.

    Attributes:
      net: the model, its parameters and its gates.
      tokenizer: of it.
      notes: sentences about what was left out or added when it was read.
    """

    net: Net
    tokenizer: PreTrainedTokenizerBase
    notes: Sequence[str] = ()


def open_writer(path: str, cache_dir: Path) -> Writer:
    """Reads a decoder; its products are bfloat16, on a CPU float32.

    Args:
      path: a stage of a run, a HuggingFace directory, a graft beside its base, or a hub or demo name.
      cache_dir: where downloads are kept.

    Raises:
      UserError: there is none, it is damaged, or it writes no text.
    """
    directory = _directory(path, cache_dir)
    base = None
    if huggingface_grafts.is_graft(directory):
        base = huggingface_grafts.base_of(directory)
    plain = directory if base is None else _directory(base.name, cache_dir)
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    _check(path, LanguageModel(architecture_of(plain), dtype))
    checkpoint = huggingface.load(plain)
    net = Net(LanguageModel(checkpoint.architecture, dtype), checkpoint.params)
    if base is not None:
        own = Base(base.name, checkpoint.weights_hash())
        net = as_exported(grafted(net, directory, own))
        _check(path, net.model)
    net = net._replace(params=jax.device_put(net.params))
    return Writer(net, huggingface.load_tokenizer(directory), checkpoint.notes)


def continuations(
    writer: Writer,
    prompts: Sequence[str],
    tokens: int,
    *,
    asked: bool = False,
    sampling: Sampling = GREEDY,
    samples: int = 1,
    batch_size: int = 16,
) -> list[list[str]]:
    """What a decoder writes behind prompts.

    Args:
      writer: the decoder.
      prompts: the texts; special tokens that are spelled out in them are recognised, and one that the
        tokenizer puts before a text is put there.
      tokens: how many are written behind a prompt at most.
      asked: whether a prompt is said to an assistant, in the tokenizer's chat template, and its answer is
        what is written.
      sampling: how a token is chosen.
      samples: texts for each prompt.
      batch_size: texts at a time.

    Returns:
      For each prompt its samples, without special tokens.

    Raises:
      UserError: as `generate`; or the tokenizer has no chat template.
    """
    net, tokenizer = writer.net, writer.tokenizer
    given = [_tokens(tokenizer, prompt, asked, number) for number, prompt in enumerate(prompts, 1)]
    found = generate(
        *(net.model, net.params, given, tokens),
        ends=ending_tokens(tokenizer),
        sampling=sampling,
        samples=samples,
        gates=net.gates,
        batch_size=batch_size,
    )

    def text(tokens: np.ndarray) -> str:
        return str(tokenizer.decode(tokens.tolist(), skip_special_tokens=True))

    # Together, as a decoder of some tokenizers drops the space before the first word.
    return [
        [text(np.concatenate([prompt, new])).removeprefix(text(prompt)) for new in texts]
        for prompt, texts in zip(given, found, strict=True)
    ]


def ending_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The ids that end a text: the tokenizer's, and those that generation_config.json names or, without it,
    config.json.

    Raises:
      UserError: a file is damaged.
    """
    named = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for name in ("generation_config.json", "config.json"):
        file = Path(tokenizer.name_or_path) / name
        if file.is_file():
            said = read_json(file, _CONFIG, "fetch or save the checkpoint again")
            if (ends := said.get("eos_token_id")) is not None:
                named += ends if isinstance(ends, list) else [ends]
                break
    return tuple(dict.fromkeys(map(int, named)))


def _directory(path: str, cache_dir: Path) -> Path:
    stage = Path(path) / "huggingface"
    return stage if stage.is_dir() else named_directory(path, cache_dir)


def _check(path: str, model: LanguageModel) -> None:
    try:
        check_writes(model)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _tokens(
    tokenizer: PreTrainedTokenizerBase, prompt: str, asked: bool, number: int
) -> np.ndarray:
    """A prompt's token ids, int32."""
    written = chat(tokenizer)
    before = [] if written.special.first is None else [written.special.first]
    if asked:
        conversation = Conversation(f"prompt {number}", [{"role": "user", "content": prompt}])
        prompt, before = written.question(conversation), []
    found = written.encoder.backend.encode(prompt, add_special_tokens=False).ids
    return np.array([*before, *found], np.int32)
