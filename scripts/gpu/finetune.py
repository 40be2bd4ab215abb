"""Five fine-tuning seeds in one vmapped step against one after the other: roberta-base, 16 x 128 tokens."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from das_jax.data.tasks import Examples
from das_jax.evaluation.finetune import Finetuning, init_seeds, train_epoch
from das_jax.model.classifier import Classifier
from das_jax.model.language_model import LanguageModel
from das_jax.planning.architectures import KNOWN
from das_jax.training.sharding import make_sharding
from scripts.gpu.measure import Report, part, timed

SEEDS, CLASSES = 5, 3
WORDS = 8_000
"""Of a task: the rows of the word embedding that fine-tuning holds."""


def main(report: Report, tiny: bool) -> None:
    layers, length, batch_size, steps = (1, 16, 2, 2) if tiny else (12, 128, 16, 20)
    architecture = dataclasses.replace(
        KNOWN["FacebookAI/roberta-base"], num_layers=layers, vocab_size=WORDS
    )
    model = LanguageModel(architecture, jnp.bfloat16, attention="dense")  # As das_jax fine-tunes.
    sharding = make_sharding(1)
    finetuning = Finetuning(Classifier(model, CLASSES), sharding, 1000, batch_size, 1e-5)
    pretrained = sharding.replicate(jax.jit(model.init)(jax.random.key(0)))
    random, count = np.random.default_rng(0), steps * batch_size
    tokens_NxT = random.integers(4, WORDS, (count, length)).astype(np.int32)
    labels_N = random.integers(0, CLASSES, count).astype(np.int32)
    examples = Examples(*sharding.replicate((tokens_NxT, np.zeros_like(tokens_NxT), labels_N)))

    def epoch(seeds: range) -> Callable[[], Any]:
        """An epoch of these seeds together."""
        state_S = init_seeds(finetuning, pretrained, np.asarray(seeds, np.uint32))
        order_SxN = np.stack([np.random.default_rng(seed).permutation(count) for seed in seeds])
        order = order_SxN.reshape(len(seeds), steps, batch_size).astype(np.int32)
        rows = sharding.replicate((order, np.ones((steps, batch_size), np.float32)))

        def run() -> Any:
            nonlocal state_S
            state_S, loss_S = train_epoch(finetuning, state_S, examples, *rows)
            return loss_S

        return run

    shape = {"seeds": SEEDS, "batch_size": batch_size, "length": length, "steps": steps}
    together = timed(epoch(range(SEEDS)))
    report.add("together", {**shape, **together})
    ones = [epoch(range(seed, seed + 1)) for seed in range(SEEDS)]
    in_turn = timed(lambda: [one() for one in ones])
    report.add("one after the other", {**shape, **in_turn})
    report.add("times as fast", in_turn["median"] / together["median"])


if __name__ == "__main__":
    part("finetune", main)
