"""The mathematics of grafts, against arrays made by an independent float64 implementation.

Tolerances as in test_golden.py, relative to an array's largest entry.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from das_jax.model.grafts.adapter import Adapter
from das_jax.model.grafts.blocks import Blocks
from das_jax.model.grafts.graft import Graft
from das_jax.model.grafts.lora import TARGETS, LoRA
from das_jax.model.grafts.olora import OLoRA, overlap
from das_jax.model.grafts.prompt import Prompt
from das_jax.model.huggingface_weights import table
from das_jax.model.language_model import Params
from das_jax.model.leaves import transformer_leaves
from das_jax.objectives.masked_lm_loss import masked_lm_loss
from tests.golden_case import Case

PARALLEL = Adapter(form="parallel", scale=4.0)


def computing(case: Case, graft: Graft) -> Callable[..., tuple[Any, Any, Params]]:
    """A function of all parameters and of some of them that are trained: the hidden state at real tokens, MLM
    and its gradient for these.
    """
    model, masked = replace(case.model, graft=graft), case.masked("a.")
    mask = case.array("a.attention_mask")

    def loss(trained: Params, params: Params) -> Any:
        hidden = model.encode({**params, **trained}, masked.tokens, mask)
        logits = model.logits(params, hidden, masked.positions)
        return masked_lm_loss(logits, masked.labels, masked.weights), hidden

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))

    def compute(params: Params, *trained: str) -> tuple[Any, Any, Params]:
        (loss, hidden), gradient = run({name: params[name] for name in trained}, params)
        return np.asarray(hidden)[np.asarray(mask) == 1], loss, gradient

    return compute


def assert_outputs(case: Case, family: Case, prefix: str, hidden: Any, loss: Any = None) -> None:
    real = case.arrays["a.attention_mask"] == 1
    family.assert_close(hidden, family.arrays[f"{prefix}hidden"][real], 1e-5, f"{prefix}hidden")
    if loss is not None:
        family.assert_close(loss, family.arrays[f"{prefix}mlm"], 1e-5, f"{prefix}mlm")


def stacked(arrays: Iterable[np.ndarray], case: Case) -> jax.Array:
    return jnp.asarray(np.stack(list(arrays)), case.dtype)


@pytest.mark.parametrize("graft", [Adapter(), Adapter(form="pfeiffer"), PARALLEL], ids=str)
def test_adapters(system_case: Case, graft: Adapter) -> None:
    case, family = system_case, system_case.of("adapters")
    graft = replace(graft, bottleneck=case.arguments["bottleneck"])
    layers = range(case.model.architecture.num_layers)

    def weights(site: str, part: str, kind: str) -> jax.Array:
        name = f"{graft.form}.weights.layer.{{}}.{site}.{part}.{kind}"
        return stacked((family.arrays[name.format(layer)].T for layer in layers), case)

    tree = {
        site: {
            part: {"kernel": weights(site, part, "weight"), "bias": weights(site, part, "bias")}
            for part in ("down", "up")
        }
        for site in graft.traits.sites
    }
    hidden, loss, gradient = computing(case, graft)(
        {**case.params, "graft": tree}, "graft", *(["layers"] if graft.traits.norms else [])
    )
    assert_outputs(case, family, f"{graft.form}.", hidden, loss)
    tensors = {
        f"layer.{layer}.{site}.{part}.{'weight' if leaf == 'kernel' else leaf}": value[layer].T
        for site, parts in gradient["graft"].items()
        for part, leaves in parts.items()
        for leaf, value in leaves.items()
        for layer in layers
    }
    family.assert_tensors_close(tensors, f"{graft.form}.grad.")
    if not graft.traits.norms:
        return
    norms = {
        name: value
        for name, value in case.tensors({**case.params, "layers": gradient["layers"]}).items()
        if ".layer." in name and "LayerNorm" in name
    }
    family.assert_tensors_close(norms, "houlsby.layer_norm_grad.")


@pytest.mark.parametrize("targets", ["qv", "all"])
def test_lora(system_case: Case, targets: str) -> None:
    case, family = system_case, system_case.of("lora")
    architecture, rank = case.model.architecture, case.arguments["rank"]
    layers = range(architecture.num_layers)
    sites = (
        ("query", "value") if targets == "qv" else tuple(site for site in TARGETS if site != "gate")
    )
    graft = LoRA(rank, float(family.arrays["scaling"]) * rank, sites)
    modules = {site: huggingface_module(case, site) for site in sites}
    start = graft.init(architecture, jax.random.key(0), case.params)

    def matrix(site: str, part: str, letter: str) -> jax.Array:
        name = f"{targets}.weights.{modules[site]}.lora_{letter}"
        flat = stacked((family.arrays[name.format(layer)].T for layer in layers), case)
        return flat.reshape(start[site][part]["kernel"].shape)

    tree = {
        site: {
            "down": {"kernel": matrix(site, "down", "A")},
            "up": {"kernel": matrix(site, "up", "B")},
        }
        for site in sites
    }
    params = {**case.params, "graft": tree}
    hidden, loss, gradient = computing(case, graft)(params, "graft")
    assert_outputs(case, family, f"{targets}.", hidden, loss)
    tensors = {}
    for site, module in modules.items():
        down, up = (np.asarray(gradient["graft"][site][part]["kernel"]) for part in ("down", "up"))
        for layer in layers:
            tensors[f"{module.format(layer)}.lora_A"] = down[layer].reshape(-1, rank).T
            tensors[f"{module.format(layer)}.lora_B"] = up[layer].reshape(rank, -1).T
    family.assert_tensors_close(tensors, f"{targets}.grad.")

    merged = graft.merged(params)
    assert set(merged) == set(case.params)
    hidden = jax.jit(case.model.encode)(
        merged, case.masked("a.").tokens, case.array("a.attention_mask")
    )
    assert_outputs(case, family, f"{targets}.", hidden[case.arrays["a.attention_mask"] == 1])
    tensors, plain = case.tensors(merged), case.tensors(case.params)
    changed = {f"{modules[site].format(layer)}.weight" for site in sites for layer in layers}
    for name in tensors.keys() - changed:
        np.testing.assert_array_equal(tensors[name], plain[name], name)
    if targets == "qv":  # The archive has no others.
        merged_tensors = {name: tensors[name] for name in changed}
        family.assert_tensors_close(merged_tensors, "qv.merged.", 1e-6)


def test_olora(system_case: Case) -> None:
    case, family = system_case, system_case.of("olora")
    rank, sites = case.arguments["rank"], ("query", "value")
    scale = float(case.of("lora").arrays["scaling"])
    graft = OLoRA(rank, scale * rank, sites, earlier=2)
    start = graft.init(case.model.architecture, jax.random.key(0), case.params)
    layers = range(case.model.architecture.num_layers)

    def matrix(domains: tuple[str, ...], site: str, part: str, like: jax.Array) -> jax.Array:
        letter, axis = ("A", -1) if part == "down" else ("B", 0)
        module = huggingface_module(case, site)
        each = [
            np.concatenate(
                [family.arrays[f"{d}.{module.format(n)}.lora_{letter}"].T for d in domains], axis
            )
            for n in layers
        ]
        return stacked(each, case).reshape(like.shape)

    def pairs(domains: tuple[str, ...], start: Params) -> Params:
        return {
            site: {
                part: {"kernel": matrix(domains, site, part, start[site][part]["kernel"])}
                for part in ("down", "up")
            }
            for site in sites
        }

    own = pairs(("weights",), start)
    tree = {**own, "earlier": pairs(("earlier.0", "earlier.1"), start["earlier"])}
    params = {**case.params, "graft": tree}
    real = case.arrays["a.attention_mask"] == 1
    tokens, mask = case.masked("a.").tokens, case.array("a.attention_mask")
    hidden = jax.jit(replace(case.model, graft=graft).encode)(params, tokens, mask)
    assert_outputs(case, family, "", hidden[real])
    tensors = {
        name: value
        for name, value in case.tensors(graft.merged(params)).items()
        if f"merged.{name}" in family.arrays
    }
    family.assert_tensors_close(tensors, "merged.", 1e-6)

    for norm, name in (("l1", "penalty"), ("squared", "penalty_squared")):
        value, gradient = jax.value_and_grad(lambda own, norm=norm: overlap({**tree, **own}, norm))(
            own
        )
        family.assert_close(value, family.arrays[name], 1e-5, name)
        for site in sites:
            assert not np.any(gradient[site]["up"]["kernel"])
            for layer, x in enumerate(np.asarray(gradient[site]["down"]["kernel"])):
                key = f"{name}_grad.{huggingface_module(case, site).format(layer)}.lora_A"
                family.assert_close(x.T, family.arrays[key], 1e-4, key)


def test_prompt(system_case: Case) -> None:
    case, family = system_case, system_case.of("prompt")
    graft = Prompt(case.arguments["prompt"])
    start = graft.init(case.model.architecture, jax.random.key(0), case.params)
    family.assert_close(start["embedding"], family.arrays["initial"], 1e-7, "initial")

    params = {**case.params, "graft": {"embedding": family.array("prompt")}}
    hidden, loss, gradient = computing(case, graft)(params, "graft")
    real = case.arrays["a.attention_mask"] == 1
    family.assert_close(hidden, family.arrays["token_hidden"][real], 1e-5, "token_hidden")
    family.assert_close(loss, family.arrays["mlm"], 1e-5, "mlm")
    family.assert_close(gradient["graft"]["embedding"], family.arrays["grad"], 1e-4, "grad")
    hidden_NxTxD = np.zeros((*real.shape, hidden.shape[1]))
    hidden_NxTxD[real] = hidden
    pooled_NxD = hidden_NxTxD.sum(axis=1) / real.sum(axis=1)[:, None]
    family.assert_close(pooled_NxD, family.arrays["mean_pooled"], 1e-5, "mean_pooled")


def huggingface_module(case: Case, site: str) -> str:
    """The name of a projection, {} being the number of the layer."""
    path = "/".join(("layers", *TARGETS[site].path, "kernel"))
    (name,) = (
        row.name
        for row in table(transformer_leaves(case.model.architecture), case.model.architecture)
        if row.path == path
    )
    return name.removesuffix(".weight")


def test_block_expansion(system_case: Case) -> None:
    case, family = system_case, system_case.of("block_expansion")
    graft = Blocks(case.arguments["every"])
    new = [int(layer) for layer in family.arrays["new"]]

    start = {**case.params, "graft": graft.init(case.model.architecture, None, case.params)}
    compute = computing(case, graft)
    _, _, gradient = compute(start, "graft")
    tensors = block_tensors(case, gradient["graft"], new)
    moved = {name for name in tensors if ".output.LayerNorm" in name and ".attention." not in name}
    family.assert_tensors_close({name: tensors[name] for name in moved}, "residual.grad.")
    for name in tensors.keys() - moved:
        np.testing.assert_array_equal(tensors[name], 0, name)

    trained = family.params_from("trained.weights.", new)["layers"]
    assert jax.tree.map(jnp.shape, trained) == jax.tree.map(jnp.shape, start["graft"])
    hidden, _, _ = compute({**case.params, "graft": trained}, "graft")
    assert_outputs(case, family, "trained.", hidden)


def block_tensors(case: Case, blocks: Params, numbers: list[int]) -> dict[str, np.ndarray]:
    """By HuggingFace name, the layers counted as in `numbers`."""
    return {
        row.name.format(number): row.to_tensor(np.asarray(value))
        for row in table(transformer_leaves(case.model.architecture), case.model.architecture)
        if row.path.startswith("layers/")
        for number, value in zip(numbers, flatten_dict(blocks, sep="/")[row.path[7:]], strict=True)
    }
