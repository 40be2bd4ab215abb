"""From a configuration to the parts of a run: devices, model, tokenizer, corpora."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
from transformers import PreTrainedTokenizerFast

from das_jax.config.objectives import check_objectives, objective_of, unit_of
from das_jax.config.schema import Config, CorpusSettings, GeneralSettings
from das_jax.data import corpus, demo
from das_jax.data.corpus import Corpus
from das_jax.data.masking import Masking
from das_jax.data.objective import HiddenTokens, NextToken, Objective
from das_jax.data.salient_masking import SalientMasking
from das_jax.data.settings import is_dated
from das_jax.data.time_prefix import PrefixTokens, prefix_tokens
from das_jax.data.tokenization import USUAL_UNKNOWN, encoder
from das_jax.data.word_marks import is_cased, word_marks
from das_jax.errors import UserError
from das_jax.methods.contract import Method
from das_jax.methods.registry import masking_of, method_class
from das_jax.methods.settings.every_method import MethodSettings, positions_before
from das_jax.model import huggingface
from das_jax.model.architecture import Architecture
from das_jax.model.attention import Asked, choose_attention
from das_jax.model.block import rules_of
from das_jax.model.language_model import LanguageModel
from das_jax.training.compiled_programs import keep_compiled_programs
from das_jax.training.console import Console
from das_jax.training.sharding import Sharding, exchange_dtype, make_sharding

DEMO_MODEL = "demo:bert-tiny"


@dataclass(frozen=True)
class Workspace:
    """What every command needs of a configuration.

    Attributes:
      config: the configuration.
      console: where a person watches.
      checkpoint: the HuggingFace checkpoint that the run starts from.
      tokenizer: its tokenizer.
    """

    config: Config
    console: Console
    checkpoint: huggingface.Checkpoint
    tokenizer: PreTrainedTokenizerFast

    @property
    def cache_dir(self) -> Path:
        return cache_dir(self.config)

    @functools.cached_property
    def sharding(self) -> Sharding:
        """The devices; who only prepares text needs none."""
        mesh = self.config.mesh
        exchange = exchange_dtype(mesh.exchange, self.model.dtype)
        return make_sharding(mesh.data, mesh.state, exchange, mesh.gather, mesh.parameters)

    @functools.cached_property
    def model(self) -> LanguageModel:
        architecture, platform = self.checkpoint.architecture, jax.default_backend()
        return make_model(architecture, self.config, platform, self.console.log)

    @property
    def objective(self) -> Objective:
        """What is measured, and what the warm-up learns: the same whatever the policies."""
        if self.checkpoint.architecture.causal:
            return NextToken(apart=self.config.data.documents == "apart")
        return self._hidden(self._masking)

    @property
    def learning_objective(self) -> Objective:
        """What the domains learn."""
        if self.checkpoint.architecture.causal:
            return self.objective
        return self._hidden(self._learning_masking)

    @property
    def unit(self) -> str:
        """Of held-out losses."""
        causal = self.checkpoint.architecture.causal
        return unit_of({objective_of(each, causal) for each in self._texts})

    def _hidden(self, masking: Masking) -> HiddenTokens:
        return HiddenTokens(masking, self.checkpoint.architecture.pad_token_id)

    @functools.cached_property
    def _masking(self) -> Masking:
        return Masking(
            mask_token=self.tokenizer.mask_token_id,
            special_tokens=tuple(sorted(self.tokenizer.all_special_ids)),
            vocab_size=len(self.tokenizer),
            rate=self.config.training.mask_rate,
            prefix=self._prefix,
        )

    @property
    def _prefix(self) -> PrefixTokens | None:
        """How the tokenizer spells the time of texts, if any source has it."""
        if not any(is_dated(each.source) for each in self._texts):
            return None
        return prefix_tokens(encoder(self.tokenizer, self.config.data.special_tokens))

    @property
    def _texts(self) -> list[CorpusSettings | GeneralSettings]:
        """Every corpus of the configuration, general text first."""
        general = self.config.general
        return [*([] if general is None else [general]), *self.config.domains]

    @functools.cached_property
    def _learning_masking(self) -> Masking:
        policies = self.config.policies
        masking = masking_of(policies, self._masking, lambda: word_marks(self.tokenizer))
        if isinstance(masking, SalientMasking) and not is_cased(masking.marks):
            self.console.log(
                f"the vocabulary of {self.config.model.path} has no capitals, so policies.masking finds "
                "numbers and dates, and no names"
            )
        return masking

    def method(self, settings: MethodSettings | None) -> Method:
        """The method that the settings configure, on this model and mesh."""
        objective = self.objective if settings is None else self.learning_objective
        return method_class(settings)(self.model, objective, settings, self.sharding.batch)

    def corpus(self, text: CorpusSettings | GeneralSettings) -> Corpus:
        """Prepares a corpus, or finds it prepared."""
        data, name = self.config.data, text.name
        with self.console.counter(f"preparing {name}") as count:
            prepared = corpus.prepare(
                text.source,
                self.tokenizer,
                data.length,
                data.heldout,
                self.cache_dir,
                progress=count,
                beam=data.beam,
                log=self.console.log,
                special_tokens=data.special_tokens,
                validation=data.validation,
                objective=objective_of(text, self.checkpoint.architecture.causal),
                documents=data.documents,
            )
        if prepared.shortened is not None:
            self.console.log(f"{name}: {prepared.shortened}")
        if prepared.unknown_share > USUAL_UNKNOWN:
            self.console.log(
                f"{name}: {prepared.unknown_share:.1%} of its tokens are {self.tokenizer.unk_token}, words "
                "that the tokenizer does not know; a model of their language and script would learn more"
            )
        return prepared

    def corpora(self) -> dict[str, Corpus]:
        """Every corpus of the configuration by name, general text first."""
        return {each.name: self.corpus(each) for each in self._texts}


def make_model(
    architecture: Architecture,
    config: Config,
    platform: str,
    log: Callable[[str], None] | None = None,
) -> LanguageModel:
    """The model of a configuration, for the devices of a platform: `cpu`, `tpu` or `gpu`.

    Args:
      architecture: its shapes.
      config: the configuration.
      platform: the devices.
      log: is told if attention cannot use the platform's kernels, and why.

    Raises:
      UserError: the platform cannot do what the configuration asks for.
    """
    settings, dtype = config.model, compute_dtype(config, platform)
    asked = Asked(
        rules=rules_of(architecture, config.data.length)[0],
        heads=architecture.num_heads,
        groups=architecture.kv_heads,
        size=architecture.head_size,
        length=config.data.length + positions_before(config.method),
        dtype=dtype,
    )
    attention, why_dense = choose_attention(settings.attention, asked, platform)
    if log is not None and why_dense is not None:
        log(f"attention is computed as matrix products (dense): {why_dense}")
    return LanguageModel(
        architecture,
        dtype,
        settings.remat,
        unrolled=settings.layers == "unrolled",
        attention=attention,
    )


def compute_dtype(config: Config, platform: str) -> jnp.dtype:
    """The type of the matrix products."""
    dtype = config.model.dtype
    if dtype == "auto":
        dtype = "float32" if platform == "cpu" else "bfloat16"
    return jnp.dtype(dtype)


def cache_dir(config: Config) -> Path:
    """Where demo assets, prepared corpora and compiled programs live."""
    return Path(config.data.cache_dir).expanduser()


def open_workspace(config: Config, console: Console) -> Workspace:
    """Finds the model and its tokenizer, and checks that they fit each other and the configuration.

    Raises:
      UserError: something cannot be found or does not fit.
    """
    keep_compiled_programs(cache_dir(config) / "compiled", console.log)
    directory = model_directory(config)
    checkpoint = huggingface.load(directory)
    for note in checkpoint.notes:
        console.log(f"{config.model.path}: {note}")
    tokenizer = huggingface.load_tokenizer(directory)
    for note in huggingface.tokenizer_notes(directory, tokenizer):
        console.log(f"{config.model.path}: {note}")
    pairs = any(task.pair is not None for task in config.evaluation.tasks)
    huggingface.check_tokenizer(tokenizer, checkpoint.architecture, pairs)
    check_length(config, checkpoint.architecture)
    causal = checkpoint.architecture.causal
    check_objectives(config, causal)
    if not causal and tokenizer.mask_token_id is None:
        raise UserError(
            f"the tokenizer of {config.model.path} has no mask token, so the model is no masked "
            "language model; use another"
        )
    return Workspace(config, console, checkpoint, tokenizer)


def model_directory(config: Config) -> Path:
    """The directory of the checkpoint that `model.path` names."""
    return named_directory(config.model.path, cache_dir(config))


def named_directory(path: str, cache_dir: Path) -> Path:
    """The directory of a checkpoint: a directory, or the one that a demo or hub name has in the cache."""
    if path in demo.MODELS:
        return demo.model_directory(path, cache_dir)
    return huggingface.resolve(path, cache_dir)


def check_length(config: Config, architecture: Architecture) -> None:
    """Raises UserError if a chunk is longer than the model has positions for it."""
    before = positions_before(config.method)
    check_fits("data.length", config.data.length, config.model.path, architecture, before)


def check_fits(
    what: str, length: int, path: str, architecture: Architecture, before: int = 0
) -> None:
    """Raises UserError if a text is longer than the model has positions for it.

    Args:
      what: of what this is the length, for people.
      length: tokens.
      path: of the model, for people.
      architecture: of the model.
      before: the positions that vectors before the text take.
    """
    longest = architecture.max_length - before
    if length > longest:
        taken = f", of which the prompt takes {before}" if before else ""
        raise UserError(
            f"{what} is {length}, but {path} has {architecture.max_length} positions{taken}; use at most "
            f"{longest}"
        )
