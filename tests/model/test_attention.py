"""Every form of attention against the dense one, and that against its definition; the rule of BERT is
compared with torch elsewhere, too.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from das_jax.data.batch import Batch
from das_jax.errors import UserError
from das_jax.model.attention import (
    Asked,
    Rule,
    choice,
    choose_attention,
    dense_attention,
    flash_blocks,
)
from das_jax.model.attention.cudnn import cudnn_attention
from das_jax.model.attention.flash import flash_attention
from das_jax.model.attention.fused import fused_attention
from das_jax.model.attention.triton import triton_attention
from das_jax.model.language_model import LanguageModel, Params

Attend = Callable[..., jax.Array]


class Texts(NamedTuple):
    """Arguments of attention but for the rule, and a gradient of its result: none at padding."""

    query: jax.Array
    key: jax.Array
    value: jax.Array
    cotangent: jax.Array
    mask: jax.Array
    seed: jax.Array
    segments: jax.Array

    def results(self, attend: Attend, rule: Rule, seeded: bool, segmented: bool) -> list[jax.Array]:
        """Context vectors at real tokens, and the gradients of queries, keys and values."""
        rest = self.seed if seeded else None, self.segments if segmented else None

        def run(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, ...]:
            context, backward = jax.vjp(
                lambda *x: attend(*x, self.mask, rule, *rest), query, key, value
            )
            return jnp.where(self.mask[..., None, None], context, 0), *backward(self.cotangent)

        return [*jax.jit(run)(self.query, self.key, self.value)]


def texts(length: int, heads: int, groups: int, size: int, dtype: str = "float32") -> Texts:
    """Three texts: a full one, one with padding, and one of nothing else; documents of odd lengths."""
    keys = jax.random.split(jax.random.key(0), 5)
    query, key, value, cotangent = (
        jax.random.normal(k, (3, length, h, size)).astype(dtype)
        for k, h in zip(keys, (heads, groups, groups, heads), strict=False)
    )
    positions_T = jnp.arange(length)
    mask = positions_T[None] < jnp.array([length, length - length // 4, 0])[:, None]
    cotangent = jnp.where(mask[..., None, None], cotangent, 0)
    seed = jax.random.bits(keys[4], (3, 2), jnp.uint32)
    segments = jnp.broadcast_to(1 + positions_T // (length // 3 + 1), mask.shape)
    return Texts(2 * query, key, value, cotangent, mask, seed, jnp.where(mask, segments, 0))


def definition(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array,
    rule: Rule,
    seed: None,
    segments: jax.Array | None,
) -> jax.Array:
    """Pair by pair of tokens, every query head with its own copy of the keys."""
    key, value = (jnp.repeat(x, query.shape[2] // key.shape[2], axis=2) for x in (key, value))
    scores = jnp.einsum("BTHK,BSHK->BHTS", query, key)
    scores *= query.shape[-1] ** -0.5 if rule.scale is None else rule.scale
    if rule.cap is not None:
        scores = rule.cap * jnp.tanh(scores / rule.cap)
    real, document = np.asarray(mask), np.asarray(mask if segments is None else segments)
    readable = np.zeros((*mask.shape, mask.shape[1]), bool)
    for text, t, s in np.ndindex(readable.shape):
        readable[text, t, s] = real[text, s] and not (
            (rule.causal and s > t)
            or (rule.reach is not None and abs(t - s) > rule.reach)
            or (real[text, t] and document[text, t] != document[text, s])
        )
    weights = jax.nn.softmax(jnp.where(readable[:, None], scores, -1e30), axis=-1)
    return jnp.einsum("BHTS,BSHK->BTHK", weights, value)


def assert_equal(actual: list[jax.Array], expected: list[jax.Array], tolerance: float) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == other.dtype
        one, other = (np.asarray(x, np.float32) for x in (one, other))
        np.testing.assert_allclose(one, other, atol=tolerance * np.abs(other).max())


@pytest.mark.parametrize(
    ("rule", "groups", "segmented"),
    [
        (Rule(reach=3), 4, False),
        (Rule(causal=True, scale=0.3), 1, False),
        (Rule(causal=True, reach=4, cap=1.5), 2, True),
    ],
    ids=["window both ways", "one key for all", "window, cap, two keys, documents"],
)
def test_the_dense_form_is_the_definition(rule: Rule, groups: int, segmented: bool) -> None:
    some = texts(12, 4, groups, 8)
    expected = some.results(definition, rule, seeded=False, segmented=segmented)
    actual = some.results(dense_attention, rule, seeded=False, segmented=segmented)
    assert_equal(actual, expected, 1e-6)


@pytest.mark.parametrize(
    ("rule", "groups", "segmented"),
    [
        (Rule(reach=20), 2, True),
        (Rule(causal=True, reach=260, cap=1.5, scale=0.3), 1, False),
        (Rule(causal=True, dropout=0.25), 2, False),
    ],
    ids=["window both ways, documents", "window, cap, one key", "dropout"],
)
def test_blocks_are_the_dense_form(
    rule: Rule, groups: int, segmented: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three blocks, the last not full; the first window skips blocks."""
    for name in ("BLOCK", "NARROW"):
        monkeypatch.setattr(flash_blocks, name, 128)
    some, seeded = texts(300, 2, groups, 8), rule.dropout > 0
    expected = some.results(dense_attention, rule, seeded, segmented)
    for attend in (flash_attention, triton_attention):
        assert_equal(some.results(attend, rule, seeded, segmented), expected, 2e-6)


@pytest.mark.parametrize("rule", [Rule(), Rule(causal=True, reach=5, scale=0.3)], ids=str)
def test_what_cudnn_is_asked_for_is_the_dense_form(rule: Rule) -> None:
    some = texts(16, 4, 2, 8)
    expected = some.results(dense_attention, rule, seeded=False, segmented=False)
    attend = partial(cudnn_attention, implementation="xla")
    assert_equal(some.results(attend, rule, seeded=False, segmented=False), expected, 1e-6)


@pytest.mark.parametrize(
    ("rule", "mask_type", "window"),
    [(Rule(), "PADDING", 0), (Rule(causal=True, reach=31), "CAUSAL", 32)],
    ids=str,
)
def test_a_gpu_gets_the_kernel_of_the_rule(
    rule: Rule, mask_type: str, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its window counts the token itself."""
    library = "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version"
    monkeypatch.setattr(library, lambda: 91000)  # It need not be here to be called.
    some = texts(64, 4, 2, 64, "bfloat16")
    run = jax.jit(lambda *x: cudnn_attention(*x, rule))
    traced = run.trace(some.query, some.key, some.value, some.mask)
    program = traced.lower(lowering_platforms=("cuda",)).as_text().replace("\\22", "")
    assert "__cudnn$fmhaSoftmax" in program
    assert f"mask_type: {mask_type}," in program
    assert f"sliding_window_length: {window}," in program


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
def test_a_gpu_runs_our_kernels_on_every_shard_and_for_several_models_at_once() -> None:
    """Lowered for one that is not here: a length that is no multiple of a block, keys that heads share."""
    models = jax.tree.map(lambda x: jnp.stack([x, x]), texts(164, 4, 2, 16, "bfloat16"))
    rule = Rule(dropout=0.1)

    def run(one: Texts) -> tuple[jax.Array, ...]:
        context, backward = jax.vjp(
            lambda *x: triton_attention(*x, one.mask, rule, one.seed), *one[:3]
        )
        return context, *backward(one.cotangent)

    device = jax.sharding.AbstractDevice("NVIDIA H100", None, "gpu")
    mesh = jax.sharding.AbstractMesh((3,), ("data",), abstract_device=device)
    of_shard = PartitionSpec(None, "data")
    sharded = jax.shard_map(
        jax.vmap(run), mesh=mesh, in_specs=(of_shard,), out_specs=of_shard, check_vma=True
    )
    with jax.sharding.use_abstract_mesh(mesh):
        program = jax.jit(sharded).trace(models).lower(lowering_platforms=("cuda",)).as_text()
    for kernel in ("context", "query", "key"):
        assert f"triton_{kernel}_kernel" in program


def test_layers_of_different_rules_share_a_loop() -> None:
    rules = Rule(causal=True), Rule(causal=True, reach=3, cap=2.0)
    some, which = texts(12, 4, 2, 8), (0, 1, 1)

    def layer(hidden: jax.Array, number: jax.Array) -> tuple[jax.Array, None]:
        branches = [partial(attend, rule) for rule in rules]
        return jax.lax.switch(number, branches, hidden), None

    def attend(rule: Rule, hidden: jax.Array) -> jax.Array:
        return hidden + dense_attention(hidden, some.key, some.value, some.mask, rule)

    @jax.jit
    def looped(hidden: jax.Array) -> jax.Array:
        kept = jax.checkpoint(layer, prevent_cse=False)
        return jnp.vdot(jax.lax.scan(kept, hidden, jnp.array(which))[0], some.cotangent)

    @jax.jit
    def unrolled(hidden: jax.Array) -> jax.Array:
        for number in which:
            hidden = attend(rules[number], hidden)
        return jnp.vdot(hidden, some.cotangent)

    actual, expected = (jax.value_and_grad(f)(some.query) for f in (looped, unrolled))
    assert_equal([*actual], [*expected], 1e-6)


BERT = Asked((Rule(dropout=0.1),), 12, 12, 64, 128, jnp.dtype("bfloat16"))
DECODER = replace(BERT, rules=(Rule(causal=True), Rule(causal=True, reach=511)), length=2048)


@pytest.mark.parametrize(
    ("asked", "platform", "form", "says"),
    [
        (BERT, "tpu", "fused", None),
        (replace(BERT, length=164), "tpu", "fused", None),
        (replace(BERT, rules=(Rule(reach=64),), length=1024), "tpu", "flash", None),
        (replace(BERT, rules=(Rule(reach=127),)), "tpu", "fused", None),
        (replace(DECODER, groups=4, segments=True), "tpu", "flash", None),
        (replace(DECODER, groups=4), "gpu", "cudnn", None),
        (BERT, "gpu", "triton", None),
        (replace(DECODER, segments=True), "gpu", "triton", None),
        (replace(DECODER, rules=(Rule(causal=True, cap=50.0),)), "gpu", "triton", None),
        (replace(DECODER, rules=(Rule(reach=64),)), "gpu", "triton", None),
        (
            replace(BERT, size=80),
            "gpu",
            "dense",
            "drop attention weights.*16, 32, 64, 128 features",
        ),
        (replace(DECODER, size=256), "gpu", "dense", "heads of at most 128"),
        (replace(DECODER, dtype=jnp.dtype("float32")), "gpu", "dense", "in float32"),
        (DECODER, "cpu", "dense", None),
    ],
)
def test_a_machine_takes_its_own_form_if_that_can_do_it(
    asked: Asked, platform: str, form: str, says: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "_capability", lambda: (8, 6))
    chosen, why = choose_attention("auto", asked, platform)
    assert chosen == form
    assert why is None if says is None else re.search(says, str(why))


@pytest.mark.parametrize(
    ("setting", "asked", "platform", "says"),
    [
        ("flash", DECODER, "cpu", "flash, a kernel for TPUs, and this machine computes on cpu"),
        ("cudnn", DECODER, "tpu", "cudnn, a kernel for NVIDIA's GPUs, .* on tpu"),
        ("fused", DECODER, "tpu", "fused, which lets every token read its whole text"),
        ("fused", replace(BERT, length=2048), "tpu", "fused, which .* at most 1024 tokens"),
        ("cudnn", BERT, "gpu", "cudnn, which cannot drop attention weights"),
        ("triton", replace(BERT, size=80), "gpu", "triton, which takes heads of .*, not of 80"),
    ],
)
def test_a_form_that_cannot_do_it_is_refused(
    setting: str, asked: Asked, platform: str, says: str
) -> None:
    with pytest.raises(UserError, match=f"model.attention is {says}.*use auto or dense"):
        choose_attention(setting, asked, platform)


@pytest.mark.parametrize("rate", [0.0, 0.25])
@pytest.mark.parametrize(
    ("attend", "batch", "length", "heads", "size"),
    [
        (fused_attention, 4, 16, 4, 64),
        (fused_attention, 3, 20, 3, 16),
        (fused_attention, 2, 164, 2, 64),
        (triton_attention, 2, 24, 3, 16),
    ],
    ids=[
        "two heads a block",
        "all heads a block",
        "more queries than lanes",
        "a block that is not full",
    ],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("bfloat16", 2e-2)])
def test_the_kernel_is_the_dense_form(
    attend: Attend,
    batch: int,
    length: int,
    heads: int,
    size: int,
    rate: float,
    dtype: str,
    tolerance: float,
) -> None:
    keys = jax.random.split(jax.random.key(0), 5)
    *arrays, cotangent = (
        jax.random.normal(key, (batch, length, heads, size)).astype(dtype) for key in keys[:4]
    )
    mask = jnp.arange(length)[None] < jnp.arange(length, length - batch, -1)[:, None]
    seed = jax.random.bits(keys[4], (batch, 2), jnp.uint32) if rate else None
    results = []
    for attention in (dense_attention, attend):
        context, backward = jax.vjp(
            lambda *x, f=attention: f(*x, mask, Rule(dropout=rate), seed), *arrays
        )
        results.append([context, *backward(cotangent)])
    assert_equal(results[1], results[0], tolerance)


def test_a_text_of_padding_alone_weighs_all_of_its_tokens_alike() -> None:
    """And not those that fill the rows of a register."""
    value = jax.random.normal(jax.random.key(0), (1, 20, 2, 16))
    mask = jnp.zeros((1, 20), bool)
    context = fused_attention(value, value, value, mask, Rule())
    expected = np.broadcast_to(np.mean(value, axis=1, keepdims=True), value.shape)
    np.testing.assert_allclose(context, expected, atol=1e-6)


def test_the_model_runs_on_either_and_on_every_mesh(
    model: LanguageModel, params: Params, batch: Batch
) -> None:
    """Dropout on: shards that hold other texts must draw other bits."""

    def encode(model: LanguageModel, params: Params, batch: Batch) -> jax.Array:
        keys = batch.example_keys(jax.random.key(1))
        mask = model.mask(batch.tokens)
        return model.encode(params, batch.tokens, mask, dropout_keys_B=keys)

    fused = replace(model, attention="fused")
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.shard_map(
        lambda params, batch: encode(fused, params, batch),
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec("data")),
        out_specs=PartitionSpec("data"),
        check_vma=False,  # The interpreter of kernels does not keep to its rules.
    )
    expected = jax.jit(lambda params, batch: encode(model, params, batch))(params, batch)
    real = np.asarray(model.mask(batch.tokens))
    for actual in (
        jax.jit(sharded)(params, batch),
        jax.jit(lambda p, b: encode(fused, p, b))(params, batch),
    ):
        np.testing.assert_allclose(actual[real], expected[real], atol=2e-5)
