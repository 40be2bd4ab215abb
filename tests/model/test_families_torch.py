"""ModernBERT and the decoders against torch: every norm, what rotary positions do, each sublayer, the whole
model, and what transformers loads of an export.

Models are small and random, but with every bias and option that the golden ones lack: windows, linear
scaling, caps, one key-value head, and an epsilon that is large enough to be seen.
"""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from das_jax.model import block, huggingface
from das_jax.model.architecture import Architecture
from das_jax.model.attention import ATTENTION
from das_jax.model.block import NO_SEEDS, Attention, FeedForward, Form, Places
from das_jax.model.embeddings import Embeddings
from das_jax.model.huggingface_weights import Row, table
from das_jax.model.language_model import LanguageModel
from das_jax.model.leaves import leaves_of
from das_jax.model.norms import norm
from das_jax.model.transformer import turns_of
from tests.conftest import GOLDEN

FULL, SLIDING = "full_attention", "sliding_attention"
LINEAR = {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0}
WINDOWS = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "modernbert": (
        "modernbert",
        {"norm_eps": 1e-2, "norm_bias": True, "attention_bias": True, "mlp_bias": True}
        | {"classifier_bias": True, "classifier_activation": "silu"},
    ),
    "gpt2": ("gpt2", {"layer_norm_epsilon": 1e-2}),
    "llama": ("llama", {"rms_norm_eps": 1e-2, "attention_bias": True, "mlp_bias": True}),
    "llama-linear": ("llama", {"rope_parameters": LINEAR, "num_key_value_heads": 4}),
    "qwen2": ("qwen2", {"rms_norm_eps": 1e-2, "layer_types": [FULL, SLIDING], **WINDOWS}),
    "qwen3": (
        "qwen3",
        {"rms_norm_eps": 1e-2, "attention_bias": True, "num_key_value_heads": 1}
        | {"layer_types": [FULL, SLIDING, SLIDING], **WINDOWS},
    ),
    "gemma2": ("gemma2", {"rms_norm_eps": 1e-2, "attention_bias": True}),
    "gemma3": (
        "gemma3",
        {"rms_norm_eps": 1e-2, "final_logit_softcapping": 2.0}
        | {"rope_parameters": {FULL: LINEAR, SLIDING: {"rope_type": "default", "rope_theta": 9.0}}},
    ),
}
LENGTHS = (13, 7, 2)


@dataclass(frozen=True)
class Pair:
    """One model twice, and what torch made of a padded batch.

    Attributes:
      theirs: transformers' model.
      checkpoint: ours, read from its directory.
      tokens_BxT: the batch.
      mask_BxT: its real tokens.
      seen: by module, the first of what it was given and of what it gave.
      turned: by layer, its queries and keys as attention got them, [B, H, T, K].
      output: of the model.
    """

    theirs: Any
    checkpoint: huggingface.Checkpoint
    tokens_BxT: np.ndarray
    mask_BxT: np.ndarray
    seen: dict[str, tuple[Any, Any]]
    turned: dict[int, tuple[Any, Any]]
    output: Any

    @property
    def architecture(self) -> Architecture:
        return self.checkpoint.architecture

    def rows(self) -> dict[str, Row]:
        return {row.path: row for row in table(leaves_of(self.architecture), self.architecture)}

    def layer(self, number: int, part: str) -> Any:
        """The parameters of a sublayer."""
        return {"params": jax.tree.map(lambda x: x[number], self.checkpoint.params["layers"][part])}

    def alone(self, number: int) -> Architecture:
        """The architecture of a layer, as if it were the model's only one."""
        arch = self.architecture
        reaches = arch.reaches[number : number + 1]
        of_layers = arch.rotary_of_layers
        rotary = (arch.rotary[of_layers[number]],) if of_layers else arch.rotary
        return replace(arch, num_layers=1, reaches=reaches, rotary=rotary, rotary_of_layers=())

    def assert_close(self, ours: Any, theirs: Any, tolerance: float = 1e-5) -> None:
        """At real tokens, relative to the largest entry."""
        expected = theirs.detach().numpy()[self.mask_BxT]
        error = np.abs(np.asarray(ours)[self.mask_BxT] - expected).max()
        assert error <= tolerance * np.abs(expected).max()


def build(family: str, changes: dict[str, Any]) -> Any:
    values = json.loads((GOLDEN / family / "model" / "config.json").read_text())
    values = {key: value for key, value in {**values, **changes}.items() if key != "dtype"}
    config = transformers.AutoConfig.for_model(**values)
    kind = transformers.AutoModelForCausalLM
    if family == "modernbert":
        kind = transformers.AutoModelForMaskedLM
    model = kind.from_config(config, attn_implementation="eager")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
            if "norm" in name or "ln_" in name:
                parameter.add_(0.7)
    return model.eval()


@pytest.fixture(scope="module", params=MODELS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    family, changes = MODELS[request.param]
    transformers.utils.logging.disable_progress_bar()
    theirs = build(family, changes)
    directory = tmp_path_factory.mktemp("stored")
    theirs.save_pretrained(directory)
    checkpoint = huggingface.load(directory)
    shape = len(LENGTHS), max(LENGTHS)
    tokens = np.random.default_rng(1).integers(5, checkpoint.architecture.vocab_size, shape)
    mask = np.arange(shape[1]) < np.array(LENGTHS)[:, None]
    seen: dict[str, tuple[Any, Any]] = {}
    turned: dict[int, tuple[Any, Any]] = {}

    def watch(name: str) -> Any:
        def hook(_: Any, args: Any, kwargs: Any, output: Any) -> None:
            given = args[0] if args else kwargs.get("hidden_states")
            seen[name] = given, output[0] if isinstance(output, tuple) else output

        return hook

    for name, module in theirs.named_modules():
        module.register_forward_hook(watch(name), with_kwargs=True)
    code = sys.modules[type(theirs).__module__]
    usual = code.eager_attention_forward

    def spying(module: Any, query: Any, key: Any, *rest: Any, **more: Any) -> Any:
        turned[module.layer_idx] = query, key
        return usual(module, query, key, *rest, **more)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(code, "eager_attention_forward", spying)
        real = torch.tensor(mask)
        output = theirs(
            torch.tensor(tokens),
            attention_mask=real.long(),
            labels=torch.where(real, torch.tensor(tokens), -100),
        )
    return Pair(theirs, checkpoint, tokens, mask, seen, turned, output)


def test_the_class_is_that_of_the_family(pair: Pair) -> None:
    assert pair.checkpoint.notes == []
    assert pair.checkpoint.config["architectures"] == [type(pair.theirs).__name__]


def test_embeddings(pair: Pair) -> None:
    module = Embeddings(pair.architecture, jnp.float32)
    params = {"params": pair.checkpoint.params["embeddings"]}
    ours = module.apply(params, jnp.asarray(pair.tokens_BxT), jnp.asarray(pair.mask_BxT), None)
    first = pair.rows()["layers/feed_forward/input_norm/scale"].name.format(0).rsplit(".", 2)[0]
    pair.assert_close(ours, pair.seen[first][0])


def test_every_norm(pair: Pair) -> None:
    leaves = {}
    for path, row in pair.rows().items():
        module, _, last = path.rpartition("/")
        if last == "scale":
            leaves[module] = row
    assert len(leaves) >= 3
    for path, row in leaves.items():
        own = pair.checkpoint.params
        for key in path.split("/"):
            own = own[key]
        names = row.names(pair.architecture.num_layers)
        for number, name in enumerate(names, row.first):
            params = jax.tree.map(lambda x, n=number: x[n], own) if "{}" in row.name else own
            given, expected = pair.seen[name.removesuffix(".weight")]
            module = norm(pair.architecture, jnp.float32, "norm")
            ours = module.apply({"params": params}, jnp.asarray(given.numpy()))
            np.testing.assert_allclose(ours, expected.numpy(), rtol=1e-5, atol=1e-5)


def test_rotary_tables(pair: Pair) -> None:
    arch = pair.architecture
    if not arch.rotary:
        pytest.skip("a table of positions")
    module = pair.theirs.base_model.rotary_emb
    for number, own in enumerate(arch.rotary):
        kind = "" if len(arch.rotary) == 1 else f"{(FULL, SLIDING)[number]}_"
        expected = getattr(module, f"{kind}inv_freq").numpy()
        np.testing.assert_allclose(own.frequencies(arch.head_size), expected, rtol=1e-5)


def test_sublayers(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries and keys as attention gets them; the sum behind attention; the layer."""
    got: list[tuple[jax.Array, jax.Array]] = []

    def spying(query: jax.Array, key: jax.Array, *rest: Any) -> jax.Array:
        got.append((query, key))
        return ATTENTION["dense"](query, key, *rest)

    monkeypatch.setattr(block, "ATTENTION", {"spying": spying})
    second = pair.rows()["layers/feed_forward/input_norm/scale"]
    for number, name in enumerate(second.names(pair.architecture.num_layers)):
        module = name.removesuffix(".weight")
        hidden, output = pair.seen[module.rpartition(".")[0]]
        arch = pair.alone(number)
        places = Places(
            jnp.asarray(pair.mask_BxT), turns=turns_of(arch, pair.tokens_BxT.shape[1], None)
        )
        form = None if arch.first_norm else Form(first_norm=jnp.asarray(number > 0))
        between, _ = Attention(arch, jnp.float32, "spying").apply(
            pair.layer(number, "attention"),
            *(jnp.asarray(hidden.numpy()), places, NO_SEEDS, None),
            form=form,
        )
        for ours, theirs in zip(got.pop(), pair.turned[number], strict=True):
            pair.assert_close(ours, theirs.transpose(1, 2))
        given, _ = pair.seen[module]
        pair.assert_close(between, given)
        after = FeedForward(arch, jnp.float32).apply(
            pair.layer(number, "feed_forward"), jnp.asarray(given.numpy()), NO_SEEDS, None, None
        )
        pair.assert_close(after, output)


def logits_of(pair: Pair, params: Any) -> np.ndarray:
    model = LanguageModel(pair.architecture)
    hidden = model.encode(params, jnp.asarray(pair.tokens_BxT), jnp.asarray(pair.mask_BxT))
    return np.asarray(model.logits(params, hidden))


def test_logits_and_loss(pair: Pair) -> None:
    """transformers shifts the labels of a decoder itself."""
    logits = logits_of(pair, pair.checkpoint.params)
    pair.assert_close(logits, pair.output.logits)
    tokens, counts = pair.tokens_BxT, pair.mask_BxT
    if pair.architecture.causal:
        logits, tokens, counts = logits[:, :-1], tokens[:, 1:], counts[:, 1:]
    picked = np.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    losses = np.asarray(jax.nn.logsumexp(logits, axis=-1)) - picked
    np.testing.assert_allclose(losses[counts].mean(), pair.output.loss.item(), rtol=1e-5)


def test_an_export_loads_in_transformers(
    pair: Pair, tmp_path: Path, transformers_log: list[str]
) -> None:
    """Trained parameters, several files: the same logits, and nothing missing or left over."""
    random = np.random.default_rng(5)
    params = jax.tree.map(
        lambda x: (x + 0.1 * random.normal(size=x.shape)).astype(np.float32),
        pair.checkpoint.params,
    )
    huggingface.export(
        *(tmp_path / "out", params, pair.checkpoint.config, pair.architecture),
        max_shard_size="20KB",
    )
    kind = transformers.AutoModelForMaskedLM
    if pair.architecture.causal:
        kind = transformers.AutoModelForCausalLM
    model, info = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    assert transformers_log == []
    assert type(model) is type(pair.theirs)
    with torch.no_grad():
        mask = torch.tensor(pair.mask_BxT).long()
        theirs = model.eval()(torch.tensor(pair.tokens_BxT), attention_mask=mask).logits
    pair.assert_close(logits_of(pair, params), theirs, 1e-4)
    assert np.abs(theirs.numpy() - pair.output.logits.numpy()).max() > 1e-2
