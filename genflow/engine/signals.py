"""A polite end of training: SIGTERM, SIGINT and SIGUSR1 let the update at hand finish."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from genflow.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class TrainingStopped(Stopped):
    """A signal asked for the end; everything up to the last update is saved.

    Args:
        number: the signal's.
        message: how to go on.
    """

    def __init__(self, number: int, message: str = ""):
        # What a shell expects of a process that the signal ended: 143, 130 or 138.
        super().__init__(message, 128 + number)
        self.number = number

    def __reduce__(self) -> tuple:
        return type(self), (self.number, str(self))  # on its way from a process of a pool


class StopRequest:
    """Remembers the first signal; a second one ends the process at once."""

    def __init__(self) -> None:
        #: The number of the signal that came; 0 for none.
        self.number = 0

    def ask(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)


@contextmanager
def stop_requests(request: StopRequest) -> Iterator[None]:
    """Listen to signals for the duration; outside the main thread, where none arrive, nothing is listened to."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.signal(each, request.ask) for each in SIGNALS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
