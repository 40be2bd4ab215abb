"""B-CL's adapters against arrays of an independent float64 implementation; see tests/golden/README.md."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from das_jax.data.masking import Masking
from das_jax.methods.bcl import BCL
from das_jax.methods.contract import Place
from das_jax.methods.hard_attention import gates_of
from das_jax.methods.net import Net
from das_jax.methods.settings.gates import BCLSettings
from das_jax.model.grafts.capsules import routed, shared_knowledge, task_capsules, votes
from das_jax.model.grafts.gates import SITES
from das_jax.model.language_model import Params
from tests.golden_case import Case

PARTS = {"weight": "kernel", "bias": "bias"}


def capsule(case: Case, family: Case, site: str, domain: int) -> Params:
    """Those of a domain, in every layer."""
    layers = range(case.model.architecture.num_layers)

    def stacked(name: str) -> jax.Array:
        parts = [family.arrays[f"weights.layer.{layer}.{site}.{name}"] for layer in layers]
        return jnp.asarray(np.stack(parts), case.dtype)

    def dense(name: str) -> Params:
        return {
            "kernel": stacked(f"{name}.weight")[:, domain].swapaxes(-1, -2),
            "bias": stacked(f"{name}.bias")[:, domain],
        }

    own = {name: dense(name) for name in ("first", "second", "expand")}
    return {**own, "route": {"kernel": stacked("route")[:, :, domain]}}


def task(case: Case, family: Case, site: str) -> Params:
    layers = range(case.model.architecture.num_layers)

    def stacked(name: str) -> jax.Array:
        parts = [family.arrays[f"weights.layer.{layer}.{site}.task.{name}"] for layer in layers]
        return jnp.asarray(np.stack(parts), case.dtype)

    return {
        part: {
            "kernel": stacked(f"{name}.weight").swapaxes(-1, -2),
            "bias": stacked(f"{name}.bias"),
        }
        for part, name in {"down": "first", "up": "second"}.items()
    }


def test_capsules_and_their_routing(system_case: Case) -> None:
    case, family = system_case, system_case.of("bcl")
    domains, used = int(family.arrays["domains"]), int(family.arrays["domain"]) + 1
    every = [
        jax.tree.map(lambda x: x[0], capsule(case, family, "attention", k)) for k in range(domains)
    ]
    read = family.array("capsules.input")

    def close(tokens_last: Any, name: str) -> None:
        actual = np.moveaxis(np.asarray(tokens_last), (-2, -1), (0, 1))
        case.assert_close(actual, family.arrays[f"capsules.{name}"], 1e-5, name)

    own = task_capsules(every, read)
    close(own, "task_capsules")
    cast = votes(every, own)
    close(cast.swapaxes(0, 1), "votes")
    close(routed(cast[:used]), "shared")
    output = shared_knowledge(every[:used], read)
    case.assert_close(output, family.arrays["capsules.output"], 1e-5, "output")


def test_hidden_states_behind_capsules_and_gates(system_case: Case) -> None:
    """Domains that have not begun have capsules in the archive, and are not seen."""
    case, family = system_case, system_case.of("bcl")
    domain, s = int(family.arrays["domain"]), float(family.arrays["s"])
    method = BCL(
        case.model,
        Masking(mask_token=0, special_tokens=(), vocab_size=1),
        BCLSettings(bottleneck=6, features=6),
    )
    layers = range(case.model.architecture.num_layers)
    embedding = {
        f"{site}_{unit}": jnp.asarray(
            np.stack([family.arrays[f"embedding.layer.{n}.{site}.{name}"] for n in layers]),
            case.dtype,
        )
        for site in SITES
        for unit, name in {"inner": "first", "output": "second"}.items()
    }
    graft = {
        site: {
            "task": task(case, family, site),
            "capsules": {
                str(k): capsule(case, family, site, k) for k in range(int(family.arrays["domains"]))
            },
        }
        for site in SITES
    }
    net = Net(
        method.plan(Place(domain, ("third",), (8,))).model,
        {**case.params, "graft": {**graft, "embedding": embedding}},
    )
    net = method.through(net, gates_of(embedding, s, s))
    text = case.drawn("a.").text
    hidden = jax.jit(net.encode)(text)
    real = np.asarray(text.mask)
    case.assert_close(hidden[real], family.arrays["hidden"][real], 1e-5, "hidden")
