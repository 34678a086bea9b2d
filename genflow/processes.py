"""What the processes of a group work out or decide together; without a group, what the only one does."""

from collections.abc import Callable
from typing import Any, TypeVar

from mmengine.dist import all_gather_object, broadcast_object_list, is_main_process

from genflow.errors import RepeatedError, UserError

Decision = TypeVar("Decision")


def agreed(work: Callable[[], Decision]) -> Decision:
    """What every process works out by itself; if one comes upon a mistake, all end, and the main process reports it.

    Args:
        work: no collective calls in it.

    Raises:
        UserError, OSError: ``work`` raised it, here or in another process; RepeatedError but in the main process.
    """
    error: Exception | None = None
    results = []
    try:
        results.append(work())
    except (UserError, OSError) as caught:
        error = caught
    messages = all_gather_object(None if error is None else str(error))
    first = next((rank for rank, message in enumerate(messages) if message is not None), None)
    if first is None:
        return results[0]
    if not is_main_process():
        raise RepeatedError(messages[first])
    raise UserError(messages[first]) if error is None else error


def decided(decide: Callable[[], Decision]) -> Decision:
    """What the main process decides, in every process: file systems of several nodes may show files late.

    Args:
        decide: called in the main process alone; its result is pickled.

    Raises:
        UserError, OSError: ``decide`` raised it; RepeatedError in the other processes.
    """
    message: list[Any] = [None, None]
    if is_main_process():
        try:
            message[0] = decide()
        except (UserError, OSError) as error:
            message[1] = str(error)
            broadcast_object_list(message)
            raise
    broadcast_object_list(message)
    if message[1] is not None and not is_main_process():
        raise RepeatedError(message[1])
    return message[0]
