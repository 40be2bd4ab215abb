"""HuggingFace checkpoints in and out, against transformers and torch."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file, save_model
from transformers import AutoModel, AutoModelForMaskedLM

from das_jax.errors import UserError
from das_jax.model import huggingface
from das_jax.model.language_model import LanguageModel
from das_jax.model.safetensors_files import conversion_command

FAMILIES = ("bert", "roberta", "xlm-roberta")
WEIGHTS = "model.safetensors"

Stored = Callable[..., Path]


def edit_config(directory: Path, **values: Any) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def edit_tensors(
    directory: Path, edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> None:
    save_file(edit(load_file(directory / WEIGHTS)), directory / WEIGHTS, metadata={"format": "pt"})


def exported(directory: Path, **options: Any) -> Path:
    checkpoint = huggingface.load(directory)
    target = directory.with_name("exported")
    huggingface.export(
        target, checkpoint.params, checkpoint.config, checkpoint.architecture, **options
    )
    return target


def assert_same_bits(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(actual) == set(expected)
    for name, tensor in expected.items():
        assert actual[name].numpy().tobytes() == tensor.numpy().tobytes(), name


def assert_loads_cleanly(directory: Path, log: list[str]) -> Any:
    model, info = AutoModelForMaskedLM.from_pretrained(directory, output_loading_info=True)
    assert not any(info.values()), info
    assert log == []
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_load_then_export_is_the_identity(
    family: str, tied: bool, stored: Stored, transformers_log: list[str]
) -> None:
    directory = stored(family, tied)
    expected = load_file(directory / WEIGHTS)
    if not tied:
        head = "cls.predictions" if family == "bert" else "lm_head"
        # transformers stores a second bias that its model never adds.
        expected[f"{head}.bias"] = expected[f"{head}.decoder.bias"]
    target = exported(directory)
    assert_same_bits(load_file(target / WEIGHTS), expected)
    model = assert_loads_cleanly(target, transformers_log)
    assert model.config.tie_word_embeddings is tied
    assert model.config.architectures == [type(model).__name__]


def test_kernels_are_transposed_and_heads_are_split(
    make_model: Callable[..., Any], tmp_path: Path
) -> None:
    model = make_model("bert")
    model.save_pretrained(tmp_path)
    attention = huggingface.load(tmp_path).params["layers"]["attention"]
    theirs = model.bert.encoder.layer[2].attention
    hidden_D = np.random.default_rng(0).normal(size=24).astype(np.float32)
    query = theirs.self.query(torch.tensor(hidden_D)).detach().numpy().reshape(3, 8)
    kernel, bias = attention["query"]["kernel"][2], attention["query"]["bias"][2]
    np.testing.assert_allclose(
        np.einsum("D,DHK->HK", hidden_D, kernel) + bias, query, rtol=1e-5, atol=1e-6
    )
    output = theirs.output.dense(torch.tensor(query.reshape(24))).detach().numpy()
    kernel, bias = attention["output"]["kernel"][2], attention["output"]["bias"][2]
    np.testing.assert_allclose(
        np.einsum("HK,HKD->D", query, kernel) + bias, output, rtol=1e-5, atol=1e-6
    )


def test_layer_norms_called_gamma_and_beta(stored: Stored, transformers_log: list[str]) -> None:
    directory = stored("bert")
    expected = load_file(directory / WEIGHTS)
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def rename(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        for new, name in old.items():
            tensors = {key.replace(new, name): tensor for key, tensor in tensors.items()}
        return tensors

    edit_tensors(directory, rename)
    target = exported(directory)
    assert_same_bits(load_file(target / WEIGHTS), expected)
    assert_loads_cleanly(target, transformers_log)


def test_sharded_checkpoints_in_and_out(
    stored: Stored, make_model: Callable[..., Any], tmp_path: Path, transformers_log: list[str]
) -> None:
    expected = load_file(stored("roberta") / WEIGHTS)
    sharded = tmp_path / "sharded"
    make_model("roberta").save_pretrained(sharded, max_shard_size="20KB")
    assert not (sharded / WEIGHTS).exists()
    target = exported(sharded, max_shard_size="20KB")
    shards = sorted(target.glob("model-*.safetensors"))
    assert len(shards) > 1
    merged: dict[str, torch.Tensor] = {}
    for shard in shards:
        merged |= load_file(shard)
    assert_same_bits(merged, expected)
    assert_loads_cleanly(target, transformers_log)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_types_are_widened(dtype: torch.dtype, stored: Stored) -> None:
    directory = stored("bert")
    edit_tensors(directory, lambda tensors: {name: x.to(dtype) for name, x in tensors.items()})
    edit_config(directory, torch_dtype=str(dtype).removeprefix("torch."))
    target = exported(directory)
    expected = {name: x.to(torch.float32) for name, x in load_file(directory / WEIGHTS).items()}
    assert_same_bits(load_file(target / WEIGHTS), expected)
    config = json.loads((target / "config.json").read_text())
    assert config["dtype"] == "float32"
    assert "torch_dtype" not in config


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("config_ties", [True, False])
def test_bare_encoder_gets_a_new_tied_head(
    family: str,
    config_ties: bool,
    make_model: Callable[..., Any],
    tmp_path: Path,
    transformers_log: list[str],
) -> None:
    theirs = make_model(family, config_ties)
    encoder = AutoModel.from_config(theirs.config)  # With a pooler, and names without a prefix.
    encoder.save_pretrained(tmp_path / "encoder")
    checkpoint = huggingface.load(tmp_path / "encoder")
    assert any("pooler.dense.weight" in note for note in checkpoint.notes)
    assert any(note.startswith("new: the LM head") for note in checkpoint.notes)
    assert checkpoint.architecture.tied
    head = checkpoint.params["lm_head"]
    assert set(head) == {"dense", "layer_norm", "bias"}
    assert head["dense"]["kernel"].std() == pytest.approx(theirs.config.initializer_range, rel=0.1)
    for value, array in [
        (0, head["dense"]["bias"]),
        (1, head["layer_norm"]["scale"]),
        (0, head["layer_norm"]["bias"]),
        (0, head["bias"]),
    ]:
        np.testing.assert_array_equal(array, value)
    again = huggingface.load(tmp_path / "encoder").params["lm_head"]["dense"]["kernel"]
    np.testing.assert_array_equal(again, head["dense"]["kernel"])
    assert_loads_cleanly(exported(tmp_path / "encoder"), transformers_log)


def test_what_is_no_part_of_the_masked_lm_is_left_out(stored: Stored) -> None:
    directory = stored("bert")
    expected = load_file(directory / WEIGHTS)
    extra = {
        "bert.embeddings.position_ids": torch.arange(20)[None],
        "bert.pooler.dense.weight": torch.ones(24, 24),
        "cls.seq_relationship.weight": torch.ones(2, 24),
    }
    edit_tensors(directory, lambda tensors: {**tensors, **extra})
    (note,) = huggingface.load(directory).notes
    assert all(name in note for name in extra)
    assert_same_bits(load_file(exported(directory) / WEIGHTS), expected)


def test_a_decoder_stored_beside_an_equal_word_embedding_stays_tied(stored: Stored) -> None:
    directory = stored("roberta")
    words = "roberta.embeddings.word_embeddings.weight"
    edit_tensors(
        directory, lambda tensors: {**tensors, "lm_head.decoder.weight": tensors[words].clone()}
    )
    checkpoint = huggingface.load(directory)
    assert checkpoint.architecture.tied
    assert checkpoint.notes == []


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_tied_may_be_stored_under_its_other_name(
    family: str, stored: Stored, make_model: Callable[..., Any]
) -> None:
    directory = stored(family)
    expected = load_file(directory / WEIGHTS)
    # It keeps one name of every tensor, of RoBERTa's word embedding that of the decoder.
    save_model(make_model(family), str(directory / WEIGHTS), metadata={"format": "pt"})
    if family == "bert":
        decoder = "cls.predictions.decoder.weight"
        edit_tensors(directory, lambda tensors: {decoder: tensors.pop(WORDS), **tensors})
    assert not any(
        name.endswith("word_embeddings.weight") for name in load_file(directory / WEIGHTS)
    )
    checkpoint = huggingface.load(directory)
    assert checkpoint.architecture.tied
    assert checkpoint.notes == []
    theirs = AutoModelForMaskedLM.from_pretrained(directory).eval()
    tokens = torch.tensor([[5, 9, 11, 40, 7]])
    model = LanguageModel(checkpoint.architecture)
    hidden = model.encode(checkpoint.params, tokens.numpy(), np.ones((1, 5), bool))
    with torch.no_grad():
        np.testing.assert_allclose(
            model.logits(checkpoint.params, hidden), theirs(tokens).logits, atol=2e-5
        )
    assert_same_bits(load_file(exported(directory) / WEIGHTS), expected)


def test_a_decoder_that_differs_is_kept_whatever_the_configuration_says(stored: Stored) -> None:
    directory = stored("roberta", tied=False)
    edit_config(directory, tie_word_embeddings=True)
    checkpoint = huggingface.load(directory)
    assert not checkpoint.architecture.tied
    assert not checkpoint.config["tie_word_embeddings"]
    (note,) = checkpoint.notes
    assert "lm_head.decoder.weight" in note


def test_the_bias_of_the_decoder_alone_is_enough(stored: Stored) -> None:
    directory = stored("roberta")
    expected = load_file(directory / WEIGHTS)
    edit_tensors(
        directory, lambda tensors: {"lm_head.decoder.bias": tensors.pop("lm_head.bias"), **tensors}
    )
    assert_same_bits(load_file(exported(directory) / WEIGHTS), expected)


def test_absent_keys_of_the_configuration_have_the_defaults_of_transformers(stored: Stored) -> None:
    directory = stored("xlm-roberta", layer_norm_eps=1e-12, hidden_dropout_prob=0.1)
    config = json.loads((directory / "config.json").read_text())
    for key in ("layer_norm_eps", "hidden_dropout_prob", "tie_word_embeddings", "pad_token_id"):
        del config[key]
    (directory / "config.json").write_text(json.dumps(config))
    architecture = huggingface.load(directory).architecture
    assert architecture.layer_norm_eps == 1e-12
    assert architecture.hidden_dropout == 0.1
    assert (architecture.pad_token_id, architecture.first_position, architecture.max_length) == (
        1,
        2,
        18,
    )
    assert architecture.tied


def test_the_identity_is_that_of_the_model_and_not_of_its_weights(stored: Stored) -> None:
    directory = stored("bert")
    identity = huggingface.architecture_of(directory).identity()
    edit_tensors(directory, lambda tensors: {name: x + 1 for name, x in tensors.items()})
    edit_config(directory, somebodys_note="changed")
    assert huggingface.load(directory).architecture.identity() == identity
    edit_config(directory, num_attention_heads=2)
    assert huggingface.load(directory).architecture.identity() != identity


def test_other_keys_of_the_configuration_survive(stored: Stored) -> None:
    directory = stored("bert")
    edit_config(directory, id2label={"0": "fresh"}, somebodys_note="kept")
    assert json.loads((exported(directory) / "config.json").read_text())["somebodys_note"] == "kept"


def test_export_replaces_a_directory_and_leaves_nothing_beside_it(stored: Stored) -> None:
    directory = stored("bert")
    target = exported(directory)
    (target / "stale").touch()
    exported(directory)
    assert {file.name for file in target.iterdir()} == {"config.json", WEIGHTS}
    assert {path.name for path in target.parent.iterdir()} == {"stored", "exported"}


def test_export_to_a_place_that_cannot_be_written(stored: Stored, tmp_path: Path) -> None:
    checkpoint = huggingface.load(stored("bert"))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/x cannot be written"):
        huggingface.export(
            tmp_path / "file" / "x", checkpoint.params, checkpoint.config, checkpoint.architecture
        )


@pytest.mark.slow
def test_pickled_weights_are_refused_with_a_command_that_converts_them(
    stored: Stored, make_model: Callable[..., Any]
) -> None:
    directory = stored("bert")
    expected = load_file(directory / WEIGHTS)
    (directory / WEIGHTS).unlink()
    torch.save(make_model("bert").state_dict(), directory / "pytorch_model.bin")
    (directory / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "word"])
    )
    with pytest.raises(UserError, match="pickled") as refusal:
        huggingface.load(directory)
    command = conversion_command(str(directory), str(directory))
    assert command in str(refusal.value)
    python = command.replace("python", sys.executable, 1)
    subprocess.run(python, shell=True, check=True, capture_output=True)
    assert_same_bits(load_file(exported(directory) / WEIGHTS), expected)


BAD_CONFIGS = [
    (
        {"model_type": "bart"},
        "model_type is 'bart'; supported are bert, roberta, xlm-roberta, modernbert",
    ),
    ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
    ({"is_decoder": True}, "is_decoder is True"),
    ({"add_cross_attention": True}, "add_cross_attention is True"),
    ({"auto_map": {"AutoModel": "theirs.Model"}}, "auto_map is"),
    ({"hidden_act": "mish"}, "hidden_act is 'mish'; supported are gelu, "),
    ({"hidden_size": "24"}, "no valid bert configuration .*hidden_size"),
    ({"num_hidden_layers": 0}, "num_hidden_layers is 0; it must be positive"),
    ({"num_attention_heads": 5}, "hidden_size 24 is no multiple of num_attention_heads 5"),
    ({"pad_token_id": None}, "pad_token_id is None"),
    ({"pad_token_id": 61}, "pad_token_id is 61"),
    ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob is 1.0; it must be in"),
    ({"attention_probs_dropout_prob": float("nan")}, "attention_probs_dropout_prob is nan"),
    ({"layer_norm_eps": float("nan")}, "layer_norm_eps is nan; it must be a small positive number"),
    ({"layer_norm_eps": -1.0}, "layer_norm_eps is -1.0"),
    ({"layer_norm_eps": 0.0}, "layer_norm_eps is 0.0"),
    ({"layer_norm_eps": 1e30}, r"layer_norm_eps is 1e\+30"),
    ({"layer_norm_eps": "1e-12"}, "no valid bert configuration .*layer_norm_eps"),
    ({"initializer_range": float("inf")}, "initializer_range is inf; it must be in"),
    ({"initializer_range": -0.02}, "initializer_range is -0.02"),
    ({"model_type": ["bert"]}, r"model_type is \['bert'\]"),
    ({"pruned_heads": {"0": [1]}}, "pruned_heads is"),
    ({"id2label": "x"}, "no valid bert configuration"),
    ({"num_labels": 10**20}, "num_labels is 1000"),
    ({"num_hidden_layers": 10**9}, "too few for the 1000000000 layers"),
    ({"vocab_size": 10**15}, r"has the shape \[61, 24\] where .* \[1000000000000000, 24\]"),
]


@pytest.mark.parametrize(("values", "message"), BAD_CONFIGS)
def test_unsupported_configurations(values: dict[str, Any], message: str, stored: Stored) -> None:
    directory = stored("bert")
    edit_config(directory, **values)
    with pytest.raises(UserError, match=message) as error:
        huggingface.load(directory)
    assert str(directory) in str(error.value)


@pytest.mark.parametrize("text", ["{", "[]", "\udc80"])
def test_damaged_configuration(text: str, stored: Stored) -> None:
    directory = stored("bert")
    (directory / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"config\.json (cannot be read|holds no JSON object)"):
        huggingface.load(directory)


WORDS = "bert.embeddings.word_embeddings.weight"
QUERY = "bert.encoder.layer.1.attention.self.query.weight"


def spoilt(tensors: dict[str, torch.Tensor], name: str, value: float) -> dict[str, torch.Tensor]:
    tensors[name].view(-1)[5] = value
    return tensors


BAD_TENSORS = [
    (lambda t: {k: v for k, v in t.items() if k != QUERY}, f"lacks {QUERY}"),
    (lambda t: {k: v for k, v in t.items() if k != WORDS}, f"lacks {WORDS}"),
    (
        lambda t: {**t, WORDS: t[WORDS][:-1].clone()},
        rf"{WORDS} has the shape \[60, 24\] where .* \[61, 24\]",
    ),
    # The number of elements is right, their order is not known.
    (lambda t: {**t, QUERY: t[QUERY].reshape(12, 48)}, rf"{QUERY} has the shape \[12, 48\]"),
    (lambda t: {**t, QUERY: t[QUERY].to(torch.int8)}, f"{QUERY} is stored as I8"),
    (lambda t: {**t, QUERY: t[QUERY].double()}, f"{QUERY} is stored as F64"),
    (lambda t: {**t, QUERY: t[QUERY].to(torch.float8_e4m3fn)}, f"{QUERY} is stored as F8"),
    (lambda t: spoilt(t, WORDS, torch.nan), rf"{WORDS} holds nan \(1 of 1,464 numbers"),
    (lambda t: spoilt(t, QUERY, -torch.inf), rf"{QUERY} holds -inf \(1 of 576 numbers"),
    (lambda t: spoilt(t, "cls.predictions.bias", torch.inf), r"cls\.predictions\.bias holds inf"),
    (
        lambda t: spoilt({k: x.half() for k, x in t.items()}, QUERY, torch.nan),
        rf"{QUERY} holds nan \(1 of",
    ),
    (
        lambda t: {**t, "classifier.weight": torch.ones(1)},
        "no bert masked LM has: classifier.weight",
    ),
    (
        lambda t: {**t, QUERY.replace(".1.", ".3."): t[QUERY].clone()},
        "no bert masked LM has: .*layer.3",
    ),
    (lambda t: {**t, WORDS.removeprefix("bert."): t[WORDS].clone()}, f"holds {WORDS} twice"),
]


@pytest.mark.parametrize(("edit", "message"), BAD_TENSORS)
def test_tensors_that_are_missing_wrong_or_unknown(edit: Any, message: str, stored: Stored) -> None:
    directory = stored("bert")
    edit_tensors(directory, edit)
    with pytest.raises(UserError, match=message) as error:
        huggingface.load(directory)
    assert str(directory / WEIGHTS) in str(error.value)


def test_an_untied_head_without_decoder(stored: Stored) -> None:
    directory = stored("bert")
    edit_config(directory, tie_word_embeddings=False)
    with pytest.raises(UserError, match=r"lacks cls\.predictions\.decoder\.weight"):
        huggingface.load(directory)


@pytest.mark.parametrize("keep", [0, 4, 1000, -1])
def test_weights_cut_short(keep: int, stored: Stored) -> None:
    file = stored("bert") / WEIGHTS
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged or cut short"):
        huggingface.load(file.parent)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt"]
)
def test_pickles_are_never_opened(name: str, stored: Stored) -> None:
    directory = stored("bert")
    (directory / WEIGHTS).rename(directory / name)
    with pytest.raises(UserError, match="only pickled weights"):
        huggingface.load(directory)


def test_no_weights_and_no_checkpoint(stored: Stored, tmp_path: Path) -> None:
    directory = stored("bert")
    (directory / WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"has neither model\.safetensors nor"):
        huggingface.load(directory)
    with pytest.raises(UserError, match=r"has no config\.json"):
        huggingface.load(tmp_path)


def test_damaged_shards(make_model: Callable[..., Any], tmp_path: Path) -> None:
    make_model("bert").save_pretrained(tmp_path, max_shard_size="20KB")
    index = tmp_path / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    first, last = (sorted(set(good["weight_map"].values()))[i] for i in (0, -1))

    index.write_text(json.dumps({"weight_map": {**good["weight_map"], WORDS: last}}))
    with pytest.raises(UserError, match=f"{last} lacks {WORDS}"):
        huggingface.load(tmp_path)
    index.write_text(json.dumps({"weight_map": {**good["weight_map"], WORDS: f"../{first}"}}))
    with pytest.raises(UserError, match="no file beside it"):
        huggingface.load(tmp_path)
    index.write_text("{}")
    with pytest.raises(UserError, match=r"index\.json is damaged"):
        huggingface.load(tmp_path)
    index.write_text(json.dumps(good))
    (tmp_path / first).unlink()
    with pytest.raises(UserError, match=f"{first} is missing"):
        huggingface.load(tmp_path)


def test_resolve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert huggingface.resolve(str(tmp_path), tmp_path / "cache") == tmp_path
    with pytest.raises(UserError, match=r"model\.path \./no/such/directory is no directory"):
        huggingface.resolve("./no/such/directory", tmp_path)
    with pytest.raises(UserError, match=r"roberta-base is no directory and could not be fetched"):
        huggingface.resolve("roberta-base", tmp_path)

    def download(
        name: str, cache_dir: Path, allow_patterns: list[str], ignore_patterns: list[str]
    ) -> str:
        assert not any(pattern.endswith((".bin", "*")) for pattern in allow_patterns)
        (cache_dir / "snapshot").mkdir(parents=True, exist_ok=True)
        return str(cache_dir / "snapshot")

    monkeypatch.setattr(huggingface, "snapshot_download", download)
    with pytest.raises(
        UserError, match=r"org/model has no safetensors on the hub.*from_pretrained\('org/model'\)"
    ):
        huggingface.resolve("org/model", tmp_path)
    (tmp_path / "hub" / "snapshot" / WEIGHTS).touch()
    assert huggingface.resolve("org/model", tmp_path) == tmp_path / "hub" / "snapshot"

    def offline(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("no connection\nmore")

    monkeypatch.setattr(huggingface, "snapshot_download", offline)
    with pytest.raises(UserError, match=r"\(no connection\); correct it, or check the network"):
        huggingface.resolve("org/model", tmp_path)
