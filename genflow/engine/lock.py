"""One training at a time in a run folder."""

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import SoftFileLock, Timeout
from mmengine.dist import is_main_process

from genflow.errors import UserError
from genflow.processes import decided
from genflow.runs.folder import RunFolder
from genflow.weights import naming_disk

LOCK_FILE = ".running"
#: Which start of which Slurm job holds the lock.
_JOB_FILE = ".running_job"


@contextmanager
def working_in(folder: RunFolder, wait: bool = False) -> Iterator[None]:
    """Keep other trainings out of a run folder; the main process holds the lock for all.

    The lock is a file that names process and host; one that a process of this host left behind when it died is taken
    over, and so is one of an earlier start of the same Slurm job, which a requeue may bring to other hosts. Folders
    that were made for it and stay empty are removed again.

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
                _drop_lock_of_earlier_start(folder)
                lock.acquire(timeout=0)
        except Timeout:
            owner = _owner(folder)
            if not wait:
                remedy = f"wait for it, or remove {folder.path / LOCK_FILE} if it is dead"
                raise UserError(f"{folder}: {owner} trains in it; {remedy}") from None
            print(f"{folder}: {owner} trains in it, waiting", flush=True)
            lock.acquire(poll_interval=1.0)
        with naming_disk(folder.path / _JOB_FILE):
            _note_start(folder)

    decided(acquire)
    try:
        yield
    finally:
        if is_main_process():
            (folder.path / _JOB_FILE).unlink(missing_ok=True)
            lock.release()
            with contextlib.suppress(OSError):  # one holds something
                for path in made:
                    path.rmdir()


def _start_of_job() -> list[str]:
    """The Slurm job that this process belongs to and how often it was requeued; empty outside of Slurm."""
    job = os.environ.get("SLURM_JOB_ID")
    return [] if job is None else [job, os.environ.get("SLURM_RESTART_COUNT", "0")]


def _note_start(folder: RunFolder) -> None:
    start = _start_of_job()
    if start:
        (folder.path / _JOB_FILE).write_text("\n".join(start), encoding="utf-8")
    else:
        (folder.path / _JOB_FILE).unlink(missing_ok=True)


def _drop_lock_of_earlier_start(folder: RunFolder) -> None:
    """Slurm starts a job anew only when all that it ran before has ended."""
    start = _start_of_job()
    try:
        held = (folder.path / _JOB_FILE).read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return
    if start and held[0] == start[0] and held != start:
        (folder.path / LOCK_FILE).unlink(missing_ok=True)


def _owner(folder: RunFolder) -> str:
    try:
        process, host, *_ = (folder.path / LOCK_FILE).read_text(encoding="utf-8", errors="replace").split("\n")
    except (OSError, ValueError):
        return "another process"
    return f"process {process} on {host}"
