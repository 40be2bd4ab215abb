"""What every group of settings is: a frozen, typed dataclass that refuses unknown keys."""

from typing import Annotated, TypeVar, dataclass_transform

import pydantic
import pydantic.dataclasses

T = TypeVar("T")

Name = Annotated[str, pydantic.Field(pattern=r"^[A-Za-z0-9_.-]+$")]
"""What files may be called after."""


@dataclass_transform(kw_only_default=True, frozen_default=True)
def settings(cls: type[T]) -> type[T]:
    """Decorates a class into a frozen keyword-only dataclass, validated when it is built."""
    config = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
    return pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=config)(cls)  # type: ignore[return-value]
