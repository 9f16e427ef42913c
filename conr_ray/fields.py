"""Building blocks of config sections: base class, value types and marks.

Imports neither torch nor the config tree, so that frameworks can declare their own sections.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(gt=0, le=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _countable(value: int) -> int:
    """Sizes beyond this overflow 64 bits when they are multiplied."""
    if value > 2**53:
        raise ValueError("no machine has room for so many: lower it")
    return value


Whole = Annotated[int, Field(ge=0), AfterValidator(_countable)]
Count = Annotated[int, Field(ge=1), AfterValidator(_countable)]
Counts = Annotated[tuple[Count, ...], Field(min_length=1)]
Names = Annotated[tuple[str, ...], Field(min_length=1)]


@dataclass(frozen=True)
class Mark:
    """What a field affects; None defers to the mark of its section.

    Attributes:
        stage: the only stage that reads it.
        shapes_rows: whether it affects the metric rows of epochs before the last one.
        changeable: whether a run can resume from a checkpoint with another value of it.
        used_by: the field that decides whether this one is used, and its values that use it.
    """

    stage: str | None = None
    shapes_rows: bool | None = None
    changeable: bool | None = None
    used_by: tuple[str, tuple[str, ...]] | None = None

    def over(self, other: Mark) -> Mark:
        """This mark, with unset attributes taken from `other`."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(other, **{name: v for name, v in own.items() if v is not None})

    def is_used(self, choice: Any) -> bool:
        """Whether the field is used where its deciding field is `choice`.

        A value in `used_by` that ends with NAME, as `timm:NAME`, stands for all that begin so.
        """
        users = () if self.used_by is None else self.used_by[1]
        families = tuple(user.removesuffix("NAME") for user in users if user.endswith(":NAME"))
        return self.used_by is None or choice in users or str(choice).startswith(families)


def short(text: str) -> str:
    """`text` for a message: one line of at most 120 characters."""
    if len(text) > 120:
        text = f"{text[:80]}...{text[-20:]}"
    return text if text.isprintable() else repr(text)[1:-1]


def shown(value: Any) -> str:
    """`repr` for a message, as `short`."""
    try:
        return short(repr(value))
    # Python writes no number of more than 4300 digits.
    except (ValueError, RecursionError):
        return f"{type(value).__name__} too long to show"


class Section(BaseModel):
    """A section of the config tree: typed, immutable, unknown fields refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    mark: ClassVar[Mark] = Mark()

    @classmethod
    def mark_of(cls, leaf: str) -> Mark:
        """The mark of the field `leaf`, completed by that of the section."""
        own = (m for m in cls.model_fields[leaf].metadata if isinstance(m, Mark))
        return next(own, Mark()).over(cls.mark)

    @classmethod
    def default_of(cls, leaf: str) -> Any:
        """The default of the field `leaf`."""
        return cls.model_fields[leaf].get_default(call_default_factory=True)
