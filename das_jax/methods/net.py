"""A model bound to its parameters, and several of them mixed: what a loss is given, and what serves."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax

from das_jax.data.objective import Drawn, Text
from das_jax.model.blocked_logits import BlockedLogits
from das_jax.model.language_model import LanguageModel, Params
from das_jax.model.units import Units


class Parts(NamedTuple):
    """Parameters of layers that live split over the devices.

    Attributes:
      whole: put together, all of them; what no loss looks at is never made.
      own: this device's part.
      gather: puts those of one layer together.
    """

    whole: Params
    own: Params
    gather: Callable[[Params], Params]


class Net(NamedTuple):
    """A model bound to its parameters.

    Attributes:
      model: with its graft, if it has one.
      params: its parameters.
      gates: what multiplies its units, [L, U]; None costs nothing.
      parts: what the layers' parameters are made of, where that is to be done one by one; it says nothing
        of a net whose parameters are replaced.
    """

    model: LanguageModel
    params: Params
    gates: Units | None = None
    parts: Parts | None = None

    def encode(
        self,
        text: Text,
        dropout_keys_B: jax.Array | None = None,
        gates: Units | None = None,
    ) -> jax.Array:
        """The last hidden state, [B, T, D]; `gates` in place of the net's own."""
        gates = self.gates if gates is None else gates
        model, params, parts = self.model, self.params, self.parts
        if parts is not None and params["layers"] is parts.whole:
            model = replace(model, gather=parts.gather)
            params = {**params, "layers": parts.own}
        return model.encode(
            params,
            text.tokens,
            text.mask,
            gates,
            dropout_keys_B,
            segments_BxT=text.segments,
            positions_BxT=text.position_ids,
        )

    def logits(self, hidden_BxMxD: jax.Array) -> BlockedLogits:
        """What the logits of these hidden states are made of."""
        return self.model.blocked_logits(self.params, hidden_BxMxD)

    def predictions(self, hidden_BxTxD: jax.Array, drawn: Drawn) -> BlockedLogits:
        """What the logits of the predictions are made of."""
        return self.logits(drawn.at_predictions(hidden_BxTxD))


class Mixture(NamedTuple):
    """Several nets whose probabilities are mixed.

    Attributes:
      nets: E of them.
      weights: the share of each, E numbers that sum to 1.
    """

    nets: tuple[Net, ...]
    weights: tuple[float, ...]

    @property
    def best(self) -> Net:
        """The net with the largest share; of equal ones the latest."""
        return self.nets[max(range(len(self.nets)), key=lambda e: (self.weights[e], e))]


def mixed(served: Net | Mixture) -> Mixture:
    """Whoever serves, as a mixture: a net alone is one of itself."""
    return served if isinstance(served, Mixture) else Mixture((served,), (1.0,))
