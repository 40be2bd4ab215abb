"""Sharpness-aware minimisation (Foret et al., ICLR 2021): the step goes by the gradient at the worst point
nearby, so that it finds minima that stay low when later domains move the parameters (Watts et al.,
Sharpness-Aware Pretraining Mitigates Catastrophic Forgetting, ICML 2026, arXiv 2605.02105).
"""

import jax
import jax.numpy as jnp
import optax

from das_jax.methods.contract import Cost
from das_jax.methods.policy import GradientsAt, LossAndGradients, Policy
from das_jax.methods.settings.policies import SharpnessSettings
from das_jax.model.language_model import Params

TINY = 1e-12


class Sharpness(Policy):
    """The gradient at theta + rho g / norm(g), where g is that at theta."""

    name = "sharpness"
    settings: SharpnessSettings

    def cost(self, cost: Cost) -> Cost:
        """Twice that of a step, every so many steps."""
        return Cost(*((1 + 1 / self.settings.every) * passes for passes in cost))

    def gradients(self, at: GradientsAt, trained: Params, step: jax.Array) -> LossAndGradients:
        """Both passes see the same batch, corruption and dropout, and g is of the whole batch and of all that
        is trained. The loss is that at theta. What a method does to gradients acts once, on the second.
        """
        here = at(trained)

        def nearby(here: LossAndGradients) -> LossAndGradients:
            value, gradients = here
            size = self.settings.rho / jnp.maximum(optax.tree.norm(gradients), TINY)
            worst = jax.tree.map(lambda x, g: x + (size * g).astype(x.dtype), trained, gradients)
            return value, at(worst)[1]

        if self.settings.every == 1:
            return nearby(here)
        return jax.lax.cond(step % self.settings.every == 0, nearby, lambda here: here, here)
