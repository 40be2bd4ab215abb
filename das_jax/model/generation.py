"""What a decoder writes behind a prompt: the likeliest tokens, or drawn ones.

The prompts of a batch are read at once. Then one loop on the device writes a token of every text a step,
reading the keys and values of those before it from a cache.
"""

import functools
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from das_jax.errors import UserError
from das_jax.model.attention import Asked, KeyValues, choose_attention
from das_jax.model.block import rules_of
from das_jax.model.grafts.graft import Params, without_graft
from das_jax.model.language_model import LanguageModel, cast_matrices
from das_jax.model.units import Units

NOTHING = -1
"""Where a text has ended before the others."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    A text's random numbers are of the seed, its prompt, its number among the samples of that prompt, and the
    step: whatever else is written beside it changes nothing, and two models draw with the same numbers.

    Attributes:
      temperature: what logits are divided by before a token is drawn; 0 takes the likeliest one.
      top_p: draws among the likeliest tokens alone, the fewest that have this probability together, at the
        temperature (Holtzman et al., The Curious Case of Neural Text Degeneration, 2020); 1 among all.
      seed: of the random numbers.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise UserError(
                f"temperature is {self.temperature}; it must be 0, for the likeliest token, or a number above"
            )
        if not 0 < self.top_p <= 1:
            raise UserError(
                f"top_p is {self.top_p}; it must be above 0 and at most 1, for all tokens"
            )
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed is {self.seed}; it must be in [0, 2^32)")


GREEDY = Sampling()


def generate(
    model: LanguageModel,
    params: Params,
    prompts: Sequence[np.ndarray],
    tokens: int,
    *,
    ends: Sequence[int] = (),
    sampling: Sampling = GREEDY,
    samples: int = 1,
    gates: Units | None = None,
    batch_size: int = 16,
) -> list[list[np.ndarray]]:
    """Goes on with prompts.

    Args:
      model: a decoder; its `attention` and `remat` do not matter.
      params: its parameters, whole.
      prompts: token ids of each, at least one.
      tokens: how many are written behind a prompt at most.
      ends: ids that end a text.
      sampling: how a token is chosen.
      samples: texts for each prompt.
      gates: what multiplies the units, [L, U]; None costs nothing.
      batch_size: texts at a time.

    Returns:
      For each prompt its samples: the new token ids, int32, the one that ended the text included.

    Raises:
      UserError: the model is no decoder, has a graft beside its layers, or has too few positions; or a prompt
        is empty.
    """
    check_writes(model)
    check_prompts(model, prompts, tokens)
    # Once, not for every batch.
    params = jax.device_put(params if model.graft is not None else without_graft(params))
    longest = max(map(len, prompts), default=1)
    # So that prompts of other lengths find the program compiled.
    length = min(-(-longest // 32) * 32, model.architecture.max_length - tokens)
    rows = [(prompt, sample) for prompt in prompts for sample in range(samples)]
    size = min(batch_size, len(rows))
    written: list[np.ndarray] = []
    for start in range(0, len(rows), size or 1):
        # The last batch begins again with the first text, so that it is of the same size.
        batch = [rows[number % len(rows)] for number in range(start, start + size)]
        prompts_BxP = np.zeros((size, length), np.int32)
        for row, (prompt, _) in zip(prompts_BxP, batch, strict=True):
            row[: len(prompt)] = prompt
        written_BxN = _written(
            _for_prompts(model, length),
            tokens,
            params,
            jnp.asarray(prompts_BxP),
            jnp.asarray([len(prompt) for prompt, _ in batch], jnp.int32),
            jnp.stack([_key(sampling.seed, *row) for row in batch]),
            jnp.asarray(ends, jnp.int32),
            sampling.temperature or None,
            None if sampling.top_p == 1 else sampling.top_p,
            gates,
        )
        written += [row[row != NOTHING] for row in np.asarray(written_BxN)]
    return [written[first : first + samples] for first in range(0, len(rows), samples)]


def check_writes(model: LanguageModel) -> None:
    """Raises UserError for a model that writes no text."""
    arch, graft = model.architecture, model.graft
    if not arch.causal:
        raise UserError(
            f"the model is a {arch.family} {arch.kind}, which fills gaps in a text and writes none; use a "
            "decoder, such as a gpt2 or llama"
        )
    if graft is not None and (graft.prefix or graft.every):
        raise UserError(
            f"the model has {type(graft).__name__.lower()} before or between its layers, and text is written "
            "by models that are plain or have a graft inside their layers; use another model"
        )


def check_prompts(model: LanguageModel, prompts: Sequence[np.ndarray], tokens: int) -> None:
    """Raises UserError for a prompt that is empty, or leaves no positions for that many tokens more."""
    arch = model.architecture
    for number, prompt in enumerate(prompts, 1):
        if not len(prompt):
            raise UserError(f"prompt {number} is empty; give it a word to begin with")
        if len(prompt) + tokens > arch.max_length:
            raise UserError(
                f"prompt {number} has {len(prompt)} tokens, and {tokens} more are too many for a model with "
                f"{arch.max_length} positions; shorten it, or ask for fewer"
            )
        if not 0 <= min(prompt) <= max(prompt) < arch.vocab_size:
            raise UserError(
                f"prompt {number} has the token {max(prompt)}, and the model knows {arch.vocab_size}; use "
                "the tokenizer that it was trained with"
            )


def _for_prompts(model: LanguageModel, length: int) -> LanguageModel:
    """The model with what computes attention fastest over whole prompts of a length."""
    arch = model.architecture
    asked = Asked(
        rules=rules_of(arch, length)[0],
        heads=arch.num_heads,
        groups=arch.kv_heads,
        size=arch.head_size,
        length=length,
        dtype=jnp.dtype(model.dtype),
    )
    attention, _ = choose_attention("auto", asked, jax.default_backend())
    return replace(model, attention=attention, remat="none", gather=None)


def _key(seed: int, prompt: np.ndarray, sample: int) -> jax.Array:
    """Of a text's random numbers."""
    tokens = np.ascontiguousarray(prompt, "<i4").tobytes()
    number = int.from_bytes(hashlib.blake2b(tokens, digest_size=4).digest(), "little")
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), number), sample)


class _State(NamedTuple):
    """Between two tokens: how many are written, the last one, what is written, who has ended, the cache."""

    number: jax.Array
    token_B: jax.Array
    written_BxN: jax.Array
    ended_B: jax.Array
    past: KeyValues


@functools.partial(jax.jit, static_argnums=(0, 1))
def _written(
    model: LanguageModel,
    tokens: int,
    params: Params,
    prompts_BxP: jax.Array,
    sizes_B: jax.Array,
    keys_B: jax.Array,
    ends_E: jax.Array,
    temperature: Any,
    top_p: Any,
    gates: Units | None,
) -> jax.Array:
    """The new tokens, [B, N], and `NOTHING` behind what ends a text before."""
    params = cast_matrices(params, model.dtype, model.leaves)

    def state_with(
        hidden_Bx1xD: jax.Array, count: Any, written_BxN: Any, ended_B: Any, past: KeyValues
    ) -> _State:
        logits_BxV = model.logits(params, hidden_Bx1xD)[:, 0]
        step_keys_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, count)
        token_B = chosen(logits_BxV, step_keys_B, temperature, top_p)
        written_BxN = written_BxN.at[:, count].set(jnp.where(ended_B, NOTHING, token_B))
        ended_B |= (token_B[:, None] == ends_E[None]).any(axis=-1)
        return _State(count + 1, token_B, written_BxN, ended_B, past)

    def step(state: _State) -> _State:
        positions_B = sizes_B + state.number - 1
        mask_Bx1 = jnp.ones((len(sizes_B), 1), bool)
        hidden_Bx1xD, own = model.read(
            params, state.token_B[:, None], mask_Bx1, state.past, positions_B[:, None], gates
        )
        past = with_token(state.past, own, positions_B)
        return state_with(hidden_Bx1xD, state.number, state.written_BxN, state.ended_B, past)

    def goes_on(state: _State) -> jax.Array:
        return (state.number < tokens) & ~state.ended_B.all()

    batch, length = prompts_BxP.shape
    mask_BxP = jnp.arange(length)[None] < sizes_B[:, None]
    hidden_BxPxD, own = model.read(params, prompts_BxP, mask_BxP, model.no_past(batch), gates=gates)
    last_Bx1xD = jnp.take_along_axis(hidden_BxPxD, (sizes_B - 1)[:, None, None], axis=1)
    nothing_BxN = jnp.full((batch, tokens), NOTHING, jnp.int32)
    past = with_room(own, tokens - 1)
    first = state_with(last_Bx1xD, jnp.int32(0), nothing_BxN, jnp.zeros(batch, bool), past)
    return jax.lax.while_loop(goes_on, step, first).written_BxN


def with_room(past: KeyValues, slots: int) -> KeyValues:
    """The keys and values of all layers with so many slots more."""
    return jax.tree.map(lambda x: jnp.pad(x, ((0, 0),) * 3 + ((0, slots), (0, 0))), past)


def with_token(past: KeyValues, own: KeyValues, positions_B: jax.Array) -> KeyValues:
    """The keys and values of all layers, those of one token more of every text in the slot of its place."""
    rows_B = jnp.arange(len(positions_B))

    def put(into_LxBxGxSxK: jax.Array, own_LxBxGx1xK: jax.Array) -> jax.Array:
        own_BxLxGxK = jnp.moveaxis(own_LxBxGx1xK[..., 0, :], 1, 0)
        return into_LxBxGxSxK.at[:, rows_B, :, positions_B].set(own_BxLxGxK)

    return jax.tree.map(put, past, own)


def chosen(
    logits_BxV: jax.Array, keys_B: jax.Array, temperature: Any = None, top_p: Any = None
) -> jax.Array:
    """The next token of every text, [B].

    Args:
      logits_BxV: float32.
      keys_B: random keys.
      temperature: above 0; None takes the likeliest token.
      top_p: below 1; None draws among all tokens.
    """
    if temperature is None:
        return jnp.argmax(logits_BxV, axis=-1).astype(jnp.int32)
    # Differences first: a tiny temperature makes infinity of a logit.
    logits_BxV = (logits_BxV - logits_BxV.max(axis=-1, keepdims=True)) / temperature
    draw = jax.vmap(jax.random.categorical)
    if top_p is None:
        return draw(keys_B, logits_BxV).astype(jnp.int32)
    logits_BxV, tokens_BxV = nucleus(logits_BxV, top_p)
    ranks_Bx1 = draw(keys_B, logits_BxV)[:, None]
    return jnp.take_along_axis(tokens_BxV, ranks_Bx1, axis=-1)[:, 0]


def nucleus(logits_BxV: jax.Array, top_p: Any) -> tuple[jax.Array, jax.Array]:
    """Logits from the highest on, -inf behind the fewest that together have the probability `top_p`, and of
    which tokens they are, int32.
    """
    tokens_BxV = jnp.broadcast_to(jnp.arange(logits_BxV.shape[-1])[None], logits_BxV.shape)
    falling_BxV, tokens_BxV = jax.lax.sort((-logits_BxV, tokens_BxV), num_keys=1)
    probabilities_BxV = jax.nn.softmax(-falling_BxV, axis=-1)
    before_BxV = jnp.cumsum(probabilities_BxV, axis=-1) - probabilities_BxV
    return jnp.where(before_BxV < top_p, -falling_BxV, -jnp.inf), tokens_BxV.astype(jnp.int32)
