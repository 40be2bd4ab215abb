"""Random numbers as a function of what they are for: no state, so no order of asking and nothing to save."""

from hashlib import sha256

import numpy as np

# SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
GAMMA = 0x9E3779B97F4A7C15
FIRST, SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
WORD = (1 << 64) - 1


def hashed(*words: int | str | np.ndarray) -> np.ndarray:
    """A uniform number of 64 bits for every combination of words, the same on every machine.

    Args:
        words: Numbers, names, or arrays of integers that broadcast.

    Returns:
        uint64 of the arrays' common shape; [1] if there is none.
    """
    state = np.zeros(1, np.uint64)
    for word in words:
        state = _mixed(state + np.uint64(GAMMA) * _word(word))
    return state


def _word(word: int | str | np.ndarray) -> np.ndarray:
    if isinstance(word, np.ndarray):
        return word.astype(np.uint64) + np.uint64(1)
    if isinstance(word, str):
        word = int.from_bytes(sha256(word.encode()).digest()[:8])
    return np.array([(word + 1) & WORD], np.uint64)


def _mixed(z: np.ndarray) -> np.ndarray:
    z ^= z >> np.uint64(30)
    z *= FIRST
    z ^= z >> np.uint64(27)
    z *= SECOND
    z ^= z >> np.uint64(31)
    return z


def smallest(keys: np.ndarray, count: int) -> np.ndarray:
    """Where the `count` smallest keys are, ascending; of random keys, a draw without replacement."""
    if count < len(keys):
        places = np.argpartition(keys, count)[:count]
    else:
        places = np.arange(len(keys))
    return places[np.argsort(keys[places])]
