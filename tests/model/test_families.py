"""What config.json says of a model that is not supported, in one sentence."""

import json
from pathlib import Path
from typing import Any

import pytest

from das_jax.errors import UserError
from das_jax.model.huggingface_config import architecture_of
from tests.conftest import GOLDEN

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (
        "llama",
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
        "rope_type is 'yarn'; supported are default, linear and llama3",
    ),
    ("llama", {"num_key_value_heads": 3}, "num_attention_heads 4 is no multiple of num_key_value"),
    ("qwen3", {"head_dim": 7}, "even"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
    ("gpt2", {"activation_function": "tanh"}, "activation_function is 'tanh'; supported are"),
    ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0; only None"),
    ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
    ("modernbert", {"pad_token_id": None}, "pad_token_id is None; set it to"),
    ("modernbert", {"mlp_dropout": 1.5}, "mlp_dropout is 1.5; it must be in"),
]


@pytest.mark.parametrize(("family", "changes", "message"), REFUSED)
def test_what_is_not_supported_is_named(
    family: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = json.loads((GOLDEN / family / "model" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(UserError, match=message) as error:
        architecture_of(tmp_path)
    assert str(tmp_path / "config.json") in str(error.value)


def test_what_shapes_do_not_show_is_part_of_the_identity(tmp_path: Path) -> None:
    """Models with the same parameters that compute otherwise are not one model."""
    theta = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
    for family, changes in (
        ("llama", theta),
        ("llama", {"rms_norm_eps": 1e-6}),
        ("modernbert", {"classifier_activation": "silu"}),
    ):
        config = json.loads((GOLDEN / family / "model" / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
        own = architecture_of(GOLDEN / family / "model").identity()
        assert architecture_of(tmp_path).identity() != own, changes


def test_a_model_keeps_the_identity_that_maps_of_it_were_stored_with() -> None:
    """What is known of other architectures since has no part in it."""
    stored = {"bert": "3534687be50b351d", "roberta": "e0703bfee428849d"}
    for family, beginning in stored.items():
        assert architecture_of(GOLDEN / family / "model").identity().startswith(beginning)
