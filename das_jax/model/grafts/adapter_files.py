"""Adapters as the adapters library names them, and the LayerNorms trained with Houlsby's."""

from pathlib import Path
from typing import Any, NamedTuple

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

LOADER = """\
from safetensors.torch import load_file
from torch.nn.functional import {activation}, linear
from transformers import AutoModelForMaskedLM

def load(base, folder):
    model = AutoModelForMaskedLM.from_pretrained(base).eval(){norms}
    tensors = load_file(f"{{folder}}/{file}")
    def insert(place):
        D, b, U, c = (tensors[f"{{place}}.adapters.{name}.{{part}}"] for part in {parts!r})
        module = model.get_submodule(place)
        def forward(hidden, x):
            y = module.dropout(module.dense(hidden))
            added = linear({activation}(linear({reads}, D, b)), U, c)
            return module.LayerNorm(y + {scale} * added + x)
        module.forward = forward
    for place in {{name.split(".adapters.")[0] for name in tensors}}:
        insert(place)
    return model
"""

NORMS_LOADER = f"""
    model.load_state_dict(load_file(f"{{folder}}/{NORMS_FILE}"), strict=False)"""


class Library(NamedTuple):
    """A form of adapter there.

    Attributes:
      title: for people.
      config: what `adapter_config.json` says of it alone.
      reads: what the bottleneck reads, in the loader.
    """

    title: str
    config: dict[str, Any]
    reads: str


LIBRARY = {
    "houlsby": Library("Houlsby adapters", {}, "y"),
    "houlsby_alone": Library("Houlsby adapters", {}, "y"),
    "pfeiffer": Library(
        "Pfeiffer adapters", {"original_ln_before": True}, "module.LayerNorm(y + x)"
    ),
    "parallel": Library(
        "Parallel adapters", {"is_parallel": True, "init_weights": "mam_adapter"}, "x"
    ),
}
"""Its `double_seq_bn`, `seq_bn` and `par_bn`."""


def tensor_name(architecture: Architecture, site: str, part: str) -> str:
    """{} for the number of the layer."""
    layer = norm_rows(architecture)[0].name.split("{}")[0] + "{}"
    return f"{layer}.{PLACES[site]}.adapters.{NAME}.{part}"


def config_of(graft: Adapter, base: Base, architecture: Architecture) -> dict[str, Any]:
    """`adapter_config.json` of the library, with our activation and bottleneck."""
    wide, narrow, form = architecture.hidden_size, graft.bottleneck, graft.traits
    return {
        "config": {
            "architecture": None,
            "mh_adapter": "attention" in form.sites,
            "output_adapter": "feed_forward" in form.sites,
            # The library floors the quotient, which must not fall below the bottleneck by rounding.
            "reduction_factor": wide / (narrow + 0.5) if wide % narrow else wide // narrow,
            "non_linearity": form.activation,
            "original_ln_before": False,
            "original_ln_after": True,
            "ln_before": False,
            "ln_after": False,
            "residual_before_ln": True,
            "adapter_residual_before_ln": False,
            "is_parallel": False,
            "scaling": graft.scale,
            "dropout": 0.0,
            "init_weights": "bert",
            **LIBRARY[graft.form].config,
        },
        "hidden_size": wide,
        "model_name": base.name,
        "model_type": architecture.family,
        "name": NAME,
    }


def write(
    directory: Path, graft: Adapter, params: Params, base: Base, architecture: Architecture
) -> None:
    """Writes configuration, adapters, LayerNorms that were trained and README into an empty directory."""
    form, library = graft.traits, LIBRARY[graft.form]
    tensors: Tensors = {
        tensor_name(architecture, site, part).format(layer): np.ascontiguousarray(value.T)
        for site in form.sites
        for part, (matrix, leaf) in PARTS.items()
        for layer, value in enumerate(np.asarray(params["graft"][site][matrix][leaf]))
    }
    write_json(directory / CONFIG_FILE, config_of(graft, base, architecture))
    write_tensors(directory, WEIGHTS_FILE, tensors)
    title = f"{library.title}\n\nThe names are the adapters library's."
    if form.norms:
        rows = norm_rows(architecture)
        norms = stacked_tensors(params, rows, [row.name for row in rows])
        write_tensors(directory, NORMS_FILE, norms)
        title += (
            " It has no place for the LayerNorms that were trained with them, so that it\nalone "
            f"does not give this model: they are in `{NORMS_FILE}`."
        )
    loader = LOADER.format(
        activation=form.activation,
        norms=NORMS_LOADER if form.norms else "",
        file=WEIGHTS_FILE,
        name=NAME,
        parts=tuple(PARTS),
        reads=library.reads,
        scale=graft.scale,
    )
    write_readme(directory, title, loader, base, architecture)


def read(
    directory: Path, settings: dict[str, Any], architecture: Architecture
) -> tuple[Adapter, Params]:
    """Reads what `write` wrote: the graft, its parameters and the LayerNorms trained with it.

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
    for site in graft.traits.sites:
        own[site] = {"down": {}, "up": {}}
        for part, (matrix, leaf) in PARTS.items():
            name = tensor_name(architecture, site, part)
            each = [file.take(name.format(n), shapes[matrix, leaf]).T for n in layers]
            own[site][matrix][leaf] = np.stack(each)
    file.check_empty()
    if not graft.traits.norms:
        return graft, {"graft": own}
    rows, file = norm_rows(architecture), TensorsFile(directory / NORMS_FILE)
    norms = stacked_params(file, rows, [row.name for row in rows], len(layers))
    file.check_empty()
    return graft, {"graft": own, **norms}
