"""B-CL's adapters: knowledge shared by dynamic routing between capsules, and a net for what is a domain's own
(Ke et al., Adapting BERT for Continual Learning of a Sequence of Aspect Sentiment Classification Tasks, NAACL
2021; routing is Sabour et al.'s, NeurIPS 2017).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from das_jax.errors import UserError
from das_jax.model.activations import ACTIVATIONS
from das_jax.model.architecture import Architecture
from das_jax.model.dense import product
from das_jax.model.grafts.adapter import bottleneck
from das_jax.model.grafts.gates import SITES, net_leaves
from das_jax.model.grafts.graft import Graft, Params
from das_jax.model.grafts.plugins import STANDARD_DEVIATION, two_layers
from das_jax.model.leaves import Leaf, Leaves
from das_jax.precision import at_least_float32

SHARED, SIZE, ROUNDS = 3, 3, 3
"""J capsules of what is shared, C numbers in every capsule, and rounds of routing."""

TINY = 1e-30


@dataclass(frozen=True)
class Capsules(Graft):
    """z + relu(U relu(D z' + b) + b') in place of both sub-layers' outputs z, before their residual sums;
    z' = z + what the domains' capsules agree on, of every token by itself.

    Attributes:
      bottleneck: features between D and U.
      features: between the two maps from z to a domain's capsule.
      domains: K, how many have capsules; the last one's expand what is shared.
    """

    bottleneck: int = 64
    features: int = 100
    domains: int = 1

    def check(self, architecture: Architecture) -> None:
        if min(self.bottleneck, self.features, self.domains) < 1:
            raise UserError(
                "a bottleneck and capsules have at least 1 feature, and capsules 1 domain"
            )

    def init(self, architecture: Architecture, key: jax.Array, base: Params) -> Params:
        """A domain's capsules depend on the key and its number alone."""

        def place(key: jax.Array) -> Params:
            keys = [jax.random.fold_in(key, number) for number in range(self.domains + 1)]
            capsules = {
                str(k): self._capsule(keys[k + 1], architecture) for k in range(self.domains)
            }
            return {
                "task": two_layers(keys[0], architecture, self.bottleneck),
                "capsules": capsules,
            }

        keys = jax.random.split(key, len(SITES))
        return {site: place(key) for site, key in zip(SITES, keys, strict=True)}

    def _capsule(self, key: jax.Array, architecture: Architecture) -> Params:
        """Maps to the capsule uniform within 1 / sqrt(in), votes N(0, 1), what expands N(0, 0.02^2)."""
        layers, wide, narrow = architecture.num_layers, architecture.hidden_size, self.features
        keys = jax.random.split(key, 4)

        def uniform(key: jax.Array, inputs: int, outputs: int) -> Params:
            bound = 1 / math.sqrt(inputs)
            kernel = jax.random.uniform(key, (layers, inputs, outputs), minval=-bound, maxval=bound)
            return {"kernel": kernel, "bias": jnp.zeros((layers, outputs))}

        expand = STANDARD_DEVIATION * jax.random.normal(keys[3], (layers, SHARED * SIZE, wide))
        return {
            "first": uniform(keys[0], wide, narrow),
            "second": uniform(keys[1], narrow, SIZE),
            "route": {"kernel": jax.random.normal(keys[2], (layers, SHARED, SIZE, SIZE))},
            "expand": {"kernel": expand, "bias": jnp.zeros((layers, wide))},
        }

    def at(self, site: str, params: Params, input: jax.Array, output: jax.Array) -> jax.Array:
        if site not in SITES:
            return output
        own = params[site]
        capsules = [own["capsules"][str(number)] for number in range(self.domains)]
        read = output + shared_knowledge(capsules, output)
        return output + ACTIVATIONS["relu"](bottleneck(own["task"], read, "relu"))

    def leaves(self) -> Leaves:
        """Letters: M features, C and J as above. What is no product with the text has no arrow."""
        return tuple(
            leaf
            for site in SITES
            for leaf in (
                *net_leaves(site, "task/"),
                *(leaf for k in range(self.domains) for leaf in self._leaves(site, k)),
            )
        )

    def _leaves(self, site: str, number: int) -> Leaves:
        path = f"graft/{site}/capsules/{number}"
        used = number == self.domains - 1
        return (
            Leaf(f"{path}/first/kernel", "LDM"),
            Leaf(f"{path}/first/bias", "LM"),
            Leaf(f"{path}/second/kernel", "LMC"),
            Leaf(f"{path}/second/bias", "LC"),
            Leaf(f"{path}/route/kernel", "LJCC"),
            Leaf(f"{path}/expand/kernel", "LC->D" if used else "LCD"),
            Leaf(f"{path}/expand/bias", "LD"),
        )


def shared_knowledge(capsules: Sequence[Params], hidden_BxTxD: jax.Array) -> jax.Array:
    """What the capsules of all domains agree on, expanded by those of the last, [B, T, D]."""
    votes_KxJxCxBxT = votes(capsules, task_capsules(capsules, hidden_BxTxD))
    shared_JxCxBxT = routed(votes_KxJxCxBxT)
    count, length = hidden_BxTxD.shape[:2]
    shared_BxTxJC = jnp.moveaxis(shared_JxCxBxT.reshape(-1, count, length), 0, -1)
    expand = capsules[-1]["expand"]
    expanded_BxTxD = product(shared_BxTxJC.astype(hidden_BxTxD.dtype), expand["kernel"])
    return expanded_BxTxD + expand["bias"].astype(hidden_BxTxD.dtype)[None, None]


def task_capsules(capsules: Sequence[Params], hidden_BxTxD: jax.Array) -> jax.Array:
    """squash(second_k(first_k(z))), [K, C, B, T]: tokens last, as a device has no use for so short an axis.

    Both maps are one, as nothing is between them; it is made first, which costs next to nothing.
    """

    def together(capsule: Params) -> tuple[jax.Array, jax.Array]:
        first, second = capsule["first"], capsule["second"]
        wide = at_least_float32(second["kernel"])
        kernel = jnp.matmul(
            at_least_float32(first["kernel"]), wide, precision=jax.lax.Precision.HIGHEST
        )
        bias = jnp.matmul(first["bias"], wide, precision=jax.lax.Precision.HIGHEST)
        return kernel, bias + second["bias"]

    kernels, biases = zip(*map(together, capsules), strict=True)
    kernel_DxKC = jnp.concatenate(kernels, axis=1).astype(hidden_BxTxD.dtype)
    read_BxTxKC = at_least_float32(product(hidden_BxTxD, kernel_DxKC))
    read_BxTxKC = read_BxTxKC + jnp.concatenate(biases)[None, None]
    read_KCxBxT = jnp.moveaxis(read_BxTxKC, -1, 0)
    return squash(read_KCxBxT.reshape(len(capsules), SIZE, *read_KCxBxT.shape[1:]), axis=1)


def votes(capsules: Sequence[Params], own_KxCxBxT: jax.Array) -> jax.Array:
    """u_jk = p_k W_jk, [K, J, C, B, T]."""
    route_KxJxCxC = jnp.stack([at_least_float32(each["route"]["kernel"]) for each in capsules])
    return jnp.einsum("kjio,kibt->kjobt", route_KxJxCxC, own_KxCxBxT)


def routed(votes_KxJxCxBxT: jax.Array) -> jax.Array:
    """s_j of the last round, [J, C, B, T], with gradients through all of them; in every round

    c_jk = softmax over k of b_jk (0 at first),    s_j = sum_k c_jk u_jk,    b_jk += u_jk . squash(s_j).
    """
    logits_KxJxBxT = jnp.zeros_like(votes_KxJxCxBxT[:, :, 0])
    for last in (*[False] * (ROUNDS - 1), True):
        coupling_KxJxBxT = jax.nn.softmax(logits_KxJxBxT, axis=0)
        shared_JxCxBxT = jnp.sum(coupling_KxJxBxT[:, :, None] * votes_KxJxCxBxT, axis=0)
        if not last:
            agreed_KxJxBxT = jnp.sum(votes_KxJxCxBxT * squash(shared_JxCxBxT, axis=1)[None], axis=2)
            logits_KxJxBxT = logits_KxJxBxT + agreed_KxJxBxT
    return shared_JxCxBxT


def squash(x: jax.Array, axis: int) -> jax.Array:
    """|v|^2 / (1 + |v|^2) v / |v|, of vectors along an axis."""
    square = jnp.sum(jnp.square(x), axis=axis, keepdims=True)
    return x * jnp.sqrt(square + TINY) / (1 + square)
