"""The rows of the word embedding that a task needs.

Fine-tuning moves no others: without weight decay, a row without a gradient stays as it is. So a classifier
of the task's own words, W of V, learns exactly what the whole one would, with less memory and time.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from das_jax.data.roles import ids
from das_jax.data.tasks import Examples, Task
from das_jax.model.classifier import Classifier
from das_jax.model.language_model import LanguageModel, Params
from das_jax.model.leaves import LEAVES


@dataclass(frozen=True)
class OwnWords:
    """The tokens of a task, padding included.

    Attributes:
      tokens_W: their ids, rising.
      pad_token_id: of the whole vocabulary; None if none is reserved for padding.
    """

    tokens_W: np.ndarray
    pad_token_id: int | None

    def classifier(self, whole: Classifier) -> Classifier:
        """The same classifier of these words only."""
        padding = self.pad_token_id
        architecture = dataclasses.replace(
            whole.model.architecture,
            vocab_size=len(self.tokens_W),
            pad_token_id=None if padding is None else int(np.searchsorted(self.tokens_W, padding)),
        )
        model: LanguageModel = dataclasses.replace(whole.model, architecture=architecture)
        return dataclasses.replace(whole, model=model)

    def examples(self, examples: Examples) -> Examples:
        """The same examples with the numbers that these words have here."""
        tokens_NxT = ids(examples.tokens_NxT)
        roles_NxT = examples.tokens_NxT ^ tokens_NxT
        numbers_NxT = np.searchsorted(self.tokens_W, tokens_NxT).astype(np.int32)
        return examples._replace(tokens_NxT=numbers_NxT | roles_NxT)

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


def own_words(task: Task, pad_token_id: int | None) -> OwnWords:
    """The words of all parts of a task."""
    parts = [part for part in (task.train, task.validation, task.test) if part is not None]
    padding = [] if pad_token_id is None else [pad_token_id]
    tokens = [ids(part.tokens_NxT).ravel() for part in parts]
    return OwnWords(np.unique(np.concatenate([*tokens, np.array(padding, int)])), pad_token_id)
