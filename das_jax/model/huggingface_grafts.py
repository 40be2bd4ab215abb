"""Grafts as directories beside their base model: in peft's or the adapters library's format where one fits.

Such a directory says which base it belongs to, and its README has a function that loads it. What a plain
model can express may be merged and exported as one instead, see `Graft.merged`.
"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
from pydantic import TypeAdapter
from transformers import PreTrainedTokenizerFast
from typing_extensions import TypedDict

from das_jax.errors import UserError, shown
from das_jax.files import read_json, replacing, write_json
from das_jax.model.architecture import Architecture
from das_jax.model.grafts import (
    adapter_files,
    blocks_files,
    capsules_files,
    lora_files,
    plugins_files,
    prompt_files,
)
from das_jax.model.grafts.adapter import Adapter
from das_jax.model.grafts.blocks import Blocks
from das_jax.model.grafts.capsules import Capsules
from das_jax.model.grafts.files import ABOUT_FILE, Base
from das_jax.model.grafts.graft import Graft, Params
from das_jax.model.grafts.lora import LoRA
from das_jax.model.grafts.plugins import Plugins
from das_jax.model.grafts.prompt import Prompt
from das_jax.model.huggingface import export
from das_jax.model.huggingface_config import ExportDtype
from das_jax.model.language_model import LanguageModel
from das_jax.model.plain import plain_params
from das_jax.model.tokenizer import write_tokenizer
from das_jax.model.units import Units

KINDS: dict[str, tuple[type[Graft], Any]] = {
    "adapter": (Adapter, adapter_files),
    "blocks": (Blocks, blocks_files),
    "capsules": (Capsules, capsules_files.FORMAT),
    "lora": (LoRA, lora_files),
    "plugins": (Plugins, plugins_files.FORMAT),
    "prompt": (Prompt, prompt_files),
}
"""Every kind, and what has its `write` and `read`: a module, or a format of our own."""


class _About(TypedDict):
    graft: str
    base: str
    base_hash: str
    settings: dict[str, Any]


_ABOUT = TypeAdapter(_About)
_PEFT = TypeAdapter(dict[str, Any])


def write(
    directory: Path, graft: Graft, params: Params, base: Base, architecture: Architecture
) -> None:
    """Writes a graft, the whole directory or nothing.

    Args:
      directory: replaced if it exists.
      graft: its settings.
      params: of the whole model; what the graft's method trains in the model itself is written, too.
      base: what it belongs to.
      architecture: of the base.

    Raises:
      UserError: the directory cannot be written, or a number is not finite.
    """
    graft, params = graft.exported(params)
    kind, files = next(
        (kind, files) for kind, (each, files) in KINDS.items() if type(graft) is each
    )
    with replacing(Path(directory)) as temporary:
        temporary.mkdir()
        files.write(temporary, graft, params, base, architecture)
        about = {"graft": kind, "base": base.name, "base_hash": base.weights_hash}
        write_json(temporary / ABOUT_FILE, {**about, "settings": asdict(graft)})


def export_net(
    directory: Path,
    model: LanguageModel,
    params: Params,
    gates: Units | None,
    *,
    base: Callable[[], Base],
    config: dict[str, Any],
    tokenizer: PreTrainedTokenizerFast,
    merge: bool = True,
    dtype: ExportDtype = "float32",
) -> None:
    """Writes a model: plain, with all that can be merged in its weights, or else its graft beside its base.

    Args:
      directory: replaced if it exists.
      model: with its graft, if it has one.
      params: its parameters, on the host.
      gates: what multiplies its units, or None.
      base: gives the model that it was made of, if that is to be named.
      config: the configuration of the checkpoint that this came from.
      tokenizer: its tokenizer.
      merge: whether a graft is merged where it can be.
      dtype: of a plain model; what stands beside a base is float32.

    Raises:
      UserError: the directory cannot be written, a number is not finite, or nothing could read what has to
        be written.
    """
    plain = plain_params(model, params, gates) if merge else None
    architecture = model.architecture
    if plain is not None:
        export(directory, jax.device_get(plain), config, architecture, tokenizer, dtype=dtype)
        return
    assert model.graft is not None
    if gates is not None:
        raise UserError(
            f"{directory} is not written: there is no format for {type(model.graft).__name__} with gates"
        )
    with replacing(Path(directory)) as temporary:
        write(temporary, model.graft, params, base(), architecture)
        write_tokenizer(temporary, tokenizer)


def is_graft(directory: Path) -> bool:
    """Whether a directory holds a graft that `write` wrote."""
    return (directory / ABOUT_FILE).is_file()


def base_of(directory: Path) -> Base:
    """The model that the graft in a directory was trained on.

    Raises:
      UserError: what says so is damaged.
    """
    about = read_json(Path(directory) / ABOUT_FILE, _ABOUT, "export the graft again")
    return Base(str(about["base"]), str(about["base_hash"]))


def read(directory: Path, base: Base, architecture: Architecture) -> tuple[Graft, Params]:
    """Reads a graft that `write` wrote, or LoRA or a prompt of peft's, which do not say their base's weights.

    Args:
      directory: what was written.
      base: what it is to be put on.
      architecture: of the base.

    Returns:
      The graft and what to put over the base's parameters: `graft`, and those of its own that it changes,
      NumPy float32; see `over`.

    Raises:
      UserError: there is none, something is missing or damaged, or it belongs to another base.
    """
    directory = Path(directory)
    about_file = directory / ABOUT_FILE
    if not about_file.is_file():
        config = directory / lora_files.CONFIG_FILE
        if not config.is_file():
            raise UserError(
                f"{directory} has neither {ABOUT_FILE} nor {lora_files.CONFIG_FILE}; name the directory of a "
                "graft"
            )
        peft_type = read_json(config, _PEFT, "save the adapter again").get("peft_type")
        peft: Any = prompt_files if peft_type == prompt_files.PEFT_TYPE else lora_files
        return peft.read(directory, {}, architecture)
    about = read_json(about_file, _ABOUT, "export the graft again")
    if about["graft"] not in KINDS:
        raise UserError(
            f"{about_file}: graft is {shown(about['graft'])}, where {', '.join(KINDS)} are known; it is of "
            "another version of das_jax"
        )
    if about["base_hash"] != base.weights_hash:
        raise UserError(
            f"{directory} was trained on {shown(about['base'])}, and the weights of {shown(base.name)} are "
            "others; give the base that it belongs to, as model.path"
        )
    _, files = KINDS[about["graft"]]
    return files.read(directory, about["settings"], architecture)


def over(params: Params, changes: Params) -> Params:
    """The parameters with those changed that `changes` has; trees, the latter with some of the branches."""
    merged = dict(params)
    for name, value in changes.items():
        inner = isinstance(value, dict) and name in params
        merged[name] = over(params[name], value) if inner else value
    return merged
