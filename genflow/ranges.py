"""Words for the annotations of constructors: what a recipe may put there."""

import math
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Range:
    """The numbers that an annotation ``Annotated[int, Range(...)]`` allows.

    Args:
        low, high: the smallest and the largest.
        above: all must be greater.
    """

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high and value > self.above

    def __str__(self) -> str:
        if self.above > -math.inf:
            return f"above {self.above}"
        return f"of at least {self.low}" if self.high == math.inf else f"from {self.low} to {self.high}"


Positive = Annotated[int, Range(low=1)]
NotNegative = Annotated[int, Range(low=0)]
Share = Annotated[float, Range(low=0, high=1)]
Size = Annotated[float, Range(low=0)]


@dataclass(frozen=True)
class OnThisMachine:
    """Marks text that says where something lies: two recipes mean the same thing if its last part has one name."""


LocalPath = Annotated[str, OnThisMachine()]
