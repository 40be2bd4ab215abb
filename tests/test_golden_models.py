"""ModernBERT and the decoders against arrays made by an independent float64 implementation.

Tolerances are those of the other golden arrays: in float32 1e-5 for hidden states, logits and losses and 1e-4
for gradients, relative to the largest entry; in float64 1e-9 for all. One model of each kind, BERT among
them, also has its products in bfloat16, within bounds of its own. `--golden DIR` may lack families.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from das_jax.methods.soft_mask import soft_mask
from das_jax.model import huggingface
from das_jax.model.heads import last_pool, mean_pool
from das_jax.model.language_model import LanguageModel, Params
from das_jax.model.leaves import OWNERS
from das_jax.model.plain import plain_params
from das_jax.model.units import Units, full_units, sharing
from tests.golden_case import Case, golden_case

FAMILIES = ("modernbert", "gpt2", "llama", "qwen2", "qwen3", "gemma2", "gemma3")

BFLOAT16 = {
    "bert": (5e-3, 0.04),
    "modernbert": (3e-3, 0.07),
    "gpt2": (2e-3, 0.05),
    "llama": (2e-3, 0.07),
    "gemma2": (2e-3, 0.05),
}
"""How far losses and gradients for gates may be off with products in bfloat16, relative to the largest entry:
three times what a CPU makes of them.
"""


class Computed(NamedTuple):
    """What one compiled program makes of a family's model."""

    hidden: jax.Array
    logits: jax.Array
    per_example: jax.Array
    loss: jax.Array
    gate_gradients: Units
    gradients: Params
    gated_hidden: jax.Array


def cross_entropy(logits_BxTxV: jax.Array, labels_BxT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The mean of every example, and of the batch."""
    counts_BxT = labels_BxT >= 0
    picked = jnp.take_along_axis(logits_BxTxV, jnp.maximum(labels_BxT, 0)[..., None], axis=-1)
    losses = jnp.where(counts_BxT, jax.nn.logsumexp(logits_BxTxV, axis=-1) - picked[..., 0], 0)
    per_example = losses.sum(1) / jnp.maximum(counts_BxT.sum(1), 1)
    return per_example, losses.sum() / counts_BxT.sum()


def compute(case: Case) -> Computed:
    mask, model = case.array("attention_mask"), case.model
    tokens = case.array("corrupted_ids" if "corrupted_ids" in case.arrays else "input_ids")

    @jax.jit
    def all_of_it(params: Params, accumulated: Units) -> Computed:
        def losses(params: Params, gates: Units) -> Any:
            hidden = model.encode(params, tokens, mask, gates)
            logits = model.logits(params, hidden)
            return cross_entropy(logits, case.array("labels")), (hidden, logits)

        gates = full_units(model.architecture, 1.0, (len(tokens),), case.dtype)
        (per_example, loss), pull_back, (hidden, logits) = jax.vjp(
            losses, params, gates, has_aux=True
        )
        _, gate_gradients = pull_back((jnp.ones_like(per_example), jnp.zeros_like(loss)))
        gradients, _ = pull_back((jnp.zeros_like(per_example), jnp.ones_like(loss)))
        gated = model.encode(params, case.array("input_ids"), mask, accumulated)
        return Computed(hidden, logits, per_example, loss, gate_gradients, gradients, gated)

    return all_of_it(case.params, case.units("importance_accumulated"))


@pytest.fixture(params=FAMILIES, scope="module")
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["float32", "float64"], scope="module")
def model_case(
    request: pytest.FixtureRequest, family: str, golden: Any
) -> Iterator[tuple[Case, Computed]]:
    directory, arrays = golden(family)
    with golden_case(directory, request.param, arrays) as case:
        yield case, compute(case)


def test_hidden_states_logits_and_losses(model_case: tuple[Case, Computed]) -> None:
    case, computed = model_case
    loss = "causal_lm" if case.model.architecture.causal else "mlm"
    real = np.asarray(case.arrays["attention_mask"], bool)
    for name, value in (("hidden", computed.hidden), ("logits", computed.logits)):
        case.assert_close(np.asarray(value)[real], case.arrays[name][real], 1e-5, name)
    case.assert_close(computed.per_example, case.arrays[f"{loss}_per_example"], 1e-5, loss)
    case.assert_close(computed.loss, case.arrays[loss], 1e-5, loss)


def test_gates(model_case: tuple[Case, Computed]) -> None:
    case, computed = model_case
    for kind, value in computed.gate_gradients._asdict().items():
        name = f"gate_grad_per_example.{kind}"
        case.assert_close(value, case.arrays[name], 1e-4, name)
    real = np.asarray(case.arrays["attention_mask"], bool)
    gated = np.asarray(computed.gated_hidden)
    case.assert_close(gated[real], case.arrays["gated_hidden"][real], 1e-5, "gated_hidden")
    pooled = mean_pool(computed.gated_hidden, case.array("attention_mask"))
    case.assert_close(pooled, case.arrays["pooled_gated"], 1e-5, "pooled_gated")
    if case.dtype == jnp.float32:
        plain = plain_params(case.model, case.params, case.units("importance_accumulated"))
        encode = jax.jit(case.model.encode)
        folded = np.asarray(encode(plain, case.array("input_ids"), case.array("attention_mask")))
        case.assert_close(folded[real], case.arrays["gated_hidden"][real], 1e-5, "gates folded")
    if case.model.architecture.causal:  # Else the hidden states are those of the corrupted text.
        last = last_pool(computed.hidden, case.array("attention_mask"))
        case.assert_close(last, case.arrays["pooled_last"], 1e-5, "pooled_last")


def test_gradients_and_what_the_soft_mask_leaves_of_them(
    model_case: tuple[Case, Computed],
) -> None:
    case, computed = model_case
    found = {"grad.": computed.gradients}
    for prefix, how in (("soft_masked_grad.", "max"), ("soft_masked_grad_mean.", "mean")):
        mask = soft_mask(case.units("importance_accumulated"), sharing(OWNERS, how))
        found[prefix], _ = mask.update(computed.gradients, mask.init(case.params))
    for prefix, gradients in found.items():
        ours, theirs = case.tensors(gradients), case.named(prefix)
        # Of the mean only keys and values of grouped heads are there.
        assert prefix.endswith("mean.") or set(ours) == set(theirs)
        for name, value in theirs.items():
            # GPT-2's key bias has a gradient of exactly 0, and so the whole tensor's scale is the measure.
            case.assert_close(ours[name], value, 1e-4, f"{prefix}{name}")


@pytest.mark.parametrize("of", BFLOAT16)
def test_bfloat16(golden: Any, of: str) -> None:
    directory, arrays = golden(of)
    with golden_case(directory, "float32", arrays) as case:
        model = LanguageModel(case.model.architecture, jnp.bfloat16)
        computed = compute(replace(case, model=model))
        loss = "causal_lm" if model.architecture.causal else "mlm"
        of_losses, of_gates = BFLOAT16[of]
        case.assert_close(computed.per_example, arrays[f"{loss}_per_example"], of_losses, loss)
        case.assert_close(computed.loss, arrays[loss], of_losses, loss)
        for kind, value in computed.gate_gradients._asdict().items():
            name = f"gate_grad_per_example.{kind}"
            case.assert_close(value, arrays[name], of_gates, name)


def test_documents_apart_are_documents_alone(model_case: tuple[Case, Computed]) -> None:
    case, _ = model_case
    if "segments.ids" not in case.arrays:
        pytest.skip("an encoder")
    places = case.array("segments.ids"), case.array("segments.positions")
    hidden = jax.jit(case.model.encode)(
        case.params,
        case.array("input_ids"),
        case.array("attention_mask"),
        segments_BxT=places[0],
        positions_BxT=places[1],
    )
    real = np.asarray(case.arrays["attention_mask"], bool)
    case.assert_close(
        np.asarray(hidden)[real], case.arrays["segments.hidden"][real], 1e-5, "segments.hidden"
    )


def test_the_first_layer_of_modernbert_has_no_norm(golden: Any) -> None:
    """What stands for it in the stacked array has no part in anything."""
    stored = golden("modernbert")
    checkpoint = huggingface.load(stored.model)
    model, params = LanguageModel(checkpoint.architecture), checkpoint.params
    tokens = jnp.asarray(stored.arrays["input_ids"][:1])

    def total(scale: jax.Array) -> jax.Array:
        attention = {**params["layers"]["attention"], "input_norm": {"scale": scale}}
        changed = {**params, "layers": {**params["layers"], "attention": attention}}
        return jnp.sum(model.encode(changed, tokens, tokens > 0) ** 2)

    gradient = jax.grad(total)(jnp.asarray(params["layers"]["attention"]["input_norm"]["scale"]))
    assert not gradient[0].any()
    assert np.abs(gradient[1:]).max() > 1e-3
