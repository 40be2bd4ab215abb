"""What methods put into models whose norms come first, and whose feed-forward is gated."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from das_jax.errors import UserError
from das_jax.methods.demix import EXPERT
from das_jax.methods.hat import NORMS
from das_jax.model import huggingface, huggingface_grafts
from das_jax.model.grafts.adapter import Adapter as AdapterGraft
from das_jax.model.grafts.blocks import Blocks
from das_jax.model.grafts.files import Base
from das_jax.model.grafts.lora import TARGETS, LoRA
from das_jax.model.language_model import LanguageModel, Params
from das_jax.model.leaves import transformer_leaves

TOKENS = jnp.asarray(np.random.default_rng(0).integers(1, 80, (2, 9)))
MASK = jnp.ones(TOKENS.shape, bool)


def loaded(golden: Any, family: str) -> tuple[LanguageModel, Params]:
    checkpoint = huggingface.load(golden(family).model)
    return LanguageModel(checkpoint.architecture), checkpoint.params


def encoded(model: LanguageModel, params: Params) -> np.ndarray:
    return np.asarray(jax.jit(model.encode)(params, TOKENS, MASK))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_new_layers_are_the_identity_at_first(golden: Any, family: str) -> None:
    model, params = loaded(golden, family)
    blocks = Blocks(every=1, residual=False)
    grown = replace(model, graft=blocks)
    own = blocks.init(model.architecture, jax.random.key(0), params)
    np.testing.assert_array_equal(encoded(grown, {**params, "graft": own}), encoded(model, params))
    moved = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(jax.random.key(1), x.shape), own)
    changed = encoded(grown, {**params, "graft": moved}) - encoded(model, params)
    assert np.abs(changed).max() > 0.01


def test_every_projection_of_a_gated_feed_forward_takes_a_low_rank_addition(golden: Any) -> None:
    model, params = loaded(golden, "llama")
    graft = LoRA(2, 4.0, tuple(TARGETS))
    graft.check(model.architecture)
    own = graft.init(model.architecture, jax.random.key(0), params)
    own = jax.tree.map(lambda x: x + 0.03 * jax.random.normal(jax.random.key(1), x.shape), own)
    params = {**params, "graft": own}
    merged = encoded(model, graft.merged(params))
    added = encoded(replace(model, graft=graft), params)
    np.testing.assert_allclose(merged, added, atol=1e-5 * np.abs(added).max())
    without = {**own, "gate": jax.tree.map(jnp.zeros_like, own["gate"])}
    assert np.abs(encoded(model, graft.merged({**params, "graft": without})) - merged).max() > 1e-3
    with pytest.raises(UserError, match="has gate, but the model's feed-forward has none"):
        graft.check(loaded(golden, "gpt2")[0].architecture)


def test_rules_by_name_claim_what_they_mean(golden: Any) -> None:
    """Of Gemma: four norms a layer and one at the end; a feed-forward of three matrices."""
    leaves = transformer_leaves(loaded(golden, "gemma2")[0].architecture)
    norms = {leaf.path for leaf in leaves if re.fullmatch(NORMS, leaf.path)}
    assert norms == {
        "final_norm/scale",
        *(
            f"layers/{sublayer}/{norm}/scale"
            for sublayer in ("attention", "feed_forward")
            for norm in ("input_norm", "output_norm")
        ),
    }
    expert = {leaf.path for leaf in leaves if re.fullmatch(EXPERT[0][0], leaf.path)}
    modules = ("gate", "intermediate", "output")
    assert expert == {f"layers/feed_forward/{module}/kernel" for module in modules}


def test_what_no_format_has_is_said_and_what_is_written_is_read(
    golden: Any, tmp_path: Path
) -> None:
    model, params = loaded(golden, "gpt2")
    base, arch = Base("base", "hash"), model.architecture
    lora = LoRA()
    own = {**params, "graft": lora.init(arch, jax.random.key(0), params)}
    with pytest.raises(UserError, match="of gpt2 keep several projections in one tensor"):
        huggingface_grafts.write(tmp_path / "lora", lora, own, base, arch)
    assert not (tmp_path / "lora").exists()
    adapter = AdapterGraft(bottleneck=3, form="parallel")
    own = {**params, "graft": adapter.init(arch, jax.random.key(0), params)}
    huggingface_grafts.write(tmp_path / "adapter", adapter, own, base, arch)
    assert (
        "that puts it into transformers' model is not given"
        in (tmp_path / "adapter" / "README.md").read_text()
    )
    graft, read = huggingface_grafts.read(tmp_path / "adapter", base, arch)
    assert graft == adapter
    for one, other in zip(
        jax.tree.leaves(read["graft"]), jax.tree.leaves(own["graft"]), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    assert json.loads((tmp_path / "adapter" / "graft.json").read_text())["graft"] == "adapter"
