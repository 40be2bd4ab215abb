"""The rows of the word embedding that a task needs.

Fine-tuning moves no others: without weight decay, a row without a gradient stays as it is. So a classifier
of the task's own words, W of V, learns exactly what the whole one would, with less memory and time.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from das_jax.data.tasks import Examples, Task
from das_jax.model.classifier import Classifier
from das_jax.model.language_model import LanguageModel, Params
from das_jax.model.leaves import LEAVES


@dataclass(frozen=True)
class OwnWords:
    """The tokens of a task, padding included.

    Attributes:
      tokens_W: their ids, rising.
      pad_token_id: of the whole vocabulary.
    """

    tokens_W: np.ndarray
    pad_token_id: int

    def classifier(self, whole: Classifier) -> Classifier:
        """The same classifier of these words only."""
        architecture = dataclasses.replace(
            whole.model.architecture,
            vocab_size=len(self.tokens_W),
            pad_token_id=int(np.searchsorted(self.tokens_W, self.pad_token_id)),
        )
        model: LanguageModel = dataclasses.replace(whole.model, architecture=architecture)
        return dataclasses.replace(whole, model=model)

    def examples(self, examples: Examples) -> Examples:
        """The same examples with the numbers that these words have here."""
        tokens_NxT = np.searchsorted(self.tokens_W, examples.tokens_NxT).astype(np.int32)
        return examples._replace(tokens_NxT=tokens_NxT)

    def narrowed(self, params: Params) -> Params:
        """Parameters with these words' rows only."""
        flat = flatten_dict(params, sep="/")
        for path, rows in self._rows(flat):
            flat[path] = np.asarray(flat[path])[rows]
        return unflatten_dict(flat, sep="/")

    def widened(self, params: Params, pretrained: Params) -> Params:
        """Parameters with every word: the others are as they were pretrained."""
        flat, whole = (flatten_dict(tree, sep="/") for tree in (params, pretrained))
        for path, rows in self._rows(flat):
            words = np.array(whole[path])
            words[rows] = flat[path]
            flat[path] = words
        return unflatten_dict(flat, sep="/")

    def _rows(self, flat: dict[str, Any]) -> list[tuple[str, tuple]]:
        """Of every parameter with an axis of words, its path and where these words are."""
        found = [leaf for leaf in LEAVES if leaf.path in flat and "V" in leaf.letters]
        return [
            (leaf.path, (slice(None),) * leaf.letters.index("V") + (self.tokens_W,))
            for leaf in found
        ]


def own_words(task: Task, pad_token_id: int) -> OwnWords:
    """The words of all parts of a task."""
    parts = [part for part in (task.train, task.validation, task.test) if part is not None]
    tokens = np.concatenate([part.tokens_NxT.ravel() for part in parts] + [[pad_token_id]])
    return OwnWords(np.unique(tokens), pad_token_id)
