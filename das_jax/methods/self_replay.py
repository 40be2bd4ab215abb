"""Self-generated replay: before a domain the model makes text of its own, and is held to what it made of it
(Marek et al., Forgetting in Language Models: Capacity, Optimization, and Self-Generated Replay, arXiv
2605.26097).

The paper samples from decoders. A masked model makes text by filling what is masked of a real one, again and
again (Wang and Cho, BERT has a Mouth, and It Must Speak, NeuralGen 2019).
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from das_jax.data.batch import Batch
from das_jax.data.masking import Masking
from das_jax.data.objective import Drawn, HiddenTokens
from das_jax.data.store import Reservoir
from das_jax.errors import UserError
from das_jax.methods.contract import Domain, Learned, Place, Plan
from das_jax.methods.net import Net
from das_jax.methods.settings.whole_model import SelfReplaySettings
from das_jax.methods.stored_outputs import StoredOutputs
from das_jax.model.flops import lm_head_flops, transformer_flops
from das_jax.model.language_model import Params


class SelfReplay(StoredOutputs):
    """What is stored is text that the model makes before every domain, the first one included, so that no
    earlier text is needed.

    The labels of a stored corruption are drawn from the model's own predictions under it, so the masked-LM
    loss on them is, in the mean, KL(old model ‖ new model) at those positions plus a constant: the paper's
    loss. Hidden states are stored, too, which drawing adds no noise to.
    """

    settings: SelfReplaySettings

    paper = "Marek et al., 2026"
    kind = "whole model, rehearsal"

    @property
    def hidden(self) -> HiddenTokens:
        """What the text is learned for: what is filled is what this hides."""
        assert isinstance(self.objective, HiddenTokens)
        return self.objective

    def check(self) -> None:
        self._check_model()

    def _check_model(self) -> None:
        """Raises UserError for a model that has nothing to fill."""
        if self.model.architecture.causal:
            raise UserError(
                "method.name is self_replay, which fills what is masked in a text, but the model is a "
                "decoder; use replay or derpp, or a masked language model"
            )

    def plan(self, place: Place) -> Plan:
        self._check_model()
        rows, chunks = self.rows_beside(place), sum(place.counts)
        Reservoir(self.settings.buffer, seed=0).check(self.settings.buffer, rows)
        if chunks < rows:
            raise UserError(
                f"method.rows is {self.settings.rows:g}, which puts {rows} rows beside every batch, but "
                f"{', '.join(place.domains)} has {chunks} chunks to make them of; lower it"
            )
        return Plan(self.model, kept_rows=rows)

    def begin(self, learned: Learned, domain: Domain) -> Learned:
        """Makes text of a uniform sample of the domain's chunks, and stores what the model makes of it."""
        reservoir = Reservoir(min(self.settings.buffer, domain.count), domain.seed)
        self.say_size(domain, reservoir.capacity)
        indices = reservoir.survivors({}, domain.index, domain.count)
        made = domain.rows(
            MadeRows(self),
            learned.params,
            domain.rng,
            indices,
            batch_size=domain.plan.kept_rows,
            purpose="text that the model makes",
        )
        domain.log(lambda: _said(made["tokens"], domain.chunks(indices)))
        tokens_NxT = made.pop("tokens")
        return learned._replace(kept=reservoir.rows(domain.index, indices, tokens_NxT, **made))

    def end(self, learned: Learned, domain: Domain) -> Learned:
        """The next domain makes its own."""
        return learned._replace(kept={})


def _said(made_NxT: np.ndarray, chunks_NxT: np.ndarray) -> str:
    share = np.mean(made_NxT != chunks_NxT)
    return (
        f"text of the model's own was made: {share:.0%} of the tokens are not those of the domain"
    )


@dataclass(frozen=True)
class MadeRows:
    """A text that the model makes of every chunk, a corruption of it, the labels that the model draws under
    that, and the hidden states; dropout off.
    """

    method: SelfReplay
    name: str = "text that the model makes"

    def flops(self, length: int) -> int:
        """Useful FLOPs of one example."""
        method = self.method
        architecture = method.model.architecture
        passes = (method.settings.rounds + 1) * transformer_flops(architecture, length)
        drawn = method.settings.rounds * self._blanks.most_predictions(length)
        return passes + lm_head_flops(architecture, drawn + method.hidden.most_predictions(length))

    @property
    def _blanks(self) -> HiddenTokens:
        """Of a round: single tokens, as many as `mask_rate` says, however the domain itself is learned."""
        hidden = self.method.hidden
        usual = hidden.masking.common
        masking = Masking(**{**usual, "rate": self.method.settings.mask_rate})
        return HiddenTokens(masking, hidden.padding)

    def __call__(self, params: Params, batch: Batch, rng: jax.Array) -> dict[str, Any]:
        method, settings = self.method, self.method.settings
        net, masking = Net(method.model, params), self.method.hidden.masking

        def filled(drawn: Drawn, key: jax.Array, temperature: float) -> tuple[Drawn, jax.Array]:
            """With labels drawn from what the model predicts, and the hidden states that it predicts from."""
            hidden_BxTxD = net.encode(drawn.text)
            logits_BxMxV = net.model.logits(params, drawn.at_predictions(hidden_BxTxD))
            words_BxMxV = jnp.where(self._words(logits_BxMxV.shape[-1]), logits_BxMxV, -jnp.inf)
            drawn_BxM = jax.vmap(jax.random.categorical)(
                batch.example_keys(key), words_BxMxV / temperature
            )
            return _with_labels(drawn, drawn_BxM), hidden_BxTxD

        def a_round(tokens_BxT: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
            where, what = jax.random.split(key)
            drawn = self._blanks.draw(tokens_BxT, batch.example_keys(where))
            # All are blanks: none shows the word that was there, or a random one.
            blank = _with_labels(drawn, jnp.full_like(drawn.labels, masking.mask_token))
            drawn = drawn._replace(text=drawn.text._replace(tokens=_labelled(blank)))
            return _labelled(filled(drawn, what, settings.temperature)[0]), None

        rounds, where, what = jax.random.split(rng, 3)
        tokens_BxT, _ = jax.lax.scan(
            a_round, batch.tokens, jax.random.split(rounds, settings.rounds)
        )
        drawn = method.hidden.draw(tokens_BxT, batch.example_keys(where))
        drawn, hidden_BxTxD = filled(drawn, what, 1.0)
        return {"tokens": _labelled(drawn), **method.stored(drawn, hidden_BxTxD)}

    def _words(self, vocabulary: int) -> np.ndarray:
        """What may be drawn: no special token, and nothing that the tokenizer lacks, [1, 1, V]."""
        masking = self.method.hidden.masking
        words_V = np.arange(vocabulary) < masking.vocab_size
        words_V[list(masking.special_tokens)] = False
        return words_V[None, None]


def _with_labels(drawn: Drawn, labels_BxM: jax.Array) -> Drawn:
    """Other labels, where predictions count."""
    labels_BxM = jnp.where(drawn.weights > 0, labels_BxM, drawn.labels)
    return drawn._replace(labels=labels_BxM.astype(drawn.labels.dtype))


def _labelled(drawn: Drawn) -> jax.Array:
    """The text with the labels in it, [B, T]."""
    tokens_BxT, rows_Bx1 = drawn.text.tokens, jnp.arange(len(drawn.labels))[:, None]
    return tokens_BxT.at[rows_Bx1, drawn.positions].set(drawn.labels.astype(tokens_BxT.dtype))
