"""The tokenizer of a checkpoint: loaded as it is stored, written as transformers 4.57 and 5 read it.

transformers 5 takes the vocabulary alone from tokenizer.json and makes the rest anew from the name of
the class. Here the file is what counts.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from das_jax.errors import UserError
from das_jax.files import write_json
from das_jax.model.vocabulary import Kind, build, kind_of

VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
FILE, CONFIG = "tokenizer.json", "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
COPIED = ("generation_config.json", "chat_template.json", "tokenizer.model")
"""What other programs read of a checkpoint beside its model, and nothing here."""

NAMES = PreTrainedTokenizerFast.SPECIAL_TOKENS_ATTRIBUTES
"""`mask_token` and the others that have a name."""

OPTIONS = ("model_max_length", "model_input_names", "padding_side", "truncation_side")

# The one class that both versions of transformers read from tokenizer.json and leave as it is.
AS_STORED = "PreTrainedTokenizerFast"
UNREADABLE = ["everything"]

# Files that are not in an export, code among them, and what transformers notes about where it read.
NOT_WRITTEN = (
    *("auto_map", "tokenizer_file", "vocab_file", "merges_file", "special_tokens_map_file"),
    *("name_or_path", "is_local", "local_files_only", "backend", "slow_tokenizer_class"),
)


def load_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a checkpoint, with padding and truncation switched off.

    It is that of tokenizer.json. Without one it is made of vocab.txt (BERT), of vocab.json and merges.txt
    (RoBERTa) or of a SentencePiece model (XLM-R). Tokens that only tokenizer_config.json,
    special_tokens_map.json or added_tokens.json know are added to it.

    Raises:
      UserError: there is none, it is damaged or of an unknown kind, or an added token has another id.
    """
    directory = Path(directory)
    # Without any vocabulary there is nothing to say of its damage.
    if not any(path for pattern in VOCABULARIES for path in directory.glob(pattern)):
        raise UserError(f"{directory} has no tokenizer; copy tokenizer.json of the model there")
    config = _read_json(directory / CONFIG)
    kind = kind_of(directory, config.get("tokenizer_class"))
    with _explaining(directory):
        named, others = _special_tokens(directory, config, kind)
    if (directory / FILE).is_file():
        with _explaining(directory):
            backend = Tokenizer.from_file(str(directory / FILE))
            read = _digest(backend)
        named = {
            name: token
            for name, token in named.items()
            # What a family usually has, this tokenizer may not have.
            if name in config or backend.token_to_id(_content(token)) is not None
        }
    else:
        read = ""
        with _explaining(directory):
            contents = {name: _content(token) for name, token in named.items()}
            backend = build(directory, kind, config, contents)
        mask = named.get("mask_token")
        if kind is not None and kind.mask_lstrip and isinstance(mask, str):
            named["mask_token"] = {"content": mask, "lstrip": True}
    with _explaining(directory):
        added = _added_tokens(directory, config, [*named.values(), *others])
        tokenizer = _tokenizer(directory, config, kind, backend, named, others, added)
        tokenizer.chat_template = _chat_template(directory, config)
        copied = (directory / name for name in COPIED)
        tokenizer.stored_files = {file.name: file.read_bytes() for file in copied if file.is_file()}
        if _digest(tokenizer.backend_tokenizer) == read:
            tokenizer.stored_as = read, (directory / FILE).read_bytes()
        return tokenizer


def _tokenizer(
    directory: Path,
    config: dict[str, Any],
    kind: Kind | None,
    backend: Tokenizer,
    named: dict[str, Any],
    others: list[Any],
    added: dict[int, AddedToken],
) -> PreTrainedTokenizerFast:
    backend.no_padding()
    backend.no_truncation()
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    for number, token in sorted(added.items()):
        if token.content not in known:
            backend.add_tokens([token])
            if (found := backend.token_to_id(token.content)) != number:
                raise UserError(
                    f"{directory} gives the added token {token.content!r} the id {number}, but after "
                    f"the vocabulary it comes to have {found}; correct added_tokens.json or {CONFIG}"
                )
    options = {name: config[name] for name in OPTIONS if config.get(name) is not None}
    if kind is not None:
        options.setdefault("model_input_names", list(kind.inputs))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        name_or_path=str(directory),
        extra_special_tokens=[_added(token) for token in others],
        **{name: _added(token) for name, token in named.items()},
        **options,
    )
    # Where there is none, transformers puts one.
    tokenizer.backend_tokenizer.post_processor = backend.post_processor
    # An unknown character shows a model whose own unknown token is missing.
    tokenizer.backend_tokenizer.encode("a \U0010fffd")
    tokenizer.stored_config = config
    return tokenizer


def _special_tokens(
    directory: Path, config: dict[str, Any], kind: Kind | None
) -> tuple[dict[str, Any], list[Any]]:
    """The tokens that have a name, and the special ones that have none, as texts or as objects."""
    # transformers reads the older file only where the newer one does not list the tokens.
    older = "added_tokens_decoder" not in config
    found = _read_json(directory / "special_tokens_map.json")
    defaults = kind.special if kind is not None else {}
    named = {}
    for name in NAMES:
        token = found[name] if older and name in found else config.get(name, found.get(name))
        if token is None and name not in config:
            token = defaults.get(name)
        if token is not None:
            named[name] = token
    others: list[Any] = []
    for values in (config, found):
        for key in ("additional_special_tokens", "extra_special_tokens"):
            if isinstance(tokens := values.get(key), dict):
                tokens = list(tokens.values())
            others += [
                token for token in tokens or [] if _content(token) not in map(_content, others)
            ]
    return named, others


def _added_tokens(
    directory: Path, config: dict[str, Any], special: list[Any]
) -> dict[int, AddedToken]:
    """The tokens that the tokenizer's other files add, by id."""
    if "added_tokens_decoder" in config:
        decoder = config["added_tokens_decoder"].items()
        return {int(number): AddedToken(**token) for number, token in decoder}
    contents = set(map(_content, special))
    return {
        number: AddedToken(content, special=content in contents, normalized=content not in contents)
        for content, number in _read_json(directory / "added_tokens.json").items()
    }


def _chat_template(directory: Path, config: dict[str, Any]) -> str | dict[str, str] | None:
    """How conversations are written: a template, or several by name; None if the tokenizer does not say."""
    if (directory / TEMPLATE).is_file():
        return (directory / TEMPLATE).read_bytes().decode()
    said = config.get("chat_template")
    return {each["name"]: each["template"] for each in said} if isinstance(said, list) else said


def _digest(backend: Tokenizer) -> str:
    return hashlib.sha256(backend.to_str().encode()).hexdigest()


def _content(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def _added(token: Any) -> AddedToken:
    if not isinstance(token, dict):
        return token if isinstance(token, AddedToken) else AddedToken(str(token), special=True)
    flags = ("lstrip", "rstrip", "single_word", "normalized")
    kept = {flag: token[flag] for flag in flags if flag in token}
    return AddedToken(token["content"], special=True, **kept)


def _read_json(file: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is no file."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(file.parent, f"{file.name}: {error}") from error
    if not isinstance(value, dict):
        raise _unreadable(file.parent, f"{file.name} holds no JSON object")
    return value


@contextmanager
def _explaining(directory: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # A damaged file raises anything, a bare Exception included.
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise _unreadable(directory, reason[0]) from error


def _unreadable(directory: Path, reason: str) -> UserError:
    return UserError(
        f"the tokenizer in {directory} cannot be read ({reason}); fetch or save it again"
    )


def write_tokenizer(directory: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Writes tokenizer.json, tokenizer_config.json and a chat template into an existing directory, and the
    files that came with them.

    The class and the form are those that were loaded, unless a version of transformers would not read
    them, or would make another tokenizer of them.
    """
    stored = getattr(tokenizer, "stored_config", None)
    if stored is None:
        tokenizer.save_pretrained(directory)
        stored = _read_json(directory / CONFIG)
    for name, content in getattr(tokenizer, "stored_files", {}).items():
        (directory / name).write_bytes(content)
    digest, content = getattr(tokenizer, "stored_as", (None, b""))
    if digest == _digest(tokenizer.backend_tokenizer):
        # Another version of tokenizers writes it otherwise, and older ones may not read that.
        (directory / FILE).write_bytes(content)
    else:
        tokenizer.backend_tokenizer.save(str(directory / FILE))
    config = {name: value for name, value in stored.items() if name not in NOT_WRITTEN}
    for name, content in tokenizer.special_tokens_map.items():
        if name in NAMES and _content(config.get(name)) != content:
            config[name] = content
    # transformers 4 reads extra special tokens as a mapping only, 5 reads both names.
    if not isinstance(config.get("extra_special_tokens", []), dict):
        config.pop("extra_special_tokens", None)
    if tokenizer.extra_special_tokens and "extra_special_tokens" not in config:
        config["additional_special_tokens"] = list(map(str, tokenizer.extra_special_tokens))
    config["added_tokens_decoder"] = added_tokens(tokenizer.backend_tokenizer)
    template = tokenizer.chat_template
    if isinstance(template, str) and template != config.get("chat_template"):
        (directory / TEMPLATE).write_bytes(template.encode())
    kind = config.get("tokenizer_class")
    if kind is not None and (kind.endswith("Backend") or not hasattr(transformers, kind)):
        config["tokenizer_class"] = AS_STORED
    write_json(directory / CONFIG, config)
    if config.get("tokenizer_class") != AS_STORED and rebuilt_parts(directory, tokenizer):
        config["tokenizer_class"] = AS_STORED
    if config.get("tokenizer_class") == AS_STORED:
        # The two versions take other things for granted.
        config["model_input_names"] = list(tokenizer.model_input_names)
        words = json.loads(_state(tokenizer.backend_tokenizer, "pre_tokenizer") or b"{}")
        if "add_prefix_space" in words:
            config["add_prefix_space"] = words["add_prefix_space"]
        write_json(directory / CONFIG, config)


def rebuilt_parts(directory: Path, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """What transformers makes differently when it loads a directory by itself; `tokenizer` is as stored."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        theirs = AutoTokenizer.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True
        ).backend_tokenizer
    except Exception:  # A class that does not fit its file raises anything.
        return UNREADABLE
    finally:
        transformers.logging.set_verbosity(verbosity)
    ours = tokenizer.backend_tokenizer
    parts = ("normalizer", "pre_tokenizer", "decoder")
    different = [part for part in parts if _state(ours, part) != _state(theirs, part)]
    if _model(ours) != _model(theirs):
        different.append("model")
    # Post-processors of several names put the same tokens around a text.
    if _surroundings(ours) != _surroundings(theirs):
        different.append("post_processor")
    if added_tokens(ours) != added_tokens(theirs):
        different.append("added tokens")
    return different


def _state(backend: Tokenizer, part: str) -> Any:
    return (value := getattr(backend, part)) and value.__getstate__()


def _model(backend: Tokenizer) -> dict[str, Any]:
    model = json.loads(backend.model.__getstate__())
    # No prefix and an empty one are the same.
    return {name: value or None for name, value in model.items() if name != "type"}


def _surroundings(backend: Tokenizer) -> list[tuple[list[int], list[int]]]:
    if backend.post_processor is None:
        return []
    nothing = Tokenizer(WordLevel({"a": 0})).encode("a")
    encodings = [backend.post_process(nothing), backend.post_process(nothing, nothing)]
    return [(encoding.ids, encoding.type_ids) for encoding in encodings]


def added_tokens(backend: Tokenizer) -> dict[int, dict[str, Any]]:
    """The added tokens by id, as tokenizer_config.json holds them."""
    flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    return {
        number: {flag: getattr(token, flag) for flag in flags}
        for number, token in backend.get_added_tokens_decoder().items()
    }


def tokenizer_notes(directory: Path, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Sentences for whoever would load the directory with transformers and get another tokenizer."""
    different = rebuilt_parts(Path(directory), tokenizer)
    if not set(different) - {"decoder"}:
        return []  # Decoders make texts of ids; no ids.
    source = FILE if (Path(directory) / FILE).is_file() else "the vocabulary"
    version = f"transformers {transformers.__version__}"
    if different == UNREADABLE:
        return [f"the tokenizer is that of {source}, which {version} does not read by itself"]
    return [
        f"the tokenizer is that of {source}; {version} by itself makes another of it: "
        f"{', '.join(different)} differ"
    ]
