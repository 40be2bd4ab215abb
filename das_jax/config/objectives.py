"""What each corpus is learned for: what its domain says, else what the model was made for."""

from collections.abc import Callable, Collection, Iterator, Mapping

from das_jax.config.schema import Config, CorpusSettings, GeneralSettings, TrainingSettings
from das_jax.data.settings import ObjectiveName, RecordSettings, SnapshotsSource, Source
from das_jax.errors import UserError
from das_jax.methods.settings.every_method import positions_before

COLUMNS = ("prompt", "response", "messages")
"""The settings of a source that only the objective `supervised` reads."""


UNITS: Mapping[ObjectiveName, str] = {
    "masked": "masked token",
    "causal": "token",
    "supervised": "response token",
}
"""What a loss is the mean over: it is in nats per one of these."""


def objective_of(corpus: CorpusSettings | GeneralSettings, causal: bool) -> ObjectiveName:
    """What a corpus is learned for.

    Args:
      corpus: a domain, or general text, which has no choice.
      causal: whether the model is a decoder.
    """
    said = corpus.objective if isinstance(corpus, CorpusSettings) else None
    return said or ("causal" if causal else "masked")


def unit_of(objectives: Collection[ObjectiveName]) -> str:
    """The unit of the losses of corpora, for people."""
    names = {UNITS[objective] for objective in objectives}
    return f"nats per {names.pop() if len(names) == 1 else UNITS['causal']}"


def check_columns(config: Config, origin: Callable[[str], str]) -> None:
    """Refuses what no model is needed to see.

    Args:
      config: a configuration that is valid key by key.
      origin: where the value of a dotted key came from.

    Raises:
      UserError: a source without columns for its objective, with some that nobody reads, or two domains
        whose objectives no model has both of.
    """
    if config.general is not None:
        _refuse_columns(config.general.source, "general.source", "leave it out", origin)
    for i, domain in enumerate(config.domains):
        key = f"domains.{i}.source"
        if domain.objective == "supervised":
            _check_examples(domain.source, key, origin)
        else:
            remedy = f"set domains.{i}.objective to supervised, or leave it out"
            _refuse_columns(domain.source, key, remedy, origin)
    said = {domain.objective: i for i, domain in enumerate(config.domains) if domain.objective}
    if "masked" in said and len(said) > 1:
        one, other = said["masked"], next(i for name, i in said.items() if name != "masked")
        raise UserError(
            f"{origin(f'domains.{other}.objective')}: domains.{other}.objective is "
            f"{config.domains[other].objective}, but domains.{one}.objective is masked, and no model is made "
            "for both; leave the two out, and each is what the model is made for."
        )


def check_objectives(config: Config, causal: bool) -> None:
    """Refuses what does not fit the model.

    Args:
      config: the configuration.
      causal: whether the model is a decoder.

    Raises:
      UserError: an objective that the model was not made for, or a setting of the other kind of model.
    """
    path, training = config.model.path, config.training
    kind = "a decoder" if causal else "a masked language model"
    other = "a masked language model" if causal else "a decoder"
    for i, domain in enumerate(config.domains):
        if domain.objective is not None and (domain.objective == "masked") == causal:
            raise UserError(
                f"domains.{i}.objective is {domain.objective}, but {path} is {kind}; leave it out, or set "
                f"model.path to {other}"
            )
    wrong: dict[str, str] = {}
    if causal:
        if config.policies.masking is not None:
            wrong["policies.masking"] = config.policies.masking.name
        if training.mask_rate != TrainingSettings().mask_rate:
            wrong["training.mask_rate"] = f"{training.mask_rate:g}"
    elif config.data.documents != "joined":
        wrong["data.documents"] = config.data.documents
    for key, value in wrong.items():
        raise UserError(
            f"{key} is {value}, which is for {other}, but {path} is {kind}; leave it out, or set model.path "
            f"to {other}"
        )
    if config.data.documents == "apart" and positions_before(config.method):
        raise UserError(
            f"data.documents is apart, but the vectors of method.name={config.method.name} stand before the "
            "first document of a chunk alone; set it to joined"
        )


def _check_examples(source: Source, key: str, origin: Callable[[str], str]) -> None:
    """Whether a source has what `supervised` reads, and nothing else."""
    if not isinstance(source, RecordSettings):
        raise UserError(
            f"{origin(f'{key}.kind')}: {key}.kind is {source.kind}, which has no prompts and responses, but "
            "the domain's objective is supervised; use jsonl, csv, parquet, tfds or huggingface."
        )
    said = {name: getattr(source, name) for name in COLUMNS if getattr(source, name) is not None}
    if set(said) not in ({"prompt", "response"}, {"messages"}):
        raise UserError(
            f"{origin(key)}: {key} has {' and '.join(said) or 'no columns'}, but the domain's objective is "
            "supervised, which reads `prompt` and `response` or, alone, `messages`; give one or the other."
        )
    usual = {"field": "text", "date": None}
    for name, value in usual.items():
        if getattr(source, name) != value:
            raise UserError(
                f"{origin(f'{key}.{name}')}: {key}.{name} is {getattr(source, name)}, which the objective "
                "supervised does not read; leave it out."
            )


def _refuse_columns(source: Source, key: str, remedy: str, origin: Callable[[str], str]) -> None:
    for place, each in _record_sources(source, key):
        for name in COLUMNS:
            if (value := getattr(each, name)) is not None:
                raise UserError(
                    f"{origin(f'{place}.{name}')}: {place}.{name} is {value}, which only the objective "
                    f"supervised reads; {remedy}."
                )


def _record_sources(source: Source, key: str) -> Iterator[tuple[str, RecordSettings]]:
    if isinstance(source, SnapshotsSource):
        yield from ((f"{key}.old", source.old), (f"{key}.new", source.new))
    elif isinstance(source, RecordSettings):
        yield key, source
