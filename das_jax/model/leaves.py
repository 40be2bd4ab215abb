"""The one table of parameters: where each stands, along which axes, and which units it writes and reads.

Everything that depends on a parameter's place asks here: HuggingFace's tensors, the owners of the soft mask,
what is cast, the rows of the word embedding. The table has the parameters of all architectures; `leaves_of`
says which a model has. What stands under `graft/` is known by the last part of its path, until rows of its
own say more.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from das_jax.model.architecture import Architecture
from das_jax.model.units import HEADS, INTERMEDIATE, KINDS, OUTPUT, Kind, Owner, Rules, claims

STACKS = "LN"
"""Axes that count modules, L layers or N inserted blocks: HuggingFace has a tensor for each."""

SUFFIXES = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}
"""The last part of a name, here and at HuggingFace."""


class Leaf(NamedTuple):
    """A parameter, as one row of the table.

    Attributes:
      path: its keys, joined by slashes; a regular expression that must match the whole path, as one row may
        stand for several parameters of a graft.
      axes: a letter for each, as in `das_jax`, and P for positions, Y token types, C classes; a graft may
        add others. An arrow parts what a projection sums over from what it gives: `LHK->D`. Empty in a
        row that stands for arrays of several shapes.
      writes: the kind of unit that it feeds, along the last axes that have the kind's letters. A gate on
        such a unit multiplies what this parameter gives.
      reads: the kind of unit that it is fed by, along the first axes that have the kind's letters.
    """

    path: str
    axes: str
    writes: Kind | None = None
    reads: Kind | None = None

    @property
    def letters(self) -> str:
        """One for each axis of the array, e.g. `LDHK`."""
        return self.axes.replace("->", "")

    @property
    def one(self) -> str:
        """The letters of one layer's array, e.g. `DHK`."""
        return self.letters.lstrip(STACKS)

    @property
    def stacked(self) -> bool:
        return self.one != self.letters

    @property
    def projects(self) -> bool:
        """Whether it maps inputs to outputs; HuggingFace holds such arrays transposed."""
        return "->" in self.axes

    @property
    def one_way(self) -> tuple[str, str]:
        """The letters of one layer's inputs, and those of its outputs, of a projection."""
        inputs, outputs = self.axes.lstrip(STACKS).split("->")
        return inputs, outputs

    @property
    def summed(self) -> range:
        """The axes that a projection sums over: those along what it reads."""
        first = len(self.letters) - len(self.one)
        return range(first, first + (len(self.one_way[0]) if self.projects else 0))

    @property
    def tensor_axes(self) -> tuple[str, ...]:
        """The axes at HuggingFace, [out, in] of a projection; `HK` is H and K as one axis."""
        if self.projects:
            inputs, outputs = self.one_way
            return outputs, inputs
        return tuple(re.findall("[A-Z]K?", self.one))

    @property
    def matrix(self) -> bool:
        """Whether it is cast to the type of the matrix products before it is used, as kernels and
        embeddings are. All others are small and used in float32.
        """
        return self.path.endswith(("kernel", "embedding"))

    @property
    def sides(self) -> "Sides":
        """The units that it writes and those that it reads, and along which of its axes they lie."""
        return Sides(
            output=_owner(self.writes, self.letters, self.letters.rindex),
            input=_owner(self.reads, self.letters, self.letters.index),
        )

    @property
    def owner(self) -> Owner | None:
        """The units that it writes or, if it writes none, those that it reads."""
        return self.sides.output or self.sides.input

    def shape(self, sizes: dict[str, int]) -> tuple[int, ...]:
        """Of the array, from the length of every axis."""
        return tuple(sizes[letter] for letter in self.letters)


def _owner(kind: Kind | None, letters: str, axis: Callable[[str], int]) -> Owner | None:
    """G stands where H would: a key-value head belongs to the heads that read it."""
    if kind is None:
        return None
    shared = "H" in kind.axes and "H" not in letters
    axes = kind.axes.replace("H", "G") if shared else kind.axes
    return Owner(kind.name, tuple(axis(letter) for letter in axes), "max" if shared else None)


class Sides(NamedTuple):
    """The units on the two sides of a parameter, None where there are none.

    A method that protects what lies between two used units scales by 1 - min(A_output, A_input), a side
    without units counting as 1 (Serra et al., ICML 2018, eq. 2); `along` gives A its place.
    """

    output: Owner | None
    input: Owner | None


Leaves = Sequence[Leaf]

ATTENTION, FEED_FORWARD, EMBEDDINGS = "layers/attention", "layers/feed_forward", "embeddings"
"""The parts of a transformer: the beginnings of its parameters' paths, and of their operations' names in a
compiled program."""

WORDS = Leaf("embeddings/word/embedding", "VD")

ENCODER: tuple[Leaf, ...] = (
    WORDS,
    Leaf("embeddings/position/embedding", "PD"),
    Leaf("embeddings/token_type/embedding", "YD"),
    Leaf("embeddings/layer_norm/scale", "D"),
    Leaf("embeddings/layer_norm/bias", "D"),
    Leaf("layers/attention/input_norm/scale", "LD"),
    Leaf("layers/attention/input_norm/bias", "LD"),
    Leaf("layers/attention/query/kernel", "LD->HK", writes=HEADS),
    Leaf("layers/attention/query/bias", "LHK", writes=HEADS),
    Leaf("layers/attention/key/kernel", "LD->GK", writes=HEADS),
    Leaf("layers/attention/key/bias", "LGK", writes=HEADS),
    Leaf("layers/attention/value/kernel", "LD->GK", writes=HEADS),
    Leaf("layers/attention/value/bias", "LGK", writes=HEADS),
    Leaf("layers/attention/query_norm/scale", "LK"),
    Leaf("layers/attention/key_norm/scale", "LK"),
    Leaf("layers/attention/output/kernel", "LHK->D", reads=HEADS),
    Leaf("layers/attention/output/bias", "LD"),
    Leaf("layers/attention/output_norm/scale", "LD"),
    Leaf("layers/attention/layer_norm/scale", "LD"),
    Leaf("layers/attention/layer_norm/bias", "LD"),
    Leaf("layers/feed_forward/input_norm/scale", "LD"),
    Leaf("layers/feed_forward/input_norm/bias", "LD"),
    Leaf("layers/feed_forward/gate/kernel", "LD->F", writes=INTERMEDIATE),
    Leaf("layers/feed_forward/gate/bias", "LF", writes=INTERMEDIATE),
    Leaf("layers/feed_forward/intermediate/kernel", "LD->F", writes=INTERMEDIATE),
    Leaf("layers/feed_forward/intermediate/bias", "LF", writes=INTERMEDIATE),
    Leaf("layers/feed_forward/output/kernel", "LF->D", writes=OUTPUT, reads=INTERMEDIATE),
    Leaf("layers/feed_forward/output/bias", "LD", writes=OUTPUT),
    Leaf("layers/feed_forward/output_norm/scale", "LD"),
    Leaf("layers/feed_forward/layer_norm/scale", "LD"),
    Leaf("layers/feed_forward/layer_norm/bias", "LD"),
    Leaf("final_norm/scale", "D"),
    Leaf("final_norm/bias", "D"),
)
"""Of every architecture; the gate of a feed-forward is the projection that is activated."""

LM_HEAD: tuple[Leaf, ...] = (
    Leaf("lm_head/dense/kernel", "D->D"),
    Leaf("lm_head/dense/bias", "D"),
    Leaf("lm_head/layer_norm/scale", "D"),
    Leaf("lm_head/layer_norm/bias", "D"),
    Leaf("lm_head/bias", "V"),
)
DECODER = Leaf("lm_head/decoder/kernel", "D->V")
"""Of an LM head that is not tied to the word embedding."""

CLASSIFIER: tuple[Leaf, ...] = (
    Leaf("classifier/dense/kernel", "D->D"),
    Leaf("classifier/dense/bias", "D"),
    Leaf("classifier/layer_norm/scale", "D"),
    Leaf("classifier/layer_norm/bias", "D"),
    Leaf("classifier/output/kernel", "D->C"),
    Leaf("classifier/output/bias", "C"),
)
MODEL: Leaves = (*ENCODER, *LM_HEAD, DECODER, *CLASSIFIER)
"""Every parameter of every model without a graft."""

GRAFT: Leaves = (
    Leaf("graft/embedding/.*", axes=""),
    *(Leaf(f"graft/(.*/)?{name}", axes="") for name in (*SUFFIXES, *(kind.name for kind in KINDS))),
)
"""What methods put beside the model: e, from which gates are made, for whatever units there are, and all else
by the last part of the path: modules, and numbers for all units. Where units of their own lie along their
axes, rows that say so go before these."""

LEAVES: Leaves = (*MODEL, *GRAFT)


def present(architecture: Architecture) -> Callable[[Leaf], bool]:
    """Whether a model has a parameter of the table."""
    arch = architecture
    post, around = arch.placement == "post", arch.placement == "around"
    shifts = arch.norm == "layer" and arch.norm_bias
    only_where: tuple[tuple[str, bool], ...] = (
        (r"embeddings/position/.*", arch.position_rows > 0),
        (r"embeddings/token_type/.*", arch.type_vocab_size > 0),
        (r"embeddings/layer_norm/.*", arch.embedding_norm),
        (r"layers/.*/layer_norm/.*", post),
        (r"layers/.*/input_norm/.*|final_norm/.*", not post),
        (r"layers/.*/output_norm/.*", around),
        (r"layers/.*/(query|key)_norm/.*", arch.query_key_norm),
        (r"layers/feed_forward/gate/.*", arch.gated),
        (r"lm_head/(dense|layer_norm)/.*", arch.head == "transform"),
        (r"lm_head/decoder/.*", not arch.tied),
        (r"classifier/dense/.*", arch.classifier_head != "linear"),
        (r"classifier/layer_norm/.*", arch.classifier_head == "transform"),
        (r"classifier/output/bias", arch.classifier_head != "linear"),
        (r".*norm/bias", shifts),
        (r"layers/attention/(query|key|value)/bias", arch.qkv_bias),
        (r"layers/attention/output/bias", arch.attention_bias),
        (r"layers/feed_forward/(gate|intermediate|output)/bias", arch.feed_forward_bias),
        (r"(lm_head|classifier)/dense/bias", arch.head_bias),
        (r"lm_head/bias", arch.decoder_bias),
    )
    return lambda leaf: all(is_so for path, is_so in only_where if re.fullmatch(path, leaf.path))


def transformer_leaves(architecture: Architecture) -> Leaves:
    """The parameters of a model without its LM head."""
    return tuple(filter(present(architecture), ENCODER))


def leaves_of(architecture: Architecture) -> Leaves:
    """The parameters of a model and its LM head."""
    return tuple(filter(present(architecture), (*ENCODER, *LM_HEAD, DECODER)))


def classifier_leaves(architecture: Architecture) -> Leaves:
    """The parameters of a classifier."""
    return tuple(filter(present(architecture), (*ENCODER, *CLASSIFIER)))


def rules_of(leaves: Leaves) -> Rules:
    """Who owns what, as the soft mask takes it."""
    return tuple((leaf.path, leaf.owner) for leaf in leaves)


OWNERS = rules_of(MODEL)
"""The owner of every parameter of a model without a graft."""


def owners_of(params: Any, rules: Rules = OWNERS) -> list[Owner | None]:
    """The owner of every parameter, in the order of `jax.tree.leaves(params)`.

    Raises:
      ValueError: a parameter that no rule claims.
    """
    return claims(
        params,
        rules,
        "no rule claims the parameter {!r}: add one that names its owner, or FREE if it has none",
    )


def claimed(params: Any, leaves: Leaves = LEAVES) -> list[Leaf]:
    """The leaf of every parameter, in the order of `jax.tree.leaves(params)`; the first that matches.

    Raises:
      ValueError: a parameter that no leaf claims.
    """
    return claims(
        params,
        [(leaf.path, leaf) for leaf in leaves],
        "no leaf claims the parameter {!r}: what stands under graft/ must end in "
        f"{', '.join(SUFFIXES)} or a kind of unit, and all else needs a row in das_jax/model/leaves.py",
    )


def sides_of(params: Any, leaves: Leaves = LEAVES) -> list[Sides]:
    """The units on both sides of every parameter, in the order of `jax.tree.leaves(params)`.

    Raises:
      ValueError: a parameter that no leaf claims.
    """
    return [leaf.sides for leaf in claimed(params, leaves)]


def matrices_of(params: Any, leaves: Leaves = LEAVES) -> list[bool]:
    """Which parameters are cast before they are used, in the order of `jax.tree.leaves(params)`.

    Raises:
      ValueError: a parameter that no leaf claims.
    """
    return [leaf.matrix for leaf in claimed(params, leaves)]
