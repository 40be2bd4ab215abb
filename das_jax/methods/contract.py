"""The contract between a continual-learning method and the engine; a new method is a file, its settings in
`settings.py`, and a line in `registry.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import optax

from das_jax.data.batch import Batch
from das_jax.data.masking import Masked, Masking
from das_jax.model.masked_lm import MaskedLM, Params
from das_jax.objectives.masked_lm import masked_lm_loss

Memory = Any
"""A pytree: everything that a method carries from domain to domain. Every checkpoint holds it."""

Metrics = dict[str, jax.Array]


class Domain(Protocol):
    """What a method may use of a domain before and after it is learned.

    Attributes:
      index: 0 for the first domain.
      name: its name in the configuration.
      rng: a random key of this domain's own.
      directory: where its files go; None on hosts that write none.
    """

    @property
    def index(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def rng(self) -> jax.Array: ...
    @property
    def directory(self) -> Path | None: ...

    def log(self, sentence: str) -> None:
        """Shows a sentence to the person who watches."""

    def accumulate(
        self,
        function: Callable[[Params, Batch, jax.Array], Any],
        params: Params,
        rng: jax.Array,
        *,
        examples: int,
        batch_size: int,
        purpose: str,
    ) -> Any:
        """Sums `function(params, batch, rng)` over a random sample of the domain's training text.

        The function sees one shard of a batch and returns sums over its rows, weighted by `batch.weight`.
        """


class Transforms(NamedTuple):
    """What a method does to gradients before the optimizer, and to updates after it (weight decay
    included).
    """

    gradient: optax.GradientTransformation = optax.identity()
    update: optax.GradientTransformation = optax.identity()


class UpdateTrace(NamedTuple):
    """One optimizer step from the inside.

    Attributes:
      params: the parameters before the step.
      gradients: the gradients before the method's own transformation.
      finished: the updates after Adam and weight decay.
      masked: the same after the method's transformation; the learning rate scales these.
      adamw: Adam and weight decay.
      adamw_state: its state before the step.
    """

    params: Params
    gradients: Params
    finished: Params
    masked: Params
    adamw: optax.GradientTransformation
    adamw_state: optax.OptState


@dataclass(frozen=True)
class Method:
    """Plain masked-LM training, and the base of every other method.

    Attributes:
      model: the model.
      masking: the masked-LM corruption.
      settings: the method's own settings.
      axis_name: the mesh axis over which a batch is sharded while `loss` and `accumulate` run; None
        for no mesh.
    """

    model: MaskedLM
    masking: Masking
    settings: Any
    axis_name: str | None = None

    def check(self) -> None:
        """Called before anything is prepared; raises UserError if what the settings name cannot be used."""

    def init(self, params: Params) -> Memory:
        """The memory before the first domain."""
        return ()

    def before_domain(self, params: Params, memory: Memory, domain: Domain) -> Memory:
        """Called before a domain is trained on."""
        return memory

    def loss(
        self, params: Params, memory: Memory, batch: Batch, rng: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """The loss of the global batch, [], and its parts by name.

        Pure. Under a mesh it runs on one shard of the batch with parameters of the shard's own, and what it
        returns is the same on every shard; `objectives/collectives.py` makes it so. With
        `mesh.state: parameters`, matrices and embeddings come rounded to the type of `mesh.exchange`.
        """
        mask_key, dropout_key = jax.random.split(rng)
        masked = self.masking.corrupt(batch.tokens, batch.example_keys(mask_key))
        hidden_BxTxD = self.model.encode(
            params,
            masked.tokens,
            self.model.mask(batch.tokens),
            dropout_keys_B=batch.example_keys(dropout_key),
        )
        loss = self.masked_lm_loss(params, hidden_BxTxD, masked)
        return loss, {"masked_lm": loss}

    def masked_lm_loss(self, params: Params, hidden_BxTxD: jax.Array, masked: Masked) -> jax.Array:
        """The masked-LM loss of the global batch, nats per masked token, []."""
        logits_BxMxV = self.model.logits(params, hidden_BxTxD, masked.positions)
        return masked_lm_loss(logits_BxMxV, masked.labels, masked.weights, self.axis_name)

    def encoder_passes(self) -> float:
        """How often a step runs the encoder over an example, forward and backward; for counting FLOPs."""
        return 1

    def transforms(self, memory: Memory) -> Transforms:
        """What happens to gradients and updates; may be traced."""
        return Transforms()

    def observe(self, memory: Memory, trace: UpdateTrace) -> Metrics:
        """Further metrics of a step; may be traced."""
        return {}

    def after_domain(self, params: Params, memory: Memory, domain: Domain) -> Memory:
        """Called after a domain has been trained on."""
        return memory
