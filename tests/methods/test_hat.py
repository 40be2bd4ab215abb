"""What HAT promises: used units stay as they are, gates can close again, and a domain keeps its own."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
import pytest

from das_jax.data.batch import Batch
from das_jax.data.objective import HiddenTokens, Text
from das_jax.methods.contract import Learned, Moment, Place
from das_jax.methods.hard_attention import Gates, HATMemory, gate, gates_of, regulariser
from das_jax.methods.hat import HAT, HATSettings
from das_jax.methods.net import Net
from das_jax.model.grafts.graft import without_graft
from das_jax.model.language_model import LanguageModel, Params
from das_jax.model.plain import plain_params
from das_jax.model.units import Units, full_units, parameter_paths, unit_shapes
from das_jax.training.optimizer import Optimizer, adamw
from das_jax.training.sharding import Sharding, make_sharding
from das_jax.training.step import Recipe, compile_train_step, first_state

BINARY = 6.0
"""|e| whose gate at smax is 0 or 1 in float32."""


@dataclass
class FakeDomain:
    """All that HAT asks of one."""

    rng: jax.Array


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("s_e", [0.1, 16, 17, 37, 50, 60, 90])
def test_the_derivative_of_a_gate_in_both_tails(sign: int, s_e: float) -> None:
    """The product of the paper in float64, where nothing in it rounds to zero."""
    smax = 400.0
    e = np.array([sign * 0.2, sign * 1.0, sign * 5.5])
    s = s_e / np.abs(e)
    cosh = np.cosh(np.clip(s * e, -50, 50))
    slope = s / ((1 + np.exp(-s * e)) * (1 + np.exp(s * e)))
    expected = slope * (smax / s) * (cosh + 1) / (np.cosh(e) + 1)
    derivative = jax.vmap(jax.grad(gate), in_axes=(0, 0, None))
    found = derivative(jnp.float32(e), jnp.float32(s), smax)
    np.testing.assert_allclose(found, expected, rtol=3e-5)
    assert (found > 0).all()


def test_a_gate_far_beyond_saturation_rests() -> None:
    for e in (-6.0, 6.0):
        assert jax.grad(gate)(e, 400.0, 400.0) == 0


def test_regulariser_where_nothing_is_free(model: LanguageModel) -> None:
    ones, zeros = (full_units(model.architecture, value)._asdict() for value in (1.0, 0.0))
    value, gradient = jax.value_and_grad(regulariser)(ones, ones)
    assert value == 0
    assert all((x == 0).all() for x in gradient.values())
    assert regulariser(ones, zeros) == pytest.approx(1)


@pytest.mark.parametrize(
    ("steps", "lengths"),
    [(9, (3, 3, 3)), (8, (2, 3, 3)), (7, (2, 2, 3)), (4, (1, 1, 2)), (3, (1, 1, 1)), (2, (1, 1))],
)
def test_the_slope_rises_once_in_every_cycle(
    model: LanguageModel, objective: HiddenTokens, steps: int, lengths: tuple[int, ...]
) -> None:
    smax = 50.0
    method = HAT(model, objective, HATSettings(smax=smax, cycles=3))
    found = [
        method.slope(Moment(jnp.int32(0), jnp.int32(step), steps, jax.random.key(0)))
        for step in range(steps)
    ]
    cycles = [np.linspace(1 / smax, smax, length) if length > 1 else [smax] for length in lengths]
    np.testing.assert_allclose(found, np.concatenate(cycles), rtol=1e-6)


def random_embedding(model: LanguageModel, seed: int, binary: bool = False) -> dict[str, jax.Array]:
    keys = jax.random.split(jax.random.key(seed), len(Units._fields))
    drawn = {
        kind: jax.random.normal(key, shape)
        for key, (kind, shape) in zip(keys, unit_shapes(model.architecture).items(), strict=True)
    }
    return jax.tree.map(lambda e: BINARY * jnp.sign(e), drawn) if binary else drawn


@functools.cache
def _step(recipe: Recipe, sharding: Sharding) -> Any:
    return compile_train_step(recipe, sharding)


def learn(
    method: HAT, params: Params, accumulated: Gates, batch: Batch, steps: int = 3
) -> tuple[list[dict[str, float]], Params]:
    """The second domain: metrics of every step, and the parameters after the last."""
    sharding = make_sharding(1)
    plan = method.plan(Place(1, ("second",), (8,)))
    # Adam turns rounding noise around zero into steps unless epsilon is larger than the noise.
    optimizer = Optimizer(adamw(0.9, 0.999, 1e-4, 0.1, plan.decays), _rate)
    recipe = Recipe(method, plan, optimizer, steps)
    start = {**params, "graft": {"embedding": random_embedding(method.model, 7)}}
    memory = HATMemory(
        accumulated, full_units(method.model.architecture, 0.0, leading=(2,))._asdict()
    )
    rng = sharding.replicate(jax.random.key(3))
    state = first_state(recipe, sharding, start, memory, rng, domain=1)
    rows = []
    for _ in range(steps):
        state, metrics = _step(recipe, sharding)(state, sharding.shard_batch(batch))
        rows.append({name: float(value) for name, value in metrics.items()})
        batch = batch._replace(index=batch.index + 8)
    return rows, sharding.fetch(state.params)


def _rate(step: jax.Array) -> float:
    return 1e-2


def logits(net: Net, batch: Batch) -> np.ndarray:
    @jax.jit
    def run(params: Params) -> jax.Array:
        each = net._replace(params=params)
        text = Text(batch.tokens, each.model.mask(batch.tokens))
        return each.model.logits(params, each.encode(text))

    return np.asarray(run(net.params))


def is_norm(path: str) -> bool:
    """Whether a parameter is of a LayerNorm of the encoder."""
    return "layer_norm" in path and not path.startswith("lm_head/")


@pytest.mark.parametrize("shared", ["frozen", "per_domain", "train"])
def test_what_a_domain_used_stays_as_it_was(
    model: LanguageModel, objective: HiddenTokens, params: Params, batch: Batch, shared: Any
) -> None:
    method = HAT(model, objective, HATSettings(shared=shared), "data")
    own = gates_of(random_embedding(model, 5, binary=True), 400, 400)
    assert {float(x) for kind in own.values() for x in kind.ravel()} == {0, 1}
    _, after = learn(method, params, own, batch)
    rows = {kind: jnp.stack([e, -e]) for kind, e in random_embedding(model, 5, binary=True).items()}
    history: Any = FakeHistory(
        (("first",), ("second",)),
        Learned(after, HATMemory(own, rows)),
        model,
        nets=[Net(model, params), Net(model, without_graft(after))],
    )
    net: Any = method.view(history, "first", history)
    jax.tree.map(np.testing.assert_array_equal, net.gates._asdict(), own)
    before, now = (logits(each, batch) for each in (Net(model, params, Units(**own)), net))
    newest = logits(net._replace(params=without_graft(after)), batch)
    if shared == "train":
        assert np.abs(now - before).max() > 1e-3
        return
    np.testing.assert_array_equal(now, before)
    assert (np.abs(newest - before).max() > 1e-3) == (shared == "per_domain")
    moved = {
        path
        for path, old, new in zip(
            parameter_paths(params),
            *map(jax.tree.leaves, (params, without_graft(after))),
            strict=True,
        )
        if (old != new).any()
    }
    assert moved == {
        path
        for path in parameter_paths(params)
        if (
            shared == "per_domain"
            if is_norm(path)
            else path.startswith("layers/") and path != "layers/attention/output/bias"
        )
    }


def test_the_gradient_of_what_domains_keep_is_whole(
    model: LanguageModel, objective: HiddenTokens, params: Params
) -> None:
    """And that of what else no gate protects is nothing, from the second domain on."""
    method = HAT(model, objective, HATSettings(shared="per_domain", apply_to="gradient"))
    ones = jax.tree.map(jnp.ones_like, params)
    for number in range(2):
        moment = Moment(jnp.int32(number), jnp.int32(0), 3, jax.random.key(0))
        scale = method.transforms(method.init(params), moment).gradient
        scaled, _ = scale.update(ones, scale.init(ones))
        for path, x in zip(parameter_paths(scaled), jax.tree.leaves(scaled), strict=True):
            own = is_norm(path) or (
                path.startswith("layers/") and "attention/output/bias" not in path
            )
            assert (x == (1 if own else 1 - number)).all(), path


def test_with_every_unit_used_only_e_moves(
    model: LanguageModel, objective: HiddenTokens, params: Params, batch: Batch
) -> None:
    method = HAT(model, objective, HATSettings(), "data")
    used = full_units(model.architecture, 1.0)._asdict()
    rows, after = learn(method, params, used, batch)
    jax.tree.map(np.testing.assert_array_equal, without_graft(after), jax.device_get(params))
    for kind, e in random_embedding(model, 7).items():
        assert (after["graft"]["embedding"][kind] != e).mean() > 0.9
    assert [row["regulariser"] for row in rows] == [0, 0, 0]


@dataclass
class FakeHistory:
    """Stages, the last one's state, and by how much each net fits the text at hand."""

    domains: tuple[tuple[str, ...], ...]
    last: Learned
    model: LanguageModel
    fits: Sequence[float] = ()
    nets: Sequence[Net] = ()

    def base(self) -> Net:
        return Net(self.model, {"base": jnp.zeros(1)})

    def net(self, stage: int) -> Net:
        assert self.nets, "an earlier stage's parameters do not serve"
        return self.nets[stage]

    def learned(self, stage: int) -> Learned:
        assert stage == -1
        return self.last

    def losses(self, nets: Sequence[Net]) -> list[float]:
        assert "base" in nets[0].params
        return [*self.fits]


def test_domains_keep_their_gates_and_share_the_newest_parameters(
    model: LanguageModel, objective: HiddenTokens, params: Params
) -> None:
    method = HAT(model, objective, HATSettings(init="open"))
    learned, embeddings = Learned(params, method.init(params)), []
    for number in range(2):
        learned = method.begin(learned, FakeDomain(jax.random.key(number)))  # type: ignore[arg-type]
        drawn = learned.params["graft"]["embedding"]
        assert all((e >= 0).all() for e in drawn.values())
        # Training moves them.
        embedding = jax.tree.map(lambda e, n=number: jnp.roll(e, 1) - n, drawn)
        learned = learned._replace(params={**params, "graft": {"embedding": embedding}})
        learned = method.end(learned, FakeDomain(jax.random.key(number)))  # type: ignore[arg-type]
        embeddings.append(embedding)
    gates = [gates_of(embedding, 400, 400) for embedding in embeddings]
    for kind in Units._fields:
        values = [each[kind] for each in gates]
        assert (values[0] != values[1]).any()
        accumulated = learned.memory.accumulated[kind]
        np.testing.assert_array_equal(accumulated, np.maximum(*values))
    latest = jax.tree.map(lambda x: x + 1, params)
    learned = learned._replace(params={**latest, "graft": learned.params["graft"]})
    names = (("first",), ("second",))

    def same(net: Any, stage: int) -> None:
        jax.tree.map(np.testing.assert_array_equal, without_graft(net.params), latest)
        jax.tree.map(np.testing.assert_array_equal, net.gates._asdict(), gates[stage])

    def view(domain: str | None, fits: Sequence[float] = ()) -> Any:
        history: Any = FakeHistory(names, learned, model, fits)
        return method.view(history, domain, history)

    same(view("first"), 0)
    same(view("second"), 1)
    same(method.net(learned, method.plan(Place(1, ("second",), (8,)))), 1)
    same(view("third", [1, 0.5, 0.7]), 0)
    same(view(None, [1, 0.5, 0.5]), 1)
    assert "base" in view("third", [0.4, 0.5, 0.7]).params


def test_the_whole_network_serves_if_it_is_to(
    model: LanguageModel, objective: HiddenTokens, params: Params, batch: Batch
) -> None:
    """One model, the last, for all texts, and plain as it is."""
    method = HAT(model, objective, HATSettings(serve="all"))
    learned = Learned({**params, "graft": {"embedding": random_embedding(model, 1)}}, None)
    net = method.net(learned, method.plan(Place(0, ("first",), (8,))))
    assert net.gates is None
    assert without_graft(net.params) == params
    exported = plain_params(net.model, net.params, net.gates)
    assert exported == params
    open_gates = Net(model, params, full_units(model.architecture, 1.0))
    np.testing.assert_array_equal(logits(net, batch), logits(open_gates, batch))

    class History:
        domains = (("first",), ("second",))

        def net(self, stage: int) -> str:
            return f"net {stage}"

    history: Any = History()
    for domain in ("first", "second", "unknown", None):
        assert method.view(history, domain, history) == "net -1"


@pytest.mark.parametrize(
    "wrong", [{"smax": 0.5}, {"cycles": 0}, {"regularisation": -1}, {"init": "closed"}, {"clip": 0}]
)
def test_options_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError, match=next(iter(wrong))):
        HATSettings(**wrong)
