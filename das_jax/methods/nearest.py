"""Which stage's net serves a domain: the one that learned it, or the one that a text is nearest to."""

import math

from das_jax.methods.contract import History, Texts
from das_jax.methods.net import Net


def own_or_nearest(history: History, domain: str | None, texts: Texts) -> Net:
    """The net of the stage that learned a domain; of all nets, the base included, the one with the lowest
    loss on a text whose domain is not learned, or not known. Of equal ones the latest.
    """
    stage = own(history, domain)
    if stage is None:
        stage = nearest(history, texts)
    return history.base() if stage is None else history.net(stage)


def own(history: History, domain: str | None) -> int | None:
    """The stage that learned a domain; None if none has."""
    stages = enumerate(history.domains)
    return next((stage for stage, learned in stages if domain in learned), None)


def nearest(history: History, texts: Texts) -> int | None:
    """The stage whose net has the lowest loss on a text; None if no net has a lower one than the base. Of
    equal ones the latest.
    """
    stages = range(len(history.domains))
    if not stages:
        return None
    losses = texts.losses([history.base(), *map(history.net, stages)])
    # Compared with NaN, no loss would be lower.
    best = min(range(len(losses)), key=lambda each: (math.isnan(losses[each]), losses[each], -each))
    return best - 1 if best else None
