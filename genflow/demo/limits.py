"""How much the page does at a time, and what it takes for an answer."""

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeGuard

from genflow.errors import UserError, shown
from genflow.generators.base import Generator

#: Pictures of a request, for each of the runs.
MOST_PICTURES = 64
#: Requests that wait for their turn; further ones are refused.
MOST_WAITING = 16
#: Bytes of an uploaded file, and pixels of a picture that is unpacked: a small file may hold any number.
MOST_BYTES, MOST_PIXELS = 4 * 2**20, 2**25
#: What a number of a browser can hold without loss.
LARGEST_SEED = 2**53 - 1
#: Bytes of a form around a file.
_FORM = 2**16
#: How far above no guidance scales go where training has shown the network none.
_SPAN = 4.0


def is_number(value: object) -> TypeGuard[float]:
    """Whether what a browser sent is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class GuidanceRange:
    """The scales that can be chosen.

    Args:
        low, high: the smallest and the largest.
        default: the recipe's.
        none: the scale that is no guidance.
    """

    low: float
    high: float
    default: float
    none: float

    def check(self, scale: object) -> float:
        """A scale of this range.

        Raises:
            UserError: it is another, or no number.
        """
        if not is_number(scale) or not self.low <= scale <= self.high:
            raise UserError(f"guidance: found {shown(scale)}, expected {self.low:g} to {self.high:g}")
        return float(scale)


def guidance_range(generator: Generator) -> GuidanceRange | None:
    """The scales that suit a generator: those of training; None where there is nothing to choose."""
    default, none = generator.default_guidance, generator.no_guidance
    low = generator.lowest_guidance if math.isfinite(generator.lowest_guidance) else none
    high = generator.highest_guidance if math.isfinite(generator.highest_guidance) else none + _SPAN
    low, high = min(low, default), max(high, default)
    return GuidanceRange(low, high, default, none) if generator.num_classes and low < high else None


def whole_number(name: str, value: object, low: int, high: int) -> int:
    """An integer within bounds, which a browser may have sent as a float.

    Raises:
        UserError: it is something else; ``name`` says what.
    """
    if not is_number(value) or value != int(value) or not low <= value <= high:
        found = "nothing" if value is None else shown(value)
        raise UserError(f"{name}: found {found}, expected a whole number from {low} to {high}")
    return int(value)


class Recent(dict[str, Any]):
    """A dict that forgets its oldest entries.

    Args:
        most: entries that it keeps.
    """

    def __init__(self, most: int):
        super().__init__()
        self.most = most

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        while len(self) > self.most:
            del self[next(iter(self))]


class BodyLimit:
    """Refuses requests with more content than an upload may have, before any of it is read (ASGI middleware).

    Args:
        app: what answers the others.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]):
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        status = self._refusal(scope) if scope["type"] == "http" else None
        if status is None:
            await self.app(scope, receive, send)
            return
        text = f"at most {MOST_BYTES} bytes, in one piece of stated length\n".encode()
        length = (b"content-length", str(len(text)).encode())
        await send({"type": "http.response.start", "status": status, "headers": [length, (b"connection", b"close")]})
        await send({"type": "http.response.body", "body": text})

    @staticmethod
    def _refusal(scope: dict[str, Any]) -> int | None:
        """The status of the refusal: 411 without a length, 413 beyond the limit; None where there is none."""
        headers = dict(scope["headers"])
        if b"transfer-encoding" in headers:
            return 411
        return 413 if int(headers.get(b"content-length", 0)) > MOST_BYTES + _FORM else None
