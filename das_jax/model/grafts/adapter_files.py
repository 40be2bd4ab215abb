"""Houlsby adapters as the adapters library names them, and the LayerNorms trained with them."""

from pathlib import Path
from typing import Any

import numpy as np

from das_jax.files import write_json
from das_jax.model.architecture import Architecture
from das_jax.model.grafts.adapter import Adapter
from das_jax.model.grafts.files import (
    Base,
    Tensors,
    TensorsFile,
    graft_of,
    norm_rows,
    stacked_params,
    stacked_tensors,
    write_readme,
    write_tensors,
)
from das_jax.model.grafts.graft import Params

CONFIG_FILE, WEIGHTS_FILE, NORMS_FILE = (
    "adapter_config.json",
    "adapter.safetensors",
    "layer_norms.safetensors",
)
NAME = "das_jax"
"""Of the adapter, in its tensors' names."""

PLACES = {"attention": "attention.output", "feed_forward": "output"}
"""A site's module in a layer there."""

PARTS = {
    "adapter_down.0.weight": ("down", "kernel"),
    "adapter_down.0.bias": ("down", "bias"),
    "adapter_up.weight": ("up", "kernel"),
    "adapter_up.bias": ("up", "bias"),
}

LOADER = f"""\
from safetensors.torch import load_file
from torch.nn.functional import gelu, linear
from transformers import AutoModelForMaskedLM

def load(base, folder):
    model = AutoModelForMaskedLM.from_pretrained(base).eval()
    model.load_state_dict(load_file(f"{{folder}}/{NORMS_FILE}"), strict=False)
    tensors = load_file(f"{{folder}}/{WEIGHTS_FILE}")
    def insert(place):
        D, b, U, c = (tensors[f"{{place}}.adapters.{NAME}.{{part}}"] for part in {tuple(PARTS)!r})
        adapter = lambda module, inputs, z: z + linear(gelu(linear(z, D, b)), U, c)
        model.get_submodule(f"{{place}}.dropout").register_forward_hook(adapter)
    for place in {{name.split(".adapters.")[0] for name in tensors}}:
        insert(place)
    return model
"""


def tensor_name(architecture: Architecture, site: str, part: str) -> str:
    """{} for the number of the layer."""
    layer = norm_rows(architecture)[0].name.split("{}")[0] + "{}"
    return f"{layer}.{PLACES[site]}.adapters.{NAME}.{part}"


def config_of(graft: Adapter, base: Base, architecture: Architecture) -> dict[str, Any]:
    """`adapter_config.json` of the library, `double_seq_bn` with our activation and bottleneck."""
    wide, narrow = architecture.hidden_size, graft.bottleneck
    return {
        "config": {
            "architecture": None,
            "mh_adapter": True,
            "output_adapter": True,
            # The library floors the quotient, which must not fall below the bottleneck by rounding.
            "reduction_factor": wide / (narrow + 0.5) if wide % narrow else wide // narrow,
            "non_linearity": graft.ACTIVATION,
            "original_ln_before": False,
            "original_ln_after": True,
            "ln_before": False,
            "ln_after": False,
            "residual_before_ln": True,
            "adapter_residual_before_ln": False,
            "is_parallel": False,
            "scaling": 1.0,
            "dropout": 0.0,
            "init_weights": "bert",
        },
        "hidden_size": wide,
        "model_name": base.name,
        "model_type": architecture.family,
        "name": NAME,
    }


def write(
    directory: Path, graft: Adapter, params: Params, base: Base, architecture: Architecture
) -> None:
    """Writes configuration, adapters, LayerNorms and README into an empty directory."""
    tensors: Tensors = {
        tensor_name(architecture, site, part).format(layer): np.ascontiguousarray(value.T)
        for site in graft.SITES
        for part, (matrix, leaf) in PARTS.items()
        for layer, value in enumerate(np.asarray(params["graft"][site][matrix][leaf]))
    }
    write_json(directory / CONFIG_FILE, config_of(graft, base, architecture))
    write_tensors(directory, WEIGHTS_FILE, tensors)
    rows = norm_rows(architecture)
    norms = stacked_tensors(params, rows, [row.name for row in rows])
    write_tensors(directory, NORMS_FILE, norms)
    title = (
        "Houlsby adapters\n\nThe names are the adapters library's. It has no place for the LayerNorms that "
        f"were trained with them, so that it\nalone does not give this model: they are in `{NORMS_FILE}`."
    )
    write_readme(directory, title, LOADER, base)


def read(
    directory: Path, settings: dict[str, Any], architecture: Architecture
) -> tuple[Adapter, Params]:
    """Reads what `write` wrote: the graft, its parameters and the LayerNorms.

    Raises:
      UserError: a file is missing or damaged.
    """
    graft = graft_of(Adapter, settings, directory)
    graft.check(architecture)
    narrow = graft.bottleneck
    wide, layers = architecture.hidden_size, range(architecture.num_layers)
    shapes = {
        ("down", "kernel"): (narrow, wide),
        ("down", "bias"): (narrow,),
        ("up", "kernel"): (wide, narrow),
        ("up", "bias"): (wide,),
    }
    file = TensorsFile(directory / WEIGHTS_FILE)
    own: Params = {}
    for site in Adapter.SITES:
        own[site] = {"down": {}, "up": {}}
        for part, (matrix, leaf) in PARTS.items():
            name = tensor_name(architecture, site, part)
            each = [file.take(name.format(n), shapes[matrix, leaf]).T for n in layers]
            own[site][matrix][leaf] = np.stack(each)
    file.check_empty()
    rows, file = norm_rows(architecture), TensorsFile(directory / NORMS_FILE)
    norms = stacked_params(file, rows, [row.name for row in rows], len(layers))
    file.check_empty()
    return graft, {"graft": own, **norms}
