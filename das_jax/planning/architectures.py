"""The architecture of a configuration's model, without its weights and, for well-known models, without
a network.
"""

from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from das_jax.config.objectives import check_objectives
from das_jax.config.schema import Config
from das_jax.errors import UserError
from das_jax.model.architecture import Architecture
from das_jax.model.huggingface_config import architecture_of, described
from das_jax.planning.hub_configs import CONFIGS
from das_jax.training.workspace import DEMO_MODEL, cache_dir, check_length


def _bert(vocab_size: int, num_layers: int, hidden_size: int, **changes: Any) -> Architecture:
    numbers: dict[str, Any] = {
        "family": "bert",
        "position_rows": 512,
        "type_vocab_size": 2,
        "pad_token_id": 0,
        "first_position": 0,
        "layer_norm_eps": 1e-12,
        "num_heads": hidden_size // 64,
    }
    return Architecture(
        vocab_size=vocab_size,
        num_layers=num_layers,
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        activation="gelu",
        hidden_dropout=0.1,
        attention_dropout=0.1,
        initializer_range=0.02,
        tied=True,
        **(numbers | changes),
    )


def _roberta(
    vocab_size: int, num_layers: int, hidden_size: int, family: str = "roberta"
) -> Architecture:
    return _bert(
        vocab_size,
        num_layers,
        hidden_size,
        family=family,
        position_rows=514,
        type_vocab_size=1,
        pad_token_id=1,
        first_position=2,
        layer_norm_eps=1e-5,
        classifier_input_dropout=True,
    )


KNOWN = {
    DEMO_MODEL: _bert(30_522, 2, 128),
    "demo:minilm-l6": _bert(30_522, 6, 384, num_heads=12),
    "google-bert/bert-base-uncased": _bert(30_522, 12, 768),
    "google-bert/bert-base-cased": _bert(28_996, 12, 768),
    "google-bert/bert-large-uncased": _bert(30_522, 24, 1024),
    "FacebookAI/roberta-base": _roberta(50_265, 12, 768),
    "FacebookAI/roberta-large": _roberta(50_265, 24, 1024),
    "FacebookAI/xlm-roberta-base": _roberta(250_002, 12, 768, "xlm-roberta"),
    "FacebookAI/xlm-roberta-large": _roberta(250_002, 24, 1024, "xlm-roberta"),
    **{name: described(config, Path(name) / "config.json") for name, config in CONFIGS.items()},
}
"""By hub name; the part behind the slash is enough."""


def find_architecture(config: Config) -> Architecture:
    """The architecture of `model.path`: of a directory's config.json, which may lie there alone, of a
    well-known model, or of config.json on the hub.

    Raises:
      UserError: there is none of them, the model has too few positions for `data.length`, or a
        domain has an objective that is not the model's.
    """
    path = config.model.path
    architecture = _find(path, cache_dir(config) / "hub")
    check_length(config, architecture)
    check_objectives(config, architecture.causal)
    return architecture


def _find(path: str, cache: Path) -> Architecture:
    if (directory := Path(path).expanduser()).is_dir():
        return architecture_of(directory)
    for name, architecture in KNOWN.items():
        if path in (name, name.partition("/")[2]):
            return architecture
    try:
        return architecture_of(Path(hf_hub_download(path, "config.json", cache_dir=cache)).parent)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(
            f"model.path {path} is no directory, no model that is known by heart, and its config.json "
            "could not be fetched from the HuggingFace hub; give a directory that holds a config.json"
        ) from error
