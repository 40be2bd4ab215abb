"""Whether noise is of a size that tells something: seen by float32, and no end of the model."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from das_jax.data.batch import Batch
from das_jax.methods.contract import Domain, Method
from das_jax.methods.das.noise import Noise
from das_jax.methods.net import Net
from das_jax.model.flops import lm_head_flops, transformer_flops
from das_jax.model.language_model import Params
from das_jax.objectives.lm_loss import prediction_loss_per_example
from das_jax.objectives.proxy_kl import vocabulary_proxy_kl_per_example

EXAMPLES = 64
USUAL_KL = 0.01, 1.0
"""Nats per token between two noisy passes: less is close to rounding, more is another model's output."""
MOST_LOSS = 0.5
"""Nats by which noise may raise the loss."""


@dataclass(frozen=True)
class NoiseSums:
    """Sums over a batch: KL between two noisy passes over the vocabulary, loss with noise, loss without,
    examples, [4].
    """

    method: Method
    noise: Noise
    name: str = "what noise does"

    def flops(self, length: int) -> int:
        """Useful FLOPs of one example."""
        architecture = self.method.model.architecture
        predicted = self.method.objective.most_predictions(length)
        heads = lm_head_flops(architecture, 2 * length + 2 * predicted)
        return 4 * transformer_flops(architecture, length) + heads

    def __call__(self, params: Params, batch: Batch, rng: jax.Array) -> jax.Array:
        net, objective = Net(self.method.model, params), self.method.objective
        draw_key, *noise_keys = jax.random.split(rng, 4)
        text = objective.text(batch.tokens)
        drawn = objective.draw(batch.tokens, batch.example_keys(draw_key))
        first, second, third = (batch.example_keys(key) for key in noise_keys)
        one, other = (net.logits(self.noise.encode(net, text, keys)) for keys in (first, second))

        def losses(hidden_BxTxD: jax.Array) -> jax.Array:
            logits = net.predictions(hidden_BxTxD, drawn)
            return prediction_loss_per_example(logits, drawn.labels, drawn.weights)

        found_B = (
            vocabulary_proxy_kl_per_example(one, other, text.mask),
            losses(self.noise.encode(net, drawn.text, third)),
            losses(net.encode(drawn.text)),
            jnp.ones_like(batch.weight),
        )
        return jnp.stack([jnp.sum(each * batch.weight) for each in found_B])


def said_of_noise(
    method: Method, noise: Noise, params: Params, domain: Domain, batch_size: int
) -> str:
    """What noise does to a model on a sample of a domain: a warning, if that is too little or too much."""
    total = domain.accumulate(
        NoiseSums(method, noise),
        params,
        jax.random.fold_in(domain.rng, 3),
        examples=EXAMPLES,
        batch_size=batch_size,
        purpose="what noise does",
    )
    kl, noisy, clean = (float(x) for x in total[:3] / total[3])
    said = (
        f"unit noise of {noise.scale:g} moves predictions by {kl:.3g} nats a token and raises the loss by "
        f"{noisy - clean:.3g}"
    )
    least, most = USUAL_KL
    if kl > most or noisy - clean > MOST_LOSS:
        return f"warning: {said}: a model so shaken is another one; lower method.importance.noise_scale"
    if kl < least:
        return f"warning: {said}: that is close to rounding; raise method.importance.noise_scale"
    return said
