"""replay, derpp and self_replay: what is kept of a domain, or made before it, and what steps make of it."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from das_jax.data.batch import Batch
from das_jax.data.batches import train_batches
from das_jax.data.hashing import hashed
from das_jax.data.masking import Masked, Masking
from das_jax.data.objective import HiddenTokens
from das_jax.data.stream_batches import stream_batches
from das_jax.data.streams import OWN
from das_jax.errors import UserError
from das_jax.methods.contract import Learned, Method, Moment, Place
from das_jax.methods.derpp import DERpp
from das_jax.methods.naive import Naive
from das_jax.methods.net import Net
from das_jax.methods.replay import Replay
from das_jax.methods.self_replay import SelfReplay
from das_jax.methods.settings.whole_model import (
    DERppSettings,
    NaiveSettings,
    ReplaySettings,
    SelfReplaySettings,
)
from das_jax.model.language_model import LanguageModel, Params
from das_jax.training.accumulate import TrainingDomain
from das_jax.training.console import Console
from das_jax.training.flops import train_step_flops
from das_jax.training.optimizer import Optimizer
from das_jax.training.sharding import Sharding, make_sharding
from das_jax.training.step import Recipe, first_state, make_train_step
from tests.golden_case import Case

SEED = 5
PLAIN = Optimizer(optax.identity(), lambda step: 1.0)
"""Parameters move by their gradients."""


class Text:
    """Chunks of random words; see `data.batches.Chunks`."""

    def __init__(self, seed: int, count: int) -> None:
        words = np.random.default_rng(seed).integers(5, 64, (count, 16))
        words[:, 0], words[:, -1], words[::3, 11:] = 0, 2, 1
        self._tokens = words.astype(np.int32)

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitems__(self, indices: Any, /) -> np.ndarray:
        assert len(indices), "nothing cannot be read of files"
        return self._tokens[np.asarray(indices)]


def domain_of(method: Method, index: int, text: Text, sharding: Sharding) -> TrainingDomain:
    place = Place(index, ("text",), (len(text),), batch_size=8)
    return TrainingDomain(
        index=index,
        name="text",
        rng=sharding.replicate(jax.random.key(index)),
        directory=None,
        train=text,
        seed=SEED,
        order=0,
        sharding=sharding,
        console=Console(quiet=True),
        plan=method.plan(place),
        history=None,  # type: ignore[arg-type]
        texts=None,  # type: ignore[arg-type]
    )


def filled(method: Method, params: Params, counts: tuple[int, ...]) -> Mapping[str, np.ndarray]:
    """What is kept after domains of so many chunks."""
    sharding, learned = make_sharding(1), Learned(params, ())
    for index, count in enumerate(counts):
        domain = domain_of(method, index, Text(index, count), sharding)
        learned = method.end(learned, domain)
    return learned.kept


@pytest.mark.parametrize(("per_domain", "wanted"), [("proportional", None), ("equal", [4, 3, 3])])
def test_what_is_replayed_is_of_earlier_domains(
    model: LanguageModel, objective: HiddenTokens, per_domain: Any, wanted: list[int] | None
) -> None:
    settings = ReplaySettings(share=0.5, buffer=10, per_domain=per_domain)
    method, counts = Replay(model, objective, settings), (20, 30, 25)
    place = Place(0, ("text",), (20,), batch_size=8)
    chunks = {chunk.tobytes() for chunk in Text(2, 25).__getitems__(np.arange(25))}
    for learned in range(1, 4):
        kept = filled(method, {}, counts[:learned])
        keys = np.concatenate(
            [hashed(SEED, d, np.arange(n)) for d, n in enumerate(counts[:learned])]
        )
        if wanted is None:  # A uniform sample of all there was, with the seed of the run.
            np.testing.assert_array_equal(kept["key"], np.sort(keys)[:10])
        assert kept["domain"].max() == learned - 1
    if wanted is not None:
        assert np.bincount(kept["domain"]).tolist() == wanted
    # In the third domain, a batch is half of the first two.
    batches = stream_batches(
        method.plan(place).streams,
        {OWN: Text(2, 25)},
        filled(method, {}, counts[:2]),
        batch_size=8,
        seed=0,
    )
    for _ in range(5):
        own = [row.tobytes() in chunks for row in next(batches)["tokens"]]
        assert sum(own) == 4


def test_a_domain_of_which_nothing_is_kept_changes_nothing(
    model: LanguageModel, objective: HiddenTokens
) -> None:
    method = Replay(model, objective, ReplaySettings(buffer=10))
    before, after = (filled(method, {}, counts) for counts in ((300,), (300, 2)))
    assert set(after["domain"]) == {0}
    np.testing.assert_equal(after, before)


def test_while_nothing_is_kept_training_is_plain(
    model: LanguageModel, objective: HiddenTokens, params: Params, batch: Batch
) -> None:
    """The same program and the same batches, so the first domain is learned to the same bits; the program of
    replay is always that.
    """

    def program(method: Method) -> str:
        plan = method.plan(Place(0, ("text",), (99,), batch_size=8))
        recipe = Recipe(method, plan, PLAIN)
        state = first_state(recipe, make_sharding(1), params, (), jax.random.key(0))
        return str(jax.make_jaxpr(make_train_step(recipe))(state, batch))

    plain = program(Naive(model, objective, NaiveSettings()))
    replay = Replay(model, objective, ReplaySettings(share=0.25, buffer=9))
    derpp = DERpp(model, objective, DERppSettings(buffer=9))
    text = Text(0, 30)
    for method in (replay, derpp):
        assert program(method) == plain
        plan = method.plan(Place(0, ("text",), (30,), batch_size=8))
        rows = {"batch_size": 8, "seed": 3}
        own = stream_batches(plan.streams, {OWN: text}, {}, kept_rows=plan.kept_rows, **rows)
        plainly = train_batches(text, **rows)
        for actual, wanted in itertools.islice(zip(own, plainly, strict=True), 5):
            np.testing.assert_equal(actual, wanted)


MASKED: Any = SimpleNamespace(architecture=SimpleNamespace(causal=False))


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (Replay(None, None, ReplaySettings(buffer=31)), "buffer is 31, more than the 30 chunks"),  # type: ignore[arg-type]
        (DERpp(None, None, DERppSettings(buffer=31)), "buffer is 31, more than the 30 chunks"),  # type: ignore[arg-type]
        (DERpp(None, None, DERppSettings(buffer=7)), "buffer is 7, fewer than the 8 rows"),  # type: ignore[arg-type]
        (
            DERpp(None, None, DERppSettings(rows=0.05)),
            "rows is 0.05, which makes no row beside a batch of 8",
        ),  # type: ignore[arg-type]
        (
            SelfReplay(MASKED, None, SelfReplaySettings(rows=1, buffer=7)),  # type: ignore[arg-type]
            "buffer is 7, fewer than the 8 rows",
        ),
        (
            SelfReplay(MASKED, None, SelfReplaySettings(rows=4)),  # type: ignore[arg-type]
            "rows is 4, which puts 32 rows beside every batch, but text has 30 chunks",
        ),
    ],
)
def test_a_buffer_or_rows_that_do_not_fit_are_refused_by_the_plan(
    method: Method, said: str
) -> None:
    place = Place(0, ("text",), (30,), batch_size=8)
    with pytest.raises(UserError, match=said):
        method.plan(place)


@dataclasses.dataclass(frozen=True)
class Given(Masking):
    """The corruption that the golden arrays were made with."""

    masked: Masked | None = None

    def corrupt(self, tokens_BxT: jax.Array, keys_B: jax.Array) -> Masked:
        assert self.masked is not None
        return self.masked


def without_dropout(model: LanguageModel) -> LanguageModel:
    arch = dataclasses.replace(model.architecture, hidden_dropout=0.0, attention_dropout=0.0)
    return dataclasses.replace(model, architecture=arch)


def losses(method: Method) -> Callable[..., Any]:
    """(params, batch, rng) -> loss and its parts."""

    def loss(params: Params, batch: Batch, rng: jax.Array) -> Any:
        moment = Moment(jnp.int32(1), jnp.int32(0), 1, rng)
        return method.loss(Net(method.model, params), (), batch, moment)

    return loss


def test_derpp_against_golden_arrays(system_case: Case) -> None:
    case, inputs = system_case.of("derpp"), system_case
    now, stored = inputs.masked("a."), inputs.masked("b.")
    masking = Given(mask_token=0, special_tokens=(), vocab_size=1, masked=now)
    objective = HiddenTokens(masking, padding=case.model.architecture.pad_token_id)
    buffer, at = case.array("buffer.hidden"), stored.positions[..., None]
    kept = {
        "tokens": inputs.array("b.input_ids"),
        "corrupted": stored.tokens,
        "positions": stored.positions,
        "labels": stored.labels,
        "weights": stored.weights,
        "index": jnp.arange(len(stored.tokens)),
    }
    hidden = {"targets": jnp.take_along_axis(buffer, at, axis=1), "tokens": buffer}

    def run(outputs: Any, transform: Callable[..., Any]) -> Any:
        method = DERpp(without_dropout(case.model), objective, DERppSettings(outputs=outputs))
        batch = inputs.batch("a.")._replace(extra={**kept, "hidden": hidden[outputs]})
        compiled = jax.jit(transform(losses(method)))
        return compiled(case.of("theta").params_from(), batch, jax.random.key(0))

    (loss, parts), gradient = run("targets", partial(jax.value_and_grad, has_aux=True))
    loss_tokens, parts_tokens = run("tokens", lambda loss: loss)
    values = {
        "loss": loss,
        "loss_tokens": loss_tokens,
        "mlm": parts["masked_lm"],
        "mlm_buffer": parts["kept_masked_lm"],
        "mse_targets": parts["kept_hidden_mse"],
        "mse_tokens": parts_tokens["kept_hidden_mse"],
    }
    for name, value in values.items():
        case.assert_close(value, case.arrays[name], 1e-5, name)
    case.assert_tensors_close(case.tensors(gradient), "grad.")


def beside(kept: Mapping[str, np.ndarray], rows: int) -> dict[str, Any]:
    extra = {name: array[:rows] for name, array in kept.items() if name != "key"}
    return {**extra, "index": np.arange(rows, dtype=np.uint32)}


@pytest.mark.parametrize("outputs", ["targets", "tokens"])
def test_nothing_has_changed_right_after_filling(
    model: LanguageModel, objective: HiddenTokens, params: Params, batch: Batch, outputs: Any
) -> None:
    """Up to the type of what is stored, of whose eight bits the last is rounded."""
    settings = DERppSettings(alpha=2.0, beta=3.0, buffer=12, outputs=outputs)
    method = DERpp(without_dropout(model), objective, settings)
    kept = filled(method, params, (20, 4))
    assert set(kept["domain"]) == {0, 1}
    both = batch._replace(extra=beside(kept, 8))
    loss = jax.jit(losses(method))
    mse = float(loss(params, both, jax.random.key(1))[1]["kept_hidden_mse"])
    size = np.square(kept["hidden"].astype(np.float32)).mean()
    assert 0 < mse < 2.0**-18 * size
    moved = jax.tree.map(lambda x: x * 1.1, params)
    total, parts = loss(moved, both, jax.random.key(1))
    assert parts["kept_hidden_mse"] > 1e-4 * size
    weighed = parts["masked_lm"] + 2 * parts["kept_hidden_mse"] + 3 * parts["kept_masked_lm"]
    np.testing.assert_allclose(total, weighed, rtol=1e-6)


def test_what_is_stored_is_the_corruption_of_its_chunk(
    model: LanguageModel, objective: HiddenTokens, params: Params
) -> None:
    kept = filled(
        DERpp(without_dropout(model), objective, DERppSettings(buffer=12)), params, (20, 9)
    )
    texts = [
        Text(index, count).__getitems__(np.arange(count)) for index, count in ((0, 20), (1, 9))
    ]
    for tokens, key, domain in zip(kept["tokens"], kept["key"], kept["domain"], strict=True):
        (index,) = np.flatnonzero(hashed(SEED, int(domain), np.arange(len(texts[domain]))) == key)
        np.testing.assert_array_equal(tokens, texts[domain][index])
    rows = np.arange(12)[:, None]
    np.testing.assert_array_equal(kept["labels"], kept["tokens"][rows, kept["positions"]])
    changed = kept["corrupted"] != kept["tokens"]
    assert changed.any(axis=1).all()
    changed[rows, kept["positions"]] &= kept["weights"] == 0
    assert not changed.any()


def made(
    model: LanguageModel, objective: HiddenTokens, params: Params, count: int, **settings: Any
) -> tuple[Mapping[str, np.ndarray], np.ndarray]:
    """What the model makes before a domain, and the chunks that it was made of."""
    method = SelfReplay(without_dropout(model), objective, SelfReplaySettings(**settings))
    text = Text(1, count)
    domain = domain_of(method, 1, text, make_sharding(1))
    kept = method.begin(Learned(params, ()), domain).kept
    assert not method.end(Learned(params, (), kept), domain).kept
    chunks = text.__getitems__(np.arange(count))
    keys = hashed(SEED, 1, np.arange(count))
    return kept, chunks[[int(np.flatnonzero(keys == key)[0]) for key in kept["key"]]]


def test_a_model_makes_text_of_what_it_does_not_see(
    model: LanguageModel, objective: HiddenTokens, params: Params
) -> None:
    """Of a vocabulary in which its tokenizer lacks the last four words."""
    masking = dataclasses.replace(objective.masking, vocab_size=60)
    objective = HiddenTokens(masking, objective.padding)
    settings = {"rounds": 1, "mask_rate": 0.3, "buffer": 12}
    kept, chunks = made(model, objective, params, 20, **settings)
    assert len(kept["tokens"]) == 12
    changed, rows = kept["tokens"] != chunks, np.arange(12)[:, None]
    special = np.isin(chunks, masking.special_tokens)
    assert changed.any(axis=1).all()
    assert not changed[special].any()
    assert not np.isin(kept["tokens"][changed], (*masking.special_tokens, *range(60, 64))).any()
    # A round fills 30 % of the words, and the labels 15 %.
    words = (~special).sum(axis=1)
    assert (changed.sum(axis=1) <= np.round(0.3 * words) + np.round(0.15 * words)).all()
    np.testing.assert_array_equal(kept["labels"], kept["tokens"][rows, kept["positions"]])
    hidden = kept["corrupted"] != kept["tokens"]
    hidden[rows, kept["positions"]] &= kept["weights"] == 0
    assert not hidden.any()
    # With all of it masked nothing is left of a text but its length, and at a temperature of nearly nothing
    # every blank is filled with the likeliest word.
    settings = {**settings, "mask_rate": 1.0, "temperature": 1e-4}
    kept, chunks = made(model, objective, params, 9, **settings)
    assert len(kept["tokens"]) == 9
    tokens = kept["tokens"].copy()
    tokens[np.arange(9)[:, None], kept["positions"]] = -1
    alike = tokens[chunks[:, -1] == 2]
    assert len(alike) == 6
    assert all(len({*column} - {-1}) == 1 for column in alike.T)


def test_labels_are_drawn_from_what_the_model_predicts(
    model: LanguageModel, objective: HiddenTokens, params: Params
) -> None:
    """Their mean loss is the entropy of the predictions, and hidden states are those of the model."""
    params = jax.tree.map(lambda x: 1.5 * x, params)
    settings = {"buffer": 400, "rows": 8.0, "rounds": 1}
    kept, _ = made(model, objective, params, 400, **settings)
    method = SelfReplay(without_dropout(model), objective, SelfReplaySettings(**settings))

    @jax.jit
    def measured(params: Params, kept: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        net = Net(method.model, params)
        drawn = objective.again(kept["tokens"], kept)
        hidden = net.encode(drawn.text)
        logits = net.model.logits(params, hidden, drawn.positions)
        words = jnp.delete(logits, np.asarray(objective.masking.special_tokens), axis=-1)
        logs = jax.nn.log_softmax(words)
        total = jax.nn.logsumexp(words, axis=-1)
        own = jnp.take_along_axis(logits, drawn.labels[..., None], axis=-1)[..., 0] - total
        mse = jnp.square(method.outputs(hidden, drawn) - kept["hidden"].astype(jnp.float32))
        return own, -jnp.sum(jnp.exp(logs) * logs, axis=-1), mse.mean(axis=-1)

    arrays = {name: array for name, array in kept.items() if name != "key"}
    own, entropy, mse = (np.asarray(x)[kept["weights"] > 0] for x in measured(params, arrays))
    error = own.std() / np.sqrt(len(own))
    assert abs(-own.mean() - entropy.mean()) < 4 * error
    assert entropy.mean() < 0.9 * np.log(60)
    size = np.square(kept["hidden"].astype(np.float32)).mean()
    assert 0 < mse.mean() < 2.0**-18 * size


def test_stored_labels_that_do_not_count_cost_nothing(
    model: LanguageModel, objective: HiddenTokens, params: Params, batch: Batch
) -> None:
    """beta: 0 leaves the LM head to the batch alone."""
    masked = objective.masking.corrupt(batch.tokens, batch.example_keys(jax.random.key(0)))
    extra = {"corrupted": masked.tokens, **masked._asdict(), "index": batch.index}
    hidden = jnp.zeros((*masked.labels.shape, model.architecture.hidden_size), jnp.bfloat16)
    both = batch._replace(extra={**extra, "tokens": batch.tokens, "hidden": hidden})

    def program(method: Method) -> str:
        return str(jax.make_jaxpr(losses(method))(params, both, jax.random.key(0)))

    heads = []
    for beta in (0.0, 1.0):
        method = SelfReplay(model, objective, SelfReplaySettings(beta=beta, rows=1.0))
        heads.append(program(method).count("8,2,64]"))
        assert method.cost() == (2, 0, 1 + beta)
    assert heads[0] < heads[1]


@pytest.mark.parametrize("rows", [1.0, 0.5])
def test_flops_count_the_rows_beside_a_batch(
    model: LanguageModel, objective: HiddenTokens, rows: float
) -> None:
    """Encoder and LM head once more for every such row; in the first domain there is none yet."""
    settings = DERppSettings(buffer=16, rows=rows)
    plain, derpp = Naive(model, objective, None), DERpp(model, objective, settings)
    places = [Place(index, ("text",), (99,), batch_size=8) for index in range(2)]
    one, first, later = (
        train_step_flops(Recipe(method, method.plan(place), PLAIN), 8, 16)
        for method, place in ((plain, places[0]), *((derpp, place) for place in places))
    )
    assert derpp.plan(places[1]).kept_rows == 8 * rows
    assert (first, later) == (one, (1 + rows) * one)
