"""Grafts with gates, against arrays made by an independent float64 implementation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from das_jax.methods.contract import Moment, Place
from das_jax.methods.cpt import CPT
from das_jax.methods.gated_graft import GatedGraft
from das_jax.methods.hard_attention import Gates, HATMemory
from das_jax.methods.hat_adapter import HATAdapter
from das_jax.methods.net import Net
from das_jax.methods.settings.gates import CPTSettings, HATAdapterSettings
from das_jax.model.grafts.gates import SITES
from das_jax.model.language_model import Params
from tests.golden_case import Case

MOMENT = Moment(jnp.int32(1), jnp.int32(0), 10, jax.random.key(0))
SMAX = 400.0


class Family(NamedTuple):
    """A method and how the archive names the parts of its nets and its units."""

    method: type[GatedGraft]
    settings: Any
    names: dict[str, str]


FAMILIES = {
    "hat_adapter": Family(
        HATAdapter,
        HATAdapterSettings(bottleneck=6, smax=SMAX),
        {"down": "down", "up": "up", "inner": "bottleneck", "output": "output"},
    ),
    "cpt": Family(
        CPT,
        CPTSettings(attention=7, feed_forward=9, smax=SMAX),
        {"down": "first", "up": "second", "inner": "first", "output": "second"},
    ),
}


class GatedCase(NamedTuple):
    """A method with a slope of its own, and the archive's numbers in its form."""

    case: Case
    family: Case
    method: GatedGraft
    names: dict[str, str]

    def stacked(self, name: str) -> jax.Array:
        """Of all layers; {} is the number of one."""
        arrays, layers = self.family.arrays, range(self.case.model.architecture.num_layers)
        parts = [arrays[name.format(layer)] for layer in layers]
        return jnp.asarray(np.stack(parts), self.case.dtype)

    def units(self, name: str) -> Gates:
        return {
            f"{site}_{unit}": self.stacked(f"{name}.layer.{{}}.{site}.{self.names[unit]}")
            for site in SITES
            for unit in ("inner", "output")
        }

    def nets(self, name: str) -> Params:
        """As the parameters of a graft are."""

        def matrices(site: str, part: str) -> Params:
            prefix = f"{name}.layer.{{}}.{site}.{self.names[part]}"
            kernel = self.stacked(f"{prefix}.weight").swapaxes(1, 2)
            return {"kernel": kernel, "bias": self.stacked(f"{prefix}.bias")}

        return {site: {part: matrices(site, part) for part in ("down", "up")} for site in SITES}

    @property
    def params(self) -> Params:
        graft = {**self.nets("weights"), "embedding": self.units("embedding")}
        return {**self.case.params, "graft": graft}

    @property
    def memory(self) -> HATMemory:
        return HATMemory(self.units("accumulated"), {})

    def net(self, params: Params) -> Net:
        return Net(self.method.plan(Place(1, ("second",), (8,))).model, params)

    def hidden(self, net: Net) -> jax.Array:
        return net.encode(self.case.drawn("a.").text)

    def assert_hidden(self, hidden: Any, name: str) -> None:
        real = self.case.arrays["a.attention_mask"] == 1
        self.case.assert_close(hidden[real], self.family.arrays[name][real], 1e-5, name)

    def assert_trees(self, actual: Params, expected: Params, tolerance: float, name: str) -> None:
        actual, expected = (flatten_dict(tree, sep="/") for tree in (actual, expected))
        assert set(actual) == set(expected)
        for path, value in expected.items():
            self.case.assert_close(actual[path], value, tolerance, f"{name} {path}")


@pytest.fixture(params=FAMILIES)
def gated_case(system_case: Case, request: pytest.FixtureRequest) -> GatedCase:
    method, settings, names = FAMILIES[request.param]
    family = system_case.of(request.param)
    fixed = type("Fixed", (method,), {"slope": lambda self, moment: float(family.arrays["s"])})
    return GatedCase(
        system_case, family, fixed(system_case.model, system_case.undrawn, settings), names
    )


def test_loss_and_gradients_through_gates(gated_case: GatedCase) -> None:
    case, family, method = gated_case.case, gated_case.family, gated_case.method
    drawn = case.drawn("a.")
    params = gated_case.params

    def loss_of(graft: Params) -> Any:
        net = gated_case.net({**params, "graft": graft})
        return method.loss_of(net, gated_case.memory, drawn, MOMENT, None)

    @jax.jit
    def computed(graft: Params) -> Any:
        plain = gated_case.net({**params, "graft": graft})
        learning, _ = method.gated(plain, MOMENT)
        served = method.through(plain, method.served(graft["embedding"]))
        hidden = [gated_case.hidden(net) for net in (learning, served)]
        return jax.value_and_grad(loss_of, has_aux=True)(graft), hidden

    ((_, parts), gradient), (hidden, served) = computed(params["graft"])
    gated_case.assert_hidden(hidden, "hidden")
    if "served_hidden" in family.arrays:
        gated_case.assert_hidden(served, "served_hidden")
    case.assert_close(parts["masked_lm"], family.arrays["mlm"], 1e-5, "mlm")
    if "regulariser" in family.arrays:
        case.assert_close(parts["regulariser"], family.arrays["regulariser"], 1e-5, "regulariser")
    slope = float(family.arrays["s"])

    def as_autodiff(compensated: jax.Array, e: jax.Array) -> jax.Array:
        """The archive's are not compensated, and no gate here is saturated."""
        sigmoid = jax.nn.sigmoid
        plain = slope * sigmoid(slope * e) * sigmoid(-slope * e)
        return compensated * plain / (SMAX * sigmoid(e) * sigmoid(-e))

    of_e = jax.tree.map(as_autodiff, gradient.pop("embedding"), gated_case.units("embedding"))
    gated_case.assert_trees(gradient, gated_case.nets("grad"), 1e-4, "gradient")
    gated_case.assert_trees(of_e, gated_case.units("embedding_grad"), 1e-4, "gradient of e")


def test_what_scales_an_update(gated_case: GatedCase) -> None:
    ones = {"graft": jax.tree.map(jnp.ones_like, gated_case.params["graft"])}
    scale = gated_case.method.transforms(gated_case.memory, MOMENT).update
    scaled, _ = scale.update(ones, scale.init(ones))
    for e in scaled["graft"].pop("embedding").values():
        assert (e == 1).all()
    gated_case.assert_trees(scaled["graft"], gated_case.nets("scale"), 1e-6, "scale")
