"""Prints which paths a configuration names, one a line: `output` or `input`, its key, and the path.

Run by scripts/tpu_vm/run in the checkout. What would not be on a slice, or be lost with it, is
refused. The exit status is 3 where das_jax is not installed.
"""

import sys
from pathlib import Path, PurePosixPath

try:
    from das_jax.config.load import leaves, load_config
    from das_jax.errors import UserError
except ImportError:
    sys.exit(3)


def main(words: list[str]) -> None:
    """Checks the configuration of `das-jax prepare` or `pretrain`, whose further words these are."""
    overrides = [word for word in words if word.startswith("--") and word != "--quiet"]
    files = [word for word in words if not word.startswith("--")]
    if len(files) != 1:
        raise UserError("give one configuration file after the verb")
    (file,) = files
    print("input", "the configuration", _relative("the configuration", file), sep="\t")
    found = leaves(load_config(file, overrides).config)
    print("output", "output_dir", _relative("output_dir", found["output_dir"]), sep="\t")
    for key, value in found.items():
        is_path = key.endswith((".path", ".data_dir")) and value
        if not is_path or (key == "model.path" and not _is_directory(value)):
            continue  # A model that is no directory here is a name on the hub.
        if "://" not in value:
            value = _relative(key, value)
        if value.startswith("s3://"):
            continue
        if key == "model.path":
            value += "/config.json"
        if key.endswith(".data_dir"):
            value += "/**"
        print("input", key, value, sep="\t")


def _is_directory(path: str) -> bool:
    return Path(path).expanduser().is_dir() or path.startswith((".", "/", "~", "models/"))


def _relative(key: str, path: str) -> str:
    if "://" in path:
        raise UserError(
            f"{key}: {path} is no path on a slice; give one in the checkout, as runs/mine"
        )
    if path.startswith(("/", "~")) or ".." in PurePosixPath(path).parts:
        raise UserError(
            f"{key}: {path} is not in the bucket, where all is that outlives a slice; give a path from the "
            "checkout on, which is the same path in the bucket, such as runs/mine or corpora/mine"
        )
    return str(PurePosixPath(path))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit("\n".join(f"run: {line}" for line in str(error).splitlines()))
