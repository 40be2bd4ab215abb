"""`general.may_rise`: how much of its general knowledge a run may lose, and whether it did."""

from das_jax.config.schema import Config
from das_jax.training.run_directory import BASE, Scores

HELPS = (
    "a lower training.learning_rate, policies.general_share or a method that forgets less would help; "
    "das-jax advise tries them"
)


def start_of(config: Config) -> str:
    """The row that the first domain began with: the model after the warm-up, if there was one."""
    general = config.general
    return general.name if general is not None and general.steps else BASE


def promise(config: Config, scores: Scores) -> str | None:
    """Whether the run has kept its promise so far, in a sentence; a warning where it has not.

    Args:
      config: of the run.
      scores: nats per predicted token on held-out text, rows in the order of learning.

    Returns:
      None where nothing is promised, or no domain is learned yet.
    """
    general, start = config.general, start_of(config)
    rows = list(scores)
    if general is None or general.may_rise is None or start not in rows:
        return None
    began = scores[start][general.name]
    rises = {row: scores[row][general.name] - began for row in rows[rows.index(start) + 1 :]}
    if not rises:
        return None
    last, worst = list(rises)[-1], max(rises, key=lambda row: rises[row])
    allowed = f"the {general.may_rise:g} of general.may_rise"
    if rises[last] > general.may_rise:
        return (
            f"warning: the promise is broken: after {last} the loss on {general.name} is {rises[last]:.3f} "
            f"nats above where the domains began, more than {allowed}; {HELPS}"
        )
    if rises[worst] > general.may_rise:
        return (
            f"warning: the promise was broken after {worst}, where the loss on {general.name} was "
            f"{rises[worst]:.3f} nats above where the domains began, more than {allowed}; after {last} it is "
            f"{rises[last]:.3f}"
        )
    return (
        f"the promise is kept: the loss on {general.name} is {rises[last]:+.3f} nats from where the domains "
        f"began, at most {rises[worst]:+.3f} on the way, within {allowed}"
    )
