"""What config.json says: of real models, in its older and its newer form, and of what is not supported."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from das_jax.errors import UserError
from das_jax.model.architecture import Architecture
from das_jax.model.families.keys import ROPE
from das_jax.model.families.registry import FAMILIES
from das_jax.model.huggingface_config import architecture_of, read_config, unknown_keys
from das_jax.model.leaves import leaves_of
from das_jax.model.rotary import Rotary, Stretch
from tests.conftest import GOLDEN

HUB = json.loads(Path(__file__).with_name("hub_configs.json").read_text())
"""config.json of models on the hub, as they are there."""

MILLIONS = {
    "answerdotai/ModernBERT-base": 149.7,
    "answerdotai/ModernBERT-large": 395.9,
    "openai-community/gpt2": 124.4,
    "meta-llama/Llama-3.2-1B": 1235.8,
    "HuggingFaceTB/SmolLM2-135M": 134.5,
    "Qwen/Qwen2.5-0.5B": 494.0,
    "Qwen/Qwen3-0.6B": 596.0,
    "Qwen/Qwen3-4B": 4022.5,
    "Qwen/Qwen3-8B": 8190.7,
    "google/gemma-2-2b": 2614.3,
    "google/gemma-3-1b-it": 999.9,
}
"""Their parameters, as their model cards have them."""

Read = Callable[..., Architecture]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """`read(family or config, **changes)`: a golden model's config.json with other values."""

    def architecture(config: str | dict[str, Any], **changes: Any) -> Architecture:
        if isinstance(config, str):
            config = json.loads((GOLDEN / config / "model" / "config.json").read_text())
        kept = {key: value for key, value in {**config, **changes}.items() if value != ABSENT}
        (tmp_path / "config.json").write_text(json.dumps(kept))
        return architecture_of(tmp_path)

    return architecture


ABSENT = "absent"


@pytest.mark.parametrize("name", HUB)
def test_models_of_the_hub(name: str, read: Read) -> None:
    architecture = read(HUB[name])
    sizes = architecture.sizes
    count = sum(math.prod(leaf.shape(sizes)) for leaf in leaves_of(architecture))
    if not architecture.first_norm:
        count -= sizes["D"]  # Row 0 is no parameter.
    assert round(count / 1e6, 1) == MILLIONS[name]
    assert unknown_keys(HUB[name]) == []


def test_what_older_and_newer_files_say_is_the_same(read: Read) -> None:
    default, table = {"rope_type": "default"}, {"rope_theta": 1e6, "rope_type": "default"}
    full, sliding = "full_attention", "sliding_attention"
    linear = {"rope_type": "linear", "factor": 8.0}
    nothing = dict.fromkeys(
        ("rope_parameters", "layer_types", "_sliding_window_pattern", "dtype"), ABSENT
    )
    for family, old, new in (
        ("llama", {"rope_theta": 1e6}, {"rope_parameters": table}),
        (
            "llama",
            {"rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 8.0}},
            {"rope_parameters": {**table, **linear}},
        ),
        ("llama", {"head_dim": None, "num_key_value_heads": None}, {"num_key_value_heads": 4}),
        (
            "qwen3",
            {"rope_theta": 1e6, "use_sliding_window": True, "sliding_window": 4}
            | {"max_window_layers": 1},
            {"layer_types": [full, sliding, sliding], "rope_parameters": table}
            | {"use_sliding_window": True, "sliding_window": 4},
        ),
        # Switched off, a window is none, whatever it says.
        (
            "qwen2",
            {"rope_theta": 1e6, "use_sliding_window": False, "sliding_window": 4}
            | {"max_window_layers": 1},
            {"layer_types": [full, full], "rope_parameters": table, "sliding_window": None},
        ),
        ("gemma2", {"rope_theta": 1e6}, {"rope_parameters": table}),
        # Only full layers are stretched, and only where transformers is told so by today's name.
        (
            "gemma3",
            {"rope_theta": 5e5, "rope_local_base_freq": 100, "sliding_window_pattern": 2}
            | {"rope_scaling": {"type": "linear", "factor": 8.0}},
            {"layer_types": [sliding, full, sliding], "_sliding_window_pattern": 6}
            | {
                "rope_parameters": {
                    full: {**linear, "rope_theta": 5e5},
                    sliding: {**default, "rope_theta": 100},
                }
            },
        ),
        (
            "modernbert",
            {"global_rope_theta": 5e5, "local_rope_theta": None, "global_attn_every_n_layers": 2},
            {"layer_types": [full, sliding, full, sliding]}
            | {
                "rope_parameters": {
                    full: {**default, "rope_theta": 5e5},
                    sliding: {**default, "rope_theta": None},
                }
            },
        ),
    ):
        of_old = read(family, **{**nothing, "torch_dtype": "bfloat16", **old})
        assert of_old == read(family, **{**nothing, **new}), (family, old)


def test_what_is_read_of_them(read: Read) -> None:
    """Numbers, so that both ways of writing one cannot be wrong alike."""
    gemma = read(HUB["google/gemma-3-1b-it"], rope_scaling={"type": "linear", "factor": 8.0})
    assert gemma.rotary == (Rotary(1e6, 8.0), Rotary(1e4))
    assert gemma.rotary_of_layers == ((1, 1, 1, 1, 1, 0) * 5)[:26]
    assert gemma.reaches == ((511, 511, 511, 511, 511, None) * 5)[:26]
    assert gemma.score_scale == 1 / 16
    modern = read(HUB["answerdotai/ModernBERT-base"], local_rope_theta=None)
    assert modern.rotary == (Rotary(160_000.0), Rotary(160_000.0))
    assert modern.reaches == ((None, 64, 64) * 8)[:22]
    llama = read(HUB["meta-llama/Llama-3.2-1B"])
    assert llama.rotary == (Rotary(5e5, stretch=Stretch(32.0, 1.0, 4.0, 8192.0)),)
    gemma2 = read(HUB["google/gemma-2-2b"])
    assert (gemma2.score_cap, gemma2.logit_cap) == (50.0, 30.0)
    assert gemma2.reaches == (4095, None) * 13
    qwen = read(HUB["Qwen/Qwen2.5-0.5B"], use_sliding_window=True, max_window_layers=22)
    assert qwen.reaches == (None,) * 22 + (32767,) * 2
    assert (qwen.qkv_bias, qwen.attention_bias) == (True, False)
    assert read("llama", attention_dropout=None).attention_dropout == 0


@pytest.mark.parametrize("name", FAMILIES)
def test_every_key_of_a_class_is_known(name: str) -> None:
    """A field that a version of transformers adds is not passed over."""
    family = FAMILIES[name]
    keys = {field.name: None for field in dataclasses.fields(family.config)}
    assert unknown_keys({"model_type": name, **keys}) == []


def test_keys_that_nobody_knows(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    read("llama", somebodys_note="kept")  # transformers passes over it, too; loading says so.
    assert unknown_keys({"model_type": "llama", "somebodys_note": 1}) == ["somebodys_note"]
    # One that transformers knows and we do not may make another model.
    family = FAMILIES["llama"]
    monkeypatch.setitem(FAMILIES, "llama", dataclasses.replace(family, reads=("head_dim", *ROPE)))
    read("llama", mlp_bias=False, attention_bias=False)
    with pytest.raises(UserError, match="mlp_bias is True, and what that makes of a llama is not"):
        read("llama", mlp_bias=True)


def of(family: str, message: str, **changes: Any) -> Any:
    return pytest.param(family, changes, message, id=f"{family}-{message[:40]}")


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
LLAMA3 = json.loads((GOLDEN / "llama" / "model" / "config.json").read_text())["rope_parameters"]
SLIDING = ["full_attention", "sliding_attention"]

REFUSED = [
    of("llama", "rope_type is 'yarn'; supported are default", rope_parameters=YARN),
    of("llama", "rope_type is 'dynamic'", rope_scaling={"type": "dynamic", "factor": 2.0}),
    of(
        "gemma3",
        "rope_type is 'longrope'",
        rope_parameters=ABSENT,
        rope_scaling={"type": "longrope", "factor": 2.0, "short_factor": [1], "long_factor": [1]},
    ),
    of(
        "qwen2",
        "type is 'linear' and rope_type is 'default'",
        rope_scaling={"type": "linear", "rope_type": "default", "factor": 2.0},
    ),
    of("llama", "partial_rotary_factor is 0.5; only 1", partial_rotary_factor=0.5),
    of(
        "llama",
        "partial_rotary_factor is 0.5; only 1",
        rope_parameters={**LLAMA3, "partial_rotary_factor": 0.5},
    ),
    of("llama", "mscale is 0.7 .* has no meaning", rope_parameters={**LLAMA3, "mscale": 0.7}),
    of("llama", "factor is -4.0 in rope_param", rope_parameters={**LLAMA3, "factor": -4.0}),
    of("llama", "low_freq_factor is 4.0", rope_parameters={**LLAMA3, "low_freq_factor": 4}),
    of("llama", "no valid llama configuration .*factor", rope_scaling={"type": "linear"}),
    of("llama", "num_attention_heads 4 is no multiple of num_key_value", num_key_value_heads=3),
    of("llama", "rope_interleaved is True", rope_interleaved=True),
    of("llama", "is_causal is False", is_causal=False),
    of("llama", "pad_token_id is -1; .* or to null", pad_token_id=-1),
    of("llama", "quantization_config is {'bits': 4}", quantization_config={"bits": 4}),
    of("llama", "auto_map is", auto_map={"AutoModel": "theirs.Model"}),
    of("llama", "per_layer_config is", per_layer_config={"0": {"intermediate_size": 8}}),
    of("llama", "model_type is 'mixtral_moe', a model with experts", model_type="mixtral_moe"),
    of("llama", "model_type is 'gemma3', .* text part alone, gemma3_text", model_type="gemma3"),
    of("llama", "model_type is 'phi3'; supported are bert, .* gemma3_text", model_type="phi3"),
    of("qwen3", "even", head_dim=3),
    of("qwen2", "sliding_attention, and there is no window", layer_types=SLIDING),
    of(
        "qwen2",
        "there is an empty window",
        layer_types=SLIDING,
        use_sliding_window=True,
        sliding_window=0,
    ),
    of("qwen2", "layer_types names 'chunked_attention'", layer_types=["chunked_attention"] * 2),
    of("qwen2", "use_mrope is True", use_mrope=True),
    of("gpt2", "scale_attn_by_inverse_layer_idx is True", scale_attn_by_inverse_layer_idx=True),
    of("gpt2", "scale_attn_weights is False", scale_attn_weights=False),
    of("gpt2", "add_cross_attention is True", add_cross_attention=True),
    of("gpt2", "activation_function is 'tanh'; supported are", activation_function="tanh"),
    of("gemma3", "attn_logit_softcapping is 50.0; only None", attn_logit_softcapping=50.0),
    of("gemma3", "_sliding_window_pattern is 5", _sliding_window_pattern=5, layer_types=ABSENT),
    of("gemma3", "final_logit_softcapping is 0.0", final_logit_softcapping=0.0),
    of("gemma3", "query_pre_attn_scalar is 0", query_pre_attn_scalar=0),
    of("gemma2", "use_bidirectional_attention is True", use_bidirectional_attention=True),
    of("gemma2", "no valid gemma2 .*head_dim", head_dim=None),
    of("modernbert", "pad_token_id is None; set it to", pad_token_id=None),
    of("modernbert", "mlp_dropout is 1.5; it must be in", mlp_dropout=1.5),
    of("modernbert", "head_dim is 16", head_dim=16),
    of(
        "modernbert",
        "no valid modernbert",
        rope_parameters={"full_attention": 5, "sliding_attention": {"rope_theta": None}},
    ),
    of("bert", "is_causal is True", is_causal=True),
]


@pytest.mark.parametrize(("family", "changes", "message"), REFUSED)
def test_what_is_not_supported_is_named(
    family: str, changes: dict[str, Any], message: str, read: Read, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as error:
        read(family, **changes)
    assert str(tmp_path / "config.json") in str(error.value)
    assert "\n" not in str(error.value)


def test_an_export_says_what_transformers_understands(read: Read, tmp_path: Path) -> None:
    """What it would misread, it would misread of an export, too."""
    read("gemma3", rope_scaling={"type": "linear", "factor": 8.0})
    assert read_config(tmp_path)["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    read("modernbert", rope_parameters=ABSENT, local_rope_theta=None, global_rope_theta=3.0)
    assert read_config(tmp_path)["local_rope_theta"] == 3.0


def test_what_shapes_do_not_show_is_part_of_the_identity(read: Read) -> None:
    """Models with the same parameters that compute otherwise are not one model."""
    theta = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
    for family, changes in (
        ("llama", theta),
        ("llama", {"rms_norm_eps": 1e-6}),
        ("modernbert", {"classifier_activation": "silu"}),
    ):
        own = architecture_of(GOLDEN / family / "model").identity()
        assert read(family, **changes).identity() != own, changes


def test_a_model_keeps_the_identity_that_maps_of_it_were_stored_with() -> None:
    """What is known of other architectures since has no part in it."""
    stored = {"bert": "3534687be50b351d", "roberta": "e0703bfee428849d"}
    for family, beginning in stored.items():
        assert architecture_of(GOLDEN / family / "model").identity().startswith(beginning)
