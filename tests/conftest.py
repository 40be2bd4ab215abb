"""Strict tests on eight fake CPU devices; `--platform` takes the golden arrays to an accelerator."""

import os

from jaxlib.version import __version_info__ as jaxlib_version

# JAX reads these once, when it is imported.
os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling is most of the time that the tests take. The older code generator takes a third less of it, and a
# program that is not cut into parts for several cores another fifth: each worker has one core. jaxlib 0.11
# has no older one, and a flag that XLA does not know ends the process.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        *(["--xla_cpu_use_fusion_emitters=false"] if jaxlib_version < (0, 11) else []),
        "--xla_cpu_parallel_codegen_split_count=1",
    ]
)
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
# A test that asks a hub for something is a mistake; it should fail at once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import functools
import gc
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

from das_jax.data.batch import Batch
from das_jax.data.masking import Masking
from das_jax.data.objective import HiddenTokens
from das_jax.model.architecture import Architecture
from das_jax.model.language_model import LanguageModel, Params

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# A worker finds in memory what it has compiled; writing it to disk, too, as a run does from when it begins,
# takes another tenth of the time that compiling takes. Runs in processes of their own do it.
jax.config.update("jax_enable_compilation_cache", False)
# Tracing makes so many objects that Python would look for garbage in all it has imported again and again.
gc.collect()
gc.freeze()
gc.set_threshold(50_000, 20, 20)
flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags, which pytest never parses.

pytest_plugins = ["tests.project", "tests.golden_case"]

# The same examples every time, and no time limit on a busy machine.
hypothesis.settings.register_profile("das_jax", deadline=None, derandomize=True)
hypothesis.settings.register_profile("long", deadline=None, max_examples=1000)
hypothesis.settings.load_profile("das_jax")


GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        type=Path,
        default=GOLDEN,
        metavar="DIR",
        help="compare with other golden arrays: DIR/bert, DIR/llama and so on, as far as they are there, for "
        "DAS, DIR/systems/bert and DIR/systems/roberta for the other methods (see tests/golden/README.md)",
    )
    parser.addoption(
        "--platform",
        default="cpu",
        choices=("cpu", "gpu", "tpu"),
        help="where tests/test_golden*.py compute; all other tests want the CPU",
    )


def pytest_configure(config: pytest.Config) -> None:
    """On an accelerator: programs as users get them, but float32 products that are not rounded to TF32 or
    bfloat16 first.
    """
    platform = config.getoption("platform")
    if platform == "cpu":
        return
    jax.config.update("jax_platforms", "")
    jax.config.update("jax_disable_most_optimizations", False)
    jax.config.update("jax_default_matmul_precision", "highest")
    if jax.default_backend() != platform:
        raise pytest.UsageError(
            f"--platform={platform}: JAX finds only the {jax.default_backend()} here; install its extra for "
            "that device, or leave the option out"
        )


FAMILIES = ("bert", "roberta")
DECODERS = ("gpt2", "llama", "qwen2", "qwen3", "gemma2", "gemma3")
PRECISIONS = ("float32", "float64")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`arch`, `decoder` and `precision`: of golden arrays every pair.

    Of the other methods' arrays each family and each precision once: what a family does otherwise (positions,
    token types, padding) and what a precision hides show in one of the two. Arrays from elsewhere are
    compared in all four pairs.
    """
    asked = [name for name in ("arch", "decoder", "precision") if name in metafunc.fixturenames]
    values = {"arch": FAMILIES, "decoder": DECODERS, "precision": PRECISIONS}
    choices = list(itertools.product(*(values[name] for name in asked)))
    ours = metafunc.config.getoption("golden") == GOLDEN
    if "system_case" in metafunc.fixturenames and ours:
        choices = list(zip(FAMILIES, PRECISIONS, strict=True))
    if asked:
        metafunc.parametrize(asked, choices)


class Golden(NamedTuple):
    """A tiny model and what DAS computes on it; see tests/golden/README.md."""

    model: Path
    arrays: dict[str, np.ndarray]


@pytest.fixture(scope="session")
def golden(request: pytest.FixtureRequest) -> Callable[[str], Golden]:
    """`golden("bert")`, of any family; skips one that other arrays lack."""
    directory = request.config.getoption("golden")

    def load(arch: str) -> Golden:
        if directory != GOLDEN and not (directory / arch).exists():
            pytest.skip(f"no golden arrays of {arch} in {directory}")
        with np.load(directory / arch / "golden.npz", allow_pickle=False) as archive:
            return Golden(directory / arch / "model", dict(archive))

    return load


class Systems(NamedTuple):
    """Another tiny model and what the other methods compute on it; see tests/golden/README.md.

    Attributes:
      model: the directory of the checkpoint.
      arguments: the sizes it was made with.
      arrays: the arrays of a family, such as `ewc`; read when they are asked for.
    """

    model: Path
    arguments: dict[str, Any]
    arrays: Callable[[str], dict[str, np.ndarray]]


@pytest.fixture(scope="session")
def systems(request: pytest.FixtureRequest) -> Callable[[str], Systems]:
    """`systems("bert")` or `systems("roberta")`."""
    directory = request.config.getoption("golden") / "systems"

    @functools.cache
    def arrays(arch: str, family: str) -> dict[str, np.ndarray]:
        with np.load(directory / arch / f"{family}.npz", allow_pickle=False) as archive:
            return dict(archive)

    def load(arch: str) -> Systems:
        arguments = json.loads((directory / arch / "arguments.json").read_text())
        return Systems(directory / arch / "model", arguments, functools.partial(arrays, arch))

    return load


@pytest.fixture(scope="module")
def optimised() -> Iterator[None]:
    """Programs as users get them, where these are what is tested."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session")
def demo_cache() -> Path:
    """The usual cache, so that demo assets are fetched once per machine."""
    return Path("~/.cache/das_jax").expanduser()


@pytest.fixture(scope="session")
def model() -> LanguageModel:
    """A tiny RoBERTa with dropout."""
    return LanguageModel(
        Architecture(
            family="roberta",
            vocab_size=64,
            num_layers=2,
            hidden_size=16,
            num_heads=4,
            intermediate_size=24,
            position_rows=20,
            type_vocab_size=1,
            pad_token_id=1,
            first_position=2,
            layer_norm_eps=1e-5,
            activation="gelu",
            hidden_dropout=0.1,
            attention_dropout=0.1,
            initializer_range=0.2,
            tied=True,
            classifier_input_dropout=True,
        )
    )


@pytest.fixture(scope="session")
def params(model: LanguageModel) -> Params:
    """Random parameters of it."""
    return jax.jit(model.init)(jax.random.key(0))


@pytest.fixture(scope="session")
def objective() -> HiddenTokens:
    return HiddenTokens(
        Masking(mask_token=4, special_tokens=(0, 1, 2, 4), vocab_size=64), padding=1
    )


@pytest.fixture(scope="session")
def batch() -> Batch:
    """Eight texts of 16 tokens, the last ones padded."""
    tokens = jax.random.randint(jax.random.key(9), (8, 16), 5, 64)
    tokens = tokens.at[:, 0].set(0).at[:, 15].set(2).at[6:, 10:].set(1)
    return Batch(tokens, jnp.arange(8, dtype=jnp.uint32), jnp.ones(8))
