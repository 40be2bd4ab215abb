"""Impossible combinations of settings that are each possible."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from das_jax.config.objectives import check_columns
from das_jax.config.schema import OPTIMIZER_OPTIONS, SCHEDULE_OPTIONS, Config, TrainingSettings
from das_jax.data.settings import ChoicesSettings, TaskSettings
from das_jax.data.streams import GENERAL, KEPT, OWN, Stream
from das_jax.errors import UserError
from das_jax.methods.settings.every_method import (
    general_text,
    needs_fresh_moments,
    needs_one_state,
    needs_two_moments,
    wrong_lists,
)
from das_jax.methods.settings.policies import AVERAGING_OPTIONS, AveragingSettings
from das_jax.settings import read_by


def check(config: Config, origin: Callable[[str], str]) -> None:
    """Refuses what no model and no data are needed to see.

    Args:
      config: a configuration that is valid key by key.
      origin: where the value of a dotted key came from.

    Raises:
      UserError: two seeds that are one, a domain listed twice, an objective without its columns or the
        other way round, two end tasks or sets of questions with one name, an end task of a domain that is
        not learned, a schedule or an optimizer with another's options, a schedule longer than a domain, a
        method or a policy that lacks what it needs, groups of devices with nothing to split, a method's list
        that is not of the domains, or a file of the method's or of a policy's that does not exist.
    """
    check_seeds(config.seeds or (), origin)
    _check_domains(config, origin)
    check_columns(config, origin)
    _check_tasks(config, origin)
    _check_schedule(config.training, origin)
    _check_optimizer(config, origin)
    _check_trunk(config, origin)
    _check_policies(config, origin)
    _check_mesh(config, origin)
    if wrong := wrong_lists(config.method, len(config.domains)):
        key, why = wrong
        raise UserError(f"{origin(key)}: {why}.")
    files = read_by(config.method, "method."), read_by(config.policies, "policies.")
    for key, file in itertools.chain(*files):
        path = Path(file).expanduser()
        if not path.exists():
            raise UserError(f"{origin(key)}: {key} is {path}, which does not exist.")


def check_seeds(seeds: Sequence[int], origin: Callable[[str], str]) -> None:
    """Raises UserError if two seeds are one, so that two runs would be."""
    found: dict[int, int] = {}
    for i, seed in enumerate(seeds):
        key = seed % 2**32
        if key in found:
            same = (
                "equal"
                if seed == found[key]
                else "equal in the 32 bits that JAX makes a random key of"
            )
            raise UserError(
                f"{origin(f'seeds.{i}')}: seeds holds {found[key]} and {seed}, which are {same}; "
                "give every repetition a seed of its own."
            )
        found[key] = seed


def _check_domains(config: Config, origin: Callable[[str], str]) -> None:
    names = {config.general.name: "general"} if config.general else {}
    sources: dict[object, str] = {}
    if config.general and config.general.name in (OWN, KEPT):
        raise UserError(_taken_by_a_stream("general.name", config.general.name, "text", origin))
    for i, domain in enumerate(config.domains):
        key = f"domains.{i}"
        if domain.name in names:
            raise UserError(
                f"{origin(f'{key}.name')}: {key}.name is {domain.name}, which is also the name of "
                f"{names[domain.name]}; give each corpus its own name, and list each domain once."
            )
        if domain.name in (OWN, KEPT, GENERAL):
            raise UserError(_taken_by_a_stream(f"{key}.name", domain.name, "domain", origin))
        if domain.source in sources:
            raise UserError(
                f"{origin(f'{key}.source')}: domain {domain.name} has the same source as domain "
                f"{sources[domain.source]}; list each domain once."
            )
        names[domain.name] = key
        sources[domain.source] = domain.name


def _taken_by_a_stream(key: str, name: str, what: str, origin: Callable[[str], str]) -> str:
    return (
        f"{origin(key)}: {key} is {name}, which is what a method calls a stream of its batches; give the "
        f"{what} another name."
    )


def _check_tasks(config: Config, origin: Callable[[str], str]) -> None:
    domains = [domain.name for domain in config.domains]
    evaluation = config.evaluation
    _check_names("evaluation.tasks", "end task", evaluation.tasks, origin)
    _check_names("evaluation.cloze", "set of facts", evaluation.cloze, origin)
    _check_names("evaluation.choices", "set of questions", evaluation.choices, origin)
    _check_names("evaluation.minimal_pairs", "set of pairs", evaluation.minimal_pairs, origin)
    asked: dict[str, Sequence[TaskSettings | ChoicesSettings]]
    asked = {"tasks": evaluation.tasks, "choices": evaluation.choices}
    for group, each in asked.items():
        for i, task in enumerate(each):
            key = f"evaluation.{group}.{i}"
            if task.domain is not None and task.domain not in domains:
                raise UserError(
                    f"{origin(f'{key}.domain')}: {key}.domain is {task.domain}, which is no domain of this "
                    f"run ({', '.join(domains)}); leave it out if it asks for general knowledge."
                )


def _check_names(group: str, what: str, each: Sequence[Any], origin: Callable[[str], str]) -> None:
    """Raises UserError if two columns of one matrix have one name."""
    names: dict[str, str] = {}
    for i, settings in enumerate(each):
        key = f"{group}.{i}"
        if settings.name in names:
            raise UserError(
                f"{origin(f'{key}.name')}: {key}.name is {settings.name}, which is also the name of "
                f"{names[settings.name]}; give each {what} its own name."
            )
        names[settings.name] = key


def _check_options(
    group: Any,
    prefix: str,
    choice: str,
    options: Mapping[str, tuple[str, ...]],
    origin: Callable[[str], str],
) -> None:
    """Raises UserError for an option of what was not chosen.

    Args:
      group: the settings.
      prefix: of their keys.
      choice: the setting that is chosen.
      options: what each choice reads of the group.
      origin: where the value of a dotted key came from.
    """
    chosen, usual = getattr(group, choice), type(group)()
    for option in dict.fromkeys(each for several in options.values() for each in several):
        value = getattr(group, option)
        if option not in options[chosen] and value != getattr(usual, option):
            takes = [name for name, several in options.items() if option in several]
            key, do = f"{prefix}.{option}", "do" if choice.endswith("s") else "does"
            raise UserError(
                f"{origin(key)}: {key} is {str(value).lower()}, which the {choice} {chosen} {do} not use; "
                f"leave it out, or set {prefix}.{choice} to {' or '.join(takes)}."
            )


def _check_schedule(training: TrainingSettings, origin: Callable[[str], str]) -> None:
    _check_options(training, "training", "schedule", SCHEDULE_OPTIONS, origin)
    used = SCHEDULE_OPTIONS[training.schedule]
    parts = [each for each in ("warmup", "settling", "cooldown") if each in ("warmup", *used)]
    total = sum(getattr(training, part) for part in parts)
    if total > 1 + 1e-9:
        key = max(parts, key=lambda part: getattr(training, part))
        names = " and ".join(f"training.{part}" for part in parts)
        raise UserError(
            f"{origin(f'training.{key}')}: {names} together take {total:g} of a domain's steps; make it 1 at "
            "most."
        )


def _check_optimizer(config: Config, origin: Callable[[str], str]) -> None:
    training, averaging = config.training, config.policies.averaging
    _check_options(training, "training", "optimizer", OPTIMIZER_OPTIONS, origin)
    if training.optimizer == "adamw":
        return
    place = origin("training.optimizer")
    if needs := needs_two_moments(config.method):
        raise UserError(
            f"{place}: training.optimizer is {training.optimizer}, but {needs}, which needs Adam's two "
            "moments; set it to adamw, or the other to update."
        )
    if averaging is not None and averaging.weights == "moments":
        raise UserError(
            f"{place}: training.optimizer is {training.optimizer}, which has no second moment of every "
            "parameter, but policies.averaging.weights is moments; set it to adamw, or the other to fisher "
            "or uniform."
        )


def _check_trunk(config: Config, origin: Callable[[str], str]) -> None:
    training, ema = config.training, config.policies.ema
    why = needs_one_state(config.method, config.policies)
    if why and ema is not None and ema.trunk:
        raise UserError(
            f"{origin('policies.ema.trunk')}: policies.ema.trunk is true, so that a domain ends in two "
            f"states, one to serve and one to go on from, but {why}; set it to false."
        )
    branches = "trunk" in SCHEDULE_OPTIONS[training.schedule] and training.cooldown > 0
    if why and branches and training.trunk:
        raise UserError(
            f"{origin('training.schedule')}: training.schedule is {training.schedule}, which ends a domain "
            f"in two states, one to serve and one to go on from, but {why}; set training.trunk to false."
        )


def _check_policies(config: Config, origin: Callable[[str], str]) -> None:
    training, policies = config.training, config.policies
    readers = {
        "method.general": general_text(config.method),
        "policies.general_share": policies.general_share,
    }
    for key, value in readers.items():
        if value and config.general is None:
            raise UserError(
                f"{origin(key)}: {key} is {str(value).lower()}, but there is no general text; add `general`, "
                "or leave it out."
            )
    if policies.general_share:
        key = f"policies.general_share is {policies.general_share}"
        place = origin("policies.general_share")
        rows = Stream(GENERAL, policies.general_share).rows(training.batch_size)
        if rows in (0, training.batch_size):
            what = "no row" if rows == 0 else "every row"
            raise UserError(
                f"{place}: {key}, which makes {what} of a batch of {training.batch_size} general text; "
                "change it, or training.batch_size."
            )
    if policies.selection is not None and training.accumulate > 1:
        raise UserError(
            f"{origin('training.accumulate')}: training.accumulate is {training.accumulate}, but "
            "policies.selection weighs the predictions of a whole batch against each other; make it 1, or "
            "leave policies.selection out."
        )
    if getattr(policies.masking, "one_per_chunk", False) and training.accumulate > 1:
        # A micro-batch counts by its predictions, and here the draw says how many they are.
        raise UserError(
            f"{origin('training.accumulate')}: training.accumulate is {training.accumulate}, but with "
            "policies.masking.one_per_chunk nobody knows beforehand how many predictions a micro-batch has; "
            "make it 1, or leave policies.masking.one_per_chunk out."
        )
    if policies.averaging is not None:
        _check_averaging(policies.averaging, origin)
    if policies.averaging is not None and policies.ema is not None:
        raise UserError(
            f"{origin('policies.ema')}: policies.ema and policies.averaging both say what a domain's steps "
            "end in; leave one of them out."
        )
    if training.second_moment == "carried" and (why := needs_fresh_moments(config.method)):
        raise UserError(
            f"{origin('training.second_moment')}: training.second_moment is carried, but {why}."
        )


def _check_mesh(config: Config, origin: Callable[[str], str]) -> None:
    mesh = config.mesh
    if mesh.parameters != "all" and mesh.state == "replicated":
        raise UserError(
            f"{origin('mesh.parameters')}: mesh.parameters is {mesh.parameters}, but mesh.state is "
            "replicated, so that nothing is split; leave it out, or set mesh.state to optimizer or "
            "parameters."
        )


def _check_averaging(averaging: AveragingSettings, origin: Callable[[str], str]) -> None:
    _check_options(averaging, "policies.averaging", "weights", AVERAGING_OPTIONS, origin)
    usual = AveragingSettings()
    if averaging.layers is not None and averaging.alpha != usual.alpha:
        raise UserError(
            f"{origin('policies.averaging.alpha')}: policies.averaging.alpha is {averaging.alpha}, but "
            "policies.averaging.layers has a share for every layer; leave one of them out."
        )
