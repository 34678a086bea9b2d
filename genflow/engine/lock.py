"""One training at a time in a run folder."""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import SoftFileLock, Timeout
from mmengine.dist import is_main_process

from genflow.errors import UserError
from genflow.processes import decided
from genflow.runs.folder import RunFolder
from genflow.weights import naming_disk

LOCK_FILE = ".running"


@contextmanager
def working_in(folder: RunFolder, wait: bool = False) -> Iterator[None]:
    """Keep other trainings out of a run folder; the main process holds the lock for all.

    The lock is a file that names process and host; one that a process of this host left behind when it died is taken
    over. Folders that were made for it and stay empty are removed again.

    Args:
        folder: the run's.
        wait: wait for whoever works there to finish, and say so; otherwise refuse.

    Raises:
        UserError: somebody else works there, or the folder is no run's.
    """
    lock = SoftFileLock(folder.path / LOCK_FILE)
    made = [path for path in (folder.path, *folder.path.parents) if not path.exists()]

    def acquire() -> None:
        folder.check_own()
        try:
            with naming_disk(folder.path / LOCK_FILE):
                folder.path.mkdir(parents=True, exist_ok=True)
                lock.acquire(timeout=0)
        except Timeout:
            owner = _owner(folder)
            if not wait:
                remedy = f"wait for it, or remove {folder.path / LOCK_FILE} if it is dead"
                raise UserError(f"{folder}: {owner} trains in it; {remedy}") from None
            print(f"{folder}: {owner} trains in it, waiting", flush=True)
            lock.acquire(poll_interval=1.0)

    decided(acquire)
    try:
        yield
    finally:
        if is_main_process():
            lock.release()
            with contextlib.suppress(OSError):  # one holds something
                for path in made:
                    path.rmdir()


def _owner(folder: RunFolder) -> str:
    try:
        process, host, *_ = (folder.path / LOCK_FILE).read_text(encoding="utf-8", errors="replace").split("\n")
    except (OSError, ValueError):
        return "another process"
    return f"process {process} on {host}"
