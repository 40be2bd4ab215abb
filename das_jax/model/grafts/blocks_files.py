"""Blocks between the layers, in files of our own: no plain model has them."""

from pathlib import Path
from typing import Any

from das_jax.model.architecture import Architecture
from das_jax.model.grafts.blocks import Blocks
from das_jax.model.grafts.files import (
    ABOUT_FILE,
    Base,
    TensorsFile,
    graft_of,
    layer_rows,
    stacked_params,
    stacked_tensors,
    write_readme,
    write_tensors,
)
from das_jax.model.grafts.graft import Params

WEIGHTS_FILE = "blocks.safetensors"

LOADER = f"""\
import copy, json, pathlib
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM

def load(base, folder):
    model = AutoModelForMaskedLM.from_pretrained(base).eval()
    every = json.loads(pathlib.Path(folder, "{ABOUT_FILE}").read_text())["settings"]["every"]
    tensors, layers = load_file(f"{{folder}}/{WEIGHTS_FILE}"), model.base_model.encoder.layer
    for number in range(len(layers) // every):
        block, prefix = copy.deepcopy(layers[0]), f"{{number}}."
        own = {{name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}}
        block.load_state_dict(own)
        block.register_forward_hook(lambda module, inputs, output: inputs[0] + output)
        layers.insert((number + 1) * every + number, block)
    return model
"""


def names(architecture: Architecture) -> list[str]:
    """HuggingFace's names within a layer, behind the number of the block."""
    return ["{}" + row.name.split("{}")[1] for row in layer_rows(architecture)]


def write(
    directory: Path, graft: Blocks, params: Params, base: Base, architecture: Architecture
) -> None:
    """Writes the blocks and README into an empty directory."""
    tensors = stacked_tensors(
        {"layers": params["graft"]}, layer_rows(architecture), names(architecture)
    )
    write_tensors(directory, WEIGHTS_FILE, tensors)
    made = "h + layer(h)" if graft.residual else "a layer"
    title = (
        f"Blocks between the layers\n\n{made} after every {graft.every} layers of the base, which no "
        "plain model of transformers expresses."
    )
    write_readme(directory, title, LOADER, base, architecture)


def read(
    directory: Path, settings: dict[str, Any], architecture: Architecture
) -> tuple[Blocks, Params]:
    """Reads what `write` wrote.

    Raises:
      UserError: a file is missing or damaged.
    """
    graft = graft_of(Blocks, settings, directory)
    graft.check(architecture)
    file = TensorsFile(directory / WEIGHTS_FILE)
    count = architecture.num_layers // graft.every
    own = stacked_params(file, layer_rows(architecture), names(architecture), count)["layers"]
    file.check_empty()
    return graft, {"graft": own}
