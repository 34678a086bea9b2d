"""Words for the annotations of constructors: what a recipe may put there."""

import itertools
import math
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import Annotated, Any


class Limit:
    """What an annotation ``Annotated[type, Limit(...)]`` allows beside the type: ``value in limit``.

    ``str(limit)`` follows the type's name in messages: "a number" + "above 0".
    """

    #: Whether messages leave it out but for values that break it.
    tacit = False

    def judges(self, value: Any) -> bool:
        """Whether ``value`` is of the sort that is limited."""
        raise NotImplementedError

    def __contains__(self, value: Any) -> bool:
        raise NotImplementedError


@dataclass(frozen=True)
class Range(Limit):
    """Numbers within bounds; ``nan`` is in none.

    Args:
        low, high: the smallest and the largest.
        above, below: all must be greater, and less.
        tacit: see :class:`Limit`.
    """

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    tacit: bool = False

    def judges(self, value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool)

    def __contains__(self, value: float) -> bool:
        beyond = self.above > -math.inf and value <= self.above
        short = self.below < math.inf and value >= self.below
        return self.low <= value <= self.high and not beyond and not short

    def __str__(self) -> str:
        if self.above > -math.inf:
            return f"above {self.above}" + (f" and below {self.below}" if self.below < math.inf else "")
        if self.below < math.inf:
            return (f"of at least {self.low} and " if self.low > -math.inf else "") + f"below {self.below}"
        if self.low == -math.inf:
            return f"of at most {self.high}"
        return f"of at least {self.low}" if self.high == math.inf else f"from {self.low} to {self.high}"


@dataclass(frozen=True)
class Length(Limit):
    """Lists, mappings and texts of a number of entries; ``least`` by itself is what "not empty" means.

    Args:
        least, most: entries.
    """

    least: int = 1
    most: int = 2**31 - 1

    def judges(self, value: Any) -> bool:
        return isinstance(value, Sized)

    def __contains__(self, value: Sized) -> bool:
        return self.least <= len(value) <= self.most

    def __str__(self) -> str:
        if self.most < 2**31 - 1:
            return f"of {self.least} to {self.most} entries"
        return "that is not empty" if self.least == 1 else f"of at least {self.least} entries"


@dataclass(frozen=True)
class Ascending(Limit):
    """Lists of numbers, none smaller than the one before.

    Args:
        strictly: none equal either.
    """

    strictly: bool = False

    def judges(self, value: Any) -> bool:
        return isinstance(value, Sequence)

    def __contains__(self, value: Sequence[float]) -> bool:
        return all(a < b or (a == b and not self.strictly) for a, b in itertools.pairwise(value))

    def __str__(self) -> str:
        return "that ascends"


@dataclass(frozen=True)
class PathPart(Limit):
    """Text that names a file inside a folder, and can lead nowhere else."""

    most: int = 100

    def judges(self, value: Any) -> bool:
        return isinstance(value, str)

    def __contains__(self, value: str) -> bool:
        plain = value.isprintable() and not value.startswith(".") and not set("/\\") & set(value)
        return plain and value.strip() == value and 1 <= len(value.encode()) <= self.most

    def __str__(self) -> str:
        return f"that can name a file: 1 to {self.most} bytes, no '/' or '\\', no '.' in front"


#: No count is larger: what it measures would not fit any machine, and 64-bit products of two do not overflow.
_COUNTABLE = Range(high=2**31 - 1, tacit=True)

Positive = Annotated[int, Range(low=1), _COUNTABLE]
NotNegative = Annotated[int, Range(low=0), _COUNTABLE]
#: Layers and blocks, which are built one after another; and steps, which are done so.
Depth = Annotated[int, Range(low=1, high=1024)]
DepthOrNone = Annotated[int, Range(low=0, high=1024)]
Steps = Annotated[int, Range(low=1, high=10_000)]
Share = Annotated[float, Range(low=0, high=1)]
Size = Annotated[float, Range(low=0)]
Above0 = Annotated[float, Range(above=0)]
#: (C, H, W).
ImageShape = tuple[Positive, Positive, Positive]
#: Of guidance; and an exponent: bounded so that one raised to the other is a number.
Scale = Annotated[float, Range(low=0, high=1e6)]
Power = Annotated[float, Range(low=-20, high=20)]
#: Decay rates of an optimizer's two moving means.
Betas = tuple[Annotated[float, Range(low=0, below=1)], Annotated[float, Range(low=0, below=1)]]
#: A pair from 0 to 1, the smaller one first.
Interval = Annotated[tuple[Share, Share], Ascending()]

#: A key, or an entry, of a recipe that becomes the name of a file.
PlainName = Annotated[str, PathPart()]


@dataclass(frozen=True)
class OnThisMachine:
    """Marks text that says where something lies: two recipes mean the same thing if its last part has one name."""


LocalPath = Annotated[str, OnThisMachine(), Length()]
