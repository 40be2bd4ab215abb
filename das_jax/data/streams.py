"""What a training batch is made of: corpora of domains, general text, and rows that a method kept.

One rule decides whose row is whose. "general" and "kept" are counted: round(share * B) rows of every batch
are theirs. Domains are drawn: all other rows are new text, and if a stage learns several domains at once,
that of each row is drawn by their shares. While no row is kept, the batch is full of new text.
"""

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

from das_jax.errors import UserError

OWN, GENERAL, KEPT = "own", "general", "kept"


class Stream(NamedTuple):
    """Where rows of a batch come from.

    Attributes:
        name: "own", the domain of the stage; another domain's name; "general", the general corpus; or "kept",
            the rows that the method kept of earlier domains.
        share: Of "general" and "kept", the share of every batch; of domains, the share of the other rows,
            relative to each other's.
        setting: The key that says the share, for whoever has to change it.
    """

    name: str
    share: float = 1.0
    setting: str | None = None

    def __str__(self) -> str:
        return self.setting or f"the share of the stream {self.name!r}"

    @property
    def counted(self) -> bool:
        """Whether it has the same number of rows in every batch."""
        return self.name in (GENERAL, KEPT)

    def rows(self, batch_size: int) -> int:
        """How many of a batch's rows are of a counted stream."""
        return round(self.share * batch_size)


def mixing_shares(sizes: Sequence[float], temperature: float) -> list[float]:
    """The domains' shares of a mixture: n^(1 / temperature), normalised; infinity makes them equal."""
    weights = [(size / max(sizes)) ** (1 / temperature) for size in sizes]
    return [weight / math.fsum(weights) for weight in weights]


def check_streams(
    streams: Sequence[Stream],
    corpora: Collection[str],
    batch_size: int,
    *,
    kept: int = 0,
    kept_rows: int = 0,
) -> None:
    """Checks what a stage asks for.

    Args:
        streams: The stage's streams.
        corpora: The names of the corpora that there are.
        batch_size: Rows over all hosts.
        kept: How many rows are kept of earlier domains.
        kept_rows: How many of these come beside every batch.

    Raises:
        UserError: A stream does not exist, is there twice, makes no row of a batch, leaves none to new text,
            or takes more rows than are kept.
    """
    known = [*corpora, KEPT]
    names = [stream.name for stream in streams]
    for stream in streams:
        if names.count(stream.name) > 1:
            raise UserError(
                f"The stream {stream.name!r} has two shares, one of the method's and one of a policy's: "
                "leave one of them out."
            )
        if stream.name not in known:
            raise UserError(
                f"There is no stream {stream.name!r}: the streams are {', '.join(known)}; name one of these, "
                "or add the corpus to the configuration."
            )
        if stream.counted and not stream.rows(batch_size):
            raise UserError(
                f"{stream} is {stream.share:g}, which makes no row of a batch of {batch_size}: raise it, or "
                "training.batch_size."
            )
    counted = [stream for stream in streams if stream.counted]
    rows = sum(stream.rows(batch_size) for stream in counted)
    if rows + (len(counted) < len(streams)) > batch_size:
        taking = " and ".join(f"{stream} ({stream.share:g})" for stream in counted)
        raise UserError(
            f"Of a batch of {batch_size}, {taking} leave no row to new text: lower what is taken, or raise "
            "training.batch_size."
        )
    taken = [stream.rows(batch_size) for stream in streams if stream.name == KEPT]
    most = max([kept_rows, *taken])
    if 0 < kept < most:
        raise UserError(
            f"Every batch takes {most} of the rows kept of earlier domains, but only {kept} are kept: raise "
            f"method.buffer to at least {most}, or lower the share or training.batch_size."
        )
