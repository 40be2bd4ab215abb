"""LoRA in peft's format, which `PeftModel.from_pretrained(base_model, directory)` loads."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from das_jax.errors import UserError, shown
from das_jax.files import read_json, write_json
from das_jax.model.architecture import Architecture
from das_jax.model.grafts.files import (
    Base,
    Tensors,
    TensorsFile,
    layer_rows,
    write_readme,
    write_tensors,
)
from das_jax.model.grafts.graft import Params
from das_jax.model.grafts.lora import TARGETS, LoRA
from das_jax.model.huggingface_weights import Row

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."

PLAIN: dict[str, Any] = {
    "bias": "none",
    "fan_in_fan_out": False,
    "modules_to_save": None,
    "use_dora": False,
    "use_rslora": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "layers_to_transform": None,
}
"""What peft can vary and we cannot, as it is where nothing is varied."""

LOADER = """\
from peft import PeftModel
from transformers import AutoModelForMaskedLM

def load(base, folder):
    return PeftModel.from_pretrained(AutoModelForMaskedLM.from_pretrained(base), folder).eval()
"""

_CONFIG = TypeAdapter(dict[str, Any])


def modules(architecture: Architecture) -> dict[str, Row]:
    """The kernel of every target, by site."""
    rows = {row.path: row for row in layer_rows(architecture)}
    paths = {site: "/".join(("layers", *t.path, "kernel")) for site, t in TARGETS.items()}
    return {site: rows[path] for site, path in paths.items() if path in rows}


def tensor_names(row: Row) -> tuple[str, str]:
    """Of A and B of the projection with that kernel, {} for the number of the layer."""
    module = f"{PREFIX}{row.name.removesuffix('.weight')}"
    return f"{module}.lora_A.weight", f"{module}.lora_B.weight"


def to_tensors(graft: LoRA, own: Params, architecture: Architecture) -> Tensors:
    """A [r, in] and B [out, r] of every layer and target, by peft's names."""
    tensors = {}
    for site in graft.targets:
        shapes = (-1, graft.r), (graft.r, -1)
        names = tensor_names(modules(architecture)[site])
        for part, name, shape in zip(("down", "up"), names, shapes, strict=True):
            for layer, kernel in enumerate(np.asarray(own[site][part]["kernel"])):
                matrix = np.ascontiguousarray(kernel.reshape(shape).T)
                tensors[name.format(layer)] = matrix
    return tensors


def write(
    directory: Path, graft: LoRA, params: Params, base: Base, architecture: Architecture
) -> None:
    """Writes configuration, weights and README into an empty directory."""
    rows = modules(architecture)
    apart = [rows[site].transposed and rows[site].part is None for site in graft.targets]
    if not all(apart):
        raise UserError(
            f"{directory} is not written: checkpoints of {architecture.family} keep several projections in "
            "one tensor, or keep them transposed, which has no place for the additions in peft's format; "
            "export the merged model, which is the same"
        )
    targets = [rows[site].name.removesuffix(".weight") for site in graft.targets]
    # A list of endings could not tell `output.dense` from `attention.output.dense`.
    pattern = "|".join(re.escape(name).replace(r"\{\}", r"\d+") for name in targets)
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base.name,
        "r": graft.r,
        "lora_alpha": graft.alpha,
        "lora_dropout": 0.0,
        "target_modules": pattern,
        "inference_mode": True,
        **PLAIN,
    }
    write_json(directory / CONFIG_FILE, config)
    write_tensors(directory, WEIGHTS_FILE, to_tensors(graft, params["graft"], architecture))
    write_readme(directory, "LoRA in peft's format", LOADER, base, architecture, inside=False)


def read(
    directory: Path, settings: dict[str, Any], architecture: Architecture
) -> tuple[LoRA, Params]:
    """Reads what `write` or peft wrote; peft's files say all that `settings` says.

    Raises:
      UserError: a file is missing or damaged, or asks for what we do not have.
    """
    file = directory / CONFIG_FILE
    config = read_json(file, _CONFIG, "save the adapter again")
    for key, value in {"peft_type": "LORA", **PLAIN}.items():
        if (found := config.get(key, value)) != value and (found or value):
            raise UserError(
                f"{file}: {key} is {shown(str(found))}, which cannot be read here; save it with {key} {value}"
            )
    r, alpha = config.get("r"), config.get("lora_alpha")
    if (
        type(r) is not int
        or r < 1
        or not isinstance(alpha, int | float)
        or not math.isfinite(alpha)
    ):
        raise UserError(
            f"{file}: r and lora_alpha are no rank and no number; save the adapter again"
        )
    tensors = TensorsFile(directory / WEIGHTS_FILE)
    own: Params = {}
    for site, row in modules(architecture).items():
        a, b = tensor_names(row)
        if a.format(0) not in tensors.left:
            continue
        out, into = row.tensor_shape
        reads = len(TARGETS[site].reads)
        layers = range(architecture.num_layers)
        down = np.stack([tensors.take(a.format(n), (r, into)).T for n in layers])
        up = np.stack([tensors.take(b.format(n), (out, r)).T for n in layers])
        own[site] = {
            "down": {"kernel": down.reshape(len(layers), *row.shape[:reads], r)},
            "up": {"kernel": up.reshape(len(layers), r, *row.shape[reads:])},
        }
    tensors.check_empty()
    return LoRA(r, float(alpha), tuple(own)), {"graft": own}
