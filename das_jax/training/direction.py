"""What turns gradients into a direction, without the learning rate; decoupled weight decay is part of it."""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import optax

from das_jax.methods.partition import EVERYTHING, Rules
from das_jax.model.language_model import Params
from das_jax.model.units import claims


class Direction(Protocol):
    """An optimizer without its learning rate: one of ours, or any optax transformation."""

    @property
    def init(self) -> Callable[[Params], optax.OptState]: ...
    @property
    def update(self) -> Callable[..., tuple[Params, Any]]: ...


class Decayed:
    """The base of ours: a scaling of gradients, and weight decay that does not go through it (Loshchilov and
    Hutter, ICLR 2019). Each is a dataclass, a value: equal numbers are equal optimizers, which share compiled
    programs.

    Attributes:
      weight_decay: the share of a parameter that a learning rate of 1 would take away in a step.
      decays: which parameters weight decay pulls; a rule must match every one.
    """

    weight_decay: float
    decays: Rules

    @property
    def scaling(self) -> optax.GradientTransformation:
        """From gradients to a direction."""
        raise NotImplementedError

    def init(self, params: Params) -> optax.OptState:
        return self._transformation.init(params)

    def update(
        self, gradients: Params, state: optax.OptState, params: Params
    ) -> tuple[Params, optax.OptState]:
        return self._transformation.update(gradients, state, params)

    @property
    def _transformation(self) -> optax.GradientTransformationExtraArgs:
        decay = optax.identity()
        if self.weight_decay:
            mask = None if self.decays == EVERYTHING else self._pulled
            decay = optax.add_decayed_weights(self.weight_decay, mask)
        return optax.chain(self.scaling, decay)

    def _pulled(self, params: Params) -> Any:
        """Whether weight decay pulls it, for every parameter."""
        pulled = claims(
            params, self.decays, "no rule of Plan.decays claims the parameter {!r}; add one"
        )
        return jax.tree.unflatten(jax.tree.structure(params), pulled)
