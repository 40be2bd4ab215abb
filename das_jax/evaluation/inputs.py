"""What a configuration asks its models, read and checked: end tasks, facts and other probes."""

from das_jax.data.choices import load_choices
from das_jax.data.cloze import Completions, Facts, load_completions, load_facts
from das_jax.data.minimal_pairs import load_pairs
from das_jax.data.questions import Questions, Writer
from das_jax.data.settings import (
    ChoicesSettings,
    ClozeSettings,
    MinimalPairsSettings,
    TaskSettings,
)
from das_jax.data.tasks import Task, load_task
from das_jax.data.tokenization import USUAL_UNKNOWN
from das_jax.errors import UserError
from das_jax.evaluation.harness import Harness
from das_jax.methods.settings.every_method import positions_before
from das_jax.model.architecture import ENDLESS
from das_jax.model.tokenizer_fit import leaves_out_types
from das_jax.training.sharding import check_divisible
from das_jax.training.workspace import Workspace, check_fits


def check_inputs(workspace: Workspace) -> None:
    """Reads all that a configuration asks its models, so that a mistake in it shows before training.

    Raises:
      UserError: one cannot be evaluated.
    """
    settings = workspace.config.evaluation
    for task in settings.tasks:
        checked_task(workspace, task, positions_before(workspace.config.method))
    causal = workspace.checkpoint.architecture.causal
    for facts in settings.cloze:
        (checked_completions if causal else checked_facts)(workspace, facts)
    for choices in settings.choices:
        checked_choices(workspace, choices)
    for pairs in settings.minimal_pairs:
        checked_pairs(workspace, pairs)
    if settings.harness is not None:
        Harness(workspace, settings.harness).check()


def checked_task(workspace: Workspace, settings: TaskSettings, before: int) -> Task:
    """Reads a task that these devices can train this model on, with so many vectors before a text."""
    architecture = workspace.checkpoint.architecture
    what, path = f"task {settings.name}: length", workspace.config.model.path
    check_fits(what, settings.length, path, architecture, before)
    check_divisible(settings.batch_size, workspace.sharding, f"task {settings.name}: batch_size")
    task = load_task(settings, workspace.tokenizer, workspace.cache_dir, architecture.causal)
    for note in task.notes:
        workspace.console.log(f"warning: {note}")
    if settings.pair is not None and leaves_out_types(workspace.tokenizer, architecture):
        workspace.console.log(
            f"warning: end task {settings.name}: the two texts of a pair have one token type, as "
            "model_input_names of tokenizer_config.json lists no token_type_ids; add them if the model was "
            "trained with two"
        )
    return task


def checked_facts(workspace: Workspace, settings: ClozeSettings) -> Facts:
    """Reads a set of facts that this masked model can be asked for."""
    if settings.candidates is not None:
        raise UserError(
            f"facts {settings.name}: candidates is {settings.candidates}, which decoders choose from, but "
            f"{workspace.config.model.path} is a masked language model and fills blanks by itself; leave it "
            "out"
        )
    facts = load_facts(settings, workspace.tokenizer)
    before = positions_before(workspace.config.method)
    longest = workspace.checkpoint.architecture.max_length - before
    if facts.tokens_NxT.shape[1] > longest:
        raise UserError(
            f"facts {settings.name}: a sentence has {facts.tokens_NxT.shape[1]} tokens, but "
            f"{workspace.config.model.path} has {longest} positions for it; shorten it"
        )
    if facts.left_out:
        workspace.console.log(
            f"{settings.name}: {facts.left_out} facts left out, whose answer is not one token "
            "in its sentence"
        )
    if facts.unknown > USUAL_UNKNOWN:
        workspace.console.log(
            f"{settings.name}: {facts.unknown:.1%} of the tokens of the sentences are words that the "
            "tokenizer does not know"
        )
    return facts


def checked_completions(workspace: Workspace, settings: ClozeSettings) -> Completions:
    """Reads a set of facts that this decoder can be asked for."""
    facts = load_completions(settings, _writer(workspace))
    if facts.left_out:
        workspace.console.log(
            f"{settings.name}: {facts.left_out} facts left out, whose blank does not come last; with a field "
            "of candidates a decoder can be asked for them, too"
        )
    _warn_of_unknown(workspace, settings.name, facts.questions)
    return facts


def checked_choices(workspace: Workspace, settings: ChoicesSettings) -> Questions:
    """Reads a set of questions that this decoder can be asked."""
    if not workspace.checkpoint.architecture.causal:
        raise UserError(
            f"evaluation.choices has {settings.name}, which asks how likely a choice is behind its context, "
            f"but {workspace.config.model.path} is a masked language model, which does not say; leave it out"
        )
    questions = load_choices(settings, _writer(workspace, settings.length), workspace.cache_dir)
    _warn_of_unknown(workspace, settings.name, questions)
    return questions


def checked_pairs(workspace: Workspace, settings: MinimalPairsSettings) -> Questions:
    """Reads a set of minimal pairs that this model can be asked for."""
    pairs = load_pairs(settings, _writer(workspace))
    _warn_of_unknown(workspace, settings.name, pairs)
    return pairs


def _writer(workspace: Workspace, most: int = ENDLESS) -> Writer:
    architecture = workspace.checkpoint.architecture
    longest = min(most, architecture.max_length - positions_before(workspace.config.method))
    return Writer.of(workspace.tokenizer, architecture.causal, longest)


def _warn_of_unknown(workspace: Workspace, name: str, questions: Questions) -> None:
    if questions.unknown > USUAL_UNKNOWN:
        workspace.console.log(
            f"{name}: {questions.unknown:.1%} of the tokens are words that the tokenizer does not know"
        )
