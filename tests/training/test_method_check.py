"""What a method's author is told before a mesh tells it."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from das_jax.data.batch import Batch
from das_jax.errors import UserError
from das_jax.methods.contract import Domain, Learned, Memory, Method, Metrics, Moment
from das_jax.methods.das.das import DAS, DASSettings
from das_jax.methods.das.importance import ImportanceSettings
from das_jax.methods.net import Net
from das_jax.model.language_model import Params
from das_jax.objectives.collectives import global_mean, global_sum
from das_jax.training.method_check import check_method


class Small(Method):
    """Pulls the position table towards what the texts say, which compiles in no time."""

    def loss(
        self, net: Net, memory: Memory, batch: Batch, moment: Moment
    ) -> tuple[jax.Array, Metrics]:
        rows_B = batch.tokens.sum(axis=1) * 1e-3 + self.noise(batch, moment.rng)
        table = net.params["embeddings"]["position"]["embedding"]
        data = self.total(jnp.sum(rows_B) * jnp.sum(table))
        penalty = self.penalty(optax.tree.norm({"table": table}, squared=True))
        return data + penalty, {"data": data, "penalty": penalty}

    def noise(self, batch: Batch, rng: jax.Array) -> jax.Array:
        return jax.vmap(jax.random.uniform)(batch.example_keys(rng))

    def total(self, x: jax.Array) -> jax.Array:
        return global_sum(x, self.axis_name)

    def penalty(self, x: jax.Array) -> jax.Array:
        return global_mean(x, self.axis_name)

    def begin(self, learned: Learned, domain: Domain) -> Learned:
        return self.measured(Squares(replace(self, axis_name=None)), learned, domain)

    def measured(self, function: Any, learned: Learned, domain: Domain) -> Learned:
        memory = domain.accumulate(
            function, learned.params, domain.rng, examples=16, batch_size=8, purpose="squares"
        )
        return learned._replace(memory=memory)


@dataclass(frozen=True)
class Squares:
    """The squared gradient of every example, as Fisher information needs it."""

    method: Method

    def __call__(self, params: Params, batch: Batch, rng: jax.Array) -> jax.Array:
        def square(tokens_T: jax.Array, index: jax.Array, weight: jax.Array) -> jax.Array:
            one = Batch(tokens_T[None], index[None], jnp.ones(1))
            moment = Moment(jnp.int32(0), jnp.int32(0), 1, rng)

            def loss(params: Params) -> jax.Array:
                return self.method.loss(Net(self.method.model, params), (), one, moment)[0]

            gradient = jax.grad(loss)(params)
            return weight * optax.tree.norm(gradient, squared=True)

        return jnp.sum(jax.vmap(square)(batch.tokens, batch.index, batch.weight))


class ForgetsGlobalMean(Small):
    def penalty(self, x: jax.Array) -> jax.Array:
        return x


class SumsMeans(Small):
    """The mean over a shard's rows, in place of the mean over all."""

    def total(self, x: jax.Array) -> jax.Array:
        return global_sum(x / 8, self.axis_name) if self.axis_name is None else x_mean(x, self)


def x_mean(x: jax.Array, method: Method) -> jax.Array:
    return global_sum(x, method.axis_name) / 8 * jax.lax.axis_size(method.axis_name)


class DrawsByPlace(Small):
    def noise(self, batch: Batch, rng: jax.Array) -> jax.Array:
        return jax.random.uniform(rng, batch.index.shape)


class AccumulatesTheMeshsLoss(Small):
    def begin(self, learned: Learned, domain: Domain) -> Learned:
        return self.measured(Squares(self), learned, domain)


class CountsDevices(Small):
    def begin(self, learned: Learned, domain: Domain) -> Learned:
        return self.measured(lambda params, batch, rng: jnp.ones(()), learned, domain)


class MeasuresParameters(Small):
    def end(self, learned: Learned, domain: Domain) -> Learned:
        return self.measured(
            lambda params, batch, rng: params["lm_head"]["bias"] + 1.0, learned, domain
        )


def test_a_method_that_is_right() -> None:
    check_method(Small, None)


@pytest.mark.slow
def test_das_is_right() -> None:
    importance = ImportanceSettings(examples=16, batch_size=8)
    check_method(DAS, DASSettings(importance=importance))


WRONG = [
    (ForgetsGlobalMean, TypeError, "ForgetsGlobalMean.loss returns a 'loss' .* global_mean"),
    (SumsMeans, AssertionError, r"the step's data depends on the number of devices"),
    (DrawsByPlace, AssertionError, r"the step's data depends on .* Batch\.example_keys"),
    (
        AccumulatesTheMeshsLoss,
        TypeError,
        r"Squares, which Domain.accumulate sums, exchanges numbers",
    ),
    (CountsDevices, TypeError, "returns something that does not depend on its rows"),
    (MeasuresParameters, AssertionError, "the memory after end: depends on the number"),
]


@pytest.mark.parametrize(("method", "error", "said"), WRONG)
def test_methods_that_are_wrong(method: type[Method], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        check_method(method, None)


def test_more_devices_than_there_are() -> None:
    with pytest.raises(UserError, match="asks for 9 devices"):
        check_method(Small, None, devices=9)
