"""Grown models, against arrays made by an independent float64 implementation."""

from collections.abc import Mapping

import jax
import numpy as np
import pytest

from das_jax.model.growth import grown, grown_architecture
from das_jax.model.huggingface_weights import to_tensors
from das_jax.model.language_model import LanguageModel
from tests.golden_case import Case


def grow(case: Case, maps: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The grown model's tensors by HuggingFace name, and its logits of text `a`."""
    params = grown(case.params, case.model.architecture, maps)
    model = LanguageModel(grown_architecture(case.model.architecture, maps), case.dtype)

    @jax.jit
    def logits_of(params, tokens, mask):  # type: ignore[no-untyped-def]
        return model.logits(params, model.encode(params, tokens, mask))

    text = case.masked("a.").tokens, case.array("a.attention_mask")
    return to_tensors(jax.device_get(params), model.architecture), logits_of(params, *text)


def test_growth(system_case: Case) -> None:
    case, family = system_case, system_case.of("growth")
    arrays, real = family.arrays, case.arrays["a.attention_mask"] == 1
    wider = {"F": arrays["feed_forward.map"]}
    everything = {**wider, "D": arrays["width.dim_map"], "H": arrays["width.head_map"]}
    before = case.tensors(case.params)
    for how, maps in ("feed_forward", wider), ("width", everything):
        tensors, logits = grow(case, maps)
        expected = family.named(f"{how}.weights.")
        assert expected
        for name, value in expected.items():
            family.assert_close(tensors[name], value, 1e-5, name)
        if how == "feed_forward":  # The archive has all that changes.
            for name in before.keys() - expected.keys():
                np.testing.assert_array_equal(tensors[name], before[name], name)
        case.assert_close(logits[real], case.arrays["a.logits"][real], 1e-5, f"{how}: logits")


@pytest.mark.parametrize("how", ["uneven", "depth"])
def test_growth_that_changes_the_function(system_case: Case, how: str) -> None:
    """By as much as elsewhere; whichever heads and units are copied."""
    case, family = system_case, system_case.of("growth")
    arrays, real = family.arrays, case.arrays["a.attention_mask"] == 1
    if how == "depth":
        maps = {"L": arrays["depth.order"]}
    else:
        size, heads = case.model.architecture.head_size, case.model.architecture.num_heads
        more = (len(arrays["uneven.dim_map"]) - size * heads) // size
        maps = {"D": arrays["uneven.dim_map"], "H": np.r_[:heads, :more]}
    _, logits = grow(case, maps)
    change = np.abs(logits - case.arrays["a.logits"])[real].max()
    family.assert_close(change, arrays[f"{how}.max_logit_difference"], 1e-5, how)
    if how == "depth":
        family.assert_close(logits[real], arrays["depth.logits"][real], 1e-5, "depth.logits")
