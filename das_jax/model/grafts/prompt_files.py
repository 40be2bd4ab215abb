"""A prompt in peft's format, which `PeftModel.from_pretrained(base_model, directory)` loads."""

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from das_jax.errors import UserError, shown
from das_jax.files import read_json, write_json
from das_jax.model.architecture import Architecture
from das_jax.model.grafts.files import Base, TensorsFile, write_readme, write_tensors
from das_jax.model.grafts.graft import Params
from das_jax.model.grafts.lora_files import CONFIG_FILE, LOADER, WEIGHTS_FILE
from das_jax.model.grafts.prompt import Prompt

PEFT_TYPE, TENSOR = "PROMPT_TUNING", "prompt_embeddings"

_CONFIG = TypeAdapter(dict[str, Any])


def write(
    directory: Path, graft: Prompt, params: Params, base: Base, architecture: Architecture
) -> None:
    """Writes configuration, vectors and README into an empty directory."""
    config = {
        "peft_type": PEFT_TYPE,
        # peft has no class for masked language models; this one gives whatever the model gives.
        "task_type": "FEATURE_EXTRACTION",
        "base_model_name_or_path": base.name,
        "num_virtual_tokens": graft.length,
        "token_dim": architecture.hidden_size,
        "num_layers": architecture.num_layers,
        "num_attention_heads": architecture.num_heads,
        "num_transformer_submodules": 1,
        "inference_mode": True,
    }
    write_json(directory / CONFIG_FILE, config)
    vectors = np.ascontiguousarray(params["graft"]["embedding"])
    write_tensors(directory, WEIGHTS_FILE, {TENSOR: vectors})
    title = (
        f"A prompt in peft's format\n\nIts {graft.length} vectors stand before a text, and their logits "
        f"before the text's: those are `logits[:, {graft.length}:]`."
    )
    write_readme(directory, title, LOADER, base, architecture, inside=False)


def read(
    directory: Path, settings: dict[str, Any], architecture: Architecture
) -> tuple[Prompt, Params]:
    """Reads what `write` or peft wrote; peft's files say all that `settings` says.

    Raises:
      UserError: a file is missing or damaged, or belongs to another kind of model.
    """
    file = directory / CONFIG_FILE
    config = read_json(file, _CONFIG, "save the prompt again")
    length = config.get("num_virtual_tokens")
    if config.get("peft_type") != PEFT_TYPE or type(length) is not int:
        raise UserError(
            f"{file}: peft_type is {shown(str(config.get('peft_type')))} and num_virtual_tokens "
            f"{shown(str(length))}, which is no prompt; save it again"
        )
    graft = Prompt(length)
    graft.check(architecture)
    tensors = TensorsFile(directory / WEIGHTS_FILE)
    vectors = tensors.take(TENSOR, (length, architecture.hidden_size))
    tensors.check_empty()
    return graft, {"graft": {"embedding": vectors}}
