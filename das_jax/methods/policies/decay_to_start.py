"""Decoupled decay towards the model before the first domain, as weight decay is one towards 0."""

import optax

from das_jax.errors import UserError
from das_jax.methods.contract import Domain, Learned, Plan, SecondMoment, Split
from das_jax.methods.partition import partition
from das_jax.methods.penalty import quadratic_pull
from das_jax.methods.placeholder import only
from das_jax.methods.policy import Policy
from das_jax.model.language_model import Params
from das_jax.model.units import shapes_by_path


class DecayToStart(Policy):
    """`settings` is lambda: after Adam, lambda (theta - theta0) is added to the update of every parameter
    that is trained and that weight decay would pull.

    It carries theta0 of these. Where every domain begins from the base model, what a domain trains is pulled
    to where that domain began: a fresh adapter to its own initialisation.
    """

    name = "decay_to_start"
    settings: float

    def init(self, params: Params) -> Split:
        return Split(params)

    def begin(
        self, learned: Learned, memory: Split, domain: Domain, second_moment: SecondMoment | None
    ) -> Split:
        plan = domain.plan
        pulled = only(learned.params, plan.trains, plan.decays)
        if domain.index == 0 or plan.start == "base":
            return Split(pulled)
        start = shapes_by_path(memory.tree)
        if any(
            shape and start.get(path) != shape for path, shape in shapes_by_path(pulled).items()
        ):
            raise UserError(
                f"method.name {self.method.settings.name} trains parameters in {domain.name} that were not "
                "there before, or had another shape, so policies.decay_to_start has nothing to pull them to; "
                "leave one of them out"
            )
        return memory

    def decay(self, memory: Split, plan: Plan) -> optax.GradientTransformation:
        start, _ = partition(memory.tree, plan.decays)
        return quadratic_pull(1.0, start, self.settings)
