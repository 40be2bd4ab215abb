"""What every group of settings is: a frozen, typed dataclass that refuses unknown keys."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Annotated, Any, TypeVar, dataclass_transform, get_args, get_type_hints

import pydantic
import pydantic.dataclasses
from pydantic import AfterValidator, NonNegativeInt, PositiveInt, ValidationInfo
from pydantic_core import PydanticCustomError

from das_jax.errors import shown
from das_jax.paths import unusable

T = TypeVar("T")

UNFIT = "unfit"
"""The type of an error that brings its own words, to be written after the key."""


def _refused(value: T, reason: str | None) -> T:
    if reason is not None:
        raise PydanticCustomError(UNFIT, "{reason}", {"reason": reason})
    return value


def _refusing(why: Callable[[Any], str | None]) -> AfterValidator:
    """Refuses the values for which `why` has an answer."""

    def check(value: T) -> T:
        return _refused(value, why(value))

    return AfterValidator(check)


def refusing_beside(why: Callable[[Any, Mapping[str, Any]], str | None]) -> AfterValidator:
    """The same, where `why` is told the settings that stand before this one in its group, too."""

    def check(value: T, info: ValidationInfo) -> T:
        return _refused(value, why(value, info.data))

    return AfterValidator(check)


def _at_most(most: int) -> AfterValidator:
    return _refusing(
        lambda x: f"is {shown(str(x))}; it may be {most:,} at most" if x > most else None
    )


def _no_longer_than(most: int) -> AfterValidator:
    return _refusing(
        lambda x: (
            f"has {len(x):,} characters; it may have {most} at most" if len(x) > most else None
        )
    )


Name = Annotated[str, pydantic.Field(pattern=r"^[A-Za-z0-9_.-]+$"), _no_longer_than(100)]
"""What files may be called after; 255 bytes are the most that a file system takes, with all that is added."""

LocalPath = Annotated[str, _refusing(unusable)]
"""A file or directory on this machine; `~` is the home directory."""

READ = "read"
"""Marks what is read: it must be there before anything begins."""

InputPath = Annotated[LocalPath, READ]
"""A file or directory on this machine that is read."""

AnyPath = Annotated[str, _refusing(partial(unusable, buckets=True))]
"""The same, or in a bucket."""

Count = Annotated[PositiveInt, _at_most(2**31 - 1)]
"""How many of something: devices count in 32 bits."""

Several = Annotated[int, pydantic.Field(ge=2), _at_most(2**31 - 1)]
"""More than one of something."""

CountOrZero = Annotated[NonNegativeInt, _at_most(2**31 - 1)]

Length = Annotated[int, pydantic.Field(ge=8), _at_most(2**20)]
"""Tokens of an example."""

BatchSize = Annotated[PositiveInt, _at_most(2**20)]
"""Examples of a step: more than any memory holds is a slip of the hand."""

Seed = Annotated[NonNegativeInt, _at_most(2**63 - 1)]
"""What random keys are made of; JAX takes 64 bits with a sign, and uses the lower 32."""


def read_by(group: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The dotted keys of all `InputPath`s that are set in a group of settings and the groups in it."""
    hints = get_type_hints(type(group), include_extras=True)
    for field in dataclasses.fields(group):
        value, hint = getattr(group, field.name), hints[field.name]
        if dataclasses.is_dataclass(value):
            yield from read_by(value, f"{prefix}{field.name}.")
        elif isinstance(value, str) and any(
            READ in getattr(each, "__metadata__", ()) for each in (hint, *get_args(hint))
        ):
            yield f"{prefix}{field.name}", value


@dataclass_transform(kw_only_default=True, frozen_default=True)
def settings(cls: type[T]) -> type[T]:
    """Decorates a class into a frozen keyword-only dataclass, validated when it is built.

    What a setting means is in the docstring below it, or below that of the class that it is inherited from.
    """
    config = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
    made = pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=config)(cls)
    for name, field in made.__pydantic_fields__.items():
        for base in cls.__mro__[1:]:
            inherited = getattr(base, "__pydantic_fields__", {}).get(name)
            if field.description is None and inherited is not None:
                field.description = inherited.description
    return made  # type: ignore[return-value]
