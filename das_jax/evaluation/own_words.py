"""The rows of the word embedding that a task needs.

Fine-tuning moves no others: without weight decay, a row without a gradient stays as it is. So a classifier
of the task's own words, W of V, learns exactly what the whole one would, with less memory and time.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

from das_jax.data.tasks import Examples, Task
from das_jax.model.classifier import Classifier
from das_jax.model.masked_lm import MaskedLM, Params


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
        model: MaskedLM = dataclasses.replace(whole.model, architecture=architecture)
        return dataclasses.replace(whole, model=model)

    def examples(self, examples: Examples) -> Examples:
        """The same examples with the numbers that these words have here."""
        tokens_NxT = np.searchsorted(self.tokens_W, examples.tokens_NxT).astype(np.int32)
        return examples._replace(tokens_NxT=tokens_NxT)

    def narrowed(self, params: Params) -> Params:
        """Parameters with these words' rows only."""
        return _with_words(params, np.asarray(_words(params))[self.tokens_W])

    def widened(self, params: Params, pretrained: Params) -> Params:
        """Parameters with every word: the others are as they were pretrained."""
        words_VxD = np.array(_words(pretrained))
        words_VxD[self.tokens_W] = _words(params)
        return _with_words(params, words_VxD)


def own_words(task: Task, pad_token_id: int) -> OwnWords:
    """The words of all parts of a task."""
    parts = [part for part in (task.train, task.validation, task.test) if part is not None]
    tokens = np.concatenate([part.tokens_NxT.ravel() for part in parts] + [[pad_token_id]])
    return OwnWords(np.unique(tokens), pad_token_id)


def _words(params: Params) -> np.ndarray:
    return params["embeddings"]["word"]["embedding"]


def _with_words(params: Params, words_WxD: np.ndarray) -> Params:
    embeddings = {**params["embeddings"], "word": {"embedding": words_WxD}}
    return {**params, "embeddings": embeddings}
