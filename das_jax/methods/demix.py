"""DEMix: an expert for every domain, mixed by how well each explains the text (Gururangan et al., NAACL
2022).
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from das_jax.methods.contract import Domain, History, Learned, Method, Place, Plan, Texts
from das_jax.methods.nearest import own, own_or_nearest
from das_jax.methods.net import Mixture, Net
from das_jax.methods.partition import Rules
from das_jax.methods.settings.grafts import DEMixSettings
from das_jax.objectives.mixture import cached_prior, posterior

EXPERT: Rules = (
    (r"layers/feed_forward/(gate|intermediate|output)/(kernel|bias)", True),
    (".*", False),
)
"""What is a domain's own: W_1, b_1, W_2 and b_2 of every layer, and the gate where there is one. All else is
shared, and stays.
"""


class DEMix(Method):
    """Feed-forward experts in a model that is frozen otherwise; the base model's own is the first of them."""

    settings: DEMixSettings

    paper = "Gururangan et al., NAACL 2022"
    kind = "frozen model, experts"
    refuses = ("averaging",)

    def plan(self, place: Place) -> Plan:
        """Not from the expert before it: from the nearest, which `begin` looks for."""
        return Plan(self.model, trains=EXPERT, start="base")

    def begin(self, learned: Learned, domain: Domain) -> Learned:
        """A new expert starts as the one with the lowest loss on the new text."""
        nearest = own_or_nearest(domain.history, domain.name, domain.texts)
        return learned._replace(params=nearest.params)

    def view(self, history: History, domain: str | None, texts: Texts) -> Net | Mixture:
        """A learned domain's own expert; for other texts the mixture of all by the prior of the first of
        their sequences, "cached" in the paper's section 4.2.
        """
        stage = own(history, domain)
        if self.settings.known == "own" and stage is not None:
            return history.net(stage)
        nets = (history.base(), *(history.net(stage) for stage in range(len(history.domains))))
        if len(nets) == 1:
            return nets[0]
        return Mixture(nets, self.prior(texts.log_likelihoods(nets, self.settings.sequences)))

    def prior(self, log_likelihood_NxE: Any) -> tuple[float, ...]:
        """The share of every expert in a text whose sequences it gives these log-likelihoods."""
        posterior_NxE = posterior(jnp.asarray(log_likelihood_NxE))
        prior_E = np.asarray(cached_prior(posterior_NxE, self.settings.decay))
        return tuple(map(float, prior_E))
