"""A model of its own for every domain: "one" of Ke et al. (DAS, ICLR 2023), DAP-RoBERTa of Gururangan et al.
(Don't Stop Pretraining, ACL 2020).
"""

from das_jax.methods.contract import History, Method, Place, Plan, Texts, own_or_nearest
from das_jax.methods.net import Mixture, Net


class Independent(Method):
    """Every domain is learned from the base model; nothing is forgotten, and nothing is shared."""

    paper = "Gururangan et al., ACL 2020"
    kind = "a model for every domain"

    def plan(self, place: Place) -> Plan:
        return Plan(self.model, start="base")

    def view(self, history: History, domain: str | None, texts: Texts) -> Net | Mixture:
        return own_or_nearest(history, domain, texts)
